"""States of a pass: a small dict that says where it stands, and what it was taken from."""

from __future__ import annotations

import base64
import binascii
import dataclasses
import itertools
import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .options import _shown

__all__ = ["Place", "ordinals", "place_of_state", "state_of_place"]

VERSION = 1
_MOST = (1 << 63) - 1

# What a state and a loader must agree about, as a message names it. A shard is a matter of its own.
_NAMES = {
    "items": "items",
    "length": "a source of length",
    "seed": "seed",
    "batch_size": "batch_size",
    "drop_remainder": "drop_remainder",
    "shuffle": "shuffle",
    "fill_batches": "fill_batches",
}
# What a state that does not name it was taken with.
_UNNAMED = {"fill_batches": False}


@dataclasses.dataclass(frozen=True, slots=True)
class Place:
    """Where a pass stands: what comes next.

    Attributes:
      epoch: Counted over all passes of the loader.
      position: Number of the next element within the epoch.
      ahead: Elements after that one which were delivered before it, with `ordered=False`: their
        distances to it, in rising order.
      first_place: Of the epoch, all shards together: items that were done when it was cut into
        these shards, after a reshard. Positions count from there.
      shuffle_seed: What the orders of the pass depend on, where `seed=None` left it to chance.
      source: `(state, drawn)` of a source that tells its own state: the state, and how many items
        it had given of the epoch by then, or `None` if it had said that there are no more.
      first_epoch: With which the pass began.
      shards: How many a source that is read in the workers has; `None`: as the loader has it.
      over: `(shard, elements)` of those of them that are known to have ended in this epoch.
      item: With `fill_batches`: number of the next item, of those that the shard has in the epoch.
    """

    epoch: int = 0
    position: int = 0
    ahead: tuple[int, ...] = ()
    first_place: int = 0
    shuffle_seed: int | None = None
    source: tuple[Any, int | None] | None = None
    first_epoch: int = 0
    shards: int | None = None
    over: tuple[tuple[int, int], ...] = ()
    item: int = 0


def ordinals(skip: Sequence[int], lowest: int, ahead: Iterable[int]) -> tuple[int, list[int]]:
    """What was delivered, by ordinal, from the numbers under which jobs were dealt.

    Args:
      skip: Ordinals of jobs that were not dealt, in rising order; they count as delivered.
      lowest: All jobs with a smaller number were delivered, and this one was not.
      ahead: Those above it that were.

    Returns:
      The same two, as ordinals, the second in rising order.
    """
    if not skip:
        return lowest, sorted(ahead)

    def ordinal(number: int) -> int:
        for left_out in skip:
            if left_out > number:
                break
            number += 1
        return number

    lowest = ordinal(lowest)
    return lowest, sorted(
        [*map(ordinal, ahead), *(skipped for skipped in skip if skipped > lowest)]
    )


def state_of_place(place: Place, identity: Mapping[str, Any]) -> dict[str, Any]:
    """The state, as users get it: of numbers, strings, booleans, lists and dicts.

    Args:
      place: Where the pass stands.
      identity: What it is a pass over; see `Dealing.identity`.
    """
    state: dict[str, Any] = {
        "stook": VERSION,
        **identity,
        "first_epoch": place.first_epoch,
        "epoch": place.epoch,
        "position": place.position,
    }
    if identity.get("fill_batches"):
        state["item"] = place.item
    if place.ahead:
        state["ahead"] = list(place.ahead)
    if place.first_place:
        state["place"] = place.first_place
    if place.shards is not None:
        state["shards"] = place.shards
    if place.over:
        state["over"] = [list(pair) for pair in place.over]
    if place.shuffle_seed is not None and identity.get("seed") is None:
        state["shuffle_seed"] = place.shuffle_seed
    if place.source is not None:
        own, drawn = place.source
        if isinstance(own, bytes):
            own = {"bytes": base64.b64encode(own).decode()}
        else:
            own = {"state": own}
        state["source"] = {**own, "drawn": drawn}
    return state


def place_of_state(state: Any, identity: Mapping[str, Any], owner: str, *, reshard: bool) -> Place:
    """The place a state names.

    Args:
      state: What the user passed.
      identity: As for `state_of_place`, of the loader that is to go on there.
      owner: Who that is, for messages.
      reshard: Take a state of another shard: the place then is that of all shards together.

    Raises:
      TypeError: It is not a dict.
      ValueError: It is not a state, of another version, of other data, or contradicts itself.
    """
    read = _Reader(state, owner)
    for key, name in _NAMES.items():
        absent = _UNNAMED.get(key, ...)
        taken, own = read.value(key, absent), identity.get(key, absent)
        if taken != own:
            raise ValueError(
                f"{owner}: the state was taken with {name}={taken!r}, and this loader has"
                f" {name}={own!r}; make the loader with the arguments of the one that gave the"
                " state"
            )
    filled = identity.get("fill_batches", False)
    epoch = read.number("epoch")
    place = Place(
        epoch=epoch,
        position=read.number("position"),
        ahead=read.ahead(),
        first_place=read.number("place", 0, 0 if filled else _MOST),
        shuffle_seed=read.number("shuffle_seed", None, (1 << 64) - 1),
        source=read.source(),
        first_epoch=read.number("first_epoch", most=epoch),
        shards=read.shards() if identity["items"] == "shards" else None,
        over=read.over(),
        item=read.number("item") if filled else 0,
    )
    if filled and place.ahead:
        raise ValueError(
            f"{owner}: with fill_batches=True elements come in order, and the state says that"
            f" {len(place.ahead)} are ahead of others: it was changed since it was taken"
        )
    shard, own = read.shard(), list(identity["shard"])
    if shard == own:
        return place
    if filled and place.position:
        raise ValueError(
            f"{owner}: the state was taken with shard={tuple(shard)}, and this loader has"
            f" shard={tuple(own)}; with fill_batches=True each shard is at an item of its own, so"
            " that the rest of an epoch cannot be dealt to others: make the loader with the shard"
            " of the state, or pass reshard=True with states taken at the beginning of an epoch"
        )
    if not reshard:
        raise ValueError(
            f"{owner}: the state was taken with shard={tuple(shard)}, and this loader has"
            f" shard={tuple(own)}; to go on with other shards where all of the old ones stood at"
            " this position, pass reshard=True to each"
        )
    if place.shards is not None:
        raise ValueError(
            f"{owner}: reshard=True needs a source whose items are counted here; what a source that"
            " is read in the workers has given to each shard cannot be dealt to others"
        )
    if place.ahead:
        raise ValueError(
            f"{owner}: reshard=True needs a state in which elements were delivered in order, and in"
            f" this one {len(place.ahead)} are ahead of others: take it from a loader with"
            " ordered=True"
        )
    done = place.position * (identity["batch_size"] or 1) * shard[1]
    if identity["items"] == "indices":  # a sampler may give more than its source has
        done = min(done, identity["length"] - place.first_place)
    return dataclasses.replace(place, position=0, first_place=place.first_place + done)


class _Reader:
    """Takes a state apart, and says what is wrong with it."""

    def __init__(self, state: Any, owner: str) -> None:
        self._owner = owner
        if not isinstance(state, Mapping):
            hint = "; json.loads() makes one of a text" if isinstance(state, (str, bytes)) else ""
            raise TypeError(
                f"{owner}: a state is the dict that get_state() gives, got {_shown(state)}{hint}"
            )
        self._state = state
        version = state.get("stook")
        if not isinstance(version, int) or isinstance(version, bool) or version < 1:
            raise ValueError(
                f"{owner}: this is not a state that get_state() gave; it has"
                f" {'no' if version is None else 'the'} version 'stook'"
                f"{'' if version is None else f'={version!r}'}: {_shown(dict(state))}"
            )
        if version > VERSION:
            raise ValueError(
                f"{owner}: the state is of version {version}, and this stook reads version"
                f" {VERSION}: it was written by a newer one; update stook"
            )

    def value(self, key: str, default: Any = ...) -> Any:
        try:
            return self._state[key] if default is ... else self._state.get(key, default)
        except KeyError:
            raise ValueError(f"{self._owner}: the state has no {key!r}") from None

    def number(self, key: str, default: Any = ..., most: int = _MOST) -> Any:
        """An int from 0 to `most`; what is not there is `default`, if there is one."""
        if default is not ... and self._state.get(key) is None:
            return default
        return self._checked(key, self.value(key), 0, most)

    def _checked(self, key: str, value: Any, least: int, most: int) -> int:
        if isinstance(value, bool) or not hasattr(type(value), "__index__"):
            raise ValueError(
                f"{self._owner}: the state's {key} must be an int, got {_shown(value)}"
            )
        number = operator.index(value)
        if not least <= number <= most:
            raise ValueError(
                f"{self._owner}: the state's {key} must be {least} to {most}, got {number}"
            )
        return number

    def shard(self) -> list[int]:
        value = self.value("shard")
        if not isinstance(value, (list, tuple)) or len(value) != 2:
            raise ValueError(
                f"{self._owner}: the state's shard must be [index, count], got {_shown(value)}"
            )
        count = self._checked("shard count", value[1], 1, 1 << 62)
        return [self._checked("shard index", value[0], 0, count - 1), count]

    def shards(self) -> int:
        return self._checked("shards", self.value("shards"), 1, 1 << 31)

    def over(self) -> tuple[tuple[int, int], ...]:
        value = self._state.get("over", [])
        if not isinstance(value, (list, tuple)) or not all(
            isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in value
        ):
            raise ValueError(
                f"{self._owner}: the state's over must be a list of [shard, elements], got"
                f" {_shown(value)}"
            )
        return tuple(
            (self._checked("over", shard, 0, _MOST), self._checked("over", elements, 0, _MOST))
            for shard, elements in value
        )

    def ahead(self) -> tuple[int, ...]:
        value = self._state.get("ahead", [])
        if not isinstance(value, (list, tuple)):
            raise ValueError(
                f"{self._owner}: the state's ahead must be a list, got {_shown(value)}"
            )
        found = tuple(self._checked("ahead", one, 1, _MOST) for one in value)
        if any(after <= before for before, after in itertools.pairwise(found)):
            raise ValueError(
                f"{self._owner}: the state's ahead must be in rising order, got {_shown(value)}"
            )
        return found

    def source(self) -> tuple[Any, int | None] | None:
        value = self._state.get("source")
        if value is None:
            return None
        if not isinstance(value, Mapping) or ("state" in value) == ("bytes" in value):
            raise ValueError(
                f"{self._owner}: the state's source must be a dict with 'drawn' and either 'state'"
                f" or 'bytes', got {_shown(value)}"
            )
        drawn = value.get("drawn")
        if drawn is not None:
            drawn = self._checked("drawn", drawn, 0, _MOST)
        if "state" in value:
            return value["state"], drawn
        try:
            return base64.b64decode(value["bytes"], validate=True), drawn
        except (binascii.Error, TypeError, ValueError) as error:
            raise ValueError(
                f"{self._owner}: the state's bytes of the source are damaged: {error}"
            ) from error
