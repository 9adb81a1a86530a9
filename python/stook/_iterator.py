"""What every iterator of a loader has in common."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any

from ._elsewhere import StaysHere
from ._state import Place
from .stats import LoaderStats

__all__ = ["LoaderIterator"]


class LoaderIterator(StaysHere):
    """One pass through a `DataLoader`: what `iter(loader)` returns.

    It gives elements until the pass is over, and then raises `StopIteration` for ever. An element
    that is an error raises it, and the next `next()` gives the next element. Making another
    iterator of the same loader closes this one.

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

    def __iter__(self) -> LoaderIterator:
        return self

    def __next__(self) -> Any:
        raise NotImplementedError

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

    def _go_to(self, place: Place) -> None:
        """Goes on at a place that was checked."""
        self._loader._continue(self, place)

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

    def _restart(self, jobs: Iterator[Any], skip: Sequence[int]) -> None:
        """Drops what is under way, and goes on with other jobs; `skip`: see `_jobs.Jobs`."""
        raise NotImplementedError

    def __del__(self) -> None:
        if self._pass is not None:
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
