"""Arrays in named shared memory: handles to them, and trees of them.

`SharedMemoryArray` itself is C (bindings/shared_memory_array.cpp). Here is what it pickles to, what
moves whole trees in and out of shared memory, and what happens when the process ends.
"""

from __future__ import annotations

import atexit
import copy
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import util
from multiprocessing.process import parent_process
from typing import Any

import numpy as np

from . import _core
from ._core import (
    SharedMemoryArray,
    _attach_array,  # noqa: F401 (where bindings/array_handle.cpp finds it)
)
from .options import check_int

__all__ = [
    "SharedMemoryArray",
    "SharedMemoryArrayMetadata",
    "copy_to_shared",
    "open_from_shared",
    "unlink_shared",
]

# What the end of the process waits for memory to be given back; names go in any case.
_EXIT_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class SharedMemoryArrayMetadata:
    """The handle of a `SharedMemoryArray` or a view of one: where it lies, and how it is read.

    Small, hashable where the dtype is, and picklable; a process of the same user makes the array of
    it with `SharedMemoryArray.from_metadata`.

    Attributes:
      name: POSIX name of the segment; `multiprocessing.shared_memory.SharedMemory(name=...)` opens
        it too.
      shape: Lengths.
      dtype: Of the items.
      strides: Bytes from item to item in each dimension; `None`: C-contiguous.
      offset: Bytes from the start of the segment to the first item.

    Example:
      >>> import stook
      >>> array = stook.SharedMemoryArray(4, dtype="uint8")
      >>> handle = array[::2].metadata
      >>> handle.shape, handle.strides, handle.offset
      ((2,), (2,), 0)
      >>> handle.close_and_unlink_shm()
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    strides: tuple[int, ...] | None = None
    offset: int = 0

    def close_and_unlink_shm(self) -> None:
        """Removes the segment's name. Arrays that are attached stay valid.

        Raises:
          FileNotFoundError: There is no such segment (any more).
          PermissionError: It is another user's.
          ValueError: The name is no segment's.
        """
        if not _core.unlink_segment(self.name):
            raise FileNotFoundError(
                2, "there is no such segment of shared memory; it was unlinked before", self.name
            )


def copy_to_shared(tree: Any, min_size: int = 0) -> Any:
    """Copies the arrays of a tree into shared memory and puts handles in their places.

    The result can go through any channel that pickles; `open_from_shared` makes arrays of the
    handles again. Whoever opens it removes the segments when it is done with the arrays. If it is
    never opened, call `unlink_shared`.

    Args:
      tree: Dicts (also derived ones), lists, tuples, namedtuples and dataclasses, nested; what is
        none of these is a leaf. Leaves that are `numpy.ndarray`s with a dtype of plain bytes are
        copied into a segment each; a `SharedMemoryArray` becomes its handle without being copied.
        Other leaves, arrays without items and subclasses of `ndarray` such as masked arrays stay
        what they are.
      min_size: Arrays of fewer bytes stay what they are.

    Returns:
      A tree of the same form. Its containers are new.

    Raises:
      TypeError, ValueError: `min_size` is not an int that is 0 or more.
      SharedMemoryExhausted: Shared memory cannot hold it all; nothing is left in it.

    Example:
      >>> import numpy as np
      >>> import stook
      >>> handles = stook.copy_to_shared({"image": np.ones((2, 2)), "label": 3})
      >>> type(handles["image"]).__name__, handles["label"]
      ('SharedMemoryArrayMetadata', 3)
      >>> stook.open_from_shared(handles)["image"].sum()
      np.float64(4.0)
    """
    least = check_int("copy_to_shared", "min_size", min_size, 0)
    made: list[SharedMemoryArray] = []

    def share(leaf: Any) -> Any:
        if isinstance(leaf, SharedMemoryArray):
            return leaf.metadata
        if type(leaf) is not np.ndarray or leaf.dtype.hasobject:
            return leaf
        if leaf.nbytes == 0 or leaf.nbytes < least:
            return leaf
        # As `copy(order="K")`: what was in Fortran's order is read in it again.
        fortran = leaf.flags.f_contiguous and not leaf.flags.c_contiguous
        shape = leaf.shape[::-1] if fortran else leaf.shape
        array = SharedMemoryArray(shape, leaf.dtype)
        array.unlink_on_del()  # until all of the tree has been copied
        made.append(array)
        view = array.T if fortran else array
        np.copyto(view, leaf, casting="no")
        return view.metadata

    try:
        result = _map_leaves(tree, share)
    except BaseException:
        made.clear()  # now, and not when the traceback goes
        raise
    for array in made:
        array._keep_on_del()
    return result


def open_from_shared(tree: Any) -> Any:
    """Makes arrays of the handles in a tree that `copy_to_shared` has made.

    Args:
      tree: As `copy_to_shared` returns it, in this process or another of the same user.

    Returns:
      A tree of the same form with a `SharedMemoryArray` for each handle. Each removes its segment
      when it is dropped (`unlink_on_del`), so a tree is opened once.

    Raises:
      FileNotFoundError: A segment is gone; those of the others are removed.
    """
    opened: list[SharedMemoryArray] = []

    def attach(leaf: Any) -> Any:
        if not isinstance(leaf, SharedMemoryArrayMetadata):
            return leaf
        array = SharedMemoryArray.from_metadata(leaf)
        array.unlink_on_del()
        opened.append(array)
        return array

    try:
        return _map_leaves(tree, attach)
    except BaseException:
        unlink_shared(tree)
        raise


def unlink_shared(tree: Any) -> None:
    """Removes the segments of the handles in a tree, whether or not they are still there.

    For a tree from `copy_to_shared` that nobody opens. Arrays that are attached stay valid.

    Raises:
      PermissionError: A segment is another user's; the others are removed.
      ValueError: A handle's name is no segment's; the others are removed.
    """
    failures: list[BaseException] = []

    def unlink(leaf: Any) -> Any:
        if isinstance(leaf, SharedMemoryArrayMetadata):
            try:
                _core.unlink_segment(leaf.name)
            except (OSError, ValueError) as error:
                failures.append(error)
        return leaf

    _map_leaves(tree, unlink)
    if failures:
        raise failures[0]


def _map_leaves(tree: Any, function: Callable[[Any], Any]) -> Any:
    """A tree of the same form, with `function(leaf)` for each leaf."""
    kind = type(tree)
    # What is no container of a known form must not be looked into: its parts could not be put back.
    if kind is SharedMemoryArrayMetadata or isinstance(tree, type):
        return function(tree)
    if kind is list:
        return [_map_leaves(value, function) for value in tree]
    if kind is tuple:
        return tuple(_map_leaves(value, function) for value in tree)
    if isinstance(tree, tuple) and hasattr(kind, "_make"):
        return kind._make(_map_leaves(value, function) for value in tree)
    if isinstance(tree, dict):
        if kind is dict:
            return {key: _map_leaves(value, function) for key, value in tree.items()}
        result = copy.copy(tree)  # with what it knows beside its items
        for key, value in tree.items():
            dict.__setitem__(result, key, _map_leaves(value, function))
        return result
    if dataclasses.is_dataclass(tree):
        made = copy.copy(tree)  # neither __init__ nor __post_init__ is called: both may compute
        for field in dataclasses.fields(tree):
            if hasattr(tree, field.name):
                value = _map_leaves(getattr(tree, field.name), function)
                object.__setattr__(made, field.name, value)
        return made
    return function(tree)


# ---- the start and the end of the process --------------------------------------------------------


def _leave() -> None:
    """Segments that are to go, go; the others are kept, in good order."""
    _core.finish_reclaimer(_EXIT_SECONDS)
    _core.leave_segments()


def _leave_with_multiprocessing(_: Any = None) -> None:
    """For a child of `multiprocessing`, which ends without calling `atexit`'s functions."""
    util.Finalize(None, _leave, exitpriority=-100)


# Of programs that were killed since this user's last one.
_core.sweep_leftover_segments()
atexit.register(_leave)
util.register_after_fork(_leave, _leave_with_multiprocessing)
if parent_process() is not None:  # one that imports this after it was forked
    _leave_with_multiprocessing()
