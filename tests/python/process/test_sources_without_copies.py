"""Sources that reach the workers without a copy for each of them, or without any."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from process_loader import made

import stook

MIB = 1 << 20


def anonymous_memory(pid: int) -> int:
    """Bytes of a process that no file stands behind, so that they are its own or its parent's.

    Not "Private_Dirty": pages of a file that was just written are that as well, in the one process
    that has touched them.
    """
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Anonymous:"):
            return int(line.split()[1]) << 10
    raise AssertionError("the kernel does not count anonymous memory")


class Source:
    """Gives what its worker and its server own after the worker has read all of `held`."""

    def __init__(self, held: Any) -> None:
        self.held = held

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> tuple[int, int, int]:
        read = int(self.held.sum(dtype=np.int64))
        return read, anonymous_memory(os.getpid()), anonymous_memory(os.getppid())


def owned(held: Any) -> tuple[int, int]:
    """The most that a worker and a server own."""
    with made("forkserver", Source(held)) as loader:
        elements = list(loader)
    assert {read for read, *_ in elements} == {int(held.sum(dtype=np.int64))}
    return max(element[1] for element in elements), max(element[2] for element in elements)


def test_arrays_of_a_source_are_held_once_for_all_processes() -> None:
    worker, server = owned(np.ones(10, np.uint8))
    worker_with, server_with = owned(np.ones(32 * MIB, np.uint8))
    assert worker_with - worker < 8 * MIB
    assert server_with - server < 8 * MIB


def test_a_memory_map_and_a_shared_array_are_not_copied(tmp_path: Path) -> None:
    worker, server = owned(np.ones(10, np.uint8))
    path = tmp_path / "data"
    np.ones(32 * MIB, np.uint8).tofile(path)
    for held in (
        np.memmap(path, np.uint8, "r"),
        stook.open_from_shared(stook.copy_to_shared(np.ones(32 * MIB, np.uint8))),
    ):
        worker_with, server_with = owned(held)
        assert worker_with - worker < 8 * MIB
        assert server_with - server < 8 * MIB


def test_large_arrays_arrive_as_they_were() -> None:
    rng = np.random.default_rng(0)
    values = rng.integers(0, 255, (3, 512, 1024))
    frozen = values.copy()
    frozen.flags.writeable = False
    arrays = {
        "c": values,
        "fortran": np.asfortranarray(values),
        "strided": values[:, ::2],
        "frozen": frozen,
        "odd": np.frombuffer(bytes(300_001), np.uint8),
        "small": np.arange(3),
    }

    def look(name: str) -> Any:
        array = arrays[name]
        writeable = array.flags.writeable
        if writeable:
            array[0] += 1  # a copy of this worker's own
        return array.copy(), writeable, array.flags.f_contiguous

    with made("forkserver", list(arrays), look) as loader:
        for (array, writeable, fortran), (name, sent) in zip(loader, arrays.items(), strict=True):
            expected = sent.copy()
            if writeable:
                expected[0] += 1
            np.testing.assert_array_equal(array, expected, name)
            assert (writeable, fortran) == (sent.flags.writeable, sent.flags.f_contiguous), name
    np.testing.assert_array_equal(arrays["c"], frozen)


def content(array: Any) -> tuple[Any, str, Any, bool]:
    return (
        np.array(array),
        type(array).__name__,
        getattr(array, "filename", None),
        array.flags.writeable,
    )


@pytest.mark.parametrize(
    "view",
    [
        lambda held: held,
        lambda held: held[3:7, 5],
        lambda held: held[::-2, ::3],
        lambda held: held.T,
        lambda held: np.asarray(held)[2:],
        lambda held: held.view(np.uint8)[1:2, 1:40],
        lambda held: held[30:],
    ],
)
def test_views_of_memory_maps_open_the_file(tmp_path: Path, view: Any) -> None:
    np.arange(5000, dtype=np.int32).tofile(tmp_path / "data")
    mapped = np.memmap(tmp_path / "data", np.int32, "r+", offset=4 * 8, shape=(40, 100))
    held = view(mapped)
    with made("forkserver", [0], lambda _: content(held), num_workers=1) as loader:
        # The workers are up, and see what comes into the file later.
        ((before, kind, name, writeable),) = list(loader)
        np.testing.assert_array_equal(before, held)
        assert kind == type(held).__name__
        assert name == getattr(held, "filename", None)
        assert writeable
        mapped[:] = -1
        ((after, *_),) = list(loader)
        np.testing.assert_array_equal(after, held)


def test_a_map_that_was_made_anew_is_not_emptied(tmp_path: Path) -> None:
    held = np.memmap(tmp_path / "new", np.int64, "w+", shape=(100,))
    held[:] = 7
    with made("forkserver", [0, 1], lambda _: int(held.sum())) as loader:
        assert list(loader) == [700, 700]
    assert int(held.sum()) == 700


def test_maps_that_are_not_what_the_file_holds_cross_by_value(tmp_path: Path) -> None:
    path = tmp_path / "data"
    np.zeros(100, np.int64).tofile(path)
    own = np.memmap(path, np.int64, "c")
    own[:] = 5
    gone = np.memmap(path, np.int64, "r")
    replaced = np.memmap(path, np.int64, "r")
    (tmp_path / "other").write_bytes(b"\1" * 800)
    os.replace(tmp_path / "other", path)
    empty = np.memmap(path, np.int64, "r")[:0]
    with made("forkserver", [own, gone, replaced, empty], lambda held: int(held.sum())) as loader:
        assert list(loader) == [500, 0, 0, 0]
