"""What becomes of executors' pools when the interpreter ends."""

from __future__ import annotations

import atexit
import os
import sys
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ._futures import FuturePool

__all__ = ["AFTER_EXIT", "enter", "is_exiting", "join", "leave"]

AFTER_EXIT = "cannot schedule new futures after interpreter shutdown"

_LOOK = 0.2  # seconds for which Ctrl-C may go unnoticed

_pools: set[FuturePool] = set()
_exit_state = {"exiting": False}


def enter(pool: FuturePool) -> None:
    """Has a pool finished, or ended, at the exit."""
    _pools.add(pool)


def leave(pool: FuturePool) -> None:
    """It has ended before."""
    _pools.discard(pool)


def is_exiting() -> bool:
    """True once no pool can be made any more."""
    return _exit_state["exiting"]


def join(thread: threading.Thread) -> None:
    """Waits for the end of a pool's thread, and for Ctrl-C.

    `Thread.join()` without a limit sleeps through a signal that comes between Python's last look
    at its flags and that sleep, which on a busy machine can lie far apart.
    """
    while thread.is_alive():
        thread.join(_LOOK)


def _finish_pools() -> None:
    """What was submitted is done before the interpreter ends, unless Ctrl-C is what ends it."""
    _exit_state["exiting"] = True
    pools = list(_pools)
    try:
        for pool in pools:
            pool.shut_down(wait=False, why=AFTER_EXIT)
        ended_by = getattr(sys, "last_type", None)  # of a program, not of a session's line
        if ended_by is KeyboardInterrupt and not hasattr(sys, "ps1"):
            raise KeyboardInterrupt
        for pool in pools:
            join(pool.thread)
    except KeyboardInterrupt:
        for pool in pools:
            pool.kill("the program was interrupted")
        for pool in pools:
            join(pool.thread)


try:
    # Before threads are joined, and before exit handlers: those still find the pools' results.
    threading._register_atexit(_finish_pools)  # type: ignore[attr-defined]
except (AttributeError, RuntimeError):
    atexit.register(_finish_pools)

os.register_at_fork(after_in_child=_pools.clear)
