"""`torch.utils.data.DataLoader` with Stook's workers in place of torch's."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from ..options import MultiprocessingOptions, _shown
from ._crew import CrewStore
from ._iterator import WorkersIterator
from ._partner import import_torch

__all__ = ["DataLoader"]

_Item = TypeVar("_Item")
_Base: Any = import_torch().utils.data.DataLoader
_DEFAULTS = MultiprocessingOptions(on_worker_death="raise")
_MANY = 1 << 20


class DataLoader(_Base[_Item]):  # type: ignore[misc]
    """torch's loader: its arguments, attributes and batches, without its transport.

    For the same seed, number of workers and arguments it gives what `torch.utils.data.DataLoader`
    gives: the same batches in the same order with the same random draws, of map-style and iterable
    data sets, with any sampler, with and without automatic batching. It is a subclass of it, and
    without workers (`num_workers=0`) it *is* it.

    What differs is how batches come. `default_collate` stacks tensors and arrays straight into
    shared memory, which the consumer gets as it stands: no copy, no pickling of tensors and no file
    descriptor per tensor, however many are kept. Tensors that a `collate_fn` of yours makes are
    copied once. Delivered tensors can be written, and stay valid when the loader is gone.

    Workers are forked from a fresh process that has torch imported and the data set as it was sent,
    whatever the start method that `multiprocessing` has as default; pass
    `multiprocessing_context="fork"` for forks of this process. That process is kept for the next
    iterator, so that only its first one pays for the start; lambdas, closures and classes of
    `__main__` cross, and no `if __name__ == "__main__"` is needed. With `persistent_workers` the
    workers themselves are kept, too, as torch's are.

    Args:
      dataset, batch_size, shuffle, sampler, batch_sampler, num_workers, collate_fn, pin_memory,
        drop_last, timeout, worker_init_fn, multiprocessing_context, generator, prefetch_factor,
        persistent_workers, pin_memory_device, in_order: As for torch's.
      options: How the workers are run otherwise: `memory_limit`, `min_shared_bytes`,
        `threads_per_worker`, and `on_worker_death="restart"` with `max_restarts`, which has the
        batch of a worker that died made again. Fields that torch has an argument for are not
        looked at.

    Raises:
      ImportError: torch is not installed.
      ValueError, TypeError: As torch's does.

    Example:
      >>> import torch, stook.torch
      >>> squares = [torch.tensor(i * i) for i in range(5)]
      >>> loader = stook.torch.DataLoader(squares, 2, num_workers=1)
      >>> [batch.tolist() for batch in loader]
      [[0, 1], [4, 9], [16]]
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int | None = 1,
        shuffle: bool | None = None,
        sampler: Any = None,
        batch_sampler: Any = None,
        num_workers: int = 0,
        collate_fn: Callable[[Any], Any] | None = None,
        pin_memory: bool = False,
        drop_last: bool = False,
        timeout: float = 0,
        worker_init_fn: Callable[[int], Any] | None = None,
        multiprocessing_context: Any = None,
        generator: Any = None,
        *,
        prefetch_factor: int | None = None,
        persistent_workers: bool = False,
        pin_memory_device: str = "",
        in_order: bool = True,
        options: MultiprocessingOptions | None = None,
    ) -> None:
        if options is not None and not isinstance(options, MultiprocessingOptions):
            raise TypeError(
                "DataLoader: options must be None or a stook.MultiprocessingOptions, got"
                f" {_shown(options)}"
            )
        self.options = options
        self._crews = CrewStore()
        settings: dict[str, Any] = {}
        if "in_order" in inspect.signature(_Base.__init__).parameters:
            settings["in_order"] = in_order
        else:  # torch before 2.6
            self.in_order = in_order
        super().__init__(
            dataset,
            batch_size,
            shuffle,
            sampler,
            batch_sampler,
            num_workers,
            collate_fn,
            pin_memory,
            drop_last,
            timeout,
            worker_init_fn,
            multiprocessing_context,
            generator,
            prefetch_factor=prefetch_factor,
            persistent_workers=persistent_workers,
            pin_memory_device=pin_memory_device,
            **settings,
        )

    def __iter__(self) -> Any:
        iterator: Any = self.__dict__.get("_iterator")
        if iterator is not None and not iterator.has_workers:
            self._iterator = None  # persistent workers that were lost
        return super().__iter__()

    def _get_iterator(self) -> Any:
        if self.num_workers == 0:
            return super()._get_iterator()
        self.check_worker_number_rationality()
        return WorkersIterator(self)

    def _worker_options(self) -> MultiprocessingOptions:
        options = _DEFAULTS if self.options is None else self.options
        context = self.multiprocessing_context
        if context is not None:
            method = "fork" if context.get_start_method() == "fork" else "forkserver"
            options = dataclasses.replace(options, start_method=method)
        if options.on_worker_death == "raise":
            # It also bounds how many workers may end before they made anything, and those of an
            # iterator that was left early do.
            options = dataclasses.replace(options, max_restarts=_MANY)
        options = dataclasses.replace(
            options, num_workers=self.num_workers, worker_init_fn=None, timeout=None
        )
        # The window is then torch's, prefetch_factor * num_workers; 0 is a value here.
        object.__setattr__(options, "per_worker_buffer_size", self.prefetch_factor - 1)
        return options

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        del state["_crews"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.__dict__["_crews"] = CrewStore()
