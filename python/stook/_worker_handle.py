"""A worker process as a program sees it, which is not its parent."""

from __future__ import annotations

import contextlib
import os
import select
import signal
from typing import NamedTuple

__all__ = ["Death", "WorkerHandle"]


class Death(NamedTuple):
    """A worker that ended although nobody had asked it to."""

    worker: int
    pid: int
    exit_code: int


class WorkerHandle:
    """A worker process, with what `multiprocessing.Process` says of itself."""

    daemon = True

    def __init__(self, exit_codes: dict[int, int], pid: int) -> None:
        self._exit_codes = exit_codes
        self.pid = pid
        self.name = f"StookWorker-{pid}"
        try:
            self.sentinel = os.pidfd_open(pid)
        except OSError:  # it has ended
            self.sentinel = -1

    @property
    def ident(self) -> int:
        return self.pid

    def is_alive(self) -> bool:
        return self.sentinel >= 0 and not self._ended(0.0)

    def join(self, timeout: float | None = None) -> None:
        """Waits until the process has ended."""
        self._ended(timeout)

    def terminate(self) -> None:
        self._send(signal.SIGTERM)

    def kill(self) -> None:
        self._send(signal.SIGKILL)

    @property
    def exitcode(self) -> int | None:
        """`None` while it lives; also if it ended and nobody looked at the pool since."""
        return self._exit_codes.get(self.pid)

    def _ended(self, timeout: float | None) -> bool:
        if self.sentinel < 0:
            return True
        ready = select.poll()
        ready.register(self.sentinel, select.POLLIN)
        return bool(ready.poll(None if timeout is None else max(0, int(timeout * 1000))))

    def _send(self, number: int) -> None:
        if self.sentinel >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.sentinel, number)

    def __del__(self) -> None:
        sentinel = getattr(self, "sentinel", -1)
        if sentinel >= 0:
            os.close(sentinel)

    def __repr__(self) -> str:
        return f"<WorkerHandle pid={self.pid} {'alive' if self.is_alive() else 'ended'}>"
