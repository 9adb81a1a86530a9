"""What the workers make, and what the consumer does with it.

A module of its own that every process can import: some peers start theirs afresh. Elements are
checked, so each one tells the number of the call that made it.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

PHOTOS = "STOOK_BENCHMARK_PHOTOS"  # environment: a folder of photographs, instead of installed ones
BATCH = 32


def mark(index: int) -> int:
    """The first byte of the element that call ``index`` makes."""
    return index % 251


def array(index: int) -> np.ndarray:
    return np.full((224, 224, 3), mark(index), np.uint8)


def labelled(index: int) -> dict[str, Any]:
    return {"image": np.full((224, 224, 3), mark(index), np.uint8), "label": 3}


def batch(index: int) -> np.ndarray:
    return np.full((BATCH, 224, 224, 3), mark(index), np.uint8)


def large(index: int) -> np.ndarray:
    return np.full(6 << 20, mark(index), np.uint8)


def small(index: int) -> np.ndarray:
    return np.full(16, mark(index), np.uint8)


@functools.cache
def opencv() -> ModuleType:
    import cv2

    cv2.setNumThreads(1)  # one photograph is decoded by one worker, whatever kind of worker it is
    return cv2


@functools.cache
def photographs() -> list[str]:
    examples = str(Path(__file__).resolve().parents[2] / "examples")
    if examples not in sys.path:
        sys.path.append(examples)
    from photos import find_photographs

    return find_photographs(os.environ.get(PHOTOS))


def photo(index: int) -> np.ndarray:
    """Decoded, its shorter side resized to 256, the middle cut out: (224, 224, 3) uint8."""
    cv2 = opencv()
    paths = photographs()
    image = cv2.imread(paths[index % len(paths)], cv2.IMREAD_COLOR)
    height, width = image.shape[:2]
    scale = 256 / min(height, width)
    size = (max(256, round(width * scale)), max(256, round(height * scale)))
    image = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
    top, left = (size[1] - 224) // 2, (size[0] - 224) // 2
    return np.ascontiguousarray(image[top : top + 224, left : left + 224])


def photo_batch(index: int) -> np.ndarray:
    """32 photographs in one array, for those who have no batching of their own."""
    return np.stack([photo(BATCH * index + k) for k in range(BATCH)])


@dataclass(frozen=True)
class Work:
    """One kind of element.

    Attributes:
        title: For tables.
        make: What the worker calls, with the element's number.
        leaf: The array in the element.
        nbytes: Of that array.
        element: With ``batch_size`` BATCH: what a loader that batches by itself calls instead.
        per_look: Elements between two looks at the clock.
        marked: Elements tell their number by their first byte.
    """

    title: str
    make: Callable[[int], Any]
    nbytes: int
    per_look: int
    leaf: Callable[[Any], Any] = lambda element: element
    element: Callable[[int], Any] | None = None
    marked: bool = True


WORKS = {
    "array": Work("150,528-byte arrays made by NumPy", array, 150_528, 64),
    "dict": Work(
        'the same as a leaf in {"image": ..., "label": 3}',
        labelled,
        150_528,
        64,
        leaf=lambda element: element["image"],
    ),
    "batch": Work("4.8 MB batches made by NumPy", batch, BATCH * 150_528, 4),
    "large": Work("6 MiB arrays made by NumPy", large, 6 << 20, 4),
    "small": Work("16-byte results", small, 16, 256),
    "photo": Work("photographs, one per element", photo, 150_528, 16, marked=False),
    "photo-batch": Work(
        f"photographs in batches of {BATCH}",
        photo_batch,
        BATCH * 150_528,
        1,
        element=photo,
        marked=False,
    ),
}


def numpy_of(leaf: Any) -> np.ndarray:
    """The NumPy view of what arrived: torch's loader delivers tensors."""
    return leaf if isinstance(leaf, np.ndarray) else leaf.numpy()


def touch(leaf: Any) -> int:
    """Looks at one byte."""
    return int(numpy_of(leaf).item(0))


def read(leaf: Any) -> int:
    """Looks at every byte, eight at a time."""
    return int(numpy_of(leaf).reshape(-1).view(np.uint64).sum())


CONSUMERS: dict[str, Callable[[Any], int]] = {"touch": touch, "read": read}
