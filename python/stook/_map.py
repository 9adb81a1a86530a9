"""The results of calls in worker processes, and how a `map` is sent and put together."""

from __future__ import annotations

import pickle
import threading
from types import FunctionType
from typing import Any

from ._results import AsyncResult, report
from ._start import crosses_by_name
from ._streams import Feed, Job, as_raised
from .errors import PoolBroken, StookError

__all__ = ["MapFeed", "PoolTerminated", "Result"]


class Result(AsyncResult):
    """The result of a call; `_set` is its sink."""

    def _set(self, success: bool, value: Any) -> None:
        if self._ready:  # a signal handler raised when it was set
            return
        if type(value) is FunctionType and success and not crosses_by_name(value):
            # It crossed; but code that was written for multiprocessing may count on the error.
            from multiprocessing.pool import MaybeEncodingError  # type: ignore[attr-defined]

            reason = pickle.PicklingError(f"{value!r} cannot be imported by its name")
            success, value = False, MaybeEncodingError(reason, value)
        if self._callback is None and self._error_callback is None and success:
            self._value = value
            self._success = True
            self._ready = True
            self._pool = None
            return
        if not success:
            value = as_raised(value)
            if isinstance(value, PoolTerminated):
                # Nobody is told of what was given up, as in multiprocessing; and each raises its
                # own.
                self._callback = self._error_callback = None
                value = PoolTerminated(*value.args)
        try:
            super()._set(success, value)
        except BaseException as error:
            # No Exception. A signal handler's goes on to the program; what a callback raises must
            # not end the thread that delivers.
            if threading.current_thread() is threading.main_thread():
                raise
            report(error)


class PoolTerminated(StookError):  # noqa: N818 (a state, as PoolBroken)
    """A result was asked for that a pool had not made when it was terminated."""


class MapFeed(Feed):
    """Sends the items of a `map`."""

    result: Result
    _error: BaseException | None = None
    _error_at = 0

    def start(self, result: Result, length: int) -> None:
        self.result = result
        self._values: list[Any] = [None] * length
        self.after_delivery()

    def break_off(self, error: BaseException) -> None:
        with self.lock:
            self._source = self._unsent = None
            self.is_ended = True
        self.result._set(False, error)

    def receive_errors(
        self, job: Job, results: list[Any], errors: dict[int, BaseException]
    ) -> None:
        first = min(errors)
        if isinstance(errors[first], (PoolBroken, PoolTerminated)):
            self.break_off(errors[first])
        with self.lock:
            # The first in the order of items, whichever came first.
            if self._error is None or job.at + first < self._error_at:
                self._error_at = job.at + first
                self._error = errors[first]
        self.receive(job, results)

    def take_in(self, job: Job, results: list[Any], count: int, left: int) -> None:
        at = job.at
        end = at + count
        values = self._values
        last = left == 0
        values[at:end] = results
        self.received += count
        self._jobs_done += last
        job.at = end
        job.left = left
        job.seen = results

    def after_delivery(self) -> None:
        # Without a bound everything is sent at the start.
        if self._source is not None or self._unsent is not None:
            self.send_more()
        if self.is_done and not self.result._ready:
            error = self._error
            if error is None:
                self.result._set(True, self._values)
            else:
                self.result._set(False, error)
