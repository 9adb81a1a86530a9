"""Workers of a `stook.Pool` are killed: the calls they were in fail at once, the pool goes on."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import stook

sys.path.append(str(Path(__file__).parents[1] / "process"))

import pool_calls as calls
from pool_calls import DEADLINE


@pytest.fixture(params=["forkserver", "fork"])
def pool(request: pytest.FixtureRequest) -> Iterator[stook.Pool]:
    pool = stook.Pool(2, start_method=request.param)
    yield pool
    assert pool.map(calls.square, range(10)) == [n * n for n in range(10)]  # it goes on
    pool.close()
    pool.join()
    vars(pool).clear()


def test_a_call_whose_worker_is_killed_fails(pool: stook.Pool) -> None:
    for _ in range(3):
        with pytest.raises(stook.WorkerDied, match=r"exit code -9 \(SIGKILL\)"):
            pool.apply(calls.die)
    errors: list[Any] = []
    result = pool.apply_async(calls.die, error_callback=errors.append)
    with pytest.raises(stook.WorkerDied):
        result.get(DEADLINE)
    assert [type(error) for error in errors] == [stook.WorkerDied]


@pytest.mark.parametrize("chunksize", [None, 1, 4])
def test_a_map_one_of_whose_workers_is_killed_fails(
    pool: stook.Pool, chunksize: int | None
) -> None:
    with pytest.raises(stook.WorkerDied):
        pool.map(calls.die_at_three, range(100), chunksize)


def test_of_calls_that_travel_together_those_behind_the_deadly_one_are_made(
    pool: stook.Pool,
) -> None:
    results = pool.imap(calls.die_at_three, [0] * 2000 + [3] + [0] * 2000)
    lost = []
    for index in range(4001):
        try:
            assert next(results) == 0
        except stook.WorkerDied:
            lost.append(index)
    # Results of the same job that the worker had and did not hand over are lost with it; nothing
    # is run twice.
    assert lost[-1] == 2000 and lost == list(range(lost[0], 2001)) and len(lost) <= 512


def test_an_argument_that_kills_its_worker_costs_its_own_call(pool: stook.Pool) -> None:
    with pytest.raises(stook.WorkerDied):
        pool.apply(calls.same, (calls.DiesWhenUnpickled(),))
    items: list[Any] = list(range(2000))
    items[1500] = calls.DiesWhenUnpickled()
    results = pool.imap(calls.same, items)
    for index in range(2000):
        if index == 1500:
            with pytest.raises(stook.WorkerDied):
                next(results)
        else:
            assert next(results) == index


@pytest.mark.parametrize("chunksize", [1, 4])
def test_a_result_that_kills_its_worker_as_it_is_pickled(pool: stook.Pool, chunksize: int) -> None:
    with pytest.raises(stook.WorkerDied, match="SIGKILL"):
        pool.apply(calls.die_pickling)
    with pytest.raises(stook.WorkerDied, match="SIGKILL"):
        pool.map(calls.die_pickling, range(10), chunksize)
    results = pool.imap(calls.die_pickling, [0] * 20 + [3] + [0] * 20, chunksize)
    lost = []
    for index in range(41):
        try:
            assert next(results) == 0
        except stook.WorkerDied:
            lost.append(index)
    # What the worker had made of the same job is lost with it; what it had not begun is not.
    assert lost == list(range(lost[0], 21))


@pytest.mark.parametrize("method", ["forkserver", "fork"])
def test_workers_that_are_killed_as_they_end(method: str) -> None:
    pool = stook.Pool(2, calls.die_at_the_end, start_method=method)
    result = pool.map_async(calls.square, range(100), 1)
    pool.close()
    pool.join()
    assert result.get(0) == [n * n for n in range(100)]


def test_a_worker_that_is_killed_while_idle_is_replaced(pool: stook.Pool) -> None:
    for worker in pool._pool:
        worker.kill()
        worker.join(DEADLINE)
    # Those that had claimed nothing cost nothing.
    assert pool.map(calls.square, range(100), 1) == [n * n for n in range(100)]
    assert all(worker.is_alive() for worker in pool._pool)


def test_a_worker_that_is_killed_in_the_middle_of_others(pool: stook.Pool, tmp_path: Path) -> None:
    told, fifo = calls.fifo(tmp_path, "told"), calls.fifo(tmp_path, "gate")
    stuck = pool.apply_async(calls.tell_and_wait, (told, fifo))
    assert Path(told).read_bytes() == b"begun"
    others = pool.map_async(calls.square, range(1000), 1)
    assert others.get(DEADLINE) == [n * n for n in range(1000)]
    for worker in pool._pool:
        os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(stook.WorkerDied):
        stuck.get(DEADLINE)


def test_a_killed_server_is_the_error_of_all() -> None:
    pool = stook.Pool(2)
    os.kill(pool._tasks._core.server_pid, signal.SIGKILL)
    with pytest.raises(stook.PoolBroken, match="fork server"):
        pool.map(calls.square, range(100_000), 1)
    with pytest.raises(stook.PoolBroken, match="make another pool"):
        pool.apply(calls.square, (3,))
    pool.terminate()
    pool.join()
