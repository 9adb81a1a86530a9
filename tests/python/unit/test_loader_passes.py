"""Passes, epochs, their order, and update()."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from loader_cases import Repeated, each_number_of_workers, loader, outcomes

import stook
from stook._drawn_jobs import DrawnDealing
from stook._jobs import Plan
from stook._state import Place


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

    seen = list(loader(source, draw, workers=0, num_epochs=5))[::4]
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


def test_epochs_are_counted_by_what_was_delivered_not_by_what_was_drawn() -> None:
    jobs = DrawnDealing(Plan(batch_size=2), Repeated(1, 2, 3)).begin(Place(5, first_epoch=5), 4)
    drawn = list(jobs.deal())
    assert [job[:2] for job in drawn] == [(epoch, at) for epoch in range(5, 9) for at in (0, 1)]
    places = [jobs.place(delivered) for delivered in range(9)]
    expected = [divmod(at, 2) for at in range(10, 18)] + [(8, 2)]
    assert [(place.epoch, place.position) for place in places] == expected
