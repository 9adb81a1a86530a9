"""The iterators that stand before another one of the same pass, and give what it gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ._async_iteration import Waiters
from ._iterator import LoaderIterator
from .stats import LoaderStats

__all__ = ["ThroughIterator"]


class ThroughIterator(LoaderIterator):
    """Everything is that of the iterator under it, `_inner`; a subclass says what is not.

    `next()` is the subclass's own.
    """

    __slots__ = ()

    _inner: LoaderIterator

    def _look(self) -> Any:
        return self._inner._look()

    def _descriptor(self) -> int:
        return self._inner._descriptor()

    def _longest_wait(self) -> float | None:
        return self._inner._longest_wait()

    def _waiters(self) -> Waiters:
        return self._inner._waiters()

    def _tell_waiters(self) -> None:
        self._inner._tell_waiters()

    def close(self) -> None:
        self._inner.close()

    def stats(self) -> LoaderStats:
        return self._inner.stats()

    def delivered(self) -> tuple[int, list[int]]:
        return self._inner.delivered()

    def next_item(self) -> tuple[int, int, int]:
        return self._inner.next_item()

    def _has_ended(self) -> bool:
        return self._inner._has_ended()

    def _is_closed(self) -> bool:
        return self._inner._is_closed()

    def _at_standstill(self, call: Callable[[], None]) -> None:
        self._inner._at_standstill(call)

    def _restart(self, jobs: Iterator[Any], skip: Sequence[int]) -> None:
        self._inner._restart(jobs, skip)
