"""The loader: elements of a source, made by user code, here, in threads or in processes."""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal

from ._deliveries import CLOSED
from ._element_errors import Policy
from ._elsewhere import StaysHere
from ._iterator import LoaderIterator, check_prefetch
from ._jobs import Dealing, Plan
from ._loader_parts import (
    check_collate,
    check_fill,
    check_max_errors,
    check_on_error,
    check_options,
    check_sampler,
    check_shard,
    check_transform,
    deal_from,
    start_pool,
    task_from,
)
from ._locks import renew_lock_in_child
from ._other_names import tells_other_names
from ._pass import Pass
from ._profiled import Profiled
from ._progress import ProgressIterator, import_tqdm
from ._state import Place, place_of_state, state_of_place
from ._task import LoaderTask
from .errors import ElementError, StookError
from .options import MultiprocessingOptions, MultithreadingOptions, check_bool, check_int
from .stats import LoaderStats

__all__ = ["DataLoader", "LoaderIterator"]

_OWNER = "DataLoader"
_IN_THIS_THREAD = MultiprocessingOptions()


class DataLoader(Profiled, StaysHere):
    """Elements of a source, made by user code in worker processes or in this one.

    Iterating gives the elements of one pass (`num_epochs` epochs). Iterating again gives the next
    pass, by the same worker processes, and goes on counting epochs: shuffling and random draws
    differ from pass to pass. A pass that was left early counts the epoch of its last element. A
    loader has one pass at a time: a new iterator closes the one before it.

    The same elements come in the same order, with the same random draws and errors, for any number
    of workers, `num_workers=0` (everything in this process) included. With `MultithreadingOptions`
    threads of this process make them; then this holds for draws from `stook.rng()`, but not for
    those from the global generators, which threads share.

    `get_state()` tells where the pass stands, also in the middle of an epoch, and `set_state()`
    goes on there, in this process or another.

    A `with` block, `close()` or dropping the loader ends the worker processes. Arrays that were
    delivered stay valid.

    Args:
      source: Anything with `__len__` and `__getitem__` over 0..n-1, of which only indices cross to
        the workers and whose length is read once; or an iterable, whose items cross. What has both
        protocols is indexed. An iterator can be run through once: pass something that starts anew,
        such as a list, for more than one epoch or pass. Or a callable `source(shard, count)` that
        returns an iterable, or torch's `IterableDataset`: the workers read them, one shard each,
        whose elements come in turn (`docs/sources.md`). With `batch_size`, what can be indexed and
        has `__getitems__(indices)` is asked for the items of a batch at once, unless `on_error`,
        `retries`, `timeout` or `fill_batches` want each by itself.
      transform: A callable, or a list or tuple of callables that are called one after the other, on
        each item, in the worker. `None`: items are delivered as they are.
      options: Worker processes, or `MultithreadingOptions` for threads; without it everything runs
        in this process and thread.
      batch_size: Items that are assembled into one element, in the worker (see
        `stook.collate.Assembler` for what becomes of the leaves); `None`: one item is one element.
        Batches do not cross epochs; the last one of an epoch may be shorter.
      drop_remainder: Leave that shorter one out.
      collate: Makes an element of the list of a batch's items, instead of the assembling above.
      shuffle: Take the items in a different order every epoch. Needs a source that can be indexed.
        The order is computed index by index, and needs no list of 0..n-1.
      sampler: An iterable of indices into the source, iterated in this process, anew for each
        epoch; one that has `set_epoch(epoch)` is told the epoch first. See `stook.WeightedSampler`.
      seed: What the order and the random draws of user code depend on: `stook.rng()`, and except in
        threads `random`, NumPy's global generator and (once torch is imported) torch's for the CPU
        are seeded for each element from (seed, epoch, position). With `num_workers=0` the
        generators are put back afterwards, so that the consumer's own draws are not disturbed.
        `None`: a different order each time, and the generators are left alone.
      num_epochs: Epochs in one pass; `None`: without end.
      shard: `(index, count)`: only every `count`-th item of each epoch, beginning with `index`.
        With the same seed the shards share one order and have no item in common. `"torch"`: the
        rank and world size of `torch.distributed`; `"jax"`: JAX's process index and count.
      ordered: `False` hands elements out as they finish.
      on_error: What becomes of an item that fails: in the source, in `transform`, by its worker's
        death or by `timeout`. `"raise"`: `next()` raises what user code raised; the iterator goes
        on working and then gives the next element. `"skip"`: the item is left out; of a batch, it
        alone. A callable: it is called, where the item was made, with an `ElementError` whose
        `__cause__` is what was raised, and returns what takes the item's place, or `stook.SKIP`.
        If collating fails, the whole batch is what failed. `stats().errors` counts.
      retries: How often an item that raised is tried again before that, with the same draws.
      max_errors: How many items of a pass may fail, or (a float below 1) which share of them, from
        the 100th item on; then `next()` raises `TooManyErrors`, and the pass is over.
      fill_batches: Batches take the next items of their epoch in place of those that are left out,
        by `on_error` or as `stook.SKIP`, so that only the last batch of an epoch may be shorter.
        Batches are then those of the list of items without what is left out. Needs `batch_size`, a
        source that can be indexed, and `ordered`; workers make some items twice.
      progress: Show a tqdm bar: elements, MB/s, share of the time spent waiting for elements.

    Raises:
      TypeError: An argument is of the wrong type, or the source is a mapping, a data frame, a `str`
        or `bytes`; the message says what to pass instead.
      ValueError: An argument has a value that is not allowed or contradicts another.
      ImportError: `progress` is set and tqdm is not installed, or `shard` names what is not.
      StookError: `shard="torch"` without a process group.

    Example:
      >>> import stook
      >>> loader = stook.DataLoader(range(5), lambda x: {"square": x * x}, batch_size=2)
      >>> [batch["square"].tolist() for batch in loader]
      [[0, 1], [4, 9], [16]]
      >>> len(loader)
      3
    """

    _lock: Any  # see _locks.py

    @tells_other_names
    def __init__(
        self,
        source: Any,
        transform: Callable[[Any], Any] | Sequence[Callable[[Any], Any]] | None = None,
        *,
        options: MultiprocessingOptions | MultithreadingOptions = _IN_THIS_THREAD,
        batch_size: int | None = None,
        drop_remainder: bool = False,
        collate: Callable[[list[Any]], Any] | None = None,
        shuffle: bool = False,
        sampler: Iterable[int] | None = None,
        seed: int | None = 0,
        num_epochs: int | None = 1,
        shard: tuple[int, int] | Literal["torch", "jax"] = (0, 1),
        ordered: bool = True,
        on_error: str | Callable[[ElementError], Any] = "raise",
        retries: int = 0,
        max_errors: float | None = None,
        fill_batches: bool = False,
        progress: bool = False,
    ) -> None:
        self._closed = True  # until it is whole: __repr__ and close() of a half-made one
        self._options = check_options(options)
        self._transforms = check_transform(transform)
        plan = self._plan = Plan(
            None if batch_size is None else check_int(_OWNER, "batch_size", batch_size, 1, 1 << 62),
            check_bool(_OWNER, "drop_remainder", drop_remainder),
            check_bool(_OWNER, "shuffle", shuffle),
            None if seed is None else check_int(_OWNER, "seed", seed, 0, (1 << 64) - 1),
            check_shard(shard),
            check_bool(_OWNER, "fill_batches", fill_batches),
        )
        self._collate = check_collate(collate, plan)
        check_sampler(sampler, plan)
        self._sampler = sampler
        self._num_epochs = (
            None if num_epochs is None else check_int(_OWNER, "num_epochs", num_epochs, 1, 1 << 62)
        )
        self._ordered = check_bool(_OWNER, "ordered", ordered)
        check_fill(plan, sampler, self._ordered)
        self._on_error = check_on_error(on_error)
        self._retries = check_int(_OWNER, "retries", retries, 0)
        self._max_errors = check_max_errors(max_errors)
        self._bar_class = import_tqdm() if check_bool(_OWNER, "progress", progress) else None

        self._next_epoch = 0
        self._next_place: Place | None = None  # where the next pass begins, if set_state() says
        self._pass: Pass | None = None
        self._iterator: weakref.ref[LoaderIterator] | None = None
        self._kept_back = 0  # answers of workers that were no elements
        renew_lock_in_child(self)
        self._pool: Any = None
        self._pool_task: LoaderTask | None = None
        self._finalizer: Callable[[], Any] | None = None
        self._set_source(source)
        self._closed = False

    # ---- the source ------------------------------------------------------------------------------

    def _set_source(self, source: Any) -> None:
        self._dealing, indexed = deal_from(
            source, self._sampler, self._plan, self._num_epochs, self._options
        )
        self._source = source
        self._next_place = None
        policy = Policy(
            self._on_error,
            self._retries,
            self._options.timeout,
            self._plan.fill,
            self._plan.drop_remainder,
            self._max_errors if isinstance(self._max_errors, int) else None,
        )
        self._task = task_from(
            source, self._dealing, indexed, self._transforms, self._collate, policy
        )

    def update(self, source: Any) -> None:
        """Takes another source from the next pass on; a pass that is under way keeps the old one.

        The workers keep the source they were started with, so a change *within* a source does not
        reach them; this call does, for the next pass starts new ones. Epochs are counted on. A
        state that was set for the next pass is forgotten.

        Args:
          source: As for the constructor, and held against the same arguments.

        Raises:
          TypeError, ValueError: As the constructor does; the loader then keeps its old source.
          StookError: The loader is closed.
        """
        with self._lock:
            self._check_open("update()")
            self._set_source(source)
            if self._iterator is not None and self._iterator() is None:
                self._end_pass()  # which else would keep the old one

    # ---- iterating -------------------------------------------------------------------------------

    def __iter__(self) -> LoaderIterator:
        with self._lock:
            self._check_open("iterating")
            self._dealing.check(self._place_set() or Place(), _OWNER)  # before the pass ends
            self._end_pass()
            place = self._next_place or Place(self._next_epoch, first_epoch=self._next_epoch)
            pool = self._ready_pool()
            jobs = self._dealing.begin(place, self._num_epochs)
            given = pool.iterate(
                jobs.deal(), ordered=self._ordered, skip=jobs.skip, max_errors=self._max_errors
            )
            iterator: LoaderIterator = self._dealing.iterator(given)
            iterator._loader = self
            self._pass = iterator._pass = Pass(self._dealing, jobs, iterator, by_loader=False)
            self._next_place = None
            if self._bar_class is not None:
                iterator = ProgressIterator(iterator, self._known_length(), self._bar_class)
            self._iterator = weakref.ref(iterator)
            return iterator

    def _ready_pool(self) -> Any:
        """What makes the elements, with the present task; started when first needed."""
        if self._pool is None:
            self._pool = start_pool(self._task, self._options)
            # Not __del__: also when the interpreter exits, and free of references to this object.
            self._finalizer = weakref.finalize(self, self._pool.close)
        elif self._pool_task is not self._task:
            self._pool.update(self._task)
        self._pool_task = self._task
        return self._pool

    def _end_pass(self) -> None:
        """Closes the iterator of the pass under way, if there is one, and settles its epochs."""
        iterator = self._iterator() if self._iterator is not None else None
        if iterator is not None:
            iterator.close()
        self._iterator = None
        if self._pass is not None:
            self._next_place = self._place_set()
            self._next_epoch = self._pass.next_epoch()
            self._pass = None

    def _place_set(self) -> Place | None:
        """Where `set_state` has the next pass begin, or `None`."""
        place, left = self._next_place, self._pass
        if place is not None or left is None or not left.by_loader:
            return place
        is_its_own = left.dealing is self._dealing and not left.has_delivered()
        return left.place() if is_its_own else None

    def __aiter__(self) -> LoaderIterator:
        return iter(self)

    def prefetch_to(self, function: Callable[[Any], Any], depth: int = 2) -> LoaderIterator:
        """Iterates, with `function` run on each element in a thread, ahead of the trainer.

        `iter(loader).prefetch_to(function, depth)`: see `LoaderIterator.prefetch_to`.

        Example:
          >>> import numpy as np, stook
          >>> loader = stook.DataLoader(range(4), np.float32, batch_size=2)
          >>> [batch.sum() for batch in loader.prefetch_to(np.negative)]
          [np.float32(-1.0), np.float32(-5.0)]
        """
        check_prefetch(function, depth)  # before the pass under way ends
        return iter(self).prefetch_to(function, depth)

    def _take_place(self, before: LoaderIterator, iterator: LoaderIterator) -> None:
        """An iterator of this loader goes on with what another one gives."""
        if self._iterator is not None and self._iterator() is before:
            self._iterator = weakref.ref(iterator)

    # ---- states ----------------------------------------------------------------------------------

    def get_state(self) -> dict[str, Any]:
        """Where the pass under way stands, as a small dict that `json.dumps` takes.

        It is what the iterator's `get_state()` gives: see `LoaderIterator.get_state`. Once a loop
        came to its end, and before the first one, it is the beginning of the next pass. Of a loop
        that was left early it is where that was.
        """
        # Each is read once: another thread may begin a pass meanwhile.
        place, last = self._next_place, self._pass
        # With both, the pass is over the source before update(), or can go nowhere any more.
        if last is not None and (place is None or last.is_open()) and not last.is_over():
            return last.state()
        if place is None:
            epoch = self._next_epoch if last is None else last.next_epoch()
            place = self._dealing.settle(Place(epoch, first_epoch=epoch))
        return state_of_place(place, self._dealing.identity())

    def set_state(self, state: Mapping[str, Any], *, reshard: bool = False) -> None:
        """Goes on where a state was taken: the pass under way, or else the next one.

        A new `for` begins there if nothing was delivered since. After `update()` it is for the next
        pass alone. For the arguments, and what is raised, see `LoaderIterator.set_state`.

        Example:
          >>> import stook
          >>> loader = stook.DataLoader(list("abcdef"), batch_size=2)
          >>> for batch in loader:
          ...     saved = loader.get_state()
          ...     break
          >>> loader = stook.DataLoader(list("abcdef"), batch_size=2)
          >>> loader.set_state(saved)
          >>> list(loader)
          [['c', 'd'], ['e', 'f']]
        """
        while True:
            with self._lock:
                self._check_open("set_state()")
                under_way, dealing = self._pass, self._dealing
                place = self._place_of(dealing, state, reshard)
                iterator = self._iterator() if self._iterator is not None else None
                is_of_it = under_way is not None and under_way.dealing is dealing
                if iterator is None or not is_of_it or iterator._is_closed():
                    self._next_place = place
                    return
            try:
                iterator._go_to(place, by_loader=True)
                return
            except StookError:
                if self._pass is under_way and not iterator._is_closed():
                    raise
            # Another thread has ended that pass meanwhile.

    def _place_of(self, dealing: Dealing, state: Any, reshard: bool) -> Place:
        check_bool("set_state", "reshard", reshard)
        place = place_of_state(state, dealing.identity(), _OWNER, reshard=reshard)
        dealing.check(place, _OWNER)
        return place

    def _continue(self, iterator: LoaderIterator, place: Place, by_loader: bool) -> None:
        """Lets an iterator of this loader go on at a place."""

        def go_on() -> None:
            with self._lock:
                self._check_open("set_state()")
                before = iterator._pass
                if self._pass is not before:  # also one that had come to its end
                    raise StookError(CLOSED)
                jobs = before.dealing.begin(place, self._num_epochs)
                iterator._restart(jobs.deal(), jobs.skip)
                self._pass = iterator._pass = Pass(before.dealing, jobs, iterator, by_loader)
                if by_loader:
                    self._next_place = None

        # The lock comes second: user code that is waited for may ask this loader for something.
        iterator._at_standstill(go_on)

    def _known_length(self) -> int | None:
        """Elements of one pass, or `None` where that is unknown or without end."""
        if self._num_epochs is None:
            return None
        elements = self._dealing.elements()
        return None if elements is None else elements * self._num_epochs

    def __len__(self) -> int:
        """Elements of one pass; with `fill_batches`, the most there can be.

        Raises:
          TypeError: The source is an iterable without a length, or `num_epochs` is `None`.
        """
        length = self._known_length()
        if length is None:
            reason = (
                "num_epochs=None is without end"
                if self._num_epochs is None
                else f"its source, a {type(self._source).__name__}, has none"
            )
            raise TypeError(f"this DataLoader has no length: {reason}")
        return length

    # ---- the rest --------------------------------------------------------------------------------

    def stats(self) -> LoaderStats:
        """Counts over all passes so far; also after `close()`."""
        pool = self._pool  # set once, and asked without the lock, as states are
        if pool is None:
            return LoaderStats()
        stats: LoaderStats = pool.stats()
        return dataclasses.replace(stats, elements=stats.elements - self._kept_back)

    def close(self) -> None:
        """Ends the pass under way and the worker processes, at once, also one stuck in user code.

        Threads end after the element they make; that is waited for for a second at most.

        Arrays that were delivered stay valid. Closing again does nothing; iterating or updating
        raises a `StookError`.
        """
        if self._closed:
            return
        with self._lock:
            self._closed = True
            self._end_pass()
            if self._finalizer is not None:
                self._finalizer()

    def _check_open(self, what: str) -> None:
        if self._closed:
            raise StookError(f"{_OWNER}: {what} after close(); make a new loader")

    def __enter__(self) -> DataLoader:
        self._check_open("entering a with block")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        if not hasattr(self, "_source"):
            return "<stook.DataLoader (not made)>"
        size = self._known_length()
        options = self._options
        if isinstance(options, MultithreadingOptions):
            workers = f"num_threads={options.num_threads}"
        else:
            workers = f"num_workers={options.num_workers}"
        return (
            f"<stook.DataLoader over a {type(self._source).__name__}:"
            f" {'?' if size is None else size} elements,"
            f" {workers}"
            f"{', closed' if self._closed else ''}>"
        )
