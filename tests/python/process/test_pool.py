"""`stook.Pool`: the methods of multiprocessing.Pool."""

from __future__ import annotations

import functools
import gc
import itertools
import multiprocessing
import os
import pickle
import threading
import warnings
import weakref
from collections.abc import Iterator
from multiprocessing.pool import MaybeEncodingError, RemoteTraceback
from pathlib import Path
from typing import Any

import numpy as np
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


# ---- calls ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_all_methods_give_the_originals_results(method: str) -> None:
    numbers = list(range(100))
    squares = [number**2 for number in numbers]
    pairs = list(zip(numbers, squares, strict=True))
    sums = [one + other for one, other in pairs]
    with stook.Pool(2, start_method=method) as pool:
        assert pool.apply(calls.add, (1,), {"other": 2}) == 3
        assert pool.apply_async(calls.add, [1], {"other": 2}).get() == 3
        for chunksize in (None, 1, 7, 1000):
            assert pool.map(calls.square, numbers, chunksize) == squares
            assert pool.map_async(calls.square, iter(numbers), chunksize).get() == squares
            assert pool.starmap(calls.add, pairs, chunksize) == sums
            assert pool.starmap_async(calls.add, iter(pairs), chunksize).get() == sums
        for chunksize in (1, 7, 1000):
            for source in (numbers, range(100), tuple(numbers), iter(numbers), np.arange(100)):
                assert list(pool.imap(calls.square, source, chunksize)) == squares
            found = pool.imap_unordered(calls.square, (n for n in numbers), chunksize)
            assert sorted(found) == squares


def test_nothing_to_do_is_done(pool: stook.Pool) -> None:
    told: list[Any] = []
    assert pool.map(calls.square, []) == []
    assert pool.starmap(calls.add, iter(())) == []
    assert pool.map_async(calls.square, [], 1, told.append).get(DEADLINE) == []
    assert told == [[]]
    for source in ([], iter(()), (n for n in ())):
        assert list(pool.imap(calls.square, source)) == []
        assert list(pool.imap_unordered(calls.square, source, 5)) == []


def test_functions_that_have_no_name_are_called(pool: stook.Pool) -> None:
    offset = 5
    assert pool.map(lambda n: n + offset, range(3)) == [5, 6, 7]
    offset = 7  # not stale
    assert pool.apply(lambda: offset) == 7
    assert list(pool.imap(functools.partial(calls.add, other=1), range(3))) == [1, 2, 3]


def test_arrays_cross_both_ways_without_being_pickled(pool: stook.Pool) -> None:
    array = np.arange(1_000_000)
    back = pool.apply(calls.same, (array,))
    assert np.array_equal(back, array) and stook.is_shared(back)
    for index, made in enumerate(pool.imap(calls.make_array, [10_000 + i for i in range(50)])):
        assert stook.is_shared(made)
        assert made.shape == (10_000 + index,) and (made == (10_000 + index) % 251).all()
    kept = pool.map(calls.make_array, [20_000] * 10)
    assert all(stook.is_shared(made) and made.size == 20_000 for made in kept)


def test_results_keep_their_order_when_the_first_takes_long(
    pool: stook.Pool, tmp_path: Path
) -> None:
    gates = [calls.fifo(tmp_path, name) for name in ("first", "second")]

    def work(gate: str) -> list[Any]:
        return [(calls.wait_for, gate, 0), *((calls.same, n) for n in (1, 2))]

    ordered = pool.imap(calls.call, work(gates[0]))
    unordered = pool.imap_unordered(calls.call, work(gates[1]))
    # Both workers may be waiting.
    with pytest.raises(multiprocessing.TimeoutError):
        ordered.next(timeout=0.01)
    Path(gates[0]).write_bytes(b"go")
    assert ordered.next(timeout=DEADLINE) == 0
    Path(gates[1]).write_bytes(b"go")
    assert sorted(unordered) == [0, 1, 2]
    assert list(ordered) == [1, 2]


# ---- laziness ------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunksize", [1, 3])
def test_an_endless_source_is_drawn_from_as_results_are_taken(
    pool: stook.Pool, chunksize: int
) -> None:
    drawn: list[int] = []
    results = pool.imap(calls.square, calls.counting(drawn), chunksize)
    # How much is ahead is bounded by the size of jobs, which is bounded.
    most_ahead = 4 * 2 * 600
    for number in range(5000):
        assert next(results) == number * number
        assert len(drawn) <= number + 1 + most_ahead
    del results


def test_a_plain_endless_source_is_drawn_from_lazily(pool: stook.Pool) -> None:
    source = itertools.count()
    results = pool.imap(calls.square, source)
    assert [next(results) for _ in range(1000)] == [n * n for n in range(1000)]
    assert next(source) <= 1000 + 4 * 2 * 600


def test_nothing_is_drawn_for_an_iterator_that_was_dropped(pool: stook.Pool) -> None:
    ended = threading.Event()

    def source() -> Iterator[int]:
        try:
            yield from itertools.count()
        finally:
            ended.set()

    results = pool.imap(calls.square, source())
    assert next(results) == 0
    del results
    assert ended.wait(DEADLINE)


def test_a_source_may_wait_for_what_its_consumer_does_later(pool: stook.Pool) -> None:
    seen = threading.Semaphore(0)

    def source() -> Iterator[int]:
        for number in range(20):
            yield number
            assert seen.acquire(timeout=DEADLINE)

    found = []
    for result in pool.imap(calls.square, source()):
        found.append(result)
        seen.release()
    assert found == [n * n for n in range(20)]


def test_join_draws_the_rest_of_an_imap(pool: stook.Pool) -> None:
    drawn: list[int] = []
    lazy = pool.imap(calls.square, calls.counting(drawn, 3000))
    plain = pool.imap_unordered(calls.square, range(20_000))
    pool.close()
    pool.join()
    assert len(drawn) == 3000
    assert list(lazy) == [n * n for n in range(3000)]
    assert sum(plain) == sum(n * n for n in range(20_000))


def test_calls_of_an_imap_that_nobody_looks_at_are_made(pool: stook.Pool, tmp_path: Path) -> None:
    for source in ([*range(50)], (n for n in range(50, 100))):
        pool.imap_unordered(calls.touch, ((str(tmp_path), n) for n in source))
    pool.imap(calls.touch, [(str(tmp_path), n) for n in range(100, 150)])
    pool.close()
    pool.join()
    assert sorted(int(path.name) for path in tmp_path.iterdir()) == list(range(150))


def test_a_million_tiny_calls_with_few_of_them_in_hand(pool: stook.Pool) -> None:
    for source in (range(1_000_000), (number for number in range(100_000))):
        results = pool.imap(calls.same, source)
        most = 0
        for index, result in enumerate(results):
            assert result == index
            most = max(most, len(results._ready))
        assert most <= 4 * 2 * 512


# ---- errors --------------------------------------------------------------------------------------


def test_an_error_is_the_users_own_with_the_traceback_of_the_worker(pool: stook.Pool) -> None:
    with pytest.raises(KeyError) as caught:
        pool.apply(calls.fail_at_three, (3,))
    assert caught.value.args == (3,)
    cause = caught.value.__cause__
    assert type(cause) is RemoteTraceback
    assert "raise KeyError(x)" in cause.tb


@pytest.mark.parametrize("chunksize", [None, 1, 4])
def test_map_raises_the_first_error_when_all_is_done(
    pool: stook.Pool, tmp_path: Path, chunksize: int | None
) -> None:
    items = [(str(tmp_path), n) for n in range(20)]
    with pytest.raises(ValueError, match=r"^5$"):
        pool.map(calls.touch_or_fail, items, chunksize)
    done = {int(path.name) for path in tmp_path.iterdir()}
    assert done == set(range(20)) - {5, 15}


def test_imap_goes_on_behind_an_error(pool: stook.Pool) -> None:
    for chunksize in (1, 4):
        results = pool.imap(calls.fail_at_three, range(6), chunksize)
        assert [next(results) for _ in range(3)] == [0, 1, 2]
        with pytest.raises(KeyError):
            next(results)
        assert list(results) == [4, 5]


def test_what_would_end_the_loop_or_the_program_does_not(pool: stook.Pool) -> None:
    for error in (SystemExit(3), KeyboardInterrupt(), GeneratorExit()):
        with pytest.raises(stook.StookError, match=type(error).__name__) as caught:
            pool.apply(calls.raise_error, (error,))
        assert type(caught.value.__cause__) is type(error)
    results = pool.imap(calls.raise_error, [StopIteration(), ValueError("second")])
    with pytest.raises(RuntimeError, match="StopIteration"):
        next(results)
    with pytest.raises(ValueError, match="second"):
        next(results)


def failing(count: int) -> Iterator[int]:
    yield from range(count)
    raise OSError("the source failed")


@pytest.mark.parametrize(("chunksize", "whole"), [(1, 7), (2, 6), (4, 4), (10, 0)])
def test_an_error_of_the_source_comes_in_its_place(
    pool: stook.Pool, chunksize: int, whole: int
) -> None:
    results = pool.imap(calls.square, failing(7), chunksize)
    assert [next(results) for _ in range(whole)] == [n * n for n in range(whole)]
    with pytest.raises(OSError, match="the source failed") as caught:
        next(results)
    assert caught.value.__cause__ is None
    assert list(results) == []
    with pytest.raises(OSError, match="the source failed"):
        list(pool.imap_unordered(calls.square, failing(7), chunksize))
    with pytest.raises(OSError, match="the source failed"):
        pool.map(calls.square, failing(7), chunksize)


def test_an_argument_that_cannot_be_pickled_is_an_error_of_its_own_call(pool: stook.Pool) -> None:
    with pytest.raises(RuntimeError, match="not to be pickled"):
        pool.apply(calls.same, (calls.Unpicklable(),))
    # Many small calls travel together; the others are made all the same.
    items: list[Any] = list(range(2000))
    bad = {3, 700, 1999}
    for index in bad:
        items[index] = calls.Unpicklable()
    results = pool.imap(calls.same, items)
    for index in range(2000):
        if index in bad:
            with pytest.raises(RuntimeError, match="not to be pickled"):
                next(results)
        else:
            assert next(results) == index
    with pytest.raises(RuntimeError, match="not to be pickled"):
        pool.map(calls.same, items, 1)


def test_a_result_that_cannot_be_pickled_is_an_error_as_in_the_original(pool: stook.Pool) -> None:
    for made in (calls.make_unpicklable, lambda: (lambda: 3)):
        with pytest.raises(MaybeEncodingError) as caught:
            pool.apply(made)
        assert caught.value.exc is not None and caught.value.value is not None
    with pytest.raises(MaybeEncodingError, match="not to be pickled"):
        pool.map(calls.make_unpicklable, range(3))
    assert pool.apply(calls.square, (3,)) == 9


def test_a_function_that_cannot_be_sent_is_an_error_of_the_call(pool: stook.Pool) -> None:
    lock = threading.Lock()
    result = pool.apply_async(lambda: lock)
    with pytest.raises(stook.StookError, match="lock"):
        result.get()
    with pytest.raises(TypeError, match="not callable"):
        pool.apply(5)  # type: ignore[arg-type]


def test_an_initializer_that_fails_is_the_error_of_every_call() -> None:
    with stook.Pool(2, calls.raise_error, (ValueError("no database"),)) as pool:
        for _ in range(2):
            with pytest.raises((ValueError, stook.PoolBroken)) as caught:
                pool.apply(calls.square, (3,))
            error: BaseException | None = caught.value
            while error is not None and "no database" not in str(error):
                error = error.__cause__
            assert error is not None


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"processes": 0}, ValueError, "Number of processes must be at least 1"),
        ({"processes": -1}, ValueError, "Number of processes must be at least 1"),
        ({"processes": "2"}, TypeError, "processes must be an integer, got '2'"),
        ({"initializer": 3}, TypeError, "initializer must be a callable"),
        ({"maxtasksperchild": 0}, ValueError, "maxtasksperchild must be a positive int or None"),
        ({"maxtasksperchild": "12"}, ValueError, "maxtasksperchild must be a positive int"),
        ({"maxtasksperchild": 0.5}, ValueError, "maxtasksperchild must be a positive int"),
        ({"options": 3}, TypeError, "options must be MultiprocessingOptions"),
        ({"start_method": "threads"}, ValueError, "start_method"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        stook.Pool(**{"processes": 1, **arguments})


def test_bad_chunk_sizes(pool: stook.Pool) -> None:
    for method in (pool.map, pool.map_async, pool.imap, pool.imap_unordered, pool.starmap):
        with pytest.raises(ValueError, match=r"Chunksize must be 1\+, not 0"):
            method(calls.square, [1], 0)


# ---- asynchronous results ------------------------------------------------------------------------


def test_a_result_tells_whether_it_is_there(pool: stook.Pool, tmp_path: Path) -> None:
    fifo = calls.fifo(tmp_path, "gate")
    result = pool.apply_async(calls.wait_for, (fifo, 3))
    assert not result.ready()
    with pytest.raises(ValueError, match="not ready"):
        result.successful()
    with pytest.raises(multiprocessing.TimeoutError):
        result.get(timeout=0.01)
    result.wait(0.01)
    assert not result.ready()
    Path(fifo).write_bytes(b"go")
    assert result.get(DEADLINE) == 3
    assert result.ready() and result.successful()
    failed = pool.apply_async(calls.fail_at_three, (3,))
    failed.wait()
    assert not failed.successful()


def test_callbacks_run_before_the_result_is_there(pool: stook.Pool) -> None:
    told: list[Any] = []
    failed: list[BaseException] = []
    pool.map_async(
        calls.square, range(5), callback=told.append, error_callback=failed.append
    ).wait()
    assert told == [[0, 1, 4, 9, 16]] and failed == []
    result = pool.apply_async(
        calls.fail_at_three, (3,), callback=told.append, error_callback=failed.append
    )
    with pytest.raises(KeyError):
        result.get()
    assert len(told) == 1 and [type(error) for error in failed] == [KeyError]


def test_a_callback_comes_without_anybody_waiting(pool: stook.Pool) -> None:
    told = threading.Event()
    pool.apply_async(calls.square, (3,), callback=lambda _: told.set())
    assert told.wait(DEADLINE)


def test_a_callback_that_raises_is_reported_and_the_pool_goes_on(
    pool: stook.Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    reported: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", lambda args: reported.append(args.exc_value))

    def callback(value: int) -> None:
        raise SystemExit(value) if value == 1 else ValueError(value)

    results = [pool.apply_async(calls.square, (n,), callback=callback) for n in (1, 2)]
    # A thread of the pool calls them here.
    for result in results:
        while not result.ready():
            pass
    assert [result.get() for result in results] == [1, 4]
    assert {type(error) for error in reported} == {SystemExit, ValueError}
    assert pool.apply(calls.square, (3,)) == 9


def test_a_callback_may_use_the_pool(pool: stook.Pool) -> None:
    found: list[Any] = []

    def callback(value: int) -> None:
        found.append(pool.apply(calls.square, (value,)))
        found.append(pool.map(calls.square, range(value)))
        found.append(list(pool.imap(calls.square, iter(range(value)))))

    pool.apply_async(calls.square, (2,), callback=callback).get(DEADLINE)
    squares = [0, 1, 4, 9]
    assert found == [16, squares, squares]


# ---- processes and the end -----------------------------------------------------------------------


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


def test_threads_share_an_iterator(pool: stook.Pool) -> None:
    results = pool.imap(calls.square, range(5000))
    found = calls.in_threads(4, lambda _: list(results))
    assert sorted(itertools.chain.from_iterable(found)) == [n * n for n in range(5000)]


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


@pytest.mark.long
def test_four_gigabytes_of_results_pass_through_little_memory(pool: stook.Pool) -> None:
    size = 4 << 20
    pool._tasks.wait(lambda: True)
    for index, made in enumerate(pool.imap(calls.make_array, itertools.repeat(size, 1024))):
        assert made.nbytes == size
        if index % 100 == 0:
            mapped = sum(worker.mapped for worker in _memory(pool))
            assert mapped < 200 << 20


def _memory(pool: stook.Pool) -> list[Any]:
    return [stook.WorkerMemory(index, *row) for index, row in enumerate(pool._tasks._core.memory())]
