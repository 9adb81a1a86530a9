"""Worker processes: how their server is started, and the pool that a loader talks to."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import traceback
import warnings
import weakref
from collections.abc import Iterator
from typing import Any, Protocol

from . import _core, _server
from ._iterator import LoaderIterator
from ._locks import renew_lock_in_child
from ._log_channel import LogReceiver
from ._parent import ParentFunctions
from ._pickling import dump_for_workers, track_classes, users_stacklevel, warn_of_large
from ._surroundings import Surroundings, thread_variables
from ._task import LoaderTask
from ._thread_limits import limit_library_threads
from .errors import StookError
from .options import MultiprocessingOptions
from .stats import LoaderStats, WorkerMemory

__all__ = [
    "ProcessIterator",
    "ProcessPool",
    "crosses_by_name",
    "forget_in_children",
    "start",
    "start_processes",
]

# Pools of this process, for its forked children to forget.
_pools: weakref.WeakSet[Any] = weakref.WeakSet()


def forget_in_children(pool: Any) -> None:
    """Has `pool._forget()` called in forked children of this process."""
    _pools.add(pool)


_BOOT = (
    "import sys, json; sys.path[:] = json.loads(sys.argv[1]);"
    " from stook._server import main; main(*map(int, sys.argv[2:6]))"
)


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

    def stats(self) -> LoaderStats:
        elements, size, moved, copied, errors = self.counts()
        live = self._pool.stats()
        return LoaderStats(
            elements, size, moved, copied, live.restarts, errors, live.bytes_live, live.workers
        )


class Task(Protocol):
    """What workers are started with; the server binds it, and its workers inherit that."""

    seed: Any

    def bind(self) -> Any: ...


def start_processes(
    parts: dict[str, Any],
    task: Task,
    options: MultiprocessingOptions,
    *,
    any_order: bool = False,
    most_jobs: int = 0,
) -> tuple[Any, LogReceiver]:
    """Starts a fork server, which starts the workers; returns before they are up.

    Args:
      parts: What of `task` the user knows, by the name he knows it by, for errors that name it.
      task: What the workers run.
      options: Everything else about them.
      any_order: Jobs have no order among them, and a lost one is never run again.
      most_jobs: A worker ends, and is replaced, after so many; 0: never.
    """
    if _server.load_state["loading"]:
        raise StookError(
            "a worker process imports a module that starts worker processes itself, in"
            f" {_importing_line()}; start them in a function, or under"
            " `if __name__ == '__main__':`"
        )
    limit = options.memory_limit
    if limit is None:
        limit = max(1 << 26, _core.memory_left() // 4)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    log_in, log_out = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        with theirs, log_out:
            if options.start_method == "fork":
                server = _fork_server(task, options, most_jobs, theirs, log_out, (ours, log_in))
            else:
                server = _spawn_server(parts, task, options, most_jobs, theirs, log_out)
    except BaseException:
        ours.close()
        log_in.close()
        raise
    logs = LogReceiver(log_in)
    try:
        core = _core.WorkerPool(
            socket=ours.detach(),
            server=server,
            num_workers=options.num_workers,
            per_worker_buffer_size=options.per_worker_buffer_size,
            memory_limit=limit,
            min_shared_bytes=options.min_shared_bytes,
            restart_workers=options.on_worker_death == "restart" and not any_order,
            max_restarts=options.max_restarts,
            any_order=any_order,
            functions=ParentFunctions(logs, limit),
        )
        core.watch(logs.fileno())
    except BaseException:
        logs.close()
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(server, signal.SIGKILL)
            os.waitpid(server, 0)
        raise
    return core, logs


def _spawn_server(
    parts: dict[str, Any],
    task: Task,
    options: MultiprocessingOptions,
    most_jobs: int,
    control: socket.socket,
    log: socket.socket,
) -> int:
    """A fresh interpreter that is sent everything; returns its process id."""
    settings = {
        "surroundings": Surroundings.of_this_process(),
        "threads": options.threads_per_worker,
        "min_shared_bytes": options.min_shared_bytes,
        "most_jobs": most_jobs,
    }
    data = dump_for_workers(
        {
            **parts,
            "worker_init_fn": options.worker_init_fn,
            "task": task,
        }  # task: known by its parts
    )
    warn_of_large(data, parts)
    payload = os.memfd_create("stook-payload", os.MFD_CLOEXEC)
    try:
        with open(payload, "wb", closefd=False) as file:
            pickle.dump(settings, file, protocol=5)
            file.write(data)
        os.lseek(payload, 0, os.SEEK_SET)
        return _spawn_interpreter(
            (control.fileno(), payload, log.fileno()),
            {**os.environ, **thread_variables(options.threads_per_worker)},
        )
    finally:
        os.close(payload)


def _fork_server(
    task: Task,
    options: MultiprocessingOptions,
    most_jobs: int,
    control: socket.socket,
    log: socket.socket,
    parents: tuple[socket.socket, ...],
) -> int:
    """A fork of this process, which inherits everything; returns its process id."""
    _check_forkable()
    track_classes()
    for stream in (sys.stdout, sys.stderr):  # else the children would print it again
        with contextlib.suppress(Exception):
            stream.flush()
    parent = os.getpid()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # _check_forkable has warned
        pid = os.fork()
    if pid != 0:
        return pid
    try:
        os.setpgid(0, 0)
        for end in parents:
            end.close()
        signal.set_wakeup_fd(-1)
        asyncio = sys.modules.get("asyncio")
        if asyncio is not None:
            asyncio._set_running_loop(None)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.close(null)
        os.environ.update(thread_variables(options.threads_per_worker))
        limit_library_threads(options.threads_per_worker)
        _server.serve(
            control.detach(),
            log.detach(),
            parent,
            task=task,
            init=options.worker_init_fn,
            failure=None,
            threads=options.threads_per_worker,
            min_shared_bytes=options.min_shared_bytes,
            most_jobs=most_jobs,
        )
    finally:
        os._exit(1)


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

    def iterate(self, jobs: Iterator[Any], *, ordered: bool) -> ProcessIterator:
        """Starts a pass over `jobs`; the pass before it is given up."""
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
            iterator = ProcessIterator(self._core, jobs, ordered)
            iterator._pool = self
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
            for function in (*self._task.transforms, self._task.collate)
            if function is not None and not crosses_by_name(function)
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


def _forget_pools() -> None:
    for pool in list(_pools):
        pool._forget()


os.register_at_fork(after_in_child=_forget_pools)


def _spawn_interpreter(descriptors: tuple[int, int, int], environment: dict[str, str]) -> int:
    import json

    executable = sys.executable
    if not executable:
        raise StookError(
            "this Python is embedded in another program (sys.executable is empty), so no fresh"
            " interpreter can be started; pass start_method='fork'"
        )
    entries: list[Any] = list(sys.path)  # programs put other things there, too
    path = [os.fspath(entry) for entry in entries if isinstance(entry, (str, os.PathLike))]
    # The entry of a session's or a notebook's own folder is relative to the working directory; that
    # may be gone.
    with contextlib.suppress(FileNotFoundError):
        path = [entry or os.getcwd() for entry in path]
    flags: list[str] = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
    numbers = [str(number) for number in (*descriptors, os.getpid())]
    defaults = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}
    return os.posix_spawn(
        executable,
        [executable, *flags, "-c", _BOOT, json.dumps(path), *numbers],
        environment,
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            # Onto itself: the descriptor is inherited, and by this process alone.
            *((os.POSIX_SPAWN_DUP2, number, number) for number in descriptors),
        ],
        setpgroup=0,  # the terminal's Ctrl-C is the caller's
        setsigmask=[],
        setsigdef=defaults,
    )


def crosses_by_name(function: Any) -> bool:
    """True for what pickle takes by name: functions and classes of modules that can be imported."""
    module = getattr(function, "__module__", None)
    name = getattr(function, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(name, str) or module == "__main__":
        return False
    found: Any = sys.modules.get(module)
    for step in name.split("."):
        found = getattr(found, step, None)
    return found is function


def _has_ended(child: int) -> bool:
    """True if a child process is no more; it is left for whoever is to wait for it."""
    try:
        return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return True


def _importing_line() -> str:
    """The line of a module's own level that led here."""
    for frame in traceback.extract_stack():
        if frame.name == "<module>" and "stook" not in os.path.dirname(frame.filename):
            line = f"{frame.filename}, line {frame.lineno}: {frame.line}"
            if "from stook._server" not in (frame.line or "") and frame.filename != "<string>":
                return line
    return "a line that cannot be told"


def _check_forkable() -> None:
    """Refuses to fork with CUDA initialized, and warns of threads."""
    if _cuda_initialized():
        raise RuntimeError(
            "start_method='fork' in a process that has initialized CUDA: the forked workers could"
            " not use it, nor end cleanly. Start the workers (iterate the loader) before CUDA is"
            " used, or use start_method='forkserver'"
        )
    threads = threading.enumerate()
    # tqdm's monitor and our own reclaim threads hold no lock that workers take.
    others = sum(type(thread).__name__ != "TMonitor" for thread in threads) - 1
    reclaiming = _core.reclaimer_stats()["threads"]
    native = len(os.listdir("/proc/self/task")) - len(threads) - reclaiming
    pools = [name for name in ("torch", "jax") if name in sys.modules and native > 0]
    if others > 0 or pools:
        what = f"{others} other Python threads" if others else f"threads of {', '.join(pools)}"
        warnings.warn(
            f"start_method='fork' in a process with {what}: a lock that one of them holds now stays"
            " locked in the workers. Start the workers first, or use start_method='forkserver'",
            RuntimeWarning,
            stacklevel=users_stacklevel(),
        )


def _cuda_initialized(descriptors: str = "/proc/self/fd") -> bool:
    """True if this process holds an NVIDIA device open, which is what initializing CUDA does."""
    for name in os.listdir(descriptors):
        with contextlib.suppress(OSError):
            if os.readlink(os.path.join(descriptors, name)).startswith("/dev/nvidia"):
                return True
    return False
