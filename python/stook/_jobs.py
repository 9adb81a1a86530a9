"""What the passes of a loader deal: the items each element is made of, epoch after epoch.

A `Dealing` knows the source and the settings. It is made once, and its `begin` gives the jobs of
one pass, from some place on; whoever delivers tells `Jobs` how far it is, and gets the place.

Of several shards, a pass is one: its elements are made of every `count`-th item of an epoch. What
user code draws depends on the number of an element among those of all shards (`numbers`), so that
shards draw differently, and without batches as a single loader over everything would.
"""

from __future__ import annotations

import dataclasses
import secrets
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from . import _core
from ._filled_plan import FilledPlan
from ._state import Place
from .errors import StookError

__all__ = ["Dealing", "Dealt", "IndexedDealing", "Jobs", "Plan", "count_elements"]


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """The settings of a loader that say how items become elements.

    Attributes:
      shard: Index and count.
      fill: Batches take further items in place of those left out.
    """

    batch_size: int | None = None
    drop_remainder: bool = False
    shuffle: bool = False
    seed: int | None = 0
    shard: tuple[int, int] = (0, 1)
    fill: bool = False

    def items_of(self, items: int, first_place: int = 0) -> int:
        """How many of the items from `first_place` on are this shard's."""
        index, count = self.shard
        return max(0, -(-(items - first_place - index) // count))

    def elements_of(self, items: int, first_place: int = 0) -> int:
        """Elements that this shard makes of the items from `first_place` on.

        With `fill`, the most there can be.
        """
        return count_elements(
            self.items_of(items, first_place), self.batch_size, self.drop_remainder
        )

    @property
    def is_sharded(self) -> bool:
        """True if an epoch has items that are other shards'."""
        return self.shard[1] > 1

    def identity(self) -> dict[str, Any]:
        """What a state and a loader must agree about."""
        return {
            **({"fill_batches": True} if self.fill else {}),
            "seed": self.seed,
            "shard": list(self.shard),
            "batch_size": self.batch_size,
            "drop_remainder": self.drop_remainder,
            "shuffle": self.shuffle,
        }


class Jobs(ABC):
    """The jobs of one pass.

    A job has an ordinal: its number within the pass, in the order in which jobs are dealt. Those
    that `skip` names are left out, as they were delivered before; they keep their ordinals.

    Attributes:
      start: The place where the first one begins.
      fills: Only the iterator knows how many items a job has used up: `place` needs to be told what
        its `next_item()` says.
    """

    def __init__(self, start: Place, *, fills: bool = False) -> None:
        self.start = start
        self.fills = fills
        self._iterator: Callable[[], Any] | None = None

    @property
    def skip(self) -> Sequence[int]:
        """Ordinals that are not dealt."""
        return self.start.ahead

    @abstractmethod
    def deal(self) -> Iterator[Any]:
        """The jobs, as a pool takes them: (epoch, number, payload). To be called once.

        After a `KeyboardInterrupt` asking for more is an error: see `Dealt`.
        """

    @abstractmethod
    def place(
        self,
        lowest: int,
        ahead: list[int] | None = None,
        next_item: tuple[int, int, int] | None = None,
    ) -> Place:
        """Where the pass stands.

        Of several shards, one that has delivered an epoch's last element stands at the end of that
        epoch: one that has an item more may not be through, and from the beginning of the next
        epoch `reshard` could not tell.

        Args:
          lowest: All jobs with a smaller ordinal were delivered.
          ahead: Those above it that were, in rising order.
          next_item: See `LoaderIterator.next_item`; where `fills` is set.
        """

    @abstractmethod
    def is_end(self, place: Place) -> bool:
        """True if nothing comes after `place`."""

    def follow(self, iterator: Callable[[], Any]) -> None:
        """Takes a weak reference to the iterator that deals these jobs."""
        self._iterator = iterator


class Dealing(ABC):
    """How the passes over one source, with one set of settings, are cut into jobs."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What a state and a loader must agree about: see `place_of_state`."""

    @abstractmethod
    def begin(self, place: Place, num_epochs: int | None) -> Jobs:
        """The jobs from `place` to the end of its pass, which has so many epochs in all.

        Raises:
          StookError: The source cannot begin there.
        """

    def settle(self, place: Place) -> Place:
        """The place with what `begin` would leave to chance; the next pass will have that."""
        return place

    @abstractmethod
    def check(self, place: Place, owner: str) -> None:
        """Raises a `ValueError` for a place the source does not have, and what `begin` raises."""

    @abstractmethod
    def elements(self) -> int | None:
        """Elements of one epoch, or `None` where only going through the source tells."""

    def never_gives(self) -> str | None:
        """Why an epoch has no element, if that is known beforehand."""
        return None

    def iterator(self, given: Any) -> Any:
        """What a loader hands out, from what a pool made of the jobs."""
        return given


class Dealt(Iterator[Any]):
    """Jobs of a generator, which Ctrl-C ends: the loop must not end as if there were no more.

    Attributes:
      dealer: Whose generator it is.
    """

    def __init__(self, dealer: Jobs, jobs: Iterator[Any]) -> None:
        self.dealer = dealer
        self._jobs = jobs
        self._is_broken = False

    def __next__(self) -> Any:
        if self._is_broken:
            raise StookError(
                "this pass was broken off: a KeyboardInterrupt was raised while the source was"
                " asked for an item; set_state(get_state()) goes on there, with a source that can"
                " be run through again"
            )
        try:
            # Not next(): behind a call Ctrl-C could come, with the job gone and the generator well.
            for job in self._jobs:
                return job
        except KeyboardInterrupt:
            self._is_broken = True
            raise
        raise StopIteration


def count_elements(items: int, batch_size: int | None, drop_remainder: bool) -> int:
    """Elements that so many items make."""
    if batch_size is None:
        return items
    whole, rest = divmod(items, batch_size)
    return whole + (1 if rest and not drop_remainder else 0)


class IndexedDealing(Dealing):
    """Every index of a source once an epoch, in order or shuffled: only indices are dealt."""

    def __init__(self, plan: Plan, length: int) -> None:
        super().__init__(plan)
        self.length = length
        self._settled: dict[str, int] = {}  # the seed of the next pass, once somebody asked
        self._per_epoch = plan.elements_of(length)

    def identity(self) -> dict[str, Any]:
        return {"items": "indices", "length": self.length, **self.plan.identity()}

    def check(self, place: Place, owner: str) -> None:
        if place.first_place > self.length:
            raise ValueError(
                f"{owner}: the state's place must be 0 to {self.length}, the length of the source,"
                f" got {place.first_place}"
            )
        most = self.plan.elements_of(self.length, place.first_place)
        if place.position > most:
            raise ValueError(
                f"{owner}: the state's position must be 0 to {most}, the elements of its epoch, got"
                f" {place.position}"
            )
        if self.plan.fill:
            items = self.plan.items_of(self.length)
            # So many the batches before it have used up at least, and none has used up any.
            least = min(items, place.position * (self.plan.batch_size or 1))
            most = items if place.position else 0
            if not least <= place.item <= most:
                raise ValueError(
                    f"{owner}: the state's item must be {least} to {most} at position"
                    f" {place.position}, got {place.item}"
                )

    def begin(self, place: Place, num_epochs: int | None) -> Jobs:
        place = self.settle(place)
        self._settled = {}
        return _IndexedJobs(self, place, num_epochs)

    def settle(self, place: Place) -> Place:
        if not self.plan.shuffle or place.shuffle_seed is not None:
            return place
        seed = self.plan.seed
        if seed is None:  # in one step: states are taken without a lock
            seed = self._settled.setdefault("seed", secrets.randbits(64))
        return dataclasses.replace(place, shuffle_seed=seed)

    def elements(self) -> int:
        return self._per_epoch

    def never_gives(self) -> str | None:
        if self._per_epoch:
            return None
        if not self.length:
            return "its length is 0"
        return (
            f"its length is {self.length}, batch_size={self.plan.batch_size},"
            f" drop_remainder={self.plan.drop_remainder}, shard={self.plan.shard}"
        )


class _IndexedJobs(Jobs):
    def __init__(self, dealing: IndexedDealing, start: Place, num_epochs: int | None) -> None:
        super().__init__(start, fills=dealing.plan.fill)
        self._dealing = dealing
        self._end = None if num_epochs is None else start.first_epoch + num_epochs
        self._per_epoch = dealing.elements()
        # Of the epoch that the start is in.
        self._left = dealing.plan.elements_of(dealing.length, start.first_place) - start.position

    def deal(self) -> Iterator[Any]:
        plan, start = self._dealing.plan, self.start
        arguments = (self._dealing.length, plan.batch_size or 0, plan.drop_remainder)
        options: dict[str, Any] = {
            "shuffle_seed": start.shuffle_seed,
            "first_epoch": start.epoch,
            "num_epochs": None if self._end is None else max(0, self._end - start.epoch),
            "shard_index": plan.shard[0],
            "shard_count": plan.shard[1],
            "first_position": start.position,
        }
        if plan.fill:
            return FilledPlan(*arguments, **options, first_item=start.item)
        return _core.IndexPlan(
            *arguments, **options, first_place=start.first_place, skip=start.ahead
        )

    def place(
        self,
        lowest: int,
        ahead: list[int] | None = None,
        next_item: tuple[int, int, int] | None = None,
    ) -> Place:
        if next_item is not None:
            return self._place_of_item(*next_item)
        distances = tuple(ordinal - lowest for ordinal in ahead or ())
        start = self.start
        at_end = 1 if self._dealing.plan.is_sharded else 0
        if lowest < self._left + at_end:
            return dataclasses.replace(start, position=start.position + lowest, ahead=distances)
        if not self._per_epoch and not self._left:
            return start
        epochs, position = divmod(lowest - self._left - at_end, max(1, self._per_epoch))
        position += at_end
        return dataclasses.replace(
            start,
            epoch=start.epoch + 1 + epochs,
            position=position,
            ahead=distances,
            first_place=0,
        )

    def _place_of_item(self, epoch: int, position: int, item: int) -> Place:
        start, plan = self.start, self._dealing.plan
        if not self._per_epoch:
            return start
        left = plan.items_of(self._dealing.length) - item
        if left <= 0 or (plan.drop_remainder and left < (plan.batch_size or 1)):
            epoch, position, item = epoch + 1, 0, 0
        return dataclasses.replace(start, epoch=epoch, position=position, item=item)

    def is_end(self, place: Place) -> bool:
        if not self._per_epoch or self._end is None:
            return not self._per_epoch
        plan = self._dealing.plan
        most = plan.elements_of(self._dealing.length, place.first_place)
        return place.epoch + (place.position >= most and not plan.fill) >= self._end
