"""Items that fail: what `on_error`, `retries` and `max_errors` make of it, wherever they run."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

import stook

LENGTH = 23
# Where elements are made: the number of workers, or of threads.
PLACES = {
    "here": stook.MultiprocessingOptions(),
    "worker": stook.MultiprocessingOptions(1),
    "workers": stook.MultiprocessingOptions(2, start_method="fork"),
    "many workers": stook.MultiprocessingOptions(5),
    "thread": stook.MultithreadingOptions(1),
    "threads": stook.MultithreadingOptions(3),
}
each_place = pytest.mark.parametrize("place", PLACES)
a_place_of_each_kind = pytest.mark.parametrize("place", ["here", "workers", "threads"])
each_batch = pytest.mark.parametrize("batch_size", [None, 1, 4, 30])
each_order = pytest.mark.parametrize("ordered", [True, False])


@contextmanager
def made(place: str, *arguments: Any, **settings: Any) -> Iterator[stook.DataLoader]:
    with stook.DataLoader(*arguments, options=PLACES[place], **settings) as loader:
        yield loader


class NoItemError(Exception):
    pass


FAILING = frozenset({0, 3, 8, 9, 10, 11, 22})  # the third batch of four as a whole


def fail(index: int) -> int:
    if index in FAILING:
        raise NoItemError(index)
    return index


def outcomes(iterator: Any) -> list[Any]:
    """Elements, batches as lists, and the types of errors."""
    found: list[Any] = []
    while True:
        try:
            element = next(iterator)
        except StopIteration:
            return found
        except Exception as error:
            found.append(type(error))
        else:
            found.append(element.tolist() if isinstance(element, np.ndarray) else element)


def plain(settle: Callable[[int], Any], batch_size: int | None, indices: Any = None) -> list[Any]:
    """What a loader is to give, when `settle` makes an item, or an item's place, of an index."""
    indices = list(range(LENGTH) if indices is None else indices)
    if batch_size is None:
        return [item for item in map(settle, indices) if item is not stook.SKIP]
    batches = []
    for start in range(0, len(indices), batch_size):
        items = [settle(index) for index in indices[start : start + batch_size]]
        batches.append([item for item in items if item is not stook.SKIP])
    return [batch for batch in batches if batch]


def in_order(elements: list[Any], ordered: bool) -> list[Any]:
    return elements if ordered else sorted(elements, key=repr)


# ---- on_error ------------------------------------------------------------------------------------


@each_place
@each_batch
@each_order
def test_what_is_skipped_is_lost_alone(place: str, batch_size: int | None, ordered: bool) -> None:
    with made(
        place, range(LENGTH), fail, batch_size=batch_size, ordered=ordered, on_error="skip"
    ) as loader:
        for _ in range(2):
            found = outcomes(iter(loader))
            want = plain(lambda i: stook.SKIP if i in FAILING else i, batch_size)
            assert in_order(found, ordered) == in_order(want, ordered)
        stats = loader.stats()
        assert stats.errors == 2 * len(FAILING)
        assert stats.elements == 2 * len(want)


def replace(error: stook.ElementError) -> Any:
    """Negative, or left out where it is even."""
    assert isinstance(error.__cause__, NoItemError)
    assert error.__cause__.args == (error.item_index,)
    assert error.item_index is not None
    return stook.SKIP if error.item_index % 2 == 0 else -error.item_index


@each_place
@each_batch
@each_order
def test_what_is_replaced_keeps_its_place(
    place: str, batch_size: int | None, ordered: bool
) -> None:
    def settle(index: int) -> Any:
        if index not in FAILING:
            return index
        return stook.SKIP if index % 2 == 0 else -index

    with made(
        place, range(LENGTH), fail, batch_size=batch_size, ordered=ordered, on_error=replace
    ) as loader:
        iterator = iter(loader)
        found = outcomes(iterator)
        want = plain(settle, batch_size)
        assert in_order(found, ordered) == in_order(want, ordered)
        assert iterator.stats().errors == len(FAILING)


@each_place
def test_a_shuffled_pass_skips_the_same_items(place: str) -> None:
    with made(place, range(LENGTH), batch_size=4, shuffle=True, num_epochs=2) as loader:
        order = [index for batch in loader for index in batch.tolist()]
    batches = plain(lambda i: stook.SKIP if i in FAILING else i, 4, order[:LENGTH])
    batches += plain(lambda i: stook.SKIP if i in FAILING else i, 4, order[LENGTH:])
    with made(
        place, range(LENGTH), fail, batch_size=4, shuffle=True, num_epochs=2, on_error="skip"
    ) as loader:
        assert outcomes(iter(loader)) == batches


@each_place
def test_what_the_source_raises_is_an_items_failure(place: str) -> None:
    class Source:
        def __len__(self) -> int:
            return LENGTH

        def __getitem__(self, index: int) -> int:
            return fail(index)

    with made(place, Source(), batch_size=4, on_error="skip") as loader:
        want = plain(lambda i: stook.SKIP if i in FAILING else i, 4)
        assert outcomes(iter(loader)) == want


@each_place
def test_items_of_an_iterable_are_counted(place: str) -> None:
    for batch_size in (None, 4):
        with made(
            place, iter(range(LENGTH)), fail, batch_size=batch_size, on_error=lambda e: e.item_index
        ) as loader:
            assert outcomes(iter(loader)) == plain(lambda i: i, batch_size)


@a_place_of_each_kind
@pytest.mark.parametrize("kind", [StopIteration, SystemExit, GeneratorExit, KeyboardInterrupt])
def test_what_would_end_the_program_is_skipped(place: str, kind: type[BaseException]) -> None:
    is_pressed = [True]

    def transform(index: int) -> int:
        if index == 2 and is_pressed:
            raise kind("no")
        return index

    with made(place, range(6), transform, batch_size=3, on_error="skip") as loader:
        iterator = iter(loader)
        if place == "here" and kind is KeyboardInterrupt:  # it is Ctrl-C, as far as one can tell
            for _ in range(2):
                with pytest.raises(KeyboardInterrupt):
                    next(iterator)
            is_pressed.clear()  # and what it interrupted is made again
            assert outcomes(iterator) == [[0, 1, 2], [3, 4, 5]]
        else:
            assert outcomes(iterator) == [[0, 1], [3, 4, 5]]


@a_place_of_each_kind
def test_the_callable_gets_all_there_is_to_know(place: str) -> None:
    def tell(error: stook.ElementError) -> Any:
        return [error.index, error.item_index, error.worker, type(error.__cause__), str(error)]

    with made(place, list(range(6)), fail, on_error=tell) as loader:
        index, item, worker, cause, text = list(loader)[3]
    assert (index, item, cause) == (3, 3, NoItemError)
    assert (worker is None) == (place != "workers")
    assert text == "NoItemError was raised while loading element 3 (index 3): NoItemError(3)"


@a_place_of_each_kind
@pytest.mark.parametrize("batch_size", [None, 2])
def test_the_callables_own_error_is_the_elements(place: str, batch_size: int | None) -> None:
    def broken(error: stook.ElementError) -> Any:
        if error.item_index == 3:
            raise LookupError("of on_error")
        raise error.__cause__ or error

    with made(place, range(6), fail, batch_size=batch_size, on_error=broken) as loader:
        iterator = iter(loader)
        with pytest.raises(NoItemError) as first:
            next(iterator)
        assert any("while loading element 0 (index 0" in note for note in notes_of(first.value))
        rest = outcomes(iterator)
    assert rest == ([1, 2, LookupError, 4, 5] if batch_size is None else [LookupError, [4, 5]])


def notes_of(error: BaseException) -> list[str]:
    return getattr(error, "__notes__", [])


@a_place_of_each_kind
def test_what_the_callable_raises_to_end_loops_is_an_element_error(place: str) -> None:
    def ends(error: stook.ElementError) -> Any:
        raise StopIteration("of on_error")

    with made(place, [0, 1], fail, on_error=ends) as loader:
        iterator = iter(loader)
        with pytest.raises(stook.ElementError, match="StopIteration was raised"):
            next(iterator)
        assert list(iterator) == [1]


@pytest.mark.parametrize("batch_size", [None, 2])
def test_a_replacement_that_cannot_be_sent_is_an_error(batch_size: int | None) -> None:
    with made(
        "workers", range(4), fail, batch_size=batch_size, on_error=lambda _: threading.Lock()
    ) as loader:
        found = outcomes(iter(loader))
    if batch_size is None:
        assert found == [TypeError, 1, 2, TypeError]
    else:  # and it is not like the other item of its batch, which is an int
        assert all(isinstance(outcome, type) for outcome in found)


def test_replacements_are_moved() -> None:
    def blank(error: stook.ElementError) -> Any:
        return np.zeros(50_000)

    with made("workers", range(4), fail, on_error=blank) as loader:
        found = [element for element in loader if not isinstance(element, int)]
        assert len(found) == 2
        assert all(stook.is_shared(array) for array in found)
        assert (loader.stats().moved, loader.stats().copied) == (2, 0)


def test_elements_are_moved_where_nothing_fails() -> None:
    with made(
        "workers", range(8), lambda i: np.full(50_000, i), on_error="skip", retries=1
    ) as loader:
        assert [int(array[-1]) for array in loader] == list(range(8))
        assert (loader.stats().moved, loader.stats().copied) == (8, 0)
    with made(
        "workers", range(8), lambda i: np.full(50_000, i), batch_size=2, on_error="skip"
    ) as loader:
        assert len(list(loader)) == 4
        assert (loader.stats().moved, loader.stats().copied) == (4, 0)


# ---- batches -------------------------------------------------------------------------------------


@a_place_of_each_kind
@pytest.mark.parametrize("odd", [{0}, {2}, {0, 1}, {3}])
def test_items_unlike_most_of_their_batch_are_skipped(place: str, odd: set[int]) -> None:
    def transform(index: int) -> Any:
        return {"name": str(index), "image": np.full(2 if index in odd else 3, index)}

    with made(place, range(10), transform, batch_size=5, on_error="skip") as loader:
        first, second = loader
        left = [index for index in range(5) if index not in odd]
        assert first["image"].tolist() == [[index] * 3 for index in left]
        assert first["name"] == [str(index) for index in left]
        assert second["image"].shape == (5, 3)
        assert loader.stats().errors == len(odd)


@a_place_of_each_kind
def test_an_item_unlike_those_before_it_can_be_replaced(place: str) -> None:
    def transform(index: int) -> Any:
        return ("b", np.zeros(2)) if index == 1 else (str(index), np.full(3, index))

    def as_zeros(error: stook.ElementError) -> Any:
        assert "item 1 (index 1)" in str(error.__cause__)
        return "z", np.zeros(3, int)

    with made(place, range(3), transform, batch_size=3, on_error=as_zeros) as loader:
        ((names, arrays),) = loader
    assert names == ["0", "z", "2"]
    assert arrays.tolist() == [[0] * 3, [0] * 3, [2] * 3]


@a_place_of_each_kind
def test_a_replacement_unlike_its_batch_is_an_error(place: str) -> None:
    def as_text(error: stook.ElementError) -> str:
        assert isinstance(error.__cause__, NoItemError)  # it is not asked about its own
        return "text"

    with made(place, range(1, 5), fail, batch_size=4, on_error=as_text) as loader:
        with pytest.raises(ValueError, match=r"the str 'text' in item 2 \(index 2\)"):
            next(iter(loader))
        assert loader.stats().errors >= 1


@a_place_of_each_kind
@pytest.mark.parametrize("on_error", ["skip", lambda error: [error.item_index, str(error)]])
def test_a_collate_that_fails_costs_its_batch(place: str, on_error: Any) -> None:
    def collate(items: list[int]) -> Any:
        if 5 in items:
            raise NoItemError("collate")
        return items

    with made(place, range(9), fail, batch_size=3, collate=collate, on_error=on_error) as loader:
        found = list(loader)
        errors = loader.stats().errors
    if on_error == "skip":
        assert found == [[1, 2], [6, 7]]
        assert errors == 4
    else:
        assert found[1][0] is None
        assert "while loading element 1:" in found[1][1]
        assert errors == 4


# ---- SKIP as a filter ----------------------------------------------------------------------------


@each_place
@each_batch
@pytest.mark.parametrize("on_error", ["raise", "skip"])
@pytest.mark.parametrize("collate", [None, list])
def test_a_transform_filters_by_skip(
    place: str, batch_size: int | None, on_error: str, collate: Any
) -> None:
    if batch_size is None and collate is not None:
        return

    def odd_alone(index: int) -> Any:
        return stook.SKIP if index % 2 == 0 or 8 <= index < 12 else index

    with made(
        place,
        range(LENGTH),
        odd_alone,
        batch_size=batch_size,
        collate=collate,
        on_error=on_error,
    ) as loader:
        assert outcomes(iter(loader)) == plain(odd_alone, batch_size)
        assert loader.stats().errors == 0


# ---- retries -------------------------------------------------------------------------------------


class Flaky:
    """Draws, and then fails the first so many times that it is asked for an item."""

    def __init__(self, times: int, *, fails: bool = True, own: bool = False) -> None:
        self.times = times
        self.fails = fails
        self.own = own  # draws from the element's own generator alone, as threads need it
        self.asked: dict[int, int] = {}

    def __call__(self, index: int) -> Any:
        draws = [stook.rng().random()] if index % 3 else []
        if not self.own:
            draws += [random.random(), np.random.rand(), np.random.normal()]
        draws.append(stook.rng().random())
        times = self.asked[index] = self.asked.get(index, 0) + 1
        if self.fails and index % 2 and times <= self.times:
            raise NoItemError(index)
        return index, repr(draws)


@pytest.mark.parametrize("place", ["here", "worker", "threads"])
@pytest.mark.parametrize("batch_size", [None, 4])
def test_an_item_that_succeeds_later_draws_the_same(place: str, batch_size: int | None) -> None:
    results = []
    for fails in (True, False):
        transform = Flaky(2, fails=fails, own=place == "threads")
        with made(place, range(10), transform, batch_size=batch_size, retries=2, seed=3) as loader:
            results.append([list(map(repr, element)) for element in loader])
            assert loader.stats().errors == 0
    assert results[0] == results[1]


@a_place_of_each_kind
def test_retries_come_before_the_policy(place: str) -> None:
    with made(place, range(8), Flaky(2, own=True), retries=1, on_error="skip") as loader:
        assert [element[0] for element in loader] == [0, 2, 4, 6]
    with made(place, range(8), Flaky(2, own=True), retries=1) as loader:
        assert outcomes(iter(loader))[1::2] == [NoItemError] * 4


def test_retries_are_counted() -> None:
    transform = Flaky(99)
    with made("here", range(2), transform, retries=3, on_error="skip") as loader:
        assert len(list(loader)) == 1
    assert transform.asked == {0: 1, 1: 4}


# ---- max_errors ----------------------------------------------------------------------------------


@each_place
@pytest.mark.parametrize("batch_size", [None, 4])
@pytest.mark.parametrize("on_error", ["skip", lambda _: 0])
def test_a_number_of_errors_ends_the_pass(
    place: str, batch_size: int | None, on_error: Any
) -> None:
    with made(
        place, range(LENGTH), fail, batch_size=batch_size, on_error=on_error, max_errors=2
    ) as loader:
        for _ in range(2):  # each pass anew
            iterator = iter(loader)
            with pytest.raises(stook.TooManyErrors) as caught:
                list(iterator)
            assert caught.value.errors in (3, 6)  # a batch is one delivery
            assert caught.value.items == (9 if batch_size is None else 12)
            assert caught.value.allowed == 2
            assert list(iterator) == []
    with made(
        place, range(LENGTH), fail, batch_size=batch_size, on_error="skip", max_errors=len(FAILING)
    ) as loader:
        list(loader)


@each_place
def test_raised_errors_count_as_well(place: str) -> None:
    with made(place, range(LENGTH), fail, max_errors=1) as loader:
        iterator = iter(loader)
        assert [outcome for outcome in outcomes(iterator) if outcome is not NoItemError] == [
            *(1, 2),
            stook.TooManyErrors,
        ]
        assert loader.stats().errors == 2


@each_place
def test_all_items_of_a_batch_that_raises_have_been_seen(place: str) -> None:
    with made(place, range(LENGTH), fail, batch_size=4, max_errors=1) as loader:
        iterator = iter(loader)
        with pytest.raises(NoItemError):
            next(iterator)
        assert next(iterator).tolist() == [4, 5, 6, 7]
        with pytest.raises(stook.TooManyErrors) as caught:
            next(iterator)
        assert (caught.value.errors, caught.value.items) == (2, 12)


@each_place
def test_a_rate_of_errors_is_looked_at_from_the_hundredth_item_on(place: str) -> None:
    def fails_early(index: int) -> int:
        if index < 20 or index in (100, 101, 102):
            raise NoItemError(index)
        return index

    def run(rate: float) -> tuple[int, int, int]:
        with made(place, range(200), fails_early, on_error="skip", max_errors=rate) as loader:
            count = 0
            with pytest.raises(stook.TooManyErrors) as caught:
                for _ in loader:
                    count += 1
            return count, caught.value.errors, caught.value.items

    assert run(0.19) == (80, 21, 101)  # the 100th item itself did not fail
    assert run(0.21) == (80, 22, 102)
    with made(place, range(200), fails_early, on_error="skip", max_errors=0.5) as loader:
        assert len(list(loader)) == 177
