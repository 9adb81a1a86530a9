"""Worker processes that run calls given to them one by one: what the pools are made of."""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import functools
import itertools
import os
import queue
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

from . import _core
from ._elsewhere import StaysHere
from ._locks import release_all, renew_lock_in_child
from ._pickling import dump_function
from ._pool_task import Initializer, PoolTask, call_nothing
from ._signal_handlers import main_thread, runs_one
from ._start import crosses_by_name, forget_in_children, start_processes
from ._worker_handle import Death, WorkerHandle
from .errors import PoolBroken, StookError
from .options import MultiprocessingOptions

__all__ = ["Death", "Function", "TaskPool", "WorkerHandle"]

Function = _core.TaskFunction

# bindings/job_kinds.h
_CALL, _BATCH, _CHUNK, _STAR = 4, 5, 6, 2

# Jobs that may wait in the ring for each worker. They are claimed one by one, so nothing but memory
# is at stake, and arguments in bulk are bounded apart (bindings/task_queue.cpp).
_JOBS_AT_HAND = 32

# Seconds for which Ctrl-C, or a signal handler that keeps the main thread, may go unnoticed.
_LOOK = 0.2


class TaskPool(StaysHere):
    """Worker processes, and the tasks that are with them or wait for them.

    Tasks start in the order in which they were submitted. Each goes to its sink, `sink(ok, value)`,
    exactly once: on the thread that delivers, which is one that waits (`wait`), or the pool's own
    thread for tasks with `background=True`. A sink is short, and does not mind being called a
    second time with the same if a signal handler raised in the first call.

    Args:
      num_workers: Worker processes, at least 1.
      options: Everything else about them; `num_workers` and `on_worker_death` in it are not looked
        at.
      start_method: Takes the place of the options'.
      initializer: Called with `initargs` in each worker before its first task.
      initargs: See there.
      most_jobs: A worker ends, and is replaced, after so many jobs; 0: never.
      start_on_demand: A worker is started when there are more tasks than workers, so that there
        are never more than were needed at a time.
      on_death: Told of each worker that ended unasked, on the thread that delivers. It has been
        replaced by then.
      name: Of the pool's thread.
    """

    _lock: Any  # see _locks.py

    def __init__(
        self,
        num_workers: int,
        *,
        options: MultiprocessingOptions | None = None,
        start_method: str | None = None,
        initializer: Callable[..., Any] | None = None,
        initargs: tuple[Any, ...] = (),
        most_jobs: int = 0,
        start_on_demand: bool = False,
        on_death: Callable[[Death], None] | None = None,
        name: str = "stook-pool",
    ) -> None:
        options = options or MultiprocessingOptions()
        options = dataclasses.replace(
            options,
            num_workers=num_workers,
            per_worker_buffer_size=max(options.per_worker_buffer_size, _JOBS_AT_HAND),
            start_method=start_method or options.start_method,
            worker_init_fn=Initializer(initializer, tuple(initargs), options.worker_init_fn),
        )
        self.num_workers = num_workers
        self._name = name
        self._on_death = on_death
        self._exit_codes: dict[int, int] = {}
        self._closed = True  # until there is something to close
        self._forked = False
        self._closer = 0  # the thread that closes it
        self._has_ended = False  # and has done so
        self._ended = threading.Event()  # for those who wait for that
        self._waiting: list[Any] = []
        self._functions: dict[Any, Function] = {}
        # Those that cross by value: their last pickle, and what was made of it.
        self._last_made: weakref.WeakKeyDictionary[Any, tuple[bytes, Function]]
        self._last_made = weakref.WeakKeyDictionary()
        self._numbers = itertools.count(1)
        self._thread: threading.Thread | None = None
        self._thread_is_awake = False
        # Not a semaphore, which is Python code with a lock: a signal handler, or a finalizer, may
        # come in between.
        self._work: queue.SimpleQueue[None] = queue.SimpleQueue()
        renew_lock_in_child(self)
        self._core, self._logs = start_processes(
            {"initializer": initializer, "initargs": initargs},
            PoolTask(),
            options,
            any_order=True,
            most_jobs=most_jobs,
            start_on_demand=start_on_demand,
        )
        # Both by weak reference: the queue is reached from here alone.
        on_deaths = weakref.WeakMethod(self._note_deaths)
        waiting = self._waiting
        self._queue = _core.TaskQueue(
            self._core,
            waiting,
            lambda: release_all(waiting),
            lambda deaths: _call_if_alive(on_deaths, deaths),
        )
        self._closed = False
        forget_in_children(self)
        _open_pools.add(self)

    # ---- tasks -----------------------------------------------------------------------------------

    def function(self, function: Callable[..., Any]) -> Function:
        """Makes `function` one that the workers know.

        One that can be imported crosses once, by name. Others are pickled by each call of this, so
        that a closure which changed in between is not stale.

        Raises:
          StookError: It cannot be pickled; the message says what in it.
        """
        with contextlib.suppress(TypeError):  # not hashable
            known = self._functions.get(function)
            if known is not None:
                return known
        self._check_usable()
        definition = dump_function(function)  # the same object again if nothing has changed
        with contextlib.suppress(TypeError):  # not hashable, or no weak references
            last, made = self._last_made.get(function, (None, None))
            if last is definition and made is not None:
                return made
        made = Function(self._core, next(self._numbers), definition)
        with contextlib.suppress(TypeError):
            if crosses_by_name(function):
                self._functions[function] = made
            else:
                self._last_made[function] = definition, made
        return made

    def submit(
        self,
        function: Function,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
        *,
        sink: Callable[[bool, Any], None],
        background: bool = True,
    ) -> int:
        """Has `function(*args, **kwargs)` called in a worker; returns the task's number.

        Never waits. Without `background`, somebody has to `wait` for it.

        Raises:
          PoolBroken: The pool is closed.
        """
        number = self._queue.submit(function, (args, kwargs or None), sink, _CALL, background)
        if background and not self._thread_is_awake:
            self._wake_thread()
        return number

    def submission(
        self,
        function: Function,
        args: tuple[Any, ...],
        *,
        sink: Callable[[bool, Any], None],
    ) -> Callable[[], int]:
        """As `submission_of_items`, of a call that somebody waits for."""
        return functools.partial(self._queue.submit, function, (args, None), sink, _CALL, False)

    def submit_items(
        self,
        function: Function,
        items: list[Any],
        *,
        star: bool = False,
        may_split: bool = False,
        sink: Callable[[bool, list[Any], dict[int, BaseException] | None], None],
        background: bool = True,
    ) -> int:
        """Has `function(item)` (with `star`, `function(*item)`) called in one worker for each item.

        The sink gets `(True, results, errors)`: a result for each item, in order, and for those
        that failed `None` there and their exception in `errors`, by their place in `results`. It
        may be called several times, each time with the next items: a worker comes back early when
        the results grow large or, with `may_split`, when they take time; then another may go on.
        """
        submit = self.submission_of_items(
            function, items, star=star, may_split=may_split, sink=sink, background=background
        )
        number = submit()
        if background:
            self.deliver_in_background()
        return number

    def submission_of_items(
        self,
        function: Function,
        items: list[Any],
        *,
        star: bool,
        may_split: bool,
        sink: Callable[[bool, list[Any], dict[int, BaseException] | None], None],
        background: bool,
    ) -> Callable[[], int]:
        """What does as `submit_items` does when it is called, but for `deliver_in_background`.

        No Python code runs in its call before the pool has the task. If it raises anything but
        `PoolBroken`, that is a signal handler's exception, and the pool has the task.
        """
        kind = (_BATCH if may_split else _CHUNK) + (_STAR if star else 0)
        return functools.partial(self._queue.submit, function, items, sink, kind, background)

    def deliver_in_background(self) -> None:
        """Has the pool's own thread deliver while there are tasks with `background`."""
        if not self._thread_is_awake:
            self._wake_thread()

    def cancel(self, number: int) -> bool:
        """True if the task was not begun, and now never will be; its sink is not called then."""
        cancelled = self._queue.cancel(number)
        if cancelled:
            self.wake()
        return cancelled

    def is_running(self, number: int) -> bool:
        """True if a worker has the task: a look at shared memory, no question to the worker."""
        return self._queue.is_running(number)

    @property
    def outstanding(self) -> int:
        """Tasks of which something is still to come."""
        return self._queue.outstanding

    # ---- delivery --------------------------------------------------------------------------------

    def wait(self, done: Callable[[], Any], timeout: float | None = None) -> bool:
        """Returns whether `done()` became true within `timeout` seconds; delivers meanwhile.

        Raises whatever a signal handler raises meanwhile, as `KeyboardInterrupt`. If the pool
        breaks or is closed, what is outstanding has failed, and this returns.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        queue = self._queue
        while not done():
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return False
            answer = queue.pump(done, left)
            if answer is None:
                self._wait_for_pumper(done, left)
                continue
            if queue.broken is not None and not self._closed:
                self.close(queue.broken)
            elif not answer and self._closed:
                return self._wait_for_end(done, left)
        return True

    def wake(self) -> None:
        """Has all threads that `wait` look at their `done()` again; from any thread."""
        self._queue.wake()
        release_all(self._waiting)

    def _wait_for_end(self, done: Callable[[], Any], seconds: float | None) -> bool:
        """The pool is being closed: until what was outstanding has failed."""
        end = None if seconds is None else time.monotonic() + seconds
        while self._closer != threading.get_ident() and not self._has_ended:
            # The main thread sleeps through a signal that comes just before that.
            left = _LOOK if end is None else min(_LOOK, end - time.monotonic())
            if left <= 0:
                break
            self._ended.wait(left)
        return bool(done())

    def _wait_for_pumper(self, done: Callable[[], Any], seconds: float | None) -> None:
        """Until the thread that delivers has delivered something, or has gone."""
        queue = self._queue
        told = threading.Lock()
        told.acquire()
        self._waiting.append(told)
        try:
            # Who leaves the pump looks at the list after that, so one of both sees the other.
            if not queue.is_pumped or done():
                return
            most = threading.TIMEOUT_MAX if seconds is None else min(seconds, threading.TIMEOUT_MAX)
            # The main thread sleeps through a signal that comes just before that. And where a
            # handler has interrupted it in the pump, it tells nobody.
            if queue.is_pumped_by_main or threading.get_ident() == main_thread():
                most = min(most, _LOOK)
            if not told.acquire(timeout=most):
                self.pass_handlers()
        finally:
            with contextlib.suppress(ValueError):
                self._waiting.remove(told)

    def pass_handlers(self) -> None:
        """Lets who waits deliver if a signal handler keeps the main thread from it."""
        queue = self._queue
        if queue.is_pumped_by_main and runs_one():
            queue.pass_on()

    def fileno(self) -> int:
        """A descriptor that is readable after `arm()` when there is something to deliver."""
        return self._queue.fileno()

    def arm(self) -> bool:
        """True if there is nothing to deliver now, and `fileno()` will tell; False: deliver."""
        return self._closed or self._queue.arm()

    def deliver(self) -> int:
        """Calls the sinks of what is there, without waiting; returns how many jobs it was."""
        delivered = 0

        def once() -> bool:
            nonlocal delivered
            delivered += 1
            return delivered > 1

        before = self._queue.outstanding
        self._queue.pump(once, 0.0)
        if self._queue.broken is not None and not self._closed:
            self.close(self._queue.broken)
        return before - self._queue.outstanding

    def _wake_thread(self) -> None:
        with self._lock:
            if self._thread_is_awake or self._closed:
                return
            self._thread_is_awake = True
            if self._thread is None:
                self._thread = threading.Thread(
                    target=_deliver_in_background,
                    args=(weakref.ref(self), self._work),
                    name=self._name,
                    daemon=True,
                )
                self._thread.start()
        self._work.put(None)

    def _has_no_background_work(self) -> bool:
        return self._closed or self._queue.outstanding_in_background == 0

    # ---- processes -------------------------------------------------------------------------------

    def workers(self) -> list[WorkerHandle]:
        """The worker processes there are; waits until those that were asked for are up."""

        def are_up() -> bool:
            return self._closed or len(self._core.worker_pids) >= self._core.workers_alive

        # By the clock: who delivers meanwhile hears of them, and tells nobody.
        end = time.monotonic() + 60.0
        while not are_up() and time.monotonic() < end:
            self.wait(are_up, 0.02)
        return [WorkerHandle(self._exit_codes, pid) for pid in self._core.worker_pids]

    def _note_deaths(self, deaths: list[tuple[int, int, int]]) -> None:
        for worker, pid, status in deaths:
            death = Death(worker, pid, os.waitstatus_to_exitcode(status))
            self._exit_codes[pid] = death.exit_code
            if self._on_death is not None:
                self._on_death(death)

    def _check_usable(self) -> None:
        if self._forked:
            raise StookError(
                "this pool belongs to the process that made it, and this is a forked child of it;"
                " make a pool here"
            )
        if self._closed:
            raise PoolBroken("this pool is closed")

    @property
    def is_closed(self) -> bool:
        return self._closed

    def close(self, error: BaseException | None = None) -> None:
        """Ends every process at once. What is outstanding fails with `error`.

        Arrays that were delivered stay valid. A signal handler that raises does not stop it.
        """
        error = error or PoolBroken("the pool was closed before this task ran")
        begins = False
        try:
            with self._lock:
                if not self._closed:
                    self._closer = threading.get_ident()
                    self._closed = begins = True
            if begins:
                self._queue.close()
                _core.sweep_leftover_segments()
                self._logs.close()
        finally:
            # Where a handler may raise, which is after any call, what follows is in a `finally`.
            if begins:
                try:
                    self._queue.close()  # nothing, unless it was not begun
                finally:
                    try:
                        self._queue.fail_all(error)
                    finally:
                        self._has_ended = True
                        self._ended.set()
                        release_all(self._waiting)
                        self._work.put(None)
                        self._functions.clear()
                        self._last_made.clear()

    def finish(self, timeout: float | None = None) -> bool:
        """Ends every process in good order, once what was submitted is done, and closes the pool.

        Workers run the finalizers of `multiprocessing.util`, as its processes do when they end.

        Returns:
          False if that took longer than `timeout` seconds: the pool then is as it was, but for the
          workers that have ended.
        """
        end = None if timeout is None else time.monotonic() + timeout
        # First: of a task with items, the rest may have to be sent again.
        if not self.wait(lambda: self._closed or self.outstanding == 0, timeout):
            return False
        while not self._closed and self._core.workers_alive:
            left = None if end is None else end - time.monotonic()
            if left is not None and left <= 0:
                return False
            self._queue.retire_workers(self.function(call_nothing), call_nothing)
            # One that is killed before it can follow has a successor: it is asked in its turn.
            self.wait(
                lambda: self._closed or self._core.workers_alive == 0,
                0.5 if left is None else min(left, 0.5),
            )
        self.close()
        return True

    def _forget(self) -> None:
        """In a forked child: everything is its parent's, and stays with it."""
        self._forked = self._closed = self._has_ended = True
        self._ended.set()
        self._core.close()
        self._logs.forget()
        self._waiting.clear()

    def __del__(self) -> None:
        if not getattr(self, "_closed", True):
            self.close()


_open_pools: weakref.WeakSet[TaskPool] = weakref.WeakSet()


@atexit.register
def _close_pools() -> None:
    for pool in list(_open_pools):
        pool.close()


def _call_if_alive(method: Any, *args: Any) -> None:
    bound = method()
    if bound is not None:
        bound(*args)


def _deliver_in_background(reference: weakref.ref[TaskPool], work: queue.SimpleQueue[None]) -> None:
    """The pool's own thread: delivers while there are tasks that somebody counts on it for."""
    while True:
        work.get()
        pool = reference()
        if pool is None or pool._closed:
            return
        while True:
            pool.wait(pool._has_no_background_work)
            pool._thread_is_awake = False
            # Who submitted in between saw the thread awake.
            if pool._has_no_background_work() or pool._thread_is_awake:
                break
            pool._thread_is_awake = True
        if pool._closed:
            return
        del pool
