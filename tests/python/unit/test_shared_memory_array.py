"""SharedMemoryArray: what it is, what computing with it gives, and what its handle says."""

from __future__ import annotations

import copy
import gc
import operator
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from segment_cases import filled, made, segments

import stook
from stook import SharedMemoryArray

# ------------------------------------------------------------------ making one


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((2, 3), (2, 3)),
        ([2, 3], (2, 3)),
        (range(1, 3), (1, 2)),
        (5, (5,)),
        (np.int64(5), (5,)),
        (np.array([2, 3]), (2, 3)),
        ((np.int8(2),), (2,)),
        ((), ()),
        (0, (0,)),
        ((3, 0, 2), (3, 0, 2)),
    ],
)
def test_shapes(shape: Any, expected: tuple[int, ...]) -> None:
    array = made(shape)
    assert array.shape == expected
    assert array.dtype == np.float64
    assert isinstance(array, np.ndarray)
    assert array.flags.c_contiguous and array.flags.writeable and not array.flags.owndata
    assert not array.any()
    array[...] = 3
    assert pickle.loads(pickle.dumps(array)).tolist() == np.full(expected, 3.0).tolist()


DTYPES = [
    "?", "i1", ">u2", "<i4", ">f8", "f2", "c16", "M8[ns]", "m8[D]", "S5", "U3", ">U3", "V7",
    [("a", "<i4"), ("b", ">f8", (2,))],
]  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes_arrive_as_sent(dtype: Any) -> None:
    array = made((2, 2), dtype)
    plain = np.empty((2, 2), dtype)
    array.view("u1")[...] = np.arange(array.nbytes).reshape(2, -1) % 2
    plain.view("u1")[...] = np.arange(array.nbytes).reshape(2, -1) % 2
    arrived = pickle.loads(pickle.dumps(array[::-1]))
    assert arrived.dtype == plain.dtype
    assert arrived.tobytes() == plain[::-1].tobytes()


def test_flexible_dtypes_without_a_length_hold_one_character() -> None:
    assert made(2, "S").dtype == np.dtype("S1")
    assert made(2, str).dtype == np.dtype("U1")


@pytest.mark.parametrize(
    ("shape", "dtype", "error", "words"),
    [
        (-1, "f8", ValueError, "negative length -1"),
        ((2, -3), "f8", ValueError, "negative length -3"),
        ("ab", "f8", TypeError, "must hold ints, got 'ab'"),
        (1.5, "f8", TypeError, "an int or an iterable of ints, got 1.5"),
        (None, "f8", TypeError, "an int or an iterable of ints, got None"),
        ((2,) * 65, "f8", ValueError, "dimension"),
        ((1 << 40, 1 << 40), "f8", ValueError, "larger than an address can be"),
        (2, object, ValueError, "refer to memory of this process"),
        (2, [("a", object)], ValueError, "refer to memory of this process"),
        (2, "nonsense", TypeError, "nonsense"),
    ],
)
def test_what_cannot_be_made(shape: Any, dtype: Any, error: type, words: str) -> None:
    before = segments()
    with pytest.raises(error, match=words):
        SharedMemoryArray(shape, dtype)
    assert segments() == before


def test_it_cannot_be_derived_from() -> None:
    with pytest.raises(TypeError, match="not an acceptable base type"):
        type("Derived", (SharedMemoryArray,), {})


def test_more_than_shared_memory_holds() -> None:
    before = segments()
    with pytest.raises(stook.SharedMemoryExhausted, match="bytes"):
        SharedMemoryArray(1 << 50, "u1")
    assert segments() == before


def test_its_memory_is_zero_also_where_it_was_used_before() -> None:
    for _ in range(3):
        array = made(100_000, "u1")
        assert not array.any()
        array[...] = 255
        del array


# ------------------------------------------------------------------ what is plain, and what is not

PLAIN: dict[str, Callable[[Any], Any]] = {
    "copy": lambda a: a.copy(),
    "copy.copy": copy.copy,
    "copy.deepcopy": copy.deepcopy,
    "np.copy subok": lambda a: np.copy(a, subok=True),
    "np.array subok": lambda a: np.array(a, subok=True),
    "astype": lambda a: a.astype("f8"),
    "take": lambda a: a.take([1, 2]),
    "fancy index": lambda a: a[[0, 2]],
    "mixed index": lambda a: a[1:, [0, 2]],
    "mask": lambda a: a[a > 3],
    "add": lambda a: a + 1,
    "radd": lambda a: 1 + a,
    "add itself": lambda a: a + a,
    "add views": lambda a: a[0] + a[1],
    "compare": lambda a: a > 3,
    "negative": operator.neg,
    "matmul": lambda a: a @ a.T,
    "dot": lambda a: a.dot(a.T),
    "sum": lambda a: a.sum(axis=0),
    "sum keepdims": lambda a: a.sum(keepdims=True),
    "mean": lambda a: a.mean(axis=0),
    "std": lambda a: a.std(axis=1),
    "cumsum": lambda a: a.cumsum(),
    "argmax": lambda a: a.argmax(axis=0),
    "argsort": lambda a: a.argsort(),
    "nonzero": lambda a: a.nonzero()[0],
    "flatten": lambda a: a.flatten(),
    "ravel of a transposed": lambda a: a.T.ravel(),
    "reshape of a transposed": lambda a: a.T.reshape(-1),
    "repeat": lambda a: a.repeat(2),
    "compress": lambda a: a.compress([True, False], axis=0),
    "choose": lambda a: np.choose([0, 1], [a[0, :2], a[1, :2]]),
    "clip": lambda a: a.clip(1, 3),
    "round": lambda a: a.astype("f4").round(1),
    "byteswap": lambda a: a.byteswap(),
    "searchsorted": lambda a: a[0].searchsorted([1, 2]),
    "flat": lambda a: a.flat[2:5],
    "conjugate": lambda a: a.astype(complex).conj(),
    "where": lambda a: np.where(a > 1, a, 0),
    "concatenate": lambda a: np.concatenate([a, a]),
    "stack": lambda a: np.stack([a, a]),
    "empty_like": np.empty_like,
    "zeros_like": np.zeros_like,
    "full_like": lambda a: np.full_like(a, 3),
    "sort": np.sort,
    "unique": np.unique,
    "median": lambda a: np.median(a, axis=0),
    "percentile": lambda a: np.percentile(a, 30, axis=0),
    "roll": lambda a: np.roll(a, 1),
    "pad": lambda a: np.pad(a, 1),
    "delete": lambda a: np.delete(a, 0, axis=0),
    "insert": lambda a: np.insert(a, 0, 1),
    "einsum": lambda a: np.einsum("ij->j", a),
    "outer": lambda a: np.outer(a, a),
    "fft": np.fft.fft,
    "linalg": lambda a: np.linalg.pinv(a),
    "ascontiguousarray": lambda a: np.ascontiguousarray(a.T),
    "take_along_axis": lambda a: np.take_along_axis(a, a.argsort(), 1),
    "fromiter": lambda a: np.fromiter(a.flat, a.dtype),
    "save and load": lambda a: np.frombuffer(bytearray(a.tobytes()), a.dtype).reshape(a.shape),
}


@pytest.mark.parametrize("name", PLAIN)
def test_computing_and_copying_give_plain_arrays(name: str) -> None:
    array = filled()
    plain = np.arange(24, dtype="int32").reshape(4, 6)
    result = PLAIN[name](array)
    assert type(result) is np.ndarray
    assert not stook.is_shared(result)
    if "empty" not in name:
        np.testing.assert_array_equal(result, PLAIN[name](plain))
    result[...] = 77
    np.testing.assert_array_equal(array, plain)  # the segment is not written through it


SCALARS: dict[str, Callable[[Any], Any]] = {
    "sum": lambda a: a.sum(),
    "mean": lambda a: a.mean(),
    "max": lambda a: a.max(),
    "all": lambda a: a.all(),
    "argmax": lambda a: a.argmax(),
    "item": lambda a: a[1, 2],
    "reduce": lambda a: np.add.reduce(a, axis=None),
    "ufunc of a 0-d view": lambda a: np.add(a[1, 2, ...], 1),
    "dot of rows": lambda a: a[0].dot(a[1]),
    "prod": lambda a: np.prod(a),
}


@pytest.mark.parametrize("name", SCALARS)
def test_what_has_no_dimension_is_a_scalar(name: str) -> None:
    array = filled()
    plain = SCALARS[name](np.arange(24, dtype="int32").reshape(4, 6))
    result = SCALARS[name](array)
    assert type(result) is type(plain)
    assert result == plain


VIEWS: dict[str, Callable[[Any], Any]] = {
    "whole": lambda a: a[...],
    "rows": lambda a: a[1:],
    "stepped": lambda a: a[::2, 1::3],
    "reversed": lambda a: a[::-1, ::-1],
    "transposed": lambda a: a.T,
    "reshaped": lambda a: a.reshape(2, 12),
    "raveled": lambda a: a.ravel(),
    "row": lambda a: a[1],
    "0-d": lambda a: a[1, 2, ...],
    "new axis": lambda a: a[:, None],
    "squeezed": lambda a: a[:1].squeeze(),
    "swapped": lambda a: a.swapaxes(0, 1),
    "diagonal": lambda a: a.diagonal(),
    "bytes": lambda a: a.view("u1"),
    "other dtype": lambda a: a[:, :2].copy() if a is None else a.view("i2")[:, ::2],
    "field": lambda a: a.getfield("i2"),
    "broadcast": lambda a: np.broadcast_to(a, (2, 4, 6), subok=True),
    "empty": lambda a: a[2:2],
    "split": lambda a: np.split(a, 2)[1],
    "real": lambda a: a.real,
    "asanyarray": np.asanyarray,
}


@pytest.mark.parametrize("name", VIEWS)
def test_views_travel_as_themselves(name: str) -> None:
    array = filled()
    view = VIEWS[name](array)
    expected = VIEWS[name](np.arange(24, dtype="int32").reshape(4, 6))
    assert type(view) is SharedMemoryArray
    assert stook.is_shared(view)
    arrived = pickle.loads(pickle.dumps(view))
    assert type(arrived) is SharedMemoryArray
    assert arrived.metadata == view.metadata
    assert (arrived.shape, arrived.strides, arrived.dtype) == (
        expected.shape,
        expected.strides,
        expected.dtype,
    )
    np.testing.assert_array_equal(arrived, expected)
    if arrived.size and name != "broadcast":
        arrived[...] = 1
        np.testing.assert_array_equal(view, np.ones_like(expected))  # it is the same memory


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_every_view_travels_as_itself(data: st.DataObject) -> None:
    shape = data.draw(hnp.array_shapes(min_dims=1, max_dims=4, max_side=5))
    array = made(shape, "u2")
    plain = np.arange(array.size, dtype="u2").reshape(shape)
    array[...] = plain
    index = data.draw(hnp.basic_indices(shape, allow_newaxis=True, allow_ellipsis=True))
    view, expected = array[index], plain[index]
    if not isinstance(expected, np.ndarray):
        assert view == expected
        return
    order = data.draw(st.permutations(range(view.ndim)))
    arrived = pickle.loads(pickle.dumps(view.transpose(order)))
    np.testing.assert_array_equal(arrived, expected.transpose(order))
    assert arrived.strides == expected.transpose(order).strides


def test_out_is_what_was_given() -> None:
    array = filled()
    assert np.add(array, 1, out=array) is array
    array -= 1
    assert type(array) is SharedMemoryArray
    sums = made(6, "int64")
    assert np.sum(array, axis=0, out=sums) is sums
    whole = made((), "f8")
    assert np.add(whole, 1, out=whole) is whole
    assert whole[()] == 1.0


def test_a_plain_view_holds_the_memory_and_pickles_what_it_holds() -> None:
    array = filled()
    plain = np.asarray(array)
    assert type(plain) is np.ndarray
    assert stook.is_shared(plain)
    name = array.metadata.name
    del array
    gc.collect()
    assert plain.sum() == 276
    assert not stook.is_shared(pickle.loads(pickle.dumps(plain)))
    assert name in segments()
    del plain
    assert name not in segments()


def test_views_memoryviews_and_pickles_keep_the_memory_alive() -> None:
    array = made(1000, "u1")
    array[...] = 7
    name = array.metadata.name
    holders: list[Any] = [array[10:], memoryview(array), np.asarray(array), array.T[::2].base]
    del array
    while holders:
        assert name in segments()
        assert np.asarray(holders.pop())[0] == 7
    assert name not in segments()


SUBCLASSES: dict[str, Callable[[Any], Any]] = {
    "masked": lambda a: np.ma.masked_array(a, a % 2 == 0),
    "masked view": lambda a: np.ma.masked_greater(a, 7)[1:, ::2],
    "masked sum": lambda a: np.ma.masked_greater(a, 7) + 1,
    "masked by view": lambda a: a.view(np.ma.MaskedArray),
    "record array": lambda a: a.view(np.recarray),
    "matrix": lambda a: a.view(np.matrix),
}


@pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
@pytest.mark.parametrize("name", SUBCLASSES)
def test_other_kinds_of_arrays_over_it_pickle_what_they_hold(name: str) -> None:
    array = filled()
    over = SUBCLASSES[name](array)
    expected = SUBCLASSES[name](np.arange(24, dtype="int32").reshape(4, 6))
    arrived = pickle.loads(pickle.dumps(over))
    array[...] = 77
    assert type(arrived) is type(over) is type(expected)
    assert arrived.dtype == expected.dtype
    assert arrived.tolist() == expected.tolist()  # masked items are None
    assert (copy.deepcopy(over) + 1).shape == expected.shape


def test_a_masked_array_is_over_the_same_memory() -> None:
    array = filled()
    masked = np.ma.masked_greater(array, 7, copy=False)
    masked[0, 0] = 5
    assert array[0, 0] == 5
    assert stook.is_shared(masked.data)


def test_it_dies_with_its_last_reference() -> None:
    array = made(10)
    dead = weakref.ref(array)
    del array
    assert dead() is None
