"""What an iterator over worker processes knows of its deliveries, from which a state is made."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from process_loader import made

import stook
from stook import _core


def failing(index: int) -> int:
    if index % 3 == 1:
        raise ValueError(index)
    return index


def take(iterator: Any) -> int:
    """The next element, or the index that is in its error."""
    try:
        return int(next(iterator))
    except ValueError as error:
        return int(error.args[0])


def test_in_order_every_element_and_error_counts() -> None:
    with made("fork", range(10), failing, num_epochs=2) as loader:
        iterator: Any = iter(loader)
        for done in range(20):
            assert iterator.delivered() == (done, [])
            assert take(iterator) == done % 10
        assert iterator.delivered() == (20, [])
        assert list(iterator) == []
        assert iterator.delivered() == (20, [])
        iterator.close()
        assert iterator.delivered() == (20, [])


def test_passes_count_for_themselves() -> None:
    with made("fork", range(10)) as loader:
        for leave in (0, 3, 7):
            iterator: Any = iter(loader)
            for _ in range(leave):
                next(iterator)
            assert iterator.delivered() == (leave, [])


def test_items_of_an_iterable_count_as_well() -> None:
    with made("fork", iter(range(10))) as loader:
        iterator: Any = iter(loader)
        for done in range(10):
            assert iterator.delivered() == (done, [])
            next(iterator)
        assert iterator.delivered() == (10, [])


@pytest.mark.parametrize("skip", [[], [0, 3, 4, 11]])
def test_without_an_order_what_is_ahead_is_told(tmp_path: Path, skip: list[int]) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    first = next(index for index in range(12) if index not in skip)

    def hold_the_first(index: int) -> int:
        if index == first:
            with open(fifo, "rb") as file:
                file.read()
        return index

    with made("fork", range(12), hold_the_first, ordered=False) as loader:
        pool = loader._ready_pool()
        iterator = pool.iterate(_core.IndexPlan(12, skip=skip), ordered=False)
        delivered = set(skip)
        for _ in range(3):
            delivered.add(next(iterator))
            assert iterator.delivered() == (first, sorted(i for i in delivered if i > first))
        with open(fifo, "wb"):
            pass
        for element in iterator:
            delivered.add(element)
            lowest = next(index for index in range(13) if index not in delivered)
            assert iterator.delivered() == (lowest, sorted(i for i in delivered if i > lowest))
        assert iterator.delivered() == (12, [])
        assert delivered == set(range(12))


def test_a_worker_that_dies_is_a_delivery() -> None:
    def die_at_two(index: int) -> Any:
        if index == 2:
            os._exit(1)
        return np.full(1000, index)

    with made("fork", range(5), die_at_two, max_restarts=0) as loader:
        iterator: Any = iter(loader)
        for index in range(5):
            if index == 2:
                with pytest.raises(stook.WorkerDied):
                    next(iterator)
            else:
                next(iterator)
            assert iterator.delivered() == (index + 1, [])


def test_a_worker_that_cannot_start_delivers_nothing() -> None:
    def fail(index: int, count: int) -> None:
        raise ValueError("no")

    with made("fork", range(5), worker_init_fn=fail) as loader:
        iterator: Any = iter(loader)
        with pytest.raises(ValueError, match="no"):
            next(iterator)
        assert iterator.delivered() == (0, [])
