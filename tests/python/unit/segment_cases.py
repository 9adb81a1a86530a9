"""What the tests of shared arrays have in common."""

from __future__ import annotations

import os
import re
from typing import Any

import numpy as np

from stook import SharedMemoryArray

__all__ = ["filled", "made", "segments"]


def made(shape: Any, dtype: Any = float) -> SharedMemoryArray:
    """An array whose segment goes with it."""
    array = SharedMemoryArray(shape, dtype)
    array.unlink_on_del()
    return array


def filled() -> SharedMemoryArray:
    """0..23 in four rows. (No fixture: pytest would keep it beyond the test's end.)"""
    array = made((4, 6), "int32")
    array[...] = np.arange(24).reshape(4, 6)
    return array


def segments() -> set[str]:
    """Names of the segments there are, without the marker files of those who own them."""
    return {name for name in os.listdir("/dev/shm") if re.fullmatch("stook_[^_]+_[^_]+", name)}
