"""Futures of calls that run in worker processes, and what settles them.

Results are delivered by whichever thread waits for one (`Future.result` runs the pool itself, so
that no thread has to be woken for it), by an event loop whose coroutines do (`_event_loop.py`), and
else by a thread of the pool: at once if somebody counts on being told (a callback,
`concurrent.futures.wait`, a shutdown), after a few milliseconds if nobody does. Callbacks always
run on the pool's thread, in no pool's delivery; asyncio's own run where the result is delivered,
for they do nothing but call a loop.
"""

from __future__ import annotations

import atexit
import concurrent.futures
import contextlib
import os
import queue
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import _base
from concurrent.futures import process as _process
from concurrent.futures.process import BrokenProcessPool
from typing import TYPE_CHECKING, Any, NoReturn

from ._error_payload import is_undecodable
from ._task_pool import _CALL, _CHUNK, _STAR, Death, TaskPool
from .errors import PoolBroken, RemoteError, WorkerDied

if TYPE_CHECKING:  # asyncio is imported by who uses it
    from ._event_loop import LoopLink, LoopLinks

__all__ = ["FuturePool", "ItemsCall", "ItemsFuture", "TaskFuture"]

_PENDING: str = _base.PENDING
_CANCELLED: str = _base.CANCELLED_AND_NOTIFIED
_FINISHED: str = _base.FINISHED
_RemoteTraceback: Any = getattr(_process, "_RemoteTraceback", RemoteError)

# For how long results may lie there while nobody asked to be told. Within it, threads that call
# `result()` again and again deliver for themselves, and the pool's thread stays out of their way.
_GRACE = 0.004
_LINGER = 12  # graces without any work, then the pool's thread goes to sleep
_SUBMITS_PER_LOOK = 32  # a thread that only submits delivers, too: half a worker's jobs at hand
# A thread that sleeps in the pool does not hear of a cancellation; it looks.
_LOOK = 0.05
_TAKE_OVER = 0.05  # for how long an event loop that waits for results may leave them there
_ASYNCIO = "asyncio.futures"  # the module of the callback with which it wraps a future
_INSTANT = 0.001
_PATIENCE = 10  # instants

_ABRUPT = (
    "A process in the process pool was terminated abruptly while the future was running or pending."
)
_UNUSABLE = "A child process terminated abruptly, the process pool is not usable anymore"
_AFTER_SHUTDOWN = "cannot schedule new futures after shutdown"
_AFTER_EXIT = "cannot schedule new futures after interpreter shutdown"


class TaskFuture(concurrent.futures.Future):  # type: ignore[type-arg]
    """A `concurrent.futures.Future` that costs little where nobody but its owner looks at it.

    Its lock is made when somebody first asks for it, and from then on guards the state. Whether
    that or the result came first is decided by one atomic operation, on the entry `_guard` of its
    `__dict__`: the lock, or `None` if the result was first.
    """

    # Of those that nobody looked at. `_state` is PENDING, CANCELLED_AND_NOTIFIED or FINISHED.
    _state = _PENDING
    _result: Any = None
    _exception: BaseException | None = None
    _number = 0

    def __init__(self, pool: FuturePool) -> None:
        # Not the original's: it makes a lock and two lists.
        self._pool = pool

    # ---- what the original keeps in each ---------------------------------------------------------

    @property
    def _condition(self) -> threading.Condition:  # type: ignore[override]
        attributes = self.__dict__
        guard = attributes.get("_guard", self)
        if guard is self:
            guard = attributes.setdefault("_guard", threading.Condition())
        if guard is None:  # settled before anybody asked
            self._state = _FINISHED
            guard = attributes.setdefault("_late_guard", threading.Condition())
        assert isinstance(guard, threading.Condition)
        return guard

    @property
    def _waiters(self) -> list[Any]:  # type: ignore[override]
        """Asked for with the lock held, by `wait` and `as_completed`."""
        waiters: list[Any] = self.__dict__.setdefault("_waiters_", [])
        self._pool.watch()
        return waiters

    @property
    def _done_callbacks(self) -> deque[Any]:
        callbacks: deque[Any] = self.__dict__.setdefault("_callbacks_", deque())
        return callbacks

    def _tell_loops(self) -> None:
        """Calls asyncio's callbacks, which have their loops take the result over."""
        awaiting = self.__dict__.get("_awaiting")
        while awaiting:
            link, callback = awaiting[0]
            self._call(callback)
            awaiting.popleft()
            link.end()

    def _invoke_callbacks(self) -> None:
        """Each is called once: a second call of this goes on where the first was interrupted."""
        callbacks = self._done_callbacks
        while callbacks:
            self._call(callbacks.popleft())

    def _call(self, callback: Callable[[Any], Any]) -> None:
        try:
            callback(self)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt) and (
                threading.current_thread() is threading.main_thread()
            ):
                raise
            _base.LOGGER.exception("exception calling callback for %r", self)

    # ---- what comes of the task ------------------------------------------------------------------

    def _settle(self, ok: bool, value: Any) -> None:
        """The task's sink; see TaskPool: short, and a second call does what the first left."""
        if ok:
            self._result = value
        elif self._exception is None:
            self._exception = self._pool.explain(value)
        self._publish()

    def _publish(self) -> None:
        """The result is there; now everybody may see it."""
        if self.__dict__.setdefault("_guard", None) is None:
            self._state = _FINISHED
        else:
            with self._condition:
                if self._state == _PENDING:
                    for waiter in self.__dict__.get("_waiters_", ()):
                        if self._exception is None:
                            waiter.add_result(self)
                        else:
                            waiter.add_exception(self)
                    self._state = _FINISHED
                    self._condition.notify_all()
            self._tell_loops()
            if self.__dict__.get("_callbacks_"):
                self._pool.call_back(self)
        self._pool.futures.discard(self)

    # ---- what its owner calls --------------------------------------------------------------------

    def result(self, timeout: float | None = None) -> Any:
        """As in `concurrent.futures`."""
        if self._state == _PENDING:
            self._wait(timeout)
        if self._state == _CANCELLED:
            raise concurrent.futures.CancelledError
        if self.__dict__.get("_callbacks_"):
            self._pool.let_call_back(self._done_callbacks)
        error = self._exception
        if error is None:
            return self._result
        try:
            raise error
        finally:
            # The traceback holds this frame: without these, exception and frame hold one another.
            del error, self

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """As in `concurrent.futures`."""
        if self._state == _PENDING:
            self._wait(timeout)
        if self._state == _CANCELLED:
            raise concurrent.futures.CancelledError
        return self._exception

    def _is_settled(self) -> bool:
        return self._state != _PENDING

    def _wait(self, timeout: float | None) -> None:
        if not self._pool.wait(self._is_settled, timeout):
            raise concurrent.futures.TimeoutError

    def done(self) -> bool:
        """As in `concurrent.futures`."""
        return self._state != _PENDING

    def cancelled(self) -> bool:
        """As in `concurrent.futures`."""
        return self._state == _CANCELLED

    def running(self) -> bool:
        """True while a worker has the task."""
        return self._state == _PENDING and self._pool.is_running(self._number)

    def cancel(self) -> bool:
        """True if the task was not begun, and now never will be."""
        if self._state == _PENDING and self._pool.cancel(self._number):
            # From here on nobody else settles it.
            with self._condition:
                self._state = _CANCELLED
                for waiter in self.__dict__.get("_waiters_", ()):
                    waiter.add_cancelled(self)
                self._condition.notify_all()
            self._pool.futures.discard(self)
            self._pool.tell_waiting()
            self._tell_loops()
            self._invoke_callbacks()
        return self._state == _CANCELLED

    def add_done_callback(self, fn: Callable[[Any], Any]) -> None:
        """As in `concurrent.futures`; runs on the pool's thread, or here if it is done."""
        link = None
        if getattr(fn, "__module__", None) == _ASYNCIO:
            link = self._pool.loop_link()
        with self._condition:
            if self._state == _PENDING:
                if link is not None and link.begin():
                    self.__dict__.setdefault("_awaiting", deque()).append((link, fn))
                else:
                    self._done_callbacks.append(fn)
                    self._pool.watch()
                return
        self._call(fn)

    def __repr__(self) -> str:
        text = super().__repr__()
        return text.replace("state=pending", "state=running") if self.running() else text


class ItemsFuture(TaskFuture):
    """Of a task with many items. Its result is (results, errors by their place in results)."""

    def __init__(self, pool: FuturePool, count: int) -> None:
        super().__init__(pool)
        self._count = count
        # By their ids, so that taking one a second time changes nothing.
        self._parts: dict[int, tuple[list[Any], dict[int, BaseException] | None]] = {}

    def _settle_part(
        self, ok: bool, results: list[Any], errors: dict[int, BaseException] | None
    ) -> None:
        self._parts[id(results)] = (results, errors)
        if sum(len(part) for part, _ in self._parts.values()) < self._count:
            return
        joined: list[Any] = []
        failed: dict[int, BaseException] = {}
        for part, errors_of_part in self._parts.values():
            for place, error in (errors_of_part or {}).items():
                failed[len(joined) + place] = self._pool.explain(error)
            joined += part
        self._result = (joined, failed)
        self._publish()
        self._parts = {}


class ItemsCall:
    """What is submitted for `function(*item)` with each of many items; see ItemsFuture."""

    def __init__(self, function: Callable[..., Any], items: list[tuple[Any, ...]]) -> None:
        self.function = function
        self.items = items

    def __call__(self) -> list[Any]:
        return [self.function(*item) for item in self.items]


class _Tasks(TaskPool):
    def __del__(self) -> None:
        if hasattr(self, "_queue"):  # else its start has failed, and was cleared away
            super().__del__()


class FuturePool:
    """A TaskPool whose tasks settle futures, the thread that looks after it, and its end.

    Any thread may call any method. The thread holds this object until the pool has ended, so
    whoever made it has to call `shut_down` or `kill` in the end.

    Args:
      num_workers: Processes.
      breaks: Whether a worker that ends unasked ends the pool.
      **settings: Of the TaskPool.

    Attributes:
      tasks: The processes.
      futures: Those of tasks that are not done.
      thread: Looks after the pool, and ends with it.
      broken: Why nothing can be submitted any more, or an empty text.
    """

    def __init__(self, num_workers: int, *, breaks: bool, name: str, **settings: Any) -> None:
        if _exit_state["exiting"]:
            raise RuntimeError(_AFTER_EXIT)
        self.breaks = breaks
        self.broken = ""
        self.tasks = tasks = _Tasks(num_workers, on_death=self._note_death, name=name, **settings)
        self.futures: set[TaskFuture] = set()
        self._queue = tasks._queue
        self._functions = tasks._functions
        self._refuses = ""
        self._pid = os.getpid()
        # What wakes the thread. A SimpleQueue's put() may be called anywhere, also in a `__del__`
        # that interrupts another one.
        self._bell: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._to_call: deque[TaskFuture] = deque()
        # Hints about who should deliver: written by any thread, read by the pool's.
        self._is_awake = True
        self._is_watched = False
        self._impatient: list[None] = []
        self._visits = 0
        self._loops: LoopLinks | None = None
        self.thread = threading.Thread(target=self._look_after, name=name, daemon=True)
        _pools.add(self)
        try:
            self.thread.start()
        except BaseException:
            _pools.discard(self)
            tasks.close()
            raise

    # ---- tasks -----------------------------------------------------------------------------------

    def submit(
        self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> TaskFuture:
        """Raises only if the pool takes nothing more; all else is the future's error."""
        if self._refuses or self.broken or not self._is_awake:
            self._get_ready()
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
        self._visits = number
        if not number % _SUBMITS_PER_LOOK:
            self.tasks.deliver()
        return future

    def submit_items(self, fn: Callable[..., Any], items: list[tuple[Any, ...]]) -> TaskFuture:
        """The same for `fn(*item)` with each item, in one worker."""
        self._get_ready()
        function = self._define(fn)
        if isinstance(function, _Unsendable):
            return self.submit(type, (function,), {})
        future = ItemsFuture(self, len(items))
        self._send(future, function, items, future._settle_part, _CHUNK + _STAR)
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
            if self.tasks._forked:
                raise
            return _Unsendable(error)

    def _get_ready(self) -> None:
        if not self._is_awake:
            self._is_awake = True
            self._ring()
            # A worker may have died while nobody listened.
            self.tasks.deliver()
        if self._refuses or self.broken or self.tasks.is_closed:
            self._refuse()

    def _refuse(self) -> NoReturn:
        if self.tasks._forked:
            self.tasks._check_usable()
        self._note_broken()
        if self.broken:
            raise BrokenProcessPool(self.broken)
        raise RuntimeError(self._refuses or _AFTER_SHUTDOWN)

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

    # ---- waiting ---------------------------------------------------------------------------------

    def wait(self, done: Callable[[], bool], timeout: float | None) -> bool:
        """Runs the pool, in this thread, until `done()` or for `timeout` seconds."""
        tasks = self.tasks
        if timeout is not None and timeout <= 0:
            if not done():
                tasks.deliver()
            return done()
        deadline = None if timeout is None else time.monotonic() + timeout
        self._visits -= 1  # submit() counts the other way: it changes, whatever happens
        self._impatient.append(None)
        try:
            left = _LOOK if timeout is None else min(timeout, _LOOK)
            while not tasks.wait(done, left):
                if tasks.is_closed and not done():
                    time.sleep(_INSTANT)  # another thread is about to settle it
                if deadline is not None:
                    left = min(deadline - time.monotonic(), _LOOK)
                    if left <= 0:
                        return done()
            return True
        finally:
            self._impatient.pop()

    def tell_waiting(self) -> None:
        """Has threads that wait look again."""
        for told in list(self.tasks._waiting):
            with contextlib.suppress(RuntimeError):  # told already
                told.release()

    def watch(self) -> None:
        """From now on somebody counts on being told."""
        if not self._is_watched:
            self._is_watched = True
            self._ring()

    def loop_link(self) -> LoopLink | None:
        """What has the event loop of this thread deliver; `None` if no loop runs in it."""
        loops = self._loops
        if loops is None:
            from ._event_loop import LoopLinks

            loops = self.__dict__.setdefault("_made_loops", LoopLinks(self.tasks))
            self._loops = loops
        return loops.current()

    def call_back(self, future: TaskFuture) -> None:
        """Has the callbacks of a future called, soon."""
        self._to_call.append(future)
        self._ring()

    def let_call_back(self, callbacks: deque[Any]) -> None:
        """Gives callbacks the time to run, as they nearly always have in the original.

        A progress bar that is updated by them would end short of its end. They may need what this
        thread holds, so it does not wait for them.
        """
        if threading.current_thread() is self.thread:
            return
        for _ in range(_PATIENCE):
            if not callbacks:
                return
            time.sleep(_INSTANT)

    def _ring(self) -> None:
        # Whoever takes what is in it looks at everything after that.
        if self._bell.empty():
            self._bell.put(None)

    # ---- the thread ------------------------------------------------------------------------------

    def _look_after(self) -> None:
        try:
            self._deliver_until_the_end()
        except BaseException as error:  # a fault of this file: nobody may wait for ever
            self.broken = self.broken or f"the thread of the process pool failed: {error!r}"
            self.tasks.close(BrokenProcessPool(self.broken))
            raise
        finally:
            _pools.discard(self)
            self._call_back_all()

    def _deliver_until_the_end(self) -> None:
        tasks = self.tasks
        idle = visits = 0
        while not tasks.is_closed:
            self._call_back_all()
            if not tasks.outstanding:
                self._is_watched = False
                if tasks.outstanding:
                    self._is_watched = True
                elif self._refuses:
                    if not self._to_call:
                        tasks.close()
                elif idle < _LINGER:
                    idle += 1
                    self._sleep(_GRACE)
                else:
                    idle = 0
                    self._is_awake = False
                    # Who submits from here on rings; who did before is seen.
                    if not tasks.outstanding:
                        self._sleep(None)
                    self._is_awake = True
                continue
            idle = 0
            if self._is_watched or self._refuses:
                tasks.wait(self._has_news, _LOOK)
            elif self._loops is not None and self._loops.is_awaited():
                # The loops deliver, unless something keeps them from running.
                outstanding, visits = tasks.outstanding, self._visits
                self._sleep(_TAKE_OVER)
                if tasks.outstanding == outstanding and visits == self._visits:
                    tasks.deliver()
            elif self._impatient or visits != self._visits:
                visits = self._visits
                self._sleep(_GRACE)
            else:
                tasks.wait(self._is_not_needed, _LOOK)

    def _has_news(self) -> bool:
        return bool(self._to_call) or not self.tasks.outstanding

    def _is_not_needed(self) -> bool:
        return bool(self._impatient) or self._has_news()

    def _sleep(self, seconds: float | None) -> None:
        with contextlib.suppress(queue.Empty):
            self._bell.get(timeout=seconds)

    def _call_back_all(self) -> None:
        while self._to_call:
            self._to_call.popleft()._invoke_callbacks()

    # ---- the end ---------------------------------------------------------------------------------

    def shut_down(self, *, wait: bool, cancel_futures: bool = False, why: str = "") -> None:
        """What was submitted still runs; nothing more is taken. The pool ends by itself.

        With `cancel_futures` only what workers have, or are about to take, still runs.
        """
        if os.getpid() != self._pid:
            return
        self._refuses = self._refuses or why or _AFTER_SHUTDOWN
        if cancel_futures:
            waiting = sorted(self.futures, key=lambda future: future._number)
            running = [future for future in waiting if future.running()]
            waiting = [future for future in waiting if future not in running]
            free = max(0, self.tasks.num_workers - len(running))  # or still starting
            # From the last: what lies behind it would take its place at the workers' hands.
            for future in reversed(waiting[free:]):
                future.cancel()
        self._ring()
        if wait and threading.current_thread() is not self.thread:
            self.thread.join()

    def kill(self, why: str) -> None:
        """Ends the processes, also those that are stuck; what is not done fails."""
        if os.getpid() != self._pid:
            return
        self._refuses = self._refuses or _AFTER_SHUTDOWN
        if not self.tasks.is_closed:
            if self.tasks.outstanding:
                self.broken = self.broken or why
            self.tasks.close(BrokenProcessPool(why))
        self._ring()


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


# ---- the interpreter's end ---------------------------------------------------------------------

_pools: set[FuturePool] = set()
_exit_state = {"exiting": False}


def _finish_pools() -> None:
    """What was submitted is done before the interpreter ends, unless Ctrl-C is what ends it."""
    _exit_state["exiting"] = True
    pools = list(_pools)
    try:
        for pool in pools:
            pool.shut_down(wait=False, why=_AFTER_EXIT)
        ended_by = getattr(sys, "last_type", None)  # of a program, not of a session's line
        if ended_by is KeyboardInterrupt and not hasattr(sys, "ps1"):
            raise KeyboardInterrupt
        for pool in pools:
            pool.thread.join()
    except KeyboardInterrupt:
        for pool in pools:
            pool.kill("the program was interrupted")
        for pool in pools:
            pool.thread.join()


try:
    # Before threads are joined, and before exit handlers: those still find the pools' results.
    threading._register_atexit(_finish_pools)  # type: ignore[attr-defined]
except (AttributeError, RuntimeError):
    atexit.register(_finish_pools)

os.register_at_fork(after_in_child=_pools.clear)
