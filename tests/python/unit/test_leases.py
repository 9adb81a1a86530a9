"""What a delivered array is, and how long it lasts."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import signal
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from courier import Courier

import stook

SIZE = 5000


@pytest.fixture(scope="module")
def courier() -> Iterator[Courier]:
    with Courier() as courier:
        yield courier


def _values(start: int = 0) -> Any:
    return np.arange(start, start + SIZE)


def _churn(courier: Courier, rounds: int = 60) -> None:
    """Has the worker write into every block that it may use again."""
    for _ in courier.each(_fill, [(number,) for number in range(rounds)]):
        pass


def _fill(number: int) -> Any:
    return [np.full(SIZE, -7), np.full(SIZE, -8), np.full(3 * SIZE, -9)]


def test_a_delivered_array_is_plain_and_writable(courier: Courier) -> None:
    array = courier.call(_values)
    assert type(array) is np.ndarray
    assert array.flags.writeable
    assert array.flags.c_contiguous and array.flags.aligned
    assert not array.flags.owndata
    array[0] = 5
    array.setflags(write=False)
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 6
    array.setflags(write=True)
    array[0] = 7
    assert array[0] == 7


def test_the_base_tells_what_it_is(courier: Courier) -> None:
    array = courier.call(_values)
    assert repr(array.base) == "<stook lease of 40960 bytes in shared memory>"
    with pytest.raises(TypeError, match="cannot create"):
        type(array.base)()


KEEPERS = {
    "slice": lambda array: array[100:],
    "reshape": lambda array: array.reshape(50, 100),
    "transpose": lambda array: array.reshape(50, 100).T,
    "item-view": lambda array: array[3:4],
    "other-dtype": lambda array: array.view("u1"),
    "subclass": lambda array: array.view(np.matrix),
    "view-of-view": lambda array: array[1:][1:][::2],
    "broadcast": lambda array: np.broadcast_to(array, (3, SIZE)),
    "as-strided": lambda array: np.lib.stride_tricks.as_strided(array, (9,), (8,)),
    "memoryview": memoryview,
    "frombuffer": lambda array: np.frombuffer(array, "u1"),
    "dlpack": np.from_dlpack,
    "iterator": lambda array: iter(array.reshape(50, 100)),
    "flat": lambda array: array.flat,
    "split": lambda array: np.array_split(array, 3)[1],
    "pickle-buffer": lambda array: pickle.PickleBuffer(array),
}


@pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
@pytest.mark.parametrize("name", KEEPERS)
def test_what_keeps_the_memory(courier: Courier, name: str) -> None:
    before = courier.bytes_live()
    keeper: Any = KEEPERS[name](courier.call(_values))
    gc.collect()
    assert courier.bytes_live() == before + 40960
    _churn(courier)
    # By another way to the same memory: what is kept is as it was.
    if name in ("iterator", "flat"):
        seen = np.concatenate([np.atleast_1d(item) for item in keeper])
        assert np.array_equal(seen, np.arange(SIZE))
    elif name == "pickle-buffer":
        assert np.array_equal(np.frombuffer(keeper, "i8"), np.arange(SIZE))
    else:
        want = KEEPERS[name](np.arange(SIZE))
        assert np.asarray(keeper).tobytes() == np.asarray(want).tobytes()
        del want
    del keeper
    assert courier.bytes_live() == before


def test_a_tensor_keeps_the_memory(courier: Courier) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    before = courier.bytes_live()
    tensor = torch.from_numpy(courier.call(_values))
    _churn(courier)
    assert torch.equal(tensor, torch.arange(SIZE))
    assert courier.bytes_live() == before + 40960
    del tensor
    assert courier.bytes_live() == before


COPIES = {
    "copy": lambda array: array.copy(),
    "copy-module": copy.copy,
    "deepcopy": copy.deepcopy,
    "astype": lambda array: array.astype("i8"),
    "pickle": lambda array: pickle.loads(pickle.dumps(array)),
    "pickle-5": lambda array: pickle.loads(pickle.dumps(array, 5)),
    "ufunc": lambda array: array + 0,
    "take": lambda array: array.take(range(SIZE)),
    "mask": lambda array: array[array >= 0],
    "bytes": lambda array: np.frombuffer(array.tobytes(), "i8"),
    "list": lambda array: np.array(array.tolist()),
}


@pytest.mark.parametrize("name", COPIES)
def test_what_is_a_copy_of_ones_own(courier: Courier, name: str) -> None:
    before = courier.bytes_live()
    array = courier.call(_values)
    mine = COPIES[name](array)
    assert stook.is_shared(array)
    assert not stook.is_shared(mine)
    assert type(mine) is np.ndarray
    array[...] = -1
    assert np.array_equal(mine, np.arange(SIZE))
    del array
    assert courier.bytes_live() == before


def test_out_of_band_pickling_keeps_the_memory_for_as_long(courier: Courier) -> None:
    buffers: list[pickle.PickleBuffer] = []
    data = pickle.dumps(courier.call(_values), 5, buffer_callback=buffers.append)
    array = pickle.loads(data, buffers=buffers)
    buffers.clear()
    _churn(courier)
    assert np.array_equal(array, np.arange(SIZE))
    assert array.flags.writeable


def test_is_shared(courier: Courier) -> None:
    array = courier.call(_values)
    assert stook.is_shared(array)
    assert stook.is_shared(array[3:])
    assert stook.is_shared(array.reshape(50, 100).T)
    assert stook.is_shared(array.view(np.recarray))
    assert stook.is_shared(np.frombuffer(array, "u1"))
    for other in [
        array.copy(),
        array + 1,
        array[0],
        np.zeros(SIZE),
        np.zeros(SIZE)[1:],
        np.frombuffer(bytes(8), "u1"),
        courier.call(np.arange, 3),  # small: travels by value
        None,
        [array],
        "text",
    ]:
        assert not stook.is_shared(other)
    with pytest.raises(TypeError):
        stook.is_shared()  # type: ignore[call-arg]


def test_buffers_of_pickled_objects_are_shared_too(courier: Courier) -> None:
    before = courier.bytes_live()
    array = courier.call(_in_object).array
    assert stook.is_shared(array)
    _churn(courier)
    assert np.array_equal(array, np.arange(SIZE))
    array[0] = 1
    del array
    assert courier.bytes_live() == before


class Holder:
    def __init__(self) -> None:
        self.array = np.arange(SIZE)


def _in_object() -> Any:
    return Holder()


def test_arrays_of_one_element_are_given_back_one_by_one(courier: Courier) -> None:
    before = courier.bytes_live()
    first, second = courier.call(_two)
    assert courier.bytes_live() == before + 2 * 40960
    del first
    assert courier.bytes_live() == before + 40960
    _churn(courier)
    assert np.array_equal(second, np.arange(SIZE) + 5)
    del second
    assert courier.bytes_live() == before


def _two() -> Any:
    return [_values(), _values(5)]


def test_copied_arrays_of_one_element_share_a_block(courier: Courier) -> None:
    before = courier.bytes_live()
    first, second = courier.call(_two_kept)
    assert courier.bytes_live() == before + 2 * 40960
    del first
    assert courier.bytes_live() == before + 2 * 40960
    _churn(courier)
    assert np.array_equal(second, np.arange(SIZE) + 5)
    del second
    assert courier.bytes_live() == before


_kept: list[Any] = []


def _two_kept() -> Any:
    _kept[:] = [_values(), _values(5)]
    return _kept


def test_cycles_are_collected(courier: Courier) -> None:
    before = courier.bytes_live()
    element = courier.call(_cycle)
    gone = weakref.ref(element["array"])
    del element
    assert courier.bytes_live() == before
    assert gone() is None


def _cycle() -> Any:
    element: dict[str, Any] = {"array": _values()}
    element["self"] = element
    return element


def test_arrays_dropped_in_other_threads(courier: Courier) -> None:
    before = courier.bytes_live()
    boxes: list[list[Any]] = [[] for _ in range(4)]
    for number, array in enumerate(courier.each(_values, [(number,) for number in range(400)])):
        boxes[number % 4].append((number, array))
        del array
        if number % 40 == 39:
            full = boxes
            boxes = [[] for _ in range(4)]
            threads = [threading.Thread(target=_check_and_drop, args=(box,)) for box in full]
            del full
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            del threads
    assert _wrong == []
    assert courier.bytes_live() == before


_wrong: list[int] = []


def _check_and_drop(box: list[Any]) -> None:
    while box:
        number, array = box.pop()
        if not np.array_equal(array, np.arange(number, number + SIZE)):
            _wrong.append(number)


# ---- beyond the loader's life -------------------------------------------------------------------


def test_after_close() -> None:
    with Courier() as courier:
        kept = courier.map(_values, [(number,) for number in range(5)])
        view = kept[4][10:]
        del kept[4]
    for number, array in enumerate(kept):
        assert np.array_equal(array, np.arange(number, number + SIZE))
        array[...] = 3
    assert view[0] == 14
    assert courier.loader.stats().bytes_live in (0, 5 * 40960)
    while kept:
        kept.pop(0)


def test_after_the_death_of_the_worker() -> None:
    with Courier() as courier:
        kept = courier.map(_values, [(number,) for number in range(5)])
        dead = courier.call(os.getpid)
        os.kill(dead, signal.SIGKILL)
        assert courier.call(os.getpid) != dead
        _churn(courier)
        for number, array in enumerate(kept):
            assert np.array_equal(array, np.arange(number, number + SIZE))
            array[...] = number
        kept[2] = None
        _churn(courier)
        for number, array in enumerate(kept):
            assert array is None or np.all(array == number)
    assert np.all(kept[4] == 4)


def test_the_memory_of_a_closed_loader_goes_with_the_last_array() -> None:
    before = _arenas()
    with Courier() as courier:
        array = courier.call(_values)
        large = courier.call(np.ones, 1 << 20)
    del large
    assert len(_arenas() - before) == 1
    assert np.array_equal(array, np.arange(SIZE))
    del array
    assert _arenas() == before


def _arenas() -> set[str]:
    """The arenas of workers that this process has mapped, by inode."""
    with open("/proc/self/maps", encoding="utf-8") as maps:
        return {line.split()[4] for line in maps if "memfd:stook-arena" in line}


# ---- keeping much -------------------------------------------------------------------------------


def _list_all(count: int, limit: int) -> None:
    with Courier(memory_limit=limit, num_workers=2, per_worker_buffer_size=8) as courier:
        kept = courier.map(_eight_kib, [(number,) for number in range(count)])
        for number, array in enumerate(kept):
            assert array.shape == (1024,)
            assert array[0] == number
            assert array[-1] == number
            assert (array == number).all()
        shared = sum(map(stook.is_shared, kept))
        assert courier.stats.moved == shared
        assert courier.stats.copied == count - shared
        assert shared * 8192 <= 2 * limit  # those within the window when it was reached
        assert courier.stats.copied > 0


def _eight_kib(number: int) -> Any:
    return np.full(1024, number)


def test_a_consumer_that_keeps_everything() -> None:
    _list_all(20_000, 4 << 20)


@pytest.mark.long
def test_a_consumer_that_keeps_everything_of_much() -> None:
    _list_all(100_000, 4 << 20)


@pytest.mark.long
def test_a_consumer_that_keeps_everything_within_the_default_limit() -> None:
    with Courier(num_workers=2, per_worker_buffer_size=8) as courier:
        kept = courier.map(_eight_kib, [(number,) for number in range(100_000)])
        assert all((array == number).all() for number, array in enumerate(kept))


def test_one_array_kept_while_many_pass() -> None:
    with Courier(num_workers=2, per_worker_buffer_size=8, memory_limit=16 << 20) as courier:
        kept: Any = None
        most = 0
        for number, array in enumerate(
            courier.each(_eight_kib, [(number,) for number in range(50_000)])
        ):
            if number == 100:
                kept = array
            if number % 1000 == 0:
                most = max(most, courier.loader.stats().bytes_live)
        assert (kept == 100).all()
        # The window of both workers and what is held here.
        assert most <= 30 * 8192
        assert courier.stats.copied == 0
