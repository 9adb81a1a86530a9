"""What the threads of a ThreadPool do: its calls, the chunks of its maps, and its imaps."""

from __future__ import annotations

import contextlib
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from ._pool_methods import CLOSE, RUN, TERMINATE
from ._results import AsyncResult, IMapIterator, MapResult
from ._threads_crew import GRACE_SECONDS, LONGEST_SLEEP, Crew, end_if_forked
from .errors import PoolBroken, StookError

__all__ = ["Core", "Feed", "apply", "map_chunk"]

# Chunks of an `imap` that may be drawn from its iterable and not taken by its consumer, per thread.
_CHUNKS_AHEAD = 4


class Core:
    """What the threads of a pool work on; the pool itself is only in front of it.

    `lock` guards all that is written below. Ctrl-C may raise in the main thread wherever it is,
    also while it has the lock; what belongs together is written without calls in between, where
    Python runs no signal handler.
    """

    def __init__(
        self, count: int, initializer: Callable[..., Any] | None, initargs: tuple[Any, ...]
    ) -> None:
        self.pid = os.getpid()
        # Both reentrant: a finalizer may drop a pool, or use one, in the middle of anything.
        self.lock = threading.RLock()
        self.callbacks = threading.RLock()
        # Notified whenever a call has ended. Never entered, which is Python code that Ctrl-C may
        # end with the lock held: the lock is.
        self.changed = threading.Condition(self.lock)
        self.state = RUN
        self.calls = 0  # submitted and not ended
        # Results that are to come, by their id; what draws from iterables; what takes from it.
        self.results: dict[int, AsyncResult] = {}
        self._given_up: list[AsyncResult] = []  # by terminate()
        self.feeds: set[Feed] = set()
        self.iterators: weakref.WeakSet[IMapIterator] = weakref.WeakSet()
        self.crew = Crew(count, "stook-pool", initializer, initargs)

    def check_running(self) -> None:
        self.check_process()
        if self.state != RUN:
            raise ValueError("Pool not running")

    def check_process(self) -> None:
        if os.getpid() != self.pid:
            raise StookError(
                "this pool belongs to the process that made it, and this is a forked child of it;"
                " make a pool here"
            )

    def submit(
        self,
        call: Callable[[BaseException | None], None],
        result: AsyncResult | None,
        feed: Feed | None = None,
    ) -> None:
        """Queues `call(refused)`; of a terminated pool nothing is run."""
        job = partial(self._run, call)
        results = {} if result is None else {id(result): result}
        feeds = set() if feed is None else {feed}
        put = self.crew.jobs.put
        with self.lock:
            if self.state == TERMINATE:
                return
            # No call from here to put(): who waits for the calls must not wait for one that Ctrl-C
            # has kept from being queued.
            self.calls += 1
            self.results |= results
            self.feeds |= feeds
            if feed is not None:
                feed.is_parked = False
            put(job)

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
            with self.lock:
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

    def start(self, feed: Feed, iterator: IMapIterator) -> None:
        with self.lock:
            self.check_running()
            self.iterators.add(iterator)
            self.submit(feed.step, None, feed)

    def close(self) -> None:
        self.check_process()
        with self.lock:
            if self.state == RUN:
                self.state = CLOSE
                self._end_if_done()

    def _end_if_done(self) -> None:
        if self.state == CLOSE and self.calls == 0 and not self.feeds:
            self.crew.end()

    def terminate(self) -> None:
        """May be called again if Ctrl-C ended it."""
        if os.getpid() != self.pid:
            return
        with self.lock:
            self.state = TERMINATE
            self.crew.end()
            self.feeds.clear()
        results, given_up = self.results, self._given_up
        for number in list(results):
            with contextlib.suppress(KeyError):  # settled meanwhile
                result = results[number]
                del results[number]
                given_up += (result,)
        for result in given_up:
            # Without the callbacks' lock, which a callback that is stuck would hold.
            if not result._ready:
                result._set(False, _terminated())
        for iterator in list(self.iterators):
            iterator._abort(_terminated())
        with self.lock:
            self.changed.notify_all()
        given_up.clear()

    def join(self) -> None:
        self.check_process()
        if self.state == RUN:
            raise ValueError("Pool is still running")
        if self.crew.has(threading.current_thread()):
            raise RuntimeError("a thread of a pool cannot join its own pool")
        if self.state == CLOSE:
            with self.lock:
                for feed in list(self.feeds):
                    feed.draw_all()
            self.wait(lambda: self.state == TERMINATE or (self.calls == 0 and not self.feeds))
            with self.lock:
                self._end_if_done()  # again, if Ctrl-C ended close()
        self.crew.join(GRACE_SECONDS if self.state == TERMINATE else None)

    def wait(self, done: Callable[[], bool], timeout: float | None = None) -> bool:
        if done():
            return True
        self.check_process()
        end = None if timeout is None else time.monotonic() + timeout
        with self.lock:
            while not done():
                left = LONGEST_SLEEP if end is None else end - time.monotonic()
                if left <= 0:
                    return False
                self.changed.wait(min(left, LONGEST_SLEEP))
            return True


def _terminated() -> StookError:
    return StookError("the pool was terminated before this result was there")


def apply(
    core: Core,
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


def map_chunk(
    core: Core,
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


class Feed:
    """What draws from the iterable of one `imap` and runs its calls.

    A chain of jobs: each draws a chunk, queues the next one, and then makes its calls, so that one
    thread at a time is in the iterable, and one that is blocked there holds up nothing else. The
    chain parks when the consumer is behind; `taken` and `draw_all` take it up again.
    """

    def __init__(
        self,
        core: Core,
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
        self.is_parked = False

    def step(self, refused: BaseException | None) -> None:
        """In a thread: draws a chunk and runs it."""
        number = self._drawn
        items, error = self._draw()
        end_if_forked(self._core.pid, error)
        with self._core.lock:
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
            self._core.submit(self.step, None, self)
        else:
            self.is_parked = True

    def _finish(self) -> None:
        self._core.feeds.discard(self)
        self._core._end_if_done()

    def taken(self) -> None:
        """The consumer has come to another chunk."""
        with self._core.lock:
            target = self.target()
            if target is not None:
                self._taken = target.taken  # counted there, lest Ctrl-C keep one from here
            self._unpark()

    def draw_all(self) -> None:
        """Draws the rest without a bound: somebody waits for the pool to be done."""
        with self._core.lock:
            self._window = None
            self._unpark()

    def _unpark(self) -> None:
        if self.is_parked:
            self._go_on()


def _nobody() -> None:
    return None
