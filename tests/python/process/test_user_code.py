"""What user code may do in a worker: threads, processes, forks, output, logging, random exits."""

from __future__ import annotations

import logging
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from process_loader import METHODS, each_method, made

import stook
from conftest import RunPython

# ---- threads, processes, forks -------------------------------------------------------------------


def filled_by_threads(index: int) -> list[int]:
    sums: list[int] = []

    def work(value: int) -> None:
        sums.append(int(np.full(10_000, value).sum()))

    threads = [threading.Thread(target=work, args=(index + k,)) for k in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sorted(sums)


@each_method
def test_threads(method: str) -> None:
    with made(method, range(6), filled_by_threads) as loader:
        assert list(loader) == [[10_000 * (i + k) for k in range(3)] for i in range(6)]


def put_square(pipe: Any, value: int) -> None:
    pipe.send((value * value, multiprocessing.parent_process().pid))  # type: ignore[union-attr]


def in_a_process(index: int) -> Any:
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=put_square, args=(theirs, index))
    process.start()
    result, parent = ours.recv()
    process.join()
    return result, parent == os.getpid(), process.exitcode


@each_method
def test_multiprocessing_in_a_worker(method: str) -> None:
    with made(method, range(4), in_a_process) as loader:
        assert list(loader) == [(i * i, True, 0) for i in range(4)]


def in_a_pool(index: int) -> list[int]:
    with multiprocessing.get_context("fork").Pool(2) as pool:
        return pool.map(abs, [-index, index])


@each_method
def test_multiprocessing_pool_in_a_worker(method: str) -> None:
    with made(method, range(3), in_a_pool) as loader:
        assert list(loader) == [[i, i] for i in range(3)]


def by_programs(index: int) -> tuple[str, int]:
    done = subprocess.run(
        [sys.executable, "-c", f"print({index})"], capture_output=True, text=True, check=True
    )
    return done.stdout, os.waitstatus_to_exitcode(os.system(f"exit {index}"))


@each_method
def test_programs(method: str) -> None:
    with made(method, range(3), by_programs) as loader:
        assert list(loader) == [(f"{i}\n", i) for i in range(3)]


def stays_in_the_background(index: int) -> int:
    return subprocess.Popen(["sleep", "1000"]).pid


@each_method
def test_programs_end_with_the_worker_that_started_them(method: str) -> None:
    with made(method, range(2), stays_in_the_background) as loader:
        pids = list(loader)
        assert all(Path(f"/proc/{pid}").exists() for pid in pids)
    # The fixture that looks for what is left does the rest.


def child_writes(index: int) -> tuple[int, int]:
    array = np.full(10_000, index)
    child = os.fork()
    if child == 0:
        array[:] = -1  # its copy
        array.resize(50_000, refcheck=False)
        ok = int(array.sum()) == -10_000 and int(np.ones(20_000).sum()) == 20_000
        os._exit(7 if ok else 1)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return int(array.sum()), status


@each_method
def test_what_a_forked_child_writes_stays_there(method: str) -> None:
    with made(method, range(4), child_writes) as loader:
        assert list(loader) == [(10_000 * i, 7) for i in range(4)]


def child_exits(index: int) -> Any:
    import atexit

    read, write = os.pipe()
    array = np.full(10_000, index)
    child = os.fork()
    if child == 0:
        atexit.register(os.write, write, b"handler ran")
        array[:] = -1
        sys.exit(5)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os.close(write)
    text = os.read(read, 100)
    os.close(read)
    return array, status, text


@each_method
def test_a_forked_child_may_exit_by_its_exit_handlers(method: str) -> None:
    with made(method, range(4), child_exits) as loader:
        for index, (array, status, text) in enumerate(loader):
            assert (array == index).all()
            assert (status, text) == (5, b"handler ran")


def child_returns(index: int) -> Any:
    child = os.fork()
    if child == 0:
        return "from a child"
    return index, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def child_raises(index: int) -> Any:
    child = os.fork()
    if child == 0:
        raise ValueError("in a child")
    return index, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@each_method
@pytest.mark.parametrize("transform", [child_returns, child_raises])
def test_a_forked_child_that_comes_back_is_no_worker(
    method: str, transform: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    with made(method, range(4), transform) as loader:
        assert list(loader) == [(i, 1) for i in range(4)]
    told = "returned from user code" if transform is child_returns else "ValueError: in a child"
    assert capfd.readouterr().err.count(told) == 4


def fork_and_return(index: int, count: int) -> None:
    if os.fork() == 0:
        return
    os.wait()


@each_method
def test_a_child_forked_by_worker_init_fn_is_no_worker(
    method: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with made(method, range(4), abs, worker_init_fn=fork_and_return) as loader:
        assert list(loader) == [0, 1, 2, 3]
    assert "returned from user code" in capfd.readouterr().err


# ---- loaders in loaders --------------------------------------------------------------------------


def arrays_of_a_nested_loader(case: tuple[str, int]) -> Any:
    method, index = case
    outer = np.full(20_000, index)  # in the outer worker's arena
    kept = [outer]

    def inner(k: int) -> Any:
        made_here = np.arange(5_000) * k + kept[0][0]
        if k == 1:
            kept[:] = [np.full(3, kept[0][0])]  # frees what was inherited
        return made_here

    options = stook.MultiprocessingOptions(num_workers=1, start_method=method)
    return [array.sum() for array in stook.DataLoader(range(4), inner, options=options)]


@each_method
@pytest.mark.parametrize("nested", METHODS)
def test_a_loader_in_a_worker_of_another(method: str, nested: str) -> None:
    with made(method, [(nested, i) for i in range(3)], arrays_of_a_nested_loader) as loader:
        triangle = int(np.arange(5_000).sum())
        assert list(loader) == [[k * triangle + 5_000 * i for k in range(4)] for i in range(3)]


# ---- who and where a worker is -------------------------------------------------------------------


def who(index: int) -> dict[str, Any]:
    info = stook.worker_info()
    assert info is not None
    return {
        "info": info,
        "pid": os.getpid(),
        "group": os.getpgid(0),
        "name": multiprocessing.current_process().name,
        "parent": multiprocessing.parent_process().pid,  # type: ignore[union-attr]
        "daemon": multiprocessing.current_process().daemon,
        "signals": [
            signal.getsignal(signal.SIGTERM) == signal.SIG_DFL,
            signal.getsignal(signal.SIGPIPE) == signal.SIG_IGN,
            signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set(),
        ],
    }


@each_method
def test_worker_info_and_process(method: str) -> None:
    with made(method, range(8), who, num_epochs=2) as loader:
        found = list(loader)
    for position, worker in enumerate(found):
        info = worker["info"]
        assert info.index in (0, 1)
        assert (info.count, info.incarnation, info.epoch) == (2, 0, position // 8)
        assert info.pid == worker["pid"] == worker["group"] != os.getpid()
        assert worker["name"] == f"StookWorker-{info.index}"
        assert worker["parent"] == os.getpid()
        assert not worker["daemon"]
        assert worker["signals"] == [True] * 3
    assert stook.worker_info() is None


def reads_stdin(index: int) -> tuple[str, bytes]:
    return sys.stdin.read(), os.read(0, 10)


@each_method
def test_stdin_is_empty(method: str) -> None:
    with made(method, range(2), reads_stdin) as loader:
        assert list(loader) == [("", b"")] * 2


@each_method
def test_stdin_stays_the_callers(method: str, tmp_path: Path) -> None:
    # What the caller has in its buffer is not the workers' either.
    code = f"""
import sys, stook
first = sys.stdin.readline()
options = stook.MultiprocessingOptions(num_workers=1, start_method={method!r})
seen = list(stook.DataLoader(range(2), lambda index: sys.stdin.read(), options=options))
print(repr((first, seen, sys.stdin.read())))
"""
    script = tmp_path / "reads.py"
    script.write_text(code)
    done = subprocess.run(
        [sys.executable, str(script)],
        input="one\ntwo\nthree\n",
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == repr(("one\n", ["", ""], "two\nthree\n")) + "\n"


@each_method
def test_what_is_printed_is_seen_once(method: str, run_python: RunPython) -> None:
    done = run_python(
        """
        import sys, stook

        def noisy(index):
            print("worker", index)
            print("error", index, file=sys.stderr)
            return index

        print("before", end=" ")  # in the buffer when the workers are started
        options = stook.MultiprocessingOptions(num_workers=1, start_method=sys.argv[1])
        with stook.DataLoader(range(3), noisy, options=options) as loader:
            assert list(loader) == [0, 1, 2]
        print("after")
        """,
        method,
        env={"PYTHONUNBUFFERED": None},
        flags=("-W", "error"),
    ).check()
    assert sorted(done.stdout.split()) == sorted(
        ["before", "after", *["worker"] * 3, "0", "1", "2"]
    )
    assert done.stderr.splitlines() == ["error 0", "error 1", "error 2"]


# ---- logging and warnings ------------------------------------------------------------------------


def logs(index: int) -> int:
    logger = logging.getLogger("stook_test.worker")
    logger.debug("debug %d", index)
    logger.info("info %d", index)
    try:
        raise ValueError(f"oops {index}")
    except ValueError:
        logger.exception("failed %d", index, extra={"place": index, "lock": threading.Lock()})
    logging.getLogger("stook_test.quiet").warning("quiet %d", index)
    return index


@each_method
def test_log_records_arrive_at_the_parents_handlers(
    method: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR, "stook_test.quiet")
    caplog.set_level(logging.INFO, "stook_test.worker")  # the handler's level, too
    with made(method, range(3), logs) as loader:
        assert list(loader) == [0, 1, 2]
        records = [r for r in caplog.records if r.name.startswith("stook_test")]
    assert sorted(r.getMessage() for r in records) == sorted(
        text for i in range(3) for text in (f"info {i}", f"failed {i}")
    )
    for record in records:
        assert record.process != os.getpid()
        assert record.filename == Path(__file__).name
    failed = [r for r in records if r.levelno == logging.ERROR]
    assert sorted(r.place for r in failed) == [0, 1, 2]  # type: ignore[attr-defined]
    assert all("ValueError: oops" in (r.exc_text or "") for r in failed)


def logs_much(index: int) -> int:
    for k in range(2_000):
        logging.getLogger("stook_test.much").error("%d %d", index, k)
    logging.getLogger("stook_test.much").error("x" * 4_000_000)
    return index


def test_a_worker_that_logs_more_than_the_parent_reads_does_not_hang(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with made("forkserver", range(2), logs_much) as loader:
        assert list(loader) == [0, 1]
    told = [r.getMessage() for r in caplog.records if r.name == "stook_test.much"]
    told += [line.rpartition(":")[2] for line in capfd.readouterr().err.splitlines()]
    told = [text for text in told if not text.startswith("x")]
    assert sorted(told) == sorted(f"{i} {k}" for i in range(2) for k in range(2_000))


def warns(index: int) -> str:
    try:
        warnings.warn(f"careful {index}", UserWarning, stacklevel=1)
    except UserWarning as error:
        return f"raised {error}"
    return "not raised"


@each_method
@pytest.mark.parametrize("action", ["error", "ignore"])
def test_warning_filters_are_the_callers(method: str, action: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter(action, UserWarning)
        with made(method, range(2), warns) as loader:
            found = list(loader)
    expected = (
        [f"raised careful {i}" for i in range(2)] if action == "error" else ["not raised"] * 2
    )
    assert found == expected


# ---- random draws --------------------------------------------------------------------------------


def draws(index: int) -> tuple[float, float]:
    return random.random(), float(np.random.random())


@each_method
def test_workers_without_a_seed_draw_differently(method: str) -> None:
    with made(method, range(8), draws, seed=None) as loader:
        found = list(loader)
    assert len({x for pair in found for x in pair}) == 16
