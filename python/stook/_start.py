"""How worker processes are started: first their fork server, fresh or a fork of this process."""

from __future__ import annotations

import contextlib
import mmap
import multiprocessing.process
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
from multiprocessing import context, popen_spawn_posix
from typing import Any, Protocol

from . import _core, _server
from ._log_channel import LogReceiver
from ._parent import ParentFunctions
from ._pickling import dump_for_workers, track_classes, users_stacklevel, warn_of_large
from ._surroundings import Surroundings, thread_variables
from ._thread_limits import limit_library_threads
from .errors import StookError
from .options import MultiprocessingOptions

__all__ = ["Task", "crosses_by_name", "forget_in_children", "start_processes"]

# Pools of this process, for its forked children to forget.
_pools: weakref.WeakSet[Any] = weakref.WeakSet()


def forget_in_children(pool: Any) -> None:
    """Has `pool._forget()` called in forked children of this process."""
    _pools.add(pool)


def _forget_pools() -> None:
    for pool in list(_pools):
        pool._forget()


os.register_at_fork(after_in_child=_forget_pools)


_BOOT = (
    "import sys, json; sys.path[:] = json.loads(sys.argv[1]);"
    " from stook._server import main; main(*map(int, sys.argv[2:6]))"
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
    start_on_demand: bool = False,
    most_jobs: int = 0,
) -> tuple[Any, LogReceiver]:
    """Starts a fork server, which starts the workers; returns before they are up.

    Args:
      parts: What of `task` the user knows, by the name he knows it by, for errors that name it.
      task: What the workers run.
      options: Everything else about them.
      any_order: Jobs have no order among them, and a lost one is never run again.
      start_on_demand: Each worker is started when there are more tasks than workers.
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
    policy = getattr(task, "policy", None)
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
            start_on_demand=start_on_demand,
            report_losses=not any_order and getattr(policy, "takes_losses", False),
            element_timeout=None if any_order else getattr(options, "timeout", None),
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
        # Managers and listeners of `multiprocessing` ask for it.
        "authkey": bytes(multiprocessing.process.current_process().authkey),
    }
    with _Spawning() as spawning:
        buffers: list[pickle.PickleBuffer] = []
        data = dump_for_workers(
            # The user knows the task by its parts.
            {**parts, "worker_init_fn": options.worker_init_fn, "task": task},
            buffers,
        )
        warn_of_large(data, buffers, parts)
    settings["descriptors"] = spawning.descriptors
    settings["data"] = len(data)
    settings["buffers"] = [buffer.raw().nbytes for buffer in buffers]
    payload = os.memfd_create("stook-payload", os.MFD_CLOEXEC)
    try:
        with open(payload, "wb", closefd=False) as file:
            pickle.dump(settings, file, protocol=5)
            file.write(data)
            for buffer in buffers:
                file.seek(-file.tell() % mmap.PAGESIZE, os.SEEK_CUR)
                with buffer.raw() as view:
                    file.write(view)
        os.lseek(payload, 0, os.SEEK_SET)
        return _spawn_interpreter(
            (control.fileno(), payload, log.fileno()),
            spawning.descriptors,
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


class _Spawning:
    """While this is entered, what `multiprocessing` sends to new processes alone can be pickled.

    Its queues, locks and pipes, that is; their descriptors are inherited.
    """

    def __init__(self) -> None:
        self.descriptors: list[int] = []

    def duplicate_for_child(self, descriptor: int) -> int:
        self.descriptors.append(descriptor)
        return descriptor

    @staticmethod
    def DupFd(descriptor: int) -> Any:  # noqa: N802 (multiprocessing calls it)
        return popen_spawn_posix._DupFd(descriptor)

    def __enter__(self) -> _Spawning:
        context.set_spawning_popen(self)
        return self

    def __exit__(self, *_: object) -> None:
        context.set_spawning_popen(None)


def _spawn_interpreter(
    descriptors: tuple[int, int, int], others: list[int], environment: dict[str, str]
) -> int:
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
            *((os.POSIX_SPAWN_DUP2, number, number) for number in {*descriptors, *others}),
        ],
        setpgroup=0,  # the terminal's Ctrl-C is the caller's
        setsigmask=[],
        setsigdef=defaults,
    )


# `__mp_main__`: a script in a process that multiprocessing has spawned.
_MAIN = ("__main__", "__mp_main__")


def crosses_by_name(function: Any) -> bool:
    """True for what pickle takes by name: functions and classes of modules that can be imported."""
    module = getattr(function, "__module__", None)
    name = getattr(function, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(name, str) or module in _MAIN:
        return False
    found: Any = sys.modules.get(module)
    for step in name.split("."):
        found = getattr(found, step, None)
    return found is function


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
