"""`ProcessPoolExecutor`: `concurrent.futures`, over workers that hand arrays over."""

from __future__ import annotations

import concurrent.futures.process
import contextlib
import itertools
import multiprocessing
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import _base
from concurrent.futures.process import BrokenProcessPool
from types import TracebackType
from typing import Any

from ._elsewhere import StaysHere
from ._futures import FuturePool, ItemsCall, TaskFuture
from ._locks import renew_lock_in_child
from ._pool_arguments import (
    check_chunksize,
    check_function,
    check_initargs,
    check_options,
    check_timeout,
    check_workers,
)
from ._task_pool import WorkerHandle
from .errors import StookError
from .options import MultiprocessingOptions, _shown

__all__ = ["ProcessPoolExecutor"]


class _Initializer:
    """An initializer whose failure the worker logs, as the original's workers do."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *arguments: Any) -> None:
        try:
            self._function(*arguments)
        except BaseException:
            _base.LOGGER.critical("Exception in initializer:", exc_info=True)
            raise


class _NoQueue:
    """Stands for the call queue of the original: there is none here, and nothing to wait for."""

    def close(self) -> None:
        pass

    def join_thread(self) -> None:
        pass


class ProcessPoolExecutor(StaysHere, concurrent.futures.process.ProcessPoolExecutor):
    """A `concurrent.futures.ProcessPoolExecutor` whose workers hand arrays over in shared memory.

    It has the interface of Python 3.14 on every Python, and is an instance of the standard class.
    Arrays in arguments are copied once on each side; a `SharedMemoryArray` crosses as a handle;
    arrays in results are moved, as in `stook.DataLoader`. Functions need not be importable: one
    that is crosses once; a lambda, a closure or a function of `__main__` is pickled by each
    `submit`, so that it is never stale.

    A worker that dies breaks the pool, as in the original. With
    `options=MultiprocessingOptions(on_worker_death="restart")` only what it was working on fails,
    with `stook.WorkerDied`, and another takes its place.

    Args:
      max_workers: Processes; `None`: as many as this process may use processors, or the options'
        `num_workers`.
      mp_context: Only its start method is taken: `"fork"`, or else `"forkserver"`. `None`: the
        options', or else `"forkserver"`; `"fork"` if `initializer` or `initargs` cannot be sent to
        a fresh interpreter, and it is what `multiprocessing` would do.
      initializer: Called as `initializer(*initargs)` in each worker before its first call. If it
        raises, the worker logs it, and the pool is broken.
      initargs: Its arguments.
      max_tasks_per_child: A worker ends, and is replaced, after so many calls; not with `"fork"`.
      options: Everything else about the workers.

    Raises:
      TypeError: An argument is of the wrong type.
      ValueError: `max_workers` or `max_tasks_per_child` is less than 1, or the latter is given
        with the start method `"fork"`.

    Example:
      >>> import numpy as np, stook
      >>> with stook.ProcessPoolExecutor(2) as executor:
      ...     future = executor.submit(np.full, (2, 3), 7, np.uint8)
      ...     array = future.result()
      >>> array.shape, stook.is_shared(array)
      ((2, 3), False)
      >>> with stook.ProcessPoolExecutor(2) as executor:
      ...     list(executor.map(lambda x: x * x, range(5)))
      [0, 1, 4, 9, 16]
    """

    _lock: Any  # see _locks.py; a signal handler may use the executor at any moment

    def __init__(
        self,
        max_workers: int | None = None,
        mp_context: Any = None,
        initializer: Callable[..., Any] | None = None,
        initargs: tuple[Any, ...] = (),
        *,
        max_tasks_per_child: int | None = None,
        options: MultiprocessingOptions | None = None,
    ) -> None:
        # Not the original's, which makes queues and semaphores.
        self._pool: FuturePool | None = None
        self._is_shut_down = False
        self._was_broken: str | bool = False
        renew_lock_in_child(self)
        self._handles: dict[int, WorkerHandle] | None = {}
        check_options(options)
        if max_workers is None:
            max_workers = (options.num_workers if options else 0) or _processors()
        self._max_workers = check_workers(
            "max_workers", max_workers, "max_workers must be greater than 0"
        )
        # Nobody has said how workers are started, and the original's would be forked.
        self._may_fork = (
            mp_context is None
            and options is None
            and max_tasks_per_child is None
            and multiprocessing.get_start_method() == "fork"
        )
        if mp_context is None:
            method = options.start_method if options else None
            if max_tasks_per_child is not None and method is None:
                method = "spawn"
            mp_context = multiprocessing.get_context(method or "forkserver")
        elif not hasattr(mp_context, "get_start_method"):
            raise TypeError(
                "mp_context must be a context, as multiprocessing.get_context() gives, not"
                f" {mp_context!r}"
            )
        self._mp_context = mp_context
        self._start_method = (
            "fork" if mp_context.get_start_method(allow_none=False) == "fork" else "forkserver"
        )
        check_function("initializer", initializer)
        self._initializer = initializer
        self._initargs = check_initargs(initargs)
        if max_tasks_per_child is not None:
            if not isinstance(max_tasks_per_child, int):
                raise TypeError(
                    f"max_tasks_per_child must be an integer, got {_shown(max_tasks_per_child)}"
                )
            if max_tasks_per_child <= 0:
                raise ValueError(f"max_tasks_per_child must be >= 1, got {max_tasks_per_child}")
            if self._start_method == "fork":
                raise ValueError(
                    "max_tasks_per_child is incompatible with the 'fork' multiprocessing start"
                    " method; supply a different mp_context."
                )
        self._max_tasks_per_child = max_tasks_per_child
        self._options = options

    # ---- tasks -----------------------------------------------------------------------------------

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> TaskFuture:
        """Has `fn(*args, **kwargs)` called in a worker.

        Returns:
          A `concurrent.futures.Future`. Its `cancel` succeeds until a worker begins the call. What
          cannot be pickled is its error, and so is a worker's death (`BrokenProcessPool`). Without
          anybody waiting, its result is there within a few milliseconds of the call's end.

        Raises:
          RuntimeError: After `shutdown`, or at the interpreter's exit.
          BrokenProcessPool: The pool is broken. (Also a `RuntimeError`.)
        """
        pool = self._pool
        if pool is None:
            pool = self._start()
        return pool.submit(fn, args, kwargs)

    def map(
        self,
        fn: Callable[..., Any],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[Any]:
        """As `map(fn, *iterables)`, by the workers, in order.

        Args:
          fn: Called with one item of each iterable.
          *iterables: As many calls are made as the shortest has items.
          timeout: Seconds from now until the last result has to be there.
          chunksize: Calls that go to a worker as one task; results come back as they did.
          buffersize: Tasks that may be submitted and not yet taken by whoever iterates; `None`:
            all are submitted at once, and the iterables drawn to their end.

        Returns:
          An iterator over the results. It raises `TimeoutError`, or what `fn` raised, in its place;
          the calls behind that are then cancelled, as they are if the iterator is dropped.

        Raises:
          TypeError: `buffersize` is no integer.
          ValueError: `chunksize` or `buffersize` is less than 1.
          RuntimeError: See `submit`.
        """
        chunksize = check_chunksize(chunksize, lambda size: f"chunksize must be >= 1, got {size}")
        if buffersize is not None and not isinstance(buffersize, int):
            raise TypeError(f"buffersize must be an integer or None, got {_shown(buffersize)}")
        if buffersize is not None and buffersize < 1:
            raise ValueError(f"buffersize must be None or > 0, got {buffersize}")
        check_timeout(timeout)
        deadline = None if timeout is None else timeout + time.monotonic()
        calls = zip(*iterables, strict=False)
        if chunksize == 1:
            pending = (self.submit(fn, *call) for call in calls)
            take = _take_result
        else:
            chunks = iter(lambda: list(itertools.islice(calls, chunksize)), [])
            pending = (self.submit(ItemsCall(fn, chunk)) for chunk in chunks)
            take = _take_results
        futures = deque(pending if buffersize is None else itertools.islice(pending, buffersize))
        return take(futures, iter(()) if buffersize is None else pending, deadline)

    # ---- processes -------------------------------------------------------------------------------

    def _start(self) -> FuturePool:
        """Starts the workers, at the first task."""
        with self._lock:
            if self._was_broken:
                raise BrokenProcessPool(self._was_broken)
            if self._is_shut_down:
                raise RuntimeError("cannot schedule new futures after shutdown")
            if self._pool is not None:
                return self._pool
            try:
                pool = self._make_pool(self._start_method)
            except StookError as error:
                # A lock of multiprocessing's default context, say, which the original inherits.
                if not self._may_fork or "cannot be sent" not in str(error):
                    raise
                self._mp_context = multiprocessing.get_context("fork")
                pool = self._make_pool("fork")
            if self._adopt(pool):
                return pool
        pool.kill("a signal handler was faster")
        return self._start()

    def _adopt(self, pool: FuturePool) -> bool:
        """False if a signal handler has come meanwhile, and started or ended the executor."""
        if self._pool is not None or self._is_shut_down:
            return False
        self._pool = pool
        return True

    def _make_pool(self, start_method: str) -> FuturePool:
        initializer = self._initializer
        return FuturePool(
            self._max_workers,
            breaks=self._options is None or self._options.on_worker_death != "restart",
            name="stook-executor",
            options=self._options,
            start_method=start_method,
            initializer=None if initializer is None else _Initializer(initializer),
            initargs=self._initargs,
            most_jobs=self._max_tasks_per_child or 0,
            start_on_demand=start_method != "fork",
        )

    @property
    def _processes(self) -> dict[int, WorkerHandle] | None:  # type: ignore[override]
        handles, pool = self._handles, self._pool
        if handles is not None and pool is not None and not pool.tasks.is_closed:
            workers = {worker.pid: worker for worker in pool.tasks.workers()}
            for pid in set(handles) - set(workers):
                del handles[pid]
            for pid, worker in workers.items():
                handles.setdefault(pid, worker)
        return handles

    @property
    def _executor_manager_thread(self) -> threading.Thread | None:  # type: ignore[override]
        return None if self._pool is None or self._is_shut_down else self._pool.thread

    @property
    def _call_queue(self) -> _NoQueue | None:
        return None if self._is_shut_down else _NoQueue()

    @property
    def _broken(self) -> str | bool:  # type: ignore[override]
        if self._pool is None:
            return self._was_broken
        self._pool._note_broken()
        return self._pool.broken or False

    # ---- the end ---------------------------------------------------------------------------------

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Takes no more tasks. Those that were submitted are done, then the workers end.

        Args:
          wait: Return when all that has happened, callbacks included, instead of at once.
          cancel_futures: Cancel what no worker has begun, or is free to begin right now.
        """
        with self._lock:
            self._is_shut_down = True
            self._handles = None
        pool = self._pool
        if pool is not None:
            pool.shut_down(wait=wait, cancel_futures=cancel_futures)
            if not pool.thread.is_alive():  # its memory goes with it, and with its futures
                self._was_broken = self._broken
                self._pool = None

    def terminate_workers(self) -> None:
        """Sends every worker SIGTERM; what no worker has begun is cancelled, the rest is broken.

        A worker that ignores that signal goes on: see `kill_workers`.
        """
        workers = dict(self._processes or {})
        self.shutdown(wait=False, cancel_futures=True)
        for worker in workers.values():
            worker.terminate()

    def kill_workers(self) -> None:
        """Kills every worker; what none has begun is cancelled, the rest is broken.

        Returns when the futures say so.
        """
        self.shutdown(wait=False, cancel_futures=True)
        if self._pool is not None:
            self._pool.kill("the workers of the process pool were killed by kill_workers()")

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        """Shuts down and waits; does not wait for anything if Ctrl-C is what ends the block."""
        if exc_type is not None and issubclass(exc_type, KeyboardInterrupt):
            self._abandon()
            return
        try:
            self.shutdown(wait=True)
        except KeyboardInterrupt:
            self._abandon()
            raise

    def _abandon(self) -> None:
        self.shutdown(wait=False, cancel_futures=True)
        if self._pool is not None:
            self._pool.kill("the program was interrupted")
        self.shutdown(wait=True)

    def __del__(self) -> None:
        pool = getattr(self, "_pool", None)
        if pool is not None:
            with contextlib.suppress(AttributeError, TypeError):  # the interpreter is at its end
                pool.shut_down(wait=False)


def _processors() -> int:
    return len(os.sched_getaffinity(0)) or 1


# Neither holds on to what it yields.


def _take_result(
    futures: deque[TaskFuture], more: Iterator[TaskFuture], deadline: float | None
) -> Iterator[Any]:
    try:
        while futures:
            futures.extend(itertools.islice(more, 1))
            yield _result_of(futures.popleft(), deadline)
    finally:
        for future in reversed(futures):
            future.cancel()


def _take_results(
    futures: deque[TaskFuture], more: Iterator[TaskFuture], deadline: float | None
) -> Iterator[Any]:
    try:
        while futures:
            futures.extend(itertools.islice(more, 1))
            results, errors = _result_of(futures.popleft(), deadline)
            results.reverse()
            place = 0
            while results:
                if place in errors:
                    raise errors.pop(place)
                place += 1
                yield results.pop()
    finally:
        for future in reversed(futures):
            future.cancel()


def _result_of(future: TaskFuture, deadline: float | None) -> Any:
    try:
        return future.result(None if deadline is None else deadline - time.monotonic())
    finally:
        future.cancel()
        del future
