"""Blocks are used again and again, and never while anybody sees them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from courier import Courier


def _recycle(recycles: int) -> None:
    with Courier(per_worker_buffer_size=16, num_workers=2) as courier:
        kept: list[tuple[int, Any]] = []
        calls = [(number,) for number in range(recycles)]
        for number, array in enumerate(courier.each(_numbered, calls)):
            if _checksum(array) != number:
                pytest.fail(f"element {number} holds {array[:8]}")
            if number % 97 == 0:
                kept.append((number, array))
            if len(kept) > 40:
                # In no order of theirs.
                old_number, old = kept.pop((number * 7919) % len(kept))
                assert _checksum(old) == old_number
                del old
            array = None
        for number, array in kept:
            assert _checksum(array) == number
        assert courier.stats.moved == recycles


def _numbered(number: int) -> Any:
    # Sizes of a few classes, so that blocks change hands between them.
    return np.full(600 + number % 5 * 500, number, "i8")


def _checksum(array: Any) -> int:
    """The one value that all items have, or -1."""
    first = int(array[0])
    return first if (array == first).all() else -1


def test_blocks_are_not_used_again_while_they_are_held() -> None:
    _recycle(100_000)


@pytest.mark.long
def test_blocks_are_not_used_again_while_they_are_held_for_long() -> None:
    _recycle(1_000_000)
