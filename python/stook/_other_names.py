"""What other loaders call the arguments of a `DataLoader`: errors say what they are here."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import fields
from typing import Any, TypeVar

from .options import MultiprocessingOptions, _shown

__all__ = ["tells_other_names"]

_Init = TypeVar("_Init", bound=Callable[..., None])

_WORKERS = "options=stook.MultiprocessingOptions({}={})"
# Of torch and Grain, beside the fields of MultiprocessingOptions, some of which are torch's, too.
_HERE = {
    "batch_sampler": "sampler= and batch_size=",
    "collate_fn": "collate=",
    "data_source": "the source as the first argument",
    "dataset": "the source as the first argument",
    "drop_last": "drop_remainder=",
    "generator": "seed=",
    "in_order": "ordered=",
    "multiprocessing_context": _WORKERS.format("start_method", "..."),
    "num_threads": "options=stook.MultithreadingOptions(num_threads={})",
    "operations": "transform=",
    "persistent_workers": "nothing: workers always stay from pass to pass",
    "pin_memory": "nothing, and pin in the function of prefetch_to()",
    "prefetch_factor": _WORKERS.format("per_worker_buffer_size", "{}"),
    "shard_options": "shard=",
    "worker_buffer_size": _WORKERS.format("per_worker_buffer_size", "{}"),
    "worker_count": _WORKERS.format("num_workers", "{}"),
    **{field.name: _WORKERS.format(field.name, "{}") for field in fields(MultiprocessingOptions)},
}


def tells_other_names(init: _Init) -> _Init:
    """Makes the error of an argument that `DataLoader` does not have name the one it has."""

    @functools.wraps(init)
    def checked(*arguments: Any, **keywords: Any) -> None:
        for name in keywords:
            if name in _HERE:
                instead = _HERE[name].replace("{}", _shown(keywords[name]))
                raise TypeError(
                    f"DataLoader: there is no argument {name!r} here; pass {instead}"
                    " (stook.torch.DataLoader takes torch's own arguments)"
                )
        init(*arguments, **keywords)

    return checked  # type: ignore[return-value]
