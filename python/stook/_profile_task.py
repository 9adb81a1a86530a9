"""What workers run with `enable_profiling`: the same task, with each of its functions timed."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from . import _core
from ._profile_memory import COLLATE, ELEMENT, SOURCE, TRANSFORMS
from ._task import BoundTask, LoaderTask
from ._worker_sources import SourceTask
from .collate import Assembler

__all__ = ["bind", "name_of", "stage_names"]


def bind(task: LoaderTask, where: str) -> BoundTask:
    """As `task.bind(where)`."""
    core = task.profile.core
    if where == "worker":
        core.serve_workers()
    timed = _TimedSourceTask(task, core) if isinstance(task, SourceTask) else _TimedTask(task, core)
    run: BoundTask = _core.Stage(core, ELEMENT, timed.bind(where))
    return run


class _TimedTask(LoaderTask):
    """A task whose parts are timed ones.

    They are C++ objects that call, and hold nothing meanwhile: no frame is between what user code
    returns and who takes it, so what is handed over by moving it is the same as without them.
    """

    __slots__ = ("assembler",)

    def __init__(self, task: LoaderTask, core: Any, untimed: int = 0) -> None:
        super().__init__(
            _timed_source(task.source, core),
            [
                *task.transforms[:untimed],
                *(
                    _core.Stage(core, TRANSFORMS + place, transform)
                    for place, transform in enumerate(task.transforms[untimed:])
                ),
            ],
            task.batch_size,
            None if task.collate is None else _core.Stage(core, COLLATE, task.collate),
            task.seed,
            task.policy,
            task.shard,
        )
        self.assembler: Any = functools.partial(_TimedAssembler, core)


class _TimedSourceTask(SourceTask):
    """The same of a source that is read where the elements are made."""

    __slots__ = ("_core",)

    def __init__(self, task: SourceTask, core: Any) -> None:
        super().__init__(
            task.source,
            task.transforms,
            task.batch_size,
            task.collate,
            task.seed,
            task.policy,
            shard=task.shard,
            drop_remainder=task.drop_remainder,
        )
        self._core = core

    def task_of_items(self, transforms: Sequence[Callable[[Any], Any]]) -> LoaderTask:
        # In front of the user's there may be one that raises what was raised when items were drawn.
        untimed = len(transforms) - len(self.transforms)
        return _TimedTask(super().task_of_items(transforms), self._core, untimed)

    def drawing(self, take: Callable[..., Any]) -> Callable[..., Any]:
        timed: Callable[..., Any] = _core.Stage(self._core, SOURCE, take)
        return timed


def _timed_source(source: Any, core: Any) -> Any:
    if source is None:
        return None
    get_all = getattr(source, "__getitems__", None)
    if get_all is None:
        return _core.Stage(core, SOURCE, source)
    timed = _SourceOfBatches(core, SOURCE, source)
    timed.get_all = _core.Stage(core, SOURCE, get_all)
    return timed


class _SourceOfBatches(_core.Stage):
    get_all: Callable[[list[int]], Any]

    def __getitems__(self, indices: list[int]) -> Any:
        return self.get_all(indices)


class _TimedAssembler:
    """An `Assembler` whose time is counted as that of the batch's collating."""

    __slots__ = ("_inner", "add", "finish")

    def __init__(self, core: Any, indices: Sequence[int], *capacity: int) -> None:
        self._inner = Assembler(indices, *capacity)
        self.add = _core.Stage(core, COLLATE, self._inner.add, 0)
        self.finish = _core.Stage(core, COLLATE, self._inner.finish)

    def __len__(self) -> int:
        return len(self._inner)


def stage_names(task: LoaderTask) -> dict[int, str]:
    """The stages of a task that are the user's, by number, as the user knows them."""
    names = {SOURCE: "source"}
    seen: dict[str, int] = {}
    for place, transform in enumerate(task.transforms):
        name = name_of(transform)
        seen[name] = seen.get(name, 0) + 1
        names[TRANSFORMS + place] = name if seen[name] == 1 else f"{name} #{seen[name]}"
    if task.batch_size is not None:
        names[COLLATE] = "assemble" if task.collate is None else f"collate {name_of(task.collate)}"
    return names


def name_of(function: Any) -> str:
    """The name of a function, as the user knows it."""
    while isinstance(function, functools.partial):
        function = function.func
    name = getattr(function, "__qualname__", None)
    if not isinstance(name, str):
        name = type(function).__qualname__
    return name.rsplit("<locals>.", 1)[-1]
