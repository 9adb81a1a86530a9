"""What a loader has done so far, and where its memory is, in numbers."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["LoaderStats", "WorkerMemory"]


@dataclass(frozen=True, slots=True)
class WorkerMemory:
    """Where the memory of one worker is, in bytes.

    `mapped`, `live` and `idle` are what the worker told last: it does so after each element and,
    while it has nothing to do, when it gives memory back, about once a second. They are 0 where no
    worker runs. `touched` and `retired` are of this moment.

    Attributes:
      index: The worker's number, from 0.
      mapped: Blocks that keep their memory: `live` and `idle` together.
      touched: What the kernel counts for the worker's arena, everything in it included. Below
        `mapped` where an array was not written to its end; above it by a few pages of bookkeeping.
      live: Blocks that hold an array, here or in the worker. Of a block that was dropped here the
        worker learns at its next array, or within about a second.
      idle: Free blocks that keep their memory for the next array. A worker without work keeps at
        most 1 MiB, or a sixteenth of `live` if that is more.
      retired: Blocks of arrays that are still held here, in arenas of earlier workers of this
        number: they died, or were ended by `close()`. Given back as the arrays go.

    Example:
      >>> import stook
      >>> stook.WorkerMemory(0, mapped=3 << 20, touched=3 << 20, live=2 << 20, idle=1 << 20).retired
      0
    """

    index: int
    mapped: int = 0
    touched: int = 0
    live: int = 0
    idle: int = 0
    retired: int = 0


@dataclass(frozen=True, slots=True)
class LoaderStats:
    """Counts of a loader (all its passes) or of one of its iterators (its pass).

    Attributes:
      elements: Elements delivered, without those that were an error.
      bytes: Bytes of the arrays in them.
      moved: Arrays that were handed over where user code made them, without a copy. With
        `num_workers=0` nothing crosses a process boundary, so this and `copied` stay 0.
      copied: Arrays that were copied once into shared memory, because something else held them, or
        out of it, because the consumer holds more than `memory_limit`.
      restarts: Workers that were started in place of dead ones.
      errors: What failed: elements whose exception was raised instead, and items that were left
        out or replaced, of a batch each by itself.
      bytes_live: Bytes of shared memory that delivered arrays hold at this moment; without the
        segments of `SharedMemoryArray`s, which are memory of their own.
      workers: Where the memory of each worker is at this moment; empty with `num_workers=0` and
        before the workers are started. After `close()` only `retired` is left in it.
    """

    elements: int = 0
    bytes: int = 0
    moved: int = 0
    copied: int = 0
    restarts: int = 0
    errors: int = 0
    bytes_live: int = 0
    workers: tuple[WorkerMemory, ...] = ()
