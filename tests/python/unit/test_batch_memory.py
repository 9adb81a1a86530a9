"""What batches cost in memory where items fail; and that odd items cost themselves alone."""

from __future__ import annotations

import tracemalloc
from collections import namedtuple
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import stook
from stook.collate import Assembler

ROW = 1000  # floats
POLICIES: dict[str, dict[str, Any]] = {
    "skip": {"on_error": "skip"},
    "callable": {"on_error": lambda error: stook.SKIP},
    "retries": {"retries": 1},
    "timeout": {"options": stook.MultiprocessingOptions(timeout=100)},
}
each_policy = pytest.mark.parametrize("policy", POLICIES)


def row(index: int) -> np.ndarray:
    return np.full(ROW, index, np.float64)


def peak_of(run: Callable[[], Any]) -> int:
    """Bytes that were allocated at once at most, beyond those before."""
    tracemalloc.start()
    try:
        run()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@each_policy
def test_a_batch_has_the_memory_of_the_items_there_are(policy: str) -> None:
    """Not that of `batch_size`, with which some mean: all in one batch."""
    with stook.DataLoader(range(5), row, batch_size=1 << 31, **POLICIES[policy]) as loader:
        (batch,) = loader
        assert batch.shape == (5, ROW)
        assert batch[:, 0].tolist() == [0, 1, 2, 3, 4]
        assert loader.stats().errors == 0


@each_policy
def test_what_is_left_out_costs_no_second_batch(policy: str) -> None:
    def most(index: int) -> Any:
        return stook.SKIP if index == 70 else row(index)

    loader = stook.DataLoader(range(100), most, batch_size=100, **POLICIES[policy])
    list(loader)  # what is imported and cached once
    batches: list[Any] = []
    assert peak_of(lambda: batches.extend(loader)) < 150 * 8 * ROW
    assert batches[0][:, 0].tolist() == [index for index in range(100) if index != 70]
    assert batches[0].flags.owndata


@pytest.mark.parametrize("kept", [1, 15, 16])
def test_a_batch_that_came_out_shorter_is_moved_and_holds_no_more_than_it_needs(kept: int) -> None:
    def few(index: int) -> Any:
        return stook.SKIP if index % 32 >= kept else np.full(20 * ROW, index, np.float64)

    options = stook.MultiprocessingOptions(1)
    with stook.DataLoader(range(64), few, batch_size=32, options=options) as loader:
        first, second = loader
        assert first.shape == second.shape == (kept, 20 * ROW)
        assert second[:, -1].tolist() == list(range(32, 32 + kept))
        stats = loader.stats()
        assert (stats.moved, stats.copied) == (2, 0)
        # Blocks are of whole pages; one for the whole batch would be 5 MB.
        assert stats.bytes_live < 2 * 2 * (kept * 160 * ROW + 65536)


def test_items_that_are_all_unlike_cost_little_more_than_themselves() -> None:
    def odd(index: int) -> np.ndarray:
        return np.full((index + 1, ROW), index, np.float64)

    loader = stook.DataLoader(range(32), odd, batch_size=32, on_error="skip")
    list(loader)
    sizes = sum(odd(index).nbytes for index in range(32))
    assert peak_of(lambda: list(loader)) < 2 * sizes  # a batch's memory for each: 32 times that
    assert loader.stats().errors == 2 * 31


def too_large(index: int) -> np.ndarray:
    return np.broadcast_to(np.float64(index), (1 << 45,))


@each_policy
def test_no_room_for_a_batch_is_no_items_fault(policy: str) -> None:
    """Left out item by item, or batch by batch, all the data would be: without a word."""
    loader = stook.DataLoader(range(4), too_large, batch_size=2, **POLICIES[policy])
    elements = iter(loader)
    for _ in range(2):
        with pytest.raises(MemoryError):
            next(elements)
    assert list(elements) == []
    assert elements.stats().errors == 2


def test_no_room_for_the_items_that_are_most_is_no_items_fault() -> None:
    def mostly_too_large(index: int) -> Any:
        return too_large(index) if index else row(index)

    loader = stook.DataLoader(range(3), mostly_too_large, batch_size=3, on_error="skip")
    with pytest.raises(MemoryError):
        next(iter(loader))


class Key:
    """Found where "a" is looked for, and then it does not want to be compared."""

    def __hash__(self) -> int:
        return hash("a")

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("not comparable")


@pytest.mark.parametrize("odd", [{0}, {2}, {4}])
def test_an_item_whose_assembling_raises_is_lost_alone(odd: set[int]) -> None:
    def item(index: int) -> Any:
        return {Key() if index in odd else "a": index}

    loader = stook.DataLoader(range(10), item, batch_size=5, on_error="skip")
    first, second = loader
    assert first["a"].tolist() == [index for index in range(5) if index not in odd]
    assert second["a"].tolist() == [5, 6, 7, 8, 9]
    assert loader.stats().errors == len(odd)


@pytest.mark.parametrize(
    ("items", "wanted", "left_out"),
    [
        ([1.0, 2, 3, 4.0, 5.0], [1.0, 4.0, 5.0], 2),
        ([1.0, 2, 3, "text", 4], [2, 3, 4], 2),
        ([1.0, 2, 3, 4.0], [1.0, 4.0], 2),  # of as many, those that came first
        (["a", 1, 2.0, 3, 4.0], [1, 3], 3),
        ([1 << 70, 1.0, 1 << 70, 1 << 70], [1.0], 3),  # which fit nowhere
        ([1 << 70, 1 << 70], None, 2),
        ([(1, 2), [1, 2], (3, 4), {"a": 1}], ([1, 3], [2, 4]), 2),
        ([1, {"b": 1, "a": 2}, {"a": 3, "b": 4}], {"b": [1, 4], "a": [2, 3]}, 1),
        ([1, np.int32(2), np.zeros((), np.int32), np.zeros(1, np.int32)], [2, 0], 2),
        ([1, np.zeros(3), np.zeros(2), np.ones(2)], [[0, 0], [1, 1]], 2),
        ([1, {"a": 1}, {"b": 1}, {"b": 2}], {"b": [1, 2]}, 2),
        ([True, 1, np.int64(2)], [1, 2], 1),
        ([1, stook.SKIP, "a", "b"], ["a", "b"], 1),
    ],
)
def test_what_most_items_are_like_becomes_the_batch(items: Any, wanted: Any, left_out: int) -> None:
    loader = stook.DataLoader(items, batch_size=len(items), on_error="skip")
    found = [plain(batch) for batch in loader]
    assert found == ([] if wanted is None else [wanted])
    assert loader.stats().errors == left_out


def plain(batch: Any) -> Any:
    if isinstance(batch, dict):
        return {key: plain(value) for key, value in batch.items()}
    if isinstance(batch, tuple):
        return tuple(map(plain, batch))
    return batch.tolist() if isinstance(batch, np.ndarray) else batch


Point = namedtuple("Point", ["x", "y"])


class Unindexed(Point):
    def __getitem__(self, place: Any) -> Any:
        raise LookupError("no places")


def test_after_any_error_of_the_first_item_the_next_one_is_the_first() -> None:
    batch = Assembler([10, 11])
    with pytest.raises(LookupError):
        batch.add(Unindexed(1, 2))
    batch.add(stook.SKIP)
    batch.add(5)
    assert batch.finish().tolist() == [5]


def test_of_those_that_are_most_the_ones_that_cannot_be_assembled_are_left_out() -> None:
    def item(index: int) -> Any:
        return 1.5 if index == 0 else (Unindexed if index % 2 else Point)(index, index)

    # Three of them are of one type, and that one cannot be read.
    loader = stook.DataLoader(range(6), item, batch_size=6, on_error="skip")
    assert list(loader) == []
    assert loader.stats().errors == 6


class Clock:
    """Stands still, but for what says that it takes time."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.mark.parametrize("on_error", ["raise", "skip", lambda error: repr(error.__cause__)])
def test_collate_has_the_time_of_an_item_here_too(
    on_error: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr("stook._policy.time", clock)

    def collate(items: list[int]) -> list[int]:
        clock.now += 3 if 2 in items else 1
        return items

    options = stook.MultiprocessingOptions(timeout=2)
    with stook.DataLoader(
        range(6), batch_size=2, collate=collate, options=options, on_error=on_error
    ) as loader:
        elements = iter(loader)
        assert next(elements) == [0, 1]
        if on_error == "raise":
            with pytest.raises(stook.ElementTimeout, match="element 1 took longer") as caught:
                next(elements)
            assert (caught.value.index, caught.value.item_index) == (1, None)
        elif callable(on_error):
            assert next(elements).startswith("ElementTimeout(")
        assert list(elements) == [[4, 5]]
        assert elements.stats().errors == 1
