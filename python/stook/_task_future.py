"""The future of a call that runs in a worker process: a standard one that costs little."""

from __future__ import annotations

import concurrent.futures
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import _base
from typing import TYPE_CHECKING, Any

from ._pool_arguments import check_timeout

if TYPE_CHECKING:
    from ._futures import FuturePool

__all__ = ["ItemsCall", "ItemsFuture", "TaskFuture"]

_PENDING: str = _base.PENDING
_CANCELLED: str = _base.CANCELLED_AND_NOTIFIED
_FINISHED: str = _base.FINISHED
_ASYNCIO = "asyncio.futures"  # the module of the callback with which it wraps a future


class TaskFuture(concurrent.futures.Future):  # type: ignore[type-arg]
    """A `concurrent.futures.Future` that costs little where nobody but its owner looks at it.

    Its lock is made when somebody first asks for it, and from then on guards the state. Whether
    that or the result came first is decided by one atomic operation, on the entry `_guard` of its
    `__dict__`: the lock, or `None` if the result was first.
    """

    # Of those that nobody looked at. `_state` is PENDING, CANCELLED_AND_NOTIFIED or FINISHED.
    _state = _PENDING
    # The result is there, and the lock was not to be had (see _publish).
    _is_late = False
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
        if self._is_late:  # perhaps this thread is the one that has it
            self._publish_under_lock(0.0)
        if guard is None:  # settled before anybody asked
            self._state = _FINISHED
            guard = attributes.setdefault("_late_guard", threading.Condition())
        assert isinstance(guard, threading.Condition)
        return guard

    @property
    def _waiters(self) -> list[Any]:  # type: ignore[override]
        """Asked for with the lock held, by `wait` and `as_completed`."""
        waiters: list[Any] = self.__dict__.setdefault("_waiters_", [])
        self._pool.attendant.watch()
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
        """The result is there; now everybody may see it.

        Somebody may have the lock and never give it back: Ctrl-C in `concurrent.futures.wait`,
        which takes the locks of all its futures, may leave some locked. Neither whoever delivers
        nor whoever waits for this or another result is to hang for that. It is handed out without
        the lock, and those who can only be told under it are told when it is free.
        """
        if self.__dict__.setdefault("_guard", None) is None:
            self._state = _FINISHED
        elif not self._publish_under_lock(self._pool.attendant.lock_patience()):
            self._is_late = True
            self._pool.attendant.publish_later(self)
        self._pool.futures.discard(self)

    def _publish_under_lock(self, patience: float) -> bool:
        """False if the lock was not free within so many seconds."""
        guard: threading.Condition = self.__dict__["_guard"]
        if not guard.acquire(timeout=patience):
            return False
        try:
            if self._state == _PENDING:
                for waiter in self.__dict__.get("_waiters_", ()):
                    if self._exception is None:
                        waiter.add_result(self)
                    else:
                        waiter.add_exception(self)
                self._state = _FINISHED
                guard.notify_all()
        finally:
            guard.release()
        self._is_late = False
        self._tell_loops()
        if self.__dict__.get("_callbacks_"):
            self._pool.attendant.call_back(self)
        return True

    # ---- what its owner calls --------------------------------------------------------------------

    def result(self, timeout: float | None = None) -> Any:
        """As in `concurrent.futures`."""
        if self._state == _PENDING:
            self._wait(timeout)
        if self._state == _CANCELLED:
            raise concurrent.futures.CancelledError
        if self.__dict__.get("_callbacks_"):
            self._pool.attendant.let_call_back(self._done_callbacks)
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
        return self._state != _PENDING or self._is_late

    def _wait(self, timeout: float | None) -> None:
        check_timeout(timeout)
        if not self._pool.wait(self._is_settled, timeout):
            raise concurrent.futures.TimeoutError

    def done(self) -> bool:
        """As in `concurrent.futures`."""
        return self._state != _PENDING or self._is_late

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
            self._pool.tasks.wake()
            self._tell_loops()
            self._invoke_callbacks()
        return self._state == _CANCELLED

    def add_done_callback(self, fn: Callable[[Any], Any]) -> None:
        """As in `concurrent.futures`; runs on the pool's thread, or here if it is done."""
        link = None
        if getattr(fn, "__module__", None) == _ASYNCIO:
            link = self._pool.attendant.loop_link()
        with self._condition:
            if self._state == _PENDING:
                if link is not None and link.begin():
                    self.__dict__.setdefault("_awaiting", deque()).append((link, fn))
                    self._pool.attendant.step_aside()
                else:
                    self._done_callbacks.append(fn)
                    self._pool.attendant.watch()
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
