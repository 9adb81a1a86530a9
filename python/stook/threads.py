"""`ThreadPool`: the interface of `stook.Pool` over threads of this process."""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from types import TracebackType
from typing import Any, NoReturn

from ._results import AsyncResult, IMapIterator, MapResult
from ._threads_crew import GRACE_SECONDS, LONGEST_SLEEP, Crew, end_if_forked
from .errors import PoolBroken, StookError
from .options import _shown, check_int

__all__ = ["ThreadPool"]

_OWNER = "ThreadPool"
_RUN, _CLOSE, _TERMINATE = "RUN", "CLOSE", "TERMINATE"

# Chunks of an `imap` that may be drawn from its iterable and not taken by its consumer, per thread.
_CHUNKS_AHEAD = 4


class ThreadPool:
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
        if initializer is not None and not callable(initializer):
            raise TypeError(f"initializer must be a callable, got {_shown(initializer)}")
        self._core = _Core(self._processes, initializer, tuple(initargs))
        # Also at the interpreter's exit. The core does not know this object, so it can be dropped.
        self._finalizer = weakref.finalize(self, self._core.terminate)

    # ---- calls -----------------------------------------------------------------------------------

    def apply(
        self,
        func: Callable[..., Any],
        args: Iterable[Any] = (),
        kwds: Mapping[str, Any] | None = None,
    ) -> Any:
        """Returns `func(*args, **kwds)`, called in a thread."""
        return self.apply_async(func, args, kwds).get()

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
        result = AsyncResult(self, callback, error_callback)
        call = partial(_apply, core, result, func, tuple(args), dict(kwds or {}))
        core.submit(call, result)
        return result

    def map(
        self, func: Callable[[Any], Any], iterable: Iterable[Any], chunksize: int | None = None
    ) -> list[Any]:
        """Returns `[func(item) for item in iterable]`, or raises the first error that comes."""
        result: list[Any] = self._map_async(func, False, iterable, chunksize).get()
        return result

    def map_async(
        self,
        func: Callable[[Any], Any],
        iterable: Iterable[Any],
        chunksize: int | None = None,
        callback: Callable[[Any], Any] | None = None,
        error_callback: Callable[[BaseException], Any] | None = None,
    ) -> MapResult:
        """Starts `map` and returns its result to come."""
        return self._map_async(func, False, iterable, chunksize, callback, error_callback)

    def starmap(
        self,
        func: Callable[..., Any],
        iterable: Iterable[Iterable[Any]],
        chunksize: int | None = None,
    ) -> list[Any]:
        """As `map`, with each item unpacked: `func(*item)`."""
        result: list[Any] = self._map_async(func, True, iterable, chunksize).get()
        return result

    def starmap_async(
        self,
        func: Callable[..., Any],
        iterable: Iterable[Iterable[Any]],
        chunksize: int | None = None,
        callback: Callable[[Any], Any] | None = None,
        error_callback: Callable[[BaseException], Any] | None = None,
    ) -> MapResult:
        """Starts `starmap` and returns its result to come."""
        return self._map_async(func, True, iterable, chunksize, callback, error_callback)

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

    def _map_async(
        self,
        func: Callable[..., Any],
        star: bool,
        iterable: Iterable[Any],
        chunksize: int | None,
        callback: Callable[[Any], Any] | None = None,
        error_callback: Callable[[BaseException], Any] | None = None,
    ) -> MapResult:
        core = self._core
        core.check_running()
        items = list(iterable)
        if chunksize is None:
            chunksize = max(1, -(-len(items) // (4 * self._processes)))
        chunksize = _check_chunksize(chunksize)
        starts = range(0, len(items), chunksize)
        result = MapResult(self, len(items), len(starts), callback, error_callback)
        for start in starts:
            chunk = items[start : start + chunksize]
            core.submit(partial(_map_chunk, core, result, func, star, start, chunk), result)
        return result

    def _imap(
        self, func: Callable[[Any], Any], iterable: Iterable[Any], chunksize: int, *, ordered: bool
    ) -> IMapIterator:
        core = self._core
        core.check_running()
        feed = _Feed(core, func, iter(iterable), _check_chunksize(chunksize), self._processes)
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

    @property
    def _pool(self) -> list[threading.Thread]:
        """The threads, by the name under which programs look for them."""
        return self._core.crew.threads

    def __enter__(self) -> ThreadPool:
        self._core.check_running()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.terminate()

    def __reduce__(self) -> NoReturn:
        raise NotImplementedError("pool objects cannot be passed between processes or pickled")

    def __repr__(self) -> str:
        if not hasattr(self, "_core"):
            return "<stook.ThreadPool (not made)>"
        return f"<stook.ThreadPool state={self._core.state} pool_size={self._processes}>"


class _Core:
    """What the threads of a pool work on; the pool itself is only in front of it.

    `changed` guards all that is written below, and is notified whenever a call has ended.
    """

    def __init__(
        self, count: int, initializer: Callable[..., Any] | None, initargs: tuple[Any, ...]
    ) -> None:
        self.pid = os.getpid()
        # Both reentrant: a finalizer may drop a pool, or use one, in the middle of anything.
        self.changed = threading.Condition(threading.RLock())
        self.callbacks = threading.RLock()
        self.state = _RUN
        self.calls = 0  # submitted and not ended
        # Results that are to come, by their id; what draws from iterables; what takes from it.
        self.results: dict[int, AsyncResult] = {}
        self.feeds: set[_Feed] = set()
        self.iterators: weakref.WeakSet[IMapIterator] = weakref.WeakSet()
        self.crew = Crew(count, "stook-pool", initializer, initargs)

    def check_running(self) -> None:
        self.check_process()
        if self.state != _RUN:
            raise ValueError("Pool not running")

    def check_process(self) -> None:
        if os.getpid() != self.pid:
            raise StookError(
                "this pool belongs to the process that made it, and this is a forked child of it;"
                " make a pool here"
            )

    def submit(
        self, call: Callable[[BaseException | None], None], result: AsyncResult | None
    ) -> None:
        """Queues `call(refused)`; of a terminated pool nothing is run."""
        with self.changed:
            if self.state == _TERMINATE:
                return
            self.calls += 1
            if result is not None:
                self.results[id(result)] = result
            self.crew.jobs.put(partial(self._run, call))

    def _run(
        self, call: Callable[[BaseException | None], None], refused: BaseException | None
    ) -> None:
        """In a thread."""
        if refused is not None:
            broken = PoolBroken(f"the initializer of this pool failed: {refused!r}")
            broken.__cause__ = refused
            refused = broken
        try:
            call(refused)
        finally:
            end_if_forked(self.pid, None)
            with self.changed:
                self.calls -= 1
                self._end_if_done()
                self.changed.notify_all()

    def settle(self, result: AsyncResult, success: bool, value: Any) -> None:
        """Gives a result out, unless `terminate()` has."""
        end_if_forked(self.pid, None if success else value)
        if self.results.pop(id(result), None) is None:
            return
        if result._callback is None and result._error_callback is None:
            result._set(success, value)
            return
        with self.callbacks:
            result._set(success, value)

    def start(self, feed: _Feed, iterator: IMapIterator) -> None:
        with self.changed:
            self.check_running()
            self.feeds.add(feed)
            self.iterators.add(iterator)
            self.submit(feed.step, None)

    def close(self) -> None:
        self.check_process()
        with self.changed:
            if self.state == _RUN:
                self.state = _CLOSE
                self._end_if_done()

    def _end_if_done(self) -> None:
        if self.state == _CLOSE and self.calls == 0 and not self.feeds:
            self.crew.end()

    def terminate(self) -> None:
        if os.getpid() != self.pid:
            return
        with self.changed:
            if self.state == _TERMINATE:
                return
            self.state = _TERMINATE
            self.crew.end()
            self.feeds.clear()
        for result in list(self.results.values()):
            # Without the callbacks' lock, which a callback that is stuck would hold.
            if self.results.pop(id(result), None) is not None:
                result._set(False, _terminated())
        for iterator in list(self.iterators):
            iterator._abort(_terminated())
        with self.changed:
            self.changed.notify_all()

    def join(self) -> None:
        self.check_process()
        if self.state == _RUN:
            raise ValueError("Pool is still running")
        if self.crew.has(threading.current_thread()):
            raise RuntimeError("a thread of a pool cannot join its own pool")
        if self.state == _CLOSE:
            with self.changed:
                for feed in list(self.feeds):
                    feed.draw_all()
            self.wait(lambda: self.state == _TERMINATE or (self.calls == 0 and not self.feeds))
        self.crew.join(GRACE_SECONDS if self.state == _TERMINATE else None)

    def wait(self, done: Callable[[], bool], timeout: float | None = None) -> bool:
        if done():
            return True
        self.check_process()
        end = None if timeout is None else time.monotonic() + timeout
        with self.changed:
            while not done():
                left = LONGEST_SLEEP if end is None else end - time.monotonic()
                if left <= 0:
                    return False
                self.changed.wait(min(left, LONGEST_SLEEP))
            return True


def _terminated() -> StookError:
    return StookError("the pool was terminated before this result was there")


def _check_chunksize(chunksize: int) -> int:
    if chunksize < 1:
        raise ValueError(f"Chunksize must be 1+, not {chunksize}")
    return chunksize


def _apply(
    core: _Core,
    result: AsyncResult,
    func: Callable[..., Any],
    args: tuple[Any, ...],
    kwds: dict[str, Any],
    refused: BaseException | None,
) -> None:
    if refused is not None:
        core.settle(result, False, refused)
        return
    try:
        value = func(*args, **kwds)
    except BaseException as error:
        core.settle(result, False, error)
    else:
        core.settle(result, True, value)


def _map_chunk(
    core: _Core,
    result: MapResult,
    func: Callable[..., Any],
    star: bool,
    start: int,
    chunk: list[Any],
    refused: BaseException | None,
) -> None:
    values: list[Any] = []
    failed = refused
    outcome = None
    if failed is None:
        try:
            # Comprehensions: map() would take a StopIteration of a call for the end of the items.
            values = [func(*item) for item in chunk] if star else [func(item) for item in chunk]
        except BaseException as error:
            failed = error
    try:
        end_if_forked(core.pid, failed)
        outcome = result._add_chunk(start, values, failed)
        if outcome is not None:
            core.settle(result, *outcome)
    finally:
        del failed, outcome  # whose traceback holds this frame


class _Feed:
    """What draws from the iterable of one `imap` and runs its calls.

    A chain of jobs: each draws a chunk, queues the next one, and then makes its calls, so that one
    thread at a time is in the iterable, and one that is blocked there holds up nothing else. The
    chain parks when the consumer is behind; `taken` and `draw_all` take it up again.
    """

    def __init__(
        self,
        core: _Core,
        func: Callable[[Any], Any],
        source: Iterator[Any],
        chunksize: int,
        threads: int,
    ) -> None:
        self._core = core
        self._func = func
        self._source: Iterator[Any] | None = source
        self._chunksize = chunksize
        self.target: Callable[[], IMapIterator | None] = _nobody
        # Under the core's lock.
        self._window: int | None = _CHUNKS_AHEAD * threads  # None: all that there is
        self._drawn = 0
        self._taken = 0
        self._parked = False

    def step(self, refused: BaseException | None) -> None:
        """In a thread: draws a chunk and runs it."""
        number = self._drawn
        items, error = self._draw()
        end_if_forked(self._core.pid, error)
        with self._core.changed:
            if items or error is not None:
                self._drawn += 1
            last = self._source is None
            if last:
                self._finish()
            else:
                self._go_on()
        outcomes = [self._call(item, refused) for item in items]
        if error is not None:
            outcomes = [(False, error)]
        target = self.target()
        if target is not None:
            if outcomes:
                target._put(number, outcomes)
            if last:
                target._end(self._drawn)
        del error, outcomes  # whose tracebacks hold this frame

    def _draw(self) -> tuple[list[Any], BaseException | None]:
        """The next chunk, or what the iterable raised; at its end it is let go.

        As in `multiprocessing`, the error stands for the whole chunk that it came in.
        """
        items: list[Any] = []
        source = self._source
        assert source is not None
        try:
            for item in source:
                items.append(item)
                if len(items) == self._chunksize:
                    return items, None
        except BaseException as error:
            self._source = None
            return [], error
        self._source = None
        return items, None

    def _call(self, item: Any, refused: BaseException | None) -> tuple[bool, Any]:
        if refused is not None:
            return False, refused
        try:
            value = self._func(item)
        except BaseException as error:
            end_if_forked(self._core.pid, error)
            return False, error
        end_if_forked(self._core.pid, None)
        return True, value

    def _go_on(self) -> None:
        """Queues the next step, parks, or ends; under the core's lock."""
        if self.target() is None and self._taken > 0:
            self._finish()  # begun and dropped: nobody will see the rest
        elif self._window is None or self._drawn - self._taken < self._window:
            self._core.submit(self.step, None)
        else:
            self._parked = True

    def _finish(self) -> None:
        self._core.feeds.discard(self)
        self._core._end_if_done()

    def taken(self) -> None:
        """The consumer has come to another chunk."""
        with self._core.changed:
            self._taken += 1
            self._unpark()

    def draw_all(self) -> None:
        """Draws the rest without a bound: somebody waits for the pool to be done."""
        with self._core.changed:
            self._window = None
            self._unpark()

    def _unpark(self) -> None:
        if self._parked:
            self._parked = False
            self._go_on()


def _nobody() -> None:
    return None
