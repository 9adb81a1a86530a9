"""Stook: worker processes that hand over arrays instead of pickling them.

What is made in a worker lies in shared memory from the start, and the consumer picks it up where it
stands.

Example:
  >>> import numpy as np
  >>> import stook
  >>> loader = stook.DataLoader(range(4), lambda i: np.full((2, 2), i), batch_size=2)
  >>> [batch.shape for batch in loader]
  [(2, 2, 2), (2, 2, 2)]
"""

import sys as _sys
from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

if not _sys.platform.startswith("linux"):
    raise ImportError(
        f"stook works on Linux only, because it stands on memfd, eventfd and pidfd; this is"
        f" {_sys.platform}."
    )

from . import io
from ._core import __version__, is_shared
from ._element_errors import SKIP
from ._iterator import LoaderIterator
from ._threads_rng import rng
from .errors import (
    DecodeError,
    ElementError,
    ElementTimeout,
    PoolBroken,
    RemoteError,
    SharedMemoryExhausted,
    StookError,
    TooManyErrors,
    WorkerDied,
)
from .executor import ProcessPoolExecutor
from .loader import DataLoader
from .options import MultiprocessingOptions, MultithreadingOptions
from .pool import Pool
from .profile import CopyProfile, LoaderProfile, StageProfile
from .pure import PureAsyncFunction, PureFunction, pure
from .recommend import Recommendation, recommend
from .sampler import WeightedSampler
from .shared_memory_array import (
    SharedMemoryArray,
    SharedMemoryArrayMetadata,
    copy_to_shared,
    open_from_shared,
    unlink_shared,
)
from .stats import LoaderStats, WorkerMemory
from .subprocess_iterator import (
    SubprocessIterable,
    SubprocessIterator,
    iterate_in_subprocess,
)
from .threads import ThreadPool
from .worker_info import WorkerInfo, worker_info

if _TYPE_CHECKING:
    from . import vision

__all__ = [
    "SKIP",
    "CopyProfile",
    "DataLoader",
    "DecodeError",
    "ElementError",
    "ElementTimeout",
    "LoaderIterator",
    "LoaderProfile",
    "LoaderStats",
    "MultiprocessingOptions",
    "MultithreadingOptions",
    "Pool",
    "PoolBroken",
    "ProcessPoolExecutor",
    "PureAsyncFunction",
    "PureFunction",
    "Recommendation",
    "RemoteError",
    "SharedMemoryArray",
    "SharedMemoryArrayMetadata",
    "SharedMemoryExhausted",
    "StageProfile",
    "StookError",
    "SubprocessIterable",
    "SubprocessIterator",
    "ThreadPool",
    "TooManyErrors",
    "WeightedSampler",
    "WorkerDied",
    "WorkerInfo",
    "WorkerMemory",
    "__version__",
    "copy_to_shared",
    "io",
    "is_shared",
    "iterate_in_subprocess",
    "open_from_shared",
    "pure",
    "recommend",
    "rng",
    "unlink_shared",
    "vision",
    "worker_info",
]


def __getattr__(name: str) -> _Any:
    if name == "vision":  # what not every program needs is imported when it is asked for
        import importlib

        return importlib.import_module(".vision", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
