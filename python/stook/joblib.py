"""joblib on Stook's workers: `stook.joblib.register()`, then `parallel_config(backend="stook")`.

joblib itself is imported by `register`, and not before.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .executor import ProcessPoolExecutor
from .options import MultiprocessingOptions

if TYPE_CHECKING:
    from ._futures import TaskFuture

__all__ = ["register"]

# What joblib.Parallel tells every backend, and what only matters to those that it comes with.
_OF_OTHER_BACKENDS = frozenset(
    {"context", "max_nbytes", "mmap_mode", "prefer", "require", "temp_folder", "verbose"}
)
_OWN = frozenset({"initializer", "initargs", "options"})


def register(*, make_default: bool = False) -> None:
    """Makes "stook" a backend of joblib, beside its own "loky", "threading", "multiprocessing".

    Functions and results cross as with `stook.ProcessPoolExecutor`: arrays without being pickled.
    The workers of a backend are started at its first call and kept as long as the backend, which
    is to the end of a `with parallel_config(...)`. In a worker, `joblib.Parallel` uses threads, and
    below these runs in place, as with "loky".

    `parallel_config(backend="stook", ...)` and `Parallel(backend="stook", ...)` take, beside what
    they take with "loky" (`n_jobs`, `inner_max_num_threads`):

    - `initializer`, `initargs`: called in each worker before its first task.
    - `options`: a `stook.MultiprocessingOptions`; its `num_workers` and `threads_per_worker` are
      not looked at.

    Args:
      make_default: Use it also where no backend is asked for.

    Raises:
      ImportError: joblib is not installed, or older than 1.3.

    Example::

      import stook.joblib
      from joblib import Parallel, delayed, parallel_config

      stook.joblib.register()
      with parallel_config(backend="stook", n_jobs=2):
          Parallel()(delayed(pow)(i, 2) for i in range(4))  # [0, 1, 4, 9]
    """
    try:
        joblib: Any = importlib.import_module("joblib")
        backends: Any = importlib.import_module("joblib._parallel_backends")
    except ImportError as error:
        raise ImportError("stook.joblib needs joblib: pip install joblib") from error
    base = backends.ParallelBackendBase
    if not hasattr(base, "supports_retrieve_callback"):
        raise ImportError(
            f"stook.joblib needs joblib 1.3 or newer, and this is {joblib.__version__}:"
            " pip install --upgrade joblib"
        )
    # Made here: its bases are not there before.
    kind = type("StookBackend", (_Backend, backends.AutoBatchingMixin, base), {})
    joblib.register_parallel_backend("stook", kind, make_default=make_default)


class _Backend:
    """What joblib asks of a backend; the rest is in its base classes.

    joblib uses one backend for the `Parallel` calls of a `with parallel_config(...)`, one after the
    other; `submit` is also called by the thread that runs callbacks.
    """

    supports_inner_max_num_threads = True
    supports_retrieve_callback = True

    # Of the base classes.
    inner_max_num_threads: int | None
    nesting_level: int | None
    in_main_thread: Callable[[], bool]
    reset_batch_stats: Callable[[], None]
    _prepare_worker_env: Callable[..., dict[str, str]]

    def __init__(
        self,
        nesting_level: int | None = None,
        inner_max_num_threads: int | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(  # type: ignore[call-arg]
            nesting_level=nesting_level, inner_max_num_threads=inner_max_num_threads
        )
        _check(settings)
        self._settings = settings
        self._executor: ProcessPoolExecutor | None = None
        self._made_for: tuple[int, dict[str, str], dict[str, Any]] = (0, {}, {})
        self.parallel: Any = None

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """How many workers `n_jobs` is: -1 one for each processor, -2 one less, and so on."""
        if n_jobs == 0:
            raise ValueError("n_jobs == 0 in Parallel has no meaning")
        if n_jobs is None:
            return 1
        if self.nesting_level and not self.in_main_thread():
            return 1  # below threads that run in parallel already
        if n_jobs < 0:
            joblib: Any = importlib.import_module("joblib")
            return max(int(joblib.cpu_count()) + 1 + n_jobs, 1)
        return n_jobs

    def configure(self, n_jobs: int = 1, parallel: Any = None, **settings: Any) -> int:
        """Gets workers ready; returns how many."""
        n_jobs = self.effective_n_jobs(n_jobs)
        if n_jobs == 1:
            backends: Any = importlib.import_module("joblib._parallel_backends")
            sequential = backends.SequentialBackend(nesting_level=self.nesting_level)
            raise backends.FallbackToBackend(sequential)
        settings = {
            name: value for name, value in settings.items() if name not in _OF_OTHER_BACKENDS
        }
        _check(settings)
        self._make_executor(n_jobs, {**self._settings, **settings})
        self.parallel = parallel
        return n_jobs

    def _make_executor(self, n_jobs: int, settings: dict[str, Any]) -> None:
        environment = self._prepare_worker_env(n_jobs=n_jobs)
        if self._executor is not None:
            # By identity: what is equal to what is the user's matter.
            last_n_jobs, last_environment, last = self._made_for
            if (
                (n_jobs, environment) == (last_n_jobs, last_environment)
                and all(settings.get(name) is last.get(name) for name in _OWN)
                and not self._executor._broken
            ):
                return
            self._executor.shutdown(wait=False)
        options = settings.get("options") or MultiprocessingOptions()
        threads = self.inner_max_num_threads or _number(environment["OMP_NUM_THREADS"])
        self._executor = ProcessPoolExecutor(
            n_jobs,
            initializer=_set_up,
            initargs=(environment, settings.get("initializer"), settings.get("initargs", ())),
            options=dataclasses.replace(
                options, threads_per_worker=threads or options.threads_per_worker
            ),
        )
        self._made_for = n_jobs, environment, settings

    def submit(
        self, func: Callable[[], Any], callback: Callable[[TaskFuture], Any] | None = None
    ) -> TaskFuture:
        """Has `func()` called in a worker."""
        assert self._executor is not None
        # As an argument: arrays in it are then not pickled.
        future = self._executor.submit(_call, func)
        if callback is not None:
            future.add_done_callback(callback)
        return future

    apply_async = submit  # its name before joblib 1.5

    def retrieve_result_callback(self, out: TaskFuture) -> Any:
        """What came of a call of `submit`, which is over."""
        return out.result()

    def terminate(self) -> None:
        """At the end of each call. Workers are kept for the next one."""
        self.reset_batch_stats()

    def abort_everything(self, ensure_ready: bool = True) -> None:
        """Ends the workers, whatever they do: a task has failed, and nobody wants the others."""
        executor, self._executor = self._executor, None
        if executor is not None:
            executor.kill_workers()
        if ensure_ready:
            _, _, settings = self._made_for
            self.configure(n_jobs=self.parallel.n_jobs, parallel=self.parallel, **settings)


def _check(settings: dict[str, Any]) -> None:
    unknown = sorted(set(settings) - _OWN)
    if unknown:
        raise TypeError(
            f"the joblib backend 'stook' has no setting {unknown[0]!r}; it has {sorted(_OWN)}"
        )


def _number(text: str) -> int | None:
    """The first number of `OMP_NUM_THREADS`, which may be a list of them."""
    with contextlib.suppress(ValueError):
        return max(int(text.split(",")[0]), 1)
    return None


def _set_up(
    environment: dict[str, str], initializer: Callable[..., Any] | None, initargs: tuple[Any, ...]
) -> None:
    """In each worker, before its first task."""
    os.environ.update(environment)
    if initializer is not None:
        initializer(*initargs)


def _call(function: Callable[[], Any]) -> Any:
    return function()
