"""What the iterators that need no worker processes have in common: how an element is handed over.

With worker processes bindings/result_iterator.cpp does the same.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ._element_errors import SKIP, Report, forget_items_used, items_used_by
from .errors import TooManyErrors
from .stats import LoaderStats

__all__ = ["CLOSED", "Counts", "Deliveries", "is_too_many"]

CLOSED = (
    "this iterator is closed: it was closed, or its loader was closed or iterated again; iterate"
    " the loader again"
)

# A rate of errors says little about the first few items.
FEWEST_ITEMS = 100


class Counts:
    """What was delivered; changed by one iterator at a time."""

    __slots__ = ("bytes", "elements", "errors")

    def __init__(self) -> None:
        self.elements = 0
        self.bytes = 0
        self.errors = 0

    def stats(self) -> LoaderStats:
        return LoaderStats(elements=self.elements, bytes=self.bytes, errors=self.errors)


class Deliveries:
    """Counts what one iterator delivers, and ends the pass when too much of it has failed.

    An element that is there is delivered, also if too many items failed when it was made: then it
    is the next delivery that raises.

    Args:
      totals: Of all iterators of the loader; counted on as well.
      batched: A job's payload is a sequence of items.
      filled: Besides the items it holds what gives further ones.
      max_errors: How many items may fail, or which share of them; `None`: any number.
    """

    def __init__(
        self,
        totals: Counts,
        *,
        batched: bool = False,
        filled: bool = False,
        max_errors: float | None = None,
    ) -> None:
        self._own = Counts()
        self._totals = totals
        self._batched = batched
        self._others = 1 if filled else 0
        self._max_errors = max_errors
        self._items = 0
        self._pending: TooManyErrors | None = None

    def begin(self) -> None:
        """To be called before anything is delivered; again, if that was interrupted.

        Raises:
          TooManyErrors: What failed up to the last element was too much; the pass is over.
        """
        if self._pending is not None:
            raise self._pending

    def restart(self) -> None:
        """The pass goes on elsewhere; what has failed is counted on."""
        self._pending = None

    def take(self, made: Any, payload: Any) -> Any:
        """The element to deliver, or `SKIP`, from what the task returned for `payload`.

        Raises:
          TooManyErrors: What failed of it is too much, and there is nothing to deliver; the pass is
            over.
        """
        items = self._items_of(payload)
        if type(made) is Report:
            report = made
            made = report.element
            used = items_used_by(report)
            if used is not None:
                items = used
            self._items += items
            if report.failed:
                too_many = self._count_errors(report.failed, None)
                if too_many is not None and made is SKIP:
                    raise too_many
                self._pending = too_many
        else:
            self._items += items
        if made is not SKIP:
            size = array_bytes(made)
            for counts in (self._own, self._totals):
                counts.elements += 1
                counts.bytes += size
        return made

    def fail(self, error: BaseException, payload: Any) -> None:
        """Counts an error that is to be raised.

        Raises:
          TooManyErrors: It is one too many; the pass is over.
        """
        used = items_used_by(error)
        forget_items_used(error)  # it is now the user's
        self._items += self._items_of(payload) if used is None else used
        too_many = self._count_errors(1, error)
        if too_many is not None:
            raise too_many from error

    def _items_of(self, payload: Any) -> int:
        return len(payload) - self._others if self._batched else 1

    def _count_errors(self, errors: int, error: BaseException | None) -> TooManyErrors | None:
        for counts in (self._own, self._totals):
            counts.errors += errors
        if isinstance(error, KeyboardInterrupt):
            return None
        most = self._max_errors
        if most is None or not is_too_many(self._own.errors, self._items, most):
            return None
        last = "" if error is None else f"{type(error).__name__}: {error}"
        return TooManyErrors(self._own.errors, self._items, most, last)

    def stats(self) -> LoaderStats:
        return self._own.stats()


def is_too_many(errors: int, items: int, most: float) -> bool:
    """True if more items have failed than `max_errors` allows."""
    if isinstance(most, int):
        return errors > most
    return items >= FEWEST_ITEMS and errors > most * items


def array_bytes(tree: Any) -> int:
    """Bytes of the arrays in an element of dicts, lists and tuples."""
    if type(tree) is np.ndarray:
        return tree.nbytes
    if isinstance(tree, dict):
        return sum(map(array_bytes, tree.values()))
    if isinstance(tree, (list, tuple)):
        return sum(map(array_bytes, tree))
    return 0
