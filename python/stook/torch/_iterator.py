"""One pass of `stook.torch.DataLoader` with workers: torch's dealing, Stook's transport."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import pickle
import re
import select
import signal
import weakref
from collections import deque
from typing import Any

from .._error_payload import decode_error
from ..errors import ElementError, RemoteError, StookError, WorkerDied, add_note
from ._deadline import Deadline
from ._partner import import_torch
from ._wire import unpack
from ._worker import BATCH, ENDED, ERROR, WorkerTask

__all__ = ["WorkerHandle", "WorkersExited", "WorkersIterator"]

torch = import_torch()
_loaders: Any = torch.utils.data.dataloader
_Base: Any = _loaders._BaseDataLoaderIter
_unvalidated: list[Any] = getattr(torch._utils, "_sparse_tensors_to_validate", [])


class WorkersExited(WorkerDied):
    """A `WorkerDied` that begins with the words torch has for it."""

    def __init__(self, *args: Any, pid: int | None = None) -> None:
        super().__init__(*args)
        self.pid = pid

    def __str__(self) -> str:
        if isinstance(self.worker, str):  # made anew from its text, as torch does it
            return self.worker
        who = "unknown" if self.pid is None else self.pid
        text = f"DataLoader worker (pid(s) {who}) exited unexpectedly: {super().__str__()}"
        if self.exit_code is not None and self.exit_code < 0:
            what = signal.strsignal(-self.exit_code) or f"signal {-self.exit_code}"
            text = f"DataLoader worker (pid {who}) is killed by signal: {what}. {text}"
        return text


class WorkersIterator(_Base):  # type: ignore[misc]
    """Iterates once, or with persistent workers once per pass.

    Batch k goes to worker k mod N, past workers whose iterable data set has ended. What torch's own
    iterator draws from generators and samplers is drawn here too, at the same times: the base seed
    and `prefetch_factor * num_workers` of the sampler's indices by `iter()`, then one for each
    batch that comes.
    """

    _crew: Any = None

    def __init__(self, loader: Any) -> None:
        super().__init__(loader)
        if loader.prefetch_factor < 1:
            raise AssertionError(
                f"prefetch_factor must be greater than 0 with workers, got {loader.prefetch_factor}"
            )
        self._in_order = loader.in_order
        self._store = loader._crews
        self._window = loader.prefetch_factor * loader.num_workers
        self._is_iterable = self._dataset_kind == _loaders._DatasetKind.Iterable
        init = loader.worker_init_fn
        if isinstance(self._dataset, (_loaders.IterDataPipe, _loaders.MapDataPipe)):
            init = functools.partial(
                _loaders._sharding_worker_init_fn, init, self._world_size, self._rank
            )
        task = WorkerTask(
            self._dataset,
            self._dataset_kind,
            self._auto_collation,
            self._collate_fn,
            self._drop_last,
            init,
            self._num_workers,
            loader._worker_options().threads_per_worker,
        )
        self._pass_number = 0
        self._results: Any = None
        self._over = True
        self._deadline = Deadline(self._timeout) if self._timeout > 0 else None
        self._crew = self._store.take(
            task, loader._worker_options(), reuse=not loader.persistent_workers
        )
        # As torch's attribute of this name, which programs look at for the process ids.
        self._workers = [WorkerHandle(index) for index in range(self._num_workers)]
        self._reset(loader, first_iter=True)

    def _reset(self, loader: Any, first_iter: bool = False) -> None:
        first_seed = self._shared_seed
        super()._reset(loader, first_iter)
        # torch's draws another one here, which the workers of a first pass do not get to know.
        self._pipe_seed = first_seed if first_iter else self._shared_seed
        self._pass_number += 1
        self._sent = 0
        self._jobs: deque[Any] = deque()
        self._active = [True] * self._num_workers
        self._begun = [0] * self._num_workers  # jobs of this pass that each worker was dealt
        self._under_way = [0] * self._num_workers
        self._owners: dict[int, int] = {}  # of jobs under way, by number: whose they are
        self._is_drawn_out = False
        self._cycle = itertools.cycle(range(self._num_workers))
        if self._results is not None:
            self._results.close()
        self._over = False
        self._results = self._crew.iterate(_Jobs(self), ordered=self._in_order)
        for _ in range(self._window):
            self._deal()

    @property
    def has_workers(self) -> bool:
        """False once they were given back or lost."""
        return self._crew is not None and not self._crew.is_of_another_process

    # ---- dealing ---------------------------------------------------------------------------------

    def _deal(self) -> None:
        """Draws one index and says whose it is; nothing if there is none, or nobody to have it."""
        try:
            index = self._next_index()
        except StopIteration:
            self._is_drawn_out = True
            return
        worker = self._next_worker()
        crew = self._crew
        if worker is None or crew is None:  # closed meanwhile
            return
        # The first job that this worker ever gets sets it up by the seeds.
        payload = (
            self._pass_number,
            self._begun[worker],
            self._base_seed,
            self._pipe_seed,
            index,
            crew.update,
        )
        self._jobs.append((self._pass_number - 1, self._sent, payload, worker))
        crew.used.add(worker)
        self._begun[worker] += 1
        self._under_way[worker] += 1
        self._owners[self._sent] = worker
        self._sent += 1

    def _next_worker(self) -> int | None:
        for _ in range(self._num_workers):
            worker = next(self._cycle)
            if not self._active[worker]:
                continue
            if self._in_order or self._under_way[worker] < self._window // sum(self._active):
                return worker
        active = [worker for worker in range(self._num_workers) if self._active[worker]]
        return min(active, key=lambda worker: self._under_way[worker], default=None)

    # ---- what torch's __next__ calls -------------------------------------------------------------

    def _next_data(self) -> Any:
        if self._over:
            raise StopIteration
        while True:
            element = self._next_element()
            kind, number, worker, pid = element[:4]
            self._workers[worker].pid = pid
            if self._crew is not None:  # not closed by another thread meanwhile
                self._crew.heard.add(worker)
            self._strike_off(number)
            if kind == ENDED:
                self._active[worker] = False
                self._deal()
                continue
            if kind == BATCH:
                self._deal()
                data = unpack(element[4], element[5])
                if _unvalidated:
                    # torch keeps what is unpickled of sparse tensors until somebody does this.
                    torch._utils._validate_loaded_sparse_tensors()
                if self._pin_memory:
                    data = _loaders._utils.pin_memory.pin_memory(data, self._pin_memory_device)
                return data
            if kind == ERROR:
                self._deal()
                raise _rebuilt(worker, *element[4:])
            if self._is_iterable:
                self._end()
            else:
                self._deal()
            raise WorkersExited(worker, None, None, element[4], pid=pid)

    def _next_element(self) -> Any:
        try:
            if self._deadline is None:
                return next(self._results)
            with self._deadline.around(self._results):
                return next(self._results)
        except StopIteration:
            self._end(finished=True)
            raise
        except WorkerDied as error:
            # Where the copy of an iterable data set stood is lost with it.
            if self._is_iterable or error.worker is None:
                self._end()
            else:
                self._deal_for_lost()
            match = re.search(r"process id was (\d+)", error.detail)
            raise WorkersExited(*error.args, pid=int(match[1]) if match else None) from None
        except BaseException as error:
            timed_out = self._deadline is not None and self._deadline.has_passed
            if timed_out and isinstance(error, StookError):
                self._end()
                raise RuntimeError(f"DataLoader timed out after {self._timeout} seconds") from None
            # A batch that could not be handed over is one that came, and Ctrl-C is none.
            self._deal_for_lost()
            raise

    def _strike_off(self, number: int) -> None:
        """A job has come back."""
        worker = self._owners.pop(number, None)
        if worker is not None:
            self._under_way[worker] -= 1

    def _deal_for_lost(self) -> None:
        """Deals another job for each that has come back as an error in place of an element."""
        lowest, ahead = self._results.delivered()
        lost = [number for number in self._owners if number < lowest or number in ahead]
        for number in lost:
            self._strike_off(number)
        for _ in lost:
            self._deal()

    # ---- the end ---------------------------------------------------------------------------------

    def _end(self, *, finished: bool = False) -> None:
        """No more in this pass."""
        self._over = True
        if not (finished and self._persistent_workers):
            self._shutdown_workers()

    def _shutdown_workers(self) -> None:
        """Ends the pass, and gives the workers back. torch's name; Lightning calls it."""
        self._over = True
        crew, self._crew = self._crew, None
        if crew is None:
            return
        if self._results is not None:
            self._results.close()
        if self._deadline is not None:
            self._deadline.close()
        self._store.give_back(crew)

    def __del__(self) -> None:
        if getattr(self, "_crew", None) is not None:
            self._shutdown_workers()

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise NotImplementedError(f"{type(self).__name__} cannot be pickled")


class WorkerHandle:
    """A worker, as far as `multiprocessing.Process` tells of one.

    Attributes:
      index: Number of the worker.
      pid: Its process id, once something came from it; until then `None`.
    """

    def __init__(self, index: int) -> None:
        self.index = index
        self.pid: int | None = None

    def is_alive(self) -> bool:
        """True until the process is no more."""
        if self.pid is None:
            return True
        try:
            with open(f"/proc/{self.pid}/stat", encoding="utf-8", errors="replace") as file:
                return file.read().rpartition(")")[2].split()[0] not in "ZX"
        except FileNotFoundError:
            return False

    def join(self, timeout: float | None = None) -> None:
        """Waits for that, for `timeout` seconds at most."""
        if self.pid is None:
            return
        with contextlib.suppress(ProcessLookupError):
            descriptor = os.pidfd_open(self.pid)
            try:
                ready = select.poll()
                ready.register(descriptor, select.POLLIN)
                ready.poll(None if timeout is None else 1000 * timeout)
            finally:
                os.close(descriptor)

    def __repr__(self) -> str:
        return f"<worker {self.index}, pid {self.pid}>"


class _Jobs:
    """What was dealt, as Stook asks for it; holds no iterator alive."""

    def __init__(self, iterator: WorkersIterator) -> None:
        self._jobs = iterator._jobs
        self._iterator = weakref.ref(iterator)

    def __iter__(self) -> _Jobs:
        return self

    def __next__(self) -> Any:
        # As one is dealt for each that came, and no more are asked for than were dealt by iter(),
        # there is none only at the end; and where a sampler's error or Ctrl-C came in between.
        if not self._jobs:
            iterator = self._iterator()
            if iterator is not None and not iterator._is_drawn_out:
                iterator._deal()
        if not self._jobs:
            raise StopIteration
        return self._jobs.popleft()


def _rebuilt(worker: int, text: str, payload: bytes, pickled_kind: bytes) -> BaseException:
    """What user code raised: as torch makes it anew, with the exception itself as its cause."""
    where = f"in DataLoader worker process {worker}"
    original: BaseException = decode_error(payload)
    kind: type[BaseException] = type(original)
    if isinstance(original, RemoteError):  # it could not be pickled; torch asks for its class alone
        kind = RuntimeError
        with contextlib.suppress(Exception):
            kind = pickle.loads(pickled_kind)
    if issubclass(kind, (StopIteration, GeneratorExit)):
        # It would end the loop as if there were no more.
        return ElementError(f"Caught {kind.__name__} {where}.\nOriginal {text}", None, worker)
    wrapper = torch._utils.ExceptionWrapper.__new__(torch._utils.ExceptionWrapper)
    wrapper.exc_type, wrapper.exc_msg, wrapper.where = kind, text, where
    try:
        wrapper.reraise()
    except Exception as error:
        rebuilt: BaseException = error.with_traceback(None)
    if type(rebuilt) is not kind:
        # Its class takes other arguments than a message: the exception itself says more.
        add_note(original, f"Caught {where}")
        return original
    if not isinstance(original, RemoteError):
        original.__cause__ = None  # its traceback is in the message
        rebuilt.__cause__ = original
    return rebuilt
