"""torch's collating in a worker, with batches that lie in shared memory from the start.

`torch.utils.data.default_collate` asks a table what to do with tensors. In a worker that table
says: stack them into an array, which Stook's allocator places where the consumer will read it. So
a collate function of the user's that calls `default_collate` gets the same.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from ._partner import import_torch
from ._wire import Packer

__all__ = ["extensions", "install", "worker_collate"]

torch = import_torch()
_collate: Any = torch.utils.data._utils.collate

# What torch has and NumPy has not, by what their bits are kept in.
_OTHERS = {2: np.int16, 1: np.uint8, 4: np.int32}
_NO_TENSORS = re.compile(r"[SaUO]")  # dtypes that torch leaves alone


def _numpy_dtypes() -> dict[Any, Any]:
    names = "bool uint8 int8 int16 int32 int64 float16 float32 float64 complex64 complex128"
    return {getattr(torch, name): np.dtype(name) for name in names.split()}


_NUMPY = _numpy_dtypes()


def extensions() -> dict[Any, Any]:
    """What the program itself put into torch's table of collate functions."""
    return {
        kind: function
        for kind, function in _collate.default_collate_fn_map.items()
        if getattr(function, "__module__", "") != _collate.__name__
    }


def install(packer: Packer, additions: dict[Any, Any]) -> None:
    """Makes the table of this process, a worker, what the head of this file says."""
    table = _collate.default_collate_fn_map
    table.update(additions)
    original = table[torch.Tensor]
    if torch.Tensor in additions:
        return

    def collate_tensors(batch: Any, *, collate_fn_map: Any = None) -> Any:
        first = batch[0]
        if type(first) is not torch.Tensor or not _fits(first):
            return original(batch, collate_fn_map=collate_fn_map)
        shape = (len(batch), *first.shape)
        dtype = _NUMPY.get(first.dtype)
        if dtype is not None:
            array = np.empty(shape, dtype)
            out = torch.from_numpy(array)
            name = None
        else:
            array = np.empty(shape, _OTHERS[first.element_size()])
            out = torch.from_numpy(array).view(first.dtype)
            name = str(first.dtype).removeprefix("torch.")
        packer.note(out, array, name)
        return torch.stack(batch, 0, out=out)

    table[torch.Tensor] = collate_tensors


def _fits(tensor: Any) -> bool:
    """True for tensors that an array can take the values of."""
    return (
        tensor.layout is torch.strided
        and tensor.device.type == "cpu"
        and not tensor.is_nested
        and not tensor.is_quantized
        and (tensor.dtype in _NUMPY or tensor.element_size() in _OTHERS)
    )


def worker_collate(collate_fn: Any, packer: Packer) -> Any:
    """What a worker calls in place of `collate_fn`."""
    if collate_fn is not _collate.default_convert:
        return collate_fn

    def convert(data: Any) -> Any:
        """As `default_convert`; tensors over arrays are noted, so that these can be moved."""
        cls = type(data)
        if cls is np.ndarray:
            if _NO_TENSORS.search(data.dtype.str) is not None:
                return data
            tensor = torch.as_tensor(data)
            packer.note(tensor, data)
            return tensor
        if cls is dict:
            return {key: convert(value) for key, value in data.items()}
        if cls is list or cls is tuple:
            return [convert(value) for value in data]
        if isinstance(data, tuple) and hasattr(cls, "_fields"):
            return cls(*(convert(value) for value in data))
        return _collate.default_convert(data)

    return convert
