"""`enable_profiling`: a pool whose passes are measured, and the iterators that it gives.

Without it nothing of this is imported, and nothing is asked for each element.
"""

from __future__ import annotations

import sys
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from . import _core
from ._async_iteration import take
from ._iterator import LoaderIterator
from ._profile_figures import profile_between
from ._profile_memory import CONSUMER, PREFETCH, SOURCE, Recorder, Snapshot
from ._profile_task import name_of, stage_names
from ._profile_trace import write_trace
from ._task import LoaderTask
from ._through import ThroughIterator
from .options import MultiprocessingOptions, MultithreadingOptions
from .profile import LoaderProfile
from .stats import LoaderStats

__all__ = ["ProfiledIterator", "ProfiledPool", "start"]


def start(
    task: LoaderTask,
    options: MultiprocessingOptions | MultithreadingOptions,
    start_plain: Callable[[LoaderTask, Any], Any],
) -> ProfiledPool:
    """As `_loader_parts.start_pool`, which is `start_plain`."""
    if isinstance(options, MultithreadingOptions):
        kind = "threads" if options.num_threads > 0 else "inline"
        recorder = Recorder(1, 0, here=True)
        workers = max(1, options.num_threads)
    elif options.num_workers == 0:
        kind, recorder, workers = "inline", Recorder(1, 0, here=True), 1
    else:
        kind, workers = "processes", options.num_workers
        window = workers * (options.per_worker_buffer_size + 1)  # as the manager counts it
        recorder = Recorder(workers, window, here=False)
    task.profile = recorder
    return ProfiledPool(start_plain(task, options), task, recorder, kind, workers, options)


class ProfiledPool:
    """Another pool, with the figures of its passes."""

    def __init__(
        self,
        inner: Any,
        task: LoaderTask,
        recorder: Recorder,
        kind: str,
        workers: int,
        options: MultiprocessingOptions | MultithreadingOptions,
    ) -> None:
        self._inner = inner
        self._task = task
        self.recorder = recorder
        self.kind = kind
        self.workers = workers
        self.min_shared_bytes = getattr(options, "min_shared_bytes", 0)
        self._last: PassFigures | None = None

    def __getattr__(self, name: str) -> Any:
        if name == "_inner":  # not made
            raise AttributeError(name)
        return getattr(self._inner, name)

    def update(self, task: LoaderTask) -> None:
        task.profile = self.recorder
        self._task = task
        self._inner.update(task)

    def iterate(self, jobs: Iterator[Any], **arguments: Any) -> ProfiledIterator:
        figures = PassFigures(self, self._task)
        inner = self._inner.iterate(figures.timed(jobs), **arguments)
        self._last = figures
        return ProfiledIterator(inner, figures)

    def profile(self, trace: Any = None) -> LoaderProfile:
        """Of the last pass; before the first one everything is 0."""
        if self._last is None:
            return PassFigures(self, self._task).profile(trace)
        return self._last.profile(trace)

    def stats(self) -> LoaderStats:
        stats: LoaderStats = self._inner.stats()
        return stats

    def close(self) -> None:
        if self._last is not None:
            self._last.end()
        self._inner.close()


class PassFigures:
    """What is known of one pass; it outlives the iterator."""

    def __init__(self, pool: ProfiledPool, task: LoaderTask) -> None:
        self._recorder = pool.recorder
        self._kind = pool.kind
        self._workers = pool.workers
        self._min_shared_bytes = pool.min_shared_bytes
        self._names = stage_names(task)
        self._source_in_parent = task.source is None
        self._begin = self._recorder.snapshot()
        self._end: Snapshot | None = None
        self._stats = LoaderStats()
        self._inner: weakref.ref[LoaderIterator] | None = None
        self._prefetch: str | None = None  # name of the function
        self._before_print: Callable[[], Callable[[], None] | None] = lambda: None

    def follow(self, inner: LoaderIterator) -> None:
        self._inner = weakref.ref(inner)

    def timed(self, jobs: Iterator[Any]) -> Iterator[Any]:
        """The same jobs; where they come of an iterable of the user's, that is a stage."""
        return _TimedJobs(jobs, self.record) if self._source_in_parent else jobs

    def waiting(self) -> tuple[Any, int, int]:
        """Where the consumer's waiting is counted: profile, cell, stage."""
        return self._recorder.core, self._recorder.workers, CONSUMER

    def record(self, stage: int, begin: int) -> None:
        """Counts what the consumer's thread did since `begin`."""
        recorder = self._recorder
        recorder.core.record(recorder.workers, stage, begin, time.perf_counter_ns())

    def timed_function(self, function: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """The same function of `prefetch_to`."""
        self._prefetch = name_of(function)

        def timed(element: Any) -> Any:
            begin = time.perf_counter_ns()
            try:
                return function(element)
            finally:
                self.record(PREFETCH, begin)

        return timed

    def before_print(self, call: Callable[[], Callable[[], None] | None]) -> None:
        """Has what `call` returns, a weak reference, called before anything is printed."""
        self._before_print = call

    def end_by_itself(self) -> None:
        """There are no more elements: prints the profile, once."""
        self._end_and_print(0)

    def end(self) -> None:
        """The pass is over: the same if it gave an element."""
        self._end_and_print(1)

    def _end_and_print(self, fewest: int) -> None:
        if self._end is not None:
            return
        self._stats = self._stats_now()
        self._end = self._recorder.snapshot()
        if sys.stderr is None or self._stats.elements < fewest:
            return
        before = self._before_print()
        if before is not None:
            before()
        print(self.profile(), file=sys.stderr)

    def go_on(self) -> None:
        """The pass goes on after all."""
        self._end = None

    def _stats_now(self) -> LoaderStats:
        inner = None if self._inner is None else self._inner()
        return self._stats if inner is None else inner.stats()

    def profile(self, trace: Any = None) -> LoaderProfile:
        end = self._end or self._recorder.snapshot()
        stats = self._stats if self._end is not None else self._stats_now()
        if trace is not None:
            write_trace(trace, self._recorder, self._names, self._begin.time, end.time)
        return profile_between(
            self._begin,
            end,
            stats,
            kind=self._kind,
            workers=self._workers,
            names=self._names,
            min_shared_bytes=self._min_shared_bytes,
            source_in_parent=self._source_in_parent,
            prefetch=self._prefetch,
        )


class _TimedJobs:
    """An iterator of jobs that notes how long each took."""

    def __init__(self, jobs: Iterator[Any], record: Callable[[int, int], None]) -> None:
        self._jobs = jobs
        self._record = record
        self._job: Any = None  # that was drawn and not given: Ctrl-C came in between

    def __iter__(self) -> _TimedJobs:
        return self

    def __next__(self) -> Any:
        begin = time.perf_counter_ns()
        if self._job is None:
            try:
                for drawn in self._jobs:  # without a call behind which it could be lost
                    self._job = drawn
                    break
                else:
                    raise StopIteration
            except StopIteration:
                raise
            except BaseException:
                self._record(SOURCE, begin)
                raise
            self._record(SOURCE, begin)
        job, self._job = self._job, None
        return job


class ProfiledIterator(_core.TimedIterator, ThroughIterator):
    """An iterator that measures how long its consumer waits for another one's elements.

    At the end of the pass it prints the profile to standard error. `next()` is C++.
    """

    def __init__(self, inner: LoaderIterator, figures: PassFigures) -> None:
        self._figures = figures
        self._measure(inner)

    def _measure(self, inner: LoaderIterator) -> None:
        self._inner = inner
        figures = self._figures
        _core.TimedIterator.__init__(self, inner, *figures.waiting(), figures.end_by_itself)
        figures.follow(inner)

    # What is under it has to know them, too.
    @property
    def _loader(self) -> Any:
        return self._inner._loader

    @_loader.setter
    def _loader(self, loader: Any) -> None:
        self._inner._loader = loader

    @property
    def _pass(self) -> Any:
        return self._inner._pass

    @_pass.setter
    def _pass(self, of_loader: Any) -> None:
        self._inner._pass = of_loader

    def _seen_through(self, kind: Callable[[Any], LoaderIterator]) -> LoaderIterator:
        self._measure(kind(self._inner))
        return self

    def _prefetch_to(self, function: Callable[[Any], Any], depth: int) -> LoaderIterator:
        # What the trainer waits for is a result of the thread, so that is measured.
        loader = self._loader
        with loader._lock:
            inner = self._inner._prefetch_to(self._figures.timed_function(function), depth)
            iterator = ProfiledIterator(inner, self._figures)
            self._is_handed_over = True
            loader._take_place(self, iterator)
            return iterator

    def _before_report(self, call: Callable[[], Callable[[], None] | None]) -> None:
        self._figures.before_print(call)

    def profile(self, trace: Any = None) -> LoaderProfile:
        return self._figures.profile(trace)

    def close(self) -> None:
        self._figures.end()
        self._inner.close()

    async def __anext__(self) -> Any:
        begin = time.perf_counter_ns()
        try:
            element = await take(self._inner)
        except StopAsyncIteration:
            self._figures.end_by_itself()
            raise
        except BaseException:
            self._figures.record(CONSUMER, begin)
            raise
        self._figures.record(CONSUMER, begin)
        return element

    def _restart(self, jobs: Iterator[Any], skip: Sequence[int]) -> None:
        self._figures.go_on()
        super()._restart(self._figures.timed(jobs), skip)

    def __del__(self) -> None:
        figures = self.__dict__.get("_figures")
        if figures is None or self._is_handed_over:
            return
        figures.end()
        super().__del__()
