"""`num_workers=0`: the consumer's process makes the elements itself.

The interface is that of the pool of worker processes (`_processes.start`), so a loader does not
know which of the two it has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ._deliveries import CLOSED, Counts, Deliveries
from ._element_errors import SKIP
from ._filled_plan import FilledPlan
from ._handing import HandingIterator
from ._locks import renew_lock_in_child
from ._state import ordinals
from ._task import BoundTask, LoaderTask
from .errors import StookError, TooManyErrors
from .stats import LoaderStats

__all__ = ["InlineIterator", "InlinePool"]


class InlinePool:
    """Runs a task in this process."""

    def __init__(self, task: LoaderTask) -> None:
        self._task = task
        self._counts = Counts()

    def update(self, task: LoaderTask) -> None:
        """Takes another task for the iterators to come."""
        self._task = task

    def iterate(
        self,
        jobs: Iterator[Any],
        *,
        ordered: bool,
        skip: Sequence[int] = (),
        max_errors: float | None = None,
    ) -> InlineIterator:
        """Starts a pass over `jobs`; one element is made at a time, so always in order.

        `skip`: ordinals of jobs that are left out; see `_jobs.Jobs`.
        """
        task = self._task
        deliveries = Deliveries(
            self._counts,
            batched=task.batch_size is not None,
            filled=task.policy.fill,
            max_errors=max_errors,
        )
        return InlineIterator(jobs, task.bind(where="here"), deliveries, skip)

    def stats(self) -> LoaderStats:
        """Counts over all its iterators."""
        return self._counts.stats()

    def close(self) -> None:
        """Nothing to end."""


class InlineIterator(HandingIterator):
    """Each `next()` makes its element then and there."""

    _lock: Any  # see _locks.py

    def __init__(
        self,
        jobs: Iterator[Any],
        run: BoundTask,
        deliveries: Deliveries,
        skip: Sequence[int] = (),
    ) -> None:
        # None when the pass is over.
        self._work: tuple[Iterator[Any], BoundTask] | None = (jobs, run)
        self._run = run
        self._closed = False
        self._busy = False
        self._deliveries = deliveries
        # Threads may share one iterator, as they may with worker processes.
        renew_lock_in_child(self)
        self._begin(jobs, skip)

    def _begin(self, jobs: Iterator[Any], skip: Sequence[int]) -> None:
        self._filled = jobs if isinstance(jobs, FilledPlan) else None
        self._skip = skip
        self._job: Any = None  # that was dealt and is not made: Ctrl-C came in between
        # Jobs that gave an element, an error or nothing; and next_item().
        self._begin_at((0, self._next_item()))

    def _next_item(self) -> tuple[int, int, int] | None:
        return None if self._filled is None else self._filled.next_item()

    def _prepare(self) -> None:
        with self._lock:
            if self._busy:
                raise StookError(
                    "next() was called by a signal handler, or by user code, while this thread is"
                    " in next() of the same iterator"
                )
            self._busy = True
            try:
                while not self._hand:
                    self._make()
            finally:
                self._busy = False

    def _make(self) -> None:
        """Makes one more; it may be left out, and then nothing is in hand."""
        work = self._work  # close() waits for nobody
        if work is None:
            if self._closed:
                raise StookError(CLOSED)
            raise StopIteration
        jobs, run = work
        where = self._where
        try:
            self._deliveries.begin()
        except TooManyErrors as error:
            error.__traceback__ = None  # it would hold this frame
            self._end_by(error, where)
            return
        try:
            if self._job is None:
                for drawn in jobs:  # not next(): behind a call the job could be lost
                    self._job = drawn
                    break
                else:
                    self._work = None
                    raise StopIteration
        except (KeyboardInterrupt, StopIteration):  # the former is not the source's, but for now
            raise
        except BaseException as error:
            self._end_by(error, where)
            return
        # A worker that a job is for is none of this process's business.
        epoch, position, payload, *_ = self._job
        success, value = True, None
        try:
            value = run(epoch, position, payload)
        except KeyboardInterrupt:  # the user's: the element is made by the next call
            raise
        except BaseException as error:
            success, value = False, error
        try:
            if self._filled is not None:
                self._filled.settle(where[0], epoch, payload, value)
            where = where[0] + 1, self._next_item()
            if success:
                value = self._deliveries.take(value, payload)
            else:
                self._deliveries.fail(value, payload)
        except TooManyErrors as error:
            error.__traceback__ = None  # it would hold this frame
            self._end_by(error, where)
        else:
            self._job = None
            if value is SKIP and success:
                self._where = where
            else:
                self._hand.append((success, value, where))
        finally:
            del value  # which holds this frame, if it is an error

    def _end_by(self, error: BaseException, where: Any) -> None:
        self._work = None
        self._hand.append((False, error, where))

    def close(self) -> None:
        # Without the lock, which who makes an element holds; that is still delivered. Before the
        # work goes, so that nobody takes it for the end.
        if self._work is not None:
            self._closed = True
            self._work = None
            self._hand.clear()

    def delivered(self) -> tuple[int, list[int]]:
        return ordinals(self._skip, self._where[0], ())

    def next_item(self) -> tuple[int, int, int]:
        next_item: tuple[int, int, int] = self._where[1]
        return next_item

    def _is_closed(self) -> bool:
        return self._closed

    def _has_ended(self) -> bool:
        return self._work is None and not self._closed and not self._hand

    def _at_standstill(self, call: Callable[[], None]) -> None:
        with self._lock:
            call()

    def _restart(self, jobs: Iterator[Any], skip: Sequence[int]) -> None:
        if self._busy:
            raise StookError(
                "set_state() was called by a signal handler, or by user code, while this thread is"
                " in next() of the same iterator"
            )
        if self._closed:
            raise StookError(CLOSED)
        self._work = jobs, self._run
        self._begin(jobs, skip)
        self._deliveries.restart()

    def stats(self) -> LoaderStats:
        return self._deliveries.stats()
