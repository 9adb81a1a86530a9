"""The loader: elements of a source, made by user code, here, in threads or in processes."""

from __future__ import annotations

import numbers
import weakref
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

from ._element_errors import Policy
from ._elsewhere import StaysHere
from ._inline import InlinePool
from ._iterator import LoaderIterator
from ._jobs import Dealing, IndexedDealing, IterableDealing, Jobs, Place
from ._locks import renew_lock_in_child
from ._progress import ProgressIterator, import_tqdm
from ._source import is_iterator, random_access_length
from ._task import LoaderTask
from .errors import ElementError, StookError
from .options import (
    MultiprocessingOptions,
    MultithreadingOptions,
    _shown,
    check_bool,
    check_int,
)
from .stats import LoaderStats

__all__ = ["DataLoader", "LoaderIterator"]

_OWNER = "DataLoader"
_IN_THIS_THREAD = MultiprocessingOptions()


class DataLoader(StaysHere):
    """Elements of a source, made by user code in worker processes or in this one.

    Iterating gives the elements of one pass (`num_epochs` epochs). Iterating again gives the next
    pass, by the same worker processes, and goes on counting epochs: shuffling and random draws
    differ from pass to pass. A pass that was left early counts the epoch of its last element. A
    loader has one pass at a time: a new iterator closes the one before it.

    The same elements come in the same order, with the same random draws and errors, for any number
    of workers, `num_workers=0` (everything in this process) included. With `MultithreadingOptions`
    threads of this process make them; then this holds for draws from `stook.rng()`, but not for
    those from the global generators, which threads share.

    A `with` block, `close()` or dropping the loader ends the worker processes. Arrays that were
    delivered stay valid.

    Args:
      source: Anything with `__len__` and `__getitem__` over 0..n-1, of which only indices cross to
        the workers and whose length is read once; or an iterable, whose items cross. What has both
        protocols is indexed. An iterator can be run through once: pass something that starts anew,
        such as a list, for more than one epoch or pass.
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
      seed: What the order and the random draws of user code depend on: `stook.rng()`, and except in
        threads `random`, NumPy's global generator and (once torch is imported) torch's for the CPU
        are seeded for each element from (seed, epoch, position). With `num_workers=0` the
        generators are put back afterwards, so that the consumer's own draws are not disturbed.
        `None`: a different order each time, and the generators are left alone.
      num_epochs: Epochs in one pass; `None`: without end.
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
      fill_batches: Let batches take more items in place of those left out, so that only an epoch's
        last one can be shorter. Needs `batch_size`, a source that can be indexed, `ordered=True`.
      progress: Show a tqdm bar: elements, MB/s, share of the time spent waiting for elements.

    Raises:
      TypeError: An argument is of the wrong type, or the source is a mapping, a data frame, a `str`
        or `bytes`; the message says what to pass instead.
      ValueError: An argument has a value that is not allowed or contradicts another.
      ImportError: `progress` is set and tqdm is not installed.

    Example:
      >>> import stook
      >>> loader = stook.DataLoader(range(5), lambda x: {"square": x * x}, batch_size=2)
      >>> [batch["square"].tolist() for batch in loader]
      [[0, 1], [4, 9], [16]]
      >>> len(loader)
      3
    """

    _lock: Any  # see _locks.py

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
        seed: int | None = 0,
        num_epochs: int | None = 1,
        ordered: bool = True,
        on_error: str | Callable[[ElementError], Any] = "raise",
        retries: int = 0,
        max_errors: float | None = None,
        fill_batches: bool = False,
        progress: bool = False,
    ) -> None:
        self._closed = True  # until it is whole: __repr__ and close() of a half-made one
        if not isinstance(options, (MultiprocessingOptions, MultithreadingOptions)):
            raise TypeError(
                f"{_OWNER}: options must be a stook.MultiprocessingOptions or a"
                f" stook.MultithreadingOptions, got {_shown(options)};"
                " for n workers pass options=stook.MultiprocessingOptions(num_workers=n)"
            )
        self._options = options
        if isinstance(options, MultithreadingOptions):
            from . import _threads_loader  # noqa: F401
        elif options.num_workers > 0:
            # Not in the thread that iterates first: a fork in another one, while that imports,
            # would leave the child an import lock that nobody releases.
            from . import _processes  # noqa: F401
        self._transforms = _check_transform(transform)
        self._batch_size = (
            None if batch_size is None else check_int(_OWNER, "batch_size", batch_size, 1)
        )
        self._drop_remainder = check_bool(_OWNER, "drop_remainder", drop_remainder)
        if collate is not None and not callable(collate):
            raise TypeError(
                f"{_OWNER}: collate must be None or a callable that takes the list of a batch's"
                f" items, got {_shown(collate)}"
            )
        self._collate = collate
        if self._batch_size is None and (self._drop_remainder or collate is not None):
            name = "drop_remainder" if self._drop_remainder else "collate"
            raise ValueError(f"{_OWNER}: {name} is about batches; it needs batch_size")
        self._shuffle = check_bool(_OWNER, "shuffle", shuffle)
        self._seed = None if seed is None else check_int(_OWNER, "seed", seed, 0, (1 << 64) - 1)
        self._num_epochs = (
            None if num_epochs is None else check_int(_OWNER, "num_epochs", num_epochs, 1)
        )
        self._ordered = check_bool(_OWNER, "ordered", ordered)
        self._on_error = _check_on_error(on_error)
        self._retries = check_int(_OWNER, "retries", retries, 0)
        self._max_errors = _check_max_errors(max_errors)
        self._fill_batches = check_bool(_OWNER, "fill_batches", fill_batches)
        if self._fill_batches:
            raise ValueError(f"{_OWNER}: fill_batches is not there yet")
        self._bar_class = import_tqdm() if check_bool(_OWNER, "progress", progress) else None

        self._next_epoch = 0
        self._pass: _Pass | None = None
        self._iterator: weakref.ref[LoaderIterator] | None = None
        renew_lock_in_child(self)
        self._pool: Any = None
        self._pool_task: LoaderTask | None = None
        self._finalizer: Callable[[], Any] | None = None
        self._set_source(source)
        self._closed = False

    # ---- the source ------------------------------------------------------------------------------

    def _set_source(self, source: Any) -> None:
        length = random_access_length(source, _OWNER)
        if length is None:
            if self._shuffle:
                raise ValueError(
                    f"{_OWNER}: shuffle=True needs a source with __len__ and __getitem__, got"
                    f" {_shown(source)}; pass a list, or shuffle where the items come from"
                )
            if is_iterator(source) and self._num_epochs != 1:
                raise ValueError(
                    f"{_OWNER}: the source {_shown(source)} is an iterator, which can be run"
                    f" through once, and num_epochs={self._num_epochs} needs one that starts anew"
                    " for each epoch, such as a list or an object with __iter__"
                )
            dealing: Dealing = IterableDealing(source, self._batch_size, self._drop_remainder)
        else:
            dealing = IndexedDealing(
                length, self._batch_size, self._drop_remainder, self._shuffle, self._seed
            )
        never = dealing.never_gives()
        if self._num_epochs is None and never is not None:
            raise ValueError(
                f"{_OWNER}: num_epochs=None goes through the source for ever, and an epoch of it"
                f" has no element: {never}"
            )
        self._source = source
        self._source_used = False
        self._dealing = dealing
        self._task = LoaderTask(
            None if length is None else source,
            self._transforms,
            self._batch_size,
            self._collate,
            self._seed,
            Policy(self._on_error, self._retries, self._options.timeout),
        )

    def update(self, source: Any) -> None:
        """Takes another source from the next pass on; a pass that is under way keeps the old one.

        The workers keep the source they were started with, so a change *within* a source does not
        reach them; this call does, for the next pass starts new ones. Epochs are counted on.

        Args:
          source: As for the constructor, and held against the same arguments.

        Raises:
          TypeError, ValueError: As the constructor does; the loader then keeps its old source.
          StookError: The loader is closed.
        """
        with self._lock:
            self._check_open("update()")
            self._set_source(source)

    # ---- iterating -------------------------------------------------------------------------------

    def __iter__(self) -> LoaderIterator:
        with self._lock:
            self._check_open("iterating")
            if isinstance(self._dealing, IterableDealing) and is_iterator(self._source):
                if self._source_used:
                    raise StookError(
                        f"{_OWNER}: the source {_shown(self._source)} is an iterator and was run"
                        " through before; call update() with a new one, or pass something that"
                        " starts anew, such as a list or an object with __iter__"
                    )
                self._source_used = True
            self._end_pass()
            pool = self._ready_pool()
            before = pool.stats()
            jobs = self._dealing.begin(Place(self._next_epoch), self._num_epochs)
            iterator: LoaderIterator = pool.iterate(
                jobs.deal(), ordered=self._ordered, max_errors=self._max_errors
            )
            # `for x in DataLoader(...)` holds the iterator alone, and a dropped loader ends its
            # workers.
            iterator._loader = self  # type: ignore[attr-defined]
            self._pass = _Pass(jobs, before.elements + before.errors)
            if self._bar_class is not None:
                iterator = ProgressIterator(iterator, self._known_length(), self._bar_class)
            self._iterator = weakref.ref(iterator)
            return iterator

    def _ready_pool(self) -> Any:
        """What makes the elements, with the present task; started when first needed."""
        if self._pool is None:
            options = self._options
            if isinstance(options, MultithreadingOptions):
                from . import _threads_loader

                self._pool = (
                    _threads_loader.LoaderThreads(self._task, options)
                    if options.num_threads > 0
                    else InlinePool(self._task)
                )
            elif options.num_workers == 0:
                self._pool = InlinePool(self._task)
            else:
                from . import _processes

                self._pool = _processes.start(self._task, options)
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
            stats = self.stats()
            delivered = stats.elements + stats.errors - self._pass.delivered_before
            place = self._pass.jobs.place(delivered)
            self._next_epoch = place.epoch + (1 if place.position else 0)
            self._pass = None

    def _known_length(self) -> int | None:
        """Elements of one pass, or `None` where that is unknown or without end."""
        if self._num_epochs is None:
            return None
        elements = self._dealing.elements()
        return None if elements is None else elements * self._num_epochs

    def __len__(self) -> int:
        """Elements of one pass.

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
        with self._lock:
            if self._pool is None:
                return LoaderStats()
            stats: LoaderStats = self._pool.stats()
            return stats

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


class _Pass:
    """What must be known of a pass after its iterator was dropped."""

    __slots__ = ("delivered_before", "jobs")

    def __init__(self, jobs: Jobs, delivered_before: int) -> None:
        self.jobs = jobs
        # Elements and errors that the loader's earlier passes delivered.
        self.delivered_before = delivered_before


def _check_on_error(on_error: Any) -> str | Callable[[ElementError], Any]:
    if callable(on_error) or (isinstance(on_error, str) and on_error in ("raise", "skip")):
        return on_error  # type: ignore[no-any-return]
    error = ValueError if isinstance(on_error, str) else TypeError
    raise error(
        f"{_OWNER}: on_error must be 'raise', 'skip', or a callable that takes an ElementError and"
        f" returns a replacement or stook.SKIP, got {_shown(on_error)}"
    )


def _check_max_errors(max_errors: Any) -> float | None:
    """An `int` is a number of items, a `float` a share of them."""
    if max_errors is None:
        return None
    if type(max_errors).__name__ not in ("bool", "bool_"):
        if isinstance(max_errors, numbers.Integral) and int(max_errors) >= 0:
            return int(max_errors)
        if isinstance(max_errors, numbers.Real) and 0 < float(max_errors) < 1:
            return float(max_errors)
    error = ValueError if isinstance(max_errors, (int, float)) else TypeError
    raise error(
        f"{_OWNER}: max_errors must be None, an int of at least 0 (so many items may fail), or a"
        f" float above 0 and below 1 (such a share of them may), got {_shown(max_errors)}"
    )


def _check_transform(transform: Any) -> tuple[Callable[[Any], Any], ...]:
    if transform is None:
        return ()
    if callable(transform):
        return (transform,)
    if isinstance(transform, (list, tuple)):
        for place, step in enumerate(transform):
            if not callable(step):
                raise TypeError(
                    f"{_OWNER}: transform[{place}] must be a callable, got {_shown(step)}"
                )
        return tuple(transform)
    raise TypeError(
        f"{_OWNER}: transform must be None, a callable, or a list or tuple of callables, got"
        f" {_shown(transform)}"
    )
