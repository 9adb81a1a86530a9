"""Jobs of a source that is read in the workers: the next element of one of its shards.

The stream of elements is the round robin over the shards that still have some: element `step` of
shard s has the number `step * shards + s` in its epoch, and elements come by rising numbers. So
their order depends on the number of shards, which a state holds, and neither on timing nor on who
reads which shard. That a shard is over is found out by asking for an element too much; the answer
is an `Over` in the place of that element, which the iterator keeps from the consumer.
"""

from __future__ import annotations

import dataclasses
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ._jobs import Dealing, Dealt, Jobs, Plan
from ._state import Place
from ._through import ThroughIterator
from ._worker_sources import Over
from .errors import ElementTimeout, WorkerDied
from .options import _shown
from .stats import LoaderStats

__all__ = ["ShardedDealing", "ShardedIterator"]

_OWNER = "DataLoader"
# A shard that costs so many workers one after the other, an element each, dies in its iterable.
_MOST_LOST = 8
# Jobs that are remembered before the iterator is asked which of them it needs still.
_FEWEST_JOBS = 64


class ShardedDealing(Dealing):
    """Elements of shards, one after the other.

    Attributes:
      shards: How many there are, unless a state said otherwise.
    """

    def __init__(self, plan: Plan, source: Any, workers: int) -> None:
        super().__init__(plan)
        self.source = source
        self.workers = max(1, workers)
        self.shards = self.workers

    def identity(self) -> dict[str, Any]:
        return {
            "items": "shards",
            "length": None,
            "shards": self.shards,
            **self.plan.identity(),
        }

    def check(self, place: Place, owner: str) -> None:
        shards = place.shards or self.shards
        for shard, _ in place.over:
            if shard >= shards:
                raise ValueError(
                    f"{owner}: the state says that shard {shard} is over, and there are {shards}"
                )

    def begin(self, place: Place, num_epochs: int | None) -> Jobs:
        self.shards = place.shards or self.shards
        return _ShardedJobs(self, dataclasses.replace(place, shards=self.shards), num_epochs)

    def elements(self) -> int | None:
        return None

    def iterator(self, given: Any) -> Any:
        return given._seen_through(ShardedIterator)


class _ShardedJobs(Jobs):
    """`_records` and what else says where the dealing is changes under the iterator's lock."""

    def __init__(self, dealing: ShardedDealing, start: Place, num_epochs: int | None) -> None:
        super().__init__(start)
        self._dealing = dealing
        self._shards = start.shards or dealing.shards
        self._end = None if num_epochs is None else start.first_epoch + num_epochs
        # Where the dealing is, and what is known of the epoch: how many elements shards had.
        self._epoch = start.epoch
        self._number = start.position
        self._counts: dict[int, int] = dict(start.over)
        # Numbers not come to yet that were delivered before the pass began.
        self._early = {start.position + distance for distance in start.ahead}
        self._skip: list[int] = []
        # (epoch, number) of the jobs that were dealt, from the ordinal `_first` on.
        self._records: deque[tuple[int, int]] = deque()
        self._first = 0
        self._most_records = _FEWEST_JOBS
        self._lost: dict[int, tuple[int, int]] = {}  # of a shard: last step lost, lost in a row
        # Of epochs that are dealt to the end: `_counts`. A trainer may be behind who takes.
        self._past: dict[int, dict[int, int]] = {}
        self._taker: Callable[[], Any] | None = None
        self._ended = False

    @property
    def skip(self) -> Sequence[int]:
        """It grows as the dealing comes to them."""
        return self._skip

    def taken_by(self, taker: Callable[[], Any]) -> None:
        """Takes a weak reference to who asks for jobs: with `prefetch_to` ahead of the trainer."""
        self._taker = taker

    # ---- dealing ---------------------------------------------------------------------------------

    def deal(self) -> Iterator[Any]:
        return Dealt(self, self._deal())

    def _deal(self) -> Iterator[Any]:
        shards, workers = self._shards, self._dealing.workers
        size = self._dealing.plan.batch_size or 1
        begun_at = self._number
        while self._end is None or self._epoch < self._end:
            all_over = self._is_through(self._number, self._counts)
            if all_over and self._next_waiting() is None:
                if self._end is None and not begun_at and not any(self._counts.values()):
                    raise ValueError(
                        f"{_OWNER}: no shard of the source {_shown(self._dealing.source)} gave an"
                        f" element in epoch {self._epoch}, and num_epochs=None would ask for ever"
                    )
                begun_at = 0
                early: set[int] = set()
                # In one step: no call in between, so that a place that is asked for is one of both.
                self._past[self._epoch] = self._counts
                self._epoch, self._number = self._epoch + 1, 0
                self._counts, self._early, self._lost = {}, early, {}
                continue
            number = self._number
            shard = number % shards
            # If all are over and some are not delivered, more is asked for to no purpose: what
            # comes of the next epoch must not come before them.
            if self._is_beyond(number, self._counts) and not all_over:
                self._number += 1
                continue
            # In an order in which Ctrl-C in between leaves the pass standing where it is.
            ordinal = self._first + len(self._records)
            self._records.append((self._epoch, number))
            self._number = number + 1
            self._forget_delivered()
            if number in self._early:
                self._skip.append(ordinal)
                self._early.remove(number)
                continue
            yield self._epoch, number, [shards] * size, shard % workers
        self._ended = True

    def over(self, found: Over) -> None:
        """Takes what came in the place of an element."""
        if found.epoch == self._epoch:
            self._counts[found.shard] = found.count

    def lost(self, number: int) -> None:
        """Takes note that the element of that number cost its worker."""
        step, shard = divmod(number, self._shards)
        before, in_a_row = self._lost.get(shard, (step, 0))
        in_a_row = in_a_row + 1 if step == before + 1 else 1
        self._lost[shard] = step, in_a_row
        if in_a_row >= _MOST_LOST:
            self._counts.setdefault(shard, step + 1)

    def _is_beyond(self, number: int, counts: dict[int, int]) -> bool:
        """True if the shard of that number is known to have ended before it."""
        step, shard = divmod(number, self._shards)
        count = counts.get(shard)
        return count is not None and step >= count

    def _is_through(self, number: int, counts: dict[int, int]) -> bool:
        """True if every shard is known to have ended before its first number from this one on."""
        # All may have ended and some of theirs be left: of the pass that a state was taken from.
        return len(counts) == self._shards and all(
            self._is_beyond(following, counts) for following in range(number, number + self._shards)
        )

    def _forget_delivered(self) -> None:
        if len(self._records) <= self._most_records or self._iterator is None:
            return
        iterator = self._iterator()
        if iterator is None:
            return
        lowest, _ = iterator.delivered()
        while self._records and self._first < lowest:
            self._records.popleft()
            self._first += 1
        self._most_records = max(_FEWEST_JOBS, 2 * len(self._records))
        oldest = self._records[0][0] if self._records else self._epoch
        self._past = {epoch: counts for epoch, counts in self._past.items() if epoch >= oldest}

    def _next_waiting(self) -> int | None:
        """The lowest number of this epoch that was dealt, is there, and was not taken."""
        # Not of the trainer: who waits here for it would wait in next(), where set_state() waits
        # for who is there, and would not see that what it has not taken was left out.
        taker = self._taker() if self._taker is not None else None
        if taker is None:
            return None
        lowest, ahead = taker.delivered()
        return self._lowest_waiting(lowest, set(ahead), self._epoch, self._counts, self._early)

    def _lowest_waiting(
        self, lowest: int, ahead: set[int], epoch: int, counts: dict[int, int], early: set[int]
    ) -> int | None:
        for ordinal, (of_epoch, number) in enumerate(list(self._records), self._first):
            if ordinal < lowest or ordinal in ahead or of_epoch != epoch:
                continue
            if not self._is_beyond(number, counts) and number not in early:
                return number
        return None

    # ---- places ----------------------------------------------------------------------------------

    def place(
        self,
        lowest: int,
        ahead: list[int] | None = None,
        next_item: tuple[int, int, int] | None = None,
    ) -> Place:
        delivered = set(ahead or ())
        # The present epoch first: it may become a past one meanwhile, and then is found there.
        epoch, number, counts, early = self._epoch, self._number, self._counts, self._early
        for past, of_past in list(self._past.items()):
            position = self._lowest_waiting(lowest, delivered, past, of_past, set())
            if position is not None:
                return self._place_at(past, position, of_past, set(), lowest, delivered)
        position = self._lowest_waiting(lowest, delivered, epoch, counts, early)
        if position is None:
            if self._is_through(number, counts):
                return dataclasses.replace(
                    self.start, epoch=epoch + 1, position=0, ahead=(), over=()
                )
            position = number
            while self._is_beyond(position, counts) or position in early:
                position += 1
        return self._place_at(epoch, position, counts, early, lowest, delivered)

    def _place_at(
        self,
        epoch: int,
        position: int,
        counts: dict[int, int],
        early: set[int],
        lowest: int,
        delivered: set[int],
    ) -> Place:
        behind = set(early)
        for ordinal, (of_epoch, number) in enumerate(list(self._records), self._first):
            if of_epoch == epoch and (ordinal in delivered or ordinal < lowest):
                behind.add(number)
        return dataclasses.replace(
            self.start,
            epoch=epoch,
            position=position,
            ahead=tuple(
                number - position
                for number in sorted(behind)
                if number > position and not self._is_beyond(number, counts)
            ),
            over=tuple(sorted(counts.items())),
        )

    def is_end(self, place: Place) -> bool:
        return self._ended or (self._end is not None and place.epoch >= self._end)


class ShardedIterator(ThroughIterator):
    """What another iterator gives, without the answers that a shard is over."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self._jobs: Any = None  # those of its pass; others once it went on at a state
        self._kept_back = 0
        # To be raised: Ctrl-C came before.
        self._error: WorkerDied | ElementTimeout | None = None

    def __next__(self) -> Any:
        if self._jobs is None:
            self._begin(self._pass.jobs)
        if self._error is not None:
            self._raise_again()
        try:
            for element in self._inner:
                match element:  # without a call, behind which Ctrl-C could come
                    case Over():
                        self._note(element)
                    case _:
                        return element
        except (WorkerDied, ElementTimeout) as error:
            self._error = error
            self._raise_again()
        raise StopIteration

    def _look(self) -> Any:
        if self._jobs is None:
            self._begin(self._pass.jobs)
        if self._error is not None:
            self._raise_again()
        while True:
            try:
                element = self._inner._look()
            except (WorkerDied, ElementTimeout) as error:
                self._error = error
                self._raise_again()
            if type(element) is not Over:
                return element
            self._note(element)

    def _note(self, found: Over) -> None:
        self._jobs.over(found)
        self._kept_back += 1
        self._loader._kept_back += 1

    def _raise_again(self) -> None:
        error: Any = self._error
        try:
            if error.index is not None:
                self._jobs.lost(error.index)
            self._error = None
            raise error
        finally:
            del self, error  # which the traceback would hold

    def _begin(self, jobs: Any) -> None:
        jobs.taken_by(weakref.ref(self))
        self._jobs = jobs

    def _restart(self, jobs: Iterator[Any], skip: Sequence[int]) -> None:
        super()._restart(jobs, skip)
        assert isinstance(jobs, Dealt)
        # Not the pass's: of that another iterator may hear, which takes from this one.
        self._begin(jobs.dealer)
        self._error = None

    def stats(self) -> LoaderStats:
        stats = super().stats()
        return dataclasses.replace(stats, elements=stats.elements - self._kept_back)
