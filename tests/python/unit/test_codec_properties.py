"""Whatever is sent, what arrives equals what pickling would have given."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from courier import Courier
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from leaf_cases import Color, Custom, Frozen, Point, Sample, echo
from same import assert_same

moderate = settings(
    max_examples=250,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


# Arrays of some 20 bytes are shared in one, of some 200 in the other; generated ones are small.
@pytest.fixture(scope="module", params=[1, 200])
def courier(request: pytest.FixtureRequest) -> Iterator[Courier]:
    with Courier(min_shared_bytes=request.param) as courier:
        yield courier


@pytest.fixture(scope="module")
def copying() -> Iterator[Courier]:
    """With a limit so low that what is delivered while something is held is copied out."""
    with Courier(memory_limit=1, min_shared_bytes=1) as courier:
        yield courier


# ---- what is sent ----------------------------------------------------------------------------

simple_dtypes = st.one_of(
    npst.scalar_dtypes(),
    npst.byte_string_dtypes(),
    npst.unicode_string_dtypes(),
    st.sampled_from(["g", "G", "V3", "M8", ">M8[ns]", "m8[5us]", "q", "Q"]).map(np.dtype),
    st.just(np.dtype("i4", metadata={"unit": "m"})),
)
dtypes = st.one_of(
    simple_dtypes,
    npst.array_dtypes(simple_dtypes, max_size=3),
    npst.nested_dtypes(simple_dtypes, max_leaves=4, max_itemsize=64),
)


@st.composite
def arrays(draw: st.DrawFn) -> Any:
    """Arrays of all dtypes and shapes, and views of them."""
    dtype = draw(dtypes)
    shape = draw(npst.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=7))
    count = int(np.prod(shape)) * dtype.itemsize
    start = draw(st.integers(0, 255))
    # Any bytes are an item of these dtypes, but for text, of which small values are.
    step = 7 if not _holds_text(dtype) else 0
    data = (np.arange(count) * step + (start if step else 0)).astype("u1")
    array = np.ndarray(shape, dtype, data.tobytes()).copy()
    if draw(st.booleans()):
        array = array.copy(order="F")
    if array.ndim:
        for _ in range(draw(st.integers(0, 2))):
            change = draw(st.sampled_from(["index", "transpose", "broadcast", "reverse", "axis"]))
            if change == "index":
                index = draw(npst.basic_indices(array.shape, allow_newaxis=True, max_dims=6))
                array = np.asarray(array[index]) if isinstance(index, tuple) else array[index]
            elif change == "transpose":
                array = array.transpose(draw(st.permutations(range(array.ndim))))
            elif change == "broadcast":
                array = np.broadcast_to(array, (draw(st.integers(1, 3)), *array.shape))
            elif change == "reverse":
                array = array[::-1] if array.ndim else array
            else:
                array = array[..., None]
            array = np.asarray(array)
    if draw(st.integers(0, 5)) == 0 and array.flags.owndata:
        array.flags.writeable = False
    return array


def _holds_text(dtype: np.dtype[Any]) -> bool:
    if dtype.subdtype is not None:
        return _holds_text(dtype.subdtype[0])
    if dtype.names is not None:
        return any(_holds_text(dtype[name]) for name in dtype.names)
    return dtype.kind in "Ub"


atoms = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.complex_numbers(),
    st.text(st.characters(), max_size=30),  # surrogates too
    st.binary(max_size=300),
    st.binary(max_size=300).map(bytearray),
    st.sampled_from([Color.RED, Color.BLUE, ..., range(3), int, Point]),
    st.datetimes(),
    st.sampled_from([np.float32(1.5), np.int8(-3), np.bool_(True), np.float16(2), np.uint64(7)]),
    st.sampled_from([np.str_("a"), np.bytes_(b"b"), np.datetime64(5, "s"), np.complex64(1j)]),
)
keys = st.one_of(
    st.text(max_size=5),
    st.integers(),
    st.tuples(st.integers(), st.text(max_size=3)),
    st.none(),
    st.frozensets(st.integers(), min_size=1, max_size=2),
    st.sampled_from(Color),
)
leaves = st.one_of(
    atoms,
    arrays(),
    st.sets(st.integers(), max_size=4),
    npst.arrays(object, st.integers(0, 4), elements=st.one_of(st.integers(), st.text(max_size=3))),
    # Filling values of other dtypes do not survive NumPy's own pickling.
    npst.arrays("f8", st.integers(0, 40), elements=st.floats()).map(np.ma.masked_invalid),
)


def _nested(children: Any) -> Any:
    return st.one_of(
        st.lists(children, max_size=4),
        st.lists(children, max_size=4).map(tuple),
        st.dictionaries(keys, children, max_size=4),
        st.builds(Point, children, children),
        st.builds(Sample, children, children),
        st.builds(Frozen, children),
        st.builds(Custom, a=children, b=children),
    )


trees = st.recursive(leaves, _nested, max_leaves=12)


@st.composite
def shared_trees(draw: st.DrawFn) -> Any:
    """Graphs: containers that hold each other and themselves, in any order."""
    parts: list[Any] = [draw(arrays()) for _ in range(draw(st.integers(0, 3)))]
    parts += [[], {}, bytearray(b"x" * 50), Custom()]
    parts += [(parts[-4], parts[draw(st.integers(0, len(parts) - 1))])]
    count = len(parts)
    for _ in range(draw(st.integers(1, 10))):
        to = draw(st.integers(0, count - 1))
        part = parts[draw(st.integers(0, count - 1))]
        if isinstance(parts[to], list):
            parts[to].append(part)
        elif isinstance(parts[to], dict):
            parts[to][draw(st.integers(0, 3))] = part
        elif isinstance(parts[to], Custom):
            setattr(parts[to], draw(st.sampled_from("abc")), part)
    return draw(st.permutations(parts))


# ---- what arrives ----------------------------------------------------------------------------


def _unpickle(data: bytes) -> Any:
    return pickle.loads(data)


def _copied(tree: Any) -> Any:
    """The tree with arrays that NumPy made here, which may be moved."""
    if type(tree) is np.ndarray:
        return tree.copy(order="K")
    if type(tree) in (list, tuple):
        return type(tree)(map(_copied, tree))
    if type(tree) is dict:
        return {key: _copied(value) for key, value in tree.items()}
    return tree


def _unpickle_and_copy(data: bytes) -> Any:
    return _copied(pickle.loads(data))


@given(tree=trees)
@moderate
def test_what_goes_to_a_worker_and_back(courier: Courier, tree: Any) -> None:
    data = pickle.dumps(tree, 5)
    assert_same(courier.call(echo, tree), pickle.loads(data), original=tree)
    assert_same(tree, pickle.loads(data), original=tree)  # sending changes nothing


@given(tree=trees)
@moderate
def test_what_a_worker_makes(courier: Courier, tree: Any) -> None:
    data = pickle.dumps(tree, 5)
    moved, copied = courier.call(_unpickle_and_copy, data), courier.call(_unpickle, data)
    original = pickle.loads(data)
    assert_same(moved, original, original=_copied(original))
    assert_same(copied, original)


@given(tree=shared_trees())
@moderate
def test_what_is_shared_stays_shared(courier: Courier, tree: Any) -> None:
    data = pickle.dumps(tree, 5)
    assert_same(courier.call(_unpickle, data), pickle.loads(data))
    assert_same(courier.call(echo, tree), pickle.loads(data), original=tree)


@given(pair=st.tuples(arrays(), trees))
@moderate
def test_what_is_copied_out_of_shared_memory(copying: Courier, pair: Any) -> None:
    data = pickle.dumps(pair, 5)
    results = copying.map(_unpickle_and_copy, [(data,)] * 3)
    for result in results:
        original = pickle.loads(data)
        assert_same(result, original, original=_copied(original))


@given(array=arrays(), index=st.data())
@moderate
def test_a_view_that_a_worker_makes(courier: Courier, array: Any, index: st.DataObject) -> None:
    chosen = index.draw(npst.basic_indices(array.shape, allow_ellipsis=True))
    data = pickle.dumps((array, chosen), 5)
    want = _view(data)
    got = courier.call(_view, data)
    assert_same(got, pickle.loads(pickle.dumps(want, 5)), original=want)


def _view(data: bytes) -> Any:
    array, index = pickle.loads(data)
    return np.asarray(array.copy(order="K")[index])


@given(pairs=st.lists(arrays(), min_size=1, max_size=4))
@moderate
def test_what_the_worker_keeps_never_changes(courier: Courier, pairs: Any) -> None:
    got = courier.call(_keep, pickle.dumps(pairs, 5))
    for array in got["all"]:
        array[...] = np.zeros((), array.dtype)
        if array.flags.c_contiguous and array.nbytes:
            array.reshape(-1).view("u1")[...] = 0xEE
    assert courier.call(_unchanged)


_kept: list[Any] = []


def _keep(data: bytes) -> Any:
    _kept[:] = [[_copied(array) for array in pickle.loads(data)], data]
    return {"all": [*_kept[0], *(array[...] for array in _kept[0])]}


def _unchanged() -> bool:
    arrays, data = _kept
    assert_same(arrays, _copied(pickle.loads(data)))
    return True
