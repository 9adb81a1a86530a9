"""Assembling items into a batch, each leaf straight into its place.

The items are taken one after the other and not kept. The first one decides what the batch looks
like and how large each of its arrays is; every further one is copied into them at once, so a batch
costs one copy of each leaf and never holds its items twice.
"""

from __future__ import annotations

import dataclasses
import sys
from abc import ABC, abstractmethod
from collections import OrderedDict, defaultdict
from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np

from ._core import SharedMemoryArray
from ._element_errors import SKIP

__all__ = ["Assembler", "assemble"]


class Assembler:
    """Makes one batch of items given one by one.

    A tree of `dict` (also `OrderedDict`, `defaultdict`), `list`, `tuple`, named tuples and
    dataclasses keeps its form, and each of its leaves becomes one value of `len(indices)` entries:

    - `numpy.ndarray`, `numpy.memmap`, `SharedMemoryArray` of shape s: an array of shape (n, *s),
      same dtype;
    - NumPy's scalars: an array of shape (n,), same dtype;
    - `bool`, `int`, `float`, `complex`: an array of shape (n,), dtype bool, int64, float64,
      complex128;
    - `torch.Tensor` (strided) of shape s: a tensor of shape (n, *s), same dtype and device;
    - everything else (`str`, `bytes`, `None`, also NumPy's, arrays of objects, other subclasses of
      `ndarray`, any object): a list of the n values.

    A number counts as an array of shape () of its dtype, so `3` and `numpy.int64(3)` may take
    turns, `3` and `3.0` may not: nothing is cast. Values that end in a list may be of different
    types. Dataclasses are made without calling `__init__` or `__post_init__`, whose checks are
    meant for one item.

    `stook.SKIP` in place of an item makes the batch shorter by one; a batch of nothing else is
    `stook.SKIP` itself.

    Args:
      indices: What messages call the items by, one for each item that will come.
      capacity: Items there is room for, where that is not the number of `indices`, which may then
        grow as items come.

    Example:
      >>> batch = Assembler([4, 7])
      >>> batch.add({"image": np.zeros((2, 2), np.uint8), "label": 3, "name": "a"})
      >>> batch.add({"image": np.ones((2, 2), np.uint8), "label": 5, "name": "b"})
      >>> assembled = batch.finish()
      >>> assembled["image"].shape, assembled["label"], assembled["name"]
      ((2, 2, 2), array([3, 5]), ['a', 'b'])
    """

    __slots__ = ("_added", "_capacity", "_first", "_indices", "_root", "_skipped")

    def __init__(self, indices: Sequence[int], capacity: int | None = None) -> None:
        self._indices = indices
        self._capacity = len(indices) if capacity is None else capacity
        self._root: _Node | None = None
        self._added = 0
        self._skipped = 0
        self._first = 0  # number of the first item, those skipped before it included

    def __len__(self) -> int:
        """Items it holds."""
        return self._added

    def add(self, item: Any) -> None:
        """Takes the next item.

        Raises:
          ValueError: It differs from the first in form, dtype or shape, or holds an integer that
            int64 cannot. The message names the leaf, the item, and both values.
          MemoryError: There is no room for the batch.
          Exception: What an item's own code raises, such as comparing keys. In any case the item is
            not in the batch.
        """
        if item is SKIP:
            self._skipped += 1
            return
        position = self._added
        try:
            if self._root is None:
                self._root = _node_for(item, self._capacity)
                self._first = self._skipped
            self._root.put(position, item)
        except BaseException as error:
            if position == 0:
                self._root = None  # it has the form of this item, which is not in the batch
            if not isinstance(error, _MismatchError):
                raise
            # Not chained: the mismatch is how the message was found, not what went wrong before.
            raise ValueError(self._describe(error)) from None
        self._added = position + 1

    def finish(self) -> Any:
        """Returns the batch, which this object then no longer holds.

        Raises:
          ValueError: Fewer items came than were announced.
        """
        root = self._root
        added = self._added
        if (root is None and not self._skipped) or added + self._skipped != len(self._indices):
            raise ValueError(
                f"a batch of {len(self._indices)} items was announced, {added + self._skipped} came"
            )
        self._root = None
        if root is None:
            return SKIP
        if added < self._capacity:
            root.shorten(added)
        return root.take()

    def _describe(self, mismatch: _MismatchError) -> str:
        number = self._added + self._skipped
        leaf = "".join(reversed(mismatch.path))
        where = f"leaf item{leaf}" if leaf else "the item itself"
        text = (
            f"cannot assemble a batch: {where} is {mismatch.found} in item {number}"
            f" (index {self._indices[number]})"
        )
        if mismatch.expected:
            first = self._first
            text += f", but {mismatch.expected} in item {first} (index {self._indices[first]})"
        return f"{text}; {mismatch.hint}"


def assemble(items: Sequence[Any]) -> Any:
    """Assembles a list of items as `Assembler` does, numbering them from 0.

    Example:
      >>> assemble([(1, "a"), (2, "b")])
      (array([1, 2]), ['a', 'b'])
    """
    batch = Assembler(range(len(items)))
    for item in items:
        batch.add(item)
    return batch.finish()


class _MismatchError(Exception):
    """An item that is not like the first. The path grows from the leaf upwards as this rises."""

    def __init__(self, found: str, expected: str, hint: str) -> None:
        super().__init__(found)
        self.found = found
        self.expected = expected
        self.hint = hint
        self.path: list[str] = []


_SAME_SHAPE = "make them equal in the transform, or pass collate="
_SAME_DTYPE = "convert in the transform (nothing is cast here), or pass collate="
_SAME_FORM = "return the same form for every item, or pass collate="
_INT64 = "numbers become int64: return numpy.uint64 or a str instead"


class _Node(ABC):
    """One place of the tree, for all items of the batch."""

    __slots__ = ()

    @abstractmethod
    def put(self, position: int, value: Any) -> None:
        """Stores the value of the item at `position`, or raises `_MismatchError`."""

    @abstractmethod
    def shorten(self, count: int) -> None:
        """Keeps the first `count` items alone."""

    @abstractmethod
    def take(self) -> Any:
        """Returns what was assembled; the caller then drops this node, which still holds it."""


class _ArrayNode(_Node):
    __slots__ = ("_dtype", "_out", "_shape")

    def __init__(self, count: int, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
        self._dtype = dtype
        self._shape = shape
        # Not zeroed: every entry is written before the batch is handed out.
        self._out = np.empty((count, *shape), dtype)

    def put(self, position: int, value: Any) -> None:
        if isinstance(value, (np.ndarray, np.generic)):
            dtype, shape = value.dtype, value.shape
            if not _is_array(value):
                self._refuse(value)
        else:
            number_dtype = _NUMBERS.get(type(value))
            if number_dtype is None:
                self._refuse(value)
            dtype, shape = number_dtype, ()
        if dtype is not self._dtype and dtype != self._dtype:
            raise _MismatchError(_described(value), self._described(), _SAME_DTYPE)
        if shape != self._shape:
            raise _MismatchError(_described(value), self._described(), _SAME_SHAPE)
        try:
            self._out[position] = value
        except OverflowError:
            raise _MismatchError(f"the integer {value}", "", _INT64) from None

    def shorten(self, count: int) -> None:
        if 2 * count < len(self._out):  # most of a worker's block would be held for nothing
            self._out = self._out[:count].copy()
        else:
            # In place, also in a worker's arena; nobody has seen this array.
            self._out.resize((count, *self._out.shape[1:]), refcheck=False)

    def take(self) -> Any:
        return self._out

    def _refuse(self, value: Any) -> NoReturn:
        raise _MismatchError(_described(value), self._described(), _SAME_FORM)

    def _described(self) -> str:
        return _array_text(self._dtype, self._shape)


class _TensorNode(_Node):
    __slots__ = ("_first", "_out", "_torch")

    def __init__(self, count: int, value: Any, torch: Any) -> None:
        self._torch = torch
        # Its form is all that is needed of the first; an empty one does not hold the item.
        self._first = (value.dtype, tuple(value.shape), value.device)
        shape = (count, *value.shape)
        try:
            self._out = torch.empty(shape, dtype=value.dtype, device=value.device)
        except RuntimeError as error:  # as torch has it
            raise MemoryError(f"no room for a batch of {count} items: {error}") from error

    def put(self, position: int, value: Any) -> None:
        if not _is_tensor(value, self._torch):
            raise _MismatchError(_described(value), self._described(), _SAME_FORM)
        dtype, shape, device = self._first
        if value.dtype != dtype or value.device != device:
            raise _MismatchError(_described(value), self._described(), _SAME_DTYPE)
        if tuple(value.shape) != shape:
            raise _MismatchError(_described(value), self._described(), _SAME_SHAPE)
        self._out[position].copy_(value.detach())

    def shorten(self, count: int) -> None:
        part = self._out[:count]
        self._out = part.clone() if 2 * count < len(self._out) else part

    def take(self) -> Any:
        return self._out

    def _described(self) -> str:
        return _tensor_text(*self._first)


class _ListNode(_Node):
    """Values that are gathered as they are."""

    __slots__ = ("_values",)

    def __init__(self) -> None:
        self._values: list[Any] = []

    def put(self, position: int, value: Any) -> None:
        if _kind(value) != "value":
            raise _MismatchError(_described(value), _described(self._values[0]), _SAME_FORM)
        if len(self._values) > position:  # of an item that did not fit in another leaf
            del self._values[position:]
        self._values.append(value)

    def shorten(self, count: int) -> None:
        del self._values[count:]

    def take(self) -> Any:
        return self._values


class _DictNode(_Node):
    __slots__ = ("_children", "_factory", "_type")

    def __init__(self, count: int, first: dict[Any, Any]) -> None:
        self._type = type(first)
        self._factory = first.default_factory if isinstance(first, defaultdict) else None
        self._children = {key: _node_for(value, count) for key, value in first.items()}

    def put(self, position: int, value: Any) -> None:
        children = self._children
        if type(value) is not self._type:
            raise _MismatchError(_described(value), f"a {self._type.__name__}", _SAME_FORM)
        if value.keys() != children.keys():
            raise _MismatchError(
                f"a {self._type.__name__} with keys {_keys_text(value)}",
                f"one with keys {_keys_text(children)}",
                _SAME_FORM,
            )
        for key, child in children.items():
            try:
                child.put(position, value[key])
            except _MismatchError as mismatch:
                mismatch.path.append(f"[{key!r}]")
                raise

    def shorten(self, count: int) -> None:
        for child in self._children.values():
            child.shorten(count)

    def take(self) -> Any:
        taken: dict[Any, Any]
        taken = defaultdict(self._factory) if self._type is defaultdict else self._type()
        for key, child in self._children.items():
            taken[key] = child.take()
        return taken


class _SequenceNode(_Node):
    __slots__ = ("_children", "_type")

    def __init__(self, count: int, first: Any) -> None:
        self._type = type(first)
        self._children = [_node_for(value, count) for value in first]

    def put(self, position: int, value: Any) -> None:
        children = self._children
        if type(value) is not self._type:
            raise _MismatchError(_described(value), f"a {self._type.__name__}", _SAME_FORM)
        if len(value) != len(children):
            raise _MismatchError(
                f"a {self._type.__name__} of length {len(value)}",
                f"one of length {len(children)}",
                _SAME_FORM,
            )
        place = 0
        try:
            for child in children:
                child.put(position, value[place])
                place += 1
        except _MismatchError as mismatch:
            mismatch.path.append(f"[{place}]")
            raise

    def shorten(self, count: int) -> None:
        for child in self._children:
            child.shorten(count)

    def take(self) -> Any:
        taken = [child.take() for child in self._children]
        if self._type is list:
            return taken
        # A named tuple's constructor takes its fields one by one, unless it was overridden.
        return tuple(taken) if self._type is tuple else tuple.__new__(self._type, taken)


class _DataclassNode(_Node):
    __slots__ = ("_children", "_type")

    def __init__(self, count: int, first: Any) -> None:
        self._type = type(first)
        self._children = [
            (field.name, _node_for(getattr(first, field.name), count))
            for field in dataclasses.fields(first)
        ]

    def put(self, position: int, value: Any) -> None:
        if type(value) is not self._type:
            raise _MismatchError(_described(value), f"a {self._type.__name__}", _SAME_FORM)
        for name, child in self._children:
            try:
                child.put(position, getattr(value, name))
            except _MismatchError as mismatch:
                mismatch.path.append(f".{name}")
                raise

    def shorten(self, count: int) -> None:
        for _, child in self._children:
            child.shorten(count)

    def take(self) -> Any:
        taken = object.__new__(self._type)
        for name, child in self._children:
            object.__setattr__(taken, name, child.take())  # also where it is frozen
        return taken


# What a number becomes. Subclasses, such as members of an IntEnum, say more than their number and
# are gathered as they are.
_NUMBERS: dict[type, np.dtype[Any]] = {
    bool: np.dtype(np.bool_),
    int: np.dtype(np.int64),
    float: np.dtype(np.float64),
    complex: np.dtype(np.complex128),
}
_DICTS = (dict, OrderedDict, defaultdict)
# Other subclasses of ndarray mean something (a mask, a unit) that a plain array would drop.
_STACKED = (np.ndarray, np.memmap, SharedMemoryArray)


def _is_array(value: Any) -> bool:
    """True for arrays and scalars that a plain array holds without loss."""
    if isinstance(value, np.generic):
        return not isinstance(value, (np.str_, np.bytes_, np.object_))
    return type(value) in _STACKED and not value.dtype.hasobject


def _is_tensor(value: Any, torch: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.layout == torch.strided


def _torch() -> Any | None:
    """The torch module if the program has imported it; it is never imported here."""
    torch = sys.modules.get("torch")
    return torch if torch is not None and hasattr(torch, "Tensor") else None


def _kind(value: Any) -> str:
    """How a value is assembled. The order matters: NumPy's float64 is a float."""
    if isinstance(value, (np.ndarray, np.generic)):
        return "array" if _is_array(value) else "value"
    cls = type(value)
    if cls in _NUMBERS:
        return "array"
    if cls is str or value is None or cls is bytes:
        return "value"
    if cls in _DICTS:
        return "dict"
    if cls is list or cls is tuple or (isinstance(value, tuple) and hasattr(cls, "_fields")):
        return "sequence"
    torch = _torch()
    if torch is not None and _is_tensor(value, torch):
        return "tensor"
    if dataclasses.is_dataclass(cls):
        return "dataclass"
    return "value"


def _node_for(value: Any, count: int) -> _Node:
    kind = _kind(value)
    if kind == "array":
        number_dtype = _NUMBERS.get(type(value))
        if number_dtype is not None:
            return _ArrayNode(count, number_dtype, ())
        return _ArrayNode(count, value.dtype, value.shape)
    if kind == "dict":
        return _DictNode(count, value)
    if kind == "sequence":
        return _SequenceNode(count, value)
    if kind == "tensor":
        return _TensorNode(count, value, _torch())
    if kind == "dataclass":
        return _DataclassNode(count, value)
    return _ListNode()


def _described(value: Any) -> str:
    """A value in a message: an array by its form, anything else by its type and value."""
    kind = _kind(value)
    if kind == "array" and isinstance(value, np.ndarray):
        return _array_text(value.dtype, value.shape)
    if kind == "tensor":
        return _tensor_text(value.dtype, tuple(value.shape), value.device)
    try:
        text = repr(value)
    except Exception:
        return f"a {type(value).__name__}"
    return f"the {type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"


def _array_text(dtype: np.dtype[Any], shape: tuple[int, ...]) -> str:
    return f"a number of dtype {dtype}" if shape == () else f"{dtype} of shape {shape}"


def _tensor_text(dtype: Any, shape: tuple[int, ...], device: Any) -> str:
    return f"a {dtype} tensor of shape {shape} on {device}"


def _keys_text(mapping: dict[Any, Any]) -> str:
    text = ", ".join(repr(key) for key in mapping)
    return f"{{{text if len(text) <= 200 else text[:197] + '...'}}}"
