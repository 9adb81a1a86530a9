"""What pools of processes and of threads have in common: methods of `multiprocessing.pool.Pool`."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any, NoReturn, TypeVar

from ._results import AsyncResult

__all__ = ["CLOSE", "INIT", "RUN", "TERMINATE", "PoolMethods"]

# The states and their names are those of multiprocessing.pool.
INIT, RUN, CLOSE, TERMINATE = "INIT", "RUN", "CLOSE", "TERMINATE"

Self = TypeVar("Self", bound="PoolMethods")


class PoolMethods:
    """The methods that are the same on top of `_map` and `apply_async`."""

    _state = INIT

    def apply_async(
        self,
        func: Callable[..., Any],
        args: Iterable[Any] = (),
        kwds: Mapping[str, Any] | None = None,
        callback: Callable[[Any], Any] | None = None,
        error_callback: Callable[[BaseException], Any] | None = None,
    ) -> AsyncResult:
        raise NotImplementedError

    def _map(
        self,
        func: Callable[..., Any],
        star: bool,
        iterable: Iterable[Any],
        chunksize: int | None,
        background: bool,
        callback: Callable[[Any], Any] | None = None,
        error_callback: Callable[[BaseException], Any] | None = None,
    ) -> AsyncResult:
        """Starts a `map`; without `background` the caller waits for it at once."""
        raise NotImplementedError

    def terminate(self) -> None:
        raise NotImplementedError

    # ---- calls -----------------------------------------------------------------------------------

    def apply(
        self,
        func: Callable[..., Any],
        args: Iterable[Any] = (),
        kwds: Mapping[str, Any] | None = None,
    ) -> Any:
        """Returns `func(*args, **kwds)`, called by one of the pool."""
        return self.apply_async(func, args, kwds).get()

    def map(
        self, func: Callable[[Any], Any], iterable: Iterable[Any], chunksize: int | None = None
    ) -> list[Any]:
        """Returns `[func(item) for item in iterable]`; all are called, then an error raised.

        Args:
          func: Called with each item.
          iterable: The items.
          chunksize: Items per task; `None`: four tasks for each process or thread.

        Raises:
          BaseException: What a call raised: in a pool of processes the first in the items' order,
            its `__cause__` the traceback in the worker; in one of threads the first that came.
        """
        values: list[Any] = self._map(func, False, iterable, chunksize, False).get()
        return values

    def map_async(
        self,
        func: Callable[[Any], Any],
        iterable: Iterable[Any],
        chunksize: int | None = None,
        callback: Callable[[Any], Any] | None = None,
        error_callback: Callable[[BaseException], Any] | None = None,
    ) -> AsyncResult:
        """Starts `map` and returns its result to come."""
        return self._map(func, False, iterable, chunksize, True, callback, error_callback)

    def starmap(
        self,
        func: Callable[..., Any],
        iterable: Iterable[Iterable[Any]],
        chunksize: int | None = None,
    ) -> list[Any]:
        """As `map`, with each item unpacked: `func(*item)`."""
        values: list[Any] = self._map(func, True, iterable, chunksize, False).get()
        return values

    def starmap_async(
        self,
        func: Callable[..., Any],
        iterable: Iterable[Iterable[Any]],
        chunksize: int | None = None,
        callback: Callable[[Any], Any] | None = None,
        error_callback: Callable[[BaseException], Any] | None = None,
    ) -> AsyncResult:
        """Starts `starmap` and returns its result to come."""
        return self._map(func, True, iterable, chunksize, True, callback, error_callback)

    # ---- the object ------------------------------------------------------------------------------

    def __enter__(self: Self) -> Self:
        # No more than that: why the workers cannot be used is the error of every call.
        if self._state != RUN:
            raise ValueError("Pool not running")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.terminate()

    def __reduce__(self) -> NoReturn:
        raise NotImplementedError("pool objects cannot be passed between processes or pickled")

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        self.__reduce__()

    def _warn_if_running(self) -> None:
        """For `__del__`."""
        if self._state == RUN:
            warnings.warn(
                f"unclosed running multiprocessing pool {self!r}",
                ResourceWarning,
                source=self,
                stacklevel=3,
            )
