"""Grain's pipelines in Stook's workers: each iterates its slice, one element a job.

Imported where Grain is, and by the process that workers are forked from, so that they share what
importing Grain costs.
"""

from __future__ import annotations

import functools
import importlib
import pickle
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ._element_errors import DEFAULT_POLICY
from ._error_payload import encode_error
from .errors import for_consumer
from .worker_info import worker_info

__all__ = ["FRESH", "LOST", "PipelineTask", "debug_flags", "import_internals"]

# A job gives `(element, pickled state behind it, worker)`; of an element that failed a list
# `[error, pickled state, worker]`, without a state if its slice could not even begin; of a worker
# whose slice has no more its index alone; and in place of all that:
LOST = -1  # this worker has not begun: it took the place of one that had

FRESH = b""  # in place of a pickled state: from the beginning

_FLAGS = ("grain_py_debug_mode", "grain_py_dataset_visualization_output_dir")


class Internals(NamedTuple):
    """The modules of Grain that are reached into."""

    arrays: Any
    base: Any
    batch: Any
    config: Any
    dataset: Any
    logging: Any
    prefetch: Any
    process_prefetch: Any


@functools.cache
def import_internals() -> Internals:
    """Imports Grain."""
    python = "grain._src.python"
    names = (
        f"{python}.ipc.shared_memory_array",
        f"{python}.dataset.base",
        f"{python}.dataset.transformations.batch",
        "grain._src.core.config",
        f"{python}.dataset.dataset",
        f"{python}.grain_logging",
        f"{python}.dataset.transformations.prefetch",
        f"{python}.dataset.transformations.process_prefetch",
    )
    importlib.import_module("grain")
    return Internals(*map(importlib.import_module, names))


def debug_flags() -> dict[str, Any]:
    """Grain's settings of this process that its workers are to have."""
    config = import_internals().config.config
    return {
        **{name: config.get_or_default(name.removeprefix("grain_")) for name in _FLAGS},
        # The traceback is sent as text, whole.
        "grain_py_traceback_filtering": "off",
    }


class PipelineTask:
    """What the workers of an `mp_prefetch` run.

    Attributes:
      dataset: The pipeline, pickled: it is unpickled in the worker, after `worker_init_fn` has run.
      worker_init_fn: Called with the worker's index and their number, or `None`.
      sequential_slice: Slices are contiguous.
      options: Grain's `DatasetOptions`.
      flags: What `debug_flags` gave.
    """

    # What `_processes.ProcessPool` looks at in the task of a loader.
    source = None
    transforms: tuple[Any, ...] = ()
    collate = None
    batch_size = None
    seed = None  # Grain's pipelines draw from seeds of their own
    policy = DEFAULT_POLICY

    def __init__(
        self,
        dataset: bytes,
        worker_init_fn: Callable[[int, int], Any] | None,
        sequential_slice: bool,
        options: Any,
        flags: dict[str, Any],
    ) -> None:
        self.dataset = dataset
        self.worker_init_fn = worker_init_fn
        self.sequential_slice = sequential_slice
        self.options = options
        self.flags = flags

    def bind(self, where: str = "worker") -> Callable[[int, int, bytes | None], Any]:
        """What makes elements; nothing of the user's runs before its first call."""
        import_internals()
        return _Slice(self).next


class _Slice:
    """One worker's slice of a pipeline, and how far it is."""

    def __init__(self, task: PipelineTask) -> None:
        self._task = task
        self._is_set_up = False
        self._worker = -1
        self._elements: Any = None
        self._generation = -1
        self._ended = False

    def next(self, generation: int, position: int, start: bytes | None) -> Any:
        """Makes the next element.

        Args:
          generation: Rises whenever the whole pipeline is sent to another place.
          position: Number of the job, for messages.
          start: With the first job of a generation, the pickled state to begin at, or `FRESH`.
        """
        if start is None and generation != self._generation:
            return LOST
        try:
            if start is not None:
                self._begin(start)
                self._generation = generation
            if self._ended:
                return self._worker
            element = next(self._elements)
            return element, pickle.dumps(self._elements.get_state(), protocol=5), self._worker
        except StopIteration:
            self._ended = True
            return self._worker
        except BaseException as error:
            state = None
            if start is None or self._generation == generation:
                self._step_over(error)
                state = pickle.dumps(self._elements.get_state(), protocol=5)
            return [_encoded(error, position), state, self._worker]

    def _begin(self, start: bytes) -> None:
        self._generation = -1
        self._ended = False
        info = worker_info()
        assert info is not None
        self._worker = info.index
        if self._elements is None or start == FRESH:
            if self._elements is not None:
                self._elements.close()
            self._elements = self._make()
        if start != FRESH:
            self._elements.set_state(pickle.loads(start))

    def _make(self) -> Any:
        task = self._task
        grain = import_internals()
        info = worker_info()
        assert info is not None
        if not self._is_set_up:
            grain.process_prefetch._is_in_worker_process = True
            _make_ordinary_batches(grain.batch)
            grain.arrays.SharedMemoryArray.__reduce_ex__ = _reduce_to_array
            grain.process_prefetch._parse_debug_flags(task.flags)
            suffix = "" if info.count == 1 else f" {info.index}"
            grain.logging.set_process_identifier_prefix(suffix)
            if task.worker_init_fn is not None:
                task.worker_init_fn(info.index, info.count)
            self._is_set_up = True
        # Anew for each iterator, because slicing changes the pipeline itself.
        dataset = pickle.loads(task.dataset)
        if info.count > 1:
            dataset = grain.process_prefetch._LazyWorkerSliceIterDataset(
                dataset, slice(info.index, None, info.count), task.sequential_slice
            )
        context = grain.base.MultiprocessingContext(
            process_index=info.index, process_count=info.count
        )
        dataset = grain.prefetch._MpContextIterDataset(dataset, context)
        return iter(grain.dataset.WithOptionsIterDataset(dataset, task.options))

    def _step_over(self, error: BaseException) -> None:
        """Goes behind an item that failed.

        The iterator in which a source or a `MapDataset` raised does not count the item: without
        threads it would raise for ever, and with them its state would be one behind.
        """
        reader = import_internals().prefetch.PrefetchDatasetIterator
        trace = error.__traceback__
        while trace is not None:
            frame, trace = trace.tb_frame, trace.tb_next
            failed = frame.f_locals.get("self")
            if frame.f_code.co_name != "__next__" or not isinstance(failed, reader):
                continue
            cause = None if trace is None else trace.tb_frame.f_locals.get("self")
            if type(cause).__name__ == "FilterThresholdChecker":
                return  # too many were left out; the item itself was counted
            index = failed.get_state()["next_index"]
            if index < failed._dataset_length:
                failed.set_state({"next_index": index + 1})
            return  # one that user code iterates, further in, is the user's


def _encoded(error: BaseException, position: int) -> bytes:
    if not isinstance(error, Exception):  # a message to the program: the worker's, not the user's
        info = worker_info()
        error = for_consumer(error, position, worker=None if info is None else info.index)
    return encode_error(error)


def _make_ordinary_batches(batch: Any) -> None:
    """Lets batches be made by `np.stack` alone, whose result lies in shared memory here anyway.

    Where Grain expects its own processes, it has them made in a segment of its own, with the dtype
    of the first item. The function crosses by name, so that unpickling finds this one.
    """
    make_batch = batch.make_batch

    @functools.wraps(make_batch)
    def make(values: Any, *, output_to_shared_memory: bool = False) -> Any:
        return make_batch(values)

    batch.make_batch = make


def _reduce_to_array(array: Any, protocol: Any) -> Any:
    """Sends one of Grain's `SharedMemoryArray`s as an ordinary array.

    Its segment goes with it: nobody else would remove it.
    """
    for owner in (array, array.base):
        if isinstance(owner, import_internals().arrays.SharedMemoryArray):
            owner.unlink_on_del()
    return np.array(array).__reduce_ex__(protocol)
