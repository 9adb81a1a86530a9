"""Calls of functions in a worker process that lives on, for tests about what comes back."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

import stook


class Courier:
    """Calls functions in one long-lived worker, each result being an element of a loader.

    Starting processes for every case would cost a hundred times what the cases do.
    """

    def __init__(self, **options: Any) -> None:
        self._calls = _Calls()
        self.loader = stook.DataLoader(
            self._calls,
            _perform,
            options=stook.MultiprocessingOptions(**{"num_workers": 1, **options}),
            seed=None,
        )
        self.stats = stook.LoaderStats()
        # Processes and their descriptors are there before a test looks at what it may not leave.
        self.call(int)
        while len(self.loader._pool._core.worker_pids) < options.get("num_workers", 1):
            self.call(int)

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """What the function returns; it is found by its name in the worker."""
        (result,) = self.map(function, [arguments])
        return result

    def map(self, function: Callable[..., Any], calls: list[tuple[Any, ...]]) -> list[Any]:
        """The results of several calls; `stats` counts them alone."""
        return list(self.each(function, calls))

    def each(self, function: Callable[..., Any], calls: list[tuple[Any, ...]]) -> Iterator[Any]:
        """The same one after the other; `stats` counts those up to now."""
        self._calls.items = [(function, arguments) for arguments in calls]
        elements = iter(self.loader)
        for element in elements:
            self.stats = elements.stats()
            yield element
            del element
        self._calls.items = []

    def bytes_live(self) -> int:
        """Bytes of shared memory that arrays hold here."""
        gc.collect()
        return self.loader.stats().bytes_live

    def __enter__(self) -> Courier:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.loader.close()


class _Calls:
    """An iterable source whose items cross to the worker."""

    def __init__(self) -> None:
        self.items: list[tuple[Callable[..., Any], tuple[Any, ...]]] = []

    def __iter__(self) -> Iterator[tuple[Callable[..., Any], tuple[Any, ...]]]:
        return iter(self.items)


def _perform(call: tuple[Callable[..., Any], tuple[Any, ...]]) -> Any:
    return call[0](*call[1])
