"""Data sets for `stook.torch.DataLoader`, and the comparison with torch's own loader."""

from __future__ import annotations

import dataclasses
import random
from collections import OrderedDict, namedtuple
from collections.abc import Iterator
from typing import Any

import numpy as np
from partner_loader import require

import stook.torch

(torch,) = require("torch")

Pair = namedtuple("Pair", ["left", "right"])


class Drawing(torch.utils.data.Dataset):
    """Items of every sort, with draws from every generator that torch seeds."""

    def __init__(self, length: int = 11) -> None:
        self.length = length
        self.calls = 0

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Any:
        self.calls += 1  # of this worker's copy
        return {
            "tensor": torch.full((30, 40), float(index)),
            "array": np.full((40, 30), index, np.int16),
            "torch": torch.rand(3),
            "numpy": np.random.rand(2),
            "python": random.random(),
            "index": index,
            "text": str(index),
            "pair": Pair(torch.tensor(index), [np.float32(index), b"x"]),
            "calls": self.calls,
        }


class Indices(torch.utils.data.Dataset):
    """Whatever it is asked for."""

    def __init__(self, length: int = 11) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: Any) -> Any:
        return index


class Failing(Indices):
    """Runs a function instead of giving the items that `at` names."""

    def __init__(self, function: Any, *at: int, length: int = 8) -> None:
        super().__init__(length)
        self.function = function
        self.at = at

    def __getitem__(self, index: int) -> Any:
        if index in self.at:
            return self.function(index)
        return index


class Batched(Indices):
    """One that loads a whole batch at once."""

    def __getitems__(self, indices: list[int]) -> list[Any]:
        assert type(indices) is list
        return [(index, len(indices), torch.rand(2)) for index in indices]


class Shards(torch.utils.data.IterableDataset):
    """Worker w gives (w, 0), (w, 1), ... as often as `lengths[w]` says."""

    def __init__(self, *lengths: int) -> None:
        self.lengths = lengths

    def __iter__(self) -> Iterator[Any]:
        info = torch.utils.data.get_worker_info()
        worker = 0 if info is None else info.id
        for number in range(self.lengths[worker]):
            yield worker, number, torch.rand(2), random.random()


class Once(torch.utils.data.IterableDataset):
    """An iterator of its own, which can be run through once."""

    def __init__(self, length: int) -> None:
        self.left = length

    def __iter__(self) -> Once:
        return self

    def __next__(self) -> int:
        if self.left == 0:
            raise StopIteration
        self.left -= 1
        return self.left


def same(got: Any, want: Any) -> bool:
    """True if both are equal in form, in types and, bit by bit, in value."""
    if type(got) is not type(want):
        return False
    if isinstance(want, torch.Tensor):
        if got.is_sparse or got.is_nested or got.is_quantized:
            return str(got) == str(want)
        return (
            got.dtype == want.dtype
            and got.shape == want.shape
            and got.requires_grad == want.requires_grad
            and torch.equal(got, want)
        )
    if isinstance(want, np.ndarray):
        return got.dtype == want.dtype and np.array_equal(got, want)
    if isinstance(want, (dict, OrderedDict)):
        return list(got) == list(want) and all(same(got[key], want[key]) for key in want)
    if isinstance(want, torch.nn.utils.rnn.PackedSequence):
        return all(same(g, w) for g, w in zip(tuple(got), tuple(want), strict=True))
    if isinstance(want, (list, tuple)):
        return len(got) == len(want) and all(map(same, got, want))
    if dataclasses.is_dataclass(want):
        return same(vars(got), vars(want))
    return bool(got == want)


def passes(loader: Any, count: int = 2) -> list[Any]:
    """What so many iterations give, and a draw from torch's generator after each."""
    torch.manual_seed(7)
    random.seed(7)
    np.random.seed(7)
    seen = []
    for _ in range(count):
        seen.append(list(loader))
        seen.append(torch.rand(2))
    return seen


def raises(error: BaseException) -> Any:
    """A function of an index that raises `error`."""

    def function(_: int) -> Any:
        raise error

    return function


def loader(dataset: Any, kind: Any = stook.torch.DataLoader, **settings: Any) -> Any:
    """Two forked workers, and no batches."""
    settings = {"batch_size": None, "num_workers": 2, "multiprocessing_context": "fork", **settings}
    return kind(dataset, **settings)


def results(batches: Iterator[Any]) -> list[Any]:
    """Batches, and in the places of errors their types and first lines."""
    seen: list[Any] = []
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return seen
        except Exception as error:
            seen.append((type(error), str(error).splitlines()[0]))
        else:
            seen.append(batch)
