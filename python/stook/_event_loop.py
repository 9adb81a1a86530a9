"""Calls of an event loop that run in a pool, settled by the loop.

Those of pure functions are futures of the loop; those of executors are `concurrent.futures` that
`asyncio` has wrapped. No thread helps. While a loop has calls outstanding it watches the pool's
descriptor, delivers what is there, and arms the descriptor again. Other threads may wait for calls
of the same pool, and then deliver the loop's as well; whoever stops delivering tells the loop,
which takes over.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import Iterator
from typing import Any

from ._task_pool import Function, TaskPool

__all__ = ["LoopLink", "LoopLinks", "PureCoroutine", "PureFuture"]

_get_running_loop = asyncio._get_running_loop

# Calls between two looks at what has come while a loop makes one call after the other, as a
# comprehension in asyncio.gather() does: without them the workers would run out of jobs.
_CALLS_PER_LOOK = 32
# A loop with far more calls outstanding than the workers have at hand looks after so many seconds,
# rather than being woken for each result; unless the workers may by then have run out of jobs,
# which are so many for each (stook/_task_pool.py). Selectors may take a millisecond longer.
_PAUSE = 0.001
_LONGEST_PAUSE = 0.002
_JOBS_AT_HAND = 32


class PureFuture(asyncio.Future[Any]):
    """The result to come of one call.

    It is its task's sink, too: any thread may call it, only the loop's settles it.
    """

    __slots__ = ("_link", "_number")

    _link: LoopLink | None  # None once it is settled or cancelled; the loop's thread writes it
    _number: int

    def __call__(self, ok: bool, value: Any) -> None:
        link = self._link
        if link is None:
            return
        if _get_running_loop() is not link.loop:
            link.post(self, ok, value)
            return
        self._link = None
        link.outstanding -= 1
        if ok:
            self.set_result(value)
        else:
            _fail(self, value)

    def cancel(self, msg: Any = None) -> bool:
        """Cancels it; the call itself, too, if no worker has begun it."""
        if not super().cancel(msg):
            return False
        link, self._link = self._link, None
        if link is not None:
            link.forget(self._number)
        return True


class PureCoroutine(PureFuture):
    """The same of an `async def`: a coroutine, too, for `create_task`, `TaskGroup`, `asyncio.run`.

    As of every coroutine, `asyncio.wait` takes a task of it only.
    """

    __slots__ = ("_steps",)

    _steps: Iterator[Any]

    def send(self, value: None) -> Any:
        try:
            steps = self._steps
        except AttributeError:
            steps = self._steps = iter(self.__await__())
        return next(steps)

    def throw(self, *error: Any) -> Any:
        try:
            steps: Any = self._steps
        except AttributeError:
            steps = self._steps = iter(self.__await__())
        return steps.throw(*error)

    def close(self) -> None:
        """Nothing to do: what is not awaited runs all the same."""


def _fail(future: PureFuture, error: BaseException) -> None:
    try:
        future.set_exception(error)
    except TypeError:  # StopIteration, which asyncio refuses for what it does to generators
        wrapped = RuntimeError(f"the call raised {type(error).__name__}")
        wrapped.__cause__ = error
        future.set_exception(wrapped)


class LoopLink:
    """One event loop's calls in one pool.

    All is the loop's thread's, but `post`, `end` and `release`.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, pool: TaskPool) -> None:
        self.loop = loop
        self.pool = pool
        self.outstanding = 0  # futures that are not settled
        self._jobs_at_hand = _JOBS_AT_HAND * pool.num_workers
        self._calls = 0
        self._descriptor = -1  # watched while calls are outstanding
        self._is_scheduled = False  # a call of _look is on its way; any thread sets it
        self._is_looking = False
        self._last_look = 0.0
        self._timer: asyncio.TimerHandle | None = None  # of a pause

    def call(
        self,
        kind: type[PureFuture],
        function: Function,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> PureFuture:
        future = kind(loop=self.loop)
        future._link = self
        number = self.pool.submit(function, args, kwargs, sink=future, background=False)
        future._number = number
        self.outstanding += 1
        if self._descriptor < 0:
            self._watch()
        if not self._is_scheduled:  # for the workers to be told, if they sleep
            self._is_scheduled = True
            self.loop.call_soon(self._look)
        self._calls += 1
        if self._calls % _CALLS_PER_LOOK == 0:
            self._is_looking = True
            try:
                self.pool.deliver()
            finally:
                self._is_looking = False
        return future

    def begin(self) -> bool:
        """Counts one more that the loop waits for, of which the workers know; see `end`.

        False, and nothing is counted, if the loop cannot watch descriptors.
        """
        if self._descriptor < 0:
            try:
                self._watch()
            except NotImplementedError:
                os.close(self._descriptor)
                self._descriptor = -1
                return False
            if not self._is_scheduled:
                self._is_scheduled = True
                self.loop.call_soon(self._look)
        self.outstanding += 1
        return True

    # ---- from any thread -------------------------------------------------------------------------

    def end(self) -> None:
        """One that `begin` counted has been settled."""
        if _get_running_loop() is self.loop:
            self._end()
            return
        try:
            self.loop.call_soon_threadsafe(self._end)
        except RuntimeError:  # the loop is closed
            self._stop_watching()

    def is_watching(self) -> bool:
        """True while the loop hears of what comes."""
        return self._descriptor >= 0 and not self.loop.is_closed()

    def post(self, future: PureFuture, ok: bool, value: Any) -> None:
        """Has the loop settle a future that another thread delivers."""
        try:
            self.loop.call_soon_threadsafe(self._settle, future, ok, value)
        except RuntimeError:  # the loop is closed: nobody awaits it
            self._stop_watching()

    def release(self) -> None:
        """Hears that a thread has delivered, or stops delivering (see TaskPool._waiting).

        Only the first of those who wait is told the latter, and that is a loop: it passes it on.
        """
        waiting = self.pool._waiting
        for told in list(waiting):
            if isinstance(told, LoopLink):
                told._schedule()
            else:
                with contextlib.suppress(RuntimeError):  # told already
                    told.release()

    def _schedule(self) -> None:
        if self._is_scheduled or (self._is_looking and _get_running_loop() is self.loop):
            return
        self._is_scheduled = True
        if _get_running_loop() is self.loop:
            self.loop.call_soon(self._look)
            return
        try:
            self.loop.call_soon_threadsafe(self._look)
        except RuntimeError:  # the loop is closed, with calls outstanding
            self._stop_watching()

    # ---- in the loop -----------------------------------------------------------------------------

    def forget(self, number: int) -> None:
        """A future was cancelled: so is its task, unless it has begun."""
        self.outstanding -= 1
        if not self.pool.is_closed:
            self.pool.cancel(number)
        if self.outstanding == 0:
            self._stop_watching()

    def _settle(self, future: PureFuture, ok: bool, value: Any) -> None:
        future(ok, value)
        if self.outstanding == 0:
            self._stop_watching()

    def _end(self) -> None:
        self.outstanding -= 1
        if self.outstanding == 0 and not self._is_looking:
            self._stop_watching()

    def _watch(self) -> None:
        # A descriptor of its own: the pool may be closed, and its number go to something else.
        self._descriptor = os.dup(self.pool.fileno())
        self.loop.add_reader(self._descriptor, self._look)
        self.pool._waiting.insert(0, self)
        self._last_look = time.monotonic()

    def _stop_watching(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor < 0:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        with contextlib.suppress(ValueError):
            self.pool._waiting.remove(self)
        if not self.loop.is_closed():
            self.loop.remove_reader(descriptor)
        os.close(descriptor)
        # Threads that wait counted on whoever is in the list.
        if self.pool._waiting:
            self.release()

    def _look(self) -> None:
        """Delivers what is there, and sees to it that the loop hears of what comes."""
        self._is_scheduled = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._descriptor < 0:
            return
        pool = self.pool
        before = self.outstanding
        self._is_looking = True
        try:
            pool.deliver()
        finally:
            self._is_looking = False
        if self.outstanding == 0:
            self._stop_watching()
        elif pool._queue.is_pumped:
            pool.arm()  # tells the workers; the thread tells this loop when it stops
        elif self._can_pause(before - self.outstanding):
            self._timer = self.loop.call_later(_PAUSE, self._look)
        elif not pool.arm():
            self._is_scheduled = True
            self.loop.call_soon(self._look)

    def _can_pause(self, settled: int) -> bool:
        """True if a pause leaves the workers jobs, at the pace of the last look."""
        now = time.monotonic()
        passed, self._last_look = now - self._last_look, now
        if settled == 0 or self.outstanding < 2 * self._jobs_at_hand:
            return False
        return settled * _LONGEST_PAUSE < passed * 0.75 * self._jobs_at_hand

    def __del__(self) -> None:
        if getattr(self, "_descriptor", -1) >= 0:
            os.close(self._descriptor)


class LoopLinks:
    """The links of a pool's event loops: one for each loop that has waited for a call of it."""

    def __init__(self, pool: TaskPool) -> None:
        self._pool = pool
        self._last: LoopLink | None = None  # of the loop that asked last
        # Replaced as a whole, under the lock; read by any thread, which sees one or the other.
        # Reentrant: a signal handler, or a finalizer, may use the pool in between.
        self._links: tuple[LoopLink, ...] = ()
        self._lock = threading.RLock()

    def current(self) -> LoopLink | None:
        """That of the loop which runs in this thread; `None` if none does."""
        loop = _get_running_loop()
        if loop is None:
            return None
        link = self._last  # another thread may put its own there
        if link is not None and link.loop is loop:
            return link
        for link in self._links:
            if link.loop is loop:
                break
        else:
            # No other thread runs this loop, so nobody else makes a link for it.
            link = LoopLink(loop, self._pool)
            with self._lock:
                self._links = (*[old for old in self._links if not old.loop.is_closed()], link)
        self._last = link
        return link

    def is_awaited(self) -> bool:
        """True while a loop waits for something, and hears of it."""
        return any(link.is_watching() for link in self._links)
