"""What the workers of a `TaskPool` start with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .errors import add_note

__all__ = ["Initializer", "PoolTask", "call_nothing"]


class PoolTask:
    """What workers of a pool start with: nothing but their functions to come."""

    seed = None  # each worker draws its own random numbers

    def bind(self) -> Any:
        return call_nothing


def call_nothing(*_: Any) -> None:
    """Never called: jobs of a pool bring their function."""


class Initializer:
    """Runs in each worker before its first job."""

    def __init__(
        self,
        initializer: Callable[..., Any] | None,
        arguments: tuple[Any, ...],
        init: Callable[[int, int], Any] | None,
    ) -> None:
        self._initializer = initializer
        self._arguments = arguments
        self._init = init

    def __call__(self, index: int, count: int) -> None:
        if self._init is not None:
            self._init(index, count)
        if self._initializer is not None:
            try:
                self._initializer(*self._arguments)
            except Exception as error:
                add_note(error, "by the initializer of a pool, which runs before any call")
                raise
