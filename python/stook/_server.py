"""The fork server's process: takes over what it was sent, and forks workers from that state."""

from __future__ import annotations

import contextlib
import gc
import io
import mmap
import multiprocessing.process
import os
import pickle
import select
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from typing import Any

from . import _core
from ._surroundings import Surroundings
from ._worker import WorkerFunctions

__all__ = ["load_state", "main", "serve"]

# In a server, and so in its workers: what the server is doing. Loading means importing modules.
load_state = {"loading": False}


def main(control: int, payload: int, log: int, parent: int) -> None:
    """Entry of a fresh interpreter (`_processes.py` starts it); never returns."""
    for descriptor in (control, log):  # not for what user code executes
        os.set_inheritable(descriptor, False)
    # Large arrays are used where they lie: workers share the pages that they do not write to, and
    # there is no copy of them besides the one that the parent wrote.
    sent = mmap.mmap(payload, 0, access=mmap.ACCESS_COPY)
    os.close(payload)
    settings: dict[str, Any] = pickle.load(sent)
    stream = io.BytesIO(sent.read(settings["data"]))
    buffers = _buffers(sent, settings["buffers"])
    del sent  # which the arrays hold, if there are any
    surroundings: Surroundings = settings["surroundings"]
    surroundings.take_over()
    task, init, failure = None, None, None
    for descriptor in settings["descriptors"]:
        os.set_inheritable(descriptor, False)
    multiprocessing.process.current_process().authkey = settings["authkey"]
    load_state["loading"] = True
    try:
        with _ending_with(parent):
            parts = pickle.load(stream, buffers=buffers)
        init = parts["worker_init_fn"]
        task = parts["task"]
    except BaseException as error:
        # Every worker reports it, and so the consumer gets it with its traceback.
        failure = error
        if not isinstance(error, Exception):
            failure = RuntimeError(f"loading raised {error!r}")
            failure.__cause__ = error
    load_state["loading"] = False
    del stream, buffers
    surroundings.filter_warnings()
    serve(
        control,
        log,
        parent,
        task=task,
        init=init,
        failure=failure,
        threads=settings["threads"],
        min_shared_bytes=settings["min_shared_bytes"],
        most_jobs=settings["most_jobs"],
    )


def _buffers(sent: mmap.mmap, sizes: list[int]) -> list[memoryview]:
    """What lies behind the pickles, each from a page on."""
    whole = memoryview(sent)
    found = []
    begin = sent.tell()
    for size in sizes:
        begin += -begin % mmap.PAGESIZE
        found.append(whole[begin : begin + size])
        begin += size
    return found


@contextlib.contextmanager
def _ending_with(parent: int) -> Iterator[None]:
    """Ends this process if the parent ends meanwhile: what is imported may take for ever."""
    try:
        watched = os.pidfd_open(parent)
    except OSError:
        os._exit(1)
    if os.getppid() != parent:
        os._exit(1)
    stop, stopper = os.pipe()

    def watch() -> None:
        ready = select.poll()
        ready.register(watched, select.POLLIN)
        ready.register(stop, select.POLLIN)
        if any(number == watched for number, _ in ready.poll()):
            os.killpg(0, signal.SIGKILL)  # what the import started, too

    watcher = threading.Thread(target=watch, name="stook-parent-watcher", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        # Workers are forked from here, so nothing of it may be left.
        os.close(stopper)
        watcher.join()
        os.close(stop)
        os.close(watched)


def serve(
    control: int,
    log: int,
    parent: int,
    *,
    task: Any,
    init: Any,
    failure: BaseException | None,
    threads: int,
    min_shared_bytes: int,
    most_jobs: int,
) -> None:
    """Serves until the parent is gone; never returns."""
    status = 1
    try:
        # Workers inherit these; the terminal's signals are the parent's business.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
            with contextlib.suppress(ValueError, OSError):
                signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        bound = None
        seeded = True
        if task is not None and failure is None:
            try:
                bound = task.bind()
                seeded = task.seed is not None
            except Exception as error:
                failure = error
        functions = WorkerFunctions(
            bound,
            failure=failure,
            init=init,
            threads=threads,
            seeded=seeded,
            log_channel=socket.socket(fileno=log),
            parent=parent,
        )
        # What exists now is shared by all workers for ever; the collector must not write to it.
        # Without a collection before: that takes longer than forking, and saves nothing here.
        gc.freeze()
        _core.serve(control, parent, min_shared_bytes, most_jobs, functions)
        status = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(status)
