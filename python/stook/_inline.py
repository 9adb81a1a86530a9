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
from ._iterator import LoaderIterator
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


class InlineIterator(LoaderIterator):
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
        self._filled = jobs if isinstance(jobs, FilledPlan) else None
        self._run = run
        self._closed = False
        self._deliveries = deliveries
        self._skip = skip
        self._job: Any = None  # that was dealt and not delivered: Ctrl-C came in between
        self._delivered = 0  # jobs that gave an element, an error or nothing
        # Threads may share one iterator, as they may with worker processes.
        renew_lock_in_child(self)

    def __next__(self) -> Any:
        with self._lock:
            while True:
                work = self._work  # close() waits for nobody
                if work is None:
                    if self._closed:
                        raise StookError(CLOSED)
                    raise StopIteration
                jobs, run = work
                try:
                    self._deliveries.begin()
                except TooManyErrors:
                    self._work = None
                    raise
                try:
                    if self._job is None:
                        self._job = next(jobs)
                except KeyboardInterrupt:  # not the source's, but for now
                    raise
                except BaseException:
                    # Over: by StopIteration, or by what an iterable source raised.
                    self._work = None
                    raise
                # A worker that a job is for is none of this process's business.
                epoch, position, payload, *_ = self._job
                try:
                    try:
                        element = run(epoch, position, payload)
                    except KeyboardInterrupt:  # the user's: the element is made by the next call
                        raise
                    except BaseException as error:
                        self._note(epoch, payload, error)
                        self._deliveries.fail(error, payload)
                        raise
                    self._note(epoch, payload, element)
                    element = self._deliveries.take(element, payload)
                except TooManyErrors:
                    self._work = None
                    raise
                if element is not SKIP:
                    return element

    def _note(self, epoch: int, payload: Any, made: Any) -> None:
        if self._filled is not None:
            self._filled.settle(self._delivered, epoch, payload, made)
        self._delivered += 1
        self._job = None

    def close(self) -> None:
        # Without the lock, which who makes an element holds; that is still delivered. Before the
        # work goes, so that nobody takes it for the end.
        if self._work is not None:
            self._closed = True
            self._work = None

    def delivered(self) -> tuple[int, list[int]]:
        return ordinals(self._skip, self._delivered, ())

    def next_item(self) -> tuple[int, int, int]:
        assert self._filled is not None
        return self._filled.next_item()

    def _is_closed(self) -> bool:
        return self._closed

    def _has_ended(self) -> bool:
        return self._work is None and not self._closed

    def _at_standstill(self, call: Callable[[], None]) -> None:
        with self._lock:
            call()

    def _restart(self, jobs: Iterator[Any], skip: Sequence[int]) -> None:
        if self._closed:
            raise StookError(CLOSED)
        self._work = jobs, self._run
        self._filled = jobs if isinstance(jobs, FilledPlan) else None
        self._skip = skip
        self._job = None
        self._delivered = 0
        self._deliveries.restart()

    def stats(self) -> LoaderStats:
        return self._deliveries.stats()
