"""What the loader's tests share."""

from __future__ import annotations

from typing import Any

import pytest

import stook

# The numbers of workers with which a loader must behave alike.
WORKERS = [0, 1, 2]

each_number_of_workers = pytest.mark.parametrize("workers", WORKERS)

# The same, and threads: as a number of workers below 0.
each_kind_of_workers = pytest.mark.parametrize("workers", [*WORKERS, -3])


def loader(source: Any, *arguments: Any, workers: int, **settings: Any) -> stook.DataLoader:
    """A loader with so many workers; or if negative, threads."""
    options: Any
    if workers < 0:
        options = stook.MultithreadingOptions(num_threads=-workers)
    else:
        options = stook.MultiprocessingOptions(num_workers=workers)
    return stook.DataLoader(source, *arguments, options=options, **settings)


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
