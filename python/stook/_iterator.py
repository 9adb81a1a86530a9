"""What every iterator of a loader has in common."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any

from ._async_iteration import Waiters, take
from ._elsewhere import StaysHere
from ._profiled import not_profiled
from ._state import Place
from .options import check_int
from .profile import LoaderProfile
from .stats import LoaderStats

__all__ = ["LoaderIterator"]


class LoaderIterator(StaysHere):
    """One pass through a `DataLoader`: what `iter(loader)` returns.

    It gives elements until the pass is over, and then raises `StopIteration` for ever. An element
    that is an error raises it, and the next `next()` gives the next element. Making another
    iterator of the same loader closes this one.

    An asynchronous iterator, too: `async for` gives the same elements and errors, and while it
    waits for one the event loop runs what else there is. No thread helps; a task that is cancelled
    while it waits loses no element, and `next()` and `async for` may take turns. With
    `num_workers=0` the elements are made in the loop's thread, between its other coroutines.

    A context manager that closes it.

    Example:
      >>> import stook
      >>> with iter(stook.DataLoader([1, 2, 3])) as elements:
      ...     next(elements), elements.stats().elements
      (1, 1)
    """

    # A plain class without attributes of its own, so that an iterator written in C++ can have it as
    # a second base, and no `for` passes through Python code of this class.
    __slots__ = ()

    # Set by the loader: see `_pass.Pass`. It is held while the pass goes on, as
    # `for x in DataLoader(...)` needs.
    _loader: Any = None
    _pass: Any = None
    _is_handed_over: Any = False  # another iterator says what was delivered: see `prefetch_to`

    def __iter__(self) -> LoaderIterator:
        return self

    def __next__(self) -> Any:
        raise NotImplementedError

    def __aiter__(self) -> LoaderIterator:
        return self

    async def __anext__(self) -> Any:
        return await take(self)

    def _look(self) -> Any:
        """As `next()`, but gives `ABSENT` or `SOON` rather than wait for others."""
        return next(self)

    def _descriptor(self) -> int:
        return -1

    def _longest_wait(self) -> float | None:
        return None

    def _seen_through(self, kind: Callable[[Any], LoaderIterator]) -> LoaderIterator:
        """What `kind`, which takes this iterator over, makes of it."""
        return kind(self)

    def _before_report(self, call: Callable[[], Callable[[], None] | None]) -> None:
        """Has what `call` returns called before anything is printed about the pass."""

    # Made when first asked for, by the threads of event loops alone; setdefault is one step.
    def _waiters(self) -> Waiters:
        waiters: Waiters = self.__dict__.setdefault("_waiting", Waiters())
        return waiters

    def _tell_waiters(self) -> None:
        """Has coroutines look: something was taken, or changed."""
        waiters = self.__dict__.get("_waiting")
        if waiters is not None:
            waiters.tell()

    def close(self) -> None:
        """Ends the pass; elements that were not taken are dropped. Closing again does nothing.

        Arrays that were taken stay valid. `next()` then raises a `StookError`, unless the pass was
        over: a loop that goes on over a closed iterator is not quietly given too little.
        """
        raise NotImplementedError

    def stats(self) -> LoaderStats:
        """Counts what this pass has delivered so far; also after it ended."""
        raise NotImplementedError

    def get_state(self) -> dict[str, Any]:
        """Where this pass stands, as a small dict that `json.dumps` takes.

        Whatever was delivered by now, elements, errors and what was skipped, is behind it;
        everything else is before it. It holds the seed, the epoch, the position and what else must
        agree, does not depend on the number of workers, and can be taken at any time, also after
        the pass ended or was closed. Taking it runs no user code and waits for nothing.

        Of an iterable it holds the number of items that were drawn: going on, the iterable is run
        through again up to there. One whose iterator (or which itself) has `get_state()` and
        `set_state()`, or `state_dict()` and `load_state_dict()`, is asked for its state after each
        element's items instead, and that is part of the state.

        Example:
          >>> import json, stook
          >>> elements = iter(stook.DataLoader(range(6), shuffle=True, num_epochs=2))
          >>> seen = [next(elements) for _ in range(8)]
          >>> saved = json.dumps(elements.get_state())
          >>> other = iter(stook.DataLoader(range(6), shuffle=True, num_epochs=2))
          >>> other.set_state(json.loads(saved))
          >>> list(other) == list(elements)
          True
        """
        state: dict[str, Any] = self._pass.state()
        return state

    def set_state(self, state: Mapping[str, Any], *, reshard: bool = False) -> None:
        """Goes on where a state was taken, in this process or another, with any number of workers.

        What comes then is what would have come there: the same elements, in the same order, with
        the same random draws, to the end of the pass. Worker processes stay as they are. Elements
        that were made and not taken are dropped.

        Args:
          state: What `get_state()` gave, of a loader with the same source and arguments; only
            `transform`, `collate`, `options` and what is done about errors may differ, and
            `ordered` and `num_epochs`: the pass ends so many epochs after its first one.
          reshard: Also take the state of another shard, of as many shards as there were. All of the
            old ones must have delivered as many elements, in order. The rest of the epoch is then
            dealt to the new ones, and nothing is left out or comes twice.

        Raises:
          TypeError: The state is not a dict.
          ValueError: It is of other data, of another shard, of a newer version, or not a state.
          StookError: The iterator is closed; or the source is an iterator, which cannot go back.
        """
        self._go_to(self._loader._place_of(self._pass.dealing, state, reshard))

    def _go_to(self, place: Place, *, by_loader: bool = False) -> None:
        """Goes on at a place that was checked."""
        self._loader._continue(self, place, by_loader)

    def prefetch_to(self, function: Callable[[Any], Any], depth: int = 2) -> LoaderIterator:
        """Goes on with the elements as `function` returns them, made ahead in a thread.

        For what a transfer to a device needs: while the trainer works on one element, one thread
        of this process, always the same, takes the next one from this iterator and runs `function`
        on it. At most `depth` results are there or being made.

        The iterator that is returned takes this one's place: closing it closes both, its
        `get_state()`, and that of the loader, is that of what the trainer has taken, and what was
        made ahead of that comes again after `set_state()`, which waits for the element under way.
        `stats()` counts what was taken ahead. An error, of an element or of `function`, is raised
        in its place in the order, and the next `next()` goes on.

        Everything that `next()` does is done in that thread: iterables are asked for items there,
        and with `num_workers=0` elements are made there, whose draws should then come from
        `stook.rng()`.

        Args:
          function: Takes an element and returns what the trainer gets.
          depth: How many results to hold, at least 1.

        Raises:
          TypeError: `function` cannot be called, or `depth` is not an integer.
          ValueError: `depth` is less than 1.

        Example:
          >>> import stook
          >>> numbers = iter(stook.DataLoader(range(5)))
          >>> next(numbers), list(numbers.prefetch_to(lambda number: 10 * number))
          (0, [10, 20, 30, 40])
        """
        check_prefetch(function, depth)
        return self._prefetch_to(function, depth)

    def _prefetch_to(self, function: Callable[[Any], Any], depth: int) -> LoaderIterator:
        from ._prefetch import PrefetchIterator

        loader = self._loader
        with loader._lock:
            iterator = PrefetchIterator(self, function, depth)
            loader._take_place(self, iterator)
            return iterator

    def profile(self, trace: str | os.PathLike[str] | None = None) -> LoaderProfile:
        """Where the time of this pass went, up to now or to its end; see `DataLoader.profile`.

        Raises:
          StookError: The loader's options do not say `enable_profiling=True`.
        """
        raise not_profiled()

    def delivered(self) -> tuple[int, list[int]]:
        """What was delivered, by the number of a job within the pass.

        Returns:
          `(lowest, ahead)`: every job below `lowest` was, and those in `ahead`, which is sorted.
        """
        raise NotImplementedError

    def next_item(self) -> tuple[int, int, int]:
        """Where a pass with `fill_batches` goes on.

        Returns:
          `(epoch, position, item)`: the epoch, the number of the next element within it, and that
          of the next item, of those in the shard.
        """
        raise NotImplementedError

    def _has_ended(self) -> bool:
        """True once `next()` has said that there are no more elements."""
        raise NotImplementedError

    def _is_closed(self) -> bool:
        """True if it was closed before its end."""
        raise NotImplementedError

    def _at_standstill(self, call: Callable[[], None]) -> None:
        """Calls it when nobody is in `next()`; not under the loader's lock.

        Who is in `next()` runs user code, which may ask the loader for something and is waited for.
        """
        call()

    def _restart(self, jobs: Iterator[Any], skip: Sequence[int]) -> None:
        """Drops what is under way, and goes on with other jobs; `skip`: see `_jobs.Jobs`.

        Called at a standstill, under the loader's lock.
        """
        raise NotImplementedError

    # When the interpreter exits, modules have lost their names, those that are used here included.
    _is_at_exit = staticmethod(sys.is_finalizing)

    def __del__(self) -> None:
        if self._pass is not None and not self._is_handed_over and not self._is_at_exit():
            self._pass.leave(self)

    def __enter__(self) -> LoaderIterator:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        stats = self.stats()
        return f"<stook.LoaderIterator: {stats.elements} elements, {stats.errors} errors>"


def check_prefetch(function: Any, depth: Any) -> None:
    """Checks the arguments of `prefetch_to`."""
    if not callable(function):
        raise TypeError(f"prefetch_to: function must be callable with an element, got {function!r}")
    check_int("prefetch_to", "depth", depth, 1)
