"""`Pool`: the interface of `multiprocessing.Pool` over workers that hand over arrays."""

from __future__ import annotations

import atexit
import contextlib
import os
import time
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ._elsewhere import StaysHere
from ._imap import IMapFeed, IMapIterator
from ._map import MapFeed, PoolTerminated, Result
from ._pool_arguments import (
    check_callback,
    check_chunksize,
    check_function,
    check_initargs,
    check_options,
    check_workers,
    default_chunksize,
    method_of,
)
from ._pool_methods import CLOSE, INIT, RUN, TERMINATE, PoolMethods
from ._results import AsyncResult
from ._streams import Pace
from ._task_pool import TaskPool, WorkerHandle
from .errors import PoolBroken, StookError
from .options import MultiprocessingOptions, _shown

__all__ = ["Pool"]

# Jobs per worker that a `map` with many chunks has sent at a time, and the most items in a job if
# the chunks are of our own choice: with large ones, sending and running would not overlap.
_JOBS_AHEAD = 8
_MOST_ITEMS = 1000

# After which `join` asks workers to end again: one may have been killed before it could.
_ASK_AGAIN_SECONDS = 0.05

# How long the results of a pool may take to hear of its end.
_CLOSING_SECONDS = 5.0


class Pool(PoolMethods, StaysHere):
    """Worker processes behind the methods of `multiprocessing.Pool`; arrays are not pickled.

    Results, exceptions, their order and their remote tracebacks are those of the original. What
    differs (docs/pools.md has the reasons):

    - A worker that is killed costs the calls it was in, whose error is `WorkerDied`, at once; the
      pool goes on. In the original their results never come.
    - `imap` and `imap_unordered` draw from their iterable as results are taken, four jobs ahead for
      each worker, so an endless iterable takes bounded memory. `join()` draws the rest. An iterator
      that was begun and dropped draws no more.
    - Any function can be called: lambdas, closures, functions of `__main__` or of a notebook.
    - After `terminate()`, results that are not there raise a `StookError` instead of never coming.
    - An error of the initializer is the error of every call; no workers are started for ever.
    - What a callback raises goes to `threading.excepthook`; the pool works on. Callbacks run in a
      thread of the pool, or in one that waits for a result of it.

    Args:
      processes: Worker processes; `None`: as many as this process may use processors.
      initializer: Called as `initializer(*initargs)` in each worker, before any call.
      initargs: Its arguments.
      maxtasksperchild: A worker ends, and a fresh one takes its place, after so many tasks (calls
        of `apply`, chunks of the others); `None`: never.
      context: A context of `multiprocessing`, or its name: another way to say `start_method`.
      start_method: "forkserver", "spawn" (the same) or "fork"; `None`: that of `options`.
      options: What else there is to say about worker processes; its `num_workers` is not looked at.

    Raises:
      TypeError: An argument is of the wrong type.
      ValueError: `processes` is less than 1; `maxtasksperchild` is no positive integer.
      StookError: The initializer or its arguments cannot be sent to the workers.
      OSError: The system refuses processes, descriptors or memory.

    Example:
      >>> import numpy as np
      >>> import stook
      >>> with stook.Pool(2) as pool:
      ...     squares = pool.map(lambda n: n * n, range(5))
      ...     sizes = [array.nbytes for array in pool.imap(np.zeros, [10, 100_000])]
      >>> squares, sizes
      ([0, 1, 4, 9, 16], [80, 800000])
    """

    def __init__(
        self,
        processes: int | None = None,
        initializer: Callable[..., Any] | None = None,
        initargs: Iterable[Any] = (),
        maxtasksperchild: int | None = None,
        context: Any = None,
        *,
        start_method: str | None = None,
        options: MultiprocessingOptions | None = None,
    ) -> None:
        if processes is None:
            processes = len(os.sched_getaffinity(0))
        processes = check_workers("processes", processes, "Number of processes must be at least 1")
        limit: object = maxtasksperchild
        if limit is not None and (not isinstance(limit, int) or limit <= 0):
            raise ValueError(
                f"maxtasksperchild must be a positive int or None, got {_shown(maxtasksperchild)}"
            )
        check_function("initializer", initializer)
        initargs = check_initargs(initargs)
        check_options(options)
        if context is not None:
            if start_method is not None:
                raise TypeError(
                    f"context and start_method={start_method!r} say the same; pass one of them"
                )
            start_method = method_of(context)
        self._processes = processes
        self._maxtasksperchild = maxtasksperchild
        self._pid = os.getpid()
        self._handles: list[WorkerHandle] = []
        # Of those that draw from an iterable still.
        self._feeds: set[IMapFeed] = set()
        self._tasks = TaskPool(
            processes,
            options=options,
            start_method=start_method,
            initializer=initializer,
            initargs=initargs,
            most_jobs=maxtasksperchild or 0,
        )
        # As in the original, the processes are there when this returns; they need not be set up.
        self._refresh_handles()
        self._state = RUN
        _open_pools.add(self)

    # ---- calls -----------------------------------------------------------------------------------

    def apply(
        self,
        func: Callable[..., Any],
        args: Iterable[Any] = (),
        kwds: Mapping[str, Any] | None = None,
    ) -> Any:
        """Returns `func(*args, **kwds)`, called in a worker."""
        self._check_running()
        result = Result(self)
        self._submit(result, func, args, kwds, self._tasks._queue.is_pumped)
        return result.get()

    def apply_async(
        self,
        func: Callable[..., Any],
        args: Iterable[Any] = (),
        kwds: Mapping[str, Any] | None = None,
        callback: Callable[[Any], Any] | None = None,
        error_callback: Callable[[BaseException], Any] | None = None,
    ) -> AsyncResult:
        """Starts `func(*args, **kwds)` and returns its result to come.

        Callbacks are called one at a time, before `get()` returns.
        """
        self._check_running()
        check_callback(callback, error_callback)
        result = Result(self, callback, error_callback)
        self._submit(result, func, args, kwds, True)
        return result

    def _submit(
        self,
        result: Result,
        func: Callable[..., Any],
        args: Iterable[Any],
        kwds: Mapping[str, Any] | None,
        background: bool,
    ) -> None:
        tasks = self._tasks
        try:
            tasks.submit(
                tasks.function(func),
                tuple(args),
                dict(kwds) if kwds else None,
                sink=result._set,
                background=background,
            )
        except PoolBroken:
            self._check_running()
            raise
        except Exception as error:
            result._set(False, error)

    def imap(
        self, func: Callable[[Any], Any], iterable: Iterable[Any], chunksize: int = 1
    ) -> IMapIterator:
        """Returns an iterator of `func(item)` in the items' order; see the class for its laziness.

        A list, range, array or other plain container is iterated by whoever takes results; any
        other iterable by a thread of its own, for it may wait for something that the consumer does
        later. An error of a call is raised in its place, and the iterator goes on; an error of the
        iterable comes last.

        Example:
          >>> import itertools, stook
          >>> with stook.Pool(2) as pool:
          ...     squares = pool.imap(lambda n: n * n, itertools.count())
          ...     [next(squares) for _ in range(4)]
          [0, 1, 4, 9]
        """
        return self._imap(func, iterable, chunksize, True)

    def imap_unordered(
        self, func: Callable[[Any], Any], iterable: Iterable[Any], chunksize: int = 1
    ) -> IMapIterator:
        """As `imap`, in the order in which results come."""
        return self._imap(func, iterable, chunksize, False)

    def _map(
        self,
        func: Callable[..., Any],
        star: bool,
        iterable: Iterable[Any],
        chunksize: int | None,
        background: bool,
        callback: Callable[[Any], Any] | None = None,
        error_callback: Callable[[BaseException], Any] | None = None,
    ) -> Result:
        self._check_running()
        check_callback(callback, error_callback)
        if chunksize is not None:
            chunksize = check_chunksize(chunksize)
        tasks = self._tasks
        result = Result(self, callback, error_callback)
        try:
            items: Any = iterable
            if not isinstance(iterable, (list, tuple, range)):
                items = list(iterable)
            function = tasks.function(func)
        except PoolBroken:
            raise
        except Exception as error:
            if not hasattr(iterable, "__len__"):
                raise
            result._set(False, error)
            return result
        length = len(items)
        if length == 0:  # nobody is called back, as in multiprocessing
            result._callback = None
        pace = None
        jobs_ahead = 0
        if chunksize is None:
            chunksize = default_chunksize(length, self._processes)
            if self._maxtasksperchild is None:
                chunksize = min(chunksize, _MOST_ITEMS)
                jobs_ahead = _JOBS_AHEAD
        elif self._maxtasksperchild is None:
            pace = Pace(tasks, chunksize)
            jobs_ahead = _JOBS_AHEAD
        feed = MapFeed(
            tasks,
            function,
            items,
            chunksize=chunksize,
            star=star,
            pace=pace,
            jobs_ahead=jobs_ahead,
            # Who delivers and sleeps is not woken by what is submitted for another to wait for.
            background=background or tasks._queue.is_pumped,
        )
        feed.start(result, length)
        return result

    def _imap(
        self, func: Callable[[Any], Any], iterable: Iterable[Any], chunksize: int, ordered: bool
    ) -> IMapIterator:
        self._check_running()
        chunksize = check_chunksize(chunksize)
        tasks = self._tasks
        feed = IMapFeed(
            tasks,
            tasks.function(func),
            iterable,
            chunksize=chunksize,
            pace=Pace(tasks, chunksize) if self._maxtasksperchild is None else None,
            ordered=ordered,
            on_done=self._feeds.discard,
        )
        if not feed.is_over():
            self._feeds.add(feed)
            if feed.is_over():  # meanwhile
                self._feeds.discard(feed)
        return IMapIterator(self, feed)

    # ---- the end ---------------------------------------------------------------------------------

    def close(self) -> None:
        """Takes no more calls; `join()` then waits for those that were made."""
        self._check_process()
        if self._state == RUN:
            self._state = CLOSE

    def terminate(self) -> None:
        """Ends the workers at once, also in the middle of a call.

        Results that are not there then raise a `StookError`.
        """
        self._check_process()
        self._state = TERMINATE
        self._end()

    def join(self) -> None:
        """Waits until the workers have ended; `close()` or `terminate()` comes first.

        After `close()` every call is made, the iterables of `imap` are drawn to their ends, and the
        workers run the finalizers of `multiprocessing.util`.

        Raises:
          ValueError: The pool was neither closed nor terminated.
        """
        self._check_process()
        if self._state == RUN:
            raise ValueError("Pool is still running")
        if self._state not in (CLOSE, TERMINATE):
            raise ValueError("In unknown state")
        if self._state == TERMINATE:
            self._end()
            return
        tasks = self._tasks
        feeds = self._feeds
        for feed in list(feeds):
            feed.draw_all()

        def all_done() -> bool:
            return tasks.is_closed or not (feeds or tasks.outstanding)

        tasks.wait(all_done)
        self._refresh_handles()
        # Asked again: a worker that ended of its own meanwhile, or was killed, has not heard it.
        while not tasks.finish(_ASK_AGAIN_SECONDS):
            if tasks._core.workers_alive == 0:
                tasks.close()

    def wait(self, done: Callable[[], bool], timeout: float | None = None) -> bool:
        """Blocks until `done()` is true, at most `timeout` seconds; returns `done()`.

        Results of this pool wait by it. The thread that waits may be the one that delivers, and
        then runs callbacks.
        """
        self._check_process()
        tasks = self._tasks
        answer = tasks.wait(done, timeout)
        if not answer and tasks.is_closed:
            # Another thread closes it, and is about to say so to all results.
            end = time.monotonic() + (_CLOSING_SECONDS if timeout is None else timeout)
            while not done() and tasks.outstanding and time.monotonic() < end:
                time.sleep(0.001)
            answer = done()
        return answer

    def _end(self) -> None:
        error = PoolTerminated("the pool was terminated before this result was there")
        for feed in list(self._feeds):
            feed.end(error)
        self._tasks.close(error)

    @property
    def _pool(self) -> list[WorkerHandle]:
        """The worker processes, by the name under which programs look for them."""
        self._refresh_handles()
        return self._handles

    def _refresh_handles(self) -> None:
        if self._tasks.is_closed:
            return
        known = {handle.pid: handle for handle in self._handles}
        self._handles = [known.get(now.pid, now) for now in self._tasks.workers()]

    def _repopulate_pool(self) -> None:
        """Waits until the workers that have ended are replaced."""
        self._refresh_handles()

    def _check_running(self) -> None:
        if self._state != RUN:
            raise ValueError("Pool not running")
        if self._tasks.is_closed:
            self._check_process()
            broken = PoolBroken("the worker processes of this pool are gone; make another pool")
            broken.__cause__ = self._tasks._queue.broken
            raise broken

    def _check_process(self) -> None:
        if os.getpid() != self._pid:
            raise StookError(
                "this pool belongs to the process that made it, and this is a forked child of it;"
                " make a pool here"
            )

    def __del__(self) -> None:
        if self._state == INIT or os.getpid() != self._pid:
            return
        self._warn_if_running()
        with contextlib.suppress(Exception):
            self._end()

    def __repr__(self) -> str:
        name = f"{type(self).__module__}.{type(self).__qualname__}"
        return f"<{name} state={self._state} pool_size={getattr(self, '_processes', 0)}>"


_open_pools: weakref.WeakSet[Pool] = weakref.WeakSet()


@atexit.register
def _end_pools() -> None:
    for pool in list(_open_pools):
        if os.getpid() == pool._pid:
            pool._state = TERMINATE
            pool._end()
