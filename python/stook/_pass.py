"""One pass of a loader, as far as its state goes: also after its iterator was dropped."""

from __future__ import annotations

import weakref
from typing import Any

from ._jobs import Dealing, Jobs
from ._state import Place, state_of_place

__all__ = ["Pass"]

# (lowest, ahead) as delivered() gives them, whether the end was reached, and next_item() where the
# jobs need it.
_Where = tuple[int, list[int], bool, "tuple[int, int, int] | None"]


class Pass:
    """What is dealt, and how far it is.

    Held by the loader and by the iterator, and so holds the iterator weakly.

    Attributes:
      by_loader: The loader's `set_state` began it: until something is delivered, a new iterator of
        the loader begins there, too.
    """

    __slots__ = ("_iterator", "_left", "by_loader", "dealing", "jobs")

    def __init__(self, dealing: Dealing, jobs: Jobs, iterator: Any, by_loader: bool) -> None:
        self.dealing = dealing
        self.jobs = jobs
        self.by_loader = by_loader
        self._iterator = weakref.ref(iterator)
        self._left: _Where | None = None
        jobs.follow(self._iterator)

    def hand_over(self, iterator: Any) -> None:
        """Another iterator says from now on what was delivered: it takes from the first."""
        self._iterator = weakref.ref(iterator)
        self.jobs.follow(self._iterator)

    def leave(self, iterator: Any) -> None:
        """Takes from an iterator that is about to go what is asked for later."""
        if self._iterator() in (None, iterator):
            self._left = self._ask(iterator)

    def _where(self) -> _Where:
        iterator = self._iterator()
        if iterator is not None:
            return self._ask(iterator)
        return self._left or (0, [], False, None)

    def _ask(self, iterator: Any) -> _Where:
        # Waits for nothing, and runs no user code.
        next_item = iterator.next_item() if self.jobs.fills else None
        return (*iterator.delivered(), iterator._has_ended(), next_item)

    def place(self) -> Place:
        """Where it stands. Runs no user code and waits for nothing."""
        lowest, ahead, _, next_item = self._where()
        return self.jobs.place(lowest, ahead, next_item)

    def state(self) -> dict[str, Any]:
        """The same, for users."""
        return state_of_place(self.place(), self.dealing.identity())

    def has_delivered(self) -> bool:
        """True if an element, or an error in its stead, was delivered."""
        lowest, ahead, _, _ = self._where()
        return lowest > 0 or len(ahead) > len(self.jobs.skip)

    def elements_before(self) -> int:
        """Elements of the pass before the place where it was begun; 0 where that is unknown."""
        start = self.jobs.start
        epochs = start.epoch - start.first_epoch
        return start.position + (epochs and epochs * (self.dealing.elements() or 0))

    def is_open(self) -> bool:
        """True if there is an iterator that may give more, or be set back."""
        iterator = self._iterator()
        return iterator is not None and not iterator._is_closed()

    def is_over(self) -> bool:
        """True if `next()` has said that there are no more."""
        return self._where()[2] and self.jobs.is_end(self.place())

    def next_epoch(self) -> int:
        """The epoch with which the next pass is to begin: after that of the last element."""
        lowest, ahead, _, next_item = self._where()
        place = self.jobs.place(ahead[-1] + 1 if ahead else lowest, None, next_item)
        return place.epoch + (1 if place.position or place.first_place else 0)
