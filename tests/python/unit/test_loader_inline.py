"""What a loader does, whatever its number of workers; and what only `num_workers=0` does."""

from __future__ import annotations

import collections
import gc
import itertools
import operator
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import cloudpickle
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loader_cases import each_number_of_workers, loader, outcomes

import stook
from stook._drawn_jobs import DrawnDealing
from stook._jobs import Plan
from stook._state import Place
from stook._task import LoaderTask
from stook.worker_info import _state


def double(value: Any) -> Any:
    return value * 2


class Indexed:
    """Has both protocols; being iterated would be wrong."""

    def __init__(self, *values: Any) -> None:
        self.values = values

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: int) -> Any:
        assert type(index) is int
        return self.values[index]

    def __iter__(self) -> Iterator[Any]:
        raise AssertionError("what can be indexed is indexed")


class Repeated:
    """An iterable that starts anew each time and has no length."""

    def __init__(self, *values: Any) -> None:
        self.values = values

    def __iter__(self) -> Iterator[Any]:
        return iter(self.values)


# ---- sources -------------------------------------------------------------------------------------


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


def test_a_source_that_is_too_long_is_refused() -> None:
    with pytest.raises(ValueError, match=r"more than 2\*\*62"):
        stook.DataLoader(range(2**62 + 1))


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


# ---- arguments -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "error", "part"),
    [
        ({"transform": 3}, TypeError, "transform must be None, a callable, or a list or tuple"),
        ({"transform": [double, 3]}, TypeError, r"transform\[1\] must be a callable, got 3"),
        ({"options": 2}, TypeError, "options must be .*got 2.*num_workers=n"),
        ({"batch_size": 0}, ValueError, "batch_size must be an int of at least 1,.*got 0"),
        ({"batch_size": 2.0}, TypeError, r"batch_size must be .*got 2.0 \(float\)"),
        ({"batch_size": True}, TypeError, "batch_size must be .*got the bool True"),
        ({"drop_remainder": 1, "batch_size": 2}, TypeError, "drop_remainder must be True or False"),
        ({"drop_remainder": True}, ValueError, "drop_remainder is about batches"),
        ({"collate": list}, ValueError, "collate is about batches"),
        ({"collate": 3, "batch_size": 2}, TypeError, "collate must be None or a callable"),
        ({"shuffle": "yes"}, TypeError, "shuffle must be True or False, got 'yes'"),
        ({"seed": -1}, ValueError, "seed must be an int of at least 0"),
        ({"seed": 2**64}, ValueError, "seed must be .*at most 18446744073709551615"),
        ({"seed": "a"}, TypeError, "seed must be an int"),
        ({"num_epochs": 0}, ValueError, "num_epochs must be an int of at least 1,.*got 0"),
        ({"ordered": 1}, TypeError, "ordered must be True or False"),
        ({"on_error": "warn"}, ValueError, "on_error must be 'raise', 'skip', or.*got 'warn'"),
        ({"on_error": None}, TypeError, "on_error must be .*got None"),
        ({"retries": -1}, ValueError, "retries must be an int of at least 0, got -1"),
        ({"max_errors": -1}, ValueError, "max_errors must be None, an int .*got -1"),
        ({"max_errors": 1.0}, ValueError, "max_errors must be .*a float above 0 and below 1.*1.0"),
        ({"max_errors": 0.0}, ValueError, "max_errors must be .*got 0.0"),
        ({"max_errors": True}, ValueError, "max_errors must be .*got True"),
        ({"max_errors": "3"}, TypeError, "max_errors must be .*got '3'"),
        ({"progress": "bar"}, TypeError, "progress must be True or False"),
    ],
)
def test_wrong_arguments_are_named(
    settings: dict[str, Any], error: type[Exception], part: str
) -> None:
    with pytest.raises(error, match=part):
        stook.DataLoader([1, 2, 3], **settings)


def test_arguments_after_the_transform_are_keywords() -> None:
    with pytest.raises(TypeError):
        stook.DataLoader([1], None, stook.MultiprocessingOptions())  # type: ignore[misc]


def test_numpys_numbers_and_booleans_are_taken() -> None:
    elements = stook.DataLoader(
        range(5), batch_size=np.int32(2), drop_remainder=np.True_, seed=np.uint64(2**64 - 1)
    )
    assert [batch.tolist() for batch in elements] == [[0, 1], [2, 3]]


def test_shuffling_an_iterable_is_refused() -> None:
    with pytest.raises(ValueError, match="shuffle=True needs a source with __len__"):
        stook.DataLoader(Repeated(1), shuffle=True)


@pytest.mark.parametrize("num_epochs", [2, None])
def test_an_iterator_for_several_epochs_is_refused(num_epochs: int | None) -> None:
    with pytest.raises(ValueError, match=f"is an iterator.*num_epochs={num_epochs}"):
        stook.DataLoader(iter([1]), num_epochs=num_epochs)


def test_an_endless_loop_over_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="its length is 0"):
        stook.DataLoader([], num_epochs=None)
    with pytest.raises(ValueError, match="its length is 2, batch_size=3, drop_remainder=True"):
        stook.DataLoader([1, 2], num_epochs=None, batch_size=3, drop_remainder=True)


@each_number_of_workers
def test_an_endless_loop_over_an_empty_iterable_is_an_error(workers: int) -> None:
    with loader(Repeated(), workers=workers, num_epochs=None) as elements:
        with pytest.raises(ValueError, match="gave no element in epoch 0"):
            list(elements)


# ---- transforms and batches ----------------------------------------------------------------------


@each_number_of_workers
@pytest.mark.parametrize("indexed", [True, False])
@pytest.mark.parametrize("batch_size", [None, 1, 2])
@pytest.mark.parametrize(
    ("transform", "function"),
    [
        (None, lambda value: value),
        ([], lambda value: value),
        (double, lambda value: 2 * value),
        ([double], lambda value: 2 * value),
        ((double, str), lambda value: str(2 * value)),
    ],
    ids=["none", "empty", "one", "list", "two"],
)
@pytest.mark.parametrize("seed", [None, 3])
def test_transforms(
    indexed: bool,
    batch_size: int | None,
    transform: Any,
    function: Callable[[int], Any],
    seed: int | None,
    workers: int,
) -> None:
    source = Indexed(5, 6, 7) if indexed else Repeated(5, 6, 7)
    with loader(source, transform, workers=workers, batch_size=batch_size, seed=seed) as elements:
        found = [list(batch) for batch in elements] if batch_size else list(elements)
    expected = [function(value) for value in (5, 6, 7)]
    if batch_size == 1:
        assert found == [[value] for value in expected]
    elif batch_size == 2:
        assert found == [expected[:2], expected[2:]]
    else:
        assert found == expected


@each_number_of_workers
@given(
    length=st.integers(0, 30),
    batch_size=st.none() | st.integers(1, 8),
    drop_remainder=st.booleans(),
    num_epochs=st.integers(1, 3),
    indexed=st.booleans(),
)
@settings(deadline=None, max_examples=20)
def test_batches_do_not_cross_epochs(
    workers: int,
    length: int,
    batch_size: int | None,
    drop_remainder: bool,
    num_epochs: int,
    indexed: bool,
) -> None:
    values = list(range(length))
    if batch_size is None:
        epoch: list[Any] = values
    else:
        epoch = [values[at : at + batch_size] for at in range(0, length, batch_size)]
        if drop_remainder:
            epoch = [batch for batch in epoch if len(batch) == batch_size]
    with loader(
        values if indexed else Repeated(*values),
        workers=workers,
        batch_size=batch_size,
        drop_remainder=drop_remainder and batch_size is not None,
        num_epochs=num_epochs,
        seed=None,
    ) as elements:
        found = [e if batch_size is None else e.tolist() for e in elements]
        assert found == epoch * num_epochs
        if indexed:
            assert len(elements) == len(found)


# ---- passes, epochs and order --------------------------------------------------------------------


@each_number_of_workers
def test_every_epoch_has_an_order_of_its_own(workers: int) -> None:
    with loader(range(20), workers=workers, shuffle=True, num_epochs=2, seed=5) as elements:
        passes = [list(elements) for _ in range(2)]
    epochs = [tuple(each[at : at + 20]) for each in passes for at in (0, 20)]
    assert all(sorted(epoch) == list(range(20)) for epoch in epochs)
    assert len(set(epochs)) == 4
    with loader(range(20), workers=workers, shuffle=True, num_epochs=4, seed=5) as elements:
        assert list(elements) == passes[0] + passes[1], "the next pass goes on counting epochs"
    with loader(range(20), workers=workers, shuffle=True, seed=6) as elements:
        assert tuple(elements) not in epochs


@each_number_of_workers
def test_without_a_seed_each_loader_shuffles_differently(workers: int) -> None:
    def shuffled() -> list[int]:
        with loader(range(30), workers=workers, shuffle=True, seed=None) as elements:
            return list(elements)

    first = shuffled()
    assert sorted(first) == list(range(30))
    assert shuffled() != first


@each_number_of_workers
@pytest.mark.parametrize("source", [range(4), Repeated(0, 1, 2, 3)], ids=["indexed", "iterable"])
@pytest.mark.parametrize(
    ("num_epochs", "taken", "next_epoch"),
    [
        (1, 0, 0),
        (1, 1, 1),
        (1, 4, 1),
        (3, 4, 1),
        (3, 5, 2),
        (3, 12, 3),
        (None, 0, 0),
        (None, 8, 2),
        (None, 9, 3),
    ],
)
def test_a_pass_that_is_left_counts_the_epoch_it_was_in(
    workers: int, source: Any, num_epochs: int | None, taken: int, next_epoch: int
) -> None:
    def epoch_of(draws: float) -> int:
        return seen.index(draws)

    def draw(_: int) -> float:
        return float(np.random.rand())

    with loader(source, draw, workers=workers, num_epochs=5) as elements:
        seen = list(elements)[::4]
    with loader(source, draw, workers=workers, num_epochs=num_epochs) as elements:
        for _ in itertools.islice(elements, taken):
            pass
        assert epoch_of(next(iter(elements))) == next_epoch


@each_number_of_workers
def test_errors_count_as_elements_of_their_epoch(workers: int) -> None:
    def draw(value: int) -> float:
        if value < 2:
            raise ValueError
        return float(np.random.rand())

    with loader(range(3), draw, workers=workers, num_epochs=2) as elements:
        epochs = [found for found in outcomes(iter(elements)) if isinstance(found, float)]
    with loader(range(3), draw, workers=workers) as elements:
        with pytest.raises(ValueError):
            next(iter(elements))
        assert outcomes(iter(elements))[2] == epochs[1]


@each_number_of_workers
def test_endless(workers: int) -> None:
    with loader(range(3), workers=workers, num_epochs=None) as elements:
        assert list(itertools.islice(elements, 10)) == [0, 1, 2, 0, 1, 2, 0, 1, 2, 0]


@each_number_of_workers
def test_a_loop_can_be_left_and_begun_again(workers: int) -> None:
    with loader(range(100), workers=workers) as elements:
        for _ in range(5):
            for element in elements:
                if element == 3:
                    break
        assert list(elements) == list(range(100))


@each_number_of_workers
def test_a_new_iterator_closes_the_one_before(workers: int) -> None:
    with loader(range(3), workers=workers) as elements:
        first = iter(elements)
        assert next(first) == 0
        second = iter(elements)
        with pytest.raises(stook.StookError, match="closed"):
            next(first)
        assert list(second) == [0, 1, 2]
        # An iterator that was exhausted before is just exhausted.
        third = iter(elements)
        assert next(third) == 0
        assert list(second) == []


@each_number_of_workers
def test_length(workers: int) -> None:
    assert len(loader(range(5), workers=workers)) == 5
    assert len(loader(range(5), workers=workers, batch_size=2, num_epochs=3)) == 9
    assert len(loader({1, 2, 3}, workers=workers, batch_size=2)) == 2
    with pytest.raises(TypeError, match="a Repeated, has none"):
        len(loader(Repeated(1), workers=workers))
    with pytest.raises(TypeError, match="num_epochs=None is without end"):
        len(loader(range(5), workers=workers, num_epochs=None))


@each_number_of_workers
def test_a_source_is_read_as_long_as_it_was(workers: int) -> None:
    source = [1, 2]
    with loader(source, workers=workers) as elements:
        source.append(3)
        assert list(elements) == [1, 2]
        elements.update(source)
        assert list(elements) == [1, 2, 3]


@each_number_of_workers
def test_update_is_for_the_next_pass(workers: int) -> None:
    with loader([1, 2, 3], workers=workers) as elements:
        iterator = iter(elements)
        assert next(iterator) == 1
        elements.update(Repeated(7, 8))
        assert list(iterator) == [2, 3]
        assert list(elements) == [7, 8]
        with pytest.raises(TypeError, match="mapping"):
            elements.update({})
        assert list(elements) == [7, 8], "a source that is refused changes nothing"


def test_update_holds_a_source_against_the_other_arguments() -> None:
    elements = stook.DataLoader(range(3), shuffle=True, num_epochs=2)
    with pytest.raises(ValueError, match="shuffle"):
        elements.update(Repeated(1))
    assert len(list(elements)) == 6


# ---- errors --------------------------------------------------------------------------------------


@each_number_of_workers
@pytest.mark.parametrize("indexed", [True, False])
def test_the_iterator_goes_on_after_an_error(workers: int, indexed: bool) -> None:
    def load(value: int) -> int:
        if value == 11:
            raise KeyError("no such thing")
        return value

    source = Indexed(10, 11, 12) if indexed else Repeated(10, 11, 12)
    with loader(source, load, workers=workers) as elements:
        iterator = iter(elements)
        assert outcomes(iterator) == [
            10,
            (KeyError, ["while loading element 1 (index 1)"]),
            12,
        ]
        assert list(iterator) == []
        assert elements.stats().errors == 1
        assert elements.stats().elements == 2


@each_number_of_workers
def test_an_error_in_a_batch_names_its_index(workers: int) -> None:
    with loader([3, 2, 1, 0, 1], lambda x: 1 / x, workers=workers, batch_size=2) as elements:
        found = outcomes(iter(elements))
    assert found[1] == (
        ZeroDivisionError,
        ["while loading element 1 (index 3, item 1 of the batch)"],
    )
    assert len(found) == 3


@each_number_of_workers
def test_an_error_in_collate_names_its_element(workers: int) -> None:
    def collate(items: list[int]) -> int:
        return 1 // items[0]

    with loader([0, 1], workers=workers, batch_size=1, collate=collate) as elements:
        assert outcomes(iter(elements)) == [
            (ZeroDivisionError, ["while loading element 0"]),
            1,
        ]


@each_number_of_workers
def test_an_index_error_does_not_end_the_loop(workers: int) -> None:
    class Lying(Indexed):
        def __len__(self) -> int:
            return 3

    with loader(Lying(1), workers=workers) as elements:
        assert [found if found == 1 else found[0] for found in outcomes(iter(elements))] == [
            1,
            IndexError,
            IndexError,
        ]


@each_number_of_workers
@pytest.mark.parametrize("kind", [StopIteration, StopAsyncIteration, GeneratorExit, SystemExit])
@pytest.mark.parametrize("batch_size", [None, 1])
def test_user_code_cannot_end_the_loop_or_the_program(
    workers: int, kind: type[BaseException], batch_size: int | None
) -> None:
    def load(value: int) -> int:
        if value == 1:
            raise kind(5)
        return value

    with loader(range(3), load, workers=workers, batch_size=batch_size) as elements:
        iterator = iter(elements)
        next(iterator)
        with pytest.raises(stook.ElementError, match=kind.__name__) as caught:
            next(iterator)
        assert type(caught.value.__cause__) is kind
        assert caught.value.index == 1
        assert next(iterator) == 2
        assert list(iterator) == []


def test_ctrl_c_reaches_the_consumer_and_costs_no_element() -> None:
    interrupts = [KeyboardInterrupt()]

    def load(value: int) -> int:
        if value == 1 and interrupts:
            raise interrupts.pop()
        return value

    iterator = iter(loader(range(3), load, workers=0))
    assert next(iterator) == 0
    with pytest.raises(KeyboardInterrupt):
        next(iterator)
    assert list(iterator) == [1, 2]


# ---- lifetime ------------------------------------------------------------------------------------


@each_number_of_workers
def test_a_closed_loader_says_so(workers: int) -> None:
    elements = loader(range(3), workers=workers)
    iterator = iter(elements)
    next(iterator)
    elements.close()
    elements.close()
    for use in (lambda: iter(elements), lambda: elements.update([1]), lambda: elements.__enter__()):
        with pytest.raises(stook.StookError, match=r"after close\(\)"):
            use()
    with pytest.raises(stook.StookError, match="closed"):
        next(iterator)
    assert elements.stats().elements == 1
    assert len(elements) == 3
    assert "closed" in repr(elements)


@each_number_of_workers
def test_with_closes(workers: int) -> None:
    with loader(range(3), workers=workers) as elements:
        assert list(elements) == [0, 1, 2]
    with pytest.raises(stook.StookError):
        iter(elements)


@each_number_of_workers
def test_a_closed_iterator_says_so(workers: int) -> None:
    with loader(range(3), workers=workers) as elements:
        with iter(elements) as iterator:
            assert isinstance(iterator, stook.LoaderIterator)
            assert iter(iterator) is iterator
            assert next(iterator) == 0
        with pytest.raises(stook.StookError, match="closed"):
            next(iterator)
        iterator.close()
        exhausted = iter(elements)
        list(exhausted)
        exhausted.close()
        assert next(exhausted, "over") == "over"


@each_number_of_workers
def test_an_iterator_keeps_its_loader(workers: int) -> None:
    iterator = iter(loader(range(3), workers=workers))
    gc.collect()
    assert list(iterator) == [0, 1, 2]


def test_a_dropped_loader_is_gone() -> None:
    elements = loader(range(3), workers=0)
    next(iter(elements))
    died = weakref.ref(elements)
    del elements
    assert died() is None


@each_number_of_workers
def test_a_dropped_iterator_lets_go_of_the_source(workers: int) -> None:
    ended = []

    def source() -> Iterator[int]:
        try:
            yield from range(3)
        finally:
            ended.append(True)

    with loader(source(), workers=workers) as elements:
        for _ in elements:
            break
        elements.update([])
        gc.collect()
        assert ended == [True]


def test_a_loader_that_was_refused_can_be_shown_and_closed() -> None:
    made = stook.DataLoader.__new__(stook.DataLoader)
    with pytest.raises(TypeError):
        made.__init__({})  # type: ignore[misc]
    repr(made)
    made.close()


def test_reprs() -> None:
    elements = loader(range(3), workers=0)
    assert repr(elements) == "<stook.DataLoader over a range: 3 elements, num_workers=0>"
    iterator = iter(elements)
    next(iterator)
    assert repr(iterator) == "<stook.LoaderIterator: 1 elements, 0 errors>"
    assert "? elements" in repr(loader(Repeated(1), workers=0))


@each_number_of_workers
def test_stats_count_the_pass_and_the_loader(workers: int) -> None:
    def load(value: int) -> dict[str, Any]:
        return {"image": np.zeros(5000, np.uint8), "more": [np.zeros(2, np.int32)], "n": value}

    with loader(range(3), load, workers=workers) as elements:
        assert elements.stats() == stook.LoaderStats()
        list(elements)
        iterator = iter(elements)
        next(iterator)
        assert (iterator.stats().elements, iterator.stats().bytes) == (1, 5008)
        assert (elements.stats().elements, elements.stats().bytes) == (4, 4 * 5008)


def test_stats_in_one_process_move_and_copy_nothing() -> None:
    elements = loader(range(3), lambda value: np.zeros(5000), workers=0)
    list(elements)
    stats = elements.stats()
    assert (stats.moved, stats.copied, stats.restarts, stats.bytes_live) == (0, 0, 0, 0)


@each_number_of_workers
def test_worker_info(workers: int) -> None:
    with loader(range(4), lambda _: stook.worker_info(), workers=workers, num_epochs=2) as elements:
        found = list(elements)
    assert stook.worker_info() is None
    if workers == 0:
        assert found == [None] * 8
    else:
        assert [info.epoch for info in found] == [0] * 4 + [1] * 4
        assert {info.count for info in found} == {workers}
        assert all(0 <= info.index < workers and info.incarnation == 0 for info in found)


@pytest.mark.parametrize("batch_size", [None, 1])
@pytest.mark.parametrize("transforms", [(), (double,)])
@pytest.mark.parametrize("seed", [None, 1])
def test_a_task_tells_worker_info_its_epoch(
    monkeypatch: pytest.MonkeyPatch, batch_size: int | None, transforms: Any, seed: int | None
) -> None:
    class Source(Indexed):
        def __getitem__(self, index: int) -> Any:
            infos.append(stook.worker_info())
            return index

    infos: list[Any] = []
    monkeypatch.setattr(_state, "worker", (1, 2, 1234, 5))
    monkeypatch.setattr(_state, "epoch", 0)
    run = LoaderTask(Source(0), transforms, batch_size, None, seed).bind()
    run(7, 0, 0 if batch_size is None else (0,))
    assert infos == [stook.WorkerInfo(index=1, count=2, pid=1234, incarnation=5, epoch=7)]


def test_an_error_in_a_worker_names_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(_state, "worker", (1, 2, 1234, 5))
    with pytest.raises(stook.ElementError) as caught:
        LoaderTask([0], (load,)).bind()(0, 3, 0)
    assert (caught.value.index, caught.value.worker) == (3, 1)


def test_epochs_are_counted_by_what_was_delivered_not_by_what_was_drawn() -> None:
    jobs = DrawnDealing(Plan(batch_size=2), Repeated(1, 2, 3)).begin(Place(5, first_epoch=5), 4)
    drawn = list(jobs.deal())
    assert [job[:2] for job in drawn] == [(epoch, at) for epoch in range(5, 9) for at in (0, 1)]
    places = [jobs.place(delivered) for delivered in range(9)]
    expected = [divmod(at, 2) for at in range(10, 18)] + [(8, 2)]
    assert [(place.epoch, place.position) for place in places] == expected


@each_number_of_workers
def test_threads_may_share_an_iterator(workers: int) -> None:
    with loader(Repeated(*range(200)), workers=workers, seed=None) as elements:
        iterator = iter(elements)
        found: list[int] = []
        threads = [threading.Thread(target=lambda: found.extend(iterator)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(found) == list(range(200))


# ---- the task ------------------------------------------------------------------------------------


@pytest.mark.parametrize("transforms", [(), (double,), (double, double)])
@pytest.mark.parametrize("batch_size", [None, 2])
@pytest.mark.parametrize("seed", [None, 1])
def test_what_a_task_returns_has_no_other_holder(
    transforms: Any, batch_size: int | None, seed: int | None
) -> None:
    class Fresh(Indexed):
        def __getitem__(self, index: int) -> Any:
            return np.full(3, index)

    run = LoaderTask(Fresh(0, 1), transforms, batch_size, None, seed).bind()
    element = run(0, 0, 1 if batch_size is None else (0, 1))
    assert sys.getrefcount(element) == 2  # getrefcount's own argument is the second
    assert element.base is None


def test_a_task_can_be_pickled_and_does_the_same() -> None:
    step = 3
    task = LoaderTask([1, 2, 3], (lambda value: value + step,), 2, None, 5)
    again = cloudpickle.loads(cloudpickle.dumps(task))
    assert again(0, 0, (0, 2)).tolist() == task(0, 0, (0, 2)).tolist() == [4, 6]


def test_the_common_path_adds_one_frame() -> None:
    depth: list[int] = []

    def frames(_: int) -> None:
        frame, count = sys._getframe(), 0
        while frame is not here:
            frame, count = frame.f_back, count + 1  # type: ignore[assignment]
        depth.append(count)

    here = sys._getframe()
    LoaderTask([1], (frames,)).bind()(0, 0, 0)
    LoaderTask([1], (frames,), seed=0).bind()(0, 0, 0)
    assert depth == [2, 2]


def test_the_error_of_a_task_keeps_the_frames_of_user_code() -> None:
    def fails(_: int) -> None:
        operator.truediv(1, 0)

    with pytest.raises(ZeroDivisionError) as caught:
        LoaderTask([1], (fails,)).bind()(0, 0, 0)
    assert "fails" in [entry.name for entry in caught.traceback]
