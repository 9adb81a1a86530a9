"""What a SharedMemoryArray's handle says, and what is made of one."""

from __future__ import annotations

import dataclasses
import os
import pickle
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from segment_cases import filled, made, segments

from conftest import RunPython
from stook import SharedMemoryArray, SharedMemoryArrayMetadata


def test_metadata() -> None:
    array = filled()
    handle = array[1:, ::2].metadata
    assert handle == SharedMemoryArrayMetadata(
        array.metadata.name, (3, 3), np.dtype("int32"), (24, 8), 24
    )
    assert pickle.loads(pickle.dumps(handle)) == handle
    assert hash(handle) == hash(pickle.loads(pickle.dumps(handle)))
    again = SharedMemoryArray.from_metadata(handle)
    np.testing.assert_array_equal(again, array[1:, ::2])


def test_a_handle_as_grain_makes_them() -> None:
    array = filled()

    @dataclasses.dataclass(frozen=True)
    class Metadata:  # of grain.multiprocessing
        name: str
        shape: tuple[int, ...]
        dtype: Any

    again = SharedMemoryArray.from_metadata(Metadata(array.metadata.name, (4, 6), np.int32))
    np.testing.assert_array_equal(again, array)


def test_the_standard_library_opens_it() -> None:
    array = filled()
    memory = SharedMemory(name=array.metadata.name)
    try:
        found = np.ndarray((4, 6), "int32", memory.buf)
        np.testing.assert_array_equal(found, array)
        del found
    finally:
        memory.close()
        # It believes that it is its own, and would unlink it at the end.
        from multiprocessing import resource_tracker

        resource_tracker.unregister(f"/{array.metadata.name}", "shared_memory")


@pytest.mark.parametrize(
    "change",
    [
        {"offset": 5000},
        {"offset": 1 << 63},
        {"offset": -1},
        {"offset": 1 << 70},
        {"shape": (400, 600)},
        {"shape": (-4, 6)},
        {"strides": (1 << 40, 4)},
        {"strides": (1 << 62, 1 << 62)},
        {"strides": (-24, -4)},
        {"strides": (4,)},
        {"dtype": np.dtype(object)},
        {"dtype": np.dtype("V1000000")},
        {"name": "with/slash"},
        {"name": "zero\0byte"},
        {"name": ""},
        {"name": ".."},
        {"name": "stook_0123456789abc"},
        {"name": "x" * 300},
    ],
    ids=str,
)
def test_a_forged_handle_is_refused(change: dict[str, Any]) -> None:
    array = filled()
    handle = dataclasses.replace(array.metadata, **change)
    with pytest.raises(ValueError, match=r"SharedMemoryArray|segment|name"):
        SharedMemoryArray.from_metadata(handle)


@pytest.mark.parametrize("what", [3, None, "name", object()])
def test_what_is_no_handle_is_refused(what: Any) -> None:
    with pytest.raises(TypeError, match="takes a SharedMemoryArrayMetadata"):
        SharedMemoryArray.from_metadata(what)


def test_a_handle_of_what_is_gone() -> None:
    array = made(10)
    handle, pickled = array.metadata, pickle.dumps(array)
    handle.close_and_unlink_shm()
    array[...] = 5  # it stays valid where it is attached
    with pytest.raises(FileNotFoundError, match=f"no shared segment {handle.name} .any more.: it"):
        SharedMemoryArray.from_metadata(handle)
    with pytest.raises(FileNotFoundError, match=handle.name):
        pickle.loads(pickled)
    with pytest.raises(FileNotFoundError, match=handle.name):
        handle.close_and_unlink_shm()
    assert array.sum() == 50


def test_without_unlink_on_del_a_segment_stays() -> None:
    array = SharedMemoryArray(10)
    array[...] = 4
    handle = array.metadata
    del array
    assert SharedMemoryArray.from_metadata(handle).sum() == 40
    again = SharedMemoryArray.from_metadata(handle)
    again.unlink_on_del()
    del again
    assert handle.name not in segments()


def test_a_handle_opened_twice() -> None:
    array = made(10)
    first = SharedMemoryArray.from_metadata(array.metadata)
    second = SharedMemoryArray.from_metadata(array.metadata)
    first[0] = 1
    assert second[0] == array[0] == 1
    del array
    first[1] = 2
    assert second[1] == 2


def test_many_arrays_hold_no_descriptors() -> None:
    first = made(1)
    before = len(os.listdir("/proc/self/fd"))
    arrays = [made(10) for _ in range(500)]
    copies = [pickle.loads(pickle.dumps(array)) for array in arrays]
    assert len(os.listdir("/proc/self/fd")) == before
    assert len({array.metadata.name for array in [first, *arrays]}) == 501
    del arrays, copies


def test_one_mapping_serves_all_handles_in_a_process() -> None:
    array = filled()
    pickled = pickle.dumps(array)
    maps = Path("/proc/self/maps")
    before = maps.read_text().count(array.metadata.name)
    copies = [pickle.loads(pickled) for _ in range(10)]
    assert maps.read_text().count(array.metadata.name) == before == 1
    assert len({copied.ctypes.data for copied in copies}) == 1
    # The segment goes with the last of them, whichever was asked to see to it.
    name = array.metadata.name
    del array
    assert name in segments()
    copies.clear()
    assert name not in segments()


def test_a_leading_slash_names_the_same_segment() -> None:
    array = filled()
    again = SharedMemoryArray.from_metadata(
        dataclasses.replace(array.metadata, name="/" + array.metadata.name)
    )
    assert again.ctypes.data == array.ctypes.data
    with pytest.raises(ValueError, match="is no name"):
        SharedMemoryArray.from_metadata(
            dataclasses.replace(array.metadata, name="//" + array.metadata.name)
        )


@pytest.mark.parametrize("use", ["pickle.dumps(array)", "array.metadata"])
def test_an_array_that_was_moved_out_of_its_segment_says_so(
    run_python: RunPython, use: str
) -> None:
    code = f"""
        import pickle, numpy as np, stook
        array = stook.SharedMemoryArray(3)
        array.__setstate__(np.ones(3).__reduce__()[2])
        try:
            {use}  # the first use of a handle in its process
        except ValueError as error:
            print(error)
    """
    assert run_python(code).check().stdout == "this array lies in no segment\n"


def test_a_segment_whose_name_nobody_was_told_goes_with_its_last_array() -> None:
    before = segments()
    array = SharedMemoryArray(10)
    view = array[1:]
    assert len(segments() - before) == 1
    del array
    assert len(segments() - before) == 1
    del view
    assert segments() == before  # nobody could ever have opened it


def test_from_metadata_by_keyword() -> None:
    array = filled()
    np.testing.assert_array_equal(SharedMemoryArray.from_metadata(metadata=array.metadata), array)
