"""Locks of objects that live on in a forked child, and locks that threads wait for."""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from typing import Any

__all__ = ["release_all", "renew_lock_in_child"]

_owners: weakref.WeakSet[Any] = weakref.WeakSet()


def renew_lock_in_child(owner: Any) -> None:
    """Gives `owner` a lock, `owner._lock`, that is free in a forked child of this process.

    Another thread may hold it when the process forks. That thread is not in the child, where nobody
    would ever release it.
    """
    owner._lock = threading.RLock()
    _owners.add(owner)


def release_all(waiting: list[Any]) -> None:
    """Wakes all who wait: one alone may have what it waits for, and would deliver no further."""
    for told in list(waiting):
        with contextlib.suppress(RuntimeError):  # told already
            told.release()


def _renew() -> None:
    for owner in list(_owners):
        owner._lock = threading.RLock()


os.register_at_fork(after_in_child=_renew)
