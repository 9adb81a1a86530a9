"""Trees of arrays that go through a channel as handles."""

from __future__ import annotations

import dataclasses
import os
import pickle
from collections import ChainMap, Counter, OrderedDict, UserDict, defaultdict, namedtuple
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from segment_cases import made, segments

import stook
from stook import SharedMemoryArray, SharedMemoryArrayMetadata


@dataclasses.dataclass
class Sample:
    image: Any
    label: int


@dataclasses.dataclass
class Pair:
    left: Any
    right: Any


def test_trees_cross_as_handles_and_come_back() -> None:
    Point = namedtuple("Point", "x y")
    image = np.arange(12.0).reshape(3, 4)
    tree = {
        "image": image,
        "fortran": np.asfortranarray(image),
        "nested": [image[::2], (image.T, "text", None)],
        "point": Point(image, 3),
        "sample": Sample(image, 7),
        "ordered": OrderedDict(a=image),
        "objects": np.array([{}, None]),
        "empty": np.zeros((0, 3)),
        "masked": np.ma.masked_array([1, 2], [True, False]),
        "number": np.float32(3),
    }
    before = segments()
    handles = stook.copy_to_shared(tree)
    assert len(segments() - before) == 7
    assert type(handles["image"]) is SharedMemoryArrayMetadata
    for name in ("objects", "empty", "masked", "number"):
        assert handles[name] is tree[name]
    opened = stook.open_from_shared(pickle.loads(pickle.dumps({**handles, "point": None})))
    for got, sent in [
        (opened["image"], image),
        (opened["fortran"], image),
        (opened["nested"][0], image[::2]),
        (opened["nested"][1][0], image.T),
        (opened["sample"].image, image),
        (opened["ordered"]["a"], image),
    ]:
        assert type(got) is SharedMemoryArray
        np.testing.assert_array_equal(got, sent)
    assert opened["fortran"].flags.f_contiguous
    assert type(opened["ordered"]) is OrderedDict
    assert opened["nested"][1][1:] == ("text", None)
    stook.unlink_shared(handles["point"])
    del opened, got
    assert segments() == before


def test_small_arrays_stay_where_they_are() -> None:
    small, large = np.zeros(10, "u1"), np.zeros(11, "u1")
    handles = stook.copy_to_shared([small, large], min_size=11)
    assert handles[0] is small
    assert type(handles[1]) is SharedMemoryArrayMetadata
    stook.unlink_shared(handles)
    stook.unlink_shared(handles)  # twice is no error


def test_a_shared_array_is_not_copied() -> None:
    array = made((4, 6))
    (handle,) = stook.copy_to_shared([array[1:]])
    assert handle == array[1:].metadata


@pytest.mark.parametrize("size", [-1, 1.5, "8", None, True])
def test_a_wrong_min_size(size: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="min_size must be an int of at least 0"):
        stook.copy_to_shared([], min_size=size)


def test_a_tree_that_fails_half_way_leaves_nothing() -> None:
    before = segments()
    huge = np.broadcast_to(np.uint8(0), (1 << 50,))
    with pytest.raises(stook.SharedMemoryExhausted):
        stook.copy_to_shared([np.zeros(10), huge])
    assert segments() == before


def test_opening_a_tree_of_which_a_part_is_gone_removes_the_rest() -> None:
    before = segments()
    handles = stook.copy_to_shared([np.zeros(10), np.ones(10), np.ones(10)])
    handles[1].close_and_unlink_shm()  # one before it is open then, and one after it is not
    with pytest.raises(FileNotFoundError):
        stook.open_from_shared(handles)
    assert segments() == before


def test_a_handle_with_a_name_that_is_no_segments_removes_nothing_else() -> None:
    before = segments()
    handles = stook.copy_to_shared([np.zeros(10), np.ones(10)])
    token = handles[0].name.split("_")[1]
    marker = f"stook_{token}"  # by which it is told that this process lives
    forged = dataclasses.replace(handles[0], name=marker)
    with pytest.raises(ValueError, match=f"'{marker}' is no name of a shared segment"):
        forged.close_and_unlink_shm()
    with pytest.raises(ValueError, match="is no name of a shared segment"):
        stook.unlink_shared([forged, *handles])
    assert segments() == before
    assert os.path.exists(f"/dev/shm/{marker}")


@dataclasses.dataclass
class Computes:
    image: Any
    total: float = dataclasses.field(init=False)
    scale: dataclasses.InitVar[float] = 1.0

    def __post_init__(self, scale: float) -> None:
        self.total = float(np.sum(self.image)) * scale


class Derived(dict[str, Any]):
    extra = "class's own"


def test_containers_keep_their_kind_and_what_else_they_know() -> None:
    image = np.ones((3, 4))
    counted = Counter(a=2)
    held: Any = defaultdict(list, a=image)
    derived = Derived(a=image)
    derived.extra = "its own"
    computed = Computes(image, scale=2.0)
    computed.total = -1.0
    tree = [counted, held, derived, computed]
    opened = stook.open_from_shared(stook.copy_to_shared(tree))
    assert opened[0] == counted and type(opened[0]) is Counter
    assert type(opened[1]) is defaultdict and opened[1]["new"] == []
    assert type(opened[2]) is Derived and opened[2].extra == "its own"
    assert opened[3].total == -1.0
    for got in (opened[1]["a"], opened[2]["a"], opened[3].image):
        assert type(got) is SharedMemoryArray
        np.testing.assert_array_equal(got, image)
    assert computed.image is image


@pytest.mark.parametrize("kind", [UserDict, MappingProxyType, ChainMap])
def test_containers_of_other_kinds_are_left_as_they_are(kind: Any) -> None:
    before = segments()
    other = kind({"a": np.ones(10)})
    (shared,) = stook.copy_to_shared([other])
    assert shared is other
    assert segments() == before
    handles = stook.copy_to_shared({"a": np.ones(10)})
    (opened,) = stook.open_from_shared([kind(handles)])
    assert opened["a"] == handles["a"]  # and its segment is still there
    assert stook.open_from_shared(handles)["a"].sum() == 10
