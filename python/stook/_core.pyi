"""The C++ side of stook. Private: what people import is the package stook."""

from collections.abc import Iterator
from os import PathLike
from typing import Any, Protocol, SupportsIndex, SupportsInt, TypeAlias

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Buffer, disjoint_base

__version__: str

_Int: TypeAlias = SupportsInt | SupportsIndex
_Source: TypeAlias = str | bytes | PathLike[str] | PathLike[bytes] | Buffer

# ---- bindings/index_plan.cpp

class _Pybind11Type(type): ...

class IndexPlan(metaclass=_Pybind11Type):
    """Iterator of (epoch, position, index), or with a batch size of (epoch, position, indices)."""

    def __init__(
        self,
        length: _Int,
        batch_size: _Int = 0,
        drop_remainder: bool = False,
        shuffle_seed: _Int | None = None,
        first_epoch: _Int = 0,
        num_epochs: _Int | None = 1,
    ) -> None: ...
    def __iter__(self) -> IndexPlan: ...
    def __next__(self) -> tuple[int, int, int] | tuple[int, int, tuple[int, ...]]: ...
    def __len__(self) -> int: ...
    @property
    def jobs_per_epoch(self) -> int: ...

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
        /,
    ) -> BaseException: ...
    def encode_unsendable(self, error: BaseException, position: int, /) -> bytes: ...
    def exhausted_error(self, requested: int, /) -> BaseException: ...

class LeaseLedger(metaclass=_Pybind11Type):
    """What of each worker's memory is still leased; outlives the pool."""

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
    def worker_pids(self) -> list[int]: ...

def memory_left() -> int: ...

# ---- bindings/result_iterator.cpp

@disjoint_base
class ResultIterator:
    """ResultIterator(pool, jobs, ordered): results of jobs, as they are asked for."""

    def __new__(
        cls, pool: WorkerPool, jobs: IndexPlan | Iterator[tuple[int, int, Any]], ordered: bool
    ) -> ResultIterator: ...
    def __iter__(self) -> ResultIterator: ...
    def __next__(self) -> Any: ...
    def close(self) -> None: ...
    # elements, bytes, moved, copied, errors
    def counts(self) -> tuple[int, int, int, int, int]: ...

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

def serve(
    socket: _Int, parent: _Int, min_shared_bytes: _Int, functions: _WorkerFunctions
) -> None: ...
