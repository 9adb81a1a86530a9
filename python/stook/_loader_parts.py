"""What a loader is put together from: its arguments, checked; what it deals; who makes elements."""

from __future__ import annotations

import importlib
import numbers
from collections.abc import Callable
from typing import Any

from ._drawn_jobs import DrawnDealing, SamplerDealing
from ._element_errors import Policy
from ._inline import InlinePool
from ._jobs import Dealing, IndexedDealing, Plan
from ._sharded_jobs import ShardedDealing
from ._source import is_iterator, random_access_length
from ._task import LoaderTask
from ._worker_sources import SourceTask, is_read_in_workers
from .errors import ElementError, StookError
from .options import MultiprocessingOptions, MultithreadingOptions, _shown, check_int

__all__ = [
    "check_collate",
    "check_fill",
    "check_max_errors",
    "check_on_error",
    "check_options",
    "check_sampler",
    "check_shard",
    "check_transform",
    "deal_from",
    "start_pool",
    "task_from",
]

_OWNER = "DataLoader"


def check_options(options: Any) -> MultiprocessingOptions | MultithreadingOptions:
    """The options, with what they need imported."""
    if not isinstance(options, (MultiprocessingOptions, MultithreadingOptions)):
        raise TypeError(
            f"{_OWNER}: options must be a stook.MultiprocessingOptions or a"
            f" stook.MultithreadingOptions, got {_shown(options)};"
            " for n workers pass options=stook.MultiprocessingOptions(num_workers=n)"
        )
    if isinstance(options, MultithreadingOptions):
        from . import _threads_loader  # noqa: F401
    elif options.num_workers > 0:
        # Not in the thread that iterates first: a fork in another one, while that imports, would
        # leave the child an import lock that nobody releases.
        from . import _processes  # noqa: F401
    return options


def check_collate(collate: Any, plan: Plan) -> Callable[[list[Any]], Any] | None:
    """What makes an element of a batch's items, if it is the user's."""
    if collate is not None and not callable(collate):
        raise TypeError(
            f"{_OWNER}: collate must be None or a callable that takes the list of a batch's"
            f" items, got {_shown(collate)}"
        )
    if plan.batch_size is None and (plan.drop_remainder or collate is not None):
        name = "drop_remainder" if plan.drop_remainder else "collate"
        raise ValueError(f"{_OWNER}: {name} is about batches; it needs batch_size")
    return collate  # type: ignore[no-any-return]


def check_sampler(sampler: Any, plan: Plan) -> None:
    """Whether a sampler goes with the rest."""
    if plan.shuffle and sampler is not None:
        raise ValueError(
            f"{_OWNER}: shuffle=True and a sampler contradict each other, as both say in which"
            " order items come; pass one of them"
        )


def check_fill(plan: Plan, sampler: Any, ordered: bool) -> None:
    """Whether batches can be filled."""
    if not plan.fill:
        return
    if plan.batch_size is None:
        raise ValueError(f"{_OWNER}: fill_batches is about batches; it needs batch_size")
    if not ordered:
        raise ValueError(
            f"{_OWNER}: fill_batches=True needs ordered=True: a batch begins where the one before"
            " it has ended, which is known when that one is there"
        )
    if sampler is not None:
        raise ValueError(
            f"{_OWNER}: fill_batches=True does not go with a sampler: workers find further items by"
            " themselves, and a sampler's indices are known to this process alone; pass"
            " shuffle=True, or a source that has the items in the sampler's order"
        )


def check_transform(transform: Any) -> tuple[Callable[[Any], Any], ...]:
    """The callables to call one after the other."""
    if transform is None:
        return ()
    if callable(transform):
        return (transform,)
    if isinstance(transform, (list, tuple)):
        for place, step in enumerate(transform):
            if not callable(step):
                raise TypeError(
                    f"{_OWNER}: transform[{place}] must be a callable, got {_shown(step)}"
                )
        return tuple(transform)
    raise TypeError(
        f"{_OWNER}: transform must be None, a callable, or a list or tuple of callables, got"
        f" {_shown(transform)}"
    )


def check_on_error(on_error: Any) -> str | Callable[[ElementError], Any]:
    """What becomes of an item that fails."""
    if callable(on_error) or (isinstance(on_error, str) and on_error in ("raise", "skip")):
        return on_error  # type: ignore[no-any-return]
    error = ValueError if isinstance(on_error, str) else TypeError
    raise error(
        f"{_OWNER}: on_error must be 'raise', 'skip', or a callable that takes an ElementError and"
        f" returns a replacement or stook.SKIP, got {_shown(on_error)}"
    )


def check_max_errors(max_errors: Any) -> int | float | None:
    """An `int` is a number of items, a `float` a share of them."""
    if max_errors is None:
        return None
    if type(max_errors).__name__ not in ("bool", "bool_"):
        if isinstance(max_errors, numbers.Integral) and 0 <= int(max_errors) <= 1 << 62:
            return int(max_errors)
        if isinstance(max_errors, numbers.Real) and 0 < float(max_errors) < 1:
            return float(max_errors)
    error = ValueError if isinstance(max_errors, (int, float)) else TypeError
    raise error(
        f"{_OWNER}: max_errors must be None, an int of at least 0 (so many items may fail; at most"
        f" {1 << 62}), or a float above 0 and below 1 (such a share of them may), got"
        f" {_shown(max_errors)}"
    )


# ---- shards --------------------------------------------------------------------------------------


def check_shard(shard: Any) -> tuple[int, int]:
    """Index and count of a shard that is given as such, or by the name of who knows them."""
    if isinstance(shard, str):
        if shard == "torch":
            return _torch_shard()
        if shard == "jax":
            return _jax_shard()
    elif isinstance(shard, (tuple, list)) and len(shard) == 2:
        count = check_int(_OWNER, "the count of shard", shard[1], 1, 1 << 62)
        return check_int(_OWNER, "the index of shard", shard[0], 0, count - 1), count
    message = (
        f"{_OWNER}: shard must be (index, count), 'torch' for the rank in torch.distributed, or"
        f" 'jax' for jax.process_index(), got {_shown(shard)}"
    )
    raise ValueError(message) if isinstance(shard, (str, tuple, list)) else TypeError(message)


def _torch_shard() -> tuple[int, int]:
    try:
        distributed: Any = importlib.import_module("torch.distributed")
    except ImportError as error:
        raise ImportError(
            f"{_OWNER}: shard='torch' needs PyTorch: install it with `pip install torch`, or pass"
            " shard=(index, count)"
        ) from error
    if not distributed.is_available() or not distributed.is_initialized():
        raise StookError(
            f"{_OWNER}: shard='torch' needs a process group, and torch.distributed has none yet:"
            " call torch.distributed.init_process_group() first, or pass shard=(index, count)"
        )
    return distributed.get_rank(), distributed.get_world_size()


def _jax_shard() -> tuple[int, int]:
    try:
        jax: Any = importlib.import_module("jax")
    except ImportError as error:
        raise ImportError(
            f"{_OWNER}: shard='jax' needs JAX: install it with `pip install jax`, or pass"
            " shard=(index, count)"
        ) from error
    return jax.process_index(), jax.process_count()


# ---- what is dealt -------------------------------------------------------------------------------


def deal_from(
    source: Any,
    sampler: Any,
    plan: Plan,
    num_epochs: int | None,
    options: MultiprocessingOptions | MultithreadingOptions,
) -> tuple[Dealing, bool]:
    """What the passes over a source deal, and whether that is indices into it.

    Raises:
      TypeError, ValueError: The source, or the sampler, is none, or does not go with the rest.
    """
    in_workers = is_read_in_workers(source, _OWNER)
    length = None if in_workers else random_access_length(source, _OWNER)
    if length is None and plan.fill:
        raise ValueError(
            f"{_OWNER}: fill_batches=True needs a source with __len__ and __getitem__, as workers"
            f" find further items by themselves, got {_shown(source)}; pass a list, or leave out"
            " the items where they come from"
        )
    if length is None:
        for name, given in (("shuffle=True", plan.shuffle), ("sampler", sampler is not None)):
            if given:
                raise ValueError(
                    f"{_OWNER}: {name} needs a source with __len__ and __getitem__, got"
                    f" {_shown(source)}; pass a list, or shuffle where the items come from"
                )
        dealing: Dealing = (
            ShardedDealing(plan, source, _workers_of(options))
            if in_workers
            else DrawnDealing(plan, source)
        )
    elif sampler is None:
        dealing = IndexedDealing(plan, length)
    else:
        if isinstance(sampler, (str, bytes)) or not hasattr(type(sampler), "__iter__"):
            raise TypeError(
                f"{_OWNER}: sampler must be an iterable of indices, got {_shown(sampler)}"
            )
        dealing = SamplerDealing(plan, sampler, length)
    origin = source if sampler is None else sampler
    if isinstance(dealing, DrawnDealing) and is_iterator(origin) and num_epochs != 1:
        raise ValueError(
            f"{_OWNER}: the {dealing.what} {_shown(origin)} is an iterator, which can be run"
            f" through once, and num_epochs={num_epochs} needs one that starts anew"
            " for each epoch, such as a list or an object with __iter__"
        )
    never = dealing.never_gives()
    if num_epochs is None and never is not None:
        raise ValueError(
            f"{_OWNER}: num_epochs=None goes through the source for ever, and an epoch of it has no"
            f" element: {never}"
        )
    return dealing, length is not None


def task_from(
    source: Any,
    dealing: Dealing,
    indexed: bool,
    transforms: tuple[Callable[[Any], Any], ...],
    collate: Any,
    policy: Policy,
) -> LoaderTask:
    """What makes elements of what `dealing` deals."""
    plan = dealing.plan
    rest = (transforms, plan.batch_size, collate, plan.seed, policy)
    if isinstance(dealing, ShardedDealing):
        return SourceTask(source, *rest, shard=plan.shard, drop_remainder=plan.drop_remainder)
    return LoaderTask(source if indexed else None, *rest, plan.shard)


def _workers_of(options: MultiprocessingOptions | MultithreadingOptions) -> int:
    if isinstance(options, MultithreadingOptions):
        return options.num_threads
    return options.num_workers


# ---- who makes elements --------------------------------------------------------------------------


def start_pool(task: LoaderTask, options: MultiprocessingOptions | MultithreadingOptions) -> Any:
    """Worker processes, threads, or this process and thread."""
    if options.enable_profiling:
        from . import _profile

        return _profile.start(task, options, _start_plain)
    return _start_plain(task, options)


def _start_plain(task: LoaderTask, options: MultiprocessingOptions | MultithreadingOptions) -> Any:
    if isinstance(options, MultithreadingOptions):
        if options.num_threads > 0:
            from . import _threads_loader

            return _threads_loader.LoaderThreads(task, options)
    elif options.num_workers > 0:
        from . import _processes

        return _processes.start(task, options)
    return InlinePool(task)
