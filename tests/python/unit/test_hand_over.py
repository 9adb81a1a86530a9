"""What is moved and what is copied, clause by clause.

What is copied because the worker keeps it is in test_kept_by_the_worker.py.
"""

from __future__ import annotations

import contextvars
import pickle
import tempfile
import threading
import weakref
from collections import namedtuple
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from courier import Courier
from leaf_cases import Array, Sample, arrays_in

SIZE = 5000  # bytes and more than min_shared_bytes


@pytest.fixture(scope="module")
def courier() -> Iterator[Courier]:
    with Courier() as courier:
        yield courier


def _values() -> Any:
    return np.arange(SIZE)


# ---- moved -----------------------------------------------------------------------------------


def _stacked() -> Any:
    return np.stack([np.arange(SIZE), np.ones(SIZE)])


def _computed() -> Any:
    array = np.arange(SIZE)
    return (array * 2 + 1)[array % 3 > 0]


def _drawn() -> Any:
    return np.random.default_rng(3).random(SIZE)


def _read_from_a_file() -> Any:
    with tempfile.NamedTemporaryFile() as file:
        np.save(file, np.arange(SIZE))
        file.flush()
        return np.load(file.name)


def _several() -> Any:
    return {"a": [np.arange(SIZE), (np.zeros(SIZE), 3)], "b": np.ones((5, SIZE), order="F")}


def _beside_a_pickled_object() -> Any:
    return {"array": np.arange(SIZE), "object": Sample(1, {2})}


def _local_variables() -> Any:
    array = np.arange(SIZE)
    number = 5
    return locals()


def _from_a_closure_that_died() -> Any:
    array = np.arange(SIZE)

    def get() -> Any:
        return array

    return get()


def _after_a_caught_error() -> Any:
    array = np.arange(SIZE)
    try:
        raise ValueError(array)
    except ValueError:
        return array


def _from_a_finished_generator() -> Any:
    def generate() -> Iterator[Any]:
        yield np.arange(SIZE)

    (array,) = generate()
    return array


def _by_an_array_function() -> Any:
    return np.concatenate([np.zeros(SIZE), np.ones(SIZE)]).reshape(2, SIZE).T


MOVED: dict[str, tuple[Callable[[], Any], int]] = {
    "array": (_values, 1),
    "in-list": (lambda: [_values()], 1),
    "in-tuple": (lambda: (_values(), 1), 1),
    "in-dict": (lambda: {"a": {"b": [_values()]}}, 1),
    "several": (_several, 3),
    "whole-view": (lambda: _values()[:], 1),
    "reshaped": (lambda: _values().reshape(50, 100), 1),
    "transposed": (lambda: _values().reshape(50, 100).T, 1),
    "backwards": (lambda: _values()[::-1], 1),
    "every-second": (lambda: _values()[::2], 1),
    "half": (lambda: np.zeros(32768, "u1")[:16384], 1),
    "middle": (lambda: _values()[1000:4500], 1),
    "another-dtype": (lambda: _values().view("f4"), 1),
    "a-field": (lambda: np.zeros(SIZE, "i4,f8")["f1"], 1),
    "swapped": (lambda: np.arange(SIZE).astype(">i4"), 1),
    "times": (lambda: np.arange(SIZE).astype("M8[s]"), 1),
    "structured": (lambda: np.zeros(SIZE, "i4,f8,S5"), 1),
    "read-only": (lambda: _read_only(_values()), 1),
    "zeros": (lambda: np.zeros(SIZE), 1),
    "computed": (_computed, 1),
    "stacked": (_stacked, 1),
    "drawn": (_drawn, 1),
    "read-from-a-file": (_read_from_a_file, 1),
    "joined": (_by_an_array_function, 1),
    "beside-a-pickled-object": (_beside_a_pickled_object, 1),
    "local-variables": (_local_variables, 1),
    "from-a-closure-that-died": (_from_a_closure_that_died, 1),
    "after-a-caught-error": (_after_a_caught_error, 1),
    "from-a-finished-generator": (_from_a_finished_generator, 1),
    "grown": (lambda: _grown(), 1),
}


def _read_only(array: Any) -> Any:
    array.flags.writeable = False
    return array


def _grown() -> Any:
    array = np.arange(SIZE)
    array.resize(3 * SIZE, refcheck=False)
    return array


def _make_moved(name: str) -> Any:
    return MOVED[name][0]()


@pytest.mark.parametrize("name", MOVED)
def test_moved(courier: Courier, name: str) -> None:
    got = courier.call(_make_moved, name)
    assert (courier.stats.moved, courier.stats.copied) == (MOVED[name][1], 0)
    for mine, theirs in zip(arrays_in(got), arrays_in(_make_moved(name)), strict=True):
        assert np.array_equal(mine, theirs)
        assert mine.strides == theirs.strides
        assert mine.flags.writeable


# ---- copied because it could not be told, or is not ours ----------------------------------------

_Pair = namedtuple("_Pair", "a b")
_refs: list[Any] = []


class _Dict(dict):  # type: ignore[type-arg]
    pass


def _with_a_weak_reference() -> Any:
    array = np.arange(SIZE)
    _refs.append(weakref.ref(array))
    return array


def _whose_base_has_a_weak_reference() -> Any:
    array = np.arange(SIZE)
    _refs.append(weakref.ref(array))
    return array[:]


def _overlapping() -> Any:
    return np.ndarray((50, 50), "i8", np.arange(SIZE), 0, (8, 8))


def _twice() -> Any:
    array = np.arange(SIZE)
    return [array, array]


def _array_and_view() -> Any:
    array = np.arange(SIZE)
    return array, array[::2]


def _two_halves() -> Any:
    array = np.arange(2 * SIZE)
    return array[:SIZE], array[SIZE:]


def _written_back() -> Any:
    tests = pytest.importorskip("numpy._core._multiarray_tests", exc_type=ImportError)
    array = tests.npy_create_writebackifcopy(np.arange(SIZE).reshape(50, 100).T)
    _refs.append(array)
    return array


def _mapped() -> Any:
    with tempfile.NamedTemporaryFile() as file:
        mapped = np.memmap(file.name, "i8", "w+", shape=(SIZE,))
        mapped[:] = np.arange(SIZE)
        return mapped


def _made_by_a_finished_thread() -> Any:
    # NumPy's allocator is a matter of the context, and a thread begins with an empty one.
    box: list[Any] = []
    thread = threading.Thread(
        target=contextvars.Context().run, args=(lambda: box.append(np.arange(SIZE)),)
    )
    thread.start()
    thread.join()
    return box.pop()


COPIED: dict[str, tuple[Callable[[], Any], int]] = {
    "in-a-dict-subclass": (lambda: _Dict(a=_values()), 1),
    "in-a-namedtuple": (lambda: _Pair(_values(), 1), 1),
    "in-a-dataclass": (lambda: Sample(_values()), 1),
    "with-a-weak-reference": (_with_a_weak_reference, 1),
    "whose-base-has-a-weak-reference": (_whose_base_has_a_weak_reference, 1),
    "base-of-a-subclass": (lambda: np.asarray(_values().view(Array)[1:]), 1),
    "as-strided": (lambda: np.lib.stride_tricks.as_strided(_values(), (SIZE,), (8,)), 1),
    "broadcast": (lambda: np.broadcast_to(_values(), (3, SIZE)), 1),
    "overlapping": (_overlapping, 1),
    "twice": (_twice, 1),
    "array-and-view": (_array_and_view, 2),
    "two-halves": (_two_halves, 2),
    "small-part": (lambda: np.zeros(32768, "u1")[:16000], 1),
    "from-a-buffer": (lambda: np.frombuffer(bytes(SIZE), "u1"), 1),
    "unpickled": (lambda: pickle.loads(pickle.dumps(_values(), 5)), 1),
    "mapped": (lambda: np.asarray(_mapped()), 1),
    "large-zeros-of-the-heap": (lambda: np.zeros((65 << 20) // 8), 1),
    "made-by-a-thread": (_made_by_a_finished_thread, 1),
    "below-min-shared-bytes": (lambda: np.zeros(4095, "u1"), 0),
}


def _make_copied(name: str) -> Any:
    return COPIED[name][0]()


@pytest.mark.parametrize("name", COPIED)
def test_copied(courier: Courier, name: str) -> None:
    got = courier.call(_make_copied, name)
    assert (courier.stats.moved, courier.stats.copied) == (0, COPIED[name][1])
    for mine, theirs in zip(arrays_in(got), arrays_in(_make_copied(name)), strict=True):
        assert np.array_equal(mine, theirs)


def test_an_array_subclass_is_copied(courier: Courier) -> None:
    got = courier.call(_subclass)
    assert type(got) is Array
    assert courier.stats.moved == 0


def _subclass() -> Any:
    return np.arange(SIZE).view(Array)


def test_an_array_that_is_to_be_written_back_is_copied(courier: Courier) -> None:
    pytest.importorskip(
        "numpy._core._multiarray_tests", reason="NumPy was installed without its test module"
    )
    got = courier.call(_written_back)
    assert (courier.stats.moved, courier.stats.copied) == (0, 1)
    assert np.array_equal(got, np.arange(SIZE).reshape(50, 100).T)
    courier.call(_resolve)


def _resolve() -> None:
    from numpy._core import _multiarray_tests as tests  # type: ignore[attr-defined]

    tests.npy_resolve(_refs.pop())


def test_a_tensor_is_copied(courier: Courier) -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    got = courier.call(_tensor)
    assert (courier.stats.moved, courier.stats.copied) == (0, 1)
    assert got.tolist() == list(range(SIZE))


def _tensor() -> Any:
    import torch

    return torch.arange(SIZE)


def test_small_arrays_have_the_allocator_that_was_there_before(courier: Courier) -> None:
    assert courier.call(_large_then_released) == [True, True]


def _large_then_released() -> list[bool]:
    # What is made and dropped in a job does not stay.
    found = []
    for size in (10, SIZE):
        array = np.arange(size)
        found.append(bool(array.sum() == size * (size - 1) // 2))
    return found


def test_an_array_that_outlives_its_job_in_the_worker_is_copied_later(courier: Courier) -> None:
    courier.call(_remember)
    for _ in range(20):
        courier.call(_values)
    got = courier.call(_recall)
    assert (courier.stats.moved, courier.stats.copied) == (1, 0)  # nobody has it any more
    assert np.array_equal(got, np.arange(SIZE))


def test_an_array_that_is_made_between_jobs_is_copied(courier: Courier) -> None:
    courier.call(Late)
    got = courier.call(_recall)
    assert (courier.stats.moved, courier.stats.copied) == (0, 1)
    assert np.array_equal(got, np.arange(SIZE))


class Late:
    """Makes an array when the worker drops it, which is after it was sent."""

    def __del__(self) -> None:
        _remembered.append(np.arange(SIZE))


_remembered: list[Any] = []


def _remember() -> None:
    _remembered.append(np.arange(SIZE))


def _recall() -> Any:
    return _remembered.pop()
