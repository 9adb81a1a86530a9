"""`ThreadPool`: the interface of `stook.Pool` over threads of this process."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from ._pool_arguments import (
    check_callback,
    check_chunksize,
    check_function,
    check_initargs,
    default_chunksize,
)
from ._pool_methods import PoolMethods
from ._results import AsyncResult, IMapIterator, MapResult
from ._threads_calls import Core, Feed, apply, map_chunk
from .options import check_int

__all__ = ["ThreadPool"]

_OWNER = "ThreadPool"


class ThreadPool(PoolMethods):
    """Threads behind the methods of `multiprocessing.pool.ThreadPool`, for code without the GIL.

    Results, exceptions and their order are those of the original. What differs:

    - `imap` and `imap_unordered` draw from their iterable as their results are taken, four chunks
      per thread ahead, so that an endless iterable takes bounded memory. `join()` draws the rest.
      An iterator that was begun and dropped draws no more.
    - After `terminate()`, results that are not there raise a `StookError` instead of never coming.
    - An error of the initializer is the error of every call, as a `PoolBroken`.
    - What a callback raises goes to `threading.excepthook`; the pool works on.

    A thread cannot be ended from outside. `terminate()`, dropping the pool and the interpreter's
    exit do not wait for one that is stuck in user code.

    Args:
      processes: Threads; `None`: as many as this process may use processors.
      initializer: Called as `initializer(*initargs)` in each thread, before any call.
      initargs: Its arguments.

    Raises:
      TypeError: An argument is of the wrong type.
      ValueError: `processes` is less than 1.

    Example:
      >>> import hashlib, stook
      >>> with stook.ThreadPool(2) as pool:
      ...     digests = pool.map(hashlib.sha256, [bytes(1 << 20), bytes(2 << 20)])
      ...     [digest.hexdigest()[:8] for digest in digests]
      ['30e14955', '5647f05e']
    """

    def __init__(
        self,
        processes: int | None = None,
        initializer: Callable[..., Any] | None = None,
        initargs: Iterable[Any] = (),
    ) -> None:
        if processes is None:
            processes = len(os.sched_getaffinity(0))
        self._processes = check_int(_OWNER, "processes", processes, 1)
        check_function("initializer", initializer)
        self._core = Core(self._processes, initializer, check_initargs(initargs))
        # Also at the interpreter's exit. The core does not know this object, so it can be dropped.
        self._finalizer = weakref.finalize(self, self._core.terminate)

    # ---- calls -----------------------------------------------------------------------------------

    def apply_async(
        self,
        func: Callable[..., Any],
        args: Iterable[Any] = (),
        kwds: Mapping[str, Any] | None = None,
        callback: Callable[[Any], Any] | None = None,
        error_callback: Callable[[BaseException], Any] | None = None,
    ) -> AsyncResult:
        """Starts `func(*args, **kwds)` and returns its result to come.

        Callbacks are called one at a time, in a thread of the pool, before `get()` returns.
        """
        core = self._core
        core.check_running()
        check_callback(callback, error_callback)
        result = AsyncResult(self, callback, error_callback)
        call = partial(apply, core, result, func, tuple(args), dict(kwds or {}))
        core.submit(call, result)
        return result

    def imap(
        self, func: Callable[[Any], Any], iterable: Iterable[Any], chunksize: int = 1
    ) -> IMapIterator:
        """Returns an iterator of `func(item)` in the items' order; see the class for its laziness.

        The iterable is iterated in threads of the pool, one at a time. An error of a call is raised
        in its place, and the iterator goes on; an error of the iterable comes last.
        """
        return self._imap(func, iterable, chunksize, ordered=True)

    def imap_unordered(
        self, func: Callable[[Any], Any], iterable: Iterable[Any], chunksize: int = 1
    ) -> IMapIterator:
        """As `imap`, in the order in which chunks are done."""
        return self._imap(func, iterable, chunksize, ordered=False)

    def _map(
        self,
        func: Callable[..., Any],
        star: bool,
        iterable: Iterable[Any],
        chunksize: int | None,
        background: bool,
        callback: Callable[[Any], Any] | None = None,
        error_callback: Callable[[BaseException], Any] | None = None,
    ) -> MapResult:
        core = self._core
        core.check_running()
        check_callback(callback, error_callback)
        if chunksize is not None:
            chunksize = check_chunksize(chunksize)
        items = list(iterable)
        if chunksize is None:
            chunksize = default_chunksize(len(items), self._processes)
        starts = range(0, len(items), chunksize)
        result = MapResult(self, len(items), len(starts), callback, error_callback)
        for start in starts:
            chunk = items[start : start + chunksize]
            core.submit(partial(map_chunk, core, result, func, star, start, chunk), result)
        return result

    def _imap(
        self, func: Callable[[Any], Any], iterable: Iterable[Any], chunksize: int, *, ordered: bool
    ) -> IMapIterator:
        core = self._core
        core.check_running()
        feed = Feed(core, func, iter(iterable), check_chunksize(chunksize), self._processes)
        iterator = IMapIterator(self, ordered=ordered, on_taken=feed.taken)
        feed.target = weakref.ref(iterator)
        core.start(feed, iterator)
        return iterator

    # ---- the end ---------------------------------------------------------------------------------

    def close(self) -> None:
        """Takes no more calls; the threads end when all that were made are done."""
        self._core.close()

    def terminate(self) -> None:
        """Ends the threads after the call that each is in; other calls are given up.

        Results that are not there then raise a `StookError`.
        """
        self._core.terminate()

    def join(self) -> None:
        """Waits until the threads have ended; `close()` or `terminate()` comes first.

        After `terminate()` it waits for calls under way for a second, and not for what is stuck.

        Raises:
          ValueError: The pool was neither closed nor terminated.
          RuntimeError: A thread of the pool would wait for itself.
        """
        self._core.join()

    def wait(self, done: Callable[[], bool], timeout: float | None = None) -> bool:
        """Blocks until `done()` is true, at most `timeout` seconds; returns `done()`.

        Results of this pool wait by it; it is asked again whenever a call has ended.
        """
        return self._core.wait(done, timeout)

    # What programs look at under its name in multiprocessing.
    @property
    def _state(self) -> str:
        return self._core.state

    @_state.setter
    def _state(self, state: str) -> None:
        self._core.state = state

    @property
    def _pool(self) -> list[threading.Thread]:
        """The threads, by the name under which programs look for them."""
        return self._core.crew.threads

    def __del__(self) -> None:
        if hasattr(self, "_finalizer"):  # it was made
            self._warn_if_running()  # and now the finalizer's turn comes

    def __repr__(self) -> str:
        if not hasattr(self, "_core"):
            return "<stook.ThreadPool (not made)>"
        return f"<stook.ThreadPool state={self._core.state} pool_size={self._processes}>"
