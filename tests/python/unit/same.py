"""Whether two objects are the same in everything that pickling keeps."""

from __future__ import annotations

import dataclasses
import enum
import struct
from collections import OrderedDict, defaultdict, deque
from typing import Any

import numpy as np

_ATOMS = (type(None), bool, int, str, bytes, type, range, slice, type(Ellipsis))


def assert_same(got: Any, want: Any, *, original: Any = None) -> None:
    """Fails unless `got` is what `want` is: types, values, dtypes, order, and what is one object.

    Args:
      got: What arrived.
      want: What pickling gave.
      original: What was sent, if an array may also lie in memory as it did there: one that is moved
        keeps its place, where pickling makes it compact and aligned.
    """
    _Comparison().compare(got, want, want if original is None else original, "element")


class _Comparison:
    def __init__(self) -> None:
        self._partner_of_got: dict[int, int] = {}
        self._partner_of_want: dict[int, int] = {}
        self._alive: list[Any] = []

    def compare(self, got: Any, want: Any, original: Any, path: str) -> None:
        assert type(got) is type(want), f"{path}: {type(got)} is not {type(want)}"
        if isinstance(want, enum.Enum) or type(want) in _ATOMS:
            assert got == want, f"{path}: {got!r} is not {want!r}"
            return
        if want is np.ma.masked:
            assert got is want, f"{path}: {got!r} is not {want!r}"
            return
        if type(want) is float:
            assert struct.pack("d", got) == struct.pack("d", want), f"{path}: {got} is not {want}"
            return
        if type(want) is complex:
            packed = [struct.pack("dd", number.real, number.imag) for number in (got, want)]
            assert packed[0] == packed[1], f"{path}: {got} is not {want}"
            return
        if isinstance(want, np.generic):
            self._compare_scalar(got, want, original, path)
            return
        if self._met(got, want, path):
            return
        if isinstance(want, np.ndarray):
            self._compare_array(got, want, original, path)
        elif isinstance(want, (list, tuple, deque)):
            assert len(got) == len(want), f"{path}: {len(got)} items, not {len(want)}"
            for number, items in enumerate(zip(got, want, original, strict=True)):
                self.compare(*items, f"{path}[{number}]")
        elif isinstance(want, (dict, OrderedDict, defaultdict)):
            assert len(got) == len(want), f"{path}: {len(got)} items, not {len(want)}"
            for parts in zip(got.items(), want.items(), original.items(), strict=True):
                keys, values = zip(*parts, strict=True)
                self.compare(*keys, f"{path} key {keys[1]!r}")
                self.compare(*values, f"{path}[{keys[1]!r}]")
        elif isinstance(want, (set, frozenset, bytearray)):
            assert got == want, f"{path}: {got!r} is not {want!r}"
        elif dataclasses.is_dataclass(want):
            for field in dataclasses.fields(want):
                parts = [getattr(value, field.name) for value in (got, want, original)]
                self.compare(*parts, f"{path}.{field.name}")
        elif hasattr(want, "__dict__"):
            self.compare(vars(got), vars(want), vars(original), f"{path}.__dict__")
        else:
            assert got == want, f"{path}: {got!r} is not {want!r}"

    def _met(self, got: Any, want: Any, path: str) -> bool:
        """True if both were met before, together; fails if one was, or with another."""
        if isinstance(want, (tuple, frozenset)) and not want:
            return False  # there is one of each
        partners = self._partner_of_got.get(id(got)), self._partner_of_want.get(id(want))
        if partners == (None, None):
            self._partner_of_got[id(got)] = id(want)
            self._partner_of_want[id(want)] = id(got)
            self._alive += (got, want)
            return False
        assert partners == (id(want), id(got)), f"{path}: not shared as it was"
        return True

    def _compare_scalar(self, got: Any, want: Any, original: Any, path: str) -> None:
        _compare_dtypes(got.dtype, want.dtype, path)
        self._compare_values(np.asarray(got), np.asarray(want), np.asarray(original), path)

    def _compare_array(self, got: Any, want: Any, original: Any, path: str) -> None:
        if got.dtype == original.dtype != want.dtype == got.dtype.newbyteorder("="):
            # NumPy makes some arrays native when it pickles them; they may also stay as they are.
            want = want.astype(got.dtype, order="K")
        _compare_dtypes(got.dtype, want.dtype, path)
        assert got.shape == want.shape, f"{path}: {got.shape} is not {want.shape}"
        if got.size and got.dtype.itemsize:
            layouts = [_layout(array) for array in (got, want, original)]
            # NumPy before 2.4 pickles permuted axes in C order.
            assert layouts[0] in layouts[1:], f"{path}: {layouts[0]} is not of {layouts[1:]}"
        assert got.flags.aligned or not original.flags.aligned, f"{path}: not aligned"
        if type(want) is np.ma.MaskedArray:
            self.compare(got.data, want.data, np.asarray(original), f"{path}.data")
            mask = np.ma.getmaskarray
            self.compare(mask(got), mask(want), mask(original), f"{path}.mask")
            assert got.fill_value == want.fill_value, path
            return
        self._compare_values(got, want, original, path)

    def _compare_values(self, got: Any, want: Any, original: Any, path: str) -> None:
        dtype = want.dtype
        if dtype.names is not None:
            for name in dtype.names:
                parts = [np.asarray(array[name]) for array in (got, want, original)]
                self._compare_values(*parts, f"{path}[{name!r}]")
        elif dtype.hasobject:
            flat = [array.ravel().tolist() for array in (got, want, original)]
            for number, items in enumerate(zip(*flat, strict=True)):
                self.compare(*items, f"{path}.flat[{number}]")
        elif dtype.char in "gG":  # whose padding bytes mean nothing
            assert np.array_equal(got, want, equal_nan=True), f"{path}: {got} is not {want}"
        else:
            assert got.tobytes() == want.tobytes(), f"{path}: {got} is not {want}"


def _layout(array: Any) -> tuple[bool, bool, tuple[int, ...]]:
    """The order flags, and the strides of axes that are longer than 1."""
    strides = tuple(
        stride for stride, length in zip(array.strides, array.shape, strict=True) if length > 1
    )
    return array.flags.c_contiguous, array.flags.f_contiguous, strides


def _compare_dtypes(got: Any, want: Any, path: str) -> None:
    assert got == want, f"{path}: dtype {got!r} is not {want!r}"
    assert got.str == want.str, f"{path}: dtype {got.str} is not {want.str}"
    assert got.isalignedstruct == want.isalignedstruct, f"{path}: dtype {got!r} is not {want!r}"
    assert (got.metadata or {}) == (want.metadata or {}), f"{path}: dtype metadata"
    assert repr(got) == repr(want), f"{path}: dtype {got!r} is not {want!r}"
