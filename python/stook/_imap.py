"""`imap`: results as an iterator, made while they are taken, from a source that may be endless."""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from multiprocessing import TimeoutError
from typing import Any

import numpy as np

from ._pool_arguments import check_timeout
from ._results import Waits, raise_in_its_place
from ._streams import Failure, Feed, Job, Pace, as_raised
from ._task_pool import Function, TaskPool

__all__ = ["IMapFeed", "IMapIterator", "never_blocks"]

# Jobs that an `imap` may have with the workers, or done and not taken, for each worker.
JOBS_AHEAD = 4
# Jobs per worker with which no worker is about to run dry.
_JOBS_ENOUGH = 2

_PLAIN_SOURCES: tuple[type, ...] = (
    list,
    tuple,
    range,
    str,
    bytes,
    bytearray,
    dict,
    type({}.keys()),
    type({}.values()),
    type({}.items()),
    set,
    frozenset,
    deque,
    np.ndarray,
)
_plain_iterators = {type(iter(make())) for make in (list, tuple, str, bytes, dict, set, deque)}
_plain_iterators |= {type(iter(range(0))), type(iter(range(1 << 70)))}
_plain_iterators |= {itertools.count, itertools.repeat}


def never_blocks(iterable: Iterable[Any]) -> bool:
    """True for what can be iterated on any thread, at once, without anybody's code being run."""
    kind = type(iterable)
    return kind in _PLAIN_SOURCES or kind in _plain_iterators


class IMapFeed(Feed):
    """The results of an `imap` in its order, or in the order in which they come.

    `ready` holds what can be taken. A thread that takes from it calls `more()` when no more than
    `low` are left.
    """

    def __init__(
        self,
        tasks: TaskPool,
        function: Function,
        source: Iterable[Any],
        *,
        chunksize: int,
        pace: Pace | None,
        ordered: bool,
        on_done: Callable[[IMapFeed], None],
    ) -> None:
        self.is_plain = never_blocks(source)
        super().__init__(
            tasks,
            function,
            source,
            chunksize=chunksize,
            pace=pace,
            jobs_ahead=JOBS_AHEAD,
            background=not self.is_plain,
        )
        self._ordered = ordered
        self._on_done: Callable[[IMapFeed], None] | None = on_done
        self.ready: deque[Any] = deque()
        self.low = -1
        self._unbounded = False  # what is ready does not count: somebody waits for the end
        self._discards = False
        # In order: the job whose results come next; what came before its turn, how many, whether
        # that is all of the job.
        self._turn = 0
        self._early: dict[int, tuple[list[Any], int, bool]] = {}
        # Of a source that is drawn from by a thread of its own.
        self._buffer: list[Any] = []
        self._gate = threading.Lock()
        self._gate.acquire()
        self._parked = False
        if self.is_plain:
            self.send_more()
            self._set_low()
        else:
            threading.Thread(
                target=self._draw, args=(self._source,), name="stook-pool-source", daemon=True
            ).start()

    # ---- the consumer ----------------------------------------------------------------------------

    def more(self) -> None:
        """There may be room now."""
        if self.is_plain:
            self.send_more()
            with self.lock:
                self._set_low()
        else:
            self._unpark()

    def is_over(self) -> bool:
        """Nothing will become ready any more."""
        return self.is_done and not self._buffer

    def has_news(self) -> bool:
        return bool(self.ready) or self.is_over()

    def draw_all(self) -> None:
        """Does without the bound on what is ready: somebody waits for the end."""
        with self.lock:
            self._unbounded = True
        self.more()

    def drop(self) -> None:
        """Nobody can take results any more. Calls that nobody has looked at yet are all made."""
        if self.received > len(self.ready):
            self.end()
        else:
            with self.lock:
                self._discards = self._unbounded = True
                self.ready.clear()
            self.more()

    def end(self, failure: BaseException | None = None) -> None:
        """Sends nothing more; `failure` comes after what is ready."""
        with self.lock:
            if self.is_over():
                return
            self.is_ended = True
            self._source = self._unsent = None
            self._buffer = []
            self.failure = failure
            self.received = self.sent
            self._early.clear()
            self._finish()
        self._unpark()

    def break_off(self, error: BaseException) -> None:
        self.end(error)

    def _finish(self) -> None:
        on_done, self._on_done = self._on_done, None
        self.low = -1
        if on_done is not None:
            on_done(self)

    # ---- sending ---------------------------------------------------------------------------------

    def in_hand(self) -> int:
        """Items that were drawn and whose results have not been taken."""
        waiting = 0 if self._unbounded else len(self.ready)
        return self.sent - self.received + len(self._buffer) + waiting

    def has_room(self) -> bool:
        return self.in_hand() + self.items_per_job <= self._jobs_ahead * self.items_per_job

    def _set_low(self) -> None:
        """Under the lock."""
        size = self.items_per_job
        if self._source is None:
            self.low = -1
        elif self.is_plain:
            self.low = (self._jobs_ahead - 1) * size - (self.sent - self.received)
        elif self._parked:
            self.low = self._jobs_ahead * size // 2 - (self.sent - self.received)
        else:
            self.low = -1

    def source_ended(self) -> None:
        if self.is_over():
            self._finish()

    # ---- a source that may block -----------------------------------------------------------------

    def _draw(self, source: Iterator[Any]) -> None:
        """In a thread of its own: draws items while there is room for their results."""
        error: BaseException | None = None
        try:
            for item in source:
                with self.lock:
                    if self.is_ended:
                        break
                    self._buffer.append(item)
                del item
                self._send_buffered()
                while self._park():
                    self._gate.acquire()
                if self.is_ended:
                    break
        except BaseException as raised:
            error = raised
        del source
        with self.lock:
            if self.is_ended:
                return
            self._source = None
            if error is not None and self.chunksize > 1:
                # As in multiprocessing, it stands for the chunk that it came in.
                del self._buffer[len(self._buffer) // self.chunksize * self.chunksize :]
        self._send_buffered()
        with self.lock:
            if not self.is_ended:
                self.failure = error
                self.source_ended()
        self._tasks.wake()  # for the end may have come without a result
        del error  # whose traceback holds this frame

    def _send_buffered(self) -> None:
        """Sends what was drawn: whole jobs, and if workers may run dry, whatever there is."""
        while True:
            with self.lock:
                if self._unsent is None:
                    size = self.items_per_job
                    there = len(self._buffer)
                    if there < size:
                        if self._jobs - self._jobs_done >= _JOBS_ENOUGH * self._tasks.num_workers:
                            return
                        size = there
                        if self._source is not None:
                            size -= there % self.chunksize
                    if size == 0 or self.is_ended:
                        return
                    items = self._buffer[:size]
                    job = Job(self, self._jobs, self.sent, items)
                    # Without calls, and unless a signal handler did something here meanwhile.
                    if job.number == self._jobs and not self.is_ended:
                        self._jobs += 1
                        self.sent += size
                        self._unsent = job, items
                        del self._buffer[:size]
            self._send_made()

    def _park(self) -> bool:
        """True if the source is to wait for room."""
        with self.lock:
            if self.is_ended or self.in_hand() < self._jobs_ahead * self.items_per_job:
                return False
            self._parked = True
            self._set_low()
            return True

    def _unpark(self) -> None:
        with self.lock:
            if self._parked and (
                self.is_ended or 2 * self.in_hand() <= self._jobs_ahead * self.items_per_job
            ):
                self._parked = False
                self.low = -1
                self._gate.release()

    # ---- receiving -------------------------------------------------------------------------------

    def receive_errors(
        self, job: Job, results: list[Any], errors: dict[int, BaseException]
    ) -> None:
        for index, error in errors.items():
            results[index] = Failure(as_raised(error))
        self.receive(job, results)

    def take_in(self, job: Job, results: list[Any], count: int, left: int) -> None:
        if self.is_ended:
            job.left = left
            job.seen = results
        elif not self._ordered or job.number == self._turn:
            ready = self.ready
            last = left == 0
            if not self._discards:
                ready += results
            self.received += count
            self._jobs_done += last
            self._turn += last
            job.at += count
            job.left = left
            job.seen = results
        else:
            early = self._early
            number = job.number
            last = left == 0
            if number in early:
                before, count_before, _ = early[number]
                early[number] = (before + results, count_before + count, last)
            else:
                early[number] = (results, count, last)
            self._jobs_done += last
            job.at += count
            job.left = left
            job.seen = results

    def after_delivery(self) -> None:
        with self.lock:
            early = self._early
            ready = self.ready
            while early:
                # No call in it: in one, a signal handler that uses the pool may come here, too.
                turn = self._turn
                if turn not in early:
                    break
                results, count, last = early[turn]
                if not self._discards:
                    ready += results
                self.received += count
                self._turn += last
                del early[turn]
            self._set_low()
            if self.is_over():
                self._finish()
        if not self.is_plain:
            self._send_buffered()
            if self._parked:
                self._unpark()
        elif self._unbounded:
            self.send_more()


class IMapIterator:
    """The results of `imap` and `imap_unordered`: `next(timeout)`, or a `for`.

    An error is raised in its item's place; the iterator then goes on. Threads may share it. What
    lies ready or is under way is bounded (docs/pools.md): an endless source takes bounded memory.
    """

    def __init__(self, pool: Waits, feed: IMapFeed) -> None:
        # Held while results are to come: a pool that nobody else holds must not end before.
        self._pool: Waits | None = pool
        self._feed = feed
        self._ready = feed.ready

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        ready = self._ready
        if not ready:
            return self.next()
        try:
            value = ready.popleft()
        except IndexError:  # another thread has taken it
            return self.next()
        feed = self._feed
        if len(ready) <= feed.low:
            feed.more()
        if type(value) is Failure:
            raise_in_its_place(value.error)
        return value

    def next(self, timeout: float | None = None) -> Any:
        """Returns the next result.

        Raises:
          StopIteration: There is none.
          multiprocessing.TimeoutError: It has not come after `timeout` seconds.
          BaseException: What the call for this item raised, or the iterable; a `RuntimeError` in
            place of a `StopIteration` of the call.
        """
        check_timeout(timeout)
        end = None if timeout is None else time.monotonic() + timeout
        feed = self._feed
        ready = self._ready
        while True:
            over = feed.is_over()  # before the look at what is ready, which comes first
            try:
                value = ready.popleft()
                break
            except IndexError:
                pass
            pool = self._pool
            if over or pool is None:
                self._pool = None
                failure, feed.failure = feed.failure, None
                if failure is None:
                    raise StopIteration
                raise_in_its_place(failure)
            feed.more()
            left = None if end is None else end - time.monotonic()
            if left is not None and left <= 0 and not feed.has_news():
                pool.wait(feed.has_news, 0)
                if not feed.has_news():
                    raise TimeoutError
            pool.wait(feed.has_news, left)
        if len(ready) <= feed.low:
            feed.more()
        if type(value) is Failure:
            raise_in_its_place(value.error)
        return value

    def __del__(self) -> None:
        feed = getattr(self, "_feed", None)
        if feed is not None and not feed.is_over():
            feed.drop()
