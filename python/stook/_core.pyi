"""The C++ side of stook. Private: what people import is the package stook."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from os import PathLike
from typing import Any, NoReturn, Protocol, SupportsIndex, SupportsInt, TypeAlias, final

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Buffer, Self, disjoint_base

from ._element_errors import Report, Skip
from .shared_memory_array import SharedMemoryArrayMetadata

__version__: str

_Int: TypeAlias = SupportsInt | SupportsIndex
_Path: TypeAlias = str | PathLike[str]
_Source: TypeAlias = _Path | PathLike[bytes] | Buffer | tuple[_Path, _Int, _Int]

# ---- bindings/begin_item.cpp

def begin_item(item: int, /) -> None: ...

# ---- bindings/index_plan.cpp

class _Pybind11Type(type): ...

class FurtherItems(metaclass=_Pybind11Type):
    """The items of an epoch from the first one of a batch on."""

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...  # raises
    # the index of the number-th, counted from 0; None beyond the end of the epoch
    def __call__(self, number: _Int, /) -> int | None: ...

class IndexPlan(metaclass=_Pybind11Type):
    """Iterator of (epoch, number, index), or with a batch size of (epoch, number, indices)."""

    def __init__(
        self,
        length: _Int,
        batch_size: _Int = 0,
        drop_remainder: bool = False,
        shuffle_seed: _Int | None = None,
        first_epoch: _Int = 0,
        num_epochs: _Int | None = 1,
        *,
        # every shard_count-th place, from shard_index on
        shard_index: _Int = 0,
        shard_count: _Int = 1,
        # of the first epoch: jobs that are done; places of the unsharded epoch that are done with,
        # so that positions count from there
        first_position: _Int = 0,
        first_place: _Int = 0,
        # ordinals of jobs not to deal, in rising order; the first job of the plan has ordinal 0
        skip: Sequence[_Int] = [],
        fill: bool = False,
        first_item: _Int | None = None,
    ) -> None: ...
    def __iter__(self) -> IndexPlan: ...
    # with fill the payload is a tuple of a FurtherItems and of the indices
    def __next__(self) -> tuple[int, int, Any]: ...
    def __len__(self) -> int: ...
    # with fill: goes on with the job of `ordinal`, as `position` of `epoch`, from `item` on
    def rewind(self, epoch: _Int, position: _Int, item: _Int, ordinal: _Int) -> None: ...
    def planned_items(self, epoch: _Int, item: _Int) -> int: ...
    # of this shard, of a whole epoch
    @property
    def jobs_per_epoch(self) -> int: ...
    # those before first_position included; fewer than jobs_per_epoch with a first_place
    @property
    def jobs_in_first_epoch(self) -> int: ...

# ---- bindings/jpeg.cpp

def decode_jpeg(
    source: _Source,
    out: NDArray[np.uint8] | None,
    gray: bool,
    max_pixels: _Int,
    allow_truncated: bool,
    apply_orientation: bool,
) -> NDArray[np.uint8]: ...
def jpeg_info(source: _Source) -> tuple[int, int, int, str, str | None, bool, bool, int]: ...

# ---- bindings/lease.cpp

def is_shared(array: object, /) -> bool: ...

# ---- bindings/npy.cpp

def load_npy(source: _Source) -> NDArray[Any]: ...
def load_npz(source: _Source, names: set[str] | None) -> dict[str, NDArray[Any]]: ...

# ---- bindings/resized_crop.cpp

def decode_resized_crops(
    sources: Sequence[_Source],
    boxes: Sequence[tuple[float, float, float, float] | None],
    flips: Sequence[bool],
    height: _Int,
    width: _Int,
    gray: bool,
    filter: _Int,
    scaled_decode: bool,
    element_type: _Int,
    planes: bool,
    scale: tuple[float, float, float],
    offset: tuple[float, float, float],
    max_pixels: _Int,
    allow_truncated: bool,
    batch: bool,
    out: NDArray[Any] | None,
) -> tuple[NDArray[Any], list[tuple[int, Exception]]]: ...

# ---- bindings/shared_memory_array.cpp

@final
class SharedMemoryArrayType(type):
    @property
    def __array_finalize__(cls) -> Any: ...

@final
class SharedMemoryArray(np.ndarray[Any, Any], metaclass=SharedMemoryArrayType):
    def __new__(cls, shape: SupportsIndex | Iterable[SupportsIndex], dtype: Any = ...) -> Self: ...
    @property
    def metadata(self) -> SharedMemoryArrayMetadata: ...
    def unlink_on_del(self) -> None: ...
    def _keep_on_del(self) -> None: ...
    @staticmethod
    def from_metadata(metadata: SharedMemoryArrayMetadata) -> SharedMemoryArray: ...
    @staticmethod
    def enable_async_del(num_threads: int = 1, max_outstanding_requests: int = 50) -> None: ...

def _attach_array(*description: Any) -> SharedMemoryArray: ...

# ---- bindings/reclaimer.cpp

def unlink_segment(name: str) -> bool: ...
def reclaimer_stats() -> dict[str, int]: ...
def flush_reclaimer(seconds: float) -> bool: ...
def finish_reclaimer(seconds: float) -> None: ...
def leave_segments() -> None: ...
def sweep_leftover_segments() -> int: ...

# ---- bindings/worker_pool.cpp

class _ParentFunctions(Protocol):
    """What a pool calls in the consumer's process (stook/_parent.py)."""

    def pickle_objects(
        self, objects: list[Any], min_shared_bytes: int, /
    ) -> tuple[bytes, list[Any]]: ...
    def unpickle_objects(self, data: bytes, buffers: list[Any], /) -> list[Any]: ...
    def pickle_dtype(self, dtype: Any, /) -> bytes: ...
    def unpickle_dtype(self, data: bytes, /) -> Any: ...
    def drain_side_channel(self) -> None: ...
    def element_error(self, payload: bytes, worker: int, position: int, /) -> BaseException: ...
    def startup_error(self, payload: bytes, worker: int, position: int, /) -> BaseException: ...
    def worker_died(
        self,
        worker: int,
        pid: int,
        status: int,
        position: int,
        attempts: int,
        out_of_memory: bool,
        index: int | None,
        /,
    ) -> BaseException: ...
    def timed_out(
        self, worker: int, position: int, seconds: float, index: int | None, /
    ) -> BaseException: ...
    def too_many_errors(
        self, errors: int, items: int, allowed: float, error: BaseException | None, /
    ) -> BaseException: ...
    def encode_unsendable(self, error: BaseException, position: int, /) -> bytes: ...
    def exhausted_error(self, requested: int, /) -> BaseException: ...
    def undecodable_result(self, error: BaseException, /) -> BaseException: ...
    def task_error(self, payload: bytes, /) -> BaseException: ...
    def task_died(
        self, worker: int, pid: int, status: int, out_of_memory: bool, /
    ) -> BaseException: ...

class LeaseLedger(metaclass=_Pybind11Type):
    """What of each worker's memory is still leased; outlives the pool."""

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...  # raises
    def held_bytes(self) -> list[int]: ...

class WorkerPool(metaclass=_Pybind11Type):
    """The worker processes of one loader; takes over socket and server."""

    def __init__(
        self,
        *,
        socket: _Int,
        server: _Int,
        num_workers: _Int,
        per_worker_buffer_size: _Int,
        memory_limit: _Int,
        min_shared_bytes: _Int,
        restart_workers: bool,
        max_restarts: _Int,
        any_order: bool,
        start_on_demand: bool,
        report_losses: bool = False,
        element_timeout: float | None = None,
        functions: _ParentFunctions,
    ) -> None: ...
    def close(self) -> None: ...
    def watch(self, fd: _Int) -> None: ...
    # elements, bytes, moved, copied, restarts, errors, bytes live
    def totals(self) -> tuple[int, int, int, int, int, int, int]: ...
    # per worker: mapped, touched, live, idle, retired
    def memory(self) -> list[tuple[int, int, int, int, int]]: ...
    @property
    def ledger(self) -> LeaseLedger: ...
    @property
    def is_open(self) -> bool: ...
    @property
    def server_pid(self) -> int: ...
    @property
    def workers_alive(self) -> int: ...
    @property
    def worker_pids(self) -> list[int]: ...

def memory_left() -> int: ...

# ---- bindings/profile.cpp

@final
class Profile:
    """Memory of figures; this process writes one cell of it."""

    def __new__(cls, fd: int, cells: int, window: int, cell: int) -> Profile: ...
    @staticmethod
    def size(cells: int, /) -> int: ...
    def serve_workers(self) -> None: ...
    # pid, started, waits_for, waits_since; (count, nanoseconds) of waits; (calls, nanoseconds,
    # bytes) of stages; (leaves, bytes, references, path, type) of reasons
    def read(
        self, cell: int, /
    ) -> tuple[
        int,
        int,
        int,
        int,
        list[tuple[int, int]],
        list[tuple[int, int, int]],
        list[tuple[int, int, int, str, str]],
    ]: ...
    # (code, thread, begin, nanoseconds, epoch, position)
    def events(self, cell: int, /) -> list[tuple[int, int, int, int, int, int]]: ...
    # cell, stage, begin, end
    def record(self, *arguments: int) -> None: ...

@disjoint_base
class Stage:
    """Calls a function, or takes items, and notes the time."""

    def __new__(cls, profile: Profile, stage: int, function: Any, calls: int = 1) -> Self: ...
    def __call__(self, *arguments: Any, **keywords: Any) -> Any: ...
    def __getitem__(self, key: Any, /) -> Any: ...

# ---- bindings/timed_iterator.cpp

@disjoint_base
class TimedIterator:
    """Gives what another iterator gives, and notes how long that took."""

    def __new__(cls, *arguments: Any, **keywords: Any) -> Self: ...
    def __init__(
        self,
        timed: Iterator[Any],
        profile: Profile,
        cell: int,
        stage: int,
        at_end: Callable[[], None],
    ) -> None: ...
    def __iter__(self) -> Self: ...
    def __next__(self) -> Any: ...

# ---- bindings/result_iterator.cpp

@disjoint_base
class ResultIterator:
    """Results of jobs, as they are asked for."""

    # A job may name the worker that is to run it, as a fourth member.
    def __new__(
        cls,
        pool: WorkerPool,
        jobs: IndexPlan | Iterator[tuple[int, int, Any] | tuple[int, int, Any, int | None]],
        ordered: bool,
        # of items; if negative, the rate counts: 0 for none
        max_errors: int = -1,
        max_error_rate: float = 0.0,
        # the payload of a job from Python is a sequence of items
        batched: bool = False,
    ) -> ResultIterator: ...
    # Coroutines that wait after poll(): if any, next() calls self._tell_waiters() at its end.
    watchers: int
    def __iter__(self) -> ResultIterator: ...
    def __next__(self) -> Any: ...
    # as next(), but `later` or `soon` where that would wait
    def poll(self, later: Any, soon: Any, /) -> Any: ...
    def fileno(self) -> int: ...
    def close(self) -> None: ...
    # elements, bytes, moved, copied, errors
    def counts(self) -> tuple[int, int, int, int, int]: ...
    # (lowest, ahead): by ordinal, what was delivered; jobs that the plan skips count as delivered
    # (epoch, position, item) that a plan with fill goes on with
    def next_item(self) -> tuple[int, int, int]: ...
    def delivered(self) -> tuple[int, list[int]]: ...
    def restart(self, jobs: IndexPlan | Iterator[tuple[int, int, Any]], /) -> None: ...
    def is_finished(self) -> bool: ...

# ---- bindings/tar.cpp

def index_tar(
    source: _Source, allow_truncated: bool
) -> tuple[
    NDArray[np.uint8],
    NDArray[np.int64],
    NDArray[np.int64],
    NDArray[np.int64],
    NDArray[np.int64],
    NDArray[np.int64],
]: ...

# ---- bindings/task_queue_object.cpp

class TaskFunction(metaclass=_Pybind11Type):
    """A function whose definition lies where a pool's workers find it."""

    def __init__(self, pool: WorkerPool, number: _Int, definition: bytes) -> None: ...

@final
class TaskQueue:
    """TaskQueue(pool, waiting, notify, on_deaths): tasks given to a pool one by one."""

    def __new__(
        cls,
        pool: WorkerPool,
        waiting: list[Any],
        notify: Callable[[], object],
        on_deaths: Callable[[list[tuple[int, int, int]]], object],
    ) -> TaskQueue: ...
    def submit(
        self,
        function: TaskFunction,
        payload: Any,
        sink: Callable[..., object],
        kind: int,
        background: bool,
        /,
    ) -> int: ...
    def cancel(self, number: int, /) -> bool: ...
    def is_running(self, number: int, /) -> bool: ...
    def pump(self, done: Callable[[], object], seconds: float | None, /) -> bool | None: ...
    def arm(self) -> bool: ...
    def wake(self) -> None: ...
    def pass_on(self) -> None: ...
    def retire_workers(self, function: TaskFunction, sink: Callable[..., object], /) -> None: ...
    def fail_all(self, error: BaseException, /) -> None: ...
    def close(self) -> None: ...
    def fileno(self) -> int: ...
    @property
    def outstanding(self) -> int: ...
    @property
    def outstanding_in_background(self) -> int: ...
    @property
    def broken(self) -> BaseException | None: ...
    @property
    def is_pumped(self) -> bool: ...
    @property
    def is_pumped_by_main(self) -> bool: ...

# ---- bindings/worker_process.cpp

class _WorkerFunctions(Protocol):
    """What a worker calls (stook/_worker.py)."""

    def set_up(self, index: int, count: int, incarnation: int, /) -> Any: ...
    def encode_error(self, error: BaseException, /) -> bytes: ...
    def exhausted_error(self, requested: int, capacity: int, /) -> BaseException: ...
    def pickle_objects(
        self, objects: list[Any], min_shared_bytes: int, /
    ) -> tuple[bytes, list[Any]]: ...
    def unpickle_objects(self, data: bytes, buffers: list[Any], /) -> list[Any]: ...
    def pickle_dtype(self, dtype: Any, /) -> bytes: ...
    def unpickle_dtype(self, data: bytes, /) -> Any: ...
    def load_function(self, definition: bytes, /) -> Any: ...
    def undecodable_arguments(self, error: BaseException, /) -> BaseException: ...
    def run_finalizers(self) -> None: ...
    def retire(self) -> NoReturn: ...
    @property
    def report_type(self) -> type[Report]: ...
    @property
    def skip(self) -> Skip: ...

def serve(
    socket: _Int,
    parent: _Int,
    min_shared_bytes: _Int,
    most_jobs: _Int,
    functions: _WorkerFunctions,
) -> None: ...
def keep_numpy_allocator_active() -> None: ...
