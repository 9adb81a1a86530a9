"""Sources that are read in the workers: an iterable for each of several shards.

Which job reads what depends on the job alone: element `step` of a shard has the number
`step * shards + shard`, and the number of shards is its payload. A process keeps the iterator of
each shard it reads, with its place. A job for a later step passes over what is before it; one for
an earlier step, as after a worker's death or `set_state`, has the iterable made anew. So a worker
needs to be told nothing but its jobs.
"""

from __future__ import annotations

import copy
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from . import _core, _random
from ._source import has_method, is_torch_iterable, kind_name
from ._task import BoundTask, LoaderTask
from .errors import ElementTimeout, WorkerDied, death_detail, for_consumer
from .options import _shown
from .worker_info import _state

__all__ = ["Over", "SourceTask", "is_read_in_workers"]

# The draws of an iterable must not be those of the transforms that run after it.
_OWN_DRAWS = 0x9AE16A3B2F90404F
# As the number of an item, to whoever asks what a worker died of: none yet, it was being drawn.
_DRAWING = 0xFFFFF0  # there are 24 bits for it
# Elements that a thread passes over, and that other threads may have been given as their jobs.
_MOST_KEPT = 64


class Over:
    """Stands for an element that is not there: the shard had `count` elements in that epoch."""

    __slots__ = ("count", "epoch", "shard")

    def __init__(self, epoch: int, shard: int, count: int) -> None:
        self.epoch = epoch
        self.shard = shard
        self.count = count

    def __reduce__(self) -> tuple[Any, ...]:
        return Over, (self.epoch, self.shard, self.count)


def is_read_in_workers(source: Any, owner: str) -> bool:
    """True for torch's `IterableDataset`, and for a callable that is no collection.

    Raises:
      TypeError: It is such a callable, and does not take (shard, count), or a class of other
        things than iterables.
    """
    if is_torch_iterable(type(source)):
        return True
    kind = type(source)
    if not callable(source) or any(
        hasattr(kind, name) for name in ("__len__", "__iter__", "__getitem__")
    ):
        return False
    if isinstance(source, type):
        _refuse_other_classes(source, owner)
    import inspect  # only where it is wanted

    try:
        signature = inspect.signature(source)
    except (TypeError, ValueError):  # some that are written in C have none
        return True
    try:
        signature.bind(0, 1)
    except TypeError as error:
        raise TypeError(
            f"{owner}: a source that is a callable is called as source(shard, count) and returns"
            f" the iterable of that shard; {_shown(source)} does not take two arguments ({error})"
        ) from None
    return True


def _refuse_other_classes(source: type, owner: str) -> None:
    """A data set's class is passed in place of the data set far more often than to be called."""
    has = {name: has_method(source, name) for name in ("__iter__", "__len__", "__getitem__")}
    if not has["__iter__"] or (has["__len__"] and has["__getitem__"]):
        raise TypeError(
            f"{owner}: the source is the class {kind_name(source)} itself; pass an object of it."
            " (A class is called as source(shard, count) if its objects have __iter__, and not"
            " __len__ and __getitem__.)"
        )


class SourceTask(LoaderTask):
    """Makes elements of what a source gives in the process that makes them.

    `source` is as `is_read_in_workers` wants it. A payload is a list of the number of shards, as
    often as the element has items: those who count items look at its length.

    Attributes:
      shard: Index and count of the loader's own shard.
      drop_remainder: Leave out the last batch of a shard if it is shorter.
    """

    __slots__ = ("drop_remainder",)

    def __init__(
        self, *arguments: Any, shard: tuple[int, int] = (0, 1), drop_remainder: bool = False
    ) -> None:
        super().__init__(*arguments)
        self.shard = shard
        self.drop_remainder = drop_remainder

    def task_of_items(self, transforms: Sequence[Callable[[Any], Any]]) -> LoaderTask:
        """What makes an element of items that were drawn."""
        return LoaderTask(None, transforms, self.batch_size, self.collate, self.seed, self.policy)

    def drawing(self, take: Callable[..., Any]) -> Callable[..., Any]:
        """The function that draws the items of an element; profiles time it."""
        return take

    def index_of(self, number: int, payload: Any, item: int) -> int | None:
        # The items of a shard are counted in the worker alone, as bind() has it.
        if self.batch_size is None:
            return number
        return None if item >= len(payload) else number * self.batch_size + item

    def bind(self, where: str = "worker") -> BoundTask:
        if self.profile is not None:
            from . import _profile_task

            return _profile_task.bind(self, where)
        policy = self.policy
        transforms = (_raise_failed, *self.transforms) if policy.is_needed else self.transforms
        run = self.task_of_items(transforms).bind(where)
        reader = _Reader(self, where)
        take = self.drawing(reader.take)
        if where == "here" and self.seed is not None:
            take = _random.isolated(take)
        elif where != "worker":
            take = _random.put_back(take)
        single = self.batch_size is None

        def read_and_run(
            epoch: int, position: int, payload: Sequence[int], *losses: Sequence[Any]
        ) -> Any:
            _state.epoch = epoch
            try:
                if losses and losses[0]:
                    reader.fail_if_lost(losses[0], epoch, position, payload[0])
                items = take(epoch, position, payload[0])
            except _LostError as lost:
                items = [_Failed(lost.error)]
                losses = ()
            except BaseException as error:
                worker = _state.worker
                raise for_consumer(  # noqa: B904 (itself, or with its cause)
                    error, position, None, None, None if worker is None else worker[0]
                )
            if type(items) is Over:
                return items
            return run(epoch, position, items.pop() if single else items, *losses)

        return read_and_run


class _Failed:
    """In place of an item: what was raised when it was drawn."""

    __slots__ = ("error",)

    def __init__(self, error: BaseException) -> None:
        self.error = error


def _raise_failed(item: Any) -> Any:
    if type(item) is _Failed:
        raise item.error
    return item


class _LostError(Exception):
    """A worker died while it drew an item."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error


class _Shard:
    """An iterator and its place. Changed by whoever holds the lock.

    Attributes:
      given: The iterator, or `None` before the first step and after the last one.
      next: The step it comes to next.
      count: Steps there are, once that is known.
      kept: Steps that were passed over and may be asked for yet.
    """

    __slots__ = ("count", "given", "kept", "lock", "next")

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.given: Iterator[Any] | None = None
        self.next = 0
        self.count: int | None = None
        self.kept: dict[int, Any] = {}


class _Reader:
    """The shards that one process reads."""

    def __init__(self, task: SourceTask, where: str) -> None:
        self._source: Callable[[int, int], Iterable[Any]]
        if is_torch_iterable(type(task.source)):
            self._source = _TorchSource(task.source, task.seed)
        else:
            self._source = task.source  # type: ignore[assignment]  # is_read_in_workers() looked
        self._own_shard = task.shard
        self._size = task.batch_size
        self._drop_remainder = task.drop_remainder
        self._catches = task.policy.is_needed
        self._timeout = task.policy.timeout
        # Workers are asked for the steps of a shard in order; threads take them as they come.
        self._keeps = where == "thread"
        self._is_consumer = where == "here"
        self._tell_drawing = where == "worker" and self._catches
        seed = task.seed
        if seed is None or where == "thread":
            self._begin = _random.announcer(None if seed is None else seed ^ _OWN_DRAWS)
        else:
            self._begin = _random.seeder(seed ^ _OWN_DRAWS)
        self._lock = threading.Lock()
        self._shards: dict[tuple[int, int, int], _Shard] = {}

    def take(self, epoch: int, position: int, count: int) -> Any:
        """The items of an element, or `Over`.

        Raises:
          BaseException: What the iterable raised, unless a policy is to see it with the item.
        """
        step, shard = divmod(position, count)
        held = self._held(epoch, shard, count)
        with held.lock:
            if held.count is not None and step >= held.count:
                return Over(epoch, shard, held.count)
            if step < held.next:
                if step in held.kept:
                    return _given_again(held.kept.pop(step))
                held.given, held.next, held.count = None, 0, None
            if self._tell_drawing:
                _core.begin_item(_DRAWING)
            while True:
                wanted = held.next == step
                items: Any
                try:
                    items = self._draw(held, epoch, shard, count)
                except BaseException as error:
                    if wanted or (self._is_consumer and isinstance(error, KeyboardInterrupt)):
                        raise
                    items = _Failed(error)
                if wanted or type(items) is Over:
                    return items
                if self._keeps:
                    held.kept[held.next - 1] = items
                    while len(held.kept) > _MOST_KEPT:
                        del held.kept[next(iter(held.kept))]

    def fail_if_lost(self, losses: Sequence[Any], epoch: int, position: int, count: int) -> None:
        """Raises what this element's job was lost by, if that was in the iterable.

        Going on behind it would end in the same way, so the shard is over.
        """
        for item, worker, pid, status, attempts, late, out_of_memory in losses:
            if item != _DRAWING:
                continue
            step, shard = divmod(position, count)
            held = self._held(epoch, shard, count)
            with held.lock:
                held.given, held.count = None, step + 1
                held.next = step + 1
            if late:
                raise _LostError(ElementTimeout(position, self._timeout, worker))
            code = os.waitstatus_to_exitcode(status)
            detail = death_detail(pid, attempts, out_of_memory)
            raise _LostError(WorkerDied(worker, code, position, detail))

    def _held(self, epoch: int, shard: int, count: int) -> _Shard:
        key = epoch, count, shard
        with self._lock:
            found = self._shards.get(key)
            if found is None:
                # Of another epoch, or of a state with another number of shards. Those of the epoch
                # before may be asked for by a thread that is late.
                for old in list(self._shards):
                    if abs(old[0] - epoch) > 1 or old[1] != count:
                        del self._shards[old]
                found = self._shards[key] = _Shard()
        return found

    def _draw(self, held: _Shard, epoch: int, shard: int, count: int) -> list[Any] | Over:
        """The next step of a shard, which counts also if it raises."""
        step = held.next
        held.next += 1
        self._begin(epoch, step * count + shard)
        items: list[Any] = []
        if held.given is None and step == 0:
            index, shards = self._own_shard
            held.given = iter(())  # if making it raises, there is nothing
            try:
                held.given = iter(self._source(index * count + shard, shards * count))
            except BaseException as error:
                if not self._catches or (
                    self._is_consumer and isinstance(error, KeyboardInterrupt)
                ):
                    raise
                return [_Failed(error)]
        size = self._size or 1
        ended = held.given is None
        while held.given is not None and len(items) < size:
            try:
                item = next(held.given)
            except StopIteration:
                ended = True
                break
            except BaseException as error:
                if not self._catches or (
                    self._is_consumer and isinstance(error, KeyboardInterrupt)
                ):
                    raise
                item = _Failed(error)
            items.append(item)
            del item  # only the list holds it
        if ended:
            held.given = None
            if not items or (self._drop_remainder and len(items) < size):
                held.next = held.count = step
                return Over(epoch, shard, step)
        return items


def _given_again(items: Any) -> Any:
    if type(items) is _Failed:
        raise items.error
    return items


# ---- torch ---------------------------------------------------------------------------------------

# What torch.utils.data.get_worker_info() tells is one for the process, also in threads.
_torch_lock = threading.RLock()


class _TorchSource:
    """torch's `IterableDataset` as a callable: shards see themselves as torch's workers."""

    def __init__(self, dataset: Any, seed: int | None) -> None:
        self._dataset = dataset
        self._seed = seed

    def __call__(self, shard: int, count: int) -> Iterator[Any]:
        worker: Any = sys.modules["torch.utils.data._utils.worker"]
        try:
            dataset = copy.copy(self._dataset)  # shards of one process do not share attributes
        except Exception:
            dataset = self._dataset
        if self._seed is None:
            seed = sys.modules["torch"].initial_seed() + shard
        else:
            seed = _random.mix(self._seed ^ _OWN_DRAWS) + shard
        info = worker.WorkerInfo(
            id=shard, num_workers=count, seed=seed & ((1 << 63) - 1), dataset=dataset
        )
        return _TorchShard(dataset, info, worker)


class _TorchShard:
    """Draws from a dataset while torch's worker information is that of its shard."""

    def __init__(self, dataset: Any, info: Any, worker: Any) -> None:
        self._info = info
        self._worker = worker
        self._given = self._as_worker(lambda: iter(dataset))

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        return self._as_worker(self._given.__next__)

    def _as_worker(self, call: Callable[[], Any]) -> Any:
        worker = self._worker
        with _torch_lock:
            before = worker._worker_info
            worker._worker_info = self._info
            try:
                return call()
            finally:
                worker._worker_info = before
