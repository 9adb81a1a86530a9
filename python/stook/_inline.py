"""`num_workers=0`: the consumer's process makes the elements itself.

The interface is that of the pool of worker processes (`_processes.start`), so a loader does not
know which of the two it has.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ._iterator import LoaderIterator
from ._locks import renew_lock_in_child
from ._task import BoundTask, LoaderTask
from .errors import StookError
from .stats import LoaderStats

__all__ = ["InlineIterator", "InlinePool"]


class _Counts:
    """What was delivered; changed by one iterator at a time."""

    __slots__ = ("bytes", "elements", "errors")

    def __init__(self) -> None:
        self.elements = 0
        self.bytes = 0
        self.errors = 0

    def stats(self) -> LoaderStats:
        return LoaderStats(elements=self.elements, bytes=self.bytes, errors=self.errors)


class InlinePool:
    """Runs a task in this process."""

    def __init__(self, task: LoaderTask) -> None:
        self._task = task
        self._counts = _Counts()

    def update(self, task: LoaderTask) -> None:
        """Takes another task for the iterators to come."""
        self._task = task

    def iterate(self, jobs: Iterator[Any], *, ordered: bool) -> InlineIterator:
        """Starts a pass over `jobs`; one element is made at a time, so always in order."""
        return InlineIterator(jobs, self._task.bind(where="here"), self._counts)

    def stats(self) -> LoaderStats:
        """Counts over all its iterators."""
        return self._counts.stats()

    def close(self) -> None:
        """Nothing to end."""


class InlineIterator(LoaderIterator):
    """Each `next()` makes its element then and there."""

    _lock: Any  # see _locks.py

    def __init__(self, jobs: Iterator[Any], run: BoundTask, totals: _Counts) -> None:
        # None when the pass is over.
        self._work: tuple[Iterator[Any], BoundTask] | None = (jobs, run)
        self._closed = False
        self._counts = _Counts()
        self._totals = totals
        self._loader: Any = None  # held while the pass goes on, as `for x in DataLoader(...)` needs
        # Threads may share one iterator, as they may with worker processes.
        renew_lock_in_child(self)

    def __next__(self) -> Any:
        with self._lock:
            if self._work is None:
                if self._closed:
                    raise StookError(
                        "this iterator is closed: it was closed, or its loader was closed or"
                        " iterated again; iterate the loader again"
                    )
                raise StopIteration
            jobs, run = self._work
            try:
                epoch, position, payload = next(jobs)
            except BaseException:
                # Over: by StopIteration, or by what an iterable source raised.
                self._work = None
                raise
            try:
                element = run(epoch, position, payload)
            except BaseException:
                self._counts.errors += 1
                self._totals.errors += 1
                raise
            size = array_bytes(element)
            for counts in (self._counts, self._totals):
                counts.elements += 1
                counts.bytes += size
            return element

    def close(self) -> None:
        with self._lock:
            if self._work is not None:
                self._work = None
                self._closed = True

    def stats(self) -> LoaderStats:
        return self._counts.stats()


def array_bytes(tree: Any) -> int:
    """Bytes of the arrays in an element of dicts, lists and tuples."""
    if type(tree) is np.ndarray:
        return tree.nbytes
    if isinstance(tree, dict):
        return sum(map(array_bytes, tree.values()))
    if isinstance(tree, (list, tuple)):
        return sum(map(array_bytes, tree))
    return 0
