"""How the items of a `map` or an `imap` get to the workers of a pool, and their results back.

A feed draws items from a source and sends them as jobs, some items each, so many at a time that the
workers always have some and the results lie in bounded memory. What it does with the results is
what `MapFeed` (_map.py) and `IMapFeed` (_imap.py) differ in.

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

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

from ._task_pool import Function, TaskPool
from .errors import PoolBroken, RemoteError, StookError, WorkerDied

__all__ = ["Failure", "Feed", "Job", "Pace", "as_raised"]


_JOB_SECONDS = 150e-6
_JOB_BYTES = 512 << 10
_MOST_ITEMS = 512


def as_raised(error: BaseException) -> BaseException:
    """The error as `multiprocessing.Pool` raises it: of its own kinds, where it has one.

    What is no `Exception` would end the program that asks for a result; it becomes the cause of one
    that is.
    """
    cause = error.__cause__
    if type(cause) is RemoteError:
        # Here: it brings more with it than `import stook` should.
        from multiprocessing.pool import (  # type: ignore[attr-defined]
            MaybeEncodingError,
            RemoteTraceback,
        )

        text = str(cause)
        if cause._unsendable:
            unsendable: Exception = MaybeEncodingError(error, _Shown(cause._unsendable))
            unsendable.__cause__ = RemoteTraceback(text)
            return unsendable
        error.__cause__ = RemoteTraceback(text)
    if isinstance(error, Exception):
        return error
    wrapped = StookError(f"{error!r} was raised by a call in a worker process")
    wrapped.__cause__ = error
    return wrapped


class _Shown:
    """Stands for a value of another process, of which the `repr` has come."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return self._text


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
        # Without calls in between: in one, a signal handler that uses the pool may come here, too.
        parts, total, began, before = self._parts, self._items, self._began, self._bytes
        if parts < self._patience:
            return
        self._parts = self._items = 0
        now = time.perf_counter()
        size = self._core.totals()[1]
        seconds = (now - began) * self._parallel / total
        each = (size - before) / total
        wanted = min(_JOB_SECONDS / max(seconds, 1e-9), _JOB_BYTES / max(each, 1.0))
        chunks = int(wanted / self._chunksize)
        self.chunks = min(max(chunks, self.chunks // 2, 1), 2 * self.chunks, self._most)
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
        # Somebody takes items from the source. Only whoever has the lock sees it true: a signal
        # handler, or a finalizer, that uses the pool in between.
        self._is_drawing = False
        # Items that were taken and make no job yet, because a signal handler raised; the job that
        # was made and not sent: both are gone on with by whoever comes next.
        self._drawn: list[Any] = []
        self._unsent: tuple[Job, list[Any]] | None = None
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
        return self._source is None and self.sent == self.received and not self._is_drawing

    def has_room(self) -> bool:
        """True if another job may be sent; under the lock."""
        return not self._jobs_ahead or self._jobs - self._jobs_done < self._jobs_ahead

    def send_more(self) -> None:
        """Sends as many jobs as there is room for."""
        while not self.is_ended:
            with self.lock:
                # Whom this interrupts goes on, and looks again.
                if self._is_drawing:
                    return
                if self._unsent is None:
                    if self._source is None or not self.has_room():
                        return
                    self._draw_job()
                    if self._unsent is None:
                        self.source_ended()
                        return
            self._send_made()

    def _draw_job(self) -> None:
        """Makes the next items of the source a job, to be sent; under the lock."""
        size = self.items_per_job
        self._is_drawing = True
        try:
            source = self._source
            if source is None:
                return
            items = self._drawn
            failure = None
            try:
                # The list keeps what came before an error.
                items.extend(islice(source, max(0, size - len(items))))
            except Exception as error:
                failure = error
                if self.chunksize > 1:  # as in multiprocessing, it stands for its chunk
                    del items[len(items) // self.chunksize * self.chunksize :]
            ended = failure is not None or len(items) < size
            made = (Job(self, self._jobs, self.sent, items), items) if items else None
            # Without calls: who is interrupted before this begins anew, with what he has drawn.
            self._drawn = []
            if ended:
                self._source = None
                self.failure = failure
            if made is not None:
                self._jobs += 1
                self.sent += made[0].left
                self._unsent = made
        finally:
            self._is_drawing = False

    def _send_made(self) -> None:
        """Sends the job that was made last, unless somebody else does."""
        made = self._unsent
        if made is None:
            return
        job, items = made
        submit = self._submission_of(job, items)
        try:
            # No call from here to submit(), which begins by taking it in: neither a signal handler
            # nor another thread comes in between, so that it is sent exactly once.
            if self._unsent is not made:
                return
            self._unsent = None
            submit()
        except PoolBroken as error:
            self.break_off(error)
        finally:
            if self._background:
                self._tasks.deliver_in_background()

    def send_again(self, job: Job) -> None:
        """Sends a job's next chunk, alone."""
        items = job.items
        if items is None:
            return
        left = job.left
        start = len(items) - left
        submit = self._submission_of(job, items[start : start + self.chunksize])
        try:
            if job.asked == left or job.left != left:
                return
            job.asked = left  # no call between this and submit(), as above
            submit()
        except PoolBroken as error:
            self.break_off(error)
        finally:
            if self._background:
                self._tasks.deliver_in_background()

    def _submission_of(self, job: Job, items: list[Any]) -> Callable[[], int]:
        return self._tasks.submission_of_items(
            self._function,
            items,
            star=self._star,
            may_split=len(items) > self.chunksize,
            sink=job,
            background=self._background,
        )

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
