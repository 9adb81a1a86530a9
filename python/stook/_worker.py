"""What a worker process does in Python, before its first job and around each."""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import itertools
import multiprocessing.process
import multiprocessing.util
import os
import random
import socket
import sys
from collections.abc import Callable
from typing import Any

from ._error_payload import encode_error
from ._log_channel import send_records_to
from ._pickling import pickle_dtype, pickle_objects, unpickle_dtype, unpickle_objects
from .errors import SharedMemoryExhausted
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


class WorkerFunctions:
    """What the C++ worker calls (bindings/worker_process.cpp)."""

    pickle_objects = staticmethod(pickle_objects)
    pickle_dtype = staticmethod(pickle_dtype)
    unpickle_objects = staticmethod(unpickle_objects)
    unpickle_dtype = staticmethod(unpickle_dtype)
    encode_error = staticmethod(encode_error)
    exhausted_error = staticmethod(exhausted)

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
        if self._init is not None:
            self._init(index, count)
        assert self._task is not None
        return self._task


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


# Functions by which loaded libraries are told how many threads to use.
_SETTERS = (
    "openblas_set_num_threads",
    "openblas_set_num_threads64_",
    "scipy_openblas_set_num_threads64_",
    "scipy_openblas_set_num_threads",
    "omp_set_num_threads",
    "MKL_Set_Num_Threads",
)


def limit_threads(threads: int) -> None:
    """In a worker: tells the thread pools of packages that were imported before the fork."""
    torch = sys.modules.get("torch")
    if torch is not None:
        # After a parallel operation in the forking process, torch hangs in its children otherwise.
        torch.set_num_threads(threads)
    cv2 = sys.modules.get("cv2")
    if cv2 is not None:
        cv2.setNumThreads(threads if threads > 1 else 0)


def limit_library_threads(threads: int) -> None:
    """In a server forked from the caller: tells OpenMP and BLAS libraries that the caller loaded.

    A fresh interpreter needs none of this: there the libraries read the environment.
    """
    for path in _loaded_libraries(("openblas", "libgomp", "libiomp", "libomp", "libmkl_rt")):
        with contextlib.suppress(OSError):
            library = ctypes.CDLL(path, mode=os.RTLD_NOLOAD | os.RTLD_NOW)
            for name in _SETTERS:
                setter = getattr(library, name, None)
                if setter is not None:
                    setter(ctypes.c_int(threads))


def _loaded_libraries(names: tuple[str, ...]) -> list[str]:
    paths: dict[str, None] = {}
    with contextlib.suppress(OSError), open("/proc/self/maps", encoding="utf-8") as maps:
        for line in maps:
            path = line.rstrip("\n").partition("/")
            file = "/" + path[2]
            if path[1] and any(name in os.path.basename(file) for name in names):
                paths[file] = None
    return list(paths)
