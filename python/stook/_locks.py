"""Locks of objects that live on in a forked child."""

from __future__ import annotations

import os
import threading
import weakref
from typing import Any

__all__ = ["renew_lock_in_child"]

_owners: weakref.WeakSet[Any] = weakref.WeakSet()


def renew_lock_in_child(owner: Any) -> None:
    """Gives `owner` a lock, `owner._lock`, that is free in a forked child of this process.

    Another thread may hold it when the process forks. That thread is not in the child, where nobody
    would ever release it.
    """
    owner._lock = threading.RLock()
    _owners.add(owner)


def _renew() -> None:
    for owner in list(_owners):
        owner._lock = threading.RLock()


os.register_at_fork(after_in_child=_renew)
