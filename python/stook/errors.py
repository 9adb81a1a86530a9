"""What can go wrong, as exceptions.

An exception that user code raises arrives as itself. The classes here are for everything else, and
for the few exceptions that cannot be passed on as they are because Python takes them for a signal
to the loop or to the program.
"""

from __future__ import annotations

import contextlib
import pickle
import signal
from concurrent.futures.process import BrokenProcessPool
from typing import Any

__all__ = [
    "DecodeError",
    "ElementError",
    "PoolBroken",
    "RemoteError",
    "SharedMemoryExhausted",
    "StookError",
    "WorkerDied",
]


class StookError(Exception):
    """Base of every error that Stook itself raises."""


class WorkerDied(StookError, BrokenProcessPool):  # noqa: N818 (as BrokenProcessPool)
    """A worker process ended in the middle of its work.

    Also a `concurrent.futures.process.BrokenProcessPool` and a `RuntimeError`.

    Attributes:
      worker: Index of the worker, or `None` if that is not known.
      exit_code: Its exit code; a negative one is the number of the signal that ended it, as in
        `multiprocessing.Process.exitcode`. `None` if that is not known.
      index: Number of the element it was working on, or `None`.
      detail: A further sentence, such as the likely cause; may be empty.

    Example:
      >>> print(WorkerDied(1, -9, 7))
      worker 1 terminated unexpectedly with exit code -9 (SIGKILL) while it worked on element 7
    """

    def __init__(
        self,
        worker: int | None = None,
        exit_code: int | None = None,
        index: int | None = None,
        detail: str = "",
    ) -> None:
        super().__init__(worker, exit_code, index, detail)
        self.worker = worker
        self.exit_code = exit_code
        self.index = index
        self.detail = detail

    def __str__(self) -> str:
        who = "a worker" if self.worker is None else f"worker {self.worker}"
        code = "unknown" if self.exit_code is None else f"{self.exit_code}"
        if self.exit_code is not None and self.exit_code < 0:
            with contextlib.suppress(ValueError):
                code += f" ({signal.Signals(-self.exit_code).name})"
        text = f"{who} terminated unexpectedly with exit code {code}"
        if self.index is not None:
            text += f" while it worked on element {self.index}"
        return f"{text}: {self.detail}" if self.detail else text


class ElementError(StookError):
    """An element could not be made, for a reason that cannot be raised as itself.

    User code that raises `StopIteration`, `GeneratorExit`, `SystemExit` or, in a worker,
    `KeyboardInterrupt` would otherwise end the loop or the program that consumes the elements; what
    it raised is the `__cause__` of this error.

    Attributes:
      index: Number of the element within its epoch, or `None`.
      worker: Index of the worker that ran it, or `None` with `num_workers=0`.
    """

    def __init__(
        self, message: str = "", index: int | None = None, worker: int | None = None
    ) -> None:
        super().__init__(message, index, worker)
        self.index = index
        self.worker = worker

    def __str__(self) -> str:
        return str(self.args[0])

    def __reduce__(self) -> tuple[Any, ...]:
        # Exceptions do not pickle their cause, and here the cause is the message. One that cannot
        # be pickled goes as its text rather than stopping its carrier.
        state = dict(self.__dict__)
        cause = self.__cause__
        if cause is not None:
            try:
                pickle.loads(pickle.dumps(cause))
            except Exception:
                cause = RemoteError(f"{type(cause).__name__}: {cause}", type(cause).__name__)
            state["__cause__"] = cause
        return (type(self), self.args, state)


class SharedMemoryExhausted(StookError, MemoryError):  # noqa: N818 (a state)
    """An element did not fit in the shared memory there is; also a `MemoryError`.

    The message says how much was asked for, what the limit is and how to raise it.

    Attributes:
      requested: Bytes asked for, or `None`.
      limit: Bytes allowed, or `None`.
    """

    def __init__(
        self, message: str = "", requested: int | None = None, limit: int | None = None
    ) -> None:
        super().__init__(message, requested, limit)
        self.requested = requested
        self.limit = limit

    def __str__(self) -> str:
        return str(self.args[0])


class DecodeError(StookError, ValueError):
    """Bytes that are not the image they should be; the message names the source and the reason."""


class RemoteError(StookError):
    """An exception of a worker that could not be pickled; this is its text, traceback included.

    Attributes:
      type_name: Name of the type of the exception that was raised, or `None`.
    """

    def __init__(self, message: str = "", type_name: str | None = None) -> None:
        super().__init__(message, type_name)
        self.type_name = type_name

    def __str__(self) -> str:
        return str(self.args[0])


class PoolBroken(StookError):  # noqa: N818 (as BrokenProcessPool)
    """The worker processes cannot go on, for instance because the server they come from died."""


# What Python takes for a message to the loop or to the program when it leaves `next()`.
_CONTROL_FLOW = (StopIteration, StopAsyncIteration, GeneratorExit, SystemExit, KeyboardInterrupt)


def add_note(error: BaseException, note: str) -> None:
    """`error.add_note(note)`, also on Python 3.10, where the note is stored but not shown."""
    # An exception class may forbid attributes, or use the name for something else. The note is a
    # kindness; losing it must not replace the error.
    with contextlib.suppress(Exception):
        if hasattr(error, "add_note"):
            error.add_note(note)
            return
        notes = getattr(error, "__notes__", None)
        if notes is None:
            notes = error.__notes__ = []  # type: ignore[attr-defined]
        notes.append(note)


def annotate(
    error: BaseException, position: int, index: int | None = None, item: int | None = None
) -> None:
    """Notes on `error` which element was being made.

    Args:
      error: The exception, changed in place.
      position: Number of the element within its epoch.
      index: Index in the source that was being loaded, if it was one.
      item: Its place in the batch, if the element is one.
    """
    note = f"while loading element {position}"
    if index is not None:
        note += f" (index {index}" + (")" if item is None else f", item {item} of the batch)")
    add_note(error, note)


def for_consumer(
    error: BaseException,
    position: int,
    index: int | None = None,
    item: int | None = None,
    worker: int | None = None,
) -> BaseException:
    """What the consumer gets for an exception that user code raised: itself, or an `ElementError`.

    The error is annotated either way. `worker` is the index of the worker process this runs in;
    `None` means the consumer's own process, in which `KeyboardInterrupt` is the user's Ctrl-C and
    is left alone.
    """
    annotate(error, position, index, item)
    if not isinstance(error, _CONTROL_FLOW):
        return error
    if worker is None and isinstance(error, KeyboardInterrupt):
        return error
    name = type(error).__name__
    where = "" if index is None else f" (index {index})"
    wrapped = ElementError(
        f"{name} was raised while loading element {position}{where}: {error!r}", position, worker
    )
    wrapped.__cause__ = error
    return wrapped
