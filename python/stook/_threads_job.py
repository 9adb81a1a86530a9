"""What the threads of a loader do, and what they share with the consumer of a pass."""

from __future__ import annotations

import os
import threading
from typing import Any

from ._async_iteration import Waiters
from ._policy import progress
from ._task import LoaderTask
from ._threads_crew import end_if_forked
from .errors import ElementError

__all__ = ["Job", "Shared", "make"]


class Job:
    """A job that was dealt and is not delivered.

    `began` is written by its thread and read by the consumer; the rest belongs to the consumer,
    `given_up`, `void` and `ended` to whoever holds the pass's lock.
    """

    __slots__ = ("began", "ended", "epoch", "given_up", "losses", "payload", "position", "void")

    def __init__(self, epoch: int, position: int, payload: Any, *_: Any) -> None:
        self.epoch = epoch
        self.position = position
        self.payload = payload
        self.losses: tuple[Any, ...] = ()
        # Number of the item under way and when it was begun, as _policy.py notes it.
        self.began: list[tuple[int, float] | None] = [None]
        self.given_up = False  # by the consumer, who does not want what its thread brings
        self.void = False  # nor this, but then the thread is to go on
        self.ended = False


class Shared:
    """What consumer and threads share of one pass.

    `done` is written by the threads and read by the consumer, `over` the other way round; both
    under `changed`. `dict` keeps the order in which elements came.
    """

    __slots__ = ("changed", "done", "over", "pid", "policy", "run", "task", "waiters")

    def __init__(self, task: LoaderTask, waiters: Waiters) -> None:
        self.task = task
        self.waiters = waiters
        self.run = task.bind(where="thread")
        self.policy = task.policy
        self.pid = os.getpid()
        # On a reentrant lock: a finalizer may close the loader of this pass in the middle of it.
        self.changed = threading.Condition()
        self.done: dict[int, tuple[bool, Any]] = {}
        self.over = False


def make(
    shared: Shared, number: int, job: Job, _refused: BaseException | None = None
) -> bool | None:
    """In a thread: makes an element, or its error."""
    if shared.over:
        return None
    if job.void:
        with shared.changed:
            job.ended = True
        return None
    losses = (job.losses,) if job.losses else ()
    progress.cell = job.began
    try:
        element = shared.run(job.epoch, job.position, job.payload, *losses)
    except KeyboardInterrupt as error:
        # Ctrl-C comes to the main thread. This was raised by user code, and would end the program.
        wrapped = ElementError(
            f"KeyboardInterrupt was raised while loading element {job.position}: {error!r}",
            job.position,
        )
        wrapped.__cause__ = error
        ended = _put(shared, number, job, False, wrapped)
        del wrapped  # which holds this frame
    except BaseException as error:
        ended = _put(shared, number, job, False, error)
    else:
        ended = _put(shared, number, job, True, element)
    progress.cell = None
    return ended


def _put(shared: Shared, number: int, job: Job, success: bool, value: Any) -> bool:
    end_if_forked(shared.pid, None if success else value)
    with shared.changed:
        job.ended = True
        if not shared.over and not job.given_up and not job.void:
            shared.done[number] = success, value
            shared.changed.notify()
            shared.waiters.tell()
        return job.given_up
