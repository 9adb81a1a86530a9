"""What the tests of worker processes share."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

import stook

METHODS = ("forkserver", "fork")
each_method = pytest.mark.parametrize("method", METHODS)


@contextlib.contextmanager
def made(method: str, source: Any, *transform: Any, **settings: Any) -> Iterator[stook.DataLoader]:
    """A loader with two workers, or as the settings say; it is closed at the end."""
    fields = {"num_workers": 2, "start_method": method}
    own = ("per_worker_buffer_size", "worker_init_fn", "on_worker_death", "max_restarts")
    for name in ("num_workers", *own):
        if name in settings:
            fields[name] = settings.pop(name)
    options = stook.MultiprocessingOptions(**fields)
    with stook.DataLoader(source, *transform, options=options, **settings) as loader:
        yield loader
