"""Limits of the system: /dev/shm, descriptors, address space, file size, memory of a cgroup."""

from __future__ import annotations

import contextlib
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import RunPython

each_method = pytest.mark.parametrize("method", ["forkserver", "fork"])

PREAMBLE = """
import os, resource, sys, numpy as np, stook

def options(num_workers=2, **settings):
    method = sys.argv[1] if len(sys.argv) > 1 else "forkserver"
    return stook.MultiprocessingOptions(num_workers=num_workers, start_method=method, **settings)

def filled(case):
    size, value = case
    return np.full(size, value, np.uint8)
"""


# ---- /dev/shm ------------------------------------------------------------------------------------

SMALL_SHM = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
CLONE_NEWNS, MS_REC, MS_PRIVATE = 0x20000, 0x4000, 1 << 18

def mount(*arguments):
    if libc.mount(*arguments) != 0:
        sys.exit(f"not permitted: {os.strerror(ctypes.get_errno())}")

if libc.unshare(CLONE_NEWNS) != 0:
    sys.exit(f"not permitted: {os.strerror(ctypes.get_errno())}")
mount(None, b"/", None, MS_REC | MS_PRIVATE, None)
mount(b"tmpfs", b"/dev/shm", b"tmpfs", 0, b"size=1m")
assert os.statvfs("/dev/shm").f_blocks * os.statvfs("/dev/shm").f_frsize == 1 << 20
"""


@each_method
def test_a_small_dev_shm(method: str, run_python: RunPython) -> None:
    done = run_python(
        PREAMBLE
        + SMALL_SHM
        + """
cases = [(10 << 20, k) for k in range(20)]
with stook.DataLoader(cases, filled, options=options(memory_limit=2**30)) as loader:
    kept = list(loader)
    assert all(stook.is_shared(array) for array in kept)
    assert [int(array[0]) + int(array[-1]) for array in kept] == [2 * k for k in range(20)]
assert os.listdir("/dev/shm") == []
print("kept", sum(array.nbytes for array in kept))
""",
        method,
    )
    if done.stderr.startswith("not permitted"):
        pytest.skip(f"mounting a file system of one's own is {done.stderr.strip()}")
    assert done.check().stdout == f"kept {200 << 20}\n"


# ---- descriptors ---------------------------------------------------------------------------------


@each_method
def test_64_open_files_and_500_live_arrays(method: str, run_python: RunPython) -> None:
    done = run_python(
        PREAMBLE
        + """
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
cases = [(5_000 + k, k % 256) for k in range(500)]
with stook.DataLoader(cases, filled, options=options(4)) as loader:
    kept = list(loader)
    assert all(stook.is_shared(array) for array in kept)
    assert all((array == value).all() for array, (_, value) in zip(kept, cases))
    again = list(loader)
    print(len(kept), len(again), len(os.listdir("/proc/self/fd")) < 40)
""",
        method,
    ).check()
    assert done.stdout == "500 500 True\n"


@each_method
def test_too_few_descriptors_to_start(method: str, run_python: RunPython) -> None:
    done = run_python(
        PREAMBLE
        + """
import errno
highest = max(int(name) for name in os.listdir("/proc/self/fd"))
outcomes = []
for limit in range(highest + 1, highest + 60):
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, 4096))
    try:
        with stook.DataLoader([(5000, 1)] * 4, filled, options=options(4)) as loader:
            assert [int(array[0]) for array in loader] == [1] * 4
        outcomes.append("works")
    except OSError as error:
        assert error.errno == errno.EMFILE, error
        assert "Too many open files" in str(error) or "ulimit -n" in str(error), error
        outcomes.append("refused")
    except stook.PoolBroken as error:  # a descriptor that was sent to this process
        assert "ulimit -n" in str(error), error
        outcomes.append("refused")
    if outcomes[-5:] == ["works"] * 5:
        break
# In between it depends on how many workers have announced themselves when the pass is over.
assert outcomes[:5] == ["refused"] * 5 and outcomes[-5:] == ["works"] * 5, outcomes
print(sorted(set(outcomes)), len(os.listdir("/proc/self/fd")) <= highest + 1)
""",
        method,
        flags=("-X", "dev", "-W", "error", "-W", "ignore::ResourceWarning"),
        deadline=110,
    ).check()
    assert done.stdout == "['refused', 'works'] True\n", str(done)


@each_method
def test_too_few_descriptors_for_a_workers_successor(method: str, run_python: RunPython) -> None:
    run_python(
        PREAMBLE
        + """
def dies(index):
    if index == 5 and not os.path.exists("died"):
        open("died", "w").close()
        os._exit(1)
    return index

loader = stook.DataLoader(range(20), dies, options=options(1))
elements = iter(loader)
assert next(elements) == 0
resource.setrlimit(resource.RLIMIT_NOFILE, (3, 4096))  # not one more
found = []
try:
    for element in elements:
        found.append(element)
except (OSError, stook.PoolBroken) as error:
    assert "open files" in str(error), error
else:
    raise AssertionError(f"nothing was raised: {found}")
assert found == list(range(1, 5)), found
assert list(elements) == []
resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
assert list(loader) == list(range(20))
loader.close()
""",
        method,
    ).check()


# ---- address space, file size --------------------------------------------------------------------


@each_method
def test_an_address_space_of_4_gib(method: str, run_python: RunPython) -> None:
    done = run_python(
        PREAMBLE
        + """
import importlib.util
loaded = [name for name in ("cv2", "torch") if importlib.util.find_spec(name)]
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
for name in loaded:
    importlib.import_module(name)

def element(case):
    for name in loaded:
        importlib.import_module(name)
    return filled(case)

cases = [(1 << 20, k) for k in range(60)]
with stook.DataLoader(cases, element, options=options(2)) as loader:
    kept = list(loader)
    assert [int(array[-1]) for array in kept] == list(range(60))
    assert all(stook.is_shared(array) for array in kept)
    import threading  # what is left is enough for the parent's threads
    threads = [threading.Thread(target=bytearray, args=(1 << 20,)) for _ in range(20)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
print("with", *loaded)
""",
        method,
        # Torch has threads, and forking beside them is warned about.
        flags=("-W", "error", "-W", "ignore:start_method='fork'"),
        deadline=110,
    ).check()
    assert done.stdout.startswith("with")


LIMITS = {
    # name: (limit to set, element that does not fit)
    "address space": ("resource.setrlimit(resource.RLIMIT_AS, (900 << 20, 900 << 20))", 120 << 20),
    "file size": ("resource.setrlimit(resource.RLIMIT_FSIZE, (8 << 20, 8 << 20))", 32 << 20),
}


@each_method
@pytest.mark.parametrize("limit", LIMITS)
def test_an_element_that_does_not_fit_the_arena(
    method: str, limit: str, run_python: RunPython
) -> None:
    code, size = LIMITS[limit]
    run_python(
        PREAMBLE
        + code
        + f"""
big = {size}
with stook.DataLoader([(5000, 1), (big, 2), (6000, 3)], filled, options=options(2)) as loader:
    for _ in range(3):
        elements = iter(loader)
        assert int(next(elements)[0]) == 1
        try:
            next(elements)
        except stook.SharedMemoryExhausted as error:
            assert isinstance(error, MemoryError)
            assert big <= error.requested < 2 * big, error.requested
            assert 0 < error.limit < big, error.limit
            for text in (str(error.requested), str(error.limit), "smaller", "ulimit"):
                assert text in str(error), error
            assert error.__notes__ == ["while loading element 1"], error.__notes__
        else:
            raise AssertionError("nothing was raised")
        assert [int(array[0]) for array in elements] == [3]
    assert loader.stats().restarts == 0
""",
        method,
        flags=("-W", "error"),
    ).check()


@each_method
def test_arguments_that_do_not_fit(method: str, run_python: RunPython) -> None:
    run_python(
        PREAMBLE
        + """
resource.setrlimit(resource.RLIMIT_FSIZE, (8 << 20, 8 << 20))
source = [np.zeros(k, np.uint8) for k in (5000, 32 << 20, 6000)]
with stook.DataLoader(iter(source), len, options=options(2)) as loader:
    elements = iter(loader)
    assert next(elements) == 5000
    try:
        next(elements)
    except stook.SharedMemoryExhausted as error:
        assert error.requested >= 32 << 20, error.requested
        assert error.__notes__ == ["while loading element 1"], error.__notes__
    assert list(elements) == [6000]
""",
        method,
        flags=("-W", "error"),
    ).check()


# ---- memory_limit --------------------------------------------------------------------------------


@each_method
def test_elements_larger_than_the_memory_limit(method: str, run_python: RunPython) -> None:
    run_python(
        PREAMBLE
        + """
cases = [(3 << 20, k) for k in range(40)]
with stook.DataLoader(cases, filled, options=options(3, memory_limit=1 << 20)) as loader:
    for ordered in range(2):
        kept = list(loader)
        assert [int(array[0]) + int(array[-1]) for array in kept] == [2 * k for k in range(40)]
        assert loader.stats().bytes_live <= 16 << 20, loader.stats()
    del kept
with stook.DataLoader(
    cases, filled, ordered=False, options=options(3, memory_limit=1 << 20)
) as loader:
    assert sorted(int(array[0]) for array in list(loader)) == list(range(40))
""",
        method,
    ).check()


@each_method
def test_what_the_consumer_keeps_stays_under_the_memory_limit(
    method: str, run_python: RunPython
) -> None:
    run_python(
        PREAMBLE
        + """
cases = [(100_000, k % 256) for k in range(2000)]
with stook.DataLoader(cases, filled, options=options(2, memory_limit=32 << 20)) as loader:
    kept = []
    for array in loader:
        kept.append(array)
        assert loader.stats().bytes_live <= 40 << 20
    shared = sum(stook.is_shared(array) for array in kept)
    assert 0 < shared * 100_000 <= 32 << 20, shared
    assert all((array == value).all() for array, (_, value) in zip(kept, cases))
    assert loader.stats().copied >= 2000 - shared
    del kept, array
    again = list(loader)
    assert any(stook.is_shared(array) for array in again)
""",
        method,
    ).check()


# ---- a memory cgroup -----------------------------------------------------------------------------

CGROUP_ROOTS = (Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup"))


@contextlib.contextmanager
def memory_cgroup(limit: int) -> Iterator[Path]:
    """A group of that many bytes, of version 1 or 2. Skips where none can be made."""
    reason = "there is no memory controller"
    for root in CGROUP_ROOTS:
        version_2 = (root / "cgroup.controllers").exists()
        if not version_2 and not (root / "memory.limit_in_bytes").exists():
            continue
        group = root / f"stook-test-{secrets.token_hex(4)}"
        try:
            group.mkdir()
        except OSError as error:
            reason = str(error)
            continue
        try:
            (group / ("memory.max" if version_2 else "memory.limit_in_bytes")).write_text(
                str(limit)
            )
        except OSError as error:
            group.rmdir()
            reason = str(error)
            continue
        try:
            yield group
        finally:
            group.rmdir()
        return
    pytest.skip(f"a memory cgroup cannot be made here: {reason}")


JOIN = """
import pathlib
pathlib.Path(sys.argv[2], "cgroup.procs").write_text(str(os.getpid()))
"""


@each_method
def test_a_cgroup_full_of_file_cache(method: str, run_python: RunPython, tmp_path: Path) -> None:
    with memory_cgroup(300 << 20) as group:
        run_python(
            PREAMBLE
            + JOIN
            + """
with open(sys.argv[3], "wb") as file:
    for _ in range(400):
        file.write(bytes(1 << 20))
with open(sys.argv[3], "rb") as file:
    while file.read(1 << 20):
        pass
cases = [(1 << 20, k) for k in range(60)]
with stook.DataLoader(cases, filled, options=options(2)) as loader:
    for _ in range(3):
        for (_, value), array in zip(cases, loader, strict=True):
            assert int(array[0]) == int(array[-1]) == value
            assert stook.is_shared(array)
    kept = list(loader)  # a fifth of the group
    assert [int(array[0]) for array in kept] == list(range(60))
    assert loader.stats().restarts == 0
    assert loader.stats().moved > 0
os.unlink(sys.argv[3])
""",
            method,
            str(group),
            str(tmp_path / "cached"),
        ).check()


@each_method
def test_more_than_a_cgroup_has(method: str, run_python: RunPython) -> None:
    # What is kept does not fit; what is in shared memory must not be what ends the program.
    with memory_cgroup(300 << 20) as group:
        done = run_python(
            PREAMBLE
            + JOIN
            + """
def element(index):
    if index == 3:
        return np.full(400 << 20, 1, np.uint8)
    return np.full(1 << 20, index, np.uint8)

with stook.DataLoader(range(6), element, options=options(1, max_restarts=1)) as loader:
    elements = iter(loader)
    assert [int(next(elements)[0]) for _ in range(3)] == [0, 1, 2]
    try:
        next(elements)
    except stook.WorkerDied as error:
        assert error.exit_code == -9, error
        assert "out-of-memory killer" in str(error), error
        assert "2 workers died of this element" in str(error), error
        print("killed")
    except stook.SharedMemoryExhausted as error:
        print("exhausted")
    assert [int(array[0]) for array in elements] == [4, 5]
""",
            method,
            str(group),
            deadline=110,
        ).check()
    assert done.stdout in ("killed\n", "exhausted\n")


def test_this_interpreter_can_be_started_under_a_limit() -> None:
    # The limits above must leave enough for Python and NumPy themselves: else those tests say
    # nothing about Stook.
    code = "import resource; resource.setrlimit(resource.RLIMIT_AS, (900 << 20,) * 2); import numpy"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, env=dict(os.environ))
