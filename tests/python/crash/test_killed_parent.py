"""The consumer is killed at random moments: no process, segment or memory of it is left."""

from __future__ import annotations

from pathlib import Path

import pytest

from conftest import RunPython

each_method = pytest.mark.parametrize("method", ["forkserver", "fork"])

# The program is the reaper of all its descendants: once it has no child any more, nothing is left.
PROGRAM = """
import ctypes, os, random, signal, sys, time
import numpy as np
import stook

method, kills, nested = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "nested"
PR_SET_CHILD_SUBREAPER = 36
assert ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
signal.alarm(600)  # faulthandler's traceback in place of a hang

def load(index):
    if nested and index == 1:
        options = stook.MultiprocessingOptions(num_workers=1, start_method="fork")
        for array in stook.DataLoader(range(3), np.ones, options=options):
            pass
    if index % 5 == 0:
        os.system("true")
    return np.full(400_000, index)

def consume():
    options = stook.MultiprocessingOptions(num_workers=2, start_method=method)
    while True:
        kept = []
        loader = stook.DataLoader(range(40), load, options=options)
        for _ in range(2):
            for array in loader:
                assert array[0] == array[-1]
                kept.append(array)

def segments():
    return {name for name in os.listdir("/dev/shm") if name.startswith("stook")}

choice = random.Random(kills)
before = segments()
for number in range(kills):
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        os.write(write, b"x")
        try:
            consume()
        finally:
            os._exit(1)
    os.close(write)
    assert os.read(read, 1) == b"x"
    os.close(read)
    longest = 0.6 if method == "forkserver" else 0.15
    time.sleep(choice.random() * longest)  # a random moment: of the start, or of a pass
    os.kill(child, signal.SIGKILL)
    pid, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL, status
    while True:  # whatever it has left comes to us, until it ends
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            break
assert segments() <= before, segments() - before
print("killed", kills)
"""


def shared_memory() -> int:
    """Bytes of shared memory of the whole machine."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, value = line.split(":")
        if name == "Shmem":
            return int(value.split()[0]) * 1024
    raise AssertionError("no Shmem in /proc/meminfo")


def kill_parents(run_python: RunPython, method: str, kills: int, nested: bool) -> None:
    before = shared_memory()
    done = run_python(
        PROGRAM, method, str(kills), "nested" if nested else "", deadline=610, flags=()
    ).check()
    assert done.stdout == f"killed {kills}\n"
    # Each had tens of megabytes in hand. Other programs of the machine use shared memory, too.
    assert shared_memory() < before + 300 * 2**20


@each_method
def test_a_consumer_killed_at_random_moments(method: str, run_python: RunPython) -> None:
    kill_parents(run_python, method, kills=6, nested=False)


@each_method
def test_a_consumer_of_nested_loaders_killed(method: str, run_python: RunPython) -> None:
    kill_parents(run_python, method, kills=4, nested=True)


@pytest.mark.long
@pytest.mark.parametrize("nested", [False, True], ids=["", "nested"])
@each_method
def test_a_consumer_killed_100_times(method: str, nested: bool, run_python: RunPython) -> None:
    kill_parents(run_python, method, kills=100, nested=nested)


def test_a_killed_consumers_memory_is_gone(run_python: RunPython) -> None:
    # As above, with more memory than other programs are likely to add or free meanwhile.
    before = shared_memory()
    done = run_python(
        """
        import os, signal, numpy as np, stook
        options = stook.MultiprocessingOptions(num_workers=2, memory_limit=2**31)
        loader = stook.DataLoader(range(24), lambda i: np.full(2**24, i, np.uint8), options=options)
        kept = list(loader)
        def shmem():
            with open("/proc/meminfo") as file:
                return dict(line.split(":") for line in file)["Shmem"].split()[0]
        print(int(shmem()) * 1024, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
        """,
    )
    assert int(done.stdout) > before + 200 * 2**20
    assert shared_memory() < before + 200 * 2**20
