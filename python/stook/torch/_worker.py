"""What a worker of `stook.torch.DataLoader` does: the part that travels to it."""

from __future__ import annotations

import os
import pickle
import traceback
from types import TracebackType
from typing import Any

from .._error_payload import encode_error
from .._pickling import pickle_error
from .._task import LoaderTask
from ..worker_info import _state
from . import _collate
from ._partner import import_torch
from ._wire import Packer
from ._worker_seeds import seed_worker

__all__ = ["BATCH", "ENDED", "ERROR", "EXITED", "WorkerTask"]

# What an element is: a kind, the number of its job, the worker, its process id, and more.
# (BATCH, number, worker, pid, description, leaves)
BATCH = 0
# (ERROR, number, worker, pid, traceback as text, the exception as `_error_payload` writes it, its
# class pickled or b"")
ERROR = 1
# (ENDED, number, worker, pid): its copy of an iterable data set has no more.
ENDED = 2
# (EXITED, number, worker, pid, why): user code ended its process, or would have.
EXITED = 3

torch = import_torch()

# An error that every job raises, and its traceback as it was caught: raising makes that longer.
_Failure = tuple[Exception, "TracebackType | None"]


class WorkerTask(LoaderTask):
    """Makes batches as a worker of torch's would.

    A payload is (pass, number of the job among this worker's in that pass, base seed, shared seed,
    what the sampler gave, a pickled task in the place of this one or `None`). The first job of a
    process sets it up; the first one of a further pass starts the data set anew, with the
    generators where they are.
    """

    def __init__(
        self,
        dataset: Any,
        kind: int,
        auto_collation: bool,
        collate_fn: Any,
        drop_last: bool,
        worker_init_fn: Any,
        num_workers: int,
        threads: int,
    ) -> None:
        super().__init__(dataset, seed=0)  # workers need no seeds; they are seeded by jobs
        self.collate_fn = collate_fn
        self.kind = kind
        self.auto_collation = auto_collation
        self.drop_last = drop_last
        self.worker_init_fn = worker_init_fn
        self.num_workers = num_workers
        self.threads = threads
        self.extensions = _collate.extensions()

    def bind(self, *_: Any, **__: Any) -> Any:
        """In the process that workers are forked from, or a fork of the consumer's."""
        packer = Packer()
        _collate.install(packer, self.extensions)
        return _Worker(self, packer).run


class _Worker:
    """The state of one worker, which its server has not touched."""

    def __init__(self, task: WorkerTask, packer: Packer) -> None:
        self._packer = packer
        self._take(task)
        self._pass = -1
        self._fetcher: Any = None
        self._init_failure: _Failure | None = None  # of worker_init_fn
        self._failure: _Failure | None = None  # of that, or of this pass's iter(dataset)
        self._ended = False
        self._shared_rng: Any = None
        self._who = -1, 0  # index and process id, once this is a worker

    def run(self, epoch: int, position: int, payload: Any) -> Any:
        number, ordinal, base_seed, shared_seed, index, update = payload
        _state.epoch = epoch
        packer = self._packer
        try:
            if number != self._pass:
                if self._pass == -1 and ordinal > 0 and self._is_iterable:
                    # A process before this one had begun, and where it was nobody knows.
                    self._find_out_who()
                    return (EXITED, position, *self._who, "where it was in its data set is lost")
                self._begin(number, base_seed, shared_seed, update)
            if self._failure is not None:
                raise self._failure[0].with_traceback(self._failure[1])
            if self._ended:
                return (ENDED, position, *self._who)
            try:
                parts, leaves = packer.pack(self._fetcher.fetch(index))
            except StopIteration:
                if not self._is_iterable:
                    raise
                self._ended = True
                return (ENDED, position, *self._who)
            return (BATCH, position, *self._who, parts, leaves)
        except Exception as error:
            text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
            return (ERROR, position, *self._who, text, encode_error(error), _pickled(type(error)))
        except BaseException as error:
            return (EXITED, position, *self._who, f"its data set raised {error!r}")
        finally:
            packer.forget()

    def _find_out_who(self) -> int:
        worker = _state.worker
        assert worker is not None
        self._who = worker[0], os.getpid()
        return worker[0]

    def _begin(self, number: int, base_seed: int, shared_seed: int | None, update: Any) -> None:
        """Sets this process up, or starts the data set anew."""
        is_first = self._pass == -1
        self._pass = number
        self._ended = False
        if is_first:
            index = self._find_out_who()
            if update is not None:
                try:
                    self._take(pickle.loads(update)["task"])
                except Exception as error:
                    self._init_failure = error, error.__traceback__
        task = self._task
        if is_first:
            torch.set_num_threads(task.threads)
            seed = seed_worker(base_seed, index)
            self._seed_pipe(shared_seed)
            torch.utils.data._utils.worker._worker_info = torch.utils.data._utils.worker.WorkerInfo(
                id=index, num_workers=task.num_workers, seed=seed, dataset=self._dataset
            )
            if task.worker_init_fn is not None and self._init_failure is None:
                try:
                    task.worker_init_fn(index)
                except Exception as error:
                    self._init_failure = error, error.__traceback__
        else:
            self._seed_pipe(shared_seed)
        self._failure = self._init_failure
        if self._failure is None:
            try:
                self._fetcher = torch.utils.data._DatasetKind.create_fetcher(
                    task.kind, self._dataset, task.auto_collation, self._collate, task.drop_last
                )
            except Exception as error:
                self._failure = error, error.__traceback__

    def _take(self, task: WorkerTask) -> None:
        self._task = task
        self._collate = _collate.worker_collate(task.collate_fn, self._packer)
        self._dataset = task.source
        self._is_iterable = task.kind == torch.utils.data._DatasetKind.Iterable

    def _seed_pipe(self, shared_seed: int | None) -> None:
        """A data pipe shuffles by a seed that all its workers share."""
        if shared_seed is None:
            return
        if self._shared_rng is None:
            self._shared_rng = torch.Generator()
        self._shared_rng.manual_seed(shared_seed)
        self._dataset = torch.utils.data.graph_settings.apply_random_seed(
            self._dataset, self._shared_rng
        )


def _pickled(kind: type[BaseException]) -> bytes:
    try:
        return pickle_error(kind)
    except Exception:
        return b""
