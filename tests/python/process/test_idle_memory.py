"""Memory of workers that have nothing to do, as `loader.stats()` shows it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

import numpy as np
import pytest
from process_loader import each_method, made

import stook

MIB = 1 << 20


def comes_true(there: Callable[[], bool], seconds: float = 30) -> bool:
    """Looks again and again until `there()`; False when it was not in `seconds`."""
    end = time.monotonic() + seconds
    while not there():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def photo(index: int) -> np.ndarray:
    array = np.empty(20_000 + index % 7 * 10_000, np.uint8)
    array[:] = index % 251
    return array


def touched(loader: stook.DataLoader) -> int:
    return sum(worker.touched for worker in loader.stats().workers)


def bound(loader: stook.DataLoader, nbytes: int) -> float:
    return 1.5 * nbytes + 2 * MIB * len(loader.stats().workers)


@each_method
def test_8_idle_workers_after_10_000_arrays(method: str) -> None:
    with made(method, range(10_000), photo, num_workers=8) as loader:
        kept = [array for index, array in enumerate(loader) if index % 4 == 0]
        assert len(loader.stats().workers) == 8
        nbytes = sum(array.nbytes for array in kept)
        assert touched(loader) >= nbytes
        assert comes_true(lambda: touched(loader) <= bound(loader, nbytes)), loader.stats()

        # What is dropped while they sleep.
        mapped = sum(worker.mapped for worker in loader.stats().workers)
        assert mapped >= nbytes
        del kept[100:]
        nbytes = sum(array.nbytes for array in kept)
        assert mapped > 2 * bound(loader, nbytes), "the test shows nothing"
        assert comes_true(lambda: touched(loader) <= bound(loader, nbytes)), loader.stats()
        stats = loader.stats()
        assert sum(worker.live for worker in stats.workers) >= stats.bytes_live >= nbytes
        for array, index in zip(kept, range(0, 10_000, 4), strict=False):
            assert (array == index % 251).all()

        # Nothing at all is held, and the next pass finds everything in order.
        del kept[:], array
        assert comes_true(lambda: touched(loader) <= bound(loader, 0)), loader.stats()
        for index, array in enumerate(loader):
            assert array[0] == array[-1] == index % 251
            if index == 1000:
                break


@each_method
def test_figures_of_each_worker(method: str) -> None:
    with made(method, range(40), photo) as loader:
        assert loader.stats().workers == ()
        arrays = list(loader)
        iterator_stats = iter(loader).stats()
        stats = loader.stats()
        assert [worker.index for worker in stats.workers] == [0, 1]
        assert [worker.index for worker in iterator_stats.workers] == [0, 1]
        for worker in stats.workers:
            assert worker.mapped == worker.live + worker.idle
            assert worker.retired == 0
        assert sum(worker.touched for worker in stats.workers) >= stats.bytes_live
    del arrays


@each_method
def test_what_outlives_its_workers_is_retired(method: str) -> None:
    with made(method, range(40), photo, num_epochs=None) as loader:
        elements = iter(loader)
        kept = [next(elements) for _ in range(40)]
        while len(loader._pool._core.worker_pids) < 2:  # one may have made them all
            next(elements)
        for pid in loader._pool._core.worker_pids:
            os.kill(pid, signal.SIGKILL)
        while loader.stats().restarts < 2:
            next(elements)
        retired = sum(worker.retired for worker in loader.stats().workers)
        assert loader.stats().bytes_live >= retired >= sum(array.nbytes for array in kept)
        elements.close()
    closed = loader.stats()
    retired = sum(worker.retired for worker in closed.workers)
    assert closed.bytes_live == retired >= sum(array.nbytes for array in kept)
    for worker in closed.workers:
        assert (worker.mapped, worker.touched, worker.live, worker.idle) == (0, 0, 0, 0)
    del kept[:20]
    halved = loader.stats()
    assert retired > halved.bytes_live >= sum(array.nbytes for array in kept)
    kept.clear()
    assert loader.stats().bytes_live == 0
    assert all(worker.retired == 0 for worker in loader.stats().workers)


@each_method
def test_retired_memory_of_replaced_workers_is_counted_once(method: str) -> None:
    with made(method, range(20), photo) as loader:
        first = list(loader)
        loader.update(range(10))
        second = list(loader)
        stats = loader.stats()
        retired = sum(worker.retired for worker in stats.workers)
        assert retired >= sum(array.nbytes for array in first)
        assert stats.bytes_live - retired >= sum(array.nbytes for array in second)
        assert stats.bytes_live < 1.5 * sum(array.nbytes for array in first + second)
        del first
        assert sum(worker.retired for worker in loader.stats().workers) == 0
    assert sum(worker.retired for worker in loader.stats().workers) == loader.stats().bytes_live
    assert loader.stats().elements == 30
    del second
    assert loader.stats().bytes_live == 0


def test_without_workers_there_is_nothing_to_tell() -> None:
    loader = stook.DataLoader(range(3), photo)
    list(loader)
    assert loader.stats().workers == ()


def test_figures_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        stook.WorkerMemory(0).live = 1  # type: ignore[misc]
