"""`imap` of a pool: what it draws, and when; its order, errors and end."""

from __future__ import annotations

import itertools
import os
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pool_calls as calls
import pytest
from pool_calls import DEADLINE

import stook


@pytest.fixture
def pool() -> Iterator[stook.Pool]:
    pool = stook.Pool(2)
    yield pool
    pool.terminate()
    pool.join()
    vars(pool).clear()  # pytest holds the pool, which holds descriptors of its workers


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


def test_imap_goes_on_behind_an_error(pool: stook.Pool) -> None:
    for chunksize in (1, 4):
        results = pool.imap(calls.fail_at_three, range(6), chunksize)
        assert [next(results) for _ in range(3)] == [0, 1, 2]
        with pytest.raises(KeyError):
            next(results)
        assert list(results) == [4, 5]


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


def test_threads_share_an_iterator(pool: stook.Pool) -> None:
    results = pool.imap(calls.square, range(5000))
    found = calls.in_threads(4, lambda _: list(results))
    assert sorted(itertools.chain.from_iterable(found)) == [n * n for n in range(5000)]


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


def test_a_result_that_was_taken_is_not_kept(pool: stook.Pool) -> None:
    results = pool.imap(calls.make_array, [100_000] * 20)
    for _ in range(10):
        taken = weakref.ref(next(results))
        assert taken() is None


def test_a_map_has_a_bounded_number_of_jobs_under_way(tmp_path: Path) -> None:
    told, fifo = calls.fifo(tmp_path, "told"), calls.fifo(tmp_path, "gate")
    with stook.Pool(1) as pool:
        stuck = pool.apply_async(calls.tell_and_wait, (told, fifo))
        assert Path(told).read_bytes() == b"begun"
        results = pool.map_async(calls.square, range(10_000), 1)
        assert pool._tasks.outstanding <= 1 + 8
        Path(fifo).write_bytes(b"go")
        assert results.get(DEADLINE) == [n * n for n in range(10_000)]
        stuck.get(DEADLINE)


@pytest.mark.long
def test_four_gigabytes_of_results_pass_through_little_memory(pool: stook.Pool) -> None:
    size = 4 << 20
    pool._tasks.wait(lambda: True)
    for index, made in enumerate(pool.imap(calls.make_array, itertools.repeat(size, 1024))):
        assert made.nbytes == size
        if index % 100 == 0:
            mapped = sum(worker.mapped for worker in _memory(pool))
            assert mapped < 200 << 20


def failing(count: int) -> Iterator[int]:
    yield from range(count)
    raise OSError("the source failed")


def _memory(pool: stook.Pool) -> list[Any]:
    return [stook.WorkerMemory(index, *row) for index, row in enumerate(pool._tasks._core.memory())]


def test_an_end_of_the_source_that_brings_no_result_is_heard_of(pool: stook.Pool) -> None:
    for _ in range(20):
        gate = threading.Event()

        def source(gate: threading.Event = gate) -> Iterator[int]:
            yield 1
            gate.wait(DEADLINE)

        iterator = pool.imap(calls.square, source())
        assert next(iterator) == 1
        rest: list[int] = []
        consumer = threading.Thread(target=lambda rest=rest, it=iterator: rest.extend(it))
        consumer.start()
        while not pool._tasks._queue.is_pumped:  # it waits
            os.sched_yield()
        gate.set()
        consumer.join(DEADLINE)
        assert not consumer.is_alive() and rest == []


def test_join_hears_of_the_end_of_a_source(pool: stook.Pool) -> None:
    gate = threading.Event()

    def source() -> Iterator[int]:
        yield 1
        gate.wait(DEADLINE)

    iterator = pool.imap(calls.square, source())
    pool.close()
    joiner = threading.Thread(target=pool.join)
    joiner.start()
    while not pool._tasks._queue.is_pumped:
        os.sched_yield()
    gate.set()
    joiner.join(DEADLINE)
    assert not joiner.is_alive() and list(iterator) == [1]
