"""The workers of a pool: how they start, die, are replaced, and end."""

from __future__ import annotations

import gc
import os
import signal
import weakref
from typing import Any

import numpy as np
import pytest
from task_pools import Sink, made, run, run_items

import stook
from stook._task_pool import Death, TaskPool


def test_a_death_costs_the_items_that_were_begun() -> None:
    def die_at_three(i: int) -> int:
        if i == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return i

    with made() as pool:
        sink = run_items(pool, die_at_three, list(range(8)))
    assert sink.results == [None] * 4 + [4, 5, 6, 7]
    assert sorted(sink.errors) == [0, 1, 2, 3]
    assert all(isinstance(error, stook.WorkerDied) for error in sink.errors.values())
    assert sink.errors[3].exit_code == -signal.SIGKILL  # type: ignore[attr-defined]


def test_a_death_while_items_are_unpickled_costs_them_all() -> None:
    with made(1) as pool:
        run_items(pool, abs, list(range(50)))  # a count that belongs to another job
        sink = run_items(pool, str, [1, DiesWhenLoaded(), 2])
        assert sorted(sink.errors) == [0, 1, 2]
        assert run(pool, abs, -1) == 1


class DiesWhenLoaded:
    def __reduce__(self) -> Any:
        return _end, (os.getpid(),)


def _end(parent: int) -> None:
    if os.getpid() != parent:
        os._exit(3)


def test_a_death_costs_one_task_and_the_pool_goes_on() -> None:
    deaths: list[Death] = []
    with made(on_death=deaths.append) as pool:
        with pytest.raises(stook.WorkerDied, match="exit code 7") as caught:
            run(pool, os._exit, 7)
        assert caught.value.index is None
        assert [death.exit_code for death in deaths] == [7]
        assert run(pool, abs, -1) == 1
        assert len(pool.workers()) == 2


def test_the_death_of_an_idle_worker_is_told() -> None:
    deaths: list[Death] = []
    with made(on_death=deaths.append) as pool:
        worker = pool.workers()[0]
        assert worker.is_alive() and worker.exitcode is None
        worker.kill()
        worker.join()
        assert pool.wait(lambda: deaths)
        assert (deaths[0].pid, worker.exitcode, worker.is_alive()) == (worker.pid, -9, False)


def test_an_initializer_that_raises_ends_the_pool() -> None:
    def fail() -> None:
        raise ValueError("not today")

    with made(initializer=fail) as pool:
        with pytest.raises(ValueError, match="not today"):
            run(pool, abs, -1)
        assert pool.is_closed
        with pytest.raises(stook.PoolBroken):
            pool.function(abs)


def test_a_server_that_dies_ends_the_pool() -> None:
    with made() as pool:
        run(pool, abs, -1)
        sink = Sink()
        pool.submit(pool.function(signal.pause), sink=sink)
        os.kill(pool._core.server_pid, signal.SIGKILL)
        assert pool.wait(lambda: sink.calls)
        with pytest.raises(stook.PoolBroken):
            _ = sink.value


def test_a_worker_is_replaced_after_its_jobs() -> None:
    deaths: list[Death] = []
    with made(1, most_jobs=3, on_death=deaths.append) as pool:
        pids = [run(pool, os.getpid) for _ in range(9)]
    assert len(set(pids)) == 3 and len(set(pids[:3])) == 1
    assert deaths == []
    assert pool._core.totals()[4] == 0, "a planned end is no restart"


def test_workers_are_started_on_demand() -> None:
    with made(5, start_on_demand=True) as pool:
        assert pool.workers() == []
        for _ in range(3):
            assert run(pool, abs, -1) == 1
        assert len(pool.workers()) == 1
        for _ in range(20):
            pool.submit(pool.function(abs), (-1,), sink=Sink())
        assert len(pool.workers()) == 5
        assert pool.finish(60)


def test_none_is_started_only_to_be_ended(tmp_path: Any) -> None:
    def leave_note() -> None:
        (tmp_path / str(os.getpid())).touch()

    with made(5, start_on_demand=True, initializer=leave_note) as pool:
        assert run(pool, abs, -1) == 1
        assert pool.finish(60)
    assert len(list(tmp_path.iterdir())) == 1


def test_finish_runs_what_was_submitted_and_the_workers_finalizers(tmp_path: Any) -> None:
    def leave_note() -> None:
        import multiprocessing.util

        path = tmp_path / str(os.getpid())
        multiprocessing.util.Finalize(None, path.touch, exitpriority=1)

    with made(initializer=leave_note) as pool:
        sinks = [Sink() for _ in range(20)]
        for sink in sinks:
            pool.submit(pool.function(abs), (-1,), sink=sink)
        assert pool.finish(60)
        assert [sink.value for sink in sinks] == [1] * 20
    assert len(list(tmp_path.iterdir())) == 2


def test_finish_gives_up_on_a_task_that_does_not_end() -> None:
    with made() as pool:
        sink = Sink()
        pool.submit(pool.function(signal.pause), sink=sink)
        assert not pool.finish(0.1)
        assert not pool.is_closed
    with pytest.raises(stook.PoolBroken):
        _ = sink.value


def test_a_dropped_pool_ends() -> None:
    pool = TaskPool(1)
    assert run(pool, abs, -1) == 1
    reference = weakref.ref(pool)
    del pool
    gc.collect()
    assert reference() is None


def test_arrays_outlive_the_pool() -> None:
    with made() as pool:
        array = run(pool, np.arange, 100_000)
    assert array[-1] == 99_999


def test_a_forked_child_is_refused() -> None:
    with made() as pool:
        run(pool, abs, -1)
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                pool.function(abs)
                pool.submit(pool.function(abs), (-1,), sink=Sink())
            except stook.StookError as error:
                status = 0 if "forked child" in str(error) or "closed" in str(error) else 2
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert run(pool, abs, -1) == 1


def test_finish_ends_workers_that_are_replaced_meanwhile() -> None:
    with made(3, most_jobs=1) as pool:
        sinks = [Sink() for _ in range(6)]
        for sink in sinks:
            pool.submit(pool.function(abs), (-1,), sink=sink)
        assert pool.finish(60)
        assert [sink.value for sink in sinks] == [1] * 6


def test_finish_runs_what_a_worker_gave_back() -> None:
    with made(2) as pool:
        sink = Sink()
        pool.submit_items(pool.function(np.ones), [1_000_000] * 7, sink=sink)  # 8 MB each
        assert pool.finish(60)
        assert len(sink.results) == 7 and not sink.errors


def test_a_pool_that_cannot_start_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> int:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "posix_spawn", refuse)
    with pytest.raises(BlockingIOError):
        TaskPool(5)
    gc.collect()
