"""What a loader takes as a source, and how it reads it."""

from __future__ import annotations

import collections
import enum
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from loader_cases import Indexed, Repeated, double, each_number_of_workers, loader

import stook


@each_number_of_workers
@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ([1, 2, 3], [1, 2, 3]),
        (range(3), [0, 1, 2]),
        ((), []),
        (Indexed(1, 2), [1, 2]),
        (collections.deque([1, 2]), [1, 2]),
        (Repeated(1, 2), [1, 2]),
        ({7}, [7]),
        ({"a": 1}.keys(), ["a"]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_sources(source: Any, expected: list[Any], workers: int) -> None:
    with loader(source, workers=workers) as elements:
        assert list(elements) == expected
        assert list(elements) == expected


@each_number_of_workers
def test_a_generator_is_run_through_once(workers: int) -> None:
    with loader((value for value in range(3)), double, workers=workers) as elements:
        assert list(elements) == [0, 2, 4]
        with pytest.raises(
            stook.StookError, match=r"is an iterator and was run through before.*update"
        ):
            iter(elements)
        elements.update(iter([5]))
        assert list(elements) == [10]


class NotIterable(Repeated):
    __iter__ = None  # type: ignore[assignment]


class Unending:
    """Python would iterate it for ever."""

    def __getitem__(self, index: int) -> int:
        return index


class Color(enum.Enum):
    RED = 1


class Pair:
    def __init__(self, shard: int, count: int) -> None:
        pass


@pytest.mark.parametrize(
    ("source", "part"),
    [
        ({"a": 1}, r"a mapping, a dict.*list\(source.values\(\)\)"),
        (collections.ChainMap(), "a mapping, a ChainMap"),
        ("path", r"one str, 'path'; pass a list.*\['path'\]"),
        (b"bytes", "one bytes"),
        (bytearray(3), "one bytearray"),
        (3, "must have __len__ and __getitem__, or be an iterable, or a callable that takes"),
        (None, "and returns an iterable, got None"),
        (np.array(3), "the source has no length"),
        (np.float64(3), r"must have __len__ and __getitem__, .*got .*3\.0"),
        (NotIterable(1), "must have __len__ and __getitem__, .*got <"),
        (Unending(), "a test_loader_sources.Unending, has __getitem__ and no __len__; give it"),
        (Indexed, "the class loader_cases.Indexed itself; pass an object of it"),
        (np.memmap, "the class numpy.memmap itself; pass an object of it"),
        (Color, r"the class test_loader_sources.Color itself; pass .*list\(...\) of the class"),
        (Pair, "the class test_loader_sources.Pair itself"),
    ],
)
def test_wrong_sources_are_refused(source: Any, part: str) -> None:
    with pytest.raises(TypeError, match=part):
        stook.DataLoader(source)


@pytest.mark.parametrize(
    ("module", "name", "part"),
    [
        ("pandas.core.frame", "DataFrame", r'a pandas DataFrame.*to_dict\("records"\)'),
        ("polars.dataframe.frame", "DataFrame", r"a polars DataFrame.*to_dicts\(\)"),
        ("pyarrow.lib", "Table", r"a pyarrow Table.*to_pylist\(\)"),
        ("pandas.core.series", "Series", r"a pandas Series.*to_numpy\(\)"),
    ],
)
def test_tables_are_refused(module: str, name: str, part: str) -> None:
    base = type(name, (Indexed,), {"__module__": module})
    for kind in (base, type("Derived", (base,), {})):
        with pytest.raises(TypeError, match=part):
            stook.DataLoader(kind())


def test_what_has_keys_is_a_mapping() -> None:
    class Store(Indexed):
        def keys(self) -> list[str]:
            return ["a"]

    with pytest.raises(TypeError, match="a mapping, a Store"):
        stook.DataLoader(Store(1))


@pytest.mark.parametrize("length", [2**62 + 1, 2**70])
def test_a_source_that_is_too_long_is_refused(length: int) -> None:
    with pytest.raises(ValueError, match=r"DataLoader: the source has .*more than 2\*\*62"):
        stook.DataLoader(range(length))


@pytest.mark.parametrize(
    ("length", "error"), [(lambda: -1, ValueError), (lambda: 1 // 0, ZeroDivisionError)]
)
def test_an_error_of_a_length_says_whose(length: Any, error: type[Exception]) -> None:
    class Broken(Indexed):
        def __len__(self) -> int:
            return int(length())

    with pytest.raises(error) as caught:
        stook.DataLoader(Broken(1))
    (note,) = caught.value.__notes__  # type: ignore[attr-defined]
    assert note == "DataLoader: while the source, a test_loader_sources.Broken, gave its length"


@each_number_of_workers
def test_a_long_source_costs_no_index_list(workers: int) -> None:
    with loader(range(10**12), workers=workers, shuffle=True) as elements:
        assert len(set(itertools.islice(elements, 5))) == 5


@each_number_of_workers
def test_iterables_are_drawn_from_as_needed(workers: int) -> None:
    drawn = []

    def source() -> Iterator[int]:
        for value in itertools.count():
            drawn.append(value)
            yield value

    with loader(source(), workers=workers, batch_size=2) as batches:
        assert next(iter(batches)).tolist() == [0, 1]
        assert len(drawn) <= 2 * (1 + 2 * max(workers, 1))


@each_number_of_workers
@pytest.mark.parametrize("batch_size", [None, 2])
def test_an_error_of_the_source_comes_after_its_elements(
    workers: int, batch_size: int | None
) -> None:
    def source() -> Iterator[int]:
        yield from range(5)
        raise OSError("the disk is gone")

    with loader(source(), workers=workers, batch_size=batch_size, seed=None) as elements:
        iterator = iter(elements)
        count = 5 if batch_size is None else 2
        assert len([next(iterator) for _ in range(count)]) == count
        with pytest.raises(OSError, match="the disk is gone"):
            next(iterator)
        assert list(iterator) == []
