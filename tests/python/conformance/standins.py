"""Puts other classes in the place of the standard library's pools.

Every process of a conformance run imports this at its start, from a .pth file of the run's virtual
environment, before any code of the run: the suites, their worker processes and the scripts that
they start then find the stand-ins where they look for `multiprocessing.Pool` and
`concurrent.futures.ProcessPoolExecutor`. The environment variable names the module that holds them.
It is imported when the first of them is asked for, so that processes without pools start fast.
"""

from __future__ import annotations

import concurrent.futures
import faulthandler
import importlib
import multiprocessing
import multiprocessing.context
import multiprocessing.dummy
import multiprocessing.pool
import os
from types import ModuleType
from typing import Any

VARIABLE = "STOOK_CONFORMANCE"

ORIGINAL_POOL = multiprocessing.pool.Pool


def target() -> ModuleType:
    """The module whose classes are tested: stook, or a check of the harness itself."""
    return importlib.import_module(os.environ[VARIABLE])


def stand_in(name: str) -> Any:
    """The class of that name that is tested."""
    return getattr(target(), name)


def pool_of_context(
    context: Any,
    processes: Any = None,
    initializer: Any = None,
    initargs: Any = (),
    maxtasksperchild: Any = None,
) -> Any:
    """In the place of the method Pool of every context, and so of multiprocessing.Pool."""
    method = context.get_start_method()
    pool = stand_in("Pool")
    if not isinstance(method, str):  # a context that only a test has
        return pool(processes, initializer, initargs, maxtasksperchild, context=context)
    return pool(processes, initializer, initargs, maxtasksperchild, start_method=method)


class PoolOfModule(ORIGINAL_POOL):
    """In the place of multiprocessing.pool.Pool; managers take theirs from there.

    A class, because the original and the standard library's ThreadPool find their methods by that
    name; making an instance of it makes one of the stand-in.
    """

    def __new__(
        cls,
        processes: Any = None,
        initializer: Any = None,
        initargs: Any = (),
        maxtasksperchild: Any = None,
        context: Any = None,
    ) -> Any:
        if context is None:
            context = multiprocessing.get_context()
        return pool_of_context(context, processes, initializer, initargs, maxtasksperchild)


def pool_of_threads(processes: Any = None, initializer: Any = None, initargs: Any = ()) -> Any:
    """In the place of multiprocessing.dummy.Pool."""
    return stand_in("ThreadPool")(processes, initializer, initargs)


def install() -> None:
    """Replaces them in this process."""
    # What hangs or crashes must show where, in scripts that are started without flags too.
    faulthandler.enable()
    pools: Any = multiprocessing.pool
    contexts: Any = multiprocessing.context
    pools.Pool = PoolOfModule
    contexts.BaseContext.Pool = pool_of_context
    multiprocessing.Pool = contexts._default_context.Pool
    multiprocessing.dummy.Pool = pool_of_threads

    futures: Any = concurrent.futures
    lazy = futures.__getattr__

    def attribute(name: str) -> Any:
        return stand_in(name) if name == "ProcessPoolExecutor" else lazy(name)

    futures.__getattr__ = attribute
    futures.__dict__.pop("ProcessPoolExecutor", None)


if VARIABLE in os.environ:
    install()
