"""The `timeout` of `stook.torch.DataLoader`."""

from __future__ import annotations

import threading
import time
from typing import Any

__all__ = ["Deadline"]


class Deadline:
    """Closes a pass whose `next()` takes too long, from a thread of its own."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._condition = threading.Condition()
        self._until: float | None = None
        self._results: Any = None
        self._closed = False
        self._thread: threading.Thread | None = None
        self.has_passed = False

    def around(self, results: Any) -> Deadline:
        self._results = results
        return self

    def __enter__(self) -> None:
        with self._condition:
            self._until = time.monotonic() + self._seconds
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._watch, name="stook-torch-timeout", daemon=True
                )
                self._thread.start()
            self._condition.notify()

    def __exit__(self, *_: object) -> None:
        with self._condition:
            self._until = None
            self._results = None

    def close(self) -> None:
        with self._condition:
            self._closed = True
            self._condition.notify()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _watch(self) -> None:
        with self._condition:
            while not self._closed:
                if self._until is None:
                    self._condition.wait()
                elif (left := self._until - time.monotonic()) > 0:
                    self._condition.wait(left)
                else:
                    self.has_passed = True
                    self._results.close()
                    return
