"""What of a batch is there while its items are made one by one, where some may fail."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Hashable
from typing import Any

import numpy as np

from ._element_errors import SKIP
from .collate import _NUMBERS, _kind

__all__ = ["Assembled", "Grouped", "Listed", "Rows"]

_INT64 = np.iinfo(np.int64)


class Rows(ABC):
    """The items of one batch so far: `SKIP` takes a number, but no row."""

    @abstractmethod
    def add(self, number: int, index: int, value: Any) -> None:
        """Takes the item of that number; another one after it has raised.

        Raises:
          MemoryError: There is no room for the batch, which is no fault of the item's.
          Exception: The item does not fit.
        """

    @abstractmethod
    def __len__(self) -> int:
        """Rows that the batch will have, as far as one can tell."""

    @abstractmethod
    def finish(self) -> Any:
        """The batch, which this object then no longer holds.

        Raises:
          MemoryError: There is no room for it.
        """

    def outvoted(self) -> int:
        """How many items were taken, and are not in the batch."""
        return 0


class Listed(Rows):
    """For a `collate` of the user's."""

    def __init__(self) -> None:
        self._items: list[Any] = []

    def add(self, number: int, index: int, value: Any) -> None:
        if value is not SKIP:
            self._items.append(value)

    def __len__(self) -> int:
        return len(self._items)

    def finish(self) -> list[Any]:
        items, self._items = self._items, []
        return items


class Assembled(Rows):
    """Each item must be like the first.

    Args:
      capacity: Items there is room for.
      assembler: As `collate.Assembler`.
    """

    def __init__(self, capacity: int, assembler: Any) -> None:
        self._indices: list[int] = []
        self._batch = assembler(self._indices, capacity)

    def add(self, number: int, index: int, value: Any) -> None:
        if number == len(self._indices):
            self._indices.append(index)
        self._batch.add(value)

    def __len__(self) -> int:
        return len(self._batch)

    def finish(self) -> Any:
        return self._batch.finish()


class Grouped(Rows):
    """Items that are not alike are kept apart, and those that are most become the batch.

    So it does not matter whether the one item that is unlike the others comes first. Those that are
    like the first one that fits are assembled at once. The others are kept as they are, by form,
    for mostly they are few, and each form may be another one: a batch's memory for each would be a
    batch's memory for each item.
    """

    def __init__(self, capacity: int, assembler: Any) -> None:
        self._assembler = assembler
        self._indices: list[int] = []
        self._batch = assembler(self._indices, capacity)
        self._others: dict[Hashable, list[tuple[int, Any]]] = {}
        self._taken = 0
        self._rows = 0

    def add(self, number: int, index: int, value: Any) -> None:
        self._indices.append(index)
        if value is SKIP:
            self._batch.add(SKIP)
            return
        try:
            self._batch.add(value)
        except MemoryError:
            raise
        except Exception:
            self._batch.add(SKIP)
            self._put_aside(index, value)
        self._taken += 1
        self._rows = max(self._rows, len(self._batch))

    def _put_aside(self, index: int, value: Any) -> None:
        try:
            alike = self._others.setdefault(_form_of(value), [])
        except Exception:
            return  # it fits nowhere, not even with itself
        alike.append((index, value))
        self._rows = max(self._rows, len(alike))

    def __len__(self) -> int:
        return self._rows

    def finish(self) -> Any:
        # Of as many, those that came first.
        alike = max(self._others.values(), key=len, default=[])
        self._others = {}
        batch = self._batch
        if len(alike) > len(batch):
            batch = self._batch = self._assembler([index for index, _ in alike], len(alike))
            alike.reverse()
            while alike:
                _, value = alike.pop()
                try:
                    batch.add(value)
                except MemoryError:
                    raise
                except Exception:
                    batch.add(SKIP)
        self._rows = len(batch)
        return batch.finish()

    def outvoted(self) -> int:
        return self._taken - self._rows


def _form_of(value: Any) -> Hashable:
    """Equal for items that can be in one batch.

    Raises:
      OverflowError: It holds an integer that no batch can hold.
      Exception: What keys of the user's raise when they are hashed.
    """
    kind = _kind(value)
    if kind == "array":
        dtype = _NUMBERS.get(type(value))
        if dtype is None:
            return "array", value.dtype, value.shape
        if type(value) is int and not _INT64.min <= value <= _INT64.max:
            raise OverflowError(value)
        return "array", dtype, ()
    if kind == "dict":
        return type(value), frozenset((key, _form_of(leaf)) for key, leaf in value.items())
    if kind == "sequence":
        return type(value), tuple(map(_form_of, value))
    if kind == "tensor":
        return "tensor", value.dtype, tuple(value.shape), value.device
    if kind == "dataclass":
        return type(value), tuple(
            _form_of(getattr(value, field.name)) for field in dataclasses.fields(value)
        )
    return "value"
