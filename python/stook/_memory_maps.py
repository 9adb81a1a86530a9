"""Arrays over files: workers are sent the file's name and open it, not its content."""

from __future__ import annotations

import mmap
import os
import sys
from typing import Any

__all__ = ["reduce_mapped"]


def reduce_mapped(array: Any) -> Any:
    """How an array over a mapped file pickles, or `None` for one to be taken by value.

    By value go arrays over files that are gone or were replaced, and copy-on-write ones (mode "c"),
    whose content is not the file's.

    Args:
      array: An `ndarray` or a `memmap`, not of another class.
    """
    numpy = sys.modules["numpy"]
    owner = array
    while owner is not None and type(owner) is not numpy.memmap:
        owner = getattr(owner, "base", None)
    if owner is None or owner.mode not in ("r", "r+", "w+") or array.size == 0:
        return None
    mapped, name = owner._mmap, owner.filename
    if not isinstance(mapped, mmap.mmap) or name is None:
        return None
    low, high = _bounds(array)
    begin = numpy.frombuffer(mapped, numpy.uint8).__array_interface__["data"][0]
    if not begin <= low <= high <= begin + len(mapped):
        return None
    # As NumPy maps it: from the page on in which the array begins. Views keep that offset.
    first = owner.offset - owner.offset % mmap.ALLOCATIONGRANULARITY
    try:
        status = os.stat(name)
        if _inode_at(begin) != status.st_ino or status.st_size < first + high - begin:
            return None
    except OSError:
        return None
    return _map_again, (
        name,  # NumPy has made it absolute
        "r" if owner.mode == "r" else "r+",  # "w+" would empty it
        first + low - begin,
        high - low,
        array.__array_interface__["data"][0] - low,
        array.shape,
        array.dtype,
        array.strides,
        array.flags.writeable,
        type(array) is numpy.memmap,
    )


def _map_again(
    path: str | os.PathLike[str],
    mode: str,
    offset: int,
    size: int,
    start: int,
    shape: tuple[int, ...],
    dtype: Any,
    strides: tuple[int, ...],
    writeable: bool,
    as_map: bool,
) -> Any:
    import numpy as np

    held: Any = np.memmap(path, np.uint8, mode, offset, (size,))  # type: ignore[call-overload]
    array: Any = np.ndarray(shape, dtype, held, start, strides)
    if as_map:
        array = array.view(np.memmap)
        array._mmap, array.filename = held._mmap, held.filename
        array.offset, array.mode = held.offset, held.mode
    if not writeable:
        array.flags.writeable = False
    return array


def _bounds(array: Any) -> tuple[int, int]:
    """The addresses of the first byte, and behind the last one."""
    low = high = array.__array_interface__["data"][0]
    for length, stride in zip(array.shape, array.strides, strict=True):
        reach = (length - 1) * stride
        low, high = low + min(0, reach), high + max(0, reach)
    return low, high + array.itemsize


def _inode_at(address: int) -> int | None:
    """The number of the file that is mapped there, if it still has a name."""
    with open("/proc/self/maps", "rb") as maps:
        for line in maps:
            begin, _, rest = line.partition(b"-")
            end = rest.split(b" ", 1)[0]
            if int(begin, 16) <= address < int(end, 16):
                return None if line.endswith(b" (deleted)\n") else int(line.split()[4])
    return None
