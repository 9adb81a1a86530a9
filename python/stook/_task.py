"""What is done for one element: the part of a loader that travels to the workers.

A `LoaderTask` is made in the consumer's process and pickled (with cloudpickle) once. Each worker
binds it, and then calls the function it gets for every element; with `num_workers=0` the consumer's
process does the same. So both take one and the same path through user code.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NoReturn

from . import _random
from ._element_errors import DEFAULT_POLICY, SKIP, Policy
from .collate import Assembler
from .errors import for_consumer
from .worker_info import _state

__all__ = ["BoundTask", "LoaderTask"]

# (epoch, position of the element within the epoch, payload) -> element; with a policy also
# (..., losses), see _policy.py
BoundTask = Callable[..., Any]
_Begin = Callable[[int, int], None]  # (epoch, position), before user code is called


class LoaderTask:
    """Makes elements of a source.

    Attributes:
      source: What is indexed to get an item, or `None` if the items themselves come as payload.
      transforms: Called one after the other on each item.
      batch_size: Items per element, or `None` for one item that is not assembled.
      collate: Makes an element of the list of a batch's items, or `None` for `collate.Assembler`.
      seed: What the random draws of user code depend on, or `None` to leave the generators alone.
      policy: What is done about items that fail.
      shard: Index and count; only what items of an iterable are called depends on it.
      profile: Where figures are kept, or `None`: nothing is timed.
      assembler: What makes a batch where `collate` is `None`.

    A payload is an index, or with `batch_size` a tuple of indices; without a source it is an item,
    or with `batch_size` a list of items. A last batch may be shorter.

    Whatever user code raises comes out of the bound function as
    `errors.for_consumer` says: as itself with a note, or as an `ElementError`; unless the policy
    says otherwise. What it returns is an element, `SKIP`, or a `Report` with either.
    """

    __slots__ = (
        "batch_size",
        "collate",
        "policy",
        "profile",
        "seed",
        "shard",
        "source",
        "transforms",
    )

    assembler: Any = Assembler

    def __init__(
        self,
        source: Any | None,
        transforms: Sequence[Callable[[Any], Any]] = (),
        batch_size: int | None = None,
        collate: Callable[[list[Any]], Any] | None = None,
        seed: int | None = None,
        policy: Policy = DEFAULT_POLICY,
        shard: tuple[int, int] = (0, 1),
    ) -> None:
        self.source = source
        self.transforms = tuple(transforms)
        self.batch_size = batch_size
        self.collate = collate
        self.seed = seed
        self.policy = policy
        self.shard = shard
        self.profile: Any = None

    def __call__(self, epoch: int, position: int, payload: Any) -> Any:
        """Makes one element. For more than a few, call what `bind()` returns."""
        return self.bind("here")(epoch, position, payload)

    def bind(self, where: str = "worker") -> BoundTask:
        """Returns the function that makes elements, in as few Python frames as possible.

        Nothing but the caller holds what that function returns: no cache, no cycle, no frame. The
        hand-over of arrays by moving them rests on it.

        Args:
          where: `"worker"`, a process that does nothing else; `"here"`, the consumer's thread,
            whose global random generators are put back after each element; or `"thread"`, one of
            several threads at a time, which leave the global generators alone.

        User code may call `stook.rng()` in any of them.
        """
        if self.profile is not None:
            from . import _profile_task

            return _profile_task.bind(self, where)
        seed = self.seed
        if seed is None or where == "thread":
            begin, put_back = _random.announcer(seed), _random.put_back
        else:
            begin, put_back = _random.seeder(seed), _random.isolated
        if self.policy.is_needed:
            from . import _policy  # only where it is wanted

            run = _policy.bind(self, begin, self._load_function(), where)
        elif self.batch_size is not None:
            run = self._bind_batch(begin, self._load_function())
        elif self.source is not None and len(self.transforms) == 1:
            run = self._bind_common(begin, self.transforms[0])
        else:
            run = self._bind_single(begin, self._load_function())
        return run if where == "worker" else put_back(run)

    def first_place(self, number: int) -> int:
        """What the first item of an element of an iterable is called: its number in the epoch.

        The others follow in steps of the number of shards.

        Args:
          number: Of the element, among those of all shards.
        """
        # An element of this shard has the number `whole + index + k * count`, and its first item
        # the place `whole * size + index + k * size * count`: the rest of an epoch that is dealt to
        # other shards begins behind so many `whole` elements of the old ones.
        size = self.batch_size or 1
        return number * size - self.shard[0] * (size - 1)

    def index_of(self, number: int, payload: Any, item: int) -> int | None:
        """What an item of an element is called: its index in the source, or number in the epoch.

        Args:
          number: Of the element, among those of all shards.
          payload: Of the element.
          item: The item's number in the batch, if the element is one; 0 otherwise.

        Returns:
          `None` where `item` is the assembling behind the last one.
        """
        if self.policy.fill:
            index: int | None = payload[0](item)
            return index
        if self.batch_size is None:
            return number if self.source is None else payload
        if item >= len(payload):
            return None
        if self.source is None:
            return self.first_place(number) + item * self.shard[1]
        return payload[item]  # type: ignore[no-any-return]

    def _load_function(self) -> Callable[[Any], Any]:
        """What makes one item of a batch's payload, or a single item of the whole payload."""
        transforms = self.transforms
        if self.source is None:
            if not transforms:
                return _itself
            if len(transforms) == 1:
                return transforms[0]
            return partial(_apply, transforms)
        if not transforms:
            return partial(operator.getitem, self.source)
        return partial(_get_and_apply, self.source, transforms)

    def _bind_common(self, begin: _Begin, transform: Callable[[Any], Any]) -> BoundTask:
        """An index, one transform: the only frame below user code is this one."""
        source: Any = self.source
        state = _state

        def run(epoch: int, position: int, index: int) -> Any:
            state.epoch = epoch
            begin(epoch, position)
            try:
                return transform(source[index])
            except BaseException as error:
                _raise(error, position, index)

        return run

    def _bind_single(self, begin: _Begin, load: Callable[[Any], Any]) -> BoundTask:
        indexed = self.source is not None
        state = _state

        def run(epoch: int, position: int, payload: Any) -> Any:
            state.epoch = epoch
            begin(epoch, position)
            try:
                return load(payload)
            except BaseException as error:
                _raise(error, position, payload if indexed else position)

        return run

    def _bind_batch(self, begin: _Begin, load: Callable[[Any], Any]) -> BoundTask:
        indexed = self.source is not None
        step = self.shard[1]
        collate = self.collate
        assembler = self.assembler
        state = _state
        # Where a source gives the items of a batch at once, as torch's datasets may.
        get_all = getattr(self.source, "__getitems__", None) if indexed else None
        if get_all is not None:
            load = partial(_apply, self.transforms)

        def run(epoch: int, position: int, payload: Sequence[Any]) -> Any:
            state.epoch = epoch
            begin(epoch, position)
            count = len(payload)
            indices: Sequence[int] = payload
            if not indexed:
                start = self.first_place(position)
                indices = range(start, start + count * step, step)
            batch = assembler(indices) if collate is None else _Gathered()
            item: int | None = None
            try:
                if get_all is not None:
                    payload = _items_of(get_all, payload)
                for item in range(count):
                    batch.add(load(payload[item]))
                item = None
                made = batch.finish()
                return made if collate is None else collate(made) if made else SKIP
            except BaseException as error:
                _raise(error, position, None if item is None else indices[item], item)

        return run


class _Gathered:
    """The items of a batch as the list that a `collate` function of the user's takes."""

    __slots__ = ("_items",)

    def __init__(self) -> None:
        self._items: list[Any] = []

    def add(self, item: Any) -> None:
        if item is not SKIP:
            self._items.append(item)

    def finish(self) -> list[Any]:
        # Handed out, not kept: a collate function may return the list itself.
        items, self._items = self._items, []
        return items


def _raise(
    error: BaseException, position: int, index: int | None, item: int | None = None
) -> NoReturn:
    """Raises what the consumer is to get for `error`; the traceback keeps user code's frames."""
    worker = _state.worker
    raise for_consumer(error, position, index, item, None if worker is None else worker[0])


def _items_of(get_all: Callable[[list[int]], Any], indices: Sequence[int]) -> Sequence[Any]:
    items: Any = get_all(list(indices))
    if not isinstance(items, Sequence) or len(items) != len(indices):
        found = (
            f"{len(items)} items" if isinstance(items, Sequence) else f"a {type(items).__name__}"
        )
        raise ValueError(
            f"the source's __getitems__ must give a list with an item for each index, and gave"
            f" {found} for the {len(indices)} indices {list(indices)}"
        )
    given: Sequence[Any] = items
    return given


def _itself(item: Any) -> Any:
    return item


def _apply(transforms: tuple[Callable[[Any], Any], ...], item: Any) -> Any:
    for transform in transforms:
        item = transform(item)
    return item


def _get_and_apply(source: Any, transforms: tuple[Callable[[Any], Any], ...], index: int) -> Any:
    item = source[index]
    for transform in transforms:
        item = transform(item)
    return item
