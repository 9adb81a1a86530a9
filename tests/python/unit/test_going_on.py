"""Passes that are broken off and gone on with: by Ctrl-C, after their end, by set_state()."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import Any

import pytest
from loader_cases import each_kind_of_workers, loader

import stook

# ---- who may be set ------------------------------------------------------------------------------


@each_kind_of_workers
def test_an_iterator_at_its_end_is_not_set_back_once_its_loader_is_closed(workers: int) -> None:
    made = loader(range(4), workers=workers)
    elements = iter(made)
    state = elements.get_state()
    assert list(elements) == [0, 1, 2, 3]
    elements.set_state(state)
    assert list(elements) == [0, 1, 2, 3]
    made.close()
    with pytest.raises(stook.StookError, match="close"):
        elements.set_state(state)
    assert list(elements) == []


@each_kind_of_workers
def test_an_iterator_at_its_end_is_not_set_back_beside_a_later_one(workers: int) -> None:
    with loader(range(4), workers=workers) as made:
        first = iter(made)
        state = first.get_state()
        list(first)
        second = iter(made)
        assert next(second) == 0
        with pytest.raises(stook.StookError, match="closed"):
            first.set_state(state)
        assert list(second) == [1, 2, 3]


@each_kind_of_workers
def test_a_state_set_after_an_update_is_for_the_next_pass(workers: int) -> None:
    with loader(range(6), workers=workers) as made:
        elements = iter(made)
        saved = made.get_state()
        assert [next(elements), next(elements)] == [0, 1]
        made.update(range(10, 16))
        made.set_state({**saved, "position": 4})
        assert made.get_state()["position"] == 2, "that of the pass under way"
        assert next(elements) == 2
        assert made.get_state()["position"] == 3
        assert list(elements) == [3, 4, 5]
        assert made.get_state()["position"] == 4
        assert list(made) == [14, 15]


@each_kind_of_workers
def test_a_state_set_after_the_iterator_was_closed_counts(workers: int) -> None:
    with loader(range(6), workers=workers) as made:
        elements = iter(made)
        saved = made.get_state()
        made.set_state({**saved, "position": 2})
        elements.close()
        made.set_state({**saved, "position": 4})
        assert made.get_state()["position"] == 4
        assert list(made) == [4, 5]


def test_a_loader_says_when_its_pass_cannot_be_set() -> None:
    refused: list[str] = []
    with loader(range(8), workers=-2) as made:
        saved = made.get_state()

        def source() -> Iterator[int]:
            for index in range(8):
                if index == 5:  # asked within next(), as by a signal handler
                    with pytest.raises(stook.StookError, match="waits in next"):
                        drawing.set_state({**saved, "items": "iterable", "length": None})
                    refused.append("set_state")
                yield index

        class Fresh:
            def __iter__(self) -> Iterator[int]:
                return source()

        with loader(Fresh(), workers=-2) as drawing:
            for taken, element in enumerate(drawing):
                assert element == taken
                assert drawing.get_state()["position"] == taken + 1
    assert refused == ["set_state"]


class Going:
    """An iterator with a state."""

    def __init__(self) -> None:
        self.next = 0

    def __iter__(self) -> Going:
        return self

    def __next__(self) -> int:
        if self.next == 6:
            raise StopIteration
        self.next += 1
        return self.next - 1

    def get_state(self) -> int:
        return self.next

    def set_state(self, state: int) -> None:
        self.next = state


@each_kind_of_workers
def test_a_new_loop_goes_on_with_an_iterator_where_the_loader_was_set(workers: int) -> None:
    with loader(Going(), workers=workers) as made:
        elements = iter(made)
        next(elements)
        saved = made.get_state()
        next(elements)
        made.set_state(saved)
        assert list(made) == [1, 2, 3, 4, 5]


@each_kind_of_workers
def test_the_state_before_a_pass_names_the_order_that_chance_draws(workers: int) -> None:
    with loader(range(20), workers=workers, shuffle=True, seed=None) as made:
        fresh = made.get_state()
        assert made.get_state() == fresh
        first = list(made)
        between = made.get_state()
        second = list(made)
        made.set_state(fresh)
        assert list(made) == first
        made.set_state(between)
        assert list(made) == second
        assert len({tuple(made), tuple(first), tuple(second)}) == 3


# ---- Ctrl-C --------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [None, 2])
@pytest.mark.parametrize("kind", ["indexed", "iterable", "read here"])
def test_ctrl_c_in_the_middle_of_an_element_loses_none(kind: str, batch_size: int | None) -> None:
    interrupt = True

    def transform(index: int) -> Any:
        nonlocal interrupt
        draw = stook.rng().random()
        if index == 2 and interrupt:
            interrupt = False
            signal.raise_signal(signal.SIGINT)
        return index, draw

    class Items:
        def __iter__(self) -> Iterator[int]:
            return iter(range(5))

    sources: dict[str, Any] = {
        "indexed": range(5),
        "iterable": Items(),
        "read here": lambda shard, count: range(5)[shard::count],
    }
    settings: Any = {"batch_size": batch_size, "collate": list} if batch_size else {}
    made = stook.DataLoader(sources[kind], transform, **settings)
    elements = iter(made)
    found = []
    for _ in range(2 // (batch_size or 1)):
        found.append(next(elements))
    with pytest.raises(KeyboardInterrupt):
        next(elements)
    assert made.get_state()["position"] == len(found), "it comes again"
    assert elements.stats().errors == 0
    saved = made.get_state()
    found += elements
    assert found == list(stook.DataLoader(sources[kind], transform, **settings))
    other = stook.DataLoader(sources[kind], transform, **settings)
    other.set_state(saved)
    assert list(other) == found[saved["position"] :]


@each_kind_of_workers
def test_ctrl_c_in_the_source_does_not_end_the_pass_in_silence(workers: int) -> None:
    interrupt = True

    class Items:
        def __iter__(self) -> Iterator[int]:
            nonlocal interrupt
            for index in range(6):
                if index == 3 and interrupt:
                    interrupt = False
                    signal.raise_signal(signal.SIGINT)
                yield index

    with loader(Items(), workers=workers) as made:
        elements = iter(made)
        found: list[int] = []
        interrupts = 0
        with pytest.raises(stook.StookError, match="broken off: a KeyboardInterrupt"):
            while True:
                try:
                    found.append(next(elements))
                except KeyboardInterrupt:
                    interrupts += 1
        assert (found, interrupts) == ([0, 1, 2], 1)
        elements.set_state(elements.get_state())
        assert list(elements) == [3, 4, 5]


# ---- arguments -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["num_epochs", "batch_size", "max_errors"])
def test_numbers_beyond_what_can_be_counted_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=rf"{name} must be .*at most\s+{1 << 62}.*got {10**30}"):
        stook.DataLoader(range(3), **{name: 10**30})
