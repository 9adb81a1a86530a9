"""Sources that are read where elements are made, one iterable for each shard."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

import pytest
from loader_cases import loader, outcomes

import stook


def uneven(shard: int, count: int) -> Iterator[int]:
    """Shard s has 3 * s elements."""
    return iter([100 * shard + i for i in range(3 * shard)])


def state_of(shards: int, source: Any = uneven, **settings: Any) -> dict[str, Any]:
    """A state of the beginning, as a loader with so many workers has it."""
    with loader(source, workers=shards, **settings) as made:
        return made.get_state()


def over_shards(shards: int, source: Any, *arguments: Any, **settings: Any) -> Any:
    """A loader in this process over so many shards, at its beginning."""
    made = loader(source, *arguments, workers=0, **settings)
    made.set_state(state_of(shards, source, **settings))
    return made


def test_elements_come_from_the_shards_in_turn_as_long_as_they_have_some() -> None:
    assert list(over_shards(3, uneven)) == [100, 200, 101, 201, 102, 202, 203, 204, 205]


def test_there_is_one_shard_without_workers() -> None:
    assert list(stook.DataLoader(lambda shard, count: [(shard, count)])) == [(0, 1)]


def test_batches_are_made_within_a_shard() -> None:
    settings: dict[str, Any] = {"batch_size": 2}
    batches = [batch.tolist() for batch in over_shards(3, uneven, **settings)]
    assert batches == [[100, 101], [200, 201], [102], [202, 203], [204, 205]]
    settings["drop_remainder"] = True
    batches = [batch.tolist() for batch in over_shards(3, uneven, **settings)]
    assert batches == [[100, 101], [200, 201], [202, 203], [204, 205]]


def test_shards_of_the_loader_multiply() -> None:
    asked: list[tuple[int, int]] = []

    def source(shard: int, count: int) -> list[int]:
        asked.append((shard, count))
        return [shard]

    assert list(over_shards(2, source, shard=(1, 3))) == [2, 3]
    assert asked == [(2, 6), (3, 6)]


def test_every_epoch_and_pass_reads_anew() -> None:
    made = over_shards(2, uneven, num_epochs=2)
    once = [100, 101, 102]
    assert list(made) == once * 2
    assert list(made) == once * 2
    assert made.get_state()["epoch"] == 4


def test_a_class_of_iterables_is_a_source() -> None:
    class Records:
        def __init__(self, shard: int, count: int) -> None:
            self.shard = shard

        def __iter__(self) -> Iterator[int]:
            yield self.shard

    assert list(over_shards(2, Records)) == [0, 1]


def test_a_state_goes_on_at_every_element() -> None:
    for settings in ({}, {"batch_size": 2}, {"num_epochs": 2}):
        made = over_shards(3, uneven, str, collate=None, **settings)
        elements = iter(made)
        states, seen = [elements.get_state()], []
        for element in elements:
            seen.append(element)
            states.append(elements.get_state())
        for number, state in enumerate(states):
            other = loader(uneven, str, workers=0, **settings)
            other.set_state(json.loads(json.dumps(state)))
            assert list(other) == seen[number:], state


def test_a_shard_that_is_over_is_not_read_again() -> None:
    asked: list[int] = []

    def source(shard: int, count: int) -> Iterator[int]:
        asked.append(shard)
        return uneven(shard, count)

    elements = iter(over_shards(3, source))
    assert [next(elements) for _ in range(4)] == [100, 200, 101, 201]
    asked.clear()
    other = loader(source, workers=0)
    other.set_state(elements.get_state())
    assert list(other) == [102, 202, 203, 204, 205]
    assert sorted(asked) == [1, 2]


def test_the_saved_number_of_shards_stays_for_later_passes() -> None:
    made = over_shards(3, uneven)
    assert len(list(made)) == len(list(made)) == 9
    assert made.get_state()["shards"] == 3


def test_a_state_of_shards_is_not_for_others() -> None:
    with pytest.raises(ValueError, match="read in the workers"):
        over = loader(uneven, workers=0, shard=(0, 2))
        over.set_state(state_of(1), reshard=True)
    with pytest.raises(ValueError, match="items='shards'"):
        loader([1, 2], workers=0).set_state(state_of(1))
    with pytest.raises(ValueError, match="shard 5 is over, and there are 3"):
        loader(uneven, workers=0).set_state({**state_of(3), "over": [[5, 1]]})
    with pytest.raises(ValueError, match="'shards'"):
        without = state_of(3)
        del without["shards"]
        loader(uneven, workers=0).set_state(without)


def test_draws_of_the_iterable_are_its_own_and_the_same_again() -> None:
    def drawing(shard: int, count: int) -> Iterator[float]:
        order = list(range(8))
        random.shuffle(order)
        for number in order:
            yield number + random.random()

    def draw(item: float) -> tuple[float, float]:
        return item, random.random()

    before = random.getstate()
    first = list(over_shards(2, drawing, draw))
    assert random.getstate() == before
    assert list(over_shards(2, drawing, draw)) == first
    assert all(item % 1 != pytest.approx(own) for item, own in first)
    made = over_shards(2, drawing, draw)
    elements = iter(made)
    head = [next(elements) for _ in range(5)]
    other = loader(drawing, draw, workers=0)
    other.set_state(elements.get_state())
    assert head + list(other) == first


class Failing:
    """An iterator that fails at one item and goes on behind it."""

    def __init__(self, shard: int, count: int) -> None:
        self.items = iter(range(10 * shard, 10 * shard + 4))

    def __iter__(self) -> Failing:
        return self

    def __next__(self) -> int:
        item = next(self.items)
        if item == 11:
            raise LookupError("bad record")
        return item


def test_an_error_of_the_iterable_is_raised_in_its_place() -> None:
    found = outcomes(iter(over_shards(2, Failing)))
    assert [one if isinstance(one, int) else one[0] for one in found] == [
        *(0, 10, 1, LookupError, 2, 12, 3, 13)
    ]


def test_a_generator_is_over_after_its_error() -> None:
    def source(shard: int, count: int) -> Iterator[int]:
        yield shard
        if shard == 0:
            raise LookupError("bad record")
        yield shard

    found = outcomes(iter(over_shards(2, source)))
    assert [one if isinstance(one, int) else one[0] for one in found] == [0, 1, LookupError, 1]


def test_a_source_that_raises_is_an_error_for_each_shard() -> None:
    def source(shard: int, count: int) -> list[int]:
        if shard == 1:
            raise OSError("no such file")
        return [1, 2]

    found = outcomes(iter(over_shards(2, source)))
    assert [one if isinstance(one, int) else one[0] for one in found] == [1, OSError, 2]


def test_an_item_that_fails_to_be_drawn_has_a_policy() -> None:
    made = over_shards(2, Failing, on_error="skip", batch_size=2)
    assert [batch.tolist() for batch in made] == [[0, 1], [10], [2, 3], [12, 13]]
    assert made.stats().errors == 1
    made = over_shards(2, Failing, on_error=lambda error: -1)
    assert list(made) == [0, 10, 1, -1, 2, 12, 3, 13]


def test_threads_give_the_same() -> None:
    for threads in (1, 3):
        options = stook.MultithreadingOptions(num_threads=threads)
        with stook.DataLoader(uneven, options=options, num_epochs=3) as made:
            made.set_state(state_of(3))
            assert list(made) == list(over_shards(3, uneven, num_epochs=3))


def test_answers_that_are_no_elements_are_not_counted() -> None:
    made = over_shards(3, uneven)
    elements = iter(made)
    assert len(list(elements)) == 9
    assert made.stats().elements == elements.stats().elements == 9


def test_an_endless_pass_over_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="no shard of the source"):
        next(iter(over_shards(2, lambda shard, count: [], num_epochs=None)))


def test_a_source_without_items_gives_none() -> None:
    assert list(over_shards(2, lambda shard, count: [], num_epochs=2)) == []


def test_what_cannot_be_called_with_two_numbers_is_refused() -> None:
    with pytest.raises(TypeError, match="source\\(shard, count\\)"):
        stook.DataLoader(lambda: [1])
    with pytest.raises(ValueError, match="shuffle=True needs a source with __len__"):
        stook.DataLoader(uneven, shuffle=True)
    with pytest.raises(TypeError, match="has no length"):
        len(stook.DataLoader(uneven))


@pytest.mark.parametrize("batch_size", [None, 1, 16])
def test_a_rate_of_errors_is_one_of_items(batch_size: int | None) -> None:
    def fails(item: int) -> int:
        if item % 10 == 9:
            raise LookupError(item)
        return item

    def taken(most: float) -> None:
        settings: dict[str, Any] = {"batch_size": batch_size, "on_error": "skip"}
        list(stook.DataLoader(lambda *_: range(400), fails, max_errors=most, **settings))

    taken(0.15)
    with pytest.raises(stook.TooManyErrors):
        taken(0.05)
