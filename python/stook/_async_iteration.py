"""`async for` over a loader: coroutines wait for the descriptor of the workers, and for each other.

No thread helps. A coroutine takes its element itself, when it is there: what it waits for only
says that it may look. So one that is cancelled loses none.

What comes is told once, to whoever looks first: a thread in `next()` or another coroutine. So
whoever has looked, and took something, tells all others to look.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from typing import Any, Protocol

__all__ = ["ABSENT", "SOON", "Waiters", "take"]


class _Absent:
    def __init__(self, name: str) -> None:
        self._name = name

    def __repr__(self) -> str:
        return self._name


ABSENT = _Absent("ABSENT")  # no element yet; who waits is told
SOON = _Absent("SOON")  # no element yet; nobody would tell

# A loop over elements that are all there lets other coroutines run after so many seconds.
_TURN = 0.001
_SOON_SECONDS = 0.001


class Waiters:
    """The coroutines that wait for an element of one iterator; any thread tells them."""

    __slots__ = ("_futures", "last_turn")

    def __init__(self) -> None:
        self._futures: dict[asyncio.Future[None], asyncio.AbstractEventLoop] = {}
        self.last_turn = 0.0

    def __len__(self) -> int:
        return len(self._futures)

    def add(self, future: asyncio.Future[None], loop: asyncio.AbstractEventLoop) -> None:
        self._futures[future] = loop

    def remove(self, future: asyncio.Future[None]) -> None:
        self._futures.pop(future, None)

    def tell(self) -> None:
        """Has all of them look."""
        if not self._futures:
            return
        for future, loop in list(self._futures.items()):
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(_settle, future)


class _Looked(Protocol):
    """What `take` needs of an iterator."""

    def _look(self) -> Any:
        """As `next()`, but `ABSENT` or `SOON` rather than wait."""

    def _waiters(self) -> Waiters: ...

    def _descriptor(self) -> int:
        """Readable, after a look that found nothing, when one may find something; -1: none."""

    def _longest_wait(self) -> float | None:
        """After how many seconds to look again even if nothing tells."""


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


async def take(iterator: _Looked) -> Any:
    """The next element; raises what `next()` would, but `StopAsyncIteration` at the end."""
    waiters = iterator._waiters()
    if time.monotonic() - waiters.last_turn > _TURN:
        await asyncio.sleep(0)
        waiters.last_turn = time.monotonic()
    while True:
        element = _look(iterator)
        if element is ABSENT:
            element = await _wait(iterator, waiters)
            waiters.last_turn = time.monotonic()
        if element is SOON:
            await asyncio.sleep(_SOON_SECONDS)
        elif element is not ABSENT:
            return element


def _look(iterator: _Looked) -> Any:
    element: Any = None
    try:
        element = iterator._look()
    except StopIteration:
        raise StopAsyncIteration from None
    except StopAsyncIteration as error:
        # From user code: the loop over the elements would end without a word.
        raise RuntimeError("an element raised StopAsyncIteration") from error
    finally:
        if element is not ABSENT and element is not SOON:
            iterator._waiters().tell()
    return element


async def _wait(iterator: _Looked, waiters: Waiters) -> Any:
    """Waits until there may be an element: gives `ABSENT`, or what there was meanwhile."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[None] = loop.create_future()
    descriptor = iterator._descriptor()
    seconds = iterator._longest_wait()
    timer = None
    if descriptor >= 0:
        # One of its own: the iterator may be closed, and its number go to something else.
        descriptor = os.dup(descriptor)
    waiters.add(future, loop)
    try:
        if descriptor >= 0:
            loop.add_reader(descriptor, _settle, future)
        if seconds is not None:
            timer = loop.call_later(seconds, _settle, future)
        # Again: what came in between was told to nobody.
        element = _look(iterator)
        if element is ABSENT:
            await future
        return element
    finally:
        waiters.remove(future)
        if timer is not None:
            timer.cancel()
        if descriptor >= 0:
            if not loop.is_closed():
                loop.remove_reader(descriptor)
            os.close(descriptor)
