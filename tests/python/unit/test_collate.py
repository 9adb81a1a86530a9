from __future__ import annotations

import dataclasses
import enum
import gc
import pathlib
import sys
import types
import weakref
from collections import OrderedDict, defaultdict, namedtuple
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from loader_cases import each_number_of_workers, loader

import stook
from stook.collate import Assembler, assemble

Point = namedtuple("Point", ["x", "y"])


@dataclasses.dataclass(frozen=True)
class Sample:
    image: np.ndarray
    label: int

    def __post_init__(self) -> None:
        assert isinstance(self.label, int), "is meant for one item"


@dataclasses.dataclass
class Slotted:
    __slots__ = ("value",)
    value: float


class Color(enum.IntEnum):
    RED = 1
    BLUE = 2


def equal(a: Any, b: Any) -> bool:
    """The same types, values, dtypes and shapes; NaN equals itself, as do its payload bits."""
    if type(a) is not type(b):
        return False
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, dict):
        return list(a) == list(b) and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return bool(a == b)


# What an item may hold, with what a batch of such leaves must be.
plain_dtypes = st.one_of(
    hnp.boolean_dtypes(),
    hnp.integer_dtypes(endianness="?"),
    hnp.floating_dtypes(endianness="?"),
    hnp.complex_number_dtypes(endianness="?"),
    hnp.datetime64_dtypes(endianness="?"),
    hnp.timedelta64_dtypes(endianness="?"),
    hnp.byte_string_dtypes(min_len=1),
    hnp.unicode_string_dtypes(min_len=1),
)
dtypes = st.one_of(plain_dtypes, hnp.array_dtypes(plain_dtypes, max_size=3))


@st.composite
def array_leaves(draw: st.DrawFn, count: int) -> tuple[list[Any], Any]:
    dtype = draw(dtypes)
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
    values = [draw(hnp.arrays(dtype, shape)) for _ in range(count)]
    if len(shape) > 1 and draw(st.booleans()):
        values = [np.asfortranarray(value) for value in values]
    expected = np.empty((count, *shape), dtype)
    for place, value in enumerate(values):
        expected[place, ...] = value
    return values, expected


NUMBERS = [
    (st.booleans(), np.bool_),
    (st.integers(-(2**63), 2**63 - 1), np.int64),
    (st.floats(), np.float64),
    (st.complex_numbers(), np.complex128),
    (st.integers(0, 255).map(np.uint8), np.uint8),
    (st.floats(width=32).map(np.float32), np.float32),
]


@st.composite
def leaves(draw: st.DrawFn, count: int) -> tuple[list[Any], Any]:
    kind = draw(st.sampled_from(["array", "number", "value"]))
    if kind == "array":
        return draw(array_leaves(count))
    if kind == "number":
        strategy, dtype = draw(st.sampled_from(NUMBERS))
        values = [draw(strategy) for _ in range(count)]
        return values, np.array(values, dtype)
    values = [
        draw(st.none() | st.text(max_size=3) | st.binary(max_size=3) | st.just(Color.RED))
        for _ in range(count)
    ]
    return values, values


@st.composite
def trees(draw: st.DrawFn, count: int, depth: int = 3) -> tuple[list[Any], Any]:
    kind = draw(st.sampled_from(["leaf", "dict", "list", "tuple", "named", "ordered"]))
    if depth == 0 or kind == "leaf":
        return draw(leaves(count))
    if kind == "named":
        children = [draw(trees(count, depth - 1)) for _ in range(2)]
        return [Point(*each) for each in zip(children[0][0], children[1][0], strict=True)], Point(
            children[0][1], children[1][1]
        )
    children = [draw(trees(count, depth - 1)) for _ in range(draw(st.integers(0, 3)))]
    columns = [child[0] for child in children]
    batched = [child[1] for child in children]
    rows = [[column[place] for column in columns] for place in range(count)]
    if kind in ("dict", "ordered"):
        make = dict if kind == "dict" else OrderedDict
        keys = ["a", 1, None][: len(children)]
        return [make(zip(keys, row, strict=True)) for row in rows], make(
            zip(keys, batched, strict=True)
        )
    make_sequence = list if kind == "list" else tuple
    return [make_sequence(row) for row in rows], make_sequence(batched)


@given(st.data(), st.integers(1, 5))
@settings(deadline=None, max_examples=150)
def test_every_tree_keeps_its_form_and_its_values(data: st.DataObject, count: int) -> None:
    items, expected = data.draw(trees(count))
    assert equal(assemble(items), expected)


def test_dataclasses_are_assembled_without_their_checks() -> None:
    batch = assemble([Sample(np.zeros(2, np.uint8), 3), Sample(np.ones(2, np.uint8), 4)])
    assert type(batch) is Sample
    assert equal(batch.image, np.array([[0, 0], [1, 1]], np.uint8))
    assert equal(batch.label, np.array([3, 4]))
    assert equal(assemble([Slotted(1.5), Slotted(2.5)]).value, np.array([1.5, 2.5]))


def test_a_defaultdict_keeps_its_default() -> None:
    batch = assemble([defaultdict(list, a=1), defaultdict(list, a=2)])
    assert type(batch) is defaultdict
    assert batch.default_factory is list
    assert equal(batch["a"], np.array([1, 2]))


def test_a_number_is_an_array_of_its_dtype() -> None:
    assert equal(assemble([3, np.int64(4), np.array(5)]), np.array([3, 4, 5]))
    assert equal(assemble([np.float64(3), 4.0]), np.array([3.0, 4.0]))


@pytest.mark.parametrize(
    "values",
    [
        ["a", None, b"c", pathlib.Path("d")],
        [Color.RED, Color.BLUE],
        [np.str_("a"), np.str_("longer")],
        [{1, 2}, frozenset([3])],
        [np.array([1, "a"], object), np.array([None], object)],
        [np.ma.masked_array([1, 2], mask=[0, 1]), np.ma.masked_array([1], mask=[1])],
        [np.zeros(1, [("a", object)]), None],
        [types.MappingProxyType({}), types.SimpleNamespace()],
    ],
    ids=lambda values: type(values[0]).__name__,
)
def test_other_values_are_gathered_as_they_are(values: list[Any]) -> None:
    batch = assemble(values)
    assert type(batch) is list
    assert all(a is b for a, b in zip(batch, values, strict=True))


def test_memmaps_are_arrays(tmp_path: pathlib.Path) -> None:
    array = np.memmap(tmp_path / "data", np.int16, "w+", shape=(2,))
    array[:] = [1, 2]
    assert equal(
        assemble([array, np.array([3, 4], np.int16)]), np.array([[1, 2], [3, 4]], np.int16)
    )
    del array


INT64 = "numbers become int64: return numpy.uint64 or a str instead"


@pytest.mark.parametrize(
    ("first", "second", "parts"),
    [
        (
            np.zeros(2, np.int8),
            np.zeros(2, np.int16),
            ["int16 of shape (2,)", "int8 of shape (2,)"],
        ),
        (np.zeros(2), np.zeros(3), ["float64 of shape (3,)", "float64 of shape (2,)"]),
        (np.zeros(2), np.zeros((2, 1)), ["float64 of shape (2, 1)", "float64 of shape (2,)"]),
        (np.zeros(1), 0.0, ["the float 0.0", "float64 of shape (1,)"]),
        (np.zeros(2, ">i4"), np.zeros(2, "<i4"), ["int32", ">i4"]),
        (np.zeros(1, "M8[s]"), np.zeros(1, "M8[ms]"), ["datetime64[ms]", "datetime64[s]"]),
        (np.zeros(1, "U1"), np.zeros(1, "U2"), ["<U2", "<U1"]),
        (np.zeros(1), np.ma.zeros(1), ["masked_array", "float64 of shape (1,)"]),
        (3, 3.5, ["the float 3.5", "a number of dtype int64"]),
        (3, True, ["the bool True", "a number of dtype int64"]),
        (np.float32(1), 1.0, ["the float 1.0", "a number of dtype float32"]),
        (3, None, ["the NoneType None", "a number of dtype int64"]),
        (3, Color.RED, ["Color.RED", "a number of dtype int64"]),
        ("a", 3, ["the int 3", "the str 'a'"]),
        ("a", np.zeros(2), ["float64 of shape (2,)", "the str 'a'"]),
        (None, {"a": 1}, ["the dict {'a': 1}", "the NoneType None"]),
        ({"a": 1}, {"b": 1}, ["keys {'b'}", "keys {'a'}"]),
        ({"a": 1}, {"a": 1, "b": 2}, ["keys {'a', 'b'}", "keys {'a'}"]),
        ({"a": 1}, OrderedDict(a=1), ["OrderedDict", "a dict"]),
        ([1, 2], [1], ["a list of length 1", "one of length 2"]),
        ([1], (1,), ["the tuple (1,)", "a list"]),
        (Point(1, 2), (1, 2), ["the tuple (1, 2)", "a Point"]),
        (Slotted(1.0), 1.0, ["the float 1.0", "a Slotted"]),
        (1, 2**63, ["the integer 9223372036854775808", INT64]),
        (1, -(2**63) - 1, ["the integer -9223372036854775809", INT64]),
    ],
    ids=repr,
)
def test_what_differs_is_an_error_with_both_values(
    first: Any, second: Any, parts: list[str]
) -> None:
    batch = Assembler([40, 41, 57])
    batch.add({"deep": [0, first]})
    batch.add({"deep": [0, first]})
    with pytest.raises(ValueError) as caught:
        batch.add({"deep": [0, second]})
    text = str(caught.value)
    assert text.startswith("cannot assemble a batch: leaf item['deep'][1] is ")
    assert "in item 2 (index 57)" in text
    for part in parts:
        assert part in text
    if INT64 not in parts:
        assert "in item 0 (index 40)" in text


def test_the_error_names_fields_and_the_item_itself() -> None:
    with pytest.raises(ValueError, match=r"leaf item\.value\[0\] is"):
        assemble([Slotted([1]), Slotted([2.0])])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"leaf item\[1\] is"):
        assemble([Point(1, 2), Point(1, "a")])
    with pytest.raises(ValueError, match="the item itself is"):
        assemble([1, 2.0])


def test_an_integer_too_large_in_the_first_item_names_it_alone() -> None:
    with pytest.raises(ValueError, match="item 0") as caught:
        assemble([2**64])
    assert "but" not in str(caught.value)


def test_a_value_without_a_repr_is_named_by_its_type() -> None:
    class Shy:
        def __repr__(self) -> str:
            raise RuntimeError("no")

    with pytest.raises(ValueError, match="a Shy"):
        assemble([1, Shy()])


def test_too_few_items_are_an_error() -> None:
    batch = Assembler([1, 2])
    batch.add(1)
    with pytest.raises(ValueError, match="2 items was announced, 1 came"):
        batch.finish()
    with pytest.raises(ValueError):
        Assembler([]).finish()


def test_items_are_not_kept() -> None:
    class Item(dict):  # type: ignore[type-arg]
        pass

    batch = Assembler([0, 1])
    for value in range(2):
        array = np.full(1000, value)
        tree = {"array": array}
        died = weakref.ref(array)
        batch.add(tree)
        del array, tree
        assert died() is None
    assert equal(batch.finish()["array"], np.repeat([[0], [1]], 1000, axis=1))


def test_the_batch_is_held_by_its_receiver_alone() -> None:
    def holders(tree: Any) -> list[int]:
        parts = [tree, tree["a"], tree["a"][0], tree["b"]]
        return [sys.getrefcount(part) for part in parts]

    batch = Assembler([0])
    batch.add({"a": [np.zeros(3)], "b": "text"})
    gc.disable()  # what a cycle holds counts as held
    try:
        tree = batch.finish()
        assert holders(tree) == holders({"a": [np.zeros((1, 3))], "b": ["text"]})
        assert tree["a"][0].base is None
    finally:
        gc.enable()


class FakeTensor:
    """As much of a torch.Tensor as assembling uses."""

    layout = "strided"

    def __init__(self, array: np.ndarray, device: str = "cpu") -> None:
        self.array = array
        self.device = device
        self.dtype = f"torch.{array.dtype}"
        self.shape = array.shape

    def __getitem__(self, place: int) -> FakeTensor:
        return FakeTensor(self.array[place])

    def detach(self) -> FakeTensor:
        return self

    def copy_(self, other: FakeTensor) -> None:
        self.array[...] = other.array


@pytest.fixture
def fake_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = types.ModuleType("torch")
    torch.Tensor = FakeTensor  # type: ignore[attr-defined]
    torch.strided = "strided"  # type: ignore[attr-defined]
    torch.empty = lambda shape, dtype, device: FakeTensor(  # type: ignore[attr-defined]
        np.empty(shape, dtype.removeprefix("torch."))
    )
    monkeypatch.setitem(sys.modules, "torch", torch)


@pytest.mark.usefixtures("fake_torch")
def test_tensors_are_stacked() -> None:
    batch = assemble([{"t": FakeTensor(np.full(2, value))} for value in range(3)])
    assert equal(batch["t"].array, np.array([[0, 0], [1, 1], [2, 2]]))


@pytest.mark.usefixtures("fake_torch")
@pytest.mark.parametrize(
    ("second", "part"),
    [
        (FakeTensor(np.zeros(2, np.int8)), "a torch.int8 tensor of shape (2,) on cpu"),
        (FakeTensor(np.zeros(3)), "a torch.float64 tensor of shape (3,) on cpu"),
        (FakeTensor(np.zeros(2), "cuda:0"), "a torch.float64 tensor of shape (2,) on cuda:0"),
        (np.zeros(2), "float64 of shape (2,)"),
    ],
)
def test_tensors_that_differ_are_an_error(second: Any, part: str) -> None:
    with pytest.raises(ValueError) as caught:
        assemble([FakeTensor(np.zeros(2)), second])
    assert part in str(caught.value)
    assert "a torch.float64 tensor of shape (2,) on cpu" in str(caught.value)


@each_number_of_workers
def test_a_loader_assembles_batches(workers: int) -> None:
    def load(index: int) -> dict[str, Any]:
        return {"image": np.full((2, 2), index, np.uint8), "label": index, "name": str(index)}

    with loader(range(5), load, workers=workers, batch_size=2, seed=None) as batches:
        found = list(batches)
    assert [batch["image"].shape for batch in found] == [(2, 2, 2), (2, 2, 2), (1, 2, 2)]
    assert [batch["label"].tolist() for batch in found] == [[0, 1], [2, 3], [4]]
    assert [batch["name"] for batch in found] == [["0", "1"], ["2", "3"], ["4"]]


@each_number_of_workers
def test_an_error_in_a_batch_names_the_index_in_the_source(workers: int) -> None:
    def load(value: int) -> np.ndarray:
        return np.zeros(value // 12)

    with loader([10, 11, 12, 13], load, workers=workers, batch_size=3) as batches:
        with pytest.raises(ValueError, match=r"item 2 \(index 2\), but float64 of shape \(0,\)"):
            list(batches)
    with loader(iter([10, 11, 11, 11, 12]), load, workers=workers, batch_size=3) as batches:
        with pytest.raises(ValueError, match=r"item 1 \(index 4\).*item 0 \(index 3\)"):
            list(batches)


@each_number_of_workers
def test_a_collate_function_replaces_the_assembling(workers: int) -> None:
    def collate(items: list[int]) -> tuple[str, list[int]]:
        assert type(items) is list
        return "batch", items

    with loader(range(3), workers=workers, batch_size=2, collate=collate) as batches:
        assert list(batches) == [("batch", [0, 1]), ("batch", [2])]


# ---- items that are left out ---------------------------------------------------------------------


def test_skip_leaves_a_place_out() -> None:
    batch = Assembler([10, 11, 12, 13])
    for item in (stook.SKIP, ("a", np.ones(2)), stook.SKIP, ("b", np.zeros(2))):
        batch.add(item)
    assert len(batch) == 2
    names, arrays = batch.finish()
    assert names == ["a", "b"]
    assert arrays.tolist() == [[1, 1], [0, 0]]
    assert arrays.base is None  # and has no room for four


def test_a_batch_of_nothing_but_skips_is_one() -> None:
    batch = Assembler([10, 11])
    batch.add(stook.SKIP)
    with pytest.raises(ValueError, match="2 items was announced, 1 came"):
        batch.finish()
    batch.add(stook.SKIP)
    assert batch.finish() is stook.SKIP


def test_messages_count_what_was_left_out() -> None:
    batch = Assembler([10, 11, 12, 13])
    for item in (stook.SKIP, 1, stook.SKIP):
        batch.add(item)
    with pytest.raises(ValueError, match=r"item 3 \(index 13\).* in item 1 \(index 11\)"):
        batch.add("text")


def test_an_item_that_was_refused_leaves_nothing_behind() -> None:
    batch = Assembler([10, 11, 12])
    batch.add({"name": "a", "size": 1})
    with pytest.raises(ValueError, match="is the str 'large'"):
        batch.add({"name": "b", "size": "large"})
    batch.add({"name": "c", "size": 3})
    batch.add(stook.SKIP)
    taken = batch.finish()
    assert taken["name"] == ["a", "c"]
    assert taken["size"].tolist() == [1, 3]


def test_a_first_item_that_was_refused_does_not_say_what_the_batch_is_like() -> None:
    batch = Assembler([10, 11])
    with pytest.raises(ValueError, match="int64"):
        batch.add(1 << 70)
    batch.add(stook.SKIP)
    batch.add("text")
    assert batch.finish() == ["text"]


def test_indices_may_come_with_the_items() -> None:
    indices: list[int] = []
    batch = Assembler(indices, capacity=3)
    for number in range(2):
        indices.append(number)
        batch.add(number)
    assert batch.finish().tolist() == [0, 1]
