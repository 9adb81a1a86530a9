"""Exceptions on their way from a worker to the consumer.

A payload is a letter and what it announces: `P`, a pickle of (the exception pickled, its traceback
as text, its type's name), or `T`, text alone. The C++ side writes `T` where Python cannot help.
"""

from __future__ import annotations

import pickle
import traceback

import cloudpickle

from .errors import RemoteError, add_note

__all__ = ["decode_error", "encode_error"]


def encode_error(error: BaseException) -> bytes:
    """The payload for an exception that was raised in this process."""
    name = type(error).__qualname__
    try:
        text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    except Exception:
        text = f"{name} (its text could not be made)"
    try:
        pickled: bytes | None = cloudpickle.dumps(error, protocol=5)
    except Exception:
        pickled = None
    return b"P" + pickle.dumps((pickled, text, name), protocol=5)


def decode_error(payload: bytes) -> BaseException:
    """The exception as the consumer gets it: itself if it can be, with the worker's traceback."""
    if payload[:1] != b"P":
        return RemoteError(payload[1:].decode("utf-8", "replace"))
    pickled, text, name = pickle.loads(payload[1:])
    error: object = None
    reason = "it cannot be pickled"
    if pickled is not None:
        try:
            error = pickle.loads(pickled)
        except Exception as failure:
            reason = f"its pickle cannot be read: {type(failure).__name__}: {failure}"
    if not isinstance(error, BaseException):
        return RemoteError(f"{name} was raised in a worker, and {reason}. It was:\n{text}", name)
    remote = RemoteError(f'\n"""\n{text}"""', name)
    if error.__cause__ is None:
        error.__cause__ = remote
    else:  # an ElementError, whose cause is what user code raised
        error.__cause__.__cause__ = remote
    return error


def note_set_up(error: BaseException, worker: int) -> BaseException:
    """Says that an exception belongs to no element."""
    add_note(error, f"while worker {worker} was being set up")
    return error
