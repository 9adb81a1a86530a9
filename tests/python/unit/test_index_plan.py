from __future__ import annotations

import itertools

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
