"""Arrays as tensors over the same memory."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict, defaultdict
from typing import Any

import numpy as np

from ._partner import import_torch

__all__ = ["as_tensors"]


def as_tensors(tree: Any) -> Any:
    """Replaces every NumPy array of a tree by a tensor over the same memory.

    The tree may hold dicts, lists, tuples, named tuples and dataclasses, which are made anew;
    everything else stays what it is, and so do arrays of what torch has no dtype for (text, dates,
    objects, records). A tensor keeps the memory of an element in use, as its array would. Arrays
    that torch cannot show as they are (that may not be written, or run backwards, or have another
    machine's byte order) are copied. NumPy's numbers become tensors of shape ().

    Args:
      tree: What to look through, such as an element of a `stook.DataLoader`.

    Raises:
      ImportError: torch is not installed.

    Example:
      >>> import numpy as np, stook.torch
      >>> batch = {"image": np.zeros((2, 3), np.uint8), "names": ["a", "b"]}
      >>> tensors = stook.torch.as_tensors(batch)
      >>> tensors["image"].shape, tensors["names"]
      (torch.Size([2, 3]), ['a', 'b'])
    """
    return _convert(tree, import_torch())


def _convert(tree: Any, torch: Any) -> Any:
    cls = type(tree)
    if isinstance(tree, (np.ndarray, np.generic)):
        return _tensor(tree, torch)
    if cls is dict or cls is OrderedDict:
        return cls((key, _convert(value, torch)) for key, value in tree.items())
    if cls is defaultdict:
        items = ((key, _convert(value, torch)) for key, value in tree.items())
        return defaultdict(tree.default_factory, items)
    if cls is list:
        return [_convert(value, torch) for value in tree]
    if cls is tuple:
        return tuple(_convert(value, torch) for value in tree)
    if isinstance(tree, tuple) and hasattr(cls, "_fields"):
        return tuple.__new__(cls, (_convert(value, torch) for value in tree))
    if dataclasses.is_dataclass(cls):
        made = object.__new__(cls)
        for field in dataclasses.fields(cls):
            value = _convert(getattr(tree, field.name), torch)
            object.__setattr__(made, field.name, value)  # also where it is frozen
        return made
    return tree


def _tensor(array: Any, torch: Any) -> Any:
    """The tensor over an array, or the array itself where torch has no such dtype."""
    name = None
    if array.dtype.kind == "V" and array.dtype.names is None and array.dtype.shape == ():
        # What JAX and ml_dtypes add to NumPy: bfloat16 and the small floats.
        name = array.dtype.name
        integers = {1: np.uint8, 2: np.int16}.get(array.dtype.itemsize)
        if integers is None or not isinstance(getattr(torch, name, None), torch.dtype):
            return array
        array = array.view(integers)
    elif array.dtype.kind not in "biufc":
        return array
    if isinstance(array, np.generic):
        array = np.asarray(array).copy()
    elif not array.flags.writeable or not array.dtype.isnative or min(array.strides, default=0) < 0:
        array = array.astype(array.dtype.newbyteorder("="), order="C")
    try:
        tensor = torch.from_numpy(array)
    except (TypeError, ValueError):  # long doubles; strides that are no multiple of the item
        return array
    return tensor if name is None else tensor.view(getattr(torch, name))
