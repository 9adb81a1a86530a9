"""The pool under an executor: worker processes whose tasks settle futures.

Results are delivered by whoever waits for one, or by the pool's own thread: `_attendant.py`.
Callbacks always run on the pool's thread, in no pool's delivery; asyncio's own run where the result
is delivered, for they do nothing but call a loop.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import process as _process
from concurrent.futures.process import BrokenProcessPool
from typing import Any, NoReturn

from ._attendant import Attendant
from ._error_payload import is_undecodable
from ._futures_exit import AFTER_EXIT, enter, is_exiting, join, leave
from ._signal_handlers import raised_by_one
from ._task_future import ItemsCall, ItemsFuture, TaskFuture
from ._task_pool import _CALL, _CHUNK, _STAR, Death, TaskPool
from .errors import PoolBroken, RemoteError, WorkerDied

__all__ = ["FuturePool", "ItemsCall", "ItemsFuture", "TaskFuture"]

_RemoteTraceback: Any = getattr(_process, "_RemoteTraceback", RemoteError)

_SUBMITS_PER_LOOK = 32  # a thread that only submits delivers, too: half a worker's jobs at hand
_INSTANT = 0.001

_ABRUPT = (
    "A process in the process pool was terminated abruptly while the future was running or pending."
)
_UNUSABLE = "A child process terminated abruptly, the process pool is not usable anymore"
_AFTER_SHUTDOWN = "cannot schedule new futures after shutdown"


class _Tasks(TaskPool):
    def __del__(self) -> None:
        if hasattr(self, "_queue"):  # else its start has failed, and was cleared away
            super().__del__()


class FuturePool:
    """A TaskPool whose tasks settle futures, the thread that attends to it, and its end.

    Any thread may call any method. The thread holds this object until the pool has ended, so
    whoever made it has to call `shut_down` or `kill` in the end.

    Args:
      num_workers: Processes.
      breaks: Whether a worker that ends unasked ends the pool.
      **settings: Of the TaskPool.

    Attributes:
      tasks: The processes.
      futures: Those of tasks that are not done.
      attendant: Who delivers; its `thread` ends with the pool.
      broken: Why nothing can be submitted any more, or an empty text.
      refuses: The same after a shutdown.
    """

    def __init__(self, num_workers: int, *, breaks: bool, name: str, **settings: Any) -> None:
        if is_exiting():
            raise RuntimeError(AFTER_EXIT)
        self.breaks = breaks
        self.broken = ""
        self.tasks = tasks = _Tasks(num_workers, on_death=self._note_death, name=name, **settings)
        self.futures: set[TaskFuture] = set()
        self._queue = tasks._queue
        self._functions = tasks._functions
        self.refuses = ""
        self._pid = os.getpid()
        self.attendant = attendant = Attendant(self, name)
        self.thread = attendant.thread
        enter(self)
        try:
            self.thread.start()
        except BaseException:
            self.leave()
            tasks.close()
            raise

    # ---- tasks -----------------------------------------------------------------------------------

    def submit(
        self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> TaskFuture:
        """Raises only if the pool takes nothing more; all else is the future's error."""
        if self.refuses or self.broken:
            self._refuse()
        try:
            function = self._functions[fn]
        except (KeyError, TypeError):  # TypeError: not hashable
            if type(fn) is ItemsCall:
                return self.submit_items(fn.function, fn.items)
            function = self._define(fn)
            if isinstance(function, _Unsendable):
                return self.submit(type, (function,), {})
        future = TaskFuture(self)
        self._send(future, function, (args, kwargs or None), future._settle, _CALL)
        number = future._number
        # Not by the pool's thread, which would ask for the GIL all the time: what is there.
        attendant = self.attendant
        attendant.visits = number
        if not attendant.is_awake:
            attendant.wake_up()
        if not number % _SUBMITS_PER_LOOK:
            self.tasks.deliver()
        return future

    def submit_items(self, fn: Callable[..., Any], items: list[tuple[Any, ...]]) -> TaskFuture:
        """The same for `fn(*item)` with each item, in one worker."""
        if self.refuses or self.broken:
            self._refuse()
        function = self._define(fn)
        if isinstance(function, _Unsendable):
            return self.submit(type, (function,), {})
        future = ItemsFuture(self, len(items))
        self._send(future, function, items, future._settle_part, _CHUNK + _STAR)
        if not self.attendant.is_awake:
            self.attendant.wake_up()
        return future

    def _send(self, future: TaskFuture, function: Any, payload: Any, sink: Any, kind: int) -> None:
        self.futures.add(future)
        try:
            future._number = self._queue.submit(function, payload, sink, kind, True)
        except PoolBroken:  # ended by another thread, just now
            self.futures.discard(future)
            self._refuse()
        except BaseException:
            self.futures.discard(future)
            raise

    def _define(self, fn: Callable[..., Any]) -> Any:
        """The function as the workers know it, or why it cannot be sent."""
        try:
            return self.tasks.function(fn)
        except PoolBroken:
            self._refuse()
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            if self.tasks._forked or raised_by_one(error):
                raise
            return _Unsendable(error)

    def _refuse(self) -> NoReturn:
        if self.tasks._forked:
            self.tasks._check_usable()
        self._note_broken()
        if self.broken:
            raise BrokenProcessPool(self.broken)
        raise RuntimeError(self.refuses or _AFTER_SHUTDOWN)

    def cancel(self, number: int) -> bool:
        return not self.tasks.is_closed and self.tasks.cancel(number)

    def is_running(self, number: int) -> bool:
        return not self.tasks.is_closed and self.tasks.is_running(number)

    # ---- errors ----------------------------------------------------------------------------------

    def _note_death(self, death: Death) -> None:
        if not self.breaks or self.tasks.is_closed:
            return
        self.broken = _UNUSABLE
        self.tasks.close(
            WorkerDied(
                death.worker, death.exit_code, None, f"{_ABRUPT} Its process id was {death.pid}."
            )
        )

    def _note_broken(self) -> None:
        error = self._queue.broken
        if error is not None and not self.broken:
            self.broken = f"the worker processes cannot be used: {_shown(error)}"

    def explain(self, error: BaseException) -> BaseException:
        """What a future gets for an error of its task's."""
        if isinstance(error, WorkerDied):  # one for many futures: each raises its own
            return WorkerDied(error.worker, error.exit_code, error.index, error.detail)
        if isinstance(error, BrokenProcessPool):
            return _caused(BrokenProcessPool(*error.args), error.__cause__)
        if error is self._queue.broken or isinstance(error, PoolBroken):
            self._note_broken()
            return _caused(BrokenProcessPool(self.broken or str(error)), error)
        cause = error.__cause__
        if type(cause) is RemoteError:
            error.__cause__ = _RemoteTraceback(str(cause))
        if is_undecodable(error):  # the original's pool breaks; here it is that task alone
            what = "arguments" if type(cause) is RemoteError else "result"
            return _caused(
                BrokenProcessPool(
                    f"the {what} of the task could not be unpickled: {_shown(error)}"
                ),
                error,
            )
        return error

    def fail(self, error: BaseException) -> None:
        """A fault of the thread's."""
        self.broken = self.broken or f"the thread of the process pool failed: {error!r}"
        self.tasks.close(BrokenProcessPool(self.broken))

    # ---- waiting ---------------------------------------------------------------------------------

    def wait(self, done: Callable[[], bool], timeout: float | None) -> bool:
        """Runs the pool, in this thread, until `done()` or for `timeout` seconds."""
        tasks = self.tasks
        if timeout is not None and timeout <= 0:
            if not done():
                tasks.deliver()
            return done()
        deadline = None if timeout is None else time.monotonic() + timeout
        attendant = self.attendant
        visitor = object()
        try:
            attendant.come(visitor)
            left = timeout
            while not tasks.wait(done, left):
                if tasks.is_closed and not done():
                    time.sleep(_INSTANT)  # another thread is about to settle it
                if deadline is not None:
                    left = deadline - time.monotonic()
                    if left <= 0:
                        return done()
            return True
        finally:
            attendant.go(visitor)

    # ---- the end ---------------------------------------------------------------------------------

    def shut_down(self, *, wait: bool, cancel_futures: bool = False, why: str = "") -> None:
        """What was submitted still runs; nothing more is taken. The pool ends by itself.

        With `cancel_futures` only what workers have, or are about to take, still runs.
        """
        if os.getpid() != self._pid:
            return
        self.refuses = self.refuses or why or _AFTER_SHUTDOWN
        if cancel_futures:
            waiting = sorted(self.futures, key=lambda future: future._number)
            running = [future for future in waiting if future.running()]
            waiting = [future for future in waiting if future not in running]
            free = max(0, self.tasks.num_workers - len(running))  # or still starting
            # From the last: what lies behind it would take its place at the workers' hands.
            for future in reversed(waiting[free:]):
                future.cancel()
        self.attendant.ring()
        if wait and threading.current_thread() is not self.thread:
            join(self.thread)

    def leave(self) -> None:
        """Nothing is to be done for it at the interpreter's exit any more."""
        leave(self)

    def kill(self, why: str) -> None:
        """Ends the processes, also those that are stuck; what is not done fails."""
        if os.getpid() != self._pid:
            return
        self.refuses = self.refuses or _AFTER_SHUTDOWN
        try:
            if not self.tasks.is_closed:
                if self.tasks.outstanding:
                    self.broken = self.broken or why
                self.tasks.close(BrokenProcessPool(why))
        finally:  # also if it was interrupted
            self.attendant.ring()


class _Unsendable:
    """An argument in the place of a function that cannot be pickled: it cannot, either.

    So its error comes the way of all errors, after the submit, and asks for workers as other tasks.
    """

    def __init__(self, error: BaseException) -> None:
        self._error = error

    def __reduce__(self) -> NoReturn:
        raise self._error


def _shown(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"
    except BaseException:
        return type(error).__name__


def _caused(error: BaseException, cause: BaseException | None) -> BaseException:
    error.__cause__ = cause
    return error
