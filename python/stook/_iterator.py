"""What every iterator of a loader has in common."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from ._elsewhere import StaysHere
from .stats import LoaderStats

__all__ = ["LoaderIterator"]


class LoaderIterator(StaysHere):
    """One pass through a `DataLoader`: what `iter(loader)` returns.

    It gives elements until the pass is over, and then raises `StopIteration` for ever. An element
    that is an error raises it, and the next `next()` gives the next element. Making another
    iterator of the same loader closes this one.

    A context manager that closes it.

    Example:
      >>> import stook
      >>> with iter(stook.DataLoader([1, 2, 3])) as elements:
      ...     next(elements), elements.stats().elements
      (1, 1)
    """

    # A plain class without attributes of its own, so that an iterator written in C++ can have it as
    # a second base, and no `for` passes through Python code of this class.
    __slots__ = ()

    def __iter__(self) -> LoaderIterator:
        return self

    def __next__(self) -> Any:
        raise NotImplementedError

    def close(self) -> None:
        """Ends the pass; elements that were not taken are dropped. Closing again does nothing.

        Arrays that were taken stay valid. `next()` then raises a `StookError`, unless the pass was
        over: a loop that goes on over a closed iterator is not quietly given too little.
        """
        raise NotImplementedError

    def stats(self) -> LoaderStats:
        """Counts what this pass has delivered so far; also after it ended."""
        raise NotImplementedError

    def __enter__(self) -> LoaderIterator:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        stats = self.stats()
        return f"<stook.LoaderIterator: {stats.elements} elements, {stats.errors} errors>"
