"""SPDL on Stook: its pipelines in a process of their own, and shared memory for its own processes.

SPDL itself is imported when something is called, and not before.
"""

from __future__ import annotations

import concurrent.futures
import contextvars
import copyreg
import dataclasses
import importlib
import inspect
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

from . import _core
from ._deliveries import array_bytes
from ._spdl_arena import Arena, ArenaReader, ArenaWriter, arena
from .executor import ProcessPoolExecutor
from .subprocess_iterator import SubprocessIterable, iterate_in_subprocess

__all__ = ["Arena", "ArenaReader", "ArenaWriter", "arena", "run_pipeline_in_subprocess"]


def run_pipeline_in_subprocess(
    config_or_builder: Any,
    /,
    *,
    num_threads: int,
    max_failures: Any = -1,
    report_stats_interval: float = -1,
    queue_class: Any = None,
    task_hook_factory: Any = None,
    background_tasks: Any = None,
    use_thread_output_queue: bool | None = None,
    buffer_size: int = 3,
    initializer: Callable[[], Any] | Sequence[Callable[[], Any]] | None = None,
    mp_context: Any = None,
    timeout: float | None = None,
    daemon: bool = False,
    arena: Any = None,
) -> SubprocessIterable[Any]:
    """Runs an SPDL pipeline, with its threads, in a process of its own, and iterates its results.

    The signature and the meaning are those of `spdl.pipeline.run_pipeline_in_subprocess`. Arrays
    arrive in shared memory instead of being pickled, a process that dies is noticed at once, and
    an error is raised as itself, after which one may iterate again.

    The process is started by the first `iter()` and kept for the next; each builds the pipeline
    anew, unless its source is continuous: then it goes on between the iterations. Leaving an
    iteration early stops its pipeline. The random state of `random`, of NumPy's global generator
    and of torch's CPU generator is that of this process at this call.

    A stage's `ThreadPoolExecutor` is made again in the process. So is a `ProcessPoolExecutor`, the
    standard one too, as a `stook.ProcessPoolExecutor`, whose workers end with the process.

    Args:
      config_or_builder: A `PipelineConfig`, or a `PipelineBuilder` that has a sink.
      num_threads: Of the pipeline, for its stages that have no executor.
      max_failures: See SPDL's `build_pipeline`, as for the next five. With its default of -1, items
        that fail are left out and logged.
      report_stats_interval: See there.
      queue_class: See there.
      task_hook_factory: See there.
      background_tasks: See there.
      use_thread_output_queue: See there; `None`: unless there is a `queue_class`. With it, results
        that are handed over are sooner nobody else's, and so more of them are moved.
      buffer_size: Results that are sent ahead, beside those in the pipeline's sink.
      initializer: Called in the process before all else; or several, one after the other.
      mp_context: The start method: a context of `multiprocessing`, or its name. `None` is
        `"forkserver"`.
      timeout: Seconds that a result may keep the caller waiting; after that the process is killed.
      daemon: Makes no difference.
      arena: Not needed: closed and unlinked at once, as SPDL would do in the end.

    Returns:
      A `stook.SubprocessIterable`; see `stook.iterate_in_subprocess` for what iterating raises.

    Raises:
      ImportError: SPDL is not installed.
      TypeError: The pipeline or another argument has the wrong type.
      ValueError: An executor of a stage has been used; an argument is out of range.

    Example::

      from spdl.pipeline import PipelineBuilder

      config = (
          PipelineBuilder()
          .add_source(paths)
          .pipe(load, concurrency=4)
          .aggregate(32)
          .pipe(np.stack)
          .add_sink(3)
          .get_config()
      )
      batches = stook.spdl.run_pipeline_in_subprocess(config, num_threads=4)
      for epoch in range(10):
          for batch in batches:  # arrived in shared memory
              train_step(batch)
    """
    _spdl_pipeline()
    config = config_or_builder
    if not isinstance(config, importlib.import_module("spdl.pipeline.defs").PipelineConfig):
        if not hasattr(config, "get_config"):
            raise TypeError(
                "run_pipeline_in_subprocess: the pipeline must be a PipelineConfig or a"
                f" PipelineBuilder of spdl.pipeline, got {config!r}"
            )
        config = config.get_config()
    if arena is not None:
        arena.close()
        arena.unlink()
    settings = {
        "num_threads": num_threads,
        "max_failures": max_failures,
        "report_stats_interval": report_stats_interval,
        "queue_class": queue_class,
        "task_hook_factory": task_hook_factory,
        "background_tasks": background_tasks,
        "use_thread_output_queue": (
            queue_class is None if use_thread_output_queue is None else use_thread_output_queue
        ),
    }
    initializers: list[Callable[[], Any]] = _restorers()
    if callable(initializer):
        initializers.append(initializer)
    elif initializer is not None:
        initializers.extend(initializer)
    return iterate_in_subprocess(
        partial(_Runs, _with_executors(config, _describe), settings),
        buffer_size=buffer_size,
        initializer=initializers,
        mp_context=mp_context,
        timeout=timeout,
        daemon=daemon,
    )


def _spdl_pipeline() -> Any:
    try:
        return importlib.import_module("spdl.pipeline")
    except ImportError as error:
        raise ImportError(
            "stook.spdl needs SPDL, which is not installed: pip install spdl"
        ) from error


# ---- random numbers ------------------------------------------------------------------------------


def _restorers() -> list[Callable[[], Any]]:
    """Set the generators in the process to what they are here, of what is in use here."""
    restorers: list[Callable[[], Any]] = []
    for name, get, put in (
        ("random", "getstate", "setstate"),
        ("numpy.random", "get_state", "set_state"),
        ("torch", "get_rng_state", "set_rng_state"),
    ):
        module = sys.modules.get(name)
        if module is not None:
            restorers.append(partial(_restore, name, put, getattr(module, get)()))
    return restorers


def _restore(module: str, put: str, state: Any) -> None:
    getattr(importlib.import_module(module), put)(state)


# ---- executors -----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _ExecutorToBe:
    """Crosses in the place of an executor, and is one again in the process."""

    kind: type[concurrent.futures.Executor]
    settings: dict[str, Any]


def _describe(executor: Any) -> Any:
    """Of an executor that cannot be pickled, what to make it of."""
    kind = type(executor)
    if kind is concurrent.futures.ThreadPoolExecutor:
        used = bool(executor._threads)
        names = {"max_workers": "_max_workers", "thread_name_prefix": "_thread_name_prefix"}
        if hasattr(executor, "_initializer"):  # up to Python 3.13
            names |= {"initializer": "_initializer", "initargs": "_initargs"}
    elif kind is ProcessPoolExecutor:
        used = executor._pool is not None
        names = {
            "max_workers": "_max_workers",
            "initializer": "_initializer",
            "initargs": "_initargs",
            "max_tasks_per_child": "_max_tasks_per_child",
            "options": "_options",
        }
    elif kind is concurrent.futures.ProcessPoolExecutor:
        used = bool(executor._processes)
        names = {
            "max_workers": "_max_workers",
            "initializer": "_initializer",
            "initargs": "_initargs",
        }
        kind = ProcessPoolExecutor
    else:
        return executor
    if used:
        raise ValueError(
            f"a stage's {type(executor).__name__} has been used here already; give the pipeline one"
            " that has not, for it is made again in the subprocess"
        )
    return _ExecutorToBe(kind, {name: getattr(executor, at) for name, at in names.items()})


def _with_executors(
    part: Any, change: Callable[[Any], Any], changed: dict[int, Any] | None = None
) -> Any:
    """The part of a configuration, with each stage's executor changed; one remains one."""
    changed = {} if changed is None else changed
    if isinstance(part, (concurrent.futures.Executor, _ExecutorToBe)):
        if id(part) not in changed:
            changed[id(part)] = change(part)
        return changed[id(part)]
    if type(part) in (list, tuple):
        parts = [_with_executors(each, change, changed) for each in part]
        same = all(new is old for new, old in zip(parts, part, strict=True))
        return part if same else type(part)(parts)
    if dataclasses.is_dataclass(part) and type(part).__module__.startswith("spdl.pipeline."):
        values = {field.name: getattr(part, field.name) for field in dataclasses.fields(part)}
        new = {key: _with_executors(value, change, changed) for key, value in values.items()}
        if "executor" in new and new["executor"] is None and not _is_async(new.get("op")):
            new["executor"] = change(None)
        if all(new[key] is value for key, value in values.items()):
            return part
        changed_part: Any = part
        return dataclasses.replace(changed_part, **new)
    return part


def _is_async(op: Any) -> bool:
    return any(
        inspect.iscoroutinefunction(each) or inspect.isasyncgenfunction(each)
        for each in (op, getattr(op, "__call__", None))  # noqa: B004
    )


# ---- in the process ------------------------------------------------------------------------------


class _Threads:
    """Makes the executors. NumPy arrays that their threads make are born in shared memory.

    They are if the worker's handler is NumPy's in the thread's context, which is not inherited from
    the main thread. Any thread may call the handler, which is at work while a result is waited for;
    these threads ask for it at all times, since the pipeline is ahead of its consumer.
    """

    def __init__(self, config: Any, num_threads: int) -> None:
        self._variables = [
            (variable, value)
            for variable, value in contextvars.copy_context().items()
            if variable.name == "current_allocator"  # NumPy's
        ]
        self._num_threads = num_threads
        self._default: concurrent.futures.ThreadPoolExecutor | None = None
        # Stages that SPDL sends on to processes of their own cannot take threads along.
        self._is_sent = any(hasattr(stage, "target") for stage in config.pipes)

    def make(self, executor: Any) -> Any:
        if executor is None:
            if self._is_sent:
                return None
            if self._default is None:
                self._default = concurrent.futures.ThreadPoolExecutor(
                    self._num_threads, "stook_spdl", self._begin
                )
            return self._default
        if not isinstance(executor, _ExecutorToBe):
            return executor
        if executor.kind is not concurrent.futures.ThreadPoolExecutor:
            return executor.kind(**executor.settings)
        first, arguments = executor.settings.get("initializer"), executor.settings.get("initargs")
        settings = executor.settings | {
            "initializer": self._begin,
            "initargs": (first, *(arguments or ())),
        }
        return executor.kind(**settings)

    def _begin(self, first: Callable[..., Any] | None = None, *arguments: Any) -> None:
        """The initializer of a thread."""
        for variable, value in self._variables:
            variable.set(value)
        _core.keep_numpy_allocator_active()
        if first is not None:
            first(*arguments)


class _Runs:
    """Runs of a pipeline, one for each `iter()`; or one that goes on, if its source is continuous.

    It yields what it gets without holding on to it.
    """

    def __init__(self, config: Any, settings: dict[str, Any]) -> None:
        pipeline = _spdl_pipeline()
        copyreg.pickle(pipeline.PipelineFailure, _reduce_failure)
        self._config = _with_executors(config, _Threads(config, settings["num_threads"]).make)
        self._settings = settings
        self._build = pipeline.build_pipeline
        self._kept: Any = None
        if _is_continuous(self._config):
            self._kept = self._build(self._config, **settings)
            self._kept.start()

    def __iter__(self) -> Iterator[Any]:
        return _LetGoOf(self._results())

    def _results(self) -> Iterator[Any]:
        if self._kept is not None:
            yield from self._kept
            return
        pipeline = self._build(self._config, **self._settings)
        with pipeline.auto_stop():
            yield from pipeline


class _LetGoOf:
    """Results of a pipeline, each when SPDL does not refer to it any more.

    SPDL's event loop has put a result into its queue a moment before it drops it itself; what is
    handed over in that moment would be copied. Copying takes about as long as is waited here at
    most. Where that is in vain, because something keeps results, the next ones are not waited for,
    twice as many of them each time.
    """

    def __init__(self, results: Iterator[Any]) -> None:
        self._results = results
        self._in_vain = 0
        self._unwaited = 0

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        result = next(self._results)
        if sys.getrefcount(result) <= _OURS:
            return result
        if self._unwaited > 0:
            self._unwaited -= 1
            return result
        size = array_bytes(result)
        if size < _FEWEST_BYTES:
            return result
        end = time.perf_counter() + size * _SECONDS_A_BYTE
        while sys.getrefcount(result) > _OURS:
            if time.perf_counter() > end:
                self._in_vain = min(self._in_vain + 1, 8)
                self._unwaited = 1 << self._in_vain
                return result
            time.sleep(_STEP)  # in which the loop's thread has its turn
        self._in_vain = 0
        return result


# References to an object that one variable alone holds, as `sys.getrefcount` counts them.
_OURS = 2
# Smaller results are copied in less time than a thread takes to have its turn.
_FEWEST_BYTES = 1 << 18
_SECONDS_A_BYTE = 1e-9
_STEP = 5e-5


def _is_continuous(config: Any) -> bool:
    inner: Iterable[Any] | None = getattr(config.src, "pipeline_configs", None)
    if inner is not None:
        return any(_is_continuous(each) for each in inner)
    return bool(getattr(config.src, "continuous", False))


def _reduce_failure(failure: Any) -> tuple[Any, ...]:
    # An error that is pickled loses its cause, which is what the stage has raised.
    errors = tuple(failure.exceptions)
    causes = tuple(error.__cause__ for error in errors)
    return _make_failure, (str(failure.args[0]), errors, causes)


def _make_failure(
    message: str, errors: tuple[Exception, ...], causes: tuple[BaseException | None, ...]
) -> BaseException:
    """SPDL's error takes the stages' names, which it has put into notes of the errors."""
    for error, cause in zip(errors, causes, strict=True):
        error.__cause__ = cause
    kind = _spdl_pipeline().PipelineFailure
    failure: BaseException
    if sys.version_info >= (3, 11):
        failure = ExceptionGroup.__new__(kind, message, errors)  # noqa: F821 (a newer built-in)
        return failure
    failure = kind.__new__(kind, message)
    failure.exceptions = errors  # type: ignore[attr-defined]
    return failure
