"""Exceptions on their way from a worker to the consumer.

A payload is a letter and what it announces: `P`, a pickle of (the exception pickled, its parts
pickled, the reason if neither could be, its traceback as text, its type's name), or `T`, text
alone. The C++ side writes `T` where Python cannot help.

The parts are for classes that pickle cannot call again: those whose `__init__` takes other
arguments than it passes on. Everything is caught, also what is no `Exception`: whatever a user's
`__reduce__` or `__str__` raises, it is the exception that must arrive.
"""

from __future__ import annotations

import pickle
import traceback

import cloudpickle  # type: ignore[import-untyped]

from .errors import RemoteError, StookError, add_note

__all__ = ["decode_error", "encode_error"]


def encode_error(error: BaseException) -> bytes:
    """The payload for an exception that was raised in this process."""
    name = type(error).__qualname__
    try:
        text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    except BaseException:
        text = f"{name} (its text could not be made)"
    pickled: bytes | None = None
    parts: bytes | None = None
    reason = ""
    try:
        pickled = cloudpickle.dumps(error, protocol=5)
        if type(error).__reduce__ is BaseException.__reduce__:
            parts = cloudpickle.dumps((type(error), error.args, error.__dict__), protocol=5)
    except BaseException as failure:
        reason = f"{type(failure).__name__}: {_text_of(failure)}"
    return b"P" + pickle.dumps((pickled, parts, reason, text, name), protocol=5)


def decode_error(payload: bytes) -> BaseException:
    """The exception as the consumer gets it: itself if it can be, with the worker's traceback."""
    if payload[:1] != b"P":
        return RemoteError(payload[1:].decode("utf-8", "replace"))
    pickled, parts, why, text, name = pickle.loads(payload[1:])
    error: object = None
    reason = f"it cannot be pickled ({why})"
    if pickled is not None:
        try:
            error = pickle.loads(pickled)
        except KeyboardInterrupt:  # the user's Ctrl-C: a worker's is inside an ElementError
            raise
        except BaseException as failure:
            reason = f"its pickle cannot be read ({type(failure).__name__}: {_text_of(failure)})"
            error = None if parts is None else _put_together(parts)
    if not isinstance(error, BaseException):
        return RemoteError(f"{name} was raised in a worker, and {reason}. It was:\n{text}", name)
    remote = RemoteError(f'\n"""\n{text}"""', name)
    if error.__cause__ is None:
        error.__cause__ = remote
    else:  # an ElementError, whose cause is what user code raised
        error.__cause__.__cause__ = remote
    return error


def _text_of(error: BaseException) -> str:
    try:
        return str(error)
    except BaseException:
        return "(its text could not be made)"


def _put_together(parts: bytes) -> BaseException | None:
    """The exception without a call of its class's `__init__`, as it was after that."""
    try:
        kind, arguments, attributes = pickle.loads(parts)
        error: BaseException = BaseException.__new__(kind, *arguments)
        error.__dict__.update(attributes)
    except KeyboardInterrupt:
        raise
    except BaseException:
        return None
    return error


def note_set_up(error: BaseException, worker: int) -> BaseException:
    """Says that an exception belongs to no element.

    One that is no `Exception` (`SystemExit`, say) would end the program that consumes the elements;
    it becomes the cause of a `StookError`.
    """
    if not isinstance(error, Exception):
        wrapped = StookError(f"{error!r} was raised while worker {worker} was being set up")
        wrapped.__cause__ = error
        return wrapped
    add_note(error, f"while worker {worker} was being set up")
    return error
