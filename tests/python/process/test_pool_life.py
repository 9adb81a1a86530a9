"""The workers of a pool, its end, and who else has to do with it."""

from __future__ import annotations

import gc
import itertools
import os
import pickle
import threading
import warnings
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pool_calls as calls
import pytest
from pool_calls import DEADLINE

import stook

METHODS = ["forkserver", "fork"]


@pytest.fixture
def pool() -> Iterator[stook.Pool]:
    pool = stook.Pool(2)
    yield pool
    pool.terminate()
    pool.join()
    vars(pool).clear()  # pytest holds the pool, which holds descriptors of its workers


def test_the_workers_are_there_to_be_looked_at(pool: stook.Pool) -> None:
    workers = pool._pool
    assert len(workers) == 2 and all(worker.is_alive() for worker in workers)
    pids = {worker.pid for worker in workers}
    assert set(pool.map(calls.pid_of, range(100), 1)) <= pids
    assert repr(pool) == "<stook.pool.Pool state=RUN pool_size=2>"
    pool.close()
    pool.join()
    assert not any(worker.is_alive() for worker in workers)


def test_the_initializer_runs_in_every_worker_also_without_a_call(tmp_path: Path) -> None:
    pool = stook.Pool(3, calls.touch_own, (str(tmp_path),))
    pool.close()
    pool.join()
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("method", METHODS)
def test_workers_are_replaced_after_their_tasks(method: str) -> None:
    pool = stook.Pool(1, maxtasksperchild=3, start_method=method)
    pids = [pool.apply(calls.pid_of) for _ in range(9)]
    assert len(set(pids)) == 3
    assert all(len(set(pids[start : start + 3])) == 1 for start in (0, 3, 6))
    # A chunk is one task.
    assert len(set(pool.map(calls.pid_of, range(30), 10))) <= 2
    pool.close()
    pool.join()


def test_close_and_join_finish_what_was_begun_with_workers_that_are_replaced() -> None:
    pool = stook.Pool(3, maxtasksperchild=1)
    results = [pool.apply_async(calls.square, (n,)) for n in range(20)]
    pool.close()
    pool.join()
    assert [result.get() for result in results] == [n * n for n in range(20)]


def test_a_closed_pool_takes_nothing_more(pool: stook.Pool) -> None:
    with pytest.raises(ValueError, match="Pool is still running"):
        pool.join()
    pending = pool.map_async(calls.square, range(1000), 1)
    pool.close()
    pool.close()
    for call in (pool.apply, pool.apply_async):
        with pytest.raises(ValueError, match="Pool not running"):
            call(calls.square, (1,))
    for method in (pool.map, pool.map_async, pool.imap, pool.imap_unordered):
        with pytest.raises(ValueError, match="Pool not running"):
            method(calls.square, [1])
    with pytest.raises(ValueError, match="Pool not running"), pool:
        pass
    pool.join()
    pool.join()
    assert pending.get() == [n * n for n in range(1000)]


def test_join_lets_workers_run_their_finalizers(tmp_path: Path) -> None:
    pool = stook.Pool(2, calls.touch_at_the_end, (str(tmp_path),))
    pool.close()
    pool.join()
    assert len(list(tmp_path.iterdir())) == 2


def test_terminate_ends_workers_that_are_stuck(tmp_path: Path) -> None:
    told, fifo = calls.fifo(tmp_path, "told"), calls.fifo(tmp_path, "gate")
    errors: list[BaseException] = []
    with stook.Pool(1) as pool:
        stuck = pool.apply_async(calls.tell_and_wait, (told, fifo), error_callback=errors.append)
        assert Path(told).read_bytes() == b"begun"
        waiting = pool.map_async(calls.square, range(10_000), 1)
        lazy = pool.imap(calls.square, itertools.count())
    for result in (stuck, waiting):
        with pytest.raises(stook.StookError, match="terminated before this result"):
            result.get(DEADLINE)
    with pytest.raises(stook.StookError, match="terminated before this result"):
        list(lazy)
    assert errors == []  # nobody is told of what was given up
    pool.join()


def test_terminate_wakes_who_waits(tmp_path: Path) -> None:
    fifo = calls.fifo(tmp_path, "gate")
    pool = stook.Pool(1)
    result = pool.apply_async(calls.wait_for, (fifo,))
    found: list[Any] = []

    def wait() -> None:
        try:
            found.append(result.get(DEADLINE))
        except stook.StookError as error:
            found.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    pool.terminate()
    thread.join(DEADLINE)
    assert [str(error) for error in found] == [
        "the pool was terminated before this result was there"
    ]


def test_a_dropped_pool_warns_and_ends() -> None:
    pool = stook.Pool(1)
    worker = pool._pool[0]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del pool
        gc.collect()
    assert [warning.category for warning in caught] == [ResourceWarning]
    assert "unclosed running multiprocessing pool" in str(caught[0].message)
    worker.join(DEADLINE)
    assert not worker.is_alive()


def test_results_to_come_keep_their_pool() -> None:
    results = stook.Pool(1).imap(calls.square, range(2000))
    result = stook.Pool(1).apply_async(calls.square, (3,))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()
        assert sum(results) == sum(n * n for n in range(2000))
        assert result.get(DEADLINE) == 9
        del results, result
        gc.collect()


def test_arguments_and_results_are_let_go(pool: stook.Pool) -> None:
    class Argument:
        pass

    argument = Argument()
    seen = weakref.ref(argument)
    assert pool.map(type, [argument])[0].__name__ == "Argument"
    assert pool.apply_async(type, (argument,)).get().__name__ == "Argument"
    assert [kind.__name__ for kind in pool.imap(type, [argument])] == ["Argument"]
    del argument
    gc.collect()
    assert seen() is None


def test_a_pool_cannot_be_pickled(pool: stook.Pool) -> None:
    with pytest.raises(NotImplementedError, match="cannot be passed between processes"):
        pickle.dumps(pool)


def test_sixteen_threads_share_a_pool(pool: stook.Pool) -> None:
    def use(index: int) -> Any:
        numbers = range(index, index + 300)
        squares = [n * n for n in numbers]
        assert pool.map(calls.square, numbers) == squares
        assert pool.map(calls.square, numbers, 1) == squares
        assert list(pool.imap(calls.square, numbers)) == squares
        assert list(pool.imap(calls.square, iter(list(numbers)))) == squares
        assert list(pool.imap(calls.square, (n for n in numbers))) == squares
        assert [pool.apply(calls.square, (n,)) for n in numbers[:20]] == squares[:20]
        results = [pool.apply_async(calls.square, (n,)) for n in numbers[:20]]
        return [result.get(DEADLINE) for result in results] == squares[:20]

    assert calls.in_threads(16, use) == [True] * 16


def test_a_pool_in_a_worker_of_a_pool(pool: stook.Pool) -> None:
    assert pool.map(calls.pool_in_worker, [3, 4]) == [[0, 1, 4], [0, 1, 4, 9]]


def test_a_forked_child_is_told_to_make_its_own(pool: stook.Pool) -> None:
    result = pool.apply_async(calls.square, (3,))
    assert result.get() == 9
    read, write = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        try:
            pool.apply(calls.square, (3,))
        except stook.StookError as error:
            os.write(write, str(error).encode())
        finally:
            os._exit(0)
    os.close(write)
    with open(read, "rb") as file:
        assert b"forked child" in file.read()
    os.waitpid(child, 0)
    assert pool.apply(calls.square, (4,)) == 16
