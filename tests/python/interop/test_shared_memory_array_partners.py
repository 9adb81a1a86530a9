"""SharedMemoryArrays in other libraries: no copy, and alive while one of them holds it."""

from __future__ import annotations

import ctypes
import os
import pickle
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from partner_loader import require

from stook import SharedMemoryArray

pytestmark = [
    pytest.mark.leaves("partners keep threads", "threads"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


def segments() -> set[str]:
    return {name for name in os.listdir("/dev/shm") if re.fullmatch("stook_[^_]+_[^_]+", name)}


def with_torch(array: Any) -> Any:
    (torch,) = require("torch")
    return torch.from_numpy(array)


def with_torch_dlpack(array: Any) -> Any:
    (torch,) = require("torch")
    return torch.utils.dlpack.from_dlpack(array)


def with_jax(array: Any) -> Any:
    (numpy,) = require("jax.numpy")
    return numpy.asarray(array)


HOLDERS: dict[str, Callable[[Any], Any]] = {
    "torch.from_numpy": with_torch,
    "torch.from_numpy of a view": lambda array: with_torch(array[2:])[:],
    "torch.utils.dlpack": with_torch_dlpack,
    "memoryview": memoryview,
    "np.asarray": np.asarray,
    "np.from_dlpack": np.from_dlpack,
    "ctypes": lambda array: (ctypes.c_char * array.nbytes).from_buffer(array),
    "np.frombuffer": lambda array: np.frombuffer(array, np.float32),
}


@pytest.mark.parametrize("name", HOLDERS)
@pytest.mark.parametrize("attached", [False, True])
def test_partners_hold_the_memory_without_a_copy(name: str, attached: bool) -> None:
    before = segments()
    array = SharedMemoryArray(64, np.float32)
    array.unlink_on_del()
    array[...] = 3
    if attached:
        array = pickle.loads(pickle.dumps(array))
        array.unlink_on_del()
    address = array.ctypes.data
    holder = HOLDERS[name](array)
    array[...] = 5
    del array
    if not attached:
        assert len(segments() - before) == 1
    # What is read is what was written after the hand-over, where it was written.
    seen = np.frombuffer(memoryview(holder.numpy() if hasattr(holder, "numpy") else holder), "f4")
    assert (seen == 5).all()
    assert address <= seen.ctypes.data < address + 64 * 4
    del seen, holder
    assert segments() == before


def test_jax_computes_with_it() -> None:
    array = SharedMemoryArray(64, np.float32)
    array.unlink_on_del()
    array[...] = 3
    held = with_jax(array)
    assert float(held.sum()) == 192
    del held


def test_numba_works_on_it_in_place() -> None:
    (numba,) = require("numba")

    @numba.njit
    def add_one(values: Any) -> Any:
        for i in range(len(values)):
            values[i] += 1
        return values.sum()

    array = SharedMemoryArray(64, np.float32)
    array.unlink_on_del()
    assert add_one(np.asarray(array[::2])) == 32
    assert array.sum() == 32


def test_opencv_writes_into_it() -> None:
    (cv2,) = require("cv2")
    array = SharedMemoryArray((8, 8, 3), np.uint8)
    array.unlink_on_del()
    cv2.rectangle(array, (0, 0), (7, 7), (7, 7, 7), -1)
    assert (array == 7).all()
    resized = cv2.resize(array, (4, 4), dst=np.asarray(array[:4, :4]).copy())
    assert resized.shape == (4, 4, 3)


def test_torch_works_on_it_in_place() -> None:
    (torch,) = require("torch")
    array = SharedMemoryArray((4, 4), np.float32)
    array.unlink_on_del()
    torch.from_numpy(array.T).add_(2)
    assert (pickle.loads(pickle.dumps(array)) == 2).all()
