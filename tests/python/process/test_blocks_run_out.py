"""Arrays beyond the number of blocks that a worker has."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import stook


def test_a_worker_that_keeps_more_arrays_than_there_are_blocks() -> None:
    kept: list[Any] = []

    def element(index: int) -> Any:
        if not kept:
            kept.extend(np.full(512, number) for number in range(70_000))
        if index == 3:
            raise ValueError("an error finds room, too")
        return np.full(3000, index), int(kept[index][0]), int(kept[-1][0])

    options = stook.MultiprocessingOptions(num_workers=1)
    with stook.DataLoader(range(6), element, options=options, seed=None) as loader:
        elements = iter(loader)
        for index in (0, 1, 2, 3, 4, 5):
            if index == 3:
                with pytest.raises(ValueError, match="finds room"):
                    next(elements)
                continue
            array, of_kept, last = next(elements)
            assert (array == index).all()
            assert (of_kept, last) == (index, 69_999)


def test_an_element_of_more_arrays_than_there_are_blocks() -> None:
    def element(count: int) -> Any:
        return [np.full(512, number) for number in range(count)]

    options = stook.MultiprocessingOptions(num_workers=1)
    with stook.DataLoader([70_000, 10], element, options=options) as loader:
        for count, arrays in zip((70_000, 10), loader, strict=True):
            assert [int(array[511]) for array in arrays] == list(range(count))
