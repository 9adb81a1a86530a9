"""What asynchronous calls of a pool return: the same classes for processes and for threads.

A pool gives a result itself as `pool`: its `wait(done, timeout)` blocks the calling thread until
`done()` is true or the seconds are over, and tells which. In a pool of processes the thread that
waits also delivers; in a pool of threads it sleeps. Whoever delivers calls the methods whose names
begin with an underscore, from any thread; no lock of the pool needs to be held.

`stook.Pool` and `stook.ThreadPool` return these, with the methods, the exceptions and the order of
events of `multiprocessing.pool`: a callback runs before `get()` and `wait()` return.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import TimeoutError
from typing import Any, NoReturn, Protocol

from ._pool_arguments import check_timeout

__all__ = ["AsyncResult", "IMapIterator", "MapResult", "Waits", "raise_in_its_place", "report"]


class Waits(Protocol):
    """What a result needs of its pool."""

    def wait(self, done: Callable[[], bool], timeout: float | None = None) -> bool:
        """Blocks until `done()` is true, at most `timeout` seconds; returns `done()`."""


def report(error: BaseException) -> None:
    """Tells `threading.excepthook` of an error that nobody can be given."""
    threading.excepthook(
        threading.ExceptHookArgs(
            (type(error), error, error.__traceback__, threading.current_thread())
        )
    )


def raise_in_its_place(error: BaseException) -> NoReturn:
    """Raises what the call for an item of an `imap` raised."""
    try:
        if isinstance(error, StopIteration):
            # As itself it would end the loop, quietly, as if there were no more results.
            raise RuntimeError("the call for this item raised StopIteration") from error
        raise error
    finally:
        del error  # which the traceback would hold


class AsyncResult:
    """The result of `apply_async`, to come.

    Example:
      >>> import stook
      >>> with stook.ThreadPool(1) as pool:
      ...     result = pool.apply_async(pow, (2, 5))
      ...     result.get(), result.ready(), result.successful()
      (32, True, True)
    """

    def __init__(
        self,
        pool: Waits,
        callback: Callable[[Any], Any] | None = None,
        error_callback: Callable[[BaseException], Any] | None = None,
    ) -> None:
        # Held until the result is there: a pool that nobody else holds must not end before.
        self._pool: Waits | None = pool
        self._callback = callback
        self._error_callback = error_callback
        self._success = False
        self._value: Any = None
        self._ready = False  # written last: who sees it true sees the others

    def ready(self) -> bool:
        """Tells whether the call has ended."""
        return self._ready

    def successful(self) -> bool:
        """Tells whether the call ended without an exception.

        Raises:
          ValueError: It has not ended.
        """
        if not self._ready:
            raise ValueError(f"{self!r} not ready")
        return self._success

    def wait(self, timeout: float | None = None) -> None:
        """Blocks until the call has ended, at most `timeout` seconds."""
        check_timeout(timeout)
        pool = self._pool
        if not self._ready and pool is not None:
            pool.wait(self.ready, timeout)

    def get(self, timeout: float | None = None) -> Any:
        """Returns what the call returned, or raises what it raised.

        Raises:
          multiprocessing.TimeoutError: It has not ended after `timeout` seconds.
        """
        self.wait(timeout)
        if not self._ready:
            raise TimeoutError
        if self._success:
            return self._value
        try:
            raise self._value
        finally:
            # The traceback holds this frame, and so would hold the exception itself.
            del self

    def _set(self, success: bool, value: Any) -> None:
        """Calls the callback, then gives the result out. To be called once."""
        callback = self._callback if success else self._error_callback
        try:
            if callback is not None:
                callback(value)
        except Exception as error:
            report(error)
        finally:
            self._success = success
            self._value = value
            self._ready = True
            self._pool = self._callback = self._error_callback = None


class MapResult(AsyncResult):
    """The result of `map_async` and `starmap_async`: a list, to come in chunks."""

    def __init__(
        self,
        pool: Waits,
        length: int,
        chunks: int,
        callback: Callable[[Any], Any] | None = None,
        error_callback: Callable[[BaseException], Any] | None = None,
    ) -> None:
        super().__init__(pool, callback, error_callback)
        self._items: list[Any] = [None] * length
        self._chunks_left = chunks
        self._error: BaseException | None = None
        self._lock = threading.Lock()
        if chunks == 0:  # nobody is called back, as in multiprocessing
            self._callback = None
            self._set(True, [])

    def _add_chunk(
        self, start: int, items: Sequence[Any], error: BaseException | None
    ) -> tuple[bool, Any] | None:
        """Takes the results from `start` on, or an error; the first error is the map's.

        Returns what `_set` is to be called with if this was the last chunk: as in
        `multiprocessing`, a map ends when all of its chunks have, also after an error.
        """
        with self._lock:
            if error is None:
                self._items[start : start + len(items)] = items
            elif self._error is None:
                self._error = error
            self._chunks_left -= 1
            if self._chunks_left != 0:
                return None
            items, self._items = self._items, []
            error, self._error = self._error, None
        return (True, items) if error is None else (False, error)


class IMapIterator:
    """The results of `imap` and `imap_unordered`: `next(timeout)`, or a `for`.

    An error is raised in its item's place; the iterator then goes on. Threads may share it.
    """

    def __init__(
        self, pool: Waits, *, ordered: bool, on_taken: Callable[[], None] | None = None
    ) -> None:
        """`on_taken()` is called when the consumer has come to another chunk."""
        self._pool: Waits | None = pool
        self._ordered = ordered
        self._on_taken = on_taken
        # Held by who takes. Not by who brings: a signal handler may interrupt one that takes, and
        # wait for other results of the same pool, whose threads must not wait for this lock then.
        self._lock = threading.RLock()
        # Chunks that came, by their number, and the numbers as they came (written by who brings);
        # what is left of the chunk under way; how many chunks were taken (read by who brings).
        self._chunks: dict[int, Sequence[tuple[bool, Any]]] = {}
        self._arrived: deque[int] = deque()
        self._items: deque[tuple[bool, Any]] = deque()
        self.taken = 0
        # How many chunks there are, once that is known; why there will be no more.
        self._length: int | None = None
        self._failure: BaseException | None = None
        self._is_over = False

    def __iter__(self) -> Iterator[Any]:
        return self

    def next(self, timeout: float | None = None) -> Any:
        """Returns the next result.

        Raises:
          StopIteration: There is none.
          multiprocessing.TimeoutError: It has not come after `timeout` seconds.
          BaseException: What the call for this item raised, or the iterable; a `RuntimeError` in
            place of a `StopIteration` of the call.
        """
        check_timeout(timeout)
        end = None if timeout is None else time.monotonic() + timeout
        while True:
            with self._lock:
                came = not self._items and not self._is_over and self._next_chunk()
                outcome = self._items.popleft() if self._items else None
                over = outcome is None and (self._is_over or self.taken == self._length)
                failure = self._failure
                if outcome is None and not over and failure is not None:
                    outcome = False, failure
                    self._is_over = True
                pool = self._pool
            if came and self._on_taken is not None:
                self._on_taken()
            if outcome is not None:
                break
            if over or pool is None:
                self._pool = self._on_taken = None
                raise StopIteration
            if self._on_taken is not None:
                self._on_taken()  # if Ctrl-C has kept it from being told
            if not pool.wait(
                self._is_next_there, None if end is None else max(0.0, end - time.monotonic())
            ):
                raise TimeoutError
        success, value = outcome
        if success:
            return value
        try:
            raise_in_its_place(value)
        finally:
            del self, value, outcome  # which the traceback would hold

    __next__ = next

    def _is_next_there(self) -> bool:
        return (
            bool(self._items)
            or self.taken == self._length
            or self._failure is not None
            or self._is_over
            or (self.taken in self._chunks if self._ordered else bool(self._arrived))
        )

    def _next_chunk(self) -> bool:
        """Begins the chunk whose turn it is, if it is there."""
        # Without calls: in one, a signal handler may come here, too, or raise.
        chunks, arrived, items = self._chunks, self._arrived, self._items
        if self._ordered:
            number = self.taken
            if number not in chunks:
                return False
        else:
            if not arrived:
                return False
            number = arrived[0]
            del arrived[0]
        items += chunks[number]
        del chunks[number]
        self.taken += 1
        return True

    def _put(self, number: int, outcomes: Sequence[tuple[bool, Any]]) -> None:
        """Takes the outcomes (success, result or exception) of a chunk; numbers run from 0."""
        self._chunks[number] = outcomes
        if not self._ordered:
            self._arrived.append(number)

    def _end(self, length: int) -> None:
        """Says how many chunks there are in all."""
        self._length = length

    def _abort(self, error: BaseException) -> None:
        """Ends it with an error where the first result is missing, unless none is."""
        self._failure = error
