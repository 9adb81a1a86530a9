"""States that go on in other shards: nothing is lost, and nothing comes twice."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loader_cases import each_kind_of_workers, loader

import stook


@given(
    length=st.integers(0, 40),
    before=st.integers(1, 5),
    after=st.integers(1, 5),
    batch_size=st.none() | st.integers(1, 4),
    shuffle=st.booleans(),
    indexed=st.booleans(),
    data=st.data(),
)
@settings(deadline=None, max_examples=80)
def test_other_shards_go_on_and_nothing_is_lost_or_comes_twice(
    length: int,
    before: int,
    after: int,
    batch_size: int | None,
    shuffle: bool,
    indexed: bool,
    data: st.DataObject,
) -> None:
    def shard(index: int, count: int) -> Any:
        batches: Any = {"batch_size": batch_size, "collate": list} if batch_size else {}
        return iter(
            stook.DataLoader(
                range(length) if indexed else Source(length),
                shuffle=shuffle and indexed,
                num_epochs=2,
                shard=(index, count),
                **batches,
            )
        )

    def items(elements: Any) -> list[int]:
        return [item for each in elements for item in (each if batch_size else [each])]

    class Source:
        def __init__(self, length: int) -> None:
            self.length = length

        def __iter__(self) -> Iterator[int]:
            return iter(range(self.length))

    per_epoch = -(-(length // before) // (batch_size or 1))
    common = per_epoch - data.draw(st.integers(0, min(2, per_epoch)) | st.integers(0, per_epoch))
    old = [shard(index, before) for index in range(before)]
    taken = [item for each in old for item in items(next(each) for _ in range(common))]
    states = [each.get_state() for each in old]
    turn = data.draw(st.integers(0, before - 1))  # whose states are taken
    rest: list[int] = []
    for index in range(after):
        new = shard(index, after)
        state = states[(index + turn) % before]
        new.set_state(json.loads(json.dumps(state)), reshard=True)
        rest += items(new)
    assert sorted(taken + rest) == sorted([*range(length), *range(length)])


class Items:
    """An iterable without a length or a state."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.count))


@each_kind_of_workers
@pytest.mark.parametrize("kind", [range, Items])
def test_a_smaller_shard_at_the_end_of_its_epoch_leaves_the_others_last(
    workers: int, kind: Any
) -> None:
    settings: Any = {"shard": (1, 2), "num_epochs": 2}
    with loader(kind(7), workers=workers, **settings) as made:
        elements = iter(made)
        assert [next(elements) for _ in range(3)] == [1, 3, 5]
        state = elements.get_state()
        assert (state["epoch"], state["position"]) == (0, 3)
        assert next(elements) == 1, "of the next epoch"
        assert elements.get_state()["position"] == 1
        assert list(elements) == [3, 5]
        assert made.get_state()["epoch"] == 2
        elements.set_state(state)
        assert list(elements) == [1, 3, 5]
    whole = stook.DataLoader(kind(7), num_epochs=2)
    whole.set_state(state, reshard=True)
    assert list(whole) == [6, *range(7)]


@pytest.mark.parametrize("workers", [0, 2, -2])
def test_a_sampler_that_gives_more_than_its_source_has_goes_on_in_other_shards(
    workers: int,
) -> None:
    given = [index % 10 for index in range(40)]
    old = [iter(stook.DataLoader(range(10), sampler=given, shard=(i, 2))) for i in (0, 1)]
    for each in old:
        for _ in range(15):
            next(each)
    for each in old:
        with loader(range(10), workers=workers, sampler=given) as made:
            made.set_state(each.get_state(), reshard=True)
            assert list(made) == given[30:]


@pytest.mark.parametrize("after", [1, 3])
@pytest.mark.parametrize("kind", ["iterable", "sampler"])
def test_shards_go_on_without_end_where_their_epoch_has_no_more(kind: str, after: int) -> None:
    def shard(index: int, count: int) -> Any:
        source, sampler = (Items(10), None) if kind == "iterable" else (range(10), range(10))
        made = stook.DataLoader(source, sampler=sampler, shard=(index, count), num_epochs=None)
        return iter(made)

    for taken in range(6):
        old = shard(0, 2)
        for _ in range(taken):
            next(old)
        rest = []
        for index in range(after):
            new = shard(index, after)
            new.set_state(old.get_state(), reshard=True)
            left = len(range(2 * taken + index, 10, after))
            rest += [next(new) for _ in range(left)]
            assert next(new) == index, "the next epoch"
        assert sorted(rest) == list(range(2 * taken, 10))


def test_the_pass_after_one_that_had_nothing_left_is_of_the_next_epoch() -> None:
    old = iter(stook.DataLoader(range(4), shard=(0, 2)))
    list(old)
    made = stook.DataLoader(range(4), shard=(1, 3))
    made.set_state(old.get_state(), reshard=True)
    assert list(made) == []
    assert made.get_state()["epoch"] == 1
    assert list(made) == [1]
    assert made.get_state()["epoch"] == 2


def test_what_is_ahead_of_others_is_not_resharded() -> None:
    elements = iter(stook.DataLoader(range(10)))
    next(elements)
    state = {**elements.get_state(), "ahead": [2]}
    other = stook.DataLoader(range(10), shard=(0, 2))
    with pytest.raises(ValueError, match="1 are ahead of others"):
        other.set_state(state, reshard=True)


def test_unsharded_draws_go_on_after_a_reshard() -> None:
    def drawing(index: int) -> Any:
        return index, stook.rng().random()

    whole = list(stook.DataLoader(range(12), drawing, shuffle=True))
    two = [iter(stook.DataLoader(range(12), drawing, shuffle=True, shard=(i, 2))) for i in (0, 1)]
    taken = [next(each) for _ in range(3) for each in two]
    assert taken == whole[:6]
    three = [stook.DataLoader(range(12), drawing, shuffle=True, shard=(i, 3)) for i in range(3)]
    found = []
    for each in three:
        each.set_state(two[1].get_state(), reshard=True)
        found.append(list(each))
    assert [element for row in zip(*found, strict=True) for element in row] == whole[6:]
