"""Coroutines in a worker process: each call of one runs to its end, in a loop that is kept."""

from __future__ import annotations

import asyncio
import dis
import inspect
import types
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

__all__ = ["never_waits", "run_at_once", "run_coroutine"]

R = TypeVar("R")


class _WorkerLoop:
    """The event loop in which a worker runs coroutines, one after the other."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None

    def run(self, coroutine: Coroutine[Any, Any, R]) -> R:
        loop = self._open()
        try:
            return loop.run_until_complete(coroutine)
        finally:
            left = asyncio.all_tasks(loop)
            if left:
                _end_tasks(loop, left)

    def run_at_once(self, coroutine: Coroutine[Any, Any, R]) -> R:
        """The same for one that never waits, at a tenth of the cost: it needs no task."""
        loop = self._open()
        asyncio._set_running_loop(loop)
        try:
            coroutine.send(None)
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]
        finally:
            asyncio._set_running_loop(None)
            left = asyncio.all_tasks(loop)
            if left:
                _end_tasks(loop, left)
        raise AssertionError("a coroutine without a place to wait has waited")

    def _open(self) -> asyncio.AbstractEventLoop:
        loop = self._loop
        if loop is None or loop.is_closed():
            loop = self._loop = asyncio.new_event_loop()
            asyncio.set_event_loop(loop)
        return loop


def _end_tasks(loop: asyncio.AbstractEventLoop, tasks: set[asyncio.Task[Any]]) -> None:
    """Ends tasks that a call left behind, as asyncio.run() does."""
    for task in tasks:
        task.cancel()
    loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
    for task in tasks:
        error = None if task.cancelled() else task.exception()
        if error is not None:
            loop.call_exception_handler(
                {"message": "a task that a pure call left behind", "exception": error, "task": task}
            )


_worker_loop = _WorkerLoop()


def run_coroutine(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return _worker_loop.run(function(*args, **kwargs))


def run_at_once(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return _worker_loop.run_at_once(function(*args, **kwargs))


# await, async for, async with, and the asynchronous comprehensions that are made of them.
_WAITS = frozenset({"GET_AWAITABLE", "GET_AITER", "GET_ANEXT", "BEFORE_ASYNC_WITH"})


def never_waits(function: Callable[..., Any]) -> bool:
    """True for an `async def` in which there is nothing to wait at."""
    code = getattr(function, "__code__", None)
    return (
        isinstance(code, types.CodeType)
        and bool(code.co_flags & inspect.CO_COROUTINE)
        and _WAITS.isdisjoint(instruction.opname for instruction in dis.get_instructions(code))
    )
