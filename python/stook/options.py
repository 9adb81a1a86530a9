"""How worker processes, or threads, are started and how much they may hold."""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

__all__ = ["MultiprocessingOptions", "MultithreadingOptions"]

_START_METHODS = ("forkserver", "spawn", "fork")
_ON_WORKER_DEATH = ("restart", "raise")

# Each worker costs a process, two descriptors and an arena's address space. A larger number is a
# slip of the pen (a batch size in the wrong place) far more often than it is meant.
_MAX_WORKERS = 1024
_MAX_BUFFER = 65_536


def check_int(owner: str, name: str, value: object, lowest: int, highest: int | None = None) -> int:
    """Returns `value` as an `int`, or raises an error that names it and what is allowed.

    Anything that is an integer to Python (`__index__`, so NumPy's integers too) is taken, except
    booleans (Python's `bool`, NumPy 2's `bool`, NumPy 1's `bool_`).

    Raises:
      TypeError: `value` is a boolean or no integer.
      ValueError: it is below `lowest` or above `highest`.
    """
    allowed = f"an int of at least {lowest}" + ("" if highest is None else f", at most {highest}")
    if type(value).__name__ in ("bool", "bool_"):
        raise TypeError(f"{owner}: {name} must be {allowed}, got the bool {value!r}")
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(
            f"{owner}: {name} must be {allowed}, got {_shown(value)} ({type(value).__name__})"
        ) from None
    if number < lowest or (highest is not None and number > highest):
        raise ValueError(f"{owner}: {name} must be {allowed}, got {number}")
    return number


def check_seconds(owner: str, name: str, value: object) -> float | None:
    """Returns a time limit as a `float`, or `None`, or raises an error that says what is allowed.

    Raises:
      TypeError: `value` is a boolean, or no number.
      ValueError: it is not above 0, or not finite.
    """
    if value is None:
        return None
    allowed = "None or a positive, finite number of seconds"
    if type(value).__name__ in ("bool", "bool_") or not isinstance(value, numbers.Real):
        raise TypeError(
            f"{owner}: {name} must be {allowed}, got {_shown(value)} ({type(value).__name__})"
        )
    seconds = float(value)
    if not 0 < seconds < math.inf:
        raise ValueError(f"{owner}: {name} must be {allowed}, got {_shown(value)}")
    return seconds


def check_bool(owner: str, name: str, value: object) -> bool:
    """Returns `value` if it is `True` or `False`, else raises a `TypeError` that names it."""
    if type(value).__name__ in ("bool", "bool_"):
        return bool(value)
    raise TypeError(f"{owner}: {name} must be True or False, got {_shown(value)}")


def _shown(value: object) -> str:
    """The `repr` of a wrong value, short enough for one line."""
    try:
        text = repr(value)
    except Exception:
        return f"a {type(value).__name__}"
    return text if len(text) <= 80 else text[:77] + "..."


def _check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if not isinstance(value, str) or value not in choices:
        allowed = ", ".join(repr(choice) for choice in choices[:-1]) + f" or {choices[-1]!r}"
        error = ValueError if isinstance(value, str) else TypeError
        raise error(f"MultiprocessingOptions: {name} must be {allowed}, got {_shown(value)}")


@dataclass(frozen=True, slots=True)
class MultiprocessingOptions:
    """What a loader needs to know about its worker processes.

    The fields are checked when the object is made, and it cannot be changed afterwards;
    `dataclasses.replace` gives a changed copy. The first three may be given by position.

    Attributes:
      num_workers: Worker processes, 0 to 1024. With 0 everything runs in this process, with the
        same elements, order, random draws and errors.
      per_worker_buffer_size: Finished elements that may wait for the consumer, per worker.
      enable_profiling: Measure where the time goes, and print it at the end of each pass of a
        `DataLoader`; see `DataLoader.profile`. Pools do not look at it.
      start_method: Workers are forked from a server process, which is `"forkserver"` (and
        `"spawn"`, which means the same): a fresh interpreter; or `"fork"`: a fork of this process,
        which inherits everything and starts faster.
      memory_limit: Bytes that elements handed over may hold in shared memory before workers pause
        and further elements are copied out of it. `None`: a quarter of what the machine, or its
        cgroup, has left.
      min_shared_bytes: Arrays smaller than this many bytes travel inside the element's envelope, by
        value.
      on_worker_death: `"restart"`: a fresh worker runs the lost job again, the same job at most
        `max_restarts` times, then `WorkerDied` is that element's error. `"raise"`: it is the
        element's error at once.
      max_restarts: How often a job that was lost with its worker is run again.
      worker_init_fn: Called as `worker_init_fn(worker_index, worker_count)` in each worker, before
        any data. Like torch's, it is not called with `num_workers=0`, where there is no worker.
      threads_per_worker: OpenMP and BLAS threads in each worker.
      timeout: Seconds that one item may take: fetching it from the source and its transforms. Its
        worker is then killed, and its error is `ElementTimeout`. With `num_workers=0` nobody can
        stop it: it is looked at when it is done. `None`: no limit. Of loaders alone: pools,
        executors and pure functions refuse it.

    Raises:
      TypeError: A field is of the wrong type; booleans do not count as integers.
      ValueError: A field has a value that is not allowed. Both messages name the field, the value
        and what is allowed.

    Example:
      >>> options = MultiprocessingOptions(2, 8)
      >>> options.num_workers, options.per_worker_buffer_size, options.start_method
      (2, 8, 'forkserver')
      >>> MultiprocessingOptions(2, 0)
      Traceback (most recent call last):
        ...
      ValueError: MultiprocessingOptions: per_worker_buffer_size must be an int of at least 1,
      at most 65536, got 0
    """

    num_workers: int = 0
    per_worker_buffer_size: int = 1
    enable_profiling: bool = False
    start_method: str = field(default="forkserver", kw_only=True)
    memory_limit: int | None = field(default=None, kw_only=True)
    min_shared_bytes: int = field(default=4096, kw_only=True)
    on_worker_death: str = field(default="restart", kw_only=True)
    max_restarts: int = field(default=2, kw_only=True)
    worker_init_fn: Callable[[int, int], Any] | None = field(default=None, kw_only=True)
    threads_per_worker: int = field(default=1, kw_only=True)
    timeout: float | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        self._int("num_workers", 0, _MAX_WORKERS)
        self._int("per_worker_buffer_size", 1, _MAX_BUFFER)
        profiling = check_bool("MultiprocessingOptions", "enable_profiling", self.enable_profiling)
        object.__setattr__(self, "enable_profiling", profiling)
        _check_choice("start_method", self.start_method, _START_METHODS)
        if self.memory_limit is not None:
            self._int("memory_limit", 1)
        self._int("min_shared_bytes", 1)
        _check_choice("on_worker_death", self.on_worker_death, _ON_WORKER_DEATH)
        self._int("max_restarts", 0)
        if self.worker_init_fn is not None and not callable(self.worker_init_fn):
            raise TypeError(
                "MultiprocessingOptions: worker_init_fn must be None or a callable that takes"
                f" (worker_index, worker_count), got {_shown(self.worker_init_fn)}"
            )
        self._int("threads_per_worker", 1)
        seconds = check_seconds("MultiprocessingOptions", "timeout", self.timeout)
        object.__setattr__(self, "timeout", seconds)

    def _int(self, name: str, lowest: int, highest: int | None = None) -> None:
        """Checks an integer field and stores it as a plain `int`."""
        number = check_int("MultiprocessingOptions", name, getattr(self, name), lowest, highest)
        object.__setattr__(self, name, number)


@dataclass(frozen=True, slots=True)
class MultithreadingOptions:
    """Threads of this process in place of worker processes, for code that releases the GIL.

    A `DataLoader` with these gives the same elements, order and errors as with worker processes.
    Nothing crosses a process boundary: nothing is pickled or copied, the source and the transforms
    are the program's own objects, which several threads use at the same time, and elements lie in
    ordinary memory.

    What user code draws from the global generators (`random`, `numpy.random`, torch's) is *not* the
    same: all threads share them, so they are not seeded, and a `RuntimeWarning` tells when they are
    seen to be used. What it draws from `stook.rng()` is the same everywhere.

    A thread cannot be ended from outside: one that is stuck in user code goes on after `close()`,
    which waits for a second, and ends with the program.

    Attributes:
      num_threads: Threads, 0 to 1024. With 0 everything runs in the thread that iterates, as with
        `num_workers=0`.
      per_thread_buffer_size: Finished elements that may wait for the consumer, per thread.
      timeout: Seconds that one item may take; then its error is `ElementTimeout`. The thread goes
        on, since it cannot be ended, and another one takes its place. `None`: no limit.
      enable_profiling: As for `MultiprocessingOptions`.

    Raises:
      TypeError: A field is of the wrong type; booleans do not count as integers.
      ValueError: A field has a value that is not allowed. Both messages name the field, the value
        and what is allowed.

    Example:
      >>> import stook, zlib
      >>> texts = [b"a" * 100_000, b"b" * 100_000, b"c" * 100_000]
      >>> loader = stook.DataLoader(texts, zlib.crc32, options=MultithreadingOptions(2))
      >>> list(loader) == [zlib.crc32(text) for text in texts]
      True
    """

    num_threads: int
    per_thread_buffer_size: int = 1
    timeout: float | None = field(default=None, kw_only=True)
    enable_profiling: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        owner = "MultithreadingOptions"
        for name, lowest, highest in (
            ("num_threads", 0, _MAX_WORKERS),
            ("per_thread_buffer_size", 1, _MAX_BUFFER),
        ):
            number = check_int(owner, name, getattr(self, name), lowest, highest)
            object.__setattr__(self, name, number)
        object.__setattr__(self, "timeout", check_seconds(owner, "timeout", self.timeout))
        profiling = check_bool(owner, "enable_profiling", self.enable_profiling)
        object.__setattr__(self, "enable_profiling", profiling)
