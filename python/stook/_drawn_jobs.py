"""Jobs whose items, or whose indices, are drawn in the consumer's process, one after the other."""

from __future__ import annotations

import bisect
import copy
import dataclasses
import itertools
import operator
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from ._jobs import Dealing, Dealt, Jobs, Plan
from ._source import is_iterator
from ._state import Place
from .errors import StookError
from .options import _shown
from .sampler import WeightedDraws

__all__ = ["DrawnDealing", "SamplerDealing"]

_OWNER = "DataLoader"
# States of the source that are kept before it is asked which of them are needed still.
_FEWEST_STATES = 16
# How objects that have a state call it: Grain's iterators, and those of torchdata and Hugging Face.
_STATE_METHODS = (("get_state", "set_state"), ("state_dict", "load_state_dict"))


def state_methods(thing: Any) -> tuple[Callable[[], Any], Callable[[Any], Any]] | None:
    """What gets and sets the state of `thing`, if it has one."""
    for get, put in _STATE_METHODS:
        if callable(getattr(type(thing), get, None)) and callable(getattr(type(thing), put, None)):
            return getattr(thing, get), getattr(thing, put)
    return None


class DrawnDealing(Dealing):
    """What an iterable gives, drawn from it in this process when it is asked for.

    Attributes:
      origin: What is iterated for each epoch.
      what: What a message calls it.
    """

    what = "source"

    def __init__(self, plan: Plan, origin: Iterable[Any]) -> None:
        super().__init__(plan)
        self.origin = origin
        self.once = is_iterator(origin)
        self._begun = False

    def identity(self) -> dict[str, Any]:
        return {"items": "iterable", "length": None, **self.plan.identity()}

    def check(self, place: Place, owner: str) -> None:
        if not (self.once and self._begun):
            return
        if place.source is None or state_methods(self.origin) is None:
            raise StookError(
                f"{owner}: the {self.what} {_shown(self.origin)} is an iterator and was run through"
                " before; call update() with a new one, or pass something that starts anew, such as"
                " a list or an object with __iter__"
            )

    def begin(self, place: Place, num_epochs: int | None) -> Jobs:
        self.check(place, _OWNER)
        self._begun = True
        methods = state_methods(self.origin)
        if self.once and methods is not None and place.source is None and not place.position:
            # So that it can come back to its beginning.
            source = copy.deepcopy(methods[0]()), 0
            place = dataclasses.replace(place, source=source)
        return _DrawnJobs(self, place, num_epochs)

    def elements(self) -> int | None:
        if not hasattr(type(self.origin), "__len__"):
            return None
        return self.plan.elements_of(len(self.origin))  # type: ignore[arg-type]

    def prepare(self, epoch: int) -> None:
        """Called before the origin is iterated for an epoch."""

    def items(self, given: Iterator[Any], places: Iterator[int]) -> Iterator[Any]:
        """Looks at what the origin gave at those places of the epoch, of all shards."""
        return given

    def payload(self, batch: list[Any]) -> Any:
        """Of a job, from the items of a batch."""
        return batch


class SamplerDealing(DrawnDealing):
    """The indices that a sampler gives, of a source that is indexed."""

    what = "sampler"

    def __init__(self, plan: Plan, sampler: Iterable[Any], length: int) -> None:
        super().__init__(plan, sampler)
        self._length = length

    def identity(self) -> dict[str, Any]:
        return {"items": "sampler", "length": self._length, **self.plan.identity()}

    def prepare(self, epoch: int) -> None:
        # As torch's DistributedSampler has it.
        set_epoch = getattr(self.origin, "set_epoch", None)
        if set_epoch is not None:
            set_epoch(epoch)

    def items(self, given: Iterator[Any], places: Iterator[int]) -> Iterator[Any]:
        length = self._length
        for value in given:
            place = next(places)
            try:
                index = operator.index(value)
            except TypeError:
                raise TypeError(
                    f"{_OWNER}: the sampler must give ints, and gave {_shown(value)} at place"
                    f" {place} of the epoch"
                ) from None
            if not 0 <= index < length:
                raise IndexError(
                    f"{_OWNER}: the sampler must give indices from 0 to {length - 1}, as the source"
                    f" has {length} items, and gave {index} at place {place} of the epoch"
                )
            yield index

    def payload(self, batch: list[Any]) -> Any:
        return tuple(batch)


class _DrawnJobs(Jobs):
    def __init__(self, dealing: DrawnDealing, start: Place, num_epochs: int | None) -> None:
        super().__init__(start)
        self._dealing = dealing
        self._end = None if num_epochs is None else start.first_epoch + num_epochs
        # Of each epoch that was begun: the ordinal of its first element, below 0 if it was before
        # the start.
        self._starts: list[int] = []
        # Of a source that tells them: the ordinal of the next job, and `Place.source` there.
        self._states: deque[tuple[int, Any]] = deque()
        self._most_states = _FEWEST_STATES
        self._ended = False

    # ---- dealing ---------------------------------------------------------------------------------

    def deal(self) -> Iterator[tuple[int, int, Any]]:
        return Dealt(self, self._deal())

    def _deal(self) -> Iterator[tuple[int, int, Any]]:
        start = self.start
        skip = iter(start.ahead)
        left_out = next(skip, None)
        # A job with some behind it that were delivered before. These are passed over first: once it
        # is delivered, they are what the pass stands behind, also at an epoch's end.
        held: tuple[int, int, Any] | None = None
        ordinal = 0
        position, first_place, source = start.position, start.first_place, start.source
        origin = self._dealing.origin
        index, count = self._dealing.plan.shard
        for epoch in itertools.count(start.epoch):
            if self._end is not None and epoch >= self._end:
                break
            self._starts.append(ordinal - position)
            number = first_place // (self._dealing.plan.batch_size or 1) + index + position * count
            before = ordinal
            for payload in self._payloads(epoch, position, first_place, source, ordinal):
                if ordinal == left_out:
                    left_out = next(skip, None)
                    if held is not None and ordinal + 1 != left_out:
                        job, held = held, None
                        yield job
                elif ordinal + 1 == left_out:
                    held = epoch, number, payload
                else:
                    yield epoch, number, payload
                ordinal += 1
                number += count
            # Of an epoch that was begun before there may be nothing left.
            whole = not position and not first_place
            if self._end is None and ordinal == before and whole:
                raise ValueError(
                    f"{_OWNER}: the {self._dealing.what} {_shown(self._dealing.origin)} gave no"
                    f" element in epoch {epoch}, and num_epochs=None would ask it for ever"
                )
            position, first_place = 0, 0
            # Told after the last item, a state of the origin itself is that of its next epoch.
            if source is not None:
                at_end = source[1] is None and state_methods(origin) is not None
                source = (source[0], 0) if at_end else None
        if held is not None:  # the state says more than there is
            yield held
        self._ended = True

    def _payloads(
        self, epoch: int, position: int, first_place: int, source: Any, ordinal: int
    ) -> Iterator[Any]:
        """Those of one epoch, from `position` on; `ordinal` is that of the first."""
        if source is not None and source[1] is None:
            return  # the epoch had given all
        dealing = self._dealing
        plan = dealing.plan
        dealing.prepare(epoch)
        given, get_state, drawn = self._iterate(source, ordinal)
        index, count = plan.shard
        size = plan.batch_size or 1
        place = first_place + index + position * size * count
        # The last item that surely was delivered: batches before the last one were full.
        taken = place - size * count + 1 if position else 0
        _pass_over(given, drawn, taken, place, dealing)
        of_shard = given if count == 1 else itertools.islice(given, 0, None, count)
        items = dealing.items(of_shard, itertools.count(place, count))
        batch: list[Any] = []
        for item in items:
            batch.append(item)
            if len(batch) < size:
                place += count
                continue
            full, batch = batch, []
            ordinal += 1
            if get_state is not None:
                self._note(ordinal, get_state(), place + 1)
            place += count
            yield full[0] if plan.batch_size is None else dealing.payload(full)
        if batch and not plan.drop_remainder:
            if get_state is not None:
                self._note(ordinal + 1, get_state(), None)
            yield dealing.payload(batch)

    def _iterate(self, source: Any, ordinal: int) -> tuple[Iterator[Any], Any, int]:
        """An iterator, what gets its state (or `None`), and how many items it gave before."""
        origin = self._dealing.origin
        of_origin = state_methods(origin)
        if of_origin is not None:
            if source is not None:
                of_origin[1](source[0])
            else:
                self._note(ordinal, of_origin[0](), 0)
            return iter(origin), of_origin[0], 0 if source is None else source[1]
        given = iter(origin)
        methods = state_methods(given)
        if source is not None:
            if methods is None:
                raise StookError(
                    f"{_OWNER}: the state holds one of the {self._dealing.what}, and"
                    f" {_shown(origin)} has no get_state() and set_state()"
                )
            methods[1](source[0])
            return given, methods[0], source[1]
        if methods is None:
            return given, None, 0
        self._states.append((ordinal, None))
        return given, methods[0], 0

    def _note(self, ordinal: int, state: Any, drawn: int | None) -> None:
        """Keeps a state of the source: before the job of this ordinal."""
        # A copy: some give the object that they go on changing.
        self._states.append((ordinal, (copy.deepcopy(state), drawn)))
        iterator = self._iterator() if self._iterator is not None else None
        if len(self._states) > self._most_states and iterator is not None:
            lowest, _ = iterator.delivered()
            while self._states and self._states[0][0] < lowest:
                self._states.popleft()
            self._most_states = max(_FEWEST_STATES, 2 * len(self._states))

    # ---- places ----------------------------------------------------------------------------------

    def place(
        self,
        lowest: int,
        ahead: list[int] | None = None,
        next_item: tuple[int, int, int] | None = None,
    ) -> Place:
        start = self.start
        distances = tuple(ordinal - lowest for ordinal in ahead or ())
        if lowest == 0 and len(self._starts) < 2:
            return dataclasses.replace(start, ahead=distances)
        states = list(self._states)
        if self._dealing.plan.is_sharded:
            # At an epoch's end it is there still: see `Jobs.place`.
            number = max(0, bisect.bisect_left(self._starts, lowest) - 1)
        else:
            number = bisect.bisect_right(self._starts, lowest) - 1
            states.reverse()
        position = lowest - self._starts[number]
        source = next((state for ordinal, state in states if ordinal == lowest), None)
        return dataclasses.replace(
            start,
            epoch=start.epoch + number,
            position=position,
            ahead=distances,
            first_place=0 if number else start.first_place,
            source=source,
        )

    def is_end(self, place: Place) -> bool:
        return self._ended


def _pass_over(
    given: Iterator[Any], drawn: int, taken: int, place: int, dealing: DrawnDealing
) -> None:
    """Goes on from the item `drawn` to the item `place`; up to `taken` they must be there."""
    if place <= drawn:
        return
    if place > sys.maxsize:
        raise ValueError(
            f"{_OWNER}: the state stands at item {place}, and no iterable goes that far"
        )
    if isinstance(given, WeightedDraws):
        given.advance(place - drawn)
        return
    found = drawn + _count(itertools.islice(given, max(0, taken - drawn)))
    if found < taken:
        raise ValueError(
            f"{_OWNER}: the state stands at item {place} of the {dealing.what}, and"
            f" {_shown(dealing.origin)} gave {found}: it is not what the state was taken from"
        )
    _count(itertools.islice(given, place - max(drawn, taken)))


def _count(items: Iterator[Any]) -> int:
    counter = itertools.count()
    deque(zip(items, counter, strict=False), maxlen=0)
    return next(counter)
