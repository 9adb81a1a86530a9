"""Which worker process this is."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["WorkerInfo", "worker_info"]


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """The worker process that calls `stook.worker_info()`.

    Attributes:
      index: Number of the worker, from 0. A restarted worker keeps it.
      count: Number of workers.
      pid: Its process id.
      incarnation: How often a worker of this index was started before it.
      epoch: Epoch of the element it is working on; before the first element, 0.
    """

    index: int
    count: int
    pid: int
    incarnation: int
    epoch: int


class _State:
    """What is known in this process. `worker` and `epoch` change; the object never does."""

    __slots__ = ("epoch", "worker")

    def __init__(self) -> None:
        self.worker: tuple[int, int, int, int] | None = None
        self.epoch = 0


# The loader's task stores the epoch here before each element: one attribute, because that is paid
# for every element, while the object is built only for those who ask.
_state = _State()


def _set(index: int, count: int, pid: int, incarnation: int) -> None:
    """Called once by a worker process, before any user code."""
    _state.worker = (index, count, pid, incarnation)


def worker_info() -> WorkerInfo | None:
    """Tells which worker process this is.

    Returns:
      A `WorkerInfo` in a worker process, `None` everywhere else: so in the consumer, also while it
      runs user code itself with `num_workers=0`.

    Example:
      >>> worker_info() is None
      True
    """
    worker = _state.worker
    return None if worker is None else WorkerInfo(*worker, _state.epoch)
