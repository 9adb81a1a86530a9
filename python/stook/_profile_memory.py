"""The memory in which a loader with `enable_profiling` keeps its figures, and what lies in it."""

from __future__ import annotations

import multiprocessing.reduction
import os
import time
import weakref
from dataclasses import dataclass
from typing import Any

from . import _core

__all__ = ["CellFigures", "Recorder", "Snapshot"]

# workers/profile.h: what a worker waits for, and the stages that are no transforms.
WAIT_MEMORY, WAIT_JOBS, WAIT_CONSUMER, WAIT_ORDER = 1, 2, 3, 4
WAIT_EVENT = 100
ELEMENT, ENCODE, HAND_OVER, CONSUMER, SOURCE, COLLATE, TRANSFORMS = range(7)
# In the consumer's cell, which has no transforms: the function of prefetch_to().
PREFETCH = TRANSFORMS


class Recorder:
    """One cell for each worker, and one for the consumer behind them.

    It travels to the workers with the task they are started with. Where threads, or the consumer's
    own, make the elements, they are worker 0 together.
    """

    def __init__(self, workers: int, window: int, *, here: bool) -> None:
        self.workers = workers
        self.here = here
        self._window = window
        self._fd = os.memfd_create("stook-profile", os.MFD_CLOEXEC)
        weakref.finalize(self, os.close, self._fd)
        os.ftruncate(self._fd, _core.Profile.size(workers + 1))
        self.core = _core.Profile(self._fd, workers + 1, window, 0 if here else workers)

    def __reduce__(self) -> Any:
        descriptor: Any = multiprocessing.reduction.DupFd(self._fd)
        return _rebuild, (descriptor, self.workers, self._window)

    def snapshot(self) -> Snapshot:
        """Everything as it is now."""
        cells = [CellFigures.read(self.core, index) for index in range(self.workers + 1)]
        return Snapshot(time.perf_counter_ns(), tuple(cells))


def _rebuild(descriptor: Any, workers: int, window: int) -> Recorder:
    recorder = Recorder.__new__(Recorder)
    recorder.workers = workers
    recorder.here = False
    recorder._window = window
    recorder._fd = descriptor.detach()
    recorder.core = _core.Profile(recorder._fd, workers + 1, window, workers)
    os.close(recorder._fd)  # it is mapped
    return recorder


@dataclass(frozen=True, slots=True)
class CellFigures:
    """What one cell says; times in nanoseconds, of the clock of `time.perf_counter_ns`.

    Attributes:
      pid: Of the present worker; 0: none has come yet.
      started: When that one was ready for jobs.
      waits_for: What it waits for now, and since when (`waits_since`).
      waits: `(count, nanoseconds)` for each thing to wait for.
      stages: `(calls, nanoseconds, bytes)` for each stage.
      reasons: `(leaves, bytes, references, path, type)` for each reason; the last three of the
        first leaf.
    """

    pid: int
    started: int
    waits_for: int
    waits_since: int
    waits: list[tuple[int, int]]
    stages: list[tuple[int, int, int]]
    reasons: list[tuple[int, int, int, str, str]]

    @classmethod
    def read(cls, core: Any, index: int) -> CellFigures:
        """The figures of a cell, each as it is now."""
        return cls(*core.read(index))

    def waited(self, what: int, now: int) -> int:
        """Nanoseconds in all, up to `now`: with the wait that is under way."""
        under_way = max(0, now - self.waits_since) if self.waits_for == what else 0
        return self.waits[what][1] + under_way


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All cells at one time."""

    time: int
    cells: tuple[CellFigures, ...]
