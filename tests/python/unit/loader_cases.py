"""What the loader's tests share."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

import stook

# The numbers of workers with which a loader must behave alike.
WORKERS = [0, 1, 2]

each_number_of_workers = pytest.mark.parametrize("workers", WORKERS)

# The same, and threads: as a number of workers below 0.
each_kind_of_workers = pytest.mark.parametrize("workers", [*WORKERS, -3])


def loader(source: Any, *arguments: Any, workers: int, **settings: Any) -> stook.DataLoader:
    """A loader with so many workers; or if negative, threads.

    One worker is forked, where that is safe: it costs a fifth of a server. Several come from one.
    """
    options: Any
    if workers < 0:
        options = stook.MultithreadingOptions(num_threads=-workers)
    else:
        method = "fork" if workers == 1 and _is_forkable() else "forkserver"
        options = stook.MultiprocessingOptions(num_workers=workers, start_method=method)
    return stook.DataLoader(source, *arguments, options=options, **settings)


def _is_forkable() -> bool:
    """False beside other threads, of which forking warns; torch and JAX have some."""
    return threading.active_count() == 1 and not sys.modules.keys() & {"torch", "jax"}


def outcomes(elements: Any) -> list[Any]:
    """What an iterator gives: elements, and for errors (type, notes)."""
    found: list[Any] = []
    while True:
        try:
            found.append(next(elements))
        except StopIteration:
            return found
        except Exception as error:
            found.append((type(error), getattr(error, "__notes__", [])))


def double(value: Any) -> Any:
    return value * 2


class Indexed:
    """Has both protocols; being iterated would be wrong."""

    def __init__(self, *values: Any) -> None:
        self.values = values

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: int) -> Any:
        assert type(index) is int
        return self.values[index]

    def __iter__(self) -> Iterator[Any]:
        raise AssertionError("what can be indexed is indexed")


class Repeated:
    """An iterable that starts anew each time and has no length."""

    def __init__(self, *values: Any) -> None:
        self.values = values

    def __iter__(self) -> Iterator[Any]:
        return iter(self.values)
