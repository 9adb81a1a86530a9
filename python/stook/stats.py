"""What a loader has done so far, in numbers."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["LoaderStats"]


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
      errors: Elements whose exception was raised instead.
      bytes_live: Bytes of shared memory that delivered arrays hold at this moment.
    """

    elements: int = 0
    bytes: int = 0
    moved: int = 0
    copied: int = 0
    restarts: int = 0
    errors: int = 0
    bytes_live: int = 0
