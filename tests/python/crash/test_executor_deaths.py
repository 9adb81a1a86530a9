"""Workers of an executor are killed at every moment: an error for what they had, never a hang."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import multiprocessing.util
import os
import signal
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pytest

import stook
from leftovers import wait_until

each_method = pytest.mark.parametrize("method", ["forkserver", "fork"])
RESTART = stook.MultiprocessingOptions(on_worker_death="restart")


@contextlib.contextmanager
def executor_with(
    method: str, max_workers: int = 2, **settings: Any
) -> Iterator[stook.ProcessPoolExecutor]:
    context = multiprocessing.get_context(method)
    with stook.ProcessPoolExecutor(max_workers, context, **settings) as executor:
        yield executor


def die(how: str = "kill") -> None:
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif how == "exit":
        os._exit(0)
    else:
        signal.signal(signal.SIGSEGV, signal.SIG_DFL)  # without faulthandler's report
        ctypes.string_at(0)


def die_at(mark: str) -> str:
    """Dies the first time; which is then marked."""
    if not os.path.exists(mark):
        Path(mark).touch()
        die()
    return "survived"


class DiesAt:
    """Kills the process that pickles it in a worker, or that unpickles it."""

    def __init__(self, moment: str) -> None:
        self.moment = moment
        self.parent = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        if self.moment == "pickle" and os.getpid() != self.parent:
            die()
        return self.__dict__

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self.moment == "unpickle" and os.getpid() != self.parent:
            die()


class DiesInCollector:
    def __del__(self) -> None:
        die()


def collect() -> None:
    cycle = DiesInCollector()
    cycle.me = cycle  # type: ignore[attr-defined]
    del cycle
    __import__("gc").collect()


def itself(value: Any) -> Any:
    return value


DEATHS = {
    "running": (die, ()),
    "running: exit code 0": (die, ("exit",)),
    "running: a crash": (die, ("crash",)),
    "unpickling": (itself, (DiesAt("unpickle"),)),
    "pickling": (itself, (DiesAt("pickle"),)),
    "collecting": (collect, ()),
}


@each_method
@pytest.mark.parametrize("death", DEATHS)
def test_a_death_breaks_the_pool(method: str, death: str) -> None:
    function, arguments = DEATHS[death]
    with executor_with(method) as executor:
        assert executor.submit(abs, -1).result(30) == 1
        lost = executor.submit(function, *arguments)
        behind = []
        with contextlib.suppress(BrokenProcessPool):  # it may have been heard of by then
            behind += (executor.submit(abs, -number) for number in range(200))
        error = lost.exception(30)
        assert isinstance(error, stook.WorkerDied) and isinstance(error, BrokenProcessPool)
        for number, future in enumerate(behind):
            found = future.exception(30)
            if found is None:  # it was done before
                assert future.result() == number
            else:
                assert isinstance(found, BrokenProcessPool)
                assert "terminated abruptly while the future was running or pending" in str(found)
        for _ in range(2):
            with pytest.raises(BrokenProcessPool, match="not usable anymore"):
                executor.submit(abs, -1)
        assert executor._broken
    with pytest.raises(BrokenProcessPool):
        executor.submit(abs, -1)


@each_method
def test_the_death_of_an_idle_worker_breaks_the_pool(method: str) -> None:
    with executor_with(method, 1) as executor:
        executor.submit(abs, -1).result(30)
        pool = executor._pool
        assert pool is not None
        assert wait_until(lambda: not pool.attendant.is_awake, 30)
        (worker,) = (executor._processes or {}).values()
        worker.kill()
        assert wait_until(lambda: bool(executor._broken), 30)  # nobody asks it for anything
        with pytest.raises(BrokenProcessPool, match="not usable anymore"):
            executor.submit(abs, -1)


def test_each_of_those_that_a_death_breaks_raises_an_error_of_its_own() -> None:
    with executor_with("forkserver", 1) as executor:
        # None that another worker, which takes its place for a moment, could end.
        futures = [executor.submit(signal.pause) for _ in range(4)]
        assert wait_until(futures[0].running, 30)
        (worker,) = (executor._processes or {}).values()
        worker.kill()
        errors = [future.exception(30) for future in futures]
    assert all(isinstance(error, BrokenProcessPool) for error in errors)
    # Raised, they get tracebacks and contexts.
    assert len({id(error) for error in errors}) == len(errors)


@each_method
def test_the_death_of_the_server_breaks_the_pool(method: str) -> None:
    with executor_with(method, 1) as executor:
        future = executor.submit(signal.pause)
        assert wait_until(future.running, 30)
        os.kill(executor._pool.tasks._core.server_pid, signal.SIGKILL)  # type: ignore[union-attr]
        with pytest.raises(BrokenProcessPool):
            future.result(30)
        with pytest.raises(BrokenProcessPool):
            executor.submit(abs, -1)


@each_method
@pytest.mark.parametrize("death", DEATHS)
def test_with_restart_only_the_lost_task_fails(method: str, death: str) -> None:
    function, arguments = DEATHS[death]
    with executor_with(method, options=RESTART) as executor:
        before = [executor.submit(abs, -number) for number in range(100)]
        lost = [executor.submit(function, *arguments) for _ in range(3)]
        behind = [executor.submit(abs, -number) for number in range(100)]
        for future in lost:
            assert isinstance(future.exception(30), stook.WorkerDied)
        for futures in (before, behind):
            assert [future.result(30) for future in futures] == [*range(100)]
        assert not executor._broken


@each_method
def test_a_lost_task_is_not_run_again(method: str, tmp_path: Path) -> None:
    mark = str(tmp_path / "mark")
    with executor_with(method, 1, options=RESTART) as executor:
        assert isinstance(executor.submit(die_at, mark).exception(30), stook.WorkerDied)
        assert executor.submit(die_at, mark).result(30) == "survived"


@each_method
def test_with_restart_what_a_chunk_had_not_begun_is_run(method: str, tmp_path: Path) -> None:
    behind = [tmp_path / name for name in "abc"]
    calls = [(abs, -1), (os._exit, 3), *((Path.touch, path) for path in behind)]
    with executor_with(method, 1, options=RESTART) as executor:
        results = executor.map(
            lambda function, value: function(value), *zip(*calls, strict=True), chunksize=9
        )
        with pytest.raises(stook.WorkerDied):
            next(results)
        assert all(path.exists() for path in behind)
        assert executor.submit(abs, -5).result(30) == 5


@each_method
def test_a_death_after_shutdown_was_called_ends_it(method: str) -> None:
    with executor_with(method, 1) as executor:
        future = executor.submit(signal.pause)
        assert wait_until(future.running, 30)
        (worker,) = (executor._processes or {}).values()
        executor.shutdown(wait=False)
        worker.kill()
        executor.shutdown(wait=True)
        assert isinstance(future.exception(0), BrokenProcessPool)


def die_at_the_end() -> None:
    multiprocessing.util.Finalize(None, die, exitpriority=10)


@each_method
def test_workers_that_are_killed_as_they_end(method: str) -> None:
    with executor_with(method, initializer=die_at_the_end) as executor:
        futures = [executor.submit(abs, -number) for number in range(100)]
    assert [future.result(0) for future in futures] == [*range(100)]


@each_method
def test_everybody_who_is_told_of_results_is_told_of_a_death(method: str) -> None:
    import asyncio
    from concurrent.futures import as_completed

    with executor_with(method, options=RESTART) as executor:
        told: list[Any] = []
        future = executor.submit(die)
        future.add_done_callback(lambda done: told.append(done.exception()))
        assert [*as_completed([future], 30)] == [future]
        assert wait_until(lambda: told, 30) and isinstance(told[0], BrokenProcessPool)

        async def run() -> None:
            await asyncio.get_running_loop().run_in_executor(executor, die)

        with pytest.raises(BrokenProcessPool):
            asyncio.run(run())
        told.clear()
