"""Signal handlers, and what raises their signal in the midst of something."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from stook._task_pool import TaskPool

SIGNAL = signal.SIGUSR1


@contextlib.contextmanager
def handled_by(handle: Callable[[], object]) -> Iterator[None]:
    """Has `handle()` called in the main thread for each SIGNAL."""

    def handler(number: int, frame: object) -> None:
        handle()

    before = signal.signal(SIGNAL, handler)
    try:
        yield
    finally:
        signal.signal(SIGNAL, before)


@contextlib.contextmanager
def signal_when_waiting(pool: TaskPool) -> Iterator[None]:
    """Sends one SIGNAL to the main thread once that delivers."""
    over = threading.Event()

    def send() -> None:
        while not pool._queue.is_pumped_by_main and not over.is_set():
            os.sched_yield()
        signal.pthread_kill(threading.main_thread().ident or 0, SIGNAL)

    sender = threading.Thread(target=send)
    sender.start()
    try:
        yield
    finally:
        over.set()
        sender.join()


class _Signals:
    def __init__(self) -> None:
        self.process = os.getpid()

    def send(self) -> None:
        """In the process that made it; returns after the handler, if the main thread calls it."""
        if os.getpid() == self.process:
            signal.pthread_kill(threading.main_thread().ident or 0, SIGNAL)


class WhenPickled(_Signals):
    """Sends SIGNAL each time it is pickled where it was made."""

    def __getstate__(self) -> dict[str, Any]:
        self.send()
        return self.__dict__


class WhenUnpickled(_Signals):
    """Sends SIGNAL each time it is unpickled where it was made."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.send()


def same_of(signals: _Signals, value: Any) -> Any:
    return signals, value


def wait_until_there(path: str, value: Any) -> Any:
    while not os.path.exists(path):
        time.sleep(0.001)
    return value
