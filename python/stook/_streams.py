"""How the items of a `map` or an `imap` get to the workers of a pool, and their results back.

A feed draws items from a source and sends them as jobs, some items each, so many at a time that the
workers always have some and the results lie in bounded memory. What it does with the results is
what `MapFeed` (pool.py) and `IMapFeed` differ in.

How many items make a job is the user's `chunksize`, or a multiple of it that is found by measuring
(`Pace`): a job should take long beside what sending one costs. Nobody can tell but by the clock: a
worker comes back early from such a job when its calls do take time, and what it had not begun is
sent again.

Every member of a feed is guarded by its lock, which is held for a moment and never while user code
runs. Sinks may be interrupted anywhere by a signal handler that raises, and are called again then;
what must not be done twice is done in statements without calls, between which Python runs no
handler.
"""

from __future__ import annotations

import itertools
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from multiprocessing import TimeoutError
from multiprocessing.pool import MaybeEncodingError, RemoteTraceback  # type: ignore[attr-defined]
from typing import Any, NoReturn

import numpy as np

from . import _pickling
from ._results import Waits
from ._task_pool import Function, TaskPool
from .errors import PoolBroken, RemoteError, StookError, WorkerDied

__all__ = ["Feed", "IMapFeed", "IMapIterator", "Job", "Pace", "as_raised", "never_blocks"]

# Jobs that an `imap` may have with the workers, or done and not taken, for each worker.
JOBS_AHEAD = 4
# Jobs per worker with which no worker is about to run dry.
_JOBS_ENOUGH = 2

_JOB_SECONDS = 150e-6
_JOB_BYTES = 512 << 10
_MOST_ITEMS = 512

# How often a thread that waits for results looks whether a source has come to its end meanwhile,
# which nobody delivers.
_LOOK_SECONDS = 0.05

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

# How the traceback of a result that cannot be pickled begins: in no code of the user's.
_OF_RESULTS = re.compile(
    r'\s*"""\s*Traceback[^\n]*\n\s*File "'
    + re.escape(_pickling.__file__)
    + r'", line \d+, in pickle_'
)


def never_blocks(iterable: Iterable[Any]) -> bool:
    """True for what can be iterated on any thread, at once, without anybody's code being run."""
    kind = type(iterable)
    return kind in _PLAIN_SOURCES or kind in _plain_iterators


def as_raised(error: BaseException) -> BaseException:
    """The error as `multiprocessing.Pool` raises it: of its own kinds, where it has one.

    What is no `Exception` would end the program that asks for a result; it becomes the cause of one
    that is.
    """
    cause = error.__cause__
    if type(cause) is RemoteError:
        text = str(cause)
        if _OF_RESULTS.match(text):
            unsendable: Exception = MaybeEncodingError(error, "what the call returned")
            unsendable.__cause__ = RemoteTraceback(text)
            return unsendable
        error.__cause__ = RemoteTraceback(text)
    if isinstance(error, Exception):
        return error
    wrapped = StookError(f"{error!r} was raised by a call in a worker process")
    wrapped.__cause__ = error
    return wrapped


class Failure:
    """Stands for a result that is an error."""

    __slots__ = ("error",)

    def __init__(self, error: BaseException) -> None:
        self.error = error


class Pace:
    """How many chunks make a job: found by the time that passes between deliveries.

    If the consumer takes long over each result, jobs are small, and that is right: he is what the
    pool waits for.
    """

    def __init__(self, tasks: TaskPool, chunksize: int) -> None:
        self._core = tasks._core
        self._chunksize = chunksize
        self._most = max(1, _MOST_ITEMS // chunksize)
        self._parallel = min(tasks.num_workers, 4)
        self._patience = 2 * tasks.num_workers
        self.chunks = 1
        self._parts = 0
        self._items = 0
        self._began = time.perf_counter()
        self._bytes: int = self._core.totals()[1]

    def note(self, items: int, whole: bool) -> None:
        """A part of a job was delivered; `whole`: the worker did not come back early."""
        self._parts += 1
        self._items += items
        if not whole:
            self.chunks = max(1, min(self.chunks, items // self._chunksize))
        if self._parts < self._patience:
            return
        now = time.perf_counter()
        size = self._core.totals()[1]
        seconds = (now - self._began) * self._parallel / self._items
        each = (size - self._bytes) / self._items
        wanted = min(_JOB_SECONDS / max(seconds, 1e-9), _JOB_BYTES / max(each, 1.0))
        chunks = int(wanted / self._chunksize)
        self.chunks = min(max(chunks, self.chunks // 2, 1), 2 * self.chunks, self._most)
        self._parts = self._items = 0
        self._began, self._bytes = now, size


class Job:
    """Some items that were sent together; the sink of their results."""

    __slots__ = ("alone", "asked", "at", "feed", "items", "left", "number", "seen")

    def __init__(self, feed: Feed, number: int, at: int, items: list[Any]) -> None:
        self.feed = feed
        self.number = number
        self.at = at  # the place of its first item without a result, among all of the feed's
        self.left = len(items)
        # Only if they can be sent again, one chunk at a time.
        self.items: list[Any] | None = items if len(items) > feed.chunksize else None
        self.alone = False
        self.asked = 0  # `left` when its last chunk was sent alone
        self.seen: list[Any] | None = None

    def __call__(
        self, ok: bool, results: list[Any], errors: dict[int, BaseException] | None
    ) -> None:
        feed = self.feed
        if results is not self.seen:
            if errors:
                if self._is_to_be_sent_again(results, errors):
                    self.alone = True
                    self.seen = results
                else:
                    feed.receive_errors(self, results, errors)
            else:
                feed.receive(self, results)
        feed.after_delivery()
        if self.alone and self.left:
            feed.send_again(self)

    def _is_to_be_sent_again(self, results: list[Any], errors: dict[int, BaseException]) -> bool:
        """True if all failed of one cause, which may be a single one of those put together here.

        Either one cannot be pickled, or a worker died before it began any.
        """
        if self.items is None or self.alone or not len(errors) == len(results) == len(self.items):
            return False
        first = errors[0]
        if any(error is not first for error in errors.values()):
            return False
        if isinstance(first, WorkerDied):
            return True
        return not self.feed.is_ended and not isinstance(first, PoolBroken)


class Feed:
    """Sends the items of one call.

    Args:
      tasks: The workers.
      function: What they call with each item.
      source: The items.
      chunksize: Items of a job, at least.
      star: The function is called with what is in each item.
      pace: How many chunks make a job; `None`: one.
      jobs_ahead: Jobs that are sent before results come, per worker; 0: all.
      background: Somebody else delivers.
    """

    def __init__(
        self,
        tasks: TaskPool,
        function: Function,
        source: Iterable[Any],
        *,
        chunksize: int,
        star: bool = False,
        pace: Pace | None = None,
        jobs_ahead: int = 0,
        background: bool = False,
    ) -> None:
        self._tasks = tasks
        self._function = function
        self._source: Iterator[Any] | None = iter(source)
        self.chunksize = chunksize
        self._star = star
        self._pace = pace
        self._jobs_ahead = jobs_ahead * tasks.num_workers
        self._background = background
        self.lock = threading.RLock()
        self.sent = 0  # items, of which so many have results:
        self.received = 0
        self._jobs = 0
        self._jobs_done = 0
        self.failure: BaseException | None = None  # of the source
        self.is_ended = False  # nobody wants results any more

    # ---- sending ---------------------------------------------------------------------------------

    @property
    def items_per_job(self) -> int:
        return self.chunksize if self._pace is None else self.chunksize * self._pace.chunks

    @property
    def is_exhausted(self) -> bool:
        """Nothing more is to be sent."""
        return self._source is None

    @property
    def is_done(self) -> bool:
        """Nothing more is to be received."""
        return self._source is None and self.sent == self.received

    def has_room(self) -> bool:
        """True if another job may be sent; under the lock."""
        return not self._jobs_ahead or self._jobs - self._jobs_done < self._jobs_ahead

    def send_more(self) -> None:
        """Sends as many jobs as there is room for."""
        while not self.is_ended:
            with self.lock:
                source = self._source
                if source is None or not self.has_room():
                    return
                size = self.items_per_job
                items: list[Any] = []
                try:
                    items.extend(islice(source, size))  # which keeps what came before an error
                except Exception as error:
                    self._source = None
                    self.failure = error
                    if self.chunksize > 1:  # as in multiprocessing, it stands for its chunk
                        del items[len(items) // self.chunksize * self.chunksize :]
                if len(items) < size:
                    self._source = None
                if not items:
                    self.source_ended()
                    return
                job = self._make_job(items)
            self._submit(job, items)

    def _make_job(self, items: list[Any]) -> Job:
        """Under the lock."""
        job = Job(self, self._jobs, self.sent, items)
        count = len(items)
        self._jobs += 1
        self.sent += count
        return job

    def _submit(self, job: Job, items: list[Any]) -> None:
        try:
            self._tasks.submit_items(
                self._function,
                items,
                star=self._star,
                may_split=len(items) > self.chunksize,
                sink=job,
                background=self._background,
            )
        except PoolBroken as error:
            self.break_off(error)
        except BaseException as error:
            # Also of a signal handler: whether it was sent then cannot be told, so nothing that may
            # still come of it is taken.
            count = job.left
            lost: BaseException = error
            if not isinstance(error, Exception):
                lost = StookError(f"{error!r} was raised while this was sent to a worker")
            heir = Job(self, job.number, job.at, [None] * count)
            heir.items = None
            job.feed = _Nowhere.instance
            heir(True, [None] * count, dict.fromkeys(range(count), lost))
            if not isinstance(error, Exception):
                raise

    def send_again(self, job: Job) -> None:
        """Sends a job's next chunk, alone."""
        items = job.items
        if items is None or job.asked == job.left:
            return
        job.asked = job.left
        start = len(items) - job.left
        self._submit(job, items[start : start + self.chunksize])

    # ---- receiving -------------------------------------------------------------------------------

    def source_ended(self) -> None:
        """After the last job was sent, or its source raised; under the lock."""

    def break_off(self, error: BaseException) -> None:
        """Nothing can be sent any more."""
        raise NotImplementedError

    def receive(self, job: Job, results: list[Any]) -> None:
        """Takes in the next results of a job."""
        number = len(results)
        left = job.left - number
        with self.lock:
            self.take_in(job, results, number, left)
            if self._pace is not None and not job.alone:
                self._pace.note(number, left == 0)

    def receive_errors(
        self, job: Job, results: list[Any], errors: dict[int, BaseException]
    ) -> None:
        """The same, with some that failed."""
        raise NotImplementedError

    def take_in(self, job: Job, results: list[Any], count: int, left: int) -> None:
        """Under the lock: keeps results, and notes that they have come.

        Ends with `job.seen = results` and has no call in it that matters if done twice.
        """
        raise NotImplementedError

    def after_delivery(self) -> None:
        """After every delivery, in the sink: sends more if nobody else does."""


class _Nowhere(Feed):
    """Takes results that nobody wants."""

    instance: _Nowhere

    def __init__(self) -> None:
        self.is_ended = True
        self.chunksize = 1

    def receive(self, job: Job, results: list[Any]) -> None:
        job.seen = results

    def receive_errors(
        self, job: Job, results: list[Any], errors: dict[int, BaseException]
    ) -> None:
        job.seen = results

    def send_again(self, job: Job) -> None:
        job.left = 0


_Nowhere.instance = _Nowhere()


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
        # In order: the job whose results come next; what came before its turn, and whether that is
        # all of the job.
        self._turn = 0
        self._early: dict[int, tuple[list[Any], bool]] = {}
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
            self._source = None
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
        del error  # whose traceback holds this frame

    def _send_buffered(self) -> None:
        """Sends what was drawn: whole jobs, and if workers may run dry, whatever there is."""
        while True:
            with self.lock:
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
                job = self._make_job(items)
                del self._buffer[:size]
            self._submit(job, items)

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
                results_before = early[number][0]
                early[number] = (results_before + results, last)
            else:
                early[number] = (results, last)
            self._jobs_done += last
            job.at += count
            job.left = left
            job.seen = results

    def after_delivery(self) -> None:
        with self.lock:
            early = self._early
            ready = self.ready
            while self._turn in early:
                results, last = early[self._turn]
                count = len(results)
                if not self._discards:
                    ready += results
                self.received += count
                del early[self._turn]
                self._turn += last
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
            self._raise(value.error)
        return value

    def next(self, timeout: float | None = None) -> Any:
        """Returns the next result.

        Raises:
          StopIteration: There is none.
          multiprocessing.TimeoutError: It has not come after `timeout` seconds.
          BaseException: What the call for this item raised, or the iterable; a `RuntimeError` in
            place of a `StopIteration` of the call.
        """
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
                self._raise(failure)
            feed.more()
            left = None if end is None else end - time.monotonic()
            if left is not None and left <= 0 and not feed.has_news():
                pool.wait(feed.has_news, 0)
                if not feed.has_news():
                    raise TimeoutError
            if not feed.is_plain and (left is None or left > _LOOK_SECONDS):
                left = _LOOK_SECONDS
            pool.wait(feed.has_news, left)
        if len(ready) <= feed.low:
            feed.more()
        if type(value) is Failure:
            self._raise(value.error)
        return value

    def _raise(self, error: BaseException) -> NoReturn:
        try:
            if isinstance(error, StopIteration):
                # As itself it would end the loop, quietly, as if there were no more results.
                raise RuntimeError("the call for this item raised StopIteration") from error
            raise error
        finally:
            del self, error  # which the traceback would hold

    def __del__(self) -> None:
        feed = getattr(self, "_feed", None)
        if feed is not None and not feed.is_over():
            feed.drop()
