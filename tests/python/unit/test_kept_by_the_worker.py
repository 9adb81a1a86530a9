"""What a worker keeps, it hands over as a copy; and nobody's copy ever changes.

Each case keeps its array in a way of its own. If its clause of the rule were dropped, the array
would be moved: the counts would say so, and writes of one side would show on the other.
"""

from __future__ import annotations

import functools
import threading
import types
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from courier import Courier
from leaf_cases import Sample, arrays_in

SIZE = 5000
_at_import = np.arange(SIZE)
_of_initializer: list[Any] = []


def _initialize(index: int, count: int) -> None:
    _of_initializer.append(np.arange(SIZE))


@pytest.fixture(scope="module")
def courier() -> Iterator[Courier]:
    with Courier(worker_init_fn=_initialize) as courier:
        yield courier


# Ways to the arrays that this process keeps; they hold no array themselves.
_keepers: list[Callable[[], Any]] = []


@functools.lru_cache
def _cached_array() -> Any:
    return np.arange(SIZE)


@functools.lru_cache
def _cached_dict() -> Any:
    return {"array": np.arange(SIZE)}


@functools.lru_cache
def _cached_list() -> Any:
    return [np.arange(SIZE)]


@functools.lru_cache
def _cached_tuple() -> Any:
    return (np.arange(SIZE), "text")


@functools.lru_cache
def _cached_deep() -> Any:
    return {"a": [(np.arange(SIZE),)]}


def _of_cache(cached: Callable[[], Any], *path: Any) -> Any:
    cached.cache_clear()  # type: ignore[attr-defined]

    def keeper() -> Any:
        found = cached()
        for step in path:
            found = found[step]
        return found

    _keepers.append(keeper)
    return cached()


def _inside_a_cached_dict() -> Any:
    _of_cache(_cached_deep, "a", 0, 0)
    return {"fresh": [_cached_deep()["a"]]}


def _kept_in_a_list() -> Any:
    kept = [np.arange(SIZE)]
    _keepers.append(lambda: kept[0])
    return kept[0]


def _kept_list() -> Any:
    kept = [np.arange(SIZE)]
    _keepers.append(lambda: kept[0])
    return kept


_global: Any = None


def _kept_in_a_global() -> Any:
    global _global
    _global = np.arange(SIZE)
    _keepers.append(lambda: _global)
    return _global


def _kept_in_a_closure() -> Any:
    array = np.arange(SIZE)
    _keepers.append(lambda: array)
    return array


def _kept_by_a_generator() -> Any:
    def generate() -> Iterator[Any]:
        array = np.arange(SIZE)
        yield array
        yield array

    generator = generate()
    _keepers.append(lambda: generator.gi_frame.f_locals["array"])  # type: ignore[attr-defined]
    return next(generator)


def _kept_by_a_traceback() -> Any:
    array = np.arange(SIZE)
    try:
        raise ValueError
    except ValueError as error:
        kept = error
    _keepers.append(functools.partial(_local_of, kept.__traceback__))
    del kept
    return array


def _local_of(traceback: types.TracebackType) -> Any:
    return traceback.tb_frame.f_locals["array"]


def _kept_by_a_thread() -> Any:
    array = np.arange(SIZE)
    asked, answer = threading.Event(), threading.Event()
    box: list[Any] = []

    def keep(array: Any) -> None:
        asked.wait()
        box.append(array)
        answer.set()

    threading.Thread(target=keep, args=(array,), daemon=True).start()

    def keeper() -> Any:
        asked.set()
        answer.wait()
        return box[0]

    _keepers.append(keeper)
    return array


class _Holder:
    def __init__(self) -> None:
        self.array = np.arange(SIZE)


def _kept_as_an_attribute() -> Any:
    holder = _Holder()
    _keepers.append(lambda: holder.array)
    return holder.array


def _attributes_of_an_object() -> Any:
    holder = _Holder()
    _keepers.append(lambda: holder.array)
    return vars(holder)


def _kept_as_default(array: Any = np.arange(SIZE)) -> Any:  # noqa: B008
    _keepers.append(lambda: _kept_as_default.__defaults__[0])  # type: ignore[index]
    return array


def _kept_by_a_memoryview() -> Any:
    view = memoryview(np.arange(SIZE))
    _keepers.append(lambda: np.asarray(view))
    return view.obj


def _base_is_kept() -> Any:
    base = np.arange(SIZE)
    _keepers.append(lambda: base)
    return base[:]


def _view_is_kept() -> Any:
    base = np.arange(SIZE)
    view = base[:]
    _keepers.append(lambda: view)
    return base


def _other_view_is_kept() -> Any:
    base = np.arange(SIZE)
    view = base[:]
    _keepers.append(lambda: view)
    return base[::1]


def _made_at_import() -> Any:
    _keepers.append(lambda: _at_import)
    return _at_import


def _made_by_the_initializer() -> Any:
    _keepers.append(lambda: _of_initializer[0])
    return _of_initializer[0]


KEPT: dict[str, Callable[[], Any]] = {
    "cached-array": lambda: _of_cache(_cached_array),
    "cached-dict": lambda: _of_cache(_cached_dict, "array"),
    "cached-list": lambda: _of_cache(_cached_list, 0),
    "cached-tuple": lambda: _of_cache(_cached_tuple, 0),
    "cached-deep": lambda: _of_cache(_cached_deep, "a", 0, 0),
    "inside-a-cached-dict": _inside_a_cached_dict,
    "kept-in-a-list": _kept_in_a_list,
    "kept-list": _kept_list,
    "kept-in-a-global": _kept_in_a_global,
    "kept-in-a-closure": _kept_in_a_closure,
    "kept-by-a-generator": _kept_by_a_generator,
    "kept-by-a-traceback": _kept_by_a_traceback,
    "kept-by-a-thread": _kept_by_a_thread,
    "kept-as-an-attribute": _kept_as_an_attribute,
    "attributes-of-an-object": _attributes_of_an_object,
    "kept-as-default": _kept_as_default,
    "kept-by-a-memoryview": _kept_by_a_memoryview,
    "base-is-kept": _base_is_kept,
    "view-is-kept": _view_is_kept,
    "other-view-is-kept": _other_view_is_kept,
    "made-at-import": _made_at_import,
    "made-by-the-initializer": _made_by_the_initializer,
}


def _make_kept(name: str) -> Any:
    _keepers.clear()
    return KEPT[name]()


def _kept_values() -> bytes:
    (keeper,) = _keepers
    return keeper().tobytes()  # type: ignore[no-any-return]


def _write_kept(value: int) -> None:
    (keeper,) = _keepers
    keeper()[...] = value


@pytest.mark.parametrize("name", KEPT)
def test_what_the_worker_keeps_is_copied(courier: Courier, name: str) -> None:
    got = courier.call(_make_kept, name)
    assert (courier.stats.moved, courier.stats.copied) == (0, 1)
    (array,) = arrays_in(got)
    assert np.array_equal(array, np.arange(SIZE))
    array[...] = 77
    assert courier.call(_kept_values) == np.arange(SIZE).tobytes()
    courier.call(_write_kept, 55)
    assert courier.call(_kept_values) == np.full(SIZE, 55).tobytes()
    assert np.all(array == 77)


def test_everything_the_worker_keeps_stays_as_it_was(courier: Courier) -> None:
    """Writing into all that arrives, while blocks are used again and again."""
    courier.call(_collect_start)
    kept = []
    for number, got in enumerate(
        courier.each(_collect, [(number,) for number in range(400)]), start=0
    ):
        for array in arrays_in(got):
            assert np.all(array == number)
        for array in arrays_in(got):
            array[...] = 250
        if number % 7 == 0:
            kept.append(got)
    assert courier.call(_collected_wrong) == []
    for got in kept:
        for array in arrays_in(got):
            assert np.all(array == 250)


_collection: list[tuple[int, Any]] = []


def _collect_start() -> None:
    _collection.clear()


def _collect(number: int) -> Any:
    shape = (number % 5 + 1, 6000)
    kept = np.full(shape, number, "i2")
    result = {
        "fresh": np.full(shape, number, "i2"),
        "kept": kept,
        "view": kept[:, ::2],
        "object": Sample(kept),
    }
    if number % 3 == 0:
        _collection.append((number, result))
        return result
    _collection.append((number, {"kept": kept}))
    del kept
    return result


def _collected_wrong() -> list[int]:
    return [
        number
        for number, tree in _collection
        if any(not np.all(array == number) for array in arrays_in(tree))
    ]
