"""Closing, dropping, showing and counting: loaders and iterators from birth to end."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from loader_cases import Repeated, each_number_of_workers, loader

import stook


@each_number_of_workers
def test_a_closed_loader_says_so(workers: int) -> None:
    elements = loader(range(3), workers=workers)
    iterator = iter(elements)
    next(iterator)
    elements.close()
    elements.close()
    for use in (lambda: iter(elements), lambda: elements.update([1]), lambda: elements.__enter__()):
        with pytest.raises(stook.StookError, match=r"after close\(\)"):
            use()
    with pytest.raises(stook.StookError, match="closed"):
        next(iterator)
    assert elements.stats().elements == 1
    assert len(elements) == 3
    assert "closed" in repr(elements)


@each_number_of_workers
def test_with_closes(workers: int) -> None:
    with loader(range(3), workers=workers) as elements:
        assert list(elements) == [0, 1, 2]
    with pytest.raises(stook.StookError):
        iter(elements)


@each_number_of_workers
def test_a_closed_iterator_says_so(workers: int) -> None:
    with loader(range(3), workers=workers) as elements:
        with iter(elements) as iterator:
            assert isinstance(iterator, stook.LoaderIterator)
            assert iter(iterator) is iterator
            assert next(iterator) == 0
        with pytest.raises(stook.StookError, match="closed"):
            next(iterator)
        iterator.close()
        exhausted = iter(elements)
        list(exhausted)
        exhausted.close()
        assert next(exhausted, "over") == "over"


@each_number_of_workers
def test_an_iterator_keeps_its_loader(workers: int) -> None:
    iterator = iter(loader(range(3), workers=workers))
    gc.collect()
    assert list(iterator) == [0, 1, 2]


def test_a_dropped_loader_is_gone() -> None:
    elements = loader(range(3), workers=0)
    next(iter(elements))
    died = weakref.ref(elements)
    del elements
    assert died() is None


@each_number_of_workers
def test_a_dropped_iterator_lets_go_of_the_source(workers: int) -> None:
    ended = []

    def source() -> Iterator[int]:
        try:
            yield from range(3)
        finally:
            ended.append(True)

    with loader(source(), workers=workers) as elements:
        for _ in elements:
            break
        elements.update([])
        gc.collect()
        assert ended == [True]


def test_a_loader_that_was_refused_can_be_shown_and_closed() -> None:
    made = stook.DataLoader.__new__(stook.DataLoader)
    with pytest.raises(TypeError):
        made.__init__({})  # type: ignore[misc]
    repr(made)
    made.close()


def test_reprs() -> None:
    elements = loader(range(3), workers=0)
    assert repr(elements) == "<stook.DataLoader over a range: 3 elements, num_workers=0>"
    iterator = iter(elements)
    next(iterator)
    assert repr(iterator) == "<stook.LoaderIterator: 1 elements, 0 errors>"
    assert "? elements" in repr(loader(Repeated(1), workers=0))


@each_number_of_workers
def test_stats_count_the_pass_and_the_loader(workers: int) -> None:
    def load(value: int) -> dict[str, Any]:
        return {"image": np.zeros(5000, np.uint8), "more": [np.zeros(2, np.int32)], "n": value}

    with loader(range(3), load, workers=workers) as elements:
        assert elements.stats() == stook.LoaderStats()
        list(elements)
        iterator = iter(elements)
        next(iterator)
        assert (iterator.stats().elements, iterator.stats().bytes) == (1, 5008)
        assert (elements.stats().elements, elements.stats().bytes) == (4, 4 * 5008)


def test_stats_in_one_process_move_and_copy_nothing() -> None:
    elements = loader(range(3), lambda value: np.zeros(5000), workers=0)
    list(elements)
    stats = elements.stats()
    assert (stats.moved, stats.copied, stats.restarts, stats.bytes_live) == (0, 0, 0, 0)


@each_number_of_workers
def test_worker_info(workers: int) -> None:
    with loader(range(4), lambda _: stook.worker_info(), workers=workers, num_epochs=2) as elements:
        found = list(elements)
    assert stook.worker_info() is None
    if workers == 0:
        assert found == [None] * 8
    else:
        assert [info.epoch for info in found] == [0] * 4 + [1] * 4
        assert {info.count for info in found} == {workers}
        assert all(0 <= info.index < workers and info.incarnation == 0 for info in found)


@each_number_of_workers
def test_threads_may_share_an_iterator(workers: int) -> None:
    with loader(Repeated(*range(200)), workers=workers, seed=None) as elements:
        iterator = iter(elements)
        found: list[int] = []
        threads = [threading.Thread(target=lambda: found.extend(iterator)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(found) == list(range(200))
