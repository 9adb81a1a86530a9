"""How elements are made where items that fail have a policy: `on_error`, `retries`, `timeout`.

One item that fails costs itself alone, also in a batch. That holds for an item whose worker died of
it, or was killed because it took too long, too: the job is then given to another worker together
with its losses, and the item is not run again, but fails with the error that says so.

A loss is (number of the item in its batch, worker, process id, its exit status as `waitpid` gives
it, workers lost to it, took too long, out of memory).
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from . import _core, _random
from ._batch_rows import Assembled, Grouped, Listed, Rows
from ._element_errors import SKIP, Report, note_items_used
from .errors import ElementError, ElementTimeout, WorkerDied, death_detail, for_consumer
from .worker_info import _state

if TYPE_CHECKING:
    from ._task import BoundTask, LoaderTask

__all__ = ["Progress", "bind", "progress"]

Loss = tuple[int, "int | None", int, int, int, bool, bool]
_Begin = Callable[[int, int], None]


class Progress(threading.local):
    """What a thread is at, for whoever watches it: (number of the item, when it was begun)."""

    cell: list[Any] | None = None


progress = Progress()


def bind(task: LoaderTask, begin: _Begin, load: Callable[[Any], Any], where: str) -> BoundTask:
    """As `LoaderTask.bind`; the function takes the losses of its job as a further argument."""
    items = _Items(task, begin, load, where)
    return _bind_single(items) if task.batch_size is None else _bind_batch(task, items)


class _Items:
    """Makes the items of one element after the other, and settles what fails."""

    def __init__(
        self, task: LoaderTask, begin: _Begin, load: Callable[[Any], Any], where: str
    ) -> None:
        policy = task.policy
        self.begin = begin
        self.load = load
        self.policy = policy
        self.attempts = policy.retries + 1
        self.indexed = task.source is not None
        # In a worker it is the consumer's process that looks at the clock.
        self._seconds = None if where == "worker" else policy.timeout
        self.begin_item: Callable[[int], None] = {
            "worker": _core.begin_item,
            "thread": _begin_in_thread,
        }.get(where, _begin_here)
        self._here = where == "here"
        self._draws = (
            _random.Draws(global_ones=where != "thread")
            if policy.retries and task.seed is not None
            else None
        )

    def get(
        self,
        epoch: int,
        position: int,
        payload: Any,
        index: int,
        number: int | None = None,
        losses: Sequence[Loss] = (),
    ) -> Any:
        """An item, or what takes its place; then the second value is True.

        Args:
          epoch: Of the element.
          position: Of the element within it.
          payload: Of the item.
          index: What messages call it by.
          number: Its number in the batch, if the element is one.
          losses: Of the element.

        Raises:
          BaseException: What the consumer is to get.
        """
        first = not number
        draws = None if first else self._draws
        before = None if draws is None else draws.save()
        left = self.attempts
        while True:
            left -= 1
            try:
                self.begin_item(number or 0)
                if losses:
                    self.fail_if_lost(losses, position, index, number or 0)
                if self._seconds is None:
                    return self.load(payload), False
                return self._load_in_time(self._seconds, payload, position, index), False
            except BaseException as error:
                if left == 0 or not self._may_try_again(error):
                    return self.settle(error, position, index, number), True
            # Another attempt draws what the first one drew.
            if draws is not None and before is not None:
                draws.restore(before)
            elif first:
                self.begin(epoch, position)

    def settle(
        self, error: BaseException, position: int, index: int | None, number: int | None = None
    ) -> Any:
        """What takes the place of what failed: a replacement, or `SKIP`. Or raises."""
        on_error = self.policy.on_error
        if isinstance(error, _FatalError):
            raise for_consumer(error.what, position, index, number, _worker()) from None
        if on_error == "raise" or (self._here and isinstance(error, KeyboardInterrupt)):
            raise for_consumer(error, position, index, number, _worker())
        if not callable(on_error):
            return SKIP
        where = "" if index is None else f" (index {index})"
        wrapped = ElementError(
            f"{type(error).__name__} was raised while loading element {position}{where}:"
            f" {_text_of(error)}",
            position,
            _worker(),
            index,
        )
        wrapped.__cause__ = error
        try:
            return on_error(wrapped)
        except BaseException as own:
            raise for_consumer(own, position, index, number, _worker())  # noqa: B904 (itself)

    def _may_try_again(self, error: BaseException) -> bool:
        if isinstance(error, (ElementTimeout, WorkerDied, _FatalError)):
            return False
        return not (self._here and isinstance(error, KeyboardInterrupt))

    def fail_if_lost(
        self, losses: Sequence[Loss], position: int, index: int | None, number: int
    ) -> None:
        """Raises what an item, or the assembling behind the last one, was lost by."""
        error: BaseException | None = None
        for lost, worker, pid, status, attempts, late, out_of_memory in losses:
            if lost != number:
                continue
            if error is not None:
                # It was not run again, so it was `on_error` that cost the second worker.
                raise _FatalError(error)
            if late:
                error = ElementTimeout(position, self.policy.timeout, worker, index)
            else:
                code = os.waitstatus_to_exitcode(status)
                detail = death_detail(pid, attempts, out_of_memory)
                error = WorkerDied(worker, code, position, detail, index)
        if error is not None:
            raise error

    def _load_in_time(self, seconds: float, payload: Any, position: int, index: int) -> Any:
        begin = time.monotonic()
        item = self.load(payload)
        if time.monotonic() - begin <= seconds:
            return item
        del item  # which a traceback would hold
        raise ElementTimeout(position, seconds, None, index)

    def assemble(
        self,
        rows: Rows,
        collate: Callable[[list[Any]], Any] | None,
        position: int,
        number: int,
        losses: Sequence[Loss],
    ) -> Any:
        """The element of what rows there are; for losses and time it is their last item."""
        seconds = self._seconds
        self.begin_item(number)
        if losses:
            self.fail_if_lost(losses, position, None, number)
        begin = 0.0 if seconds is None else time.monotonic()
        try:
            element = rows.finish()
        except MemoryError as error:  # every batch would be left out, one after the other
            raise _FatalError(error) from None
        if collate is not None:
            element = collate(element)
        if seconds is not None and time.monotonic() - begin > seconds:
            del element
            raise ElementTimeout(position, seconds, None)
        return element


class _FatalError(Exception):
    """Something that no policy is asked about."""

    def __init__(self, what: BaseException) -> None:
        super().__init__()
        self.what = what


def _worker() -> int | None:
    return None if _state.worker is None else _state.worker[0]


def _begin_here(number: int) -> None:
    pass


def _begin_in_thread(number: int) -> None:
    cell = progress.cell
    if cell is not None:
        cell[0] = number, time.monotonic()


def _text_of(error: BaseException) -> str:
    try:
        return repr(error)
    except BaseException:
        return "(its text could not be made)"


# ---- single items --------------------------------------------------------------------------------


def _bind_single(items: _Items) -> BoundTask:
    state = _state
    get, begin, indexed = items.get, items.begin, items.indexed

    def run(epoch: int, position: int, payload: Any, losses: Sequence[Loss] = ()) -> Any:
        state.epoch = epoch
        begin(epoch, position)
        index = payload if indexed else position
        element, failed = get(epoch, position, payload, index, None, losses)
        # `element` goes with this frame: the report, or the caller, then holds the only reference.
        return Report(element, 1) if failed else element

    return run


# ---- batches -------------------------------------------------------------------------------------


def _bind_batch(task: LoaderTask, items: _Items) -> BoundTask:
    batch_size = task.batch_size or 1
    collate = task.collate
    assembler = task.assembler
    fill = items.policy.fill
    drops = fill and items.policy.drop_remainder
    majority = items.policy.on_error == "skip"
    most_errors = math.inf if items.policy.most_errors is None else items.policy.most_errors
    step = task.shard[1]
    state = _state

    def run(
        epoch: int,
        position: int,
        payload: Any,
        losses: Sequence[Loss] = (),
        further: Callable[[int], int | None] | None = None,
        begun: _Begun | None = None,
    ) -> Any:
        state.epoch = epoch
        items.begin(epoch, position)
        # With `fill`, too: fewer than batch_size are dealt where the epoch has no more.
        planned = len(payload)
        start = task.first_place(position)
        rows: Rows
        if collate is not None:
            rows = Listed()
        elif majority:
            rows = Grouped(planned, assembler)
        else:
            rows = Assembled(planned, assembler)
        failed = 0
        number = 0
        while number < planned or (
            further is not None and len(rows) < batch_size and failed <= most_errors
        ):
            item: Any = payload[number] if number < planned or further is None else further(number)
            if further is not None and item is None:
                break
            if begun is not None:
                begun.items = number + 1
            index = item if items.indexed else start + number * step
            value, replaced = items.get(epoch, position, item, index, number, losses)
            failed += replaced
            try:
                rows.add(number, index, value)
            except MemoryError as error:  # for the batch: another item would fail alike
                raise for_consumer(error, position, None, None, _worker())  # noqa: B904
            except BaseException as error:
                if replaced:  # another failure of the same item: nobody is asked again
                    raise for_consumer(error, position, index, number, _worker())  # noqa: B904
                value = items.settle(error, position, index, number)
                failed += 1
                try:
                    rows.add(number, index, value)
                except BaseException as again:
                    raise for_consumer(again, position, index, number, _worker())  # noqa: B904
            del value
            number += 1
        consumed = None if number == planned else number
        if len(rows) == 0 or (drops and len(rows) < batch_size):
            return Report(SKIP, failed + rows.outvoted(), consumed)
        try:
            element = items.assemble(rows, collate, position, number, losses)
        except BaseException as error:
            element = items.settle(error, position, None)
            failed += 1
        failed += rows.outvoted()
        # Like all that is in this frame, `element` goes with it.
        return element if failed == 0 and consumed is None else Report(element, failed, consumed)

    def run_filled(epoch: int, position: int, payload: Any, losses: Sequence[Loss] = ()) -> Any:
        further, *planned = payload
        begun = _Begun()
        try:
            return run(epoch, position, planned, losses, further, begun)
        except BaseException as error:
            note_items_used(error, max(begun.items, len(planned)))
            raise

    return run_filled if fill else run


class _Begun:
    """How many items of a batch were begun."""

    __slots__ = ("items",)

    def __init__(self) -> None:
        self.items = 0
