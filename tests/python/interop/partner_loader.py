"""What the tests against other libraries share."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

import stook
from leftovers import wait_until

# These tests are also run without those of the neighbouring folder, whose helper this is.
sys.path.append(str(Path(__file__).parent.parent / "unit"))
from courier import Courier

__all__ = [
    "DEADLINE",
    "PARTNER_FLAGS",
    "Courier",
    "each_start_method",
    "loader",
    "require",
    "settled",
]

# Of programs that import a partner: partners warn about each other, and that is not ours to mend.
PARTNER_FLAGS = ("-X", "dev", "-W", "default")
# Importing a partner takes seconds, several times over where processes start fresh.
DEADLINE = 100.0

each_start_method = pytest.mark.parametrize("start_method", ["forkserver", "fork"])


def require(*names: str) -> tuple[Any, ...]:
    """Imports packages; where one is missing, the whole test module is skipped by its name."""
    return tuple(
        pytest.importorskip(name, reason=f"{name.partition('.')[0]} is not installed")
        for name in names
    )


def loader(
    source: Any, transform: Any = None, *, num_workers: int = 1, **settings: Any
) -> stook.DataLoader:
    """A loader with so many workers."""
    options = stook.MultiprocessingOptions(num_workers=num_workers, **settings.pop("options", {}))
    return stook.DataLoader(source, transform, options=options, **settings)


@contextmanager
def settled(**options: Any) -> Iterator[Courier]:
    """A courier that has opened all that it will, so that no test leaves any of it."""
    with Courier(**options) as courier:
        count = 1 + options.get("num_workers", 1)  # the server's, and each worker's
        assert wait_until(lambda: courier.call(int) == 0 and _pidfds() >= count, 30)
        yield courier


def _pidfds() -> int:
    targets = []
    for entry in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            targets.append(os.readlink(f"/proc/self/fd/{entry}"))
    return targets.count("anon_inode:[pidfd]")
