"""Threads that give memory back (enable_async_del)."""

from __future__ import annotations

import gc
import pickle
import resource
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from segment_cases import made, segments

from stook import SharedMemoryArray, _core


@pytest.fixture
def reclaimer() -> Iterator[Callable[[], dict[str, int]]]:
    """Counts since the test began; the threads end with the test."""
    before = _core.reclaimer_stats()

    def counts() -> dict[str, int]:
        assert _core.flush_reclaimer(30)
        return {name: value - before[name] for name, value in _core.reclaimer_stats().items()}

    yield counts
    SharedMemoryArray.enable_async_del(0)


def test_threads_give_memory_back(reclaimer: Callable[[], dict[str, int]]) -> None:
    SharedMemoryArray.enable_async_del(num_threads=2, max_outstanding_requests=1000)
    before = segments()
    for _ in range(300):
        made(100_000, "u1")
    counts = reclaimer()
    assert counts["done_by_threads"] == 300
    assert counts["done_by_callers"] == counts["failures"] == counts["outstanding"] == 0
    assert segments() == before


def test_a_full_queue_makes_the_caller_do_it(reclaimer: Callable[[], dict[str, int]]) -> None:
    SharedMemoryArray.enable_async_del(1, 1)
    before = segments()
    arrays = [made(100_000, "u1") for _ in range(300)]
    arrays.clear()
    counts = reclaimer()
    assert counts["done_by_threads"] + counts["done_by_callers"] == 300
    assert counts["done_by_callers"] > 0
    assert segments() == before


def test_the_threads_can_be_changed_and_ended(reclaimer: Callable[[], dict[str, int]]) -> None:
    for threads in (3, 1, 2, 0, 1):
        SharedMemoryArray.enable_async_del(threads)
        assert reclaimer()["threads"] == threads
        made(10)
    SharedMemoryArray.enable_async_del(0)
    counts = reclaimer()
    assert (counts["done_by_threads"], counts["done_by_callers"]) == (4, 1)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ((-1,), ValueError, "num_threads must be an int from 0"),
        ((1, 0), ValueError, "max_outstanding_requests must be an int from 1"),
        ((1.5,), TypeError, "num_threads"),
        ((True,), TypeError, "num_threads"),
        ((1, "50"), TypeError, "max_outstanding_requests"),
        ((1 << 40,), ValueError, "num_threads"),
        ((257,), ValueError, "num_threads must be an int from 0 to 256, got 257"),
        (
            (1, (1 << 20) + 1),
            ValueError,
            "max_outstanding_requests must be an int from 1 to 1048576",
        ),
    ],
)
def test_wrong_numbers(arguments: tuple[Any, ...], error: type, words: str) -> None:
    with pytest.raises(error, match=words):
        SharedMemoryArray.enable_async_del(*arguments)


def test_a_cycle_collected_inside_a_release(reclaimer: Callable[[], dict[str, int]]) -> None:
    SharedMemoryArray.enable_async_del(1, 2)
    before = segments()

    class Node:
        def __init__(self) -> None:
            self.me = self
            self.array = made(1000)

        def __del__(self) -> None:
            gc.collect()  # within a collection, within a release

    for _ in range(200):
        Node()
    gc.collect()
    assert reclaimer()["failures"] == 0
    assert segments() == before


@pytest.mark.parametrize("threads", [0, 2])
def test_threads_make_view_pickle_and_drop(
    threads: int, reclaimer: Callable[[], dict[str, int]]
) -> None:
    SharedMemoryArray.enable_async_del(threads)
    before = segments()

    def work(seed: int) -> int:
        random = np.random.default_rng(seed)
        alive: list[Any] = []
        wrong = 0
        for number in range(2000):
            array = made(50, "int64")
            array[...] = number
            alive.append((number, pickle.loads(pickle.dumps(array[10:]))[::-1]))
            if len(alive) > 200:
                expected, view = alive.pop(random.integers(len(alive)))
                wrong += not (view == expected).all()
        return wrong

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(work, range(4))) == 0
    reclaimer()
    assert segments() == before


@pytest.mark.long
@pytest.mark.parametrize("threads", [0, 2])
def test_100_000_arrays_of_which_10_000_live(
    threads: int, reclaimer: Callable[[], dict[str, int]]
) -> None:
    before = segments()
    SharedMemoryArray.enable_async_del(threads)
    alive: list[tuple[int, Any, Any]] = []  # whoever is at hand drops them
    lock = threading.Lock()
    most = 0

    def work(seed: int) -> int:
        nonlocal most
        random = np.random.default_rng(seed)
        wrong = 0
        for number in range(25_000):
            array = made(50, "int64")
            array[...] = number
            one = (number, array[10:][::-1], pickle.loads(pickle.dumps(array[:30])))
            dropped = None
            with lock:
                alive.append(one)
                most = max(most, len(alive))
                if len(alive) > 10_000:
                    index = int(random.integers(len(alive)))
                    alive[index], alive[-1] = alive[-1], alive[index]
                    dropped = alive.pop()
            if dropped is not None:
                expected, view, again = dropped
                wrong += not ((view == expected).all() and (again == expected).all())
        return wrong

    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, limits[1]))
    try:
        with ThreadPoolExecutor(4) as pool:
            assert sum(pool.map(work, range(4))) == 0
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert most > 10_000
    assert len(segments() - before) == 10_000
    alive.clear()
    assert reclaimer()["failures"] == 0
    assert segments() == before
