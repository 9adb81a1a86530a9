"""Grain on Stook: `mp_prefetch` with arrays in shared memory that is used again.

Grain itself is imported when something is called, and not before.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Callable
from types import TracebackType
from typing import Any

from .errors import StookError
from .options import MultiprocessingOptions

__all__ = ["Installation", "install", "mp_prefetch", "uninstall"]

_TRIED = ("0.2.18",)


def mp_prefetch(
    dataset: Any,
    options: Any = None,
    worker_init_fn: Callable[[int, int], Any] | None = None,
    sequential_slice: bool = False,
) -> Any:
    """Makes the elements of a Grain dataset in worker processes: for `dataset.mp_prefetch(...)`.

    The elements, their order and the states of the iterator are those of Grain's own: worker `i`
    iterates the slice `[i::num_workers]` of the sources, with the threads of its `ReadOptions`, and
    the elements of the workers come in turn. What arrives are plain, writable `numpy.ndarray`s.

    What a worker raises is raised with its type, and the iterator goes on with the next element. A
    worker that dies is a `stook.WorkerDied`, a `RuntimeError`; asked again, the iterator goes on
    with the same element, in a new process.

    Args:
      dataset: A `grain.IterDataset`.
      options: Grain's `MultiprocessingOptions` or `stook.MultiprocessingOptions`. `None`: 10
        workers, as Grain. With `num_workers=0` the dataset is returned as it is. With Stook's and
        `on_worker_death="restart"`, an element is tried again `max_restarts` times first.
      worker_init_fn: Called as `worker_init_fn(worker_index, worker_count)` in each worker before
        the dataset is unpickled there.
      sequential_slice: Slices are contiguous parts of the sources.

    Returns:
      A `grain.IterDataset`, to go on with. Its iterators have Grain's methods, among them
      `get_state`, `set_state` and `close`.

    Raises:
      ImportError: Grain is not installed.
      TypeError: `dataset` or `options` is of the wrong type.
      ValueError: The options have a value that is not allowed.

    Example::

      import grain
      import stook.grain

      dataset = grain.MapDataset.source(paths).shuffle(seed=1).map(load).to_iter_dataset().batch(32)
      for batch in stook.grain.mp_prefetch(dataset, grain.MultiprocessingOptions(num_workers=4)):
          train_step(batch)
    """
    grain = _import_grain()
    if not isinstance(dataset, grain.IterDataset):
        hint = "; call its to_iter_dataset() first" if isinstance(dataset, grain.MapDataset) else ""
        raise TypeError(
            "mp_prefetch: dataset must be a grain.IterDataset, got a"
            f" {type(dataset).__name__}{hint}"
        )
    restarts = 0
    if options is None:
        options = grain.MultiprocessingOptions(num_workers=10)
    if isinstance(options, MultiprocessingOptions):
        ours = options
        if ours.on_worker_death == "restart":
            restarts = ours.max_restarts
    elif isinstance(options, grain.MultiprocessingOptions):
        if options.num_workers and options.per_worker_buffer_size <= 0:
            raise ValueError(
                f"`buffer_size` must be greater than 0, got {options.per_worker_buffer_size}."
            )
        ours = MultiprocessingOptions(
            options.num_workers, options.per_worker_buffer_size if options.num_workers else 1
        )
    else:
        raise TypeError(
            "mp_prefetch: options must be None, Grain's MultiprocessingOptions or"
            f" stook.MultiprocessingOptions, got a {type(options).__name__}"
        )
    if ours.num_workers == 0:
        return dataset
    return _prefetch(
        dataset, ours, worker_init_fn or ours.worker_init_fn, sequential_slice, restarts
    )


def _prefetch(
    dataset: Any,
    options: MultiprocessingOptions,
    worker_init_fn: Callable[[int, int], Any] | None,
    sequential_slice: bool,
    restarts: int,
) -> Any:
    import dataclasses

    from ._grain_dataset import WorkersIterDataset
    from ._grain_worker import import_internals

    internals = import_internals()
    made = WorkersIterDataset(
        dataset,
        # A successor would not know where its predecessor was: the iterator tells all of them.
        dataclasses.replace(options, on_worker_death="raise", worker_init_fn=None),
        worker_init_fn,
        sequential_slice,
        restarts,
    )
    dataset_options = internals.prefetch.get_dataset_options(dataset)
    return internals.dataset.WithOptionsIterDataset(made, dataset_options)


# Grain's own function, while ours is in its place.
_replaced: Callable[..., Any] | None = None


class Installation:
    """What `install()` returns; leaving its `with` block calls `uninstall()`."""

    def __enter__(self) -> Installation:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        uninstall()


def install() -> Installation:
    """Puts Stook's workers under Grain programs that stay as they are.

    From here on `dataset.mp_prefetch(...)` and `grain.DataLoader(worker_count=...)`, where they are
    called, give what `stook.grain.mp_prefetch` gives. Calling it again does nothing.

    Returns:
      A context manager that takes it back, for those who want it for a while.

    Raises:
      ImportError: Grain is not installed.
      StookError: Grain has another version than those this was tried with: 0.2.18.

    Example::

      import stook.grain

      stook.grain.install()
      loader = grain.DataLoader(data_source=source, sampler=sampler, worker_count=4)
    """
    global _replaced
    _import_grain()
    version = importlib.metadata.version("grain")
    if version not in _TRIED:
        raise StookError(
            f"stook.grain.install: it reaches into Grain, and was tried with {', '.join(_TRIED)};"
            f" this is {version}. Call stook.grain.mp_prefetch(dataset, options) where the program"
            " calls dataset.mp_prefetch(options)"
        )
    if _replaced is None:
        from ._grain_worker import import_internals

        module = import_internals().process_prefetch
        _replaced = module.multiprocess_prefetch
        module.multiprocess_prefetch = _multiprocess_prefetch
    return Installation()


def uninstall() -> None:
    """Takes `install()` back; datasets that were made meanwhile stay with Stook's workers."""
    global _replaced
    if _replaced is not None:
        from ._grain_worker import import_internals

        import_internals().process_prefetch.multiprocess_prefetch = _replaced
        _replaced = None


def _multiprocess_prefetch(
    ds: Any,
    num_workers: int = 0,
    buffer_size: int = 1,
    worker_init_fn: Callable[[int, int], Any] | None = None,
    sequential_slice: bool = False,
) -> Any:
    """In the place of Grain's function of that name, which `mp_prefetch` methods call."""
    options = _import_grain().MultiprocessingOptions(num_workers, buffer_size)
    return mp_prefetch(ds, options, worker_init_fn, sequential_slice)


def _import_grain() -> Any:
    try:
        return importlib.import_module("grain")
    except ImportError as error:
        raise ImportError(f"stook.grain needs Grain: pip install grain ({error})") from error
