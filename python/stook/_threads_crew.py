"""A fixed number of threads that take jobs from one queue: under a loader and under a pool."""

from __future__ import annotations

import atexit
import contextlib
import os
import queue
import sys
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

from ._results import report
from ._worker import end_forked_child

__all__ = ["GRACE_SECONDS", "LONGEST_SLEEP", "Crew", "Job", "end_if_forked"]

# Called with `None`, or with what the initializer raised: then it is not to run, but to fail so. It
# returns `True` if its thread has been replaced (`Crew.replace_one`) and is to end.
Job = Callable[[BaseException | None], "bool | None"]

# A thread cannot be ended from outside. This is how long `close()`, the interpreter's exit and
# whoever else must not hang wait for user code that is under way.
GRACE_SECONDS = 1.0

# A signal that comes just before a thread sleeps does not wake it: nobody sleeps longer than this.
LONGEST_SLEEP = 1.0

_crews: weakref.WeakSet[Crew] = weakref.WeakSet()


class Crew:
    """Daemon threads, started at once, that run jobs in the order in which they are put.

    The threads hold the queue and not this object, so that its owner can be dropped. They are
    daemon threads because one that is stuck in user code must not keep the interpreter from its
    exit.
    """

    def __init__(
        self,
        count: int,
        name: str,
        initializer: Callable[..., Any] | None = None,
        initargs: tuple[Any, ...] = (),
    ) -> None:
        # Reentrant, unlike queue.Queue: a finalizer may put something while a thread is in put().
        self.jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._count = count
        self._pid = os.getpid()
        self.threads: list[threading.Thread] = []
        self._name = name
        self._started = 0
        self._arguments = (self.jobs, self._pid, initializer, initargs)
        try:
            for _ in range(count):
                self._start_one()
        except BaseException:  # no more threads to be had
            self.end()
            raise
        _crews.add(self)

    def _start_one(self) -> None:
        name = f"{self._name}-{self._started}"
        thread = threading.Thread(target=_work, args=self._arguments, name=name, daemon=True)
        thread.start()
        self._started += 1
        # Without those that were replaced and have come to their end.
        self.threads = [*(other for other in self.threads if other.is_alive()), thread]

    def replace_one(self) -> None:
        """Starts a thread in the place of one whose job does not come back; see `Job`."""
        self._start_one()
        self._count += 1

    @property
    def is_of_this_process(self) -> bool:
        """False in a forked child, which has none of the threads."""
        return os.getpid() == self._pid

    def has(self, thread: threading.Thread) -> bool:
        """Tells whether it is one of these threads."""
        return thread in self.threads

    def end(self) -> list[Job]:
        """Lets each thread end after what it does now; returns the jobs that nobody will run."""
        left = []
        if self.is_of_this_process:
            with contextlib.suppress(queue.Empty):
                while True:
                    job = self.jobs.get_nowait()
                    if job is not None:
                        left.append(job)
            for _ in range(self._count):
                self.jobs.put(None)
        return left

    def join(self, timeout: float | None = None) -> bool:
        """Waits for the threads, without the calling one; returns whether all have ended."""
        end = None if timeout is None else time.monotonic() + timeout
        if not self.is_of_this_process:
            return True
        others = [thread for thread in self.threads if thread is not threading.current_thread()]
        for thread in others:
            thread.join(None if end is None else max(0.0, end - time.monotonic()))
        return not any(thread.is_alive() for thread in others)


def _work(
    jobs: queue.SimpleQueue[Job | None],
    pid: int,
    initializer: Callable[..., Any] | None,
    initargs: tuple[Any, ...],
) -> None:
    refused: BaseException | None = None
    if initializer is not None:
        try:
            initializer(*initargs)
        except BaseException as error:
            refused = error
        initializer = None
        end_if_forked(pid, refused)
    while True:
        job = jobs.get()
        if job is None:
            return
        replaced = None
        try:
            replaced = job(refused)
        except BaseException as error:
            end_if_forked(pid, error)
            report(error)
        del job  # and what it holds, before the next one comes
        end_if_forked(pid, None)
        if replaced:
            return


def end_if_forked(pid: int, error: BaseException | None) -> None:
    """Ends a process that user code forked off this thread and that came back from user code.

    To be called before a lock is taken: in the child, threads that are not there may hold it.
    """
    if os.getpid() == pid:
        return
    try:
        if error is None:
            print(
                f"stook: process {os.getpid()}, which user code forked off a thread of process"
                f" {pid}, returned from user code; it ends here (os._exit() ends it in its own"
                " place)",
                file=sys.stderr,
            )
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
        else:
            end_forked_child(error)
    finally:
        os._exit(1)


def _end_all() -> None:
    """At exit: lets user code that is under way come to its end, for a moment."""
    crews = list(_crews)
    for crew in crews:
        crew.end()
    end = time.monotonic() + GRACE_SECONDS
    for crew in crews:
        crew.join(max(0.0, end - time.monotonic()))


atexit.register(_end_all)
