"""Batches on their way from a worker: what of them are tensors, and the arrays beside that.

A tensor is no array, and whoever pickles it copies it. So a batch crosses as a description and a
list of leaves, where every tensor is the array over its memory. An array that the collate function
made (`_collate.py`) is then seen by nobody else, and is handed over as it stands.

A description is a number, which is a leaf as it is, or a tuple:
`("T", leaf)`: a tensor over the array; `("V", leaf, dtype, axes)`: one that NumPy has no dtype or
no order of axes for; `("d", keys, parts)`, `("l", parts)`, `("t", parts)`, `("n", class, parts)`:
a dict, a list, a tuple, a named tuple of what the parts describe.
"""

from __future__ import annotations

from typing import Any

from .._pickling import _reduce_tensor, _tensor_from_array
from ._partner import import_torch

__all__ = ["Packer", "unpack"]

_MAX_DEPTH = 50


class _OddError(Exception):
    """A batch that no description fits, such as one that holds itself: pickle knows it all."""


class Packer:
    """Describes batches; knows the arrays that tensors of the present one were made over."""

    def __init__(self) -> None:
        torch = import_torch()
        self._tensor_type = torch.Tensor
        # By all that tells one view of memory from another.
        self._arrays: dict[Any, tuple[Any, str | None]] = {}
        self._leaves: list[Any] = []
        self._seen: dict[int, Any] = {}

    def note(self, tensor: Any, array: Any, dtype: str | None = None) -> None:
        """Says that `tensor` lies over `array`, and shows its bits as `dtype` if that is given."""
        self._arrays[_key(tensor)] = (array, dtype)

    def forget(self) -> None:
        """Drops what is known of the present batch."""
        self._arrays.clear()
        self._leaves = []
        self._seen.clear()

    def pack(self, batch: Any) -> tuple[Any, list[Any]]:
        """The description of `batch` and its leaves. Everything else here is forgotten.

        The caller drops the batch; until then its tensors hold the arrays.
        """
        try:
            parts = self._describe(batch, 0)
        except _OddError:
            parts = None
            self._leaves = []
        if parts is None:
            parts = self._leaf(batch)
        leaves = self._leaves
        self.forget()
        return parts, leaves

    def _leaf(self, value: Any) -> int:
        self._leaves.append(value)
        return len(self._leaves) - 1

    def _describe(self, value: Any, depth: int) -> Any:
        """`None` for what has no tensor in it that can be an array."""
        cls = type(value)
        if cls is self._tensor_type:
            return self._describe_tensor(value)
        if cls is dict:
            values = value.values()
        elif cls is list or cls is tuple or (isinstance(value, tuple) and hasattr(cls, "_fields")):
            values = value
        else:
            return None
        if depth > _MAX_DEPTH:
            raise _OddError
        parts = [self._describe(part, depth + 1) for part in values]
        if all(part is None for part in parts):
            return None
        if id(value) in self._seen:
            raise _OddError  # one object in two places
        self._seen[id(value)] = value
        parts = [
            self._leaf(value) if part is None else part
            for part, value in zip(parts, values, strict=True)
        ]
        if cls is dict:
            return "d", list(value), parts
        if cls is list:
            return "l", parts
        return ("t", parts) if cls is tuple else ("n", cls, parts)

    def _describe_tensor(self, tensor: Any) -> Any:
        known = self._seen.get(id(tensor))
        if known is not None:
            return known[1]
        found = None
        if self._arrays and tensor.device.type == "cpu" and _is_plain(tensor):
            found = self._arrays.get(_key(tensor))
        if found is not None:
            array, dtype = found
            axes = None
        else:
            reduced = _reduce_tensor(tensor)
            if reduced is None:
                return None
            array, dtype, axes = reduced[1]
        leaf = self._leaf(array)
        part = ("T", leaf) if dtype is None and axes is None else ("V", leaf, dtype, axes)
        self._seen[id(tensor)] = tensor, part  # holds it, so that its id stays its own
        return part


def _key(tensor: Any) -> Any:
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype


def _is_plain(tensor: Any) -> bool:
    """True if its memory is all there is to it."""
    return not (
        tensor.is_sparse
        or tensor.layout is not import_torch().strided
        or tensor.is_nested
        or tensor.requires_grad
        or tensor.is_quantized
        or tensor.is_conj()
        or tensor.is_neg()
        or tensor.__dict__
    )


def unpack(parts: Any, leaves: list[Any]) -> Any:
    """The batch that was packed; its tensors lie over the arrays among the leaves."""
    return _unpack(parts, leaves, import_torch().from_numpy, {})


def _unpack(parts: Any, leaves: list[Any], from_numpy: Any, made: dict[int, Any]) -> Any:
    if type(parts) is int:
        return leaves[parts]
    kind = parts[0]
    if kind == "T" or kind == "V":
        leaf = parts[1]
        tensor = made.get(leaf)
        if tensor is None:
            tensor = made[leaf] = (
                from_numpy(leaves[leaf])
                if kind == "T"
                else _tensor_from_array(leaves[leaf], parts[2], parts[3])
            )
        return tensor
    values = [_unpack(part, leaves, from_numpy, made) for part in parts[-1]]
    if kind == "d":
        return dict(zip(parts[1], values, strict=True))
    if kind == "l":
        return values
    return tuple(values) if kind == "t" else tuple.__new__(parts[1], values)
