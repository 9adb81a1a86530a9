from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stook._core import IndexPlan


def test_single_indices() -> None:
    assert list(IndexPlan(3, num_epochs=2, first_epoch=4)) == [
        (4, 0, 0),
        (4, 1, 1),
        (4, 2, 2),
        (5, 0, 0),
        (5, 1, 1),
        (5, 2, 2),
    ]


def test_batches_are_tuples_of_indices() -> None:
    assert list(IndexPlan(3, 2)) == [(0, 0, (0, 1)), (0, 1, (2,))]
    assert list(IndexPlan(3, 2, True)) == [(0, 0, (0, 1))]
    assert list(IndexPlan(2, 1)) == [(0, 0, (0,)), (0, 1, (1,))]


def test_is_an_iterator_that_stays_exhausted() -> None:
    plan = IndexPlan(1)
    assert iter(plan) is plan
    assert next(plan) == (0, 0, 0)
    for _ in range(3):
        with pytest.raises(StopIteration):
            next(plan)


def test_its_length_is_one_epoch() -> None:
    assert len(IndexPlan(7, 3, num_epochs=None)) == 3
    assert len(IndexPlan(7, 3, True, num_epochs=5)) == 2
    assert len(IndexPlan(2**62)) == 2**62


@given(
    length=st.integers(0, 200),
    batch_size=st.integers(0, 12),
    drop_remainder=st.booleans(),
    seed=st.none() | st.integers(0, 2**64 - 1),
    first_epoch=st.integers(0, 2**40),
    num_epochs=st.integers(0, 3),
)
@settings(deadline=None, max_examples=200)
def test_every_epoch_has_every_index_once(
    length: int,
    batch_size: int,
    drop_remainder: bool,
    seed: int | None,
    first_epoch: int,
    num_epochs: int,
) -> None:
    plan = IndexPlan(length, batch_size, drop_remainder, seed, first_epoch, num_epochs)
    per_epoch = len(plan)
    jobs = list(plan)
    assert [job[:2] for job in jobs] == [
        (first_epoch + epoch, position)
        for epoch in range(num_epochs)
        for position in range(per_epoch)
    ]
    for _, of_epoch in itertools.groupby(jobs, key=lambda job: job[0]):
        payloads = [job[2] for job in of_epoch]
        if batch_size == 0:
            indices = payloads
        else:
            assert {len(batch) for batch in payloads[:-1]} <= {batch_size}
            assert 1 <= len(payloads[-1]) <= batch_size
            indices = list(itertools.chain.from_iterable(payloads))
        complete = length - length % batch_size if batch_size and drop_remainder else length
        assert len(indices) == complete
        if seed is None:
            assert indices == list(range(complete))
        else:
            assert len(set(indices)) == complete
            assert all(0 <= index < length for index in indices)


@given(length=st.integers(1, 300), batch_size=st.integers(1, 20), seed=st.integers(0, 2**64 - 1))
@settings(deadline=None, max_examples=50)
def test_the_order_does_not_depend_on_the_batch_size(
    length: int, batch_size: int, seed: int
) -> None:
    single = [index for _, _, index in IndexPlan(length, shuffle_seed=seed, num_epochs=2)]
    batches = [batch for _, _, batch in IndexPlan(length, batch_size, False, seed, num_epochs=2)]
    assert list(itertools.chain.from_iterable(batches)) == single


PLANS = {
    "length": st.integers(0, 60),
    "batch_size": st.integers(0, 5),
    "seed": st.none() | st.integers(0, 2**64 - 1),
}


def items_of(jobs: list[Any]) -> list[int]:
    items: list[int] = []
    for _, _, payload in jobs:
        items += payload if isinstance(payload, tuple) else [payload]
    return items


@given(**PLANS, count=st.integers(1, 70), drop_remainder=st.booleans())
@settings(deadline=None, max_examples=100)
def test_shards_share_every_epoch(
    length: int, batch_size: int, seed: int | None, count: int, drop_remainder: bool
) -> None:
    whole = list(IndexPlan(length, shuffle_seed=seed, num_epochs=2))
    epochs = [items_of([job for job in whole if job[0] == epoch]) for epoch in range(2)]
    for epoch, order in enumerate(epochs):
        for index in range(count):
            shard = IndexPlan(
                length,
                batch_size,
                drop_remainder,
                seed,
                epoch,
                shard_index=index,
                shard_count=count,
            )
            own = order[index::count]
            if drop_remainder and batch_size:
                own = own[: len(own) // batch_size * batch_size]
            jobs = list(shard)
            assert items_of(jobs) == own
            # Numbered among the jobs of all shards, which are dealt in turn.
            numbers = [(epoch, index + at * count) for at in range(len(shard))]
            assert [job[:2] for job in jobs] == numbers


@given(
    **PLANS,
    count=st.integers(1, 4),
    drop_remainder=st.booleans(),
    first_place=st.integers(0, 60),
    num_epochs=st.integers(1, 3),
)
@settings(deadline=None, max_examples=100)
def test_a_plan_that_goes_on_gives_the_rest(
    length: int,
    batch_size: int,
    seed: int | None,
    count: int,
    drop_remainder: bool,
    first_place: int,
    num_epochs: int,
) -> None:
    def plan(epoch: int, position: int, place: int, epochs: int) -> IndexPlan:
        return IndexPlan(
            length,
            batch_size,
            drop_remainder,
            seed,
            7 + epoch,
            epochs,
            shard_index=count - 1,
            shard_count=count,
            first_position=position,
            first_place=place,
        )

    place = min(first_place, length)
    whole = plan(0, 0, place, num_epochs)
    jobs = list(whole)
    first = whole.jobs_in_first_epoch
    assert len(jobs) == first + (num_epochs - 1) * whole.jobs_per_epoch
    for done in range(len(jobs) + 1):
        epoch, position = (0, done)
        if done > first:
            epochs, position = divmod(done - first, whole.jobs_per_epoch)
            epoch = 1 + epochs
        if epoch < num_epochs:
            rest = plan(epoch, position, place if epoch == 0 else 0, num_epochs - epoch)
            assert list(rest) == jobs[done:]


@given(
    **PLANS,
    before=st.integers(1, 6),
    then=st.integers(1, 6),
    last=st.integers(1, 6),
    data=st.data(),
)
@settings(deadline=None, max_examples=200)
def test_other_shards_go_on_with_exactly_what_is_left(
    length: int,
    batch_size: int,
    seed: int | None,
    before: int,
    then: int,
    last: int,
    data: st.DataObject,
) -> None:
    """The number of shards changes twice in an epoch, at positions that all have reached."""
    order = items_of(list(IndexPlan(length, shuffle_seed=seed)))
    taken: list[int] = []
    place = 0
    for stage, count in enumerate((before, then, last)):
        plans = [
            IndexPlan(
                length,
                batch_size,
                shuffle_seed=seed,
                shard_index=index,
                shard_count=count,
                first_place=place,
            )
            for index in range(count)
        ]
        jobs = [list(plan) for plan in plans]
        done = st.just(len(jobs[0])) if stage == 2 else st.integers(0, len(jobs[-1]))
        position = data.draw(done)
        taken += items_of([job for of_shard in jobs for job in of_shard[:position]])
        place = min(length, place + position * max(batch_size, 1) * count)
        assert sorted(taken) == sorted(order[:place])
    assert sorted(taken) == sorted(order)


@given(**PLANS, first_position=st.integers(0, 5), data=st.data())
@settings(deadline=None, max_examples=100)
def test_skipped_jobs_are_left_out(
    length: int, batch_size: int, seed: int | None, first_position: int, data: st.DataObject
) -> None:
    per_epoch = len(IndexPlan(length, batch_size))
    position = min(first_position, per_epoch)

    def plan(skip: list[int]) -> IndexPlan:
        return IndexPlan(
            length,
            batch_size,
            shuffle_seed=seed,
            num_epochs=2,
            first_position=position,
            skip=skip,
        )

    jobs = list(plan([]))
    skip = data.draw(st.sets(st.integers(0, len(jobs) + 3)))
    assert list(plan(sorted(skip))) == [
        job for ordinal, job in enumerate(jobs) if ordinal not in skip
    ]


def test_the_largest_sources_can_be_sharded() -> None:
    length = 2**62
    plan = IndexPlan(
        length, 1000, shard_index=12, shard_count=13, first_position=2**40, first_place=5
    )
    assert len(plan) == -(-((length - 12 + 12) // 13) // 1000)
    first = 5 + 12 + 2**40 * 1000 * 13
    number = 12 + 2**40 * 13  # among the batches of all shards
    assert next(plan) == (0, number, tuple(range(first, first + 13000, 13)))
    assert len(IndexPlan(length, shard_index=length - 1, shard_count=length)) == 1
    assert list(IndexPlan(5, shard_index=length - 1, shard_count=length)) == []


def test_orders_that_must_never_change() -> None:
    first = [index for _, _, index in IndexPlan(10, shuffle_seed=0)]
    second = [index for _, _, index in IndexPlan(10, shuffle_seed=0, first_epoch=1)]
    assert first == [3, 1, 2, 4, 8, 9, 0, 5, 6, 7]
    assert second == [2, 5, 0, 7, 9, 8, 4, 1, 3, 6]
    large = IndexPlan(10**12, shuffle_seed=42, first_epoch=7)
    assert next(large) == (7, 0, 905082773744)


def test_wrong_values_are_refused() -> None:
    with pytest.raises(ValueError, match=r"2\*\*62"):
        IndexPlan(2**62 + 1)
    with pytest.raises(TypeError):
        IndexPlan(-1)
    with pytest.raises(ValueError, match="shard 3 of 3"):
        IndexPlan(5, shard_index=3, shard_count=3)
    with pytest.raises(ValueError, match="first_position 6 is beyond the epoch's 5 elements"):
        IndexPlan(5, first_position=6)
    with pytest.raises(ValueError, match="first_place 6 is beyond the source's 5 elements"):
        IndexPlan(5, first_place=6)
    with pytest.raises(ValueError, match="rising order"):
        IndexPlan(5, skip=[3, 3])
