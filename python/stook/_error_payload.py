"""Exceptions on their way from a worker to the consumer.

A payload is a letter and what it announces: `P`, a pickle of (the exception pickled, its parts
pickled, the reason if neither could be, its traceback as text, its type's name), or `T`, text
alone. The C++ side writes `T` where Python cannot help.

The parts are for classes that pickle would call again although their `__init__` takes other
arguments than it passes on. Everything is caught, also what is no `Exception`: whatever a user's
`__reduce__` or `__str__` raises, it is the exception that must arrive.
"""

from __future__ import annotations

import contextlib
import copyreg
import pickle
import traceback
import types
from typing import Any

from ._pickling import pickle_error
from ._signal_handlers import raised_by_one
from .errors import RemoteError, StookError, add_note

__all__ = ["decode_error", "encode_error", "is_undecodable", "mark_undecodable"]


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
        pickled = pickle_error(error)
        if _has_own_init(type(error)):
            parts = pickle_error(_take_apart(error))
    except BaseException as failure:
        reason = f"{type(failure).__name__}: {_text_of(failure)}"
    return b"P" + pickle.dumps((pickled, parts, reason, text, name), protocol=5)


def decode_error(payload: bytes) -> BaseException:
    """The exception as the consumer gets it: itself if it can be, with the worker's traceback."""
    if payload[:1] != b"P":
        return RemoteError(payload[1:].decode("utf-8", "replace"))
    pickled, parts, why, text, name = pickle.loads(payload[1:])
    # An `__init__` that is called again may make another text of its text.
    error: object = None if parts is None else _put_together(parts)
    reason = f"it cannot be pickled ({why})"
    if error is None and pickled is not None:
        try:
            error = pickle.loads(pickled)
        except KeyboardInterrupt:  # the user's Ctrl-C: a worker's is inside an ElementError
            raise
        except BaseException as failure:
            if raised_by_one(failure):
                raise
            reason = f"its pickle cannot be read ({type(failure).__name__}: {_text_of(failure)})"
    if not isinstance(error, BaseException):
        return RemoteError(f"{name} was raised in a worker, and {reason}. It was:\n{text}", name)
    remote = RemoteError(f'\n"""\n{text}"""', name)
    remote._unsendable = error.__dict__.pop("_stook_unsendable", "")
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


# Of classes that say no more of their own than their attributes and what `_take_apart` knows.
_PLAIN_REDUCES = (BaseException.__reduce__, OSError.__reduce__, ImportError.__reduce__)


def _has_own_init(kind: type[BaseException]) -> bool:
    """True for a class of which nothing is the user's own but its `__init__`, or slots."""
    return (
        kind.__reduce__ in _PLAIN_REDUCES
        and kind.__reduce_ex__ is BaseException.__reduce_ex__
        and kind.__setstate__ is BaseException.__setstate__
        and (isinstance(kind.__init__, types.FunctionType) or bool(_slots_of(kind)))
        and not isinstance(kind.__new__, types.FunctionType)
    )


def _slots_of(kind: type) -> list[str]:
    """Names of attributes that are not in `__dict__`, which exceptions do not pickle."""
    return copyreg._slotnames(kind)  # type: ignore[attr-defined, no-any-return]


def _take_apart(error: BaseException) -> tuple[Any, ...]:
    """What `_put_together` takes; some built-in classes keep more than `args` and attributes."""
    more: tuple[Any, ...] = ()
    if isinstance(error, OSError) and error.errno is not None:
        more = (error.errno, error.strerror, error.filename, None, error.filename2)
    elif isinstance(error, ImportError):
        more = (error.name, error.path)
    slots = {name: getattr(error, name) for name in _slots_of(type(error)) if hasattr(error, name)}
    return type(error), error.args, error.__dict__, more, slots


def _put_together(parts: bytes) -> BaseException | None:
    """The exception without a call of its class's `__init__`, as it was after that."""
    try:
        kind, arguments, attributes, more, slots = pickle.loads(parts)
        base: Any = next(b for b in (OSError, ImportError, BaseException) if issubclass(kind, b))
        error: BaseException = base.__new__(kind, *arguments)
        if base is OSError:
            base.__init__(error, *(more or arguments))
        elif base is ImportError:
            base.__init__(error, *arguments, name=more[0], path=more[1])
        error.args = arguments
        error.__dict__.update(attributes)
        for name, value in slots.items():
            setattr(error, name, value)
    except KeyboardInterrupt:
        raise
    except BaseException as failure:
        if raised_by_one(failure):
            raise
        return None
    return error


def mark_undecodable(error: BaseException, what: str) -> BaseException:
    """Says that `error` is one of unpickling a task's arguments, or its result."""
    add_note(error, f"while the {what} of a task was unpickled")
    with contextlib.suppress(Exception):  # a class that forbids attributes
        error._stook_undecodable = what  # type: ignore[attr-defined]
    return error


def is_undecodable(error: BaseException) -> bool:
    """True for an error that came of unpickling a task's arguments or result."""
    return getattr(error, "_stook_undecodable", None) is not None


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
