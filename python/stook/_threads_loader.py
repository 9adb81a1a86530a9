"""Threads of this process: the pool that a loader with `MultithreadingOptions` talks to.

The interface is that of the pool of worker processes (`_processes.start`), so a loader does not
know which it has. As there, sources are iterated in the consumer's thread, inside `next()`, and a
full window is the only thing that is waited for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from ._async_iteration import ABSENT, SOON, Waiters
from ._deliveries import CLOSED, Counts, Deliveries
from ._element_errors import SKIP
from ._filled_plan import FilledPlan
from ._handing import HandingIterator
from ._locks import renew_lock_in_child
from ._state import ordinals
from ._task import LoaderTask
from ._threads_crew import GRACE_SECONDS, LONGEST_SLEEP, Crew
from ._threads_job import Job, Shared, make
from ._threads_rng import GlobalDraws
from .errors import ElementTimeout, StookError, TooManyErrors
from .options import MultithreadingOptions
from .stats import LoaderStats

__all__ = ["LoaderThreads", "ThreadIterator"]

_FORKED = (
    "this loader belongs to the process that made it, and this is a forked child of it; make a"
    " loader here"
)


class LoaderThreads:
    """The threads of one loader; they are started by the first pass."""

    def __init__(self, task: LoaderTask, options: MultithreadingOptions) -> None:
        self._task = task
        self._options = options
        self._counts = Counts()
        self._crew: Crew | None = None
        self._draws = GlobalDraws()

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
    ) -> ThreadIterator:
        """Starts a pass over `jobs`; `skip`: ordinals that are left out, see `_jobs.Jobs`."""
        if self._crew is None:
            self._crew = Crew(self._options.num_threads, "stook-loader")
        elif not self._crew.is_of_this_process:
            raise StookError(_FORKED)
        options, task = self._options, self._task
        deliveries = Deliveries(
            self._counts,
            batched=task.batch_size is not None,
            filled=task.policy.fill,
            max_errors=max_errors,
        )
        return ThreadIterator(
            jobs,
            Shared(task, Waiters()),
            self._crew,
            options.num_threads * (options.per_thread_buffer_size + 1),
            ordered,
            deliveries,
            None if task.seed is None else self._draws,
            skip,
        )

    def stats(self) -> LoaderStats:
        """Counts over all its iterators."""
        return self._counts.stats()

    def close(self) -> None:
        """Ends the threads; waits a moment for elements under way, not for one that is stuck."""
        if self._crew is not None:
            self._crew.end()
            self._crew.join(GRACE_SECONDS)


class ThreadIterator(HandingIterator):
    """A pass whose elements come from threads."""

    _lock: Any  # see _locks.py

    def __init__(
        self,
        jobs: Iterator[Any],
        shared: Shared,
        crew: Crew,
        window: int,
        ordered: bool,
        deliveries: Deliveries,
        draws: GlobalDraws | None,
        skip: Sequence[int] = (),
    ) -> None:
        self._void: list[Job] = []  # that threads may have in hand still
        self._shared = shared
        self._crew = crew
        self._window = window
        self._ordered = ordered
        self._deliveries = deliveries
        self._jobs_out: dict[int, Job] = {}  # dealt and not delivered
        self._draws = draws
        self._busy = False
        self._in_next = False  # a thread holds the lock until there is an element
        self._closed = False
        # Threads may share one iterator; they take turns.
        renew_lock_in_child(self)
        self._begin(jobs, skip)

    def _begin(self, jobs: Iterator[Any], skip: Sequence[int]) -> None:
        self._jobs: Iterator[Any] | None = jobs  # None once it has ended
        self._job: Any = None  # that was drawn and not dealt: Ctrl-C came in between
        self._filled = jobs if isinstance(jobs, FilledPlan) else None
        self._source_error: BaseException | None = None  # what it ended by, to be raised last
        self._over = False  # by too many errors
        self._dealt = 0  # jobs given to the threads
        self._skip = skip  # ordinals that are not dealt
        # The lowest job not delivered, from which the window is counted, those delivered above it,
        # and next_item().
        self._begin_at((0, frozenset(), self._next_item()))

    def _next_item(self) -> tuple[int, int, int] | None:
        return None if self._filled is None else self._filled.next_item()

    def _prepare(self) -> None:
        try:
            with self._lock:
                self._in_next = True
                try:
                    self._put_in_hand(True)
                finally:
                    self._in_next = False
        finally:
            self._shared.waiters.tell()
            del self  # which a traceback would hold

    def _prepare_at_once(self) -> Any:
        if not self._lock.acquire(blocking=False):
            # A thread in next() tells at its end. Another look, by the loop of another thread, does
            # so if it has found something alone.
            return ABSENT if self._in_next else SOON
        try:
            return None if self._put_in_hand(False) else ABSENT
        finally:
            self._lock.release()
            del self

    def _waiters(self) -> Waiters:
        return self._shared.waiters

    def _tell_waiters(self) -> None:
        self._shared.waiters.tell()

    def _longest_wait(self) -> float | None:
        timeout = self._shared.policy.timeout
        return None if timeout is None else min(LONGEST_SLEEP, timeout)

    def _put_in_hand(self, may_wait: bool) -> bool:
        """Has something in hand; `False`: rather than wait."""
        if self._busy:
            raise StookError(
                "next() was called by a signal handler, or by the source, while this thread"
                " waits in next() of the same iterator"
            )
        self._busy = True
        try:
            while not self._hand:
                if not self._look_for_one(may_wait):
                    return False
            return True
        finally:
            self._busy = False
            del self  # which a traceback would hold

    def _look_for_one(self, may_wait: bool) -> bool:
        """Takes what a thread has made, or only deals or waits; `False`: rather than wait."""
        shared = self._shared
        if not self._crew.is_of_this_process:
            raise StookError(_FORKED)
        self._deal()
        with shared.changed:
            if self._closed:
                raise StookError(CLOSED)
            if self._over:
                raise StopIteration
            try:
                self._deliveries.begin()
            except TooManyErrors as error:
                error.__traceback__ = None  # it would hold this frame
                self._end_by(error, self._where)
                return True
            number = self._next_number()
            if number is not None:
                self._take(number)
                return True
            if self._where[0] == self._dealt and self._jobs is None:
                shared.over = True
                if self._source_error is None:
                    raise StopIteration
                failure, self._source_error = self._source_error, None
                self._hand.append((False, failure, self._where))
                return True
            if not may_wait:
                # What is late may be the element that is awaited.
                return self._give_up_late() is not None and self._next_number() is not None
            if self._draws is None:
                self._sleep()
                return True
        self._wait_and_look(self._draws)
        return True

    def _take(self, number: int) -> None:
        """Under the pass's lock: from what is made to what is in hand, if it is not left out."""
        if self._filled is not None:
            self._settle(self._filled, number)
        success, value = self._shared.done[number]
        payload = self._jobs_out[number].payload
        where = (*self._gone_with(number), self._next_item())
        try:
            if success:
                value = self._deliveries.take(value, payload)
            else:
                self._deliveries.fail(value, payload)
        except TooManyErrors as error:
            error.__traceback__ = None  # it would hold this frame
            self._end_by(error, where)
        else:
            # Without a call: all of it is done, or nothing is and this job comes again.
            del self._shared.done[number], self._jobs_out[number]
            if value is SKIP and success:
                self._where = where
            else:
                self._hand.append((success, value, where))
        finally:
            del value  # which holds this frame, if it is an error

    def _settle(self, filled: FilledPlan, number: int) -> None:
        """Under the pass's lock: what was dealt behind a batch is void if it has taken more."""
        _, made = self._shared.done[number]
        job = self._jobs_out[number]
        if not filled.settle(number, job.epoch, job.payload, made):
            return
        # In an order in which Ctrl-C in between does no harm: it then is done once more.
        self._void = [job for job in self._void if not job.ended]
        for later in range(number + 1, self._dealt):
            void = self._jobs_out.get(later)
            if void is not None:
                void.void = True
                if not void.ended:
                    self._void.append(void)
                del self._jobs_out[later]
            self._shared.done.pop(later, None)
        self._dealt = number + 1
        self._job = None
        self._jobs = filled

    def _end_by(self, error: BaseException, where: Any) -> None:
        """Under the pass's lock: it is over before its time."""
        self._jobs = None
        self._over = self._shared.over = True
        self._hand.append((False, error, where))  # in one step with what is above it
        self._shared.done.clear()
        self._jobs_out.clear()
        self._void.clear()

    def _wait_and_look(self, draws: GlobalDraws) -> None:
        shared = self._shared
        draws.wait_begins()
        with shared.changed:
            while not self._closed and self._next_number() is None:
                self._sleep()
        draws.wait_ends()

    def _sleep(self) -> None:
        """Under the pass's lock: waits until there may be something new, and sees what is late."""
        wake = self._give_up_late()
        if wake is None:
            self._shared.changed.wait(LONGEST_SLEEP)
        elif self._next_number() is None:
            self._shared.changed.wait(max(0.0, wake - time.monotonic()))

    def _give_up_late(self) -> float | None:
        """Under the pass's lock: sees what is late; when to look again, `None` for never."""
        shared = self._shared
        timeout = shared.policy.timeout
        if timeout is None:
            return None
        now = time.monotonic()
        wake = now + min(LONGEST_SLEEP, timeout)
        for number, job in list(self._jobs_out.items()):
            began = job.began[0]
            if began is None or number in shared.done:
                continue
            item, since = began
            if since + timeout > now:
                wake = min(wake, since + timeout)
            else:
                self._give_up(number, job, item, timeout)
        self._void = [job for job in self._void if not job.ended]
        for job in list(self._void):
            if job.began[0] is None:
                continue
            _, since = job.began[0]
            if since + timeout > now:
                wake = min(wake, since + timeout)
            else:  # its thread is needed
                self._crew.replace_one()
                self._void.remove(job)
                job.given_up = True
        return wake

    def _give_up(self, number: int, job: Job, item: int, timeout: float) -> None:
        """Leaves a thread to itself; the rest of the job is another one's, or there is none."""
        shared = self._shared
        self._crew.replace_one()  # first: there may be no more threads to be had
        job.given_up = True
        if shared.policy.takes_losses:
            again = Job(job.epoch, job.position, job.payload)
            again.losses = (*job.losses, (item, None, 0, 0, 1, True, False))
            call = partial(make, shared, number, again)
            self._jobs_out[number] = again
            self._crew.jobs.put(call)
            return
        index = shared.task.index_of(job.position, job.payload, item)
        error = ElementTimeout(job.position, timeout, None, index)
        shared.done[number] = False, error

    def _next_number(self) -> int | None:
        """The number of the element to deliver, if it is there."""
        done = self._shared.done
        if self._ordered:
            lowest = self._where[0]
            return lowest if lowest in done else None
        return next(iter(done), None)

    def _gone_with(self, number: int) -> tuple[int, frozenset[int]]:
        """The lowest job not delivered, and those above it that are, when this one is."""
        lowest: int = self._where[0]
        ahead: frozenset[int] = self._where[1]
        if number != lowest:
            return lowest, ahead | {number}
        lowest += 1
        if ahead:
            while lowest in ahead:
                lowest += 1
            ahead = frozenset(other for other in ahead if other > lowest)
        return lowest, ahead

    def _deal(self) -> None:
        """Gives the threads as many jobs as the window allows."""
        while self._jobs is not None and self._dealt - self._where[0] < self._window:
            if self._closed:
                return
            try:
                if self._job is None:
                    for drawn in self._jobs:  # not next(): behind a call it could be lost
                        self._job = drawn
                        break
                    else:
                        self._jobs = None
                        return
            except KeyboardInterrupt:  # not the source's, but for now
                raise
            except BaseException as error:
                self._jobs = None
                self._source_error = error
                return
            number, dealt = self._dealt, Job(*self._job)
            call = partial(make, self._shared, number, dealt)
            # From here to the end nothing is called that is not C: all is done, or nothing is.
            self._jobs_out[number] = dealt
            self._dealt = number + 1
            self._job = None
            self._crew.jobs.put(call)

    def close(self) -> None:
        # Without the iterator's lock, which a thread that waits in next() holds.
        shared = self._shared
        if not self._crew.is_of_this_process:  # where a lock may be held by a thread that is not
            shared.over = self._closed = True
            return
        with shared.changed:
            if not shared.over:
                shared.over = self._closed = True
                shared.done.clear()
                self._jobs_out.clear()
                self._void.clear()
                self._hand.clear()
                shared.changed.notify_all()
                shared.waiters.tell()

    def delivered(self) -> tuple[int, list[int]]:
        lowest, ahead, _ = self._where
        return ordinals(self._skip, lowest, ahead)

    def next_item(self) -> tuple[int, int, int]:
        next_item: tuple[int, int, int] = self._where[2]
        return next_item

    def _is_closed(self) -> bool:
        return self._closed

    def _has_ended(self) -> bool:
        return self._shared.over and not self._closed and not self._hand

    def _at_standstill(self, call: Callable[[], None]) -> None:
        with self._lock:
            call()

    def _restart(self, jobs: Iterator[Any], skip: Sequence[int]) -> None:
        if not self._crew.is_of_this_process:
            raise StookError(_FORKED)
        if self._busy:
            raise StookError(
                "set_state() was called by a signal handler, or by the source, while this"
                " thread waits in next() of the same iterator"
            )
        before = self._shared
        with before.changed:
            if self._closed:
                raise StookError(CLOSED)
            before.over = True  # elements of it that are still made are dropped
            before.done.clear()
            self._jobs_out.clear()
            self._void.clear()
            self._shared = Shared(before.task, before.waiters)
            self._begin(jobs, skip)
            self._deliveries.restart()
            before.waiters.tell()  # who waits deals the new jobs

    def stats(self) -> LoaderStats:
        return self._deliveries.stats()
