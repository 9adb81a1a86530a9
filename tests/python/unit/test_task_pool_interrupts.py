"""Ctrl-C wherever it may come while a TaskPool is closed."""

from __future__ import annotations

import contextlib
import queue
import threading
import weakref
from typing import Any

import stook._task_pool
from interrupts import Ctrl, RaisesOnce, every_place
from stook._locks import renew_lock_in_child
from stook._task_pool import TaskPool


class Queue:
    """The tasks of a pool, and its processes."""

    def __init__(self) -> None:
        self.is_open = True
        self.outstanding = 1

    def close(self) -> None:
        self.is_open = False

    def fail_all(self, error: BaseException) -> None:
        assert not self.is_open
        self.outstanding = 0


class Logs:
    def close(self) -> None:
        pass


def make() -> TaskPool:
    """A pool without processes."""
    pool: Any = object.__new__(TaskPool)
    renew_lock_in_child(pool)
    pool._queue, pool._logs = Queue(), Logs()
    pool._closed = pool._has_ended = False
    pool._closer = 0
    pool._ended = threading.Event()
    pool._waiting = [threading.Lock()]
    pool._waiting[0].acquire()
    pool._work = queue.SimpleQueue()
    pool._functions, pool._last_made = {}, weakref.WeakKeyDictionary()
    return pool  # type: ignore[no-any-return]


def test_what_is_outstanding_fails_wherever_closing_is_interrupted() -> None:
    def run(once: RaisesOnce) -> None:
        pool = make()
        with contextlib.suppress(Ctrl), once:
            pool.close()
        pool.close()  # as a pool is closed at the exit
        assert not pool._queue.is_open, once.place
        assert pool.outstanding == 0, once.place
        # A thread that waits for the end hears of it.
        pool._closer = 0
        assert pool._wait_for_end(lambda: True, None), once.place

    every_place({stook._task_pool.__file__}, run)
