"""What is moved and what is copied, clause by clause; and that nobody's copy ever changes.

Each copied case keeps its array in a way of its own. If its clause were dropped, the array would be
moved: the counts would say so, and writes of one side would show on the other.
"""

from __future__ import annotations

import functools
import gc
import pickle
import tempfile
import threading
import types
import weakref
from collections import namedtuple
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from courier import Courier
from leaf_cases import Array, Sample

SIZE = 5000  # bytes and more than min_shared_bytes
_at_import = np.arange(SIZE)
_of_initializer: list[Any] = []


def _initialize(index: int, count: int) -> None:
    _of_initializer.append(np.arange(SIZE))


@pytest.fixture(scope="module")
def courier() -> Iterator[Courier]:
    with Courier(worker_init_fn=_initialize) as courier:
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
    for mine, theirs in zip(_arrays(got), _arrays(_make_moved(name)), strict=True):
        assert np.array_equal(mine, theirs)
        assert mine.strides == theirs.strides
        assert mine.flags.writeable


# ---- copied because somebody has it ----------------------------------------------------------

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
    (array,) = _arrays(got)
    assert np.array_equal(array, np.arange(SIZE))
    array[...] = 77
    assert courier.call(_kept_values) == np.arange(SIZE).tobytes()
    courier.call(_write_kept, 55)
    assert courier.call(_kept_values) == np.full(SIZE, 55).tobytes()
    assert np.all(array == 77)


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
    _keepers[:] = [lambda: array]
    return array


def _mapped() -> Any:
    with tempfile.NamedTemporaryFile() as file:
        mapped = np.memmap(file.name, "i8", "w+", shape=(SIZE,))
        mapped[:] = np.arange(SIZE)
        return mapped


def _made_by_a_finished_thread() -> Any:
    box: list[Any] = []
    thread = threading.Thread(target=lambda: box.append(np.frombuffer(bytes(SIZE), "u1")))
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
    for mine, theirs in zip(_arrays(got), _arrays(_make_copied(name)), strict=True):
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

    tests.npy_resolve(_keepers[0]())
    _keepers.clear()


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


_remembered: list[Any] = []


def _remember() -> None:
    _remembered.append(np.arange(SIZE))


def _recall() -> Any:
    return _remembered.pop()


def _arrays(tree: Any) -> list[Any]:
    if isinstance(tree, np.ndarray):
        return [tree]
    if isinstance(tree, Sample):
        return _arrays(tree.image)
    if isinstance(tree, dict):
        tree = tree.values()
    elif not isinstance(tree, (list, tuple)):
        return []
    return [array for item in tree for array in _arrays(item)]


def test_everything_the_worker_keeps_stays_as_it_was(courier: Courier) -> None:
    """Writing into all that arrives, while blocks are used again and again."""
    courier.call(_collect_start)
    kept = []
    for number, got in enumerate(
        courier.each(_collect, [(number,) for number in range(400)]), start=0
    ):
        for array in _arrays(got):
            assert np.all(array == number)
        for array in _arrays(got):
            array[...] = 250
        if number % 7 == 0:
            kept.append(got)
    assert courier.call(_collected_wrong) == []
    for got in kept:
        for array in _arrays(got):
            assert np.all(array == 250)
    gc.collect()


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
        if any(not np.all(array == number) for array in _arrays(tree))
    ]


# ---- blocks that are used again ---------------------------------------------------------------


def _recycle(recycles: int) -> None:
    with Courier(per_worker_buffer_size=16, num_workers=2) as courier:
        kept: list[tuple[int, Any]] = []
        calls = [(number,) for number in range(recycles)]
        for number, array in enumerate(courier.each(_numbered, calls)):
            if _checksum(array) != number:
                pytest.fail(f"element {number} holds {array[:8]}")
            if number % 97 == 0:
                kept.append((number, array))
            if len(kept) > 40:
                # In no order of theirs.
                old_number, old = kept.pop((number * 7919) % len(kept))
                assert _checksum(old) == old_number
                del old
            array = None
        for number, array in kept:
            assert _checksum(array) == number
        assert courier.stats.moved == recycles


def _numbered(number: int) -> Any:
    # Sizes of a few classes, so that blocks change hands between them.
    return np.full(600 + number % 5 * 500, number, "i8")


def _checksum(array: Any) -> int:
    """The one value that all items have, or -1."""
    first = int(array[0])
    return first if (array == first).all() else -1


def test_blocks_are_not_used_again_while_they_are_held() -> None:
    _recycle(100_000)


@pytest.mark.long
def test_blocks_are_not_used_again_while_they_are_held_for_long() -> None:
    _recycle(1_000_000)
