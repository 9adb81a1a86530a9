"""What pools and executors check of their arguments, so that one wrong value has one message."""

from __future__ import annotations

import numbers
import operator
from collections.abc import Callable
from typing import Any

from .options import _MAX_WORKERS, MultiprocessingOptions, _shown

__all__ = [
    "check_callback",
    "check_chunksize",
    "check_function",
    "check_initargs",
    "check_options",
    "check_timeout",
    "check_workers",
    "default_chunksize",
    "method_of",
]


def check_workers(name: str, value: Any, too_few: str) -> int:
    """The number of processes; `too_few` is how the original refuses less than 1."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {_shown(value)}") from None
    if number < 1:
        raise ValueError(f"{too_few}, got {number}")
    if number > _MAX_WORKERS:
        raise ValueError(f"{name} must be at most {_MAX_WORKERS}, got {number}")
    return number


def check_function(name: str, value: Any) -> None:
    """`None`, or something to call: an initializer, a callback."""
    if value is not None and not callable(value):
        raise TypeError(f"{name} must be a callable or None, got {_shown(value)}")


def check_callback(callback: Any, error_callback: Any) -> None:
    check_function("callback", callback)
    check_function("error_callback", error_callback)


def check_initargs(value: Any) -> tuple[Any, ...]:
    """The initializer's arguments."""
    try:
        return tuple(value)
    except TypeError:
        raise TypeError(
            f"initargs must be the initializer's arguments, as in ({_shown(value)},), got"
            f" {_shown(value)}"
        ) from None


def check_options(value: Any) -> None:
    """What a pool can do something with."""
    if value is None:
        return
    if not isinstance(value, MultiprocessingOptions):
        raise TypeError(
            f"options must be a stook.MultiprocessingOptions or None, got {_shown(value)}"
        )
    if value.timeout is not None:
        raise ValueError(
            f"options: timeout={value.timeout:g} is a limit for the items of a loader, and calls in"
            " a pool have none; leave it out, and give a timeout to what waits for the result"
        )


def check_timeout(value: Any) -> None:
    """Seconds to wait for a result."""
    if value is not None and not isinstance(value, numbers.Real):
        raise TypeError(f"timeout must be a number of seconds or None, got {_shown(value)}")


def check_chunksize(value: Any, refusal: Callable[[int], str] | None = None) -> int:
    """Items of a task; `refusal` says how the original refuses less than 1."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"chunksize must be an integer, got {_shown(value)}") from None
    if number < 1:
        raise ValueError(refusal(number) if refusal else f"Chunksize must be 1+, not {number}")
    return number


def default_chunksize(length: int, workers: int) -> int:
    """Of a `map`, as in the original: four tasks for each process or thread."""
    return max(1, -(-length // (4 * workers)))


def method_of(context: Any, name: str = "context") -> str:
    """The start method of a context of `multiprocessing`, or of its name."""
    method = context.get_start_method() if hasattr(context, "get_start_method") else context
    if not isinstance(method, str):
        raise TypeError(
            f"{name} must be a context, as multiprocessing.get_context() gives, or the name of a"
            f" start method, got {_shown(context)}"
        )
    if method not in ("fork", "forkserver", "spawn"):
        raise ValueError(f"{name} must be 'fork', 'forkserver' or 'spawn', got {_shown(context)}")
    return method
