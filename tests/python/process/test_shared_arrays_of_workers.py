"""SharedMemoryArrays in the elements and the items of a loader with worker processes."""

from __future__ import annotations

import os
import pickle
import re
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytest

import stook
from leftovers import wait_until
from stook import SharedMemoryArray

pytestmark = pytest.mark.filterwarnings(
    "ignore:This process .* is multi-threaded:DeprecationWarning"
)


def filled(shape: Any = (40, 50)) -> SharedMemoryArray:
    array = SharedMemoryArray(shape, "int64")
    array.unlink_on_del()
    array[...] = np.arange(array.size).reshape(shape)
    return array


class Pair(NamedTuple):
    first: Any
    second: Any


@dataclass
class Record:
    value: Any


def fail() -> None:
    raise ValueError("cannot be read")


class Unreadable:
    def __reduce__(self) -> Any:
        return fail, ()


def options(workers: int = 2, **more: Any) -> stook.MultiprocessingOptions:
    return stook.MultiprocessingOptions(num_workers=workers, **more)


def segments() -> set[str]:
    """Without the marker files of processes: after each test none of them may be left, either."""
    return {name for name in os.listdir("/dev/shm") if re.fullmatch("stook_[^_]+_[^_]+", name)}


def named(index: int) -> Any:
    array = SharedMemoryArray((100, 10), "int64")
    array[...] = index
    return array


def named_in_a_tree(index: int) -> Any:
    array = named(index)
    return {"view": array[5:, ::2], "number": index, "list": [named(index + 100)]}


@pytest.mark.parametrize("method", ["forkserver", "fork"])
def test_a_worker_returns_one_and_it_goes_with_its_last_array(method: str) -> None:
    before = segments()
    with stook.DataLoader(range(50), named, options=options(start_method=method)) as loader:
        for index, element in enumerate(loader):
            assert type(element) is SharedMemoryArray
            assert stook.is_shared(element)
            assert (element == index).all()
        assert loader.stats().moved == 50
        name = element.metadata.name
        del element
        assert name not in segments()
    assert segments() == before


def test_views_in_a_tree_arrive_as_themselves() -> None:
    before = segments()
    with stook.DataLoader(range(20), named_in_a_tree, options=options()) as loader:
        elements = list(loader)
    for index, element in enumerate(elements):
        assert element["view"].shape == (95, 5) and element["view"].strides == (80, 16)
        assert (element["view"] == index).all() and element["number"] == index
        assert (element["list"][0] == index + 100).all()
    # They are valid beyond the loader's end, and go with the last array.
    again = pickle.loads(pickle.dumps(elements[3]["view"]))
    assert (again == 3).all()
    del elements, element, again
    assert segments() == before


def test_what_the_worker_keeps_stays_the_workers() -> None:
    kept: list[Any] = []

    def table(index: int) -> Any:
        if not kept:
            kept.append(named(7))
        kept[0][index % 100] = index
        return kept[0][index % 100]

    before = segments()
    with stook.DataLoader(range(300), table, options=options(1), seed=None) as loader:
        names = set()
        for element in loader:
            names.add(element.metadata.name)
        assert len(names) == 1
        assert (element == 299).all()
        del element
    assert segments() == before


def test_an_argument_crosses_as_its_handle() -> None:
    arrays = [filled((100, 100)) for _ in range(6)]

    def add_one(array: Any) -> tuple[str, int]:
        array += 1
        return type(array).__name__, os.getpid()

    items = iter([array[:50] for array in arrays])
    with stook.DataLoader(items, add_one, options=options()) as loader:
        results = list(loader)
    assert {name for name, _ in results} == {"SharedMemoryArray"}
    assert os.getpid() not in {pid for _, pid in results}
    expected = np.arange(10_000).reshape(100, 100)
    for array in arrays:
        np.testing.assert_array_equal(array[:50], expected[:50] + 1)
        np.testing.assert_array_equal(array[50:], expected[50:])


def test_a_source_of_shared_arrays_is_not_copied_to_the_workers() -> None:
    table = filled((100, 100))
    with stook.DataLoader(table, lambda row: row.sum(), options=options()) as loader:
        assert list(loader) == [int(row.sum()) for row in table]


def test_elements_that_nobody_takes_leave_nothing() -> None:
    before = segments()
    with stook.DataLoader(
        range(1000), named, options=options(per_worker_buffer_size=8), num_epochs=None
    ) as loader:
        for _ in range(5):
            for index, _ in enumerate(loader):  # left early, again and again
                if index == 3:
                    break
        del _
        assert wait_until(lambda: len(segments() - before) < 60, 10)
    assert segments() == before


def test_a_batch_of_shared_arrays_is_a_plain_array() -> None:
    before = segments()
    with stook.DataLoader(range(6), named, batch_size=3, options=options()) as loader:
        for batch in loader:
            assert type(batch) is np.ndarray
            assert batch.shape == (3, 100, 10)
        assert segments() == before  # while the workers live: what they copied from is gone


SHARED_WITHIN: dict[str, Any] = {
    "two views": lambda array: {"first": array[:50], "second": array[50:, ::2]},
    "the same twice": lambda array: [array, array],
    "a view and the whole": lambda array: (array[3], [array]),
    "a view of a view": lambda array: (array[3:][2:],),
    "a namedtuple": lambda array: Pair(array, 3),
    "views in a namedtuple": lambda array: [Pair(array[:50], array[50:]), array[3]],
    "a dataclass": lambda array: {"here": Record(array), "there": [array]},
    "an OrderedDict": lambda array: OrderedDict(first=array[1:], second=array),
    "a list in two places": lambda array: [[array]] * 2,
    "beside what np.asarray gives": lambda array: [array, np.asarray(array)],
    "beside a moved array": lambda array: [Pair(array, 3), np.full((100, 1000), array[0, 0])],
    "in a closure": lambda array: (lambda: array,),
}


def leaves_of(element: Any) -> Iterator[Any]:
    if isinstance(element, np.ndarray):
        yield element
    elif isinstance(element, Record):
        yield from leaves_of(element.value)
    elif callable(element):
        yield from leaves_of(element())
    elif isinstance(element, (dict, list, tuple)):
        for part in element.values() if isinstance(element, dict) else element:
            yield from leaves_of(part)


@pytest.mark.parametrize("name", SHARED_WITHIN)
@pytest.mark.parametrize("flagged", [False, True])
def test_arrays_over_one_segment_in_one_element(name: str, flagged: bool) -> None:
    def element(index: int) -> Any:
        array = named(index)
        if flagged:
            array.unlink_on_del()
        return SHARED_WITHIN[name](array)

    before = segments()
    method = options(1, start_method="fork" if flagged else "forkserver")
    with stook.DataLoader(range(8), element, options=method, seed=None) as loader:
        for index, got in enumerate(loader):
            leaves = list(leaves_of(got))
            assert any(type(leaf) is SharedMemoryArray for leaf in leaves)
            for leaf in leaves:
                assert (np.asarray(leaf) == index).all()
        del got, leaves, leaf
        assert segments() == before  # while the worker lives
    assert segments() == before


@pytest.mark.parametrize("around", [lambda array: array, Record], ids=["alone", "pickled"])
def test_what_the_worker_drops_before_the_consumer_has_it(around: Any) -> None:
    last: list[Any] = []
    progress = filled(1)

    def element(index: int) -> Any:
        array = named(index)
        array.unlink_on_del()
        last[:] = [array]  # so that it stays the worker's, which drops it with the next
        progress[0] = index
        return around(array)

    before = segments()
    with stook.DataLoader(
        range(40), element, options=options(1, per_worker_buffer_size=8), seed=None
    ) as loader:
        iterator = iter(loader)
        for index in range(40):
            if index:  # nothing is dealt before the first is asked for
                assert wait_until(lambda: progress[0] >= min(index + 5, 39), 30)  # noqa: B023
            (leaf,) = leaves_of(next(iterator))
            assert (leaf == index).all()
        del leaf
    assert segments() == before


@pytest.mark.parametrize("around", [lambda array: array, Record], ids=["alone", "pickled"])
def test_what_a_source_drops_before_a_worker_has_it(around: Any) -> None:
    gate = filled(1)
    gate[0] = 0

    def items() -> Iterator[Any]:
        for number in range(40):
            array = filled((10, 10))
            array[...] = number
            if number == 8:
                gate[0] = 1
            yield around(array)

    def total(item: Any) -> Any:
        assert wait_until(lambda: gate[0] == 1, 30)
        (leaf,) = leaves_of(item)
        return leaf[5:] if leaf[0, 0] % 2 else int(leaf.sum())

    before = segments()
    with stook.DataLoader(items(), total, options=options(1, per_worker_buffer_size=8)) as loader:
        for number, result in enumerate(loader):
            assert np.sum(result) == number * (50 if number % 2 else 100)
            assert len(segments() - before) <= 12
        del result
        assert segments() == before  # while the worker lives


def test_items_that_no_worker_gets_leave_nothing() -> None:
    before = segments()
    items = (filled((10, 10)) for _ in range(1000))
    with stook.DataLoader(items, lambda array: int(array.sum()), options=options()) as loader:
        for index, _ in enumerate(loader):
            if index == 3:
                break
    assert segments() == before


def test_the_destructor_of_an_element_may_drop_and_make_arrays() -> None:
    class Odd:
        def __init__(self, array: Any) -> None:
            self.array = array

        def __reduce__(self) -> Any:
            return Record, (self.array,)

        def __del__(self) -> None:
            self.array[...] = 7  # before the element is published, or nothing would be transferred
            other = np.full(100_000, 9)
            assert other[0] == 9

    before = segments()
    with stook.DataLoader(
        range(20),
        lambda index: [Odd(named(index)), np.full(100_000, index)],
        options=options(1),
    ) as loader:
        for index, (record, plain) in enumerate(loader):
            assert (record.value == 7).all()
            assert (plain == index).all()
        assert loader.stats().moved == 20
        del record, plain
        assert segments() == before


def test_an_element_that_cannot_be_unpickled_leaves_nothing() -> None:
    def element(index: int) -> Any:
        return [Pair(named(index), 3), Unreadable()]

    before = segments()
    with stook.DataLoader(range(5), element, options=options(1)) as loader:
        iterator = iter(loader)
        for _ in range(5):
            with pytest.raises(ValueError, match="cannot be read"):
                next(iterator)
        assert segments() == before
