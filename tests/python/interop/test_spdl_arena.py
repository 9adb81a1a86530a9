"""stook.spdl.arena under SPDL's own functions, and where SPDL's own arenas have their limits."""

from __future__ import annotations

import gc
import importlib.util
import os
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest

import stook
import stook.spdl

if importlib.util.find_spec("spdl") is None:
    pytest.skip("spdl is not installed", allow_module_level=True)

import spdl.pipeline
from spdl.pipeline import iterate_in_subprocess, run_pipeline_in_subprocess

PipelineBuilder: Any = spdl.pipeline.PipelineBuilder


class Arrays:
    """Re-iterable, in the subprocess: arrays of these sizes, each full of its number."""

    def __init__(self, sizes: list[int]) -> None:
        self._sizes = sizes

    def __iter__(self) -> Iterator[np.ndarray]:
        for number, size in enumerate(self._sizes):
            yield np.full(size, number % 251, np.uint8)


def image(number: int) -> np.ndarray:
    return np.full((64, 64, 3), number, np.uint8)


def check(arrays: list[np.ndarray], sizes: list[int]) -> None:
    assert [array.size for array in arrays] == sizes
    for number, array in enumerate(arrays):
        assert (array == number % 251).all()


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_pipelines_of_spdl(method: str) -> None:
    config = PipelineBuilder().add_source(range(20)).pipe(image).add_sink(2).get_config()
    images = run_pipeline_in_subprocess(
        config, num_threads=1, arena=stook.spdl.arena(1 << 24), mp_context=method
    )
    kept = [list(images), list(images)]  # across the iterations, where SPDL's own once overwrote
    assert [[int(one.min()) for one in epoch] for epoch in kept] == [[*range(20)]] * 2
    assert all(not one.flags.owndata for epoch in kept for one in epoch)


def iterate(arena: Any, sizes: list[int]) -> Any:
    return iterate_in_subprocess(partial(Arrays, sizes), arena=arena, mp_context="spawn")


def test_a_view_that_is_kept_stops_nothing() -> None:
    sizes = [10_000] * 50
    arrays = iter(iterate(stook.spdl.arena(40 * 10_000), sizes))
    first = next(arrays)[5:6]
    for number, array in enumerate(arrays, 1):
        assert (array == number).all()
    assert first.tolist() == [0]


def test_all_can_be_kept_beyond_the_limit() -> None:
    sizes = [100_000] * 40
    check(list(iterate(stook.spdl.arena(1_000_000), sizes)), sizes)


def test_an_item_larger_than_the_arena() -> None:
    sizes = [5000, 3_000_000, 5000, 2_000_000, 5000]
    source = iterate(stook.spdl.arena(1_000_000), sizes)
    for _ in range(2):
        check(list(source), sizes)


def test_many_arrays_in_an_item() -> None:
    writer_and_reader = stook.spdl.arena(1 << 20)
    writer, reader = writer_and_reader.open_writer(), writer_and_reader.open_reader()
    for _ in range(1000):
        writer.begin_unit()
        places = [writer.write_binary(bytes([number]) * 5000) for number in range(5)]
        span = writer.commit_unit()
        views = [reader.read_binary(*place) for place in places]
        assert [view[4999] for view in views] == [0, 1, 2, 3, 4]
        reader.end_unit(span, list(views))
        del views
    assert len(writer._starts) < 30


def test_what_is_not_read_is_used_again() -> None:
    made = stook.spdl.arena(1 << 20)
    writer, reader = made.open_writer(), made.open_reader()
    for _ in range(1000):
        writer.begin_unit()
        writer.write_binary(bytes(5000))
        reader.end_unit(writer.commit_unit(), [])
        writer.begin_unit()
        writer.write_binary(bytes(5000))
        writer.abort_unit()
    assert len(writer._starts) == 1


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_what_a_forked_child_drops_stays_the_parents() -> None:
    made = stook.spdl.arena(1 << 20)
    writer, reader = made.open_writer(), made.open_reader()

    def write(value: bytes) -> tuple[Any, Any]:
        writer.begin_unit()
        place = writer.write_binary(value * 5000)
        return writer.commit_unit(), place

    span, place = write(b"A")
    view = reader.read_binary(*place)
    reader.end_unit(span, [view])
    unread, unread_place = write(b"B")
    child = os.fork()
    if child == 0:
        try:
            del view
            reader.end_unit(unread, [])
        finally:
            os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    write(b"C")
    assert bytes(view) == b"A" * 5000
    assert bytes(reader.read_binary(*unread_place)) == b"B" * 5000
    reader.end_unit(unread, [])
    del view
    write(b"D")
    assert len(writer._starts) == 3  # here both were returned, and one of them used again


def test_iterations_that_are_left_early_keep_nothing() -> None:
    made = stook.spdl.arena(1 << 20)  # 256 of the blocks below
    source = iterate_in_subprocess(
        partial(Arrays, [4096] * 1000), arena=made, mp_context="spawn", buffer_size=3
    )
    for _ in range(100):
        for array in source:
            # What no longer fits is sent by value, in memory of its own.
            assert _lies_within(array, made)
            break


def _lies_within(array: np.ndarray, arena: Any) -> bool:
    start = arena._memory.ctypes.data
    return bool(start <= array.ctypes.data < start + arena._memory.nbytes)


def test_arrays_outlive_the_arena() -> None:
    source = iterate(stook.spdl.arena(1 << 20), [50_000] * 3)
    arrays = list(source)
    source._finalizer()
    del source
    gc.collect()
    check(arrays, [50_000] * 3)


def test_it_leaves_no_descriptor() -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    for _ in range(3):
        made = stook.spdl.arena(1 << 20)
        made.close()
        made.unlink()
    stook.spdl.arena(1 << 20)
    gc.collect()
    assert sorted(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(("limit", "error"), [(0, ValueError), ("1", TypeError)])
def test_limits_that_make_no_sense(limit: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="memory_limit"):
        stook.spdl.arena(limit)
