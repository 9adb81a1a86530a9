"""The worker processes of a loader, and a pass over what they make."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Iterator, Sequence
from typing import Any

from . import _core
from ._async_iteration import ABSENT, SOON, Waiters
from ._iterator import LoaderIterator
from ._locks import renew_lock_in_child
from ._log_channel import LogReceiver
from ._pickling import dump_for_workers
from ._start import crosses_by_name, forget_in_children, start_processes
from ._state import ordinals
from ._task import LoaderTask
from .errors import StookError
from .options import MultiprocessingOptions
from .stats import LoaderStats, WorkerMemory

__all__ = ["ProcessIterator", "ProcessPool", "start"]


def start(task: LoaderTask, options: MultiprocessingOptions) -> ProcessPool:
    """Starts the worker processes that run `task`.

    Raises:
      StookError: A module that is being imported in a worker wants workers of its own; or
        something cannot be sent to the workers.
      RuntimeError: `start_method="fork"` with CUDA initialized.
      OSError: The system refuses processes, descriptors or memory.
    """
    return ProcessPool(task, options)


class ProcessIterator(_core.ResultIterator, LoaderIterator):  # type: ignore[misc]
    """A pass whose elements come from worker processes; `next()` is C++."""

    _pool: ProcessPool
    _processes: Any
    _skip: Sequence[int] = ()
    _was_closed = False

    def delivered(self) -> tuple[int, list[int]]:
        # A plan knows itself what it leaves out.
        return ordinals(self._skip, *_core.ResultIterator.delivered(self))

    def _has_ended(self) -> bool:
        return self.is_finished()

    def _restart(self, jobs: Iterator[Any], skip: Sequence[int]) -> None:
        self.restart(jobs)
        self._skip = () if isinstance(jobs, _core.IndexPlan) else skip
        self._tell_waiters()

    def _is_closed(self) -> bool:
        return self._was_closed or not self._processes.is_open

    def close(self) -> None:
        self._was_closed = self._was_closed or not self.is_finished()
        _core.ResultIterator.close(self)
        self._tell_waiters()

    def _look(self) -> Any:
        return self.poll(ABSENT, SOON)

    def _descriptor(self) -> int:
        return self.fileno()

    def _waiters(self) -> Waiters:
        self.watchers = 1  # from now on next() tells
        return LoaderIterator._waiters(self)

    def stats(self) -> LoaderStats:
        elements, size, moved, copied, errors = self.counts()
        live = self._pool.stats()
        return LoaderStats(
            elements, size, moved, copied, live.restarts, errors, live.bytes_live, live.workers
        )


class ProcessPool:
    """The worker processes of one loader."""

    _lock: Any  # see _locks.py

    def __init__(self, task: LoaderTask, options: MultiprocessingOptions) -> None:
        self._task = task
        self._options = options
        self._core: Any = None
        self._logs: LogReceiver | None = None
        self._functions_sent = b""
        # Of processes that were ended or replaced: their counts, and what of their memory is still
        # leased.
        self._base = LoaderStats()
        self._ledgers: list[Any] = []
        self._forked = False
        renew_lock_in_child(self)
        self._start()
        forget_in_children(self)

    # ---- what the loader calls -------------------------------------------------------------------

    def update(self, task: LoaderTask) -> None:
        """Takes another task for the passes to come."""
        with self._lock:
            self._task = task
            self._stop()

    def iterate(
        self,
        jobs: Iterator[Any],
        *,
        ordered: bool,
        skip: Sequence[int] = (),
        max_errors: float | None = None,
    ) -> ProcessIterator:
        """Starts a pass over `jobs`; the pass before it is given up.

        `skip`: ordinals of jobs that are left out; see `_jobs.Jobs`.
        """
        with self._lock:
            if self._forked:
                raise StookError(
                    "this loader belongs to the process that made it, and this is a forked child of"
                    " it; make a loader here"
                )
            if self._core is not None and (
                not self._core.is_open
                or _has_ended(self._core.server_pid)  # killed, with nothing under way to lose
                or self._functions_changed()
            ):
                self._stop()
            if self._core is None:
                self._start()
            most, rate = -1, 0.0
            if isinstance(max_errors, int):
                most = max_errors
            elif max_errors is not None:
                rate = max_errors
            iterator = ProcessIterator(
                self._core,
                jobs,
                ordered,
                max_errors=most,
                max_error_rate=rate,
                batched=self._task.batch_size is not None,
            )
            iterator._pool = self
            iterator._processes = self._core
            iterator._skip = () if isinstance(jobs, _core.IndexPlan) else skip
            return iterator

    def stats(self) -> LoaderStats:
        """Counts over all passes, and where the memory is."""
        with self._lock:
            base = self._counts()
            core = self._core
            held = [ledger.held_bytes() for ledger in self._ledgers]
            retired = [sum(of_worker) for of_worker in zip(*held, strict=True)]
            self._ledgers = [
                ledger for ledger, left in zip(self._ledgers, held, strict=True) if any(left)
            ]
            live = sum(retired)
            if core is None:
                memory = [(0, 0, 0, 0, 0)] * self._options.num_workers
            else:
                memory = core.memory()
                live += core.totals()[-1]
        if not retired:
            retired = [0] * len(memory)
        return dataclasses.replace(
            base,
            bytes_live=live,
            workers=tuple(
                WorkerMemory(index, mapped, touched, alive, idle, own_retired + earlier)
                for index, ((mapped, touched, alive, idle, own_retired), earlier) in enumerate(
                    zip(memory, retired, strict=True)
                )
            ),
        )

    def _counts(self) -> LoaderStats:
        """What was delivered over all passes."""
        core = self._core
        base = self._base
        if core is None:
            return base
        elements, size, moved, copied, restarts, errors, _ = core.totals()
        return LoaderStats(
            base.elements + elements,
            base.bytes + size,
            base.moved + moved,
            base.copied + copied,
            base.restarts + restarts,
            base.errors + errors,
        )

    def close(self) -> None:
        """Ends every process at once. Arrays stay valid."""
        with self._lock:
            self._stop()

    # ---- processes -------------------------------------------------------------------------------

    def _stop(self) -> None:
        if self._core is None:
            return
        self._base = self._counts()
        core, self._core = self._core, None
        self._ledgers.append(core.ledger)
        core.close()
        # What workers had made and nobody took; what somebody did take is not touched.
        _core.sweep_leftover_segments()
        if self._logs is not None:
            self._logs.close()
            self._logs = None

    def _functions_changed(self) -> bool:
        """True if user functions are not what the workers were started with.

        Functions that can be imported cross by name and do not change. Others are pickled once per
        pass, so that a closure which changed in between is not stale. Forked workers inherit
        functions, and keep what they inherited.
        """
        if self._options.start_method == "fork":
            return False
        functions = self._function_digest()
        return functions != b"" and functions != self._functions_sent

    def _function_digest(self) -> bytes:
        functions = [
            function
            for function in (*self._task.transforms, self._task.collate, self._task.policy.on_error)
            if callable(function) and not crosses_by_name(function)
        ]
        if not functions:
            return b""
        # A digest: they may hold hundreds of megabytes.
        return hashlib.blake2b(dump_for_workers({"transform": functions})).digest()

    def _start(self) -> None:
        self._core, self._logs = start_processes(
            {
                "source": self._task.source,
                "transform": self._task.transforms,
                "collate": self._task.collate,
                "on_error": self._task.policy.on_error,
                "worker_init_fn": self._options.worker_init_fn,
            },
            self._task,
            self._options,
        )
        if self._options.start_method != "fork":
            self._functions_sent = self._function_digest()

    def _forget(self) -> None:
        """In a forked child: processes and descriptors are its parent's, and stay with it."""
        core, self._core = self._core, None
        self._forked = True
        self._ledgers = []  # so is memory
        if core is not None:
            core.close()
        if self._logs is not None:
            self._logs.forget()
            self._logs = None


def _has_ended(child: int) -> bool:
    """True if a child process is no more; it is left for whoever is to wait for it."""
    try:
        return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return True
