"""Shared memory for the `arena=` argument of SPDL's own functions.

One sparse, unnamed segment, made by the parent and mapped by both processes. The writer divides it
into blocks, one for each binary; a block is free again when the reader has said so in its byte of a
table that lies before the data. The writer alone reads and clears what is 1 there, the reader alone
sets it; what a block holds reaches the reader through SPDL's queue, which orders the rest.
"""

from __future__ import annotations

import itertools
import math
import mmap
import multiprocessing.reduction
import os
import weakref
from typing import Any

import numpy as np

from .options import check_int

__all__ = ["Arena", "ArenaReader", "ArenaWriter", "arena"]

_MOST_BLOCKS = 16384
_PAGE = 4096
# Before the data: for each block 1 where the reader has returned it, and the block after it in its
# item, plus 1; 0 in the last one.
_RETURNED = 0
_NEXT = _RETURNED + _MOST_BLOCKS
_DATA = _NEXT + 4 * _MOST_BLOCKS


def arena(memory_limit: int | None = None) -> Arena:
    """Shared memory for SPDL's `run_pipeline_in_subprocess` and `iterate_in_subprocess`.

    Use it in the place of SPDL's `SharedMemorySegmentPool` and `SharedMemoryRingBuffer`. Arrays are
    copied once, by the subprocess, and arrive without a copy. Unlike with those, items may be of
    any size and kept for any length of time, in any order: only what is kept is not used again,
    and what does not fit travels by value.

    Args:
      memory_limit: Bytes; `None`: half of the machine's memory. Only what is used is taken from
        the system.

    Raises:
      TypeError: `memory_limit` is no integer.
      ValueError: `memory_limit` is less than 1.

    Example::

      from spdl.pipeline import run_pipeline_in_subprocess

      batches = run_pipeline_in_subprocess(config, num_threads=4, arena=stook.spdl.arena())
    """
    if memory_limit is None:
        memory_limit = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    return Arena(check_int("arena", "memory_limit", memory_limit, 1, 1 << 46))


class Arena:
    """What `arena` returns. It has one writer, in the subprocess, and one reader, here."""

    def __init__(self, memory_limit: int) -> None:
        self._size = _DATA + -(-memory_limit // _PAGE) * _PAGE
        self._descriptor = os.memfd_create("stook-spdl", os.MFD_CLOEXEC)
        try:
            os.ftruncate(self._descriptor, self._size)
            self._map()
        except BaseException:
            os.close(self._descriptor)
            raise
        # In whichever process it is: a forked child has a descriptor of its own.
        self._finalizer = _finalize(self, os.close, self._descriptor)

    def _map(self) -> None:
        self._memory = np.frombuffer(mmap.mmap(self._descriptor, self._size), np.uint8)

    def open_writer(self) -> ArenaWriter:
        """The end that the subprocess writes to."""
        return ArenaWriter(self._memory)

    def open_reader(self) -> ArenaReader:
        """The end that this process reads from."""
        return ArenaReader(self._memory)

    def close(self) -> None:
        """Lets go of the memory. What was received stays valid."""
        self._memory = np.empty(0, np.uint8)
        self._finalizer()

    def unlink(self) -> None:
        """Nothing to do: the memory has no name, and ends with who uses it."""

    def __getstate__(self) -> dict[str, Any]:
        # For a process that is being started, which is how SPDL hands it over.
        return {
            "size": self._size,
            "descriptor": multiprocessing.reduction.DupFd(self._descriptor),
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._size = state["size"]
        self._descriptor = state["descriptor"].detach()
        self._map()
        self._finalizer = _finalize(self, os.close, self._descriptor)


class ArenaWriter:
    """Writes binaries, one item after the other. For one thread."""

    def __init__(self, memory: np.ndarray) -> None:
        self._memory = memory
        self._returned = memory[_RETURNED:_NEXT]
        self._next = memory[_NEXT:_DATA].view(np.int32)
        self._starts: list[int] = []  # by block
        self._sizes: list[int] = []
        self._end = _DATA  # nothing lies behind it
        self._free: dict[int, list[int]] = {}  # blocks, by their size; the last one freed is taken
        self._item: list[int] | None = None

    def reset(self) -> None:
        """Nothing changes: what was received in earlier iterations may still be in use."""

    def begin_unit(self) -> None:
        self._item = []

    def write_binary(self, data: Any) -> tuple[Any, int]:
        """Copies it in. What does not fit is returned itself in the place of its offset.

        As a `str`, for bytes there would be given to this function again.
        """
        if self._item is None:
            raise RuntimeError("write_binary() was called outside of a unit")
        source = np.frombuffer(data, np.uint8)
        block = self._take(source.size)
        if block is None:
            return str(data, "latin-1"), source.size
        self._item.append(block)
        start = self._starts[block]
        np.copyto(self._memory[start : start + source.size], source)  # without the GIL
        return start, source.size

    def commit_unit(self) -> int:
        """What finds the item's blocks: the first one's number, plus 1; 0 if there is none."""
        blocks, self._item = self._item or [], None
        for block, after in itertools.pairwise(blocks):
            self._next[block] = after + 1
        if blocks:
            self._next[blocks[-1]] = 0
        return blocks[0] + 1 if blocks else 0

    def abort_unit(self) -> None:
        blocks, self._item = self._item or [], None
        for block in blocks:
            self._free[self._sizes[block]].append(block)

    def _take(self, size: int) -> int | None:
        size = _rounded(size)
        self._harvest()
        free = self._free.setdefault(size, [])
        if free:
            return free.pop()
        if self._end + size <= self._memory.size and len(self._starts) < _MOST_BLOCKS:
            self._starts.append(self._end)
            self._sizes.append(size)
            self._end += size
            return len(self._starts) - 1
        larger = [other for other, blocks in self._free.items() if other > size and blocks]
        return self._free[min(larger)].pop() if larger else None

    def _harvest(self) -> None:
        seen = self._returned[: len(self._starts)].tobytes()  # the reader goes on meanwhile
        block = seen.find(1)
        while block >= 0:
            self._returned[block] = 0
            self._free[self._sizes[block]].append(block)
            block = seen.find(1, block + 1)


def _rounded(size: int) -> int:
    """Up to a quarter of a power of two, so that sizes that differ a little share blocks."""
    if size <= _PAGE:
        return _PAGE
    step = max(_PAGE, 1 << (math.floor(math.log2(size)) - 2))
    return -(-size // step) * step


class ArenaReader:
    """Hands out views, and returns a block when nothing refers to its view any more.

    In a fork of the process that opened it, nothing is returned: the views are that process's, too.
    """

    zero_copy = True

    def __init__(self, memory: np.ndarray) -> None:
        self._memory = memory
        self._returned = memory[_RETURNED:_NEXT]
        self._next = memory[_NEXT:_DATA].view(np.int32)
        self._process = os.getpid()

    def reset(self) -> None:
        """Nothing changes: what was received in earlier iterations may still be in use."""

    def read_binary(self, offset: Any, nbytes: int) -> memoryview:
        if isinstance(offset, str):  # it did not fit
            return memoryview(bytearray(offset, "latin-1"))
        return memoryview(self._memory[offset : offset + nbytes])  # type: ignore[arg-type]

    def end_unit(self, span: int, pinned: list[Any]) -> None:
        blocks = []
        while span:
            blocks.append(span - 1)
            span = int(self._next[span - 1])
        if len(pinned) == len(blocks):
            for anchor, block in zip(pinned, blocks, strict=True):
                self._return_after([anchor], [block])
        else:  # something was not read, or travelled by value: all go together
            self._return_after(pinned, blocks)

    def _return_after(self, anchors: list[Any], blocks: list[int]) -> None:
        left = [None] * len(anchors)
        for anchor in anchors:
            _finalize(anchor, _drop, self._process, left, self._returned, blocks)
        if not anchors and os.getpid() == self._process:
            self._returned[blocks] = 1


def _drop(process: int, left: list[None], returned: np.ndarray, blocks: list[int]) -> None:
    """Atomic, whoever collects garbage in between: the last of an item returns its blocks."""
    left.pop()
    # The table is shared, and a forked child has its own anchors: the reader may have them yet.
    if not left and os.getpid() == process:
        returned[blocks] = 1


def _finalize(owner: Any, function: Any, *arguments: Any) -> Any:
    """Not at the interpreter's exit, when the memory goes anyway."""
    finalizer: Any = weakref.finalize(owner, function, *arguments)
    finalizer.atexit = False
    return finalizer
