"""User code that refers to a loader, the one it runs in or another."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest

import stook

each_method = pytest.mark.parametrize("method", ["forkserver", "fork"])


class Trainer:
    """The usual class: it holds the loader whose transform is its method."""

    def __init__(self, method: str) -> None:
        self.size = 50
        options = stook.MultiprocessingOptions(num_workers=2, start_method=method)
        self.loader = stook.DataLoader(range(6), self.load, options=options)
        self.elements: Any = None

    def load(self, index: int) -> Any:
        return np.full((self.size, self.size), index)

    def train(self) -> list[int]:
        self.elements = iter(self.loader)
        return [int(element[0, 0]) for element in self.elements]


@each_method
def test_a_method_of_the_object_that_holds_the_loader(method: str) -> None:
    trainer = Trainer(method)
    with trainer.loader:
        assert trainer.train() == trainer.train() == list(range(6))


def test_a_loader_says_so_where_it_is_not() -> None:
    def use(what: str) -> Any:
        return {
            "iterate": lambda: list(other),
            "ask": lambda: other.stats(),
            "repr": lambda: repr(other),
        }[what]()

    other = stook.DataLoader(range(3))
    options = stook.MultiprocessingOptions(num_workers=1)
    with stook.DataLoader(["iterate", "ask", "repr"], use, options=options) as loader:
        elements = iter(loader)
        for _ in range(2):
            with pytest.raises(stook.StookError, match="this DataLoader belongs to the process"):
                next(elements)
        assert next(elements) == "<a DataLoader of another process>"


@pytest.mark.parametrize("duplicate", [pickle.dumps, copy.copy, copy.deepcopy])
def test_a_loader_cannot_be_duplicated(duplicate: Any) -> None:
    loader = stook.DataLoader(range(3))
    for one in (loader, iter(loader)):
        with pytest.raises(TypeError, match=r"cannot be copied or pickled.*Make another"):
            duplicate(one)
