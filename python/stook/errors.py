"""What can go wrong, as exceptions.

An exception that user code raises arrives as itself. The classes here are for everything else, and
for the few exceptions that cannot be passed on as they are because Python takes them for a signal
to the loop or to the program.
"""

from __future__ import annotations

import contextlib
import pickle
import signal
import threading
from concurrent.futures.process import BrokenProcessPool
from typing import Any

__all__ = [
    "DecodeError",
    "ElementError",
    "ElementTimeout",
    "PoolBroken",
    "RemoteError",
    "SharedMemoryExhausted",
    "StookError",
    "TooManyErrors",
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
      item_index: Index in the source of the item it was working on, or `None` if that is not known.

    Example:
      >>> error = WorkerDied(1, -9, 7, item_index=301)
      >>> print(error)
      worker 1 terminated unexpectedly with exit code -9 (SIGKILL) while it worked on element 7
      (index 301)
      >>> error.signal
      <Signals.SIGKILL: 9>
    """

    def __init__(
        self,
        worker: int | None = None,
        exit_code: int | None = None,
        index: int | None = None,
        detail: str = "",
        item_index: int | None = None,
    ) -> None:
        super().__init__(worker, exit_code, index, detail, item_index)
        self.worker = worker
        self.exit_code = exit_code
        self.index = index
        self.detail = detail
        self.item_index = item_index

    @property
    def signal(self) -> signal.Signals | None:
        """The signal that ended it, if it was one of those that have a name."""
        if self.exit_code is not None and self.exit_code < 0:
            with contextlib.suppress(ValueError):
                return signal.Signals(-self.exit_code)
        return None

    def __str__(self) -> str:
        who = "a worker" if self.worker is None else f"worker {self.worker}"
        code = "unknown" if self.exit_code is None else f"{self.exit_code}"
        if self.signal is not None:
            code += f" ({self.signal.name})"
        text = f"{who} terminated unexpectedly with exit code {code}"
        if self.index is not None:
            text += f" while it worked on element {self.index}"
        if self.item_index is not None:
            text += f" (index {self.item_index})"
        return f"{text}: {self.detail}" if self.detail else text


class ElementTimeout(StookError, TimeoutError):  # noqa: N818 (a state)
    """An element took longer than the `timeout` of the options; also a `TimeoutError`.

    Attributes:
      index: Number of the element within its epoch, or `None`; as that of an `ElementError`.
      seconds: What it was allowed.
      worker: Index of the worker, which was killed; `None` where no worker process ran it.
      item_index: Index in the source of the item that took so long, or `None` if that is not known.

    Example:
      >>> print(ElementTimeout(7, 1.5, 0, 301))
      element 7 (index 301) took longer than its timeout of 1.5 s; worker 0 was killed
    """

    def __init__(
        self,
        index: int | None = None,
        seconds: float | None = None,
        worker: int | None = None,
        item_index: int | None = None,
    ) -> None:
        what = "an element" if index is None else f"element {index}"
        if item_index is not None:
            what += f" (index {item_index})"
        text = f"{what} took longer than its timeout"
        if seconds is not None:
            text += f" of {seconds:g} s"
        if worker is not None:
            text += f"; worker {worker} was killed"
        # The text, because a TimeoutError is an OSError, which takes several for errno and others.
        super().__init__(text)
        self.index = index
        self.seconds = seconds
        self.worker = worker
        self.item_index = item_index

    def __reduce__(self) -> tuple[Any, ...]:
        arguments = (self.index, self.seconds, self.worker, self.item_index)
        return (type(self), arguments, dict(self.__dict__))


class ElementError(StookError):
    """An element could not be made.

    This is raised only for what cannot be raised as itself: user code that raises `StopIteration`,
    `GeneratorExit`, `SystemExit` or, in a worker, `KeyboardInterrupt` would otherwise end the loop
    or the program that consumes the elements. And it is what an `on_error` callable of a
    `DataLoader` is given, for errors of any type. The `__cause__` is the error itself.

    Attributes:
      index: Number of the element within its epoch, or `None`; with shards, among those of all of
        them: element `k` of shard `i` of `count` has the number `k * count + i`.
      worker: Index of the worker process that ran it, or `None` where there was none.
      item_index: Index in the source of the item that failed (of an iterable, its number within the
        epoch, of all shards), or `None`: then it was not one item that failed, but the assembling
        of a batch.
    """

    def __init__(
        self,
        message: str = "",
        index: int | None = None,
        worker: int | None = None,
        item_index: int | None = None,
    ) -> None:
        super().__init__(message, index, worker, item_index)
        self.index = index
        self.worker = worker
        self.item_index = item_index

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


class TooManyErrors(StookError):  # noqa: N818 (a state)
    """More items failed than `max_errors` allows; the pass is over.

    Attributes:
      errors: Items that have failed in this pass, whether raised, skipped or replaced.
      items: Items that were seen in it, those included.
      allowed: `max_errors`: a number, or a rate.
      last: What the last of them raised, as text; empty if that is not known.

    Example:
      >>> print(TooManyErrors(4, 250, 3))
      4 of the first 250 items have failed, and max_errors=3 allows no more than 3
      >>> print(TooManyErrors(12, 110, 0.1, "ValueError: no image"))
      12 of the first 110 items have failed, and max_errors=0.1 allows no more than 10 %; the last
      one: ValueError: no image
    """

    def __init__(
        self,
        errors: int = 0,
        items: int = 0,
        allowed: float | None = None,
        last: str = "",
    ) -> None:
        super().__init__(errors, items, allowed, last)
        self.errors = errors
        self.items = items
        self.allowed = allowed
        self.last = last

    def __str__(self) -> str:
        text = f"{self.errors} of the first {self.items} items have failed"
        if self.allowed is not None:
            most = f"{100 * self.allowed:g} %" if 0 < self.allowed < 1 else f"{self.allowed}"
            text += f", and max_errors={self.allowed} allows no more than {most}"
        return f"{text}; the last one: {self.last}" if self.last else text


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
    """Bytes that are not what they should be; the message names the source and the reason."""


class RemoteError(StookError):
    """An exception of a worker that could not be pickled; this is its text, traceback included.

    Attributes:
      type_name: Name of the type of the exception that was raised, or `None`.
    """

    _unsendable = ""  # the result that could not be pickled, which made what this is the cause of

    def __init__(self, message: str = "", type_name: str | None = None) -> None:
        super().__init__(message, type_name)
        self.type_name = type_name

    def __str__(self) -> str:
        return str(self.args[0])


class PoolBroken(StookError):  # noqa: N818 (as BrokenProcessPool)
    """The worker processes cannot go on, for instance because the server they come from died."""


def death_detail(pid: int, attempts: int, out_of_memory: bool) -> str:
    """The `detail` of a `WorkerDied` of an element."""
    detail = f"its process id was {pid}"
    if attempts > 1:
        detail += f"; {attempts} workers died of this element"
    if out_of_memory:
        detail += (
            "; the kernel's out-of-memory killer was at work meanwhile: use fewer workers,"
            " smaller batches or a lower memory_limit"
        )
    return detail


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
    `None` means the consumer's own process, in whose main thread `KeyboardInterrupt` is the user's
    Ctrl-C and is left alone. To other threads Ctrl-C does not come.
    """
    annotate(error, position, index, item)
    if not isinstance(error, _CONTROL_FLOW):
        return error
    is_here = worker is None and threading.current_thread() is threading.main_thread()
    if is_here and isinstance(error, KeyboardInterrupt):
        return error
    name = type(error).__name__
    where = "" if index is None else f" (index {index})"
    wrapped = ElementError(
        f"{name} was raised while loading element {position}{where}: {error!r}",
        position,
        worker,
        index,
    )
    wrapped.__cause__ = error
    return wrapped
