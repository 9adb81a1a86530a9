"""The worker processes of a loader, and when they are the same ones again.

torch's workers are new processes for each iterator, unless they are to be persistent: what user
code did to the data set, to globals or to a random generator in one epoch is gone in the next.
Starting processes from nothing takes seconds, for they import torch. So what is kept from one
iterator to the next is the process that workers are forked from, which has everything imported and
the data set as it was sent; the workers that ran anything are killed when their iterator is done
with. A data set that has changed since then is sent to the workers with their jobs, in shared
memory, unless it is large: then there is another process to fork from, as there was at first.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
import select
import signal
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np

from .._locks import renew_lock_in_child
from .._pickling import dump_for_workers
from .._processes import ProcessPool
from .._start import _Spawning
from ..errors import StookError
from ..options import MultiprocessingOptions
from ..shared_memory_array import SharedMemoryArray
from ._worker import WorkerTask

__all__ = ["Crew", "CrewStore"]

# Each worker makes a copy of its own of an update. What workers are started with they share.
_MOST_BYTES_UPDATED = 1 << 26


class Crew:
    """The workers of one iterator at a time."""

    def __init__(self, task: WorkerTask, options: MultiprocessingOptions, digest: bytes) -> None:
        self.digest = digest
        self.update: Any = None  # the task that its workers are to take in the place of their own
        self.update_digest = b""
        self.options = options
        self.used: set[int] = set()  # workers that were given a job since they were new
        self.heard: set[int] = set()  # and those of them that something came from
        self._extensions = task.extensions
        self._made_by = os.getpid()
        self._pool = ProcessPool(task, options)

    @property
    def is_of_another_process(self) -> bool:
        return os.getpid() != self._made_by

    def iterate(self, jobs: Iterator[Any], *, ordered: bool) -> Any:
        return self._pool.iterate(jobs, ordered=ordered)

    def take_over(self, task: WorkerTask, digest: bytes, size: int) -> bool:
        """Has the workers to come run `task`, whose digest and size these are; or returns False."""
        if digest == self.digest:
            self.update, self.update_digest = None, b""
            return True
        if digest == self.update_digest:
            return True
        if size > _MOST_BYTES_UPDATED or task.extensions != self._extensions:
            return False
        with _Spawning():
            data = dump_for_workers({"task": task})
        try:
            if dump_for_workers({"task": task}) != data:
                return False  # it holds pipes, which a process can but inherit
        except StookError:
            return False  # or queues, or locks
        try:
            self.update = SharedMemoryArray(len(data), np.uint8)
        except OSError:
            return False
        self.update.unlink_on_del()
        self.update[:] = np.frombuffer(data, np.uint8)
        self.update_digest = digest
        return True

    def pids(self) -> list[int]:
        core = self._pool._core
        return [] if core is None or not core.is_open else core.worker_pids

    @property
    def can_be_renewed(self) -> bool:
        """False if killing what was used would look as if workers could not even start.

        How often that may happen is bounded by `max_restarts`, which is a large number unless lost
        jobs are run again.
        """
        return self.options.on_worker_death == "raise" or self.used <= self.heard

    def renew(self) -> None:
        """Kills the workers that were used; the next job brings new ones in their places."""
        if self.is_of_another_process:
            return
        core = self._pool._core
        if core is None or not core.is_open:
            return
        ended = []
        try:
            for index, pid in enumerate(core.worker_pids):
                if index in self.used and pid > 0:
                    with contextlib.suppress(OSError):
                        descriptor = os.pidfd_open(pid)
                        ended.append(descriptor)
                        if _parent_of(pid) == core.server_pid:  # not yet somebody else's number
                            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            # A job of the next iterator must not fall to one that is about to die.
            for descriptor in ended:
                ready = select.poll()
                ready.register(descriptor, select.POLLIN)
                ready.poll(1000)
        finally:
            for descriptor in ended:
                os.close(descriptor)
        self.used.clear()
        self.heard.clear()

    def close(self) -> None:
        """Ends every process. Tensors stay valid."""
        self._pool.close()


def _parent_of(pid: int) -> int:
    with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
        return int(file.read().rpartition(")")[2].split()[1])


class CrewStore:
    """Crews of one loader that no iterator has, and the end of them all.

    The loader holds it, and each of its iterators, so that `for x in DataLoader(...)` keeps its
    workers. It holds neither.
    """

    _lock: Any  # see _locks.py

    def __init__(self) -> None:
        renew_lock_in_child(self)
        self._idle: list[Crew] = []
        self._all: weakref.WeakSet[Crew] = weakref.WeakSet()
        self._finalizer = weakref.finalize(self, _close_all, self._all)

    def take(self, task: WorkerTask, options: MultiprocessingOptions, *, reuse: bool) -> Crew:
        """Workers as good as new. Without `reuse` they are new, and so is where they come from."""
        digest = b""
        if reuse and options.start_method != "fork":
            digest, size = _digest(task)
            with self._lock:
                idle, self._idle = self._idle, []
            found = None
            for crew in idle:
                if crew.is_of_another_process:
                    continue  # of which this one is a fork
                if found is None and crew.options == options and crew.take_over(task, digest, size):
                    found = crew
                else:
                    crew.close()
            if found is not None:
                return found
        crew = Crew(task, options, digest)
        with self._lock:
            self._all.add(crew)
        return crew

    def give_back(self, crew: Crew) -> None:
        """Of an iterator that is done with it."""
        if not crew.digest or not crew.can_be_renewed:
            crew.close()
            return
        crew.renew()
        with self._lock:
            if not self._idle:
                self._idle.append(crew)
                return
        crew.close()

    def close(self) -> None:
        """Ends all processes, also those of iterators that go on."""
        self._finalizer()


def _close_all(crews: weakref.WeakSet[Crew]) -> None:
    for crew in list(crews):
        crew.close()


def _digest(task: WorkerTask) -> tuple[bytes, int]:
    """Tells whether a task is what workers were started with, for the data set may have changed.

    Beside it, how many bytes it has.
    """
    parts = {"dataset": task.source, "collate_fn": task.collate_fn}
    buffers: list[pickle.PickleBuffer] = []  # large arrays, which are looked at where they lie
    with _Spawning():
        data = dump_for_workers(
            {**parts, "worker_init_fn": task.worker_init_fn, "task": task}, buffers
        )
    digest = hashlib.blake2b(data)
    size = len(data)
    for buffer in buffers:
        with buffer.raw() as view:
            digest.update(view)
            size += view.nbytes
    return digest.digest(), size
