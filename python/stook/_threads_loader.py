"""Threads of this process: the pool that a loader with `MultithreadingOptions` talks to.

The interface is that of the pool of worker processes (`_processes.start`), so a loader does not
know which it has. As there, sources are iterated in the consumer's thread, inside `next()`, and a
full window is the only thing that is waited for.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from functools import partial
from typing import Any

from ._inline import array_bytes
from ._iterator import LoaderIterator
from ._locks import renew_lock_in_child
from ._task import BoundTask, LoaderTask
from ._threads_crew import GRACE_SECONDS, LONGEST_SLEEP, Crew, end_if_forked
from ._threads_rng import GlobalDraws
from .errors import ElementError, StookError
from .options import MultithreadingOptions
from .stats import LoaderStats

__all__ = ["LoaderThreads", "ThreadIterator"]

_CLOSED = (
    "this iterator is closed: it was closed, or its loader was closed or iterated again; iterate"
    " the loader again"
)
_FORKED = (
    "this loader belongs to the process that made it, and this is a forked child of it; make a"
    " loader here"
)


class _Counts:
    """What was delivered; changed by one iterator at a time."""

    __slots__ = ("bytes", "elements", "errors")

    def __init__(self) -> None:
        self.elements = 0
        self.bytes = 0
        self.errors = 0

    def stats(self) -> LoaderStats:
        return LoaderStats(elements=self.elements, bytes=self.bytes, errors=self.errors)


class LoaderThreads:
    """The threads of one loader; they are started by the first pass."""

    def __init__(self, task: LoaderTask, options: MultithreadingOptions) -> None:
        self._task = task
        self._options = options
        self._counts = _Counts()
        self._crew: Crew | None = None
        self._draws = GlobalDraws()

    def update(self, task: LoaderTask) -> None:
        """Takes another task for the iterators to come."""
        self._task = task

    def iterate(self, jobs: Iterator[Any], *, ordered: bool) -> ThreadIterator:
        """Starts a pass over `jobs`."""
        if self._crew is None:
            self._crew = Crew(self._options.num_threads, "stook-loader")
        elif not self._crew.is_of_this_process:
            raise StookError(_FORKED)
        options = self._options
        return ThreadIterator(
            jobs,
            _Pass(self._task.bind(where="thread")),
            self._crew,
            options.num_threads * (options.per_thread_buffer_size + 1),
            ordered,
            self._counts,
            None if self._task.seed is None else self._draws,
        )

    def stats(self) -> LoaderStats:
        """Counts over all its iterators."""
        return self._counts.stats()

    def close(self) -> None:
        """Ends the threads; waits a moment for elements under way, not for one that is stuck."""
        if self._crew is not None:
            self._crew.end()
            self._crew.join(GRACE_SECONDS)


class _Pass:
    """What consumer and threads share of one pass.

    `done` is written by the threads and read by the consumer, `over` the other way round; both
    under `changed`. `dict` keeps the order in which elements came.
    """

    __slots__ = ("changed", "done", "over", "pid", "run")

    def __init__(self, run: BoundTask) -> None:
        self.run = run
        self.pid = os.getpid()
        # On a reentrant lock: a finalizer may close the loader of this pass in the middle of it.
        self.changed = threading.Condition()
        self.done: dict[int, tuple[bool, Any]] = {}
        self.over = False


def _make(
    shared: _Pass,
    number: int,
    epoch: int,
    position: int,
    payload: Any,
    _refused: BaseException | None = None,
) -> None:
    """In a thread: makes an element, or its error."""
    if shared.over:
        return
    try:
        element = shared.run(epoch, position, payload)
    except KeyboardInterrupt as error:
        # Ctrl-C comes to the main thread. This was raised by user code, and would end the program.
        wrapped = ElementError(
            f"KeyboardInterrupt was raised while loading element {position}: {error!r}", position
        )
        wrapped.__cause__ = error
        _put(shared, number, False, wrapped)
        del wrapped  # which holds this frame
    except BaseException as error:
        _put(shared, number, False, error)
    else:
        _put(shared, number, True, element)


def _put(shared: _Pass, number: int, success: bool, value: Any) -> None:
    end_if_forked(shared.pid, None if success else value)
    with shared.changed:
        if not shared.over:
            shared.done[number] = success, value
            shared.changed.notify()


class ThreadIterator(LoaderIterator):
    """A pass whose elements come from threads."""

    _lock: Any  # see _locks.py

    def __init__(
        self,
        jobs: Iterator[Any],
        shared: _Pass,
        crew: Crew,
        window: int,
        ordered: bool,
        totals: _Counts,
        draws: GlobalDraws | None,
    ) -> None:
        self._jobs: Iterator[Any] | None = jobs  # None once it has ended
        self._source_error: BaseException | None = None  # what it ended by, to be raised last
        self._shared = shared
        self._crew = crew
        self._window = window
        self._ordered = ordered
        self._counts = _Counts()
        self._totals = totals
        self._draws = draws
        self._dealt = 0  # jobs given to the threads
        self._lowest = 0  # element not yet delivered: the window is counted from it
        self._ahead: set[int] = set()  # delivered above it
        self._busy = False
        self._closed = False
        self._loader: Any = None  # held while the pass goes on, as `for x in DataLoader(...)` needs
        # Threads may share one iterator; they take turns.
        renew_lock_in_child(self)

    def __next__(self) -> Any:
        with self._lock:
            if self._busy:
                raise StookError(
                    "next() was called by a signal handler, or by the source, while this thread"
                    " waits in next() of the same iterator"
                )
            self._busy = True
            try:
                success, value = self._next_outcome()
            finally:
                self._busy = False
            if not success:
                self._counts.errors += 1
                self._totals.errors += 1
                try:
                    raise value
                finally:
                    del self, value  # which its traceback would hold
            size = array_bytes(value)
            for counts in (self._counts, self._totals):
                counts.elements += 1
                counts.bytes += size
            return value

    def _next_outcome(self) -> tuple[bool, Any]:
        shared = self._shared
        if not self._crew.is_of_this_process:
            raise StookError(_FORKED)
        while True:
            self._deal()
            with shared.changed:
                if self._closed:
                    raise StookError(_CLOSED)
                number = self._next_number()
                if number is not None:
                    # First, so that Ctrl-C in between does not leave the next call waiting for it.
                    self._advance(number)
                    return shared.done.pop(number)
                if self._lowest == self._dealt and self._jobs is None:
                    shared.over = True
                    error, self._source_error = self._source_error, None
                    raise StopIteration if error is None else error
                if self._draws is None:
                    shared.changed.wait(LONGEST_SLEEP)
                    continue
            self._wait_and_look(self._draws)

    def _wait_and_look(self, draws: GlobalDraws) -> None:
        shared = self._shared
        draws.wait_begins()
        with shared.changed:
            while not self._closed and self._next_number() is None:
                shared.changed.wait(LONGEST_SLEEP)
        draws.wait_ends()

    def _next_number(self) -> int | None:
        """The number of the element to deliver, if it is there."""
        done = self._shared.done
        if self._ordered:
            return self._lowest if self._lowest in done else None
        return next(iter(done), None)

    def _advance(self, number: int) -> None:
        self._ahead.add(number)
        while self._lowest in self._ahead:
            self._ahead.remove(self._lowest)
            self._lowest += 1

    def _deal(self) -> None:
        """Gives the threads as many jobs as the window allows."""
        while self._jobs is not None and self._dealt - self._lowest < self._window:
            if self._closed:
                return
            try:
                job = next(self._jobs)
            except StopIteration:
                self._jobs = None
                return
            except KeyboardInterrupt:  # not the source's, but for now
                raise
            except BaseException as error:
                self._jobs = None
                self._source_error = error
                return
            self._crew.jobs.put(partial(_make, self._shared, self._dealt, *job))
            self._dealt += 1

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
                shared.changed.notify_all()

    def stats(self) -> LoaderStats:
        return self._counts.stats()
