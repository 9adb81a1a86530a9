"""What the passes of a loader deal: the items each element is made of, epoch after epoch.

A `Dealing` knows the source and the settings. It is made once, and its `begin` gives the jobs of
one pass, from some place on; whoever delivers tells `Jobs` how far it is, and gets the place.
"""

from __future__ import annotations

import bisect
import dataclasses
import itertools
import secrets
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import Any

from . import _core
from .options import _shown

__all__ = ["Dealing", "IndexedDealing", "IterableDealing", "Jobs", "Place"]

_OWNER = "DataLoader"


@dataclasses.dataclass(frozen=True, slots=True)
class Place:
    """Where a pass stands: what comes next.

    Attributes:
      epoch: Counted over all passes of the loader.
      position: Number of the next element within the epoch.
      shuffle_seed: What the orders of the pass depend on, where `seed=None` left it to chance.
    """

    epoch: int = 0
    position: int = 0
    shuffle_seed: int | None = None


class Jobs(ABC):
    """The jobs of one pass.

    A job has an ordinal: its number within the pass, in the order in which jobs are dealt.
    """

    @abstractmethod
    def deal(self) -> Iterator[Any]:
        """The jobs, as a pool takes them: (epoch, position, payload). To be called once."""

    @abstractmethod
    def place(self, lowest: int) -> Place:
        """Where the pass stands when all jobs with an ordinal below `lowest` were delivered."""


class Dealing(ABC):
    """How the passes over one source, with one set of settings, are cut into jobs."""

    @abstractmethod
    def begin(self, place: Place, num_epochs: int | None) -> Jobs:
        """The jobs from `place` to the end of `num_epochs` epochs, its own included."""

    @abstractmethod
    def elements(self) -> int | None:
        """Elements of one epoch, or `None` where only going through the source tells."""

    def never_gives(self) -> str | None:
        """Why an epoch has no element, if that is known beforehand."""
        return None


def count_elements(items: int, batch_size: int | None, drop_remainder: bool) -> int:
    """Elements that so many items make."""
    if batch_size is None:
        return items
    whole, rest = divmod(items, batch_size)
    return whole + (1 if rest and not drop_remainder else 0)


# ---- a source that is indexed --------------------------------------------------------------------


class IndexedDealing(Dealing):
    """Every index of a source once an epoch, in order or shuffled: only indices are dealt."""

    def __init__(
        self,
        length: int,
        batch_size: int | None,
        drop_remainder: bool,
        shuffle: bool,
        seed: int | None,
    ) -> None:
        self._length = length
        self._batch_size = batch_size
        self._drop_remainder = drop_remainder
        self._shuffle = shuffle
        self._seed = seed
        self._per_epoch = count_elements(length, batch_size, drop_remainder)

    def begin(self, place: Place, num_epochs: int | None) -> Jobs:
        if self._shuffle and place.shuffle_seed is None:
            seed = secrets.randbits(64) if self._seed is None else self._seed
            place = dataclasses.replace(place, shuffle_seed=seed)
        plan = _core.IndexPlan(
            self._length,
            self._batch_size or 0,
            self._drop_remainder,
            place.shuffle_seed,
            place.epoch,
            num_epochs,
        )
        return _IndexedJobs(plan, place, self._per_epoch)

    def elements(self) -> int:
        return self._per_epoch

    def never_gives(self) -> str | None:
        if self._per_epoch:
            return None
        if not self._length:
            return "its length is 0"
        return f"its length is {self._length}, batch_size={self._batch_size}, drop_remainder=True"


class _IndexedJobs(Jobs):
    def __init__(self, plan: _core.IndexPlan, start: Place, per_epoch: int) -> None:
        self._plan = plan
        self._start = start
        self._per_epoch = per_epoch

    def deal(self) -> Iterator[Any]:
        return self._plan

    def place(self, lowest: int) -> Place:
        if not self._per_epoch:
            return self._start
        epochs, position = divmod(lowest, self._per_epoch)
        return dataclasses.replace(self._start, epoch=self._start.epoch + epochs, position=position)


# ---- a source that is iterated here --------------------------------------------------------------


class IterableDealing(Dealing):
    """What an iterable gives, drawn from it in this process when it is asked for."""

    def __init__(self, source: Iterable[Any], batch_size: int | None, drop_remainder: bool) -> None:
        self._source = source
        self._batch_size = batch_size
        self._drop_remainder = drop_remainder

    def begin(self, place: Place, num_epochs: int | None) -> Jobs:
        return _DrawnJobs(self, place, num_epochs)

    def elements(self) -> int | None:
        if not hasattr(type(self._source), "__len__"):
            return None
        length = len(self._source)  # type: ignore[arg-type]
        return count_elements(length, self._batch_size, self._drop_remainder)

    def payloads(self) -> Iterator[Any]:
        """Those of one epoch."""
        if self._batch_size is None:
            yield from self._source
            return
        batch: list[Any] = []
        for item in self._source:
            batch.append(item)
            if len(batch) == self._batch_size:
                full, batch = batch, []
                yield full
        if batch and not self._drop_remainder:
            yield batch

    def check_not_empty(self, epoch: int) -> None:
        """Raises what a pass without end says to an epoch that gave nothing."""
        raise ValueError(
            f"{_OWNER}: the source {_shown(self._source)} gave no element in epoch {epoch},"
            " and num_epochs=None would ask it for ever"
        )


class _DrawnJobs(Jobs):
    def __init__(self, dealing: IterableDealing, start: Place, num_epochs: int | None) -> None:
        self._dealing = dealing
        self._start = start
        self._num_epochs = num_epochs
        self._starts: list[int] = []  # jobs given out before each epoch that was begun

    def deal(self) -> Iterator[tuple[int, int, Any]]:
        given = 0
        for number in itertools.count():
            if number == self._num_epochs:
                return
            epoch = self._start.epoch + number
            self._starts.append(given)
            for position, payload in enumerate(self._dealing.payloads()):
                given += 1
                yield epoch, position, payload
            if self._num_epochs is None and given == self._starts[-1]:
                self._dealing.check_not_empty(epoch)

    def place(self, lowest: int) -> Place:
        number = bisect.bisect_right(self._starts, lowest) - 1
        if number < 0:
            return self._start
        return dataclasses.replace(
            self._start,
            epoch=self._start.epoch + number,
            position=lowest - self._starts[number],
        )
