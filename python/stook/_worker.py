"""What a worker process does in Python, before its first job and around each."""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import itertools
import multiprocessing.process
import multiprocessing.util
import os
import pickle
import random
import socket
import sys
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

from ._element_errors import SKIP, Report
from ._error_payload import encode_error, mark_undecodable
from ._log_channel import send_records_to
from ._pickling import pickle_dtype, pickle_results, unpickle_dtype, unpickle_objects
from ._random import torch_generator
from ._thread_limits import limit_threads
from .errors import ElementError, SharedMemoryExhausted
from .worker_info import _set as set_worker_info

__all__ = ["WorkerFunctions", "exhausted"]


def exhausted(requested: int, capacity: int) -> SharedMemoryExhausted:
    """The error of an element that does not fit."""
    return SharedMemoryExhausted(
        f"an element needs {requested} bytes of shared memory, and the {capacity} bytes that were"
        " reserved, or the machine's memory, have no room for them. Make elements smaller"
        " (smaller batches), hold fewer of them, or raise the limit of the process (ulimit -v) or"
        " of its container's memory",
        requested,
        capacity,
    )


def end_forked_child(error: BaseException | None) -> NoReturn:
    """Ends a process that user code forked off a worker and that came back from user code.

    In a program of its own it would go on with the lines behind the call; here those are a
    worker's. What it may expect is its exit status and its exit handlers.
    """
    if isinstance(error, ElementError) and error.__cause__ is not None:
        error = error.__cause__
    status = 1
    try:
        if isinstance(error, SystemExit):
            if error.code is None or isinstance(error.code, int):
                status = error.code or 0
            else:
                print(error.code, file=sys.stderr)
        elif error is not None and sys.excepthook is sys.__excepthook__:
            # As that hook prints it, but in one piece: other children may print at the same time.
            text = traceback.format_exception(type(error), error, error.__traceback__)
            print("".join(text), end="", file=sys.stderr)
        elif error is not None:
            sys.excepthook(type(error), error, error.__traceback__)
        else:
            print(
                f"stook: process {os.getpid()}, which user code forked off worker process"
                f" {os.getppid()}, returned from user code; it ends here (os._exit() ends it in"
                " its own place)",
                file=sys.stderr,
            )
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
    finally:
        os._exit(status & 0xFF)


def retire() -> NoReturn:
    """Ends a worker that has run as many jobs as it was to run."""
    try:
        run_finalizers()
    finally:
        os._exit(0)


def run_finalizers() -> None:
    """Does what a process of `multiprocessing` does at its end."""
    with contextlib.suppress(Exception):
        multiprocessing.util._exit_function()  # type: ignore[attr-defined]
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()


def undecodable_arguments(error: BaseException) -> BaseException:
    return mark_undecodable(error, "arguments")


class WorkerFunctions:
    """What the C++ worker calls (bindings/worker_process.cpp)."""

    pickle_objects = staticmethod(pickle_results)
    pickle_dtype = staticmethod(pickle_dtype)
    unpickle_objects = staticmethod(unpickle_objects)
    unpickle_dtype = staticmethod(unpickle_dtype)
    encode_error = staticmethod(encode_error)
    exhausted_error = staticmethod(exhausted)
    end_forked_child = staticmethod(end_forked_child)
    load_function = staticmethod(pickle.loads)
    undecodable_arguments = staticmethod(undecodable_arguments)
    run_finalizers = staticmethod(run_finalizers)
    retire = staticmethod(retire)
    report_type = Report
    skip = SKIP

    def __init__(
        self,
        task: Callable[..., Any] | None,
        *,
        failure: BaseException | None = None,
        init: Callable[[int, int], Any] | None = None,
        threads: int = 1,
        seeded: bool = True,
        log_channel: socket.socket | None = None,
        parent: int = 0,
    ) -> None:
        self._task = task
        self._failure = failure
        self._init = init
        self._threads = threads
        self._seeded = seeded
        self._log_channel = log_channel
        self._parent = parent

    def set_up(self, index: int, count: int, incarnation: int) -> Callable[..., Any]:
        """Makes a process that was just forked a worker, and returns its task."""
        # A child of the server's state: what happened there is told by each worker, once.
        if self._failure is not None:
            raise self._failure
        set_worker_info(index, count, os.getpid(), incarnation)
        _set_up_streams()
        _become_multiprocessing_child(index, self._parent)
        with contextlib.suppress(Exception):  # stderr may be closed, or no file
            faulthandler.enable()
        if self._log_channel is not None:
            send_records_to(self._log_channel)
        limit_threads(self._threads)
        if not self._seeded:
            # Forked from one state, all workers would draw the same numbers.
            random.seed()
            if "numpy.random" in sys.modules:
                sys.modules["numpy.random"].seed()
            torch = torch_generator()
            if torch is not None:  # not torch.seed(): that would initialize CUDA's as well
                torch.seed()
        if self._init is not None:
            self._init(index, count)
        assert self._task is not None
        return self._task


def _set_up_streams() -> None:
    """Standard input is empty; what is printed is out at the line's end, for a worker is killed."""
    # Not closed: the file may be shared with code that holds it, and descriptor 0 is /dev/null.
    sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: SIM115 (for the process's life)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # None, or another kind of file
            stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]


def _become_multiprocessing_child(index: int, parent: int) -> None:
    """Gives `multiprocessing` a current process that can start processes of its own."""
    process: Any = multiprocessing.process
    util: Any = multiprocessing.util
    util._finalizer_registry.clear()
    util._run_after_forkers()
    process._process_counter = itertools.count(1)
    process._children = set()
    current = process.BaseProcess(name=f"StookWorker-{index}")
    current._identity = (index + 1,)
    current._parent_pid = parent
    process._current_process = current
    with contextlib.suppress(OSError):
        process._parent_process = process._ParentProcess(
            "MainProcess", parent, os.pidfd_open(parent)
        )
