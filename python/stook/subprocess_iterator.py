"""An iterable that runs in a process of its own, ahead of who iterates it."""

from __future__ import annotations

import itertools
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Generic, TypeVar

from ._elsewhere import StaysHere
from ._locks import renew_lock_in_child
from ._pool_arguments import method_of
from ._task_pool import Death, Function, TaskPool
from .errors import PoolBroken, StookError, WorkerDied
from .options import MultiprocessingOptions, check_bool, check_int

__all__ = ["SubprocessIterable", "SubprocessIterator", "iterate_in_subprocess"]

T = TypeVar("T")

_LARGEST_BUFFER = 4096


def iterate_in_subprocess(
    fn: Callable[[], Iterable[T]],
    *,
    buffer_size: int = 3,
    initializer: Callable[[], Any] | Sequence[Callable[[], Any]] | None = None,
    mp_context: Any = None,
    timeout: float | None = None,
    daemon: bool = False,
) -> SubprocessIterable[T]:
    """Iterates what `fn` returns in a process of its own, and hands its elements over.

    The signature is that of SPDL's function. Arrays in the elements are moved through shared memory
    rather than pickled, if the iterable does not keep them itself.

    The process is started when iteration begins, and stays for the next one; it ends with the
    `SubprocessIterable` (`close`, `with`, or when nothing refers to it and its iterators any more).
    `fn` is called once in it. If it returns an iterator, as a generator function does, it is called
    again for each further iteration. Several iterations may go on at a time, and take turns.

    Args:
      fn: Returns the iterable. It is sent to the process as functions are, lambdas and closures
        included.
      buffer_size: Elements that are made ahead, 1 to 4096.
      initializer: Called in the process before `fn`; or several, one after the other.
      mp_context: The start method: a context of `multiprocessing`, or its name. `None` is
        `"forkserver"`.
      timeout: Seconds that an element may keep the caller waiting; after that the process is
        killed. The first element's include the start of the process and `fn`.
      daemon: Makes no difference: the process always ends with this one, and may always have
        children.

    Raises:
      TypeError: An argument has the wrong type.
      ValueError: `buffer_size` or `timeout` is out of range, or there is no such start method.

    Iterating raises what the iterable raises, with its type and the process's traceback, in the
    place of that element; `WorkerDied` if the process was killed, after the elements that it had
    made; `TimeoutError`; and `StookError` if `fn` cannot be sent, or in a forked child.

    Example:
      >>> import numpy as np, stook
      >>> def batches():
      ...     for number in range(3):
      ...         yield np.full((2, 2), number)
      >>> [int(batch.sum()) for batch in stook.iterate_in_subprocess(batches)]
      [0, 4, 8]
    """
    owner = "iterate_in_subprocess"
    if not callable(fn):
        raise TypeError(
            f"{owner}: fn must be a function that returns an iterable, got {fn!r}; pass"
            " lambda: iterable"
        )
    buffer_size = check_int(owner, "buffer_size", buffer_size, 1, _LARGEST_BUFFER)
    check_bool(owner, "daemon", daemon)
    if timeout is not None:
        if isinstance(timeout, bool) or not isinstance(timeout, (int, float)):
            raise TypeError(f"{owner}: timeout must be seconds or None, got {timeout!r}")
        if not timeout > 0:
            raise ValueError(f"{owner}: timeout must be more than 0 seconds, got {timeout}")
    options = MultiprocessingOptions(num_workers=1, start_method=_start_method(mp_context))
    return SubprocessIterable(fn, _functions(initializer), options, buffer_size, timeout)


def _functions(initializer: Any) -> tuple[Callable[[], Any], ...]:
    if initializer is None:
        return ()
    functions = (initializer,)
    if not callable(initializer) and isinstance(initializer, Sequence):
        functions = tuple(initializer)
    for function in functions:
        if not callable(function):
            raise TypeError(
                "iterate_in_subprocess: initializer must be a function, or a sequence of them, got"
                f" {initializer!r}"
            )
    return functions


def _start_method(context: Any) -> str:
    if context is None:
        return "forkserver"
    return method_of(context, "iterate_in_subprocess: mp_context")


def _call_all(functions: tuple[Callable[[], Any], ...]) -> None:
    for function in functions:
        function()


# ---- in the process ------------------------------------------------------------------------------


class _Restarted(Exception):  # noqa: N818 (seen by this module alone)
    """The process is another one than that in which the iteration began."""


class _Source:
    """What `fn` returned, and the iterations of it. Lives in the process, as the pool's function.

    Called once for each element; nothing here holds what it returns, so that arrays can be moved.
    """

    def __init__(self, fn: Callable[[], Iterable[Any]]) -> None:
        self._fn = fn
        self._iterable: Iterable[Any] | None = None
        self._iterators: dict[int, Iterator[Any]] = {}

    def __call__(self, iteration: int, step: int) -> Any:
        if step == _END:
            self._iterators.pop(iteration, None)  # which closes a generator
            return None
        if step == _FIRST:
            self._begin(iteration)
        iterator = self._iterators.get(iteration)
        if iterator is None:
            raise _Restarted
        try:
            return next(iterator)
        except StopIteration:
            self._iterators[iteration] = _NOTHING
            raise

    def _begin(self, iteration: int) -> None:
        self._iterators[iteration] = _NOTHING  # if what follows raises, it is over
        iterable = self._iterable
        if iterable is None:
            iterable = self._fn()
        iterator = iter(iterable)
        # An iterator can be used up only once.
        self._iterable = None if iterator is iterable else iterable
        self._iterators[iteration] = iterator


_FIRST, _NEXT, _END = range(3)
_NOTHING: Iterator[Any] = iter(())


_ENDED = "this iteration is over: its process was ended"

# ---- here ----------------------------------------------------------------------------------------


class SubprocessIterable(StaysHere, Generic[T]):
    """What `iterate_in_subprocess` returns: each `iter()` of it is an iteration in the process.

    Any thread may use it. In a forked child it can be iterated anew, in a process of the child's.
    """

    _lock: Any  # see _locks.py

    def __init__(
        self,
        fn: Callable[[], Iterable[T]],
        initializers: tuple[Callable[[], Any], ...],
        options: MultiprocessingOptions,
        buffer_size: int,
        timeout: float | None,
    ) -> None:
        self._fn = fn
        self._initializers = initializers
        self._options = options
        self._buffer_size = buffer_size
        self._timeout = timeout
        self._process: _Process | None = None
        renew_lock_in_child(self)

    def __iter__(self) -> SubprocessIterator[T]:
        with self._lock:
            if self._process is None or not self._process.is_usable():
                self._process = _Process(self._fn, self._initializers, self._options)
            return SubprocessIterator(self._process, self, self._buffer_size, self._timeout)

    def close(self) -> None:
        """Ends the process at once, and with it what is being iterated. Arrays stay valid."""
        with self._lock:
            process, self._process = self._process, None
        if process is not None:
            process.end(StookError("this iteration is over: its iterable was closed"))

    def __enter__(self) -> SubprocessIterable[T]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<SubprocessIterable of {self._fn!r}>"


class _Process:
    """The process of an iterable; after it has ended another takes its place."""

    def __init__(
        self,
        fn: Callable[[], Iterable[Any]],
        initializers: tuple[Callable[[], Any], ...],
        options: MultiprocessingOptions,
    ) -> None:
        self.death: Death | None = None
        self.error: BaseException | None = None  # with which it was ended
        note_death = weakref.WeakMethod(self._note_death)
        self.pool = TaskPool(
            1,
            options=options,
            initializer=_call_all if initializers else None,
            initargs=(initializers,) if initializers else (),
            on_death=lambda death: _call_if_alive(note_death, death),
            name="stook-iterate",
        )
        try:
            self.function: Function = self.pool.function(_Source(fn))
        except StookError as error:
            self.pool.close()
            # By the name under which the user knows it.
            raise StookError(str(error).replace("function._fn", "fn", 1)) from error.__cause__
        except BaseException:
            self.pool.close()
            raise
        self._numbers = itertools.count()

    def number(self) -> int:
        return next(self._numbers)

    def is_usable(self) -> bool:
        """False if it has ended, as far as that was heard of."""
        return not self.pool.is_closed and self.death is None

    def end(self, error: BaseException) -> None:
        """Ends it at once; what is to come fails with the error."""
        if self.error is None:
            self.error = error
        self.pool.close(self.error)

    def _note_death(self, death: Death) -> None:
        self.death = death


def _call_if_alive(method: Any, death: Death) -> None:
    bound = method()
    if bound is not None:
        bound(death)


class _Element:
    """An element to come, and its task's sink."""

    __slots__ = ("number", "ok", "value")

    def __init__(self) -> None:
        self.number = 0
        self.ok: bool | None = None
        self.value: Any = None

    def __call__(self, ok: bool, value: Any) -> None:
        self.value = value
        self.ok = ok

    def is_done(self) -> bool:
        return self.ok is not None


class SubprocessIterator(StaysHere, Generic[T]):
    """One iteration; threads may share it."""

    _lock: Any  # see _locks.py

    def __init__(
        self,
        process: _Process,
        iterable: SubprocessIterable[T],
        buffer_size: int,
        timeout: float | None,
    ) -> None:
        self._process: _Process | None = process
        self._iterable: SubprocessIterable[T] | None = iterable  # which would end the process
        self._timeout = timeout
        self._buffer_size = buffer_size
        self._iteration = process.number()
        self._elements: deque[_Element] = deque()
        renew_lock_in_child(self)
        for position in range(buffer_size):
            self._ask(process, _NEXT if position else _FIRST)

    def __iter__(self) -> SubprocessIterator[T]:
        return self

    def __next__(self) -> T:
        with self._lock:
            process = self._process
            if process is None:
                raise StopIteration
            if process.pool._forked:
                raise StookError(
                    "this iterator belongs to the process that made it, and this is a forked child"
                    " of it; iterate anew here"
                )
            elements = self._elements
            while len(elements) < self._buffer_size:  # what Ctrl-C has kept from being asked for
                self._ask(process, _NEXT)
            element = elements[0]
            if not element.is_done():
                self._wait(process, element)
            if element.ok and len(elements) == self._buffer_size:
                self._ask(process, _NEXT)
            # No call between the look and the taking: a signal handler that takes from this, too,
            # does so before both or after both.
            if self._elements is not elements or not elements or elements[0] is not element:
                return self.__next__()
            del elements[0]
            if element.ok:
                value: T = element.value
                element.value = None
                return value
            error = self._error(process, element.value)
            if process.is_usable() and not isinstance(error, StopIteration):
                self._ask(process, _NEXT)
            else:
                self._leave()
            try:
                raise error
            finally:
                del error, element  # the error would hold this frame, and this frame the error

    def close(self) -> None:
        """Ends this iteration; the process, too, if nothing else refers to the iterable.

        What the process is making is made to its end; a generator is closed then.
        """
        with self._lock:
            self._leave()

    def _ask(self, process: _Process, step: int) -> None:
        """Has one more element made ahead."""
        element = _Element()
        new = (element,)
        elements = self._elements
        submit = process.pool.submission(process.function, (self._iteration, step), sink=element)
        try:
            # No call in between, so that Ctrl-C leaves both or none: what is waited for is made.
            elements += new
            element.number = submit()
        except PoolBroken:
            element(False, process.error or StookError(_ENDED))

    def _wait(self, process: _Process, element: _Element) -> None:
        pool = process.pool
        if pool.wait(element.is_done, self._timeout) and element.is_done():
            return
        if not pool.is_closed:
            process.end(
                TimeoutError(
                    f"no element came within {self._timeout} seconds, so the process was killed;"
                    " iterating again starts another"
                )
            )
        if not element.is_done():  # another thread is about to fail it
            element(False, process.error or StookError(_ENDED))

    def _error(self, process: _Process, error: BaseException) -> BaseException:
        """What the caller gets for it."""
        death = process.death
        if isinstance(error, _Restarted):
            exit_code = None if death is None else death.exit_code
            error = WorkerDied(0, exit_code, None, "it had nothing to do at the moment")
        elif not (isinstance(error, WorkerDied) and death is not None):
            return error
        # The process that took its place knows of no iteration.
        process.end(error)
        return error

    def _leave(self) -> None:
        process, self._process = self._process, None
        elements, self._elements = self._elements, deque()
        self._iterable = None
        if process is None or process.pool.is_closed:
            return
        pool = process.pool
        for element in elements:
            if not element.is_done():
                pool.cancel(element.number)
        pool.submit(process.function, (self._iteration, _END), sink=_Element(), background=False)
        pool.arm()  # nobody waits for it, so the process has to be told

    def __del__(self) -> None:
        if getattr(self, "_process", None) is not None:
            self._leave()
