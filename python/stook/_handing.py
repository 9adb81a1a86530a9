"""How iterators that are written in Python hand over what was made, whatever a signal interrupts.

CPython runs signal handlers, which may raise, behind a call, at a function's beginning and where a
loop turns. So what was made is put in hand first. From there a `for` takes it, which calls C alone:
nothing can be raised between "it is taken, and the state is behind it" and `return`. An exception
that comes earlier leaves it in hand, for the next `next()`, and the state before it.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from collections.abc import Iterator
from typing import Any

from ._iterator import LoaderIterator

__all__ = ["HandingIterator"]


class HandingIterator(LoaderIterator):
    """An iterator whose `next()` takes what `_prepare` put in hand.

    Threads may share it: one of them prepares, under a lock, and any takes.
    """

    # At most one outcome: success, the element or the error, and where the pass stands behind it.
    # To be put there in one step with whatever says that it was made: no call in between.
    _hand: deque[tuple[bool, Any, Any]]
    _taking: Iterator[tuple[bool, Any, Any]]
    _where: Any  # where the pass stands; replaced as one, and read without a lock

    def _begin_at(self, where: Any) -> None:
        self._hand = deque()
        self._taking = iter(self._hand.popleft, None)
        self._where = where

    @abstractmethod
    def _prepare(self) -> None:
        """Waits until something is in hand; raises `StopIteration` where nothing more comes."""

    def _prepare_at_once(self) -> Any:
        """As `_prepare`, but gives `ABSENT` or `SOON` rather than wait for others."""
        self._prepare()
        return None

    def __next__(self) -> Any:
        value: Any = None
        outcome: Any = None
        try:
            while True:
                if not self._hand:
                    self._prepare()
                try:
                    for outcome in self._taking:
                        success, value, self._where = outcome
                        break
                except IndexError:  # another thread was faster
                    continue
                if success:
                    return value
                raise value
        finally:
            del self, outcome, value  # which a traceback would hold

    def _look(self) -> Any:
        value: Any = None
        outcome: Any = None
        try:
            while True:
                if not self._hand:
                    absent = self._prepare_at_once()
                    if absent is not None:
                        return absent
                try:
                    for outcome in self._taking:
                        success, value, self._where = outcome
                        break
                except IndexError:
                    continue
                if success:
                    return value
                raise value
        finally:
            del self, outcome, value
