"""What the consumer's process does in Python for its C++ pool (bindings/worker_pool.cpp)."""

from __future__ import annotations

import os

from ._error_payload import decode_error, encode_error, mark_undecodable, note_set_up
from ._log_channel import LogReceiver
from ._pickling import pickle_dtype, pickle_objects, unpickle_dtype, unpickle_objects
from ._worker import exhausted
from .errors import (
    ElementError,
    ElementTimeout,
    StookError,
    TooManyErrors,
    WorkerDied,
    annotate,
    death_detail,
)

__all__ = ["ParentFunctions"]

ELEMENT_NOTE = "while loading element "  # how errors.annotate begins


class ParentFunctions:
    """Called by the C++ side, with the GIL and without its mutex."""

    pickle_objects = staticmethod(pickle_objects)
    pickle_dtype = staticmethod(pickle_dtype)
    unpickle_objects = staticmethod(unpickle_objects)
    unpickle_dtype = staticmethod(unpickle_dtype)

    def __init__(self, logs: LogReceiver, arguments_bytes: int) -> None:
        self._logs = logs
        self._arguments_bytes = arguments_bytes

    def drain_side_channel(self) -> None:
        self._logs.drain()

    def element_error(self, payload: bytes, worker: int, position: int) -> BaseException:
        error = decode_error(payload)
        # What user code raised was noted on in the worker; what became of its result was not.
        notes = getattr(error, "__notes__", ())
        if not isinstance(error, ElementError) and not any(
            isinstance(note, str) and note.startswith(ELEMENT_NOTE) for note in notes
        ):
            annotate(error, position)
        return error

    def startup_error(self, payload: bytes, worker: int, position: int) -> BaseException:
        return note_set_up(decode_error(payload), worker)

    def worker_died(
        self,
        worker: int,
        pid: int,
        status: int,
        position: int,
        attempts: int,
        out_of_memory: bool,
        index: int | None = None,
    ) -> WorkerDied:
        detail = death_detail(pid, attempts, out_of_memory)
        return WorkerDied(worker, os.waitstatus_to_exitcode(status), position, detail, index)

    def timed_out(
        self, worker: int, position: int, seconds: float, index: int | None = None
    ) -> ElementTimeout:
        return ElementTimeout(position, seconds, worker, index)

    def too_many_errors(
        self, errors: int, items: int, allowed: float, error: BaseException | None
    ) -> TooManyErrors:
        """`error`: what the last one raised, if it was to be raised."""
        last = "" if error is None else f"{type(error).__name__}: {error}"
        too_many = TooManyErrors(errors, items, allowed, last)
        too_many.__cause__ = error
        return too_many

    def undecodable_result(self, error: BaseException) -> BaseException:
        return mark_undecodable(error, "result")

    def task_error(self, payload: bytes) -> BaseException:
        return decode_error(payload)

    def task_died(self, worker: int, pid: int, status: int, out_of_memory: bool) -> WorkerDied:
        detail = f"its process id was {pid}"
        if out_of_memory:
            detail += (
                "; the kernel's out-of-memory killer was at work meanwhile: use fewer workers or"
                " smaller tasks"
            )
        return WorkerDied(worker, os.waitstatus_to_exitcode(status), None, detail)

    def encode_unsendable(self, error: BaseException, position: int) -> bytes:
        """The error payload for an item of the source that cannot be sent to a worker."""
        wrapped: BaseException = error
        if not isinstance(error, StookError):
            wrapped = StookError(
                f"item {position} of the source cannot be sent to a worker process:"
                f" {type(error).__name__}: {error}"
            )
            wrapped.__cause__ = error
        annotate(wrapped, position)
        return encode_error(wrapped)

    def exhausted_error(self, requested: int) -> BaseException:
        return exhausted(requested, self._arguments_bytes)
