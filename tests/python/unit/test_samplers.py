"""Samplers, shards and sources that give a batch at once."""

from __future__ import annotations

import collections
import itertools
import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loader_cases import each_number_of_workers, loader

import stook

LETTERS = list("abcdefgh")


# ---- samplers ------------------------------------------------------------------------------------


class Told:
    """A sampler that notes which epochs it is told."""

    def __init__(self) -> None:
        self.epochs: list[int] = []

    def set_epoch(self, epoch: int) -> None:
        self.epochs.append(epoch)

    def __iter__(self) -> Iterator[Any]:
        yield np.int64(self.epochs[-1])
        yield 7


@each_number_of_workers
def test_a_sampler_is_iterated_each_epoch_and_told_which(workers: int) -> None:
    told = Told()
    with loader(LETTERS, workers=workers, sampler=told, num_epochs=2) as elements:
        assert list(elements) == ["a", "h", "b", "h"]
        assert list(elements) == ["c", "h", "d", "h"]
    assert told.epochs == [0, 1, 2, 3]


@each_number_of_workers
def test_batches_and_shards_of_a_sampler(workers: int) -> None:
    order = [3, 3, 0, 7, 1]
    with loader(LETTERS, workers=workers, sampler=order, batch_size=2, collate="".join) as elements:
        assert list(elements) == ["dd", "ah", "b"]
        assert len(elements) == 3
    with loader(LETTERS, workers=workers, sampler=order, shard=(1, 2)) as elements:
        assert list(elements) == ["d", "h"]
        assert len(elements) == 2


@each_number_of_workers
@pytest.mark.parametrize(
    ("wrong", "error", "text"),
    [
        (8, IndexError, "from 0 to 7, as the source has 8 items, and gave 8 at place 2"),
        (-1, IndexError, "gave -1 at place 2"),
        (10**30, IndexError, "at place 2"),
        ("a", TypeError, "must give ints, and gave 'a' at place 2"),
        (1.0, TypeError, "gave 1.0 at place 2"),
    ],
)
def test_a_wrong_index_is_named(workers: int, wrong: Any, error: type, text: str) -> None:
    with loader(LETTERS, workers=workers, sampler=[0, 1, wrong]) as elements:
        each = iter(elements)
        assert [next(each), next(each)] == ["a", "b"], "what came before is delivered"
        with pytest.raises(error, match=text):
            next(each)
        assert list(each) == []


@each_number_of_workers
def test_a_sampler_that_raises_ends_the_pass_after_its_elements(workers: int) -> None:
    def indices() -> Iterator[int]:
        yield 1
        raise OSError("no more")

    with loader(LETTERS, workers=workers, sampler=indices()) as elements:
        each = iter(elements)
        assert next(each) == "b"
        with pytest.raises(OSError, match="no more"):
            next(each)
        with pytest.raises(StopIteration):
            next(each)
        with pytest.raises(stook.StookError, match=r"the sampler .* was run through before"):
            iter(elements)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"sampler": [0], "shuffle": True}, ValueError, "shuffle=True and a sampler contradict"),
        ({"sampler": 5}, TypeError, "sampler must be an iterable of indices, got 5"),
        ({"sampler": "01"}, TypeError, "sampler must be an iterable of indices, got '01'"),
        ({"sampler": iter([0]), "num_epochs": 2}, ValueError, "the sampler .* run through once"),
        ({"source": iter("ab"), "sampler": [0]}, ValueError, "sampler needs a source with __len__"),
    ],
)
def test_wrong_samplers_are_refused(arguments: dict[str, Any], error: type, text: str) -> None:
    arguments = {"source": LETTERS, **arguments}
    with pytest.raises(error, match=text):
        stook.DataLoader(arguments.pop("source"), **arguments)


# ---- weights -------------------------------------------------------------------------------------


def test_weights_are_the_shares_of_draws() -> None:
    drawn = collections.Counter(stook.WeightedSampler([1, 0, 3, 4], 80_000, seed=3))
    assert set(drawn) == {0, 2, 3}
    for index, share in ((0, 1 / 8), (2, 3 / 8), (3, 1 / 2)):
        assert drawn[index] / 80_000 == pytest.approx(share, abs=0.01)


def test_draws_depend_on_seed_and_epoch_alone() -> None:
    def drawn(seed: int, epoch: int, replacement: bool = True) -> list[int]:
        sampler = stook.WeightedSampler(np.arange(1, 101), replacement=replacement, seed=seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    for replacement in (True, False):
        assert drawn(1, 5, replacement) == drawn(1, 5, replacement)
        different = {tuple(drawn(*each, replacement)) for each in ((1, 5), (1, 6), (2, 5), (5, 1))}
        assert len(different) == 4


def test_without_replacement_no_index_comes_twice_and_heavy_ones_come_early() -> None:
    firsts: collections.Counter[int] = collections.Counter()
    sampler = stook.WeightedSampler([1, 2, 0, 5], replacement=False)
    assert len(sampler) == 3
    for epoch in range(4000):
        sampler.set_epoch(epoch)
        order = list(sampler)
        assert sorted(order) == [0, 1, 3]
        firsts[order[0]] += 1
    assert firsts[3] / 4000 == pytest.approx(5 / 8, abs=0.03)
    assert firsts[1] / 4000 == pytest.approx(2 / 8, abs=0.03)


@pytest.mark.parametrize("replacement", [True, False])
@pytest.mark.parametrize("left_out", [0, 1, 4095, 4096, 4097, 9000])
def test_leaving_out_draws_gives_the_rest(replacement: bool, left_out: int) -> None:
    sampler = stook.WeightedSampler(np.ones(9000), replacement=replacement)
    plain = list(sampler)
    for taken in (0, 2):
        rest: Any = iter(sampler)
        head = [next(rest) for _ in range(taken)]
        rest.advance(left_out - taken if left_out > taken else 0)
        assert head + list(rest) == plain[:taken] + plain[max(left_out, taken) :]


def test_going_on_far_into_an_epoch_draws_nothing_before() -> None:
    sampler = stook.WeightedSampler([1, 1], num_samples=10**15)
    with stook.DataLoader(["a", "b"], sampler=sampler) as elements:
        state = {**elements.get_state(), "position": 10**15 - 3}
        elements.set_state(state)
        assert sum(1 for _ in elements) == 3


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        (([],), ValueError, "sum of weights must be above 0"),
        (([0, 0],), ValueError, "sum of weights must be above 0 and finite, got 0.0"),
        (([1, -2],), ValueError, r"weights\[1\] is -2.0"),
        (([1, float("nan")],), ValueError, r"weights\[1\] is nan"),
        (([[1, 2]],), ValueError, r"shape \(n,\), got \(1, 2\)"),
        ((["a"],), TypeError, "weights must be numbers"),
        (([1, 0], 2, False), ValueError, "num_samples=2 different indices cannot be drawn, as 1"),
        (([1], -1), ValueError, "num_samples must be an int of at least 0"),
    ],
)
def test_wrong_weights_are_refused(arguments: Any, error: type, text: str) -> None:
    with pytest.raises(error, match=text):
        stook.WeightedSampler(*arguments)


# ---- shards --------------------------------------------------------------------------------------


@given(
    length=st.integers(0, 40),
    count=st.integers(1, 6),
    batch_size=st.none() | st.integers(1, 4),
    shuffle=st.booleans(),
    drop=st.booleans(),
)
@settings(deadline=None, max_examples=60)
def test_shards_are_slices_of_the_whole(
    length: int, count: int, batch_size: int | None, shuffle: bool, drop: bool
) -> None:
    def drawing(index: int) -> Any:
        return index, stook.rng().random()

    whole = list(stook.DataLoader(range(length), drawing, shuffle=shuffle, num_epochs=2))
    epochs = whole[:length], whole[length:]
    for index in range(count):
        shard = stook.DataLoader(
            range(length),
            None if batch_size else drawing,
            shuffle=shuffle,
            num_epochs=2,
            batch_size=batch_size,
            drop_remainder=drop and batch_size is not None,
            collate=list if batch_size else None,
            shard=(index, count),
        )
        found = list(shard)
        assert len(shard) == len(found)
        parts = [epoch[index::count] for epoch in epochs]
        if batch_size is None:
            # With the same draws, too.
            assert found == parts[0] + parts[1]
        else:
            cut = [
                [item for item, _ in part[at : at + batch_size]]
                for part in parts
                for at in range(0, len(part), batch_size)
            ]
            assert found == [batch for batch in cut if not drop or len(batch) == batch_size]


def test_batches_of_different_shards_draw_differently() -> None:
    def draw(_: list[int]) -> float:
        return stook.rng().random()

    drawn = [
        list(stook.DataLoader(range(12), batch_size=2, collate=draw, shard=(index, 3)))
        for index in range(3)
    ]
    assert len(set(itertools.chain(*drawn))) == 6


@pytest.mark.parametrize(
    ("shard", "error", "text"),
    [
        ((2, 2), ValueError, "index of shard must be an int of at least 0, at most 1, got 2"),
        ((0, 0), ValueError, "count of shard"),
        ((-1, 2), ValueError, "index of shard"),
        ((0, 1.5), TypeError, "count of shard"),
        ("tensorflow", ValueError, r"'torch' for the rank .* got 'tensorflow'"),
        ((0, 1, 2), ValueError, r"shard must be \(index, count\)"),
        (3, TypeError, r"shard must be \(index, count\)"),
    ],
)
def test_wrong_shards_are_refused(shard: Any, error: type, text: str) -> None:
    with pytest.raises(error, match=text):
        stook.DataLoader(LETTERS, shard=shard)


@pytest.mark.parametrize(("name", "package"), [("torch", "torch.distributed"), ("jax", "jax")])
def test_a_partner_that_is_not_installed(
    monkeypatch: pytest.MonkeyPatch, name: Any, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=f"pip install {name}"):
        stook.DataLoader(LETTERS, shard=name)


def test_shards_by_partner(monkeypatch: pytest.MonkeyPatch) -> None:
    jax = SimpleNamespace(process_index=lambda: 1, process_count=lambda: 3)
    monkeypatch.setitem(sys.modules, "jax", jax)
    assert list(stook.DataLoader(LETTERS, shard="jax")) == ["b", "e", "h"]
    ready = [False]
    distributed: Any = ModuleType("torch.distributed")
    distributed.is_available = lambda: True
    distributed.is_initialized = lambda: ready[0]
    distributed.get_rank = lambda: 2
    distributed.get_world_size = lambda: 4
    torch: Any = ModuleType("torch")
    torch.distributed = distributed
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "torch.distributed", distributed)
    with pytest.raises(stook.StookError, match="init_process_group"):
        stook.DataLoader(LETTERS, shard="torch")
    ready[0] = True
    assert stook.DataLoader(LETTERS, shard="torch").get_state()["shard"] == [2, 4]


# ---- batches at once -----------------------------------------------------------------------------


class AtOnce:
    def __init__(self) -> None:
        self.singly = 0

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> int:
        raise AssertionError("asked one by one")

    def __getitems__(self, indices: list[int]) -> list[int]:
        assert type(indices) is list
        if indices == [4]:
            return []
        return [10 * index for index in indices]


@each_number_of_workers
def test_a_source_is_asked_for_a_batch_at_once(workers: int) -> None:
    with loader(AtOnce(), abs, workers=workers, batch_size=2, collate=list) as elements:
        each = iter(elements)
        assert [next(each), next(each)] == [[0, 10], [20, 30]]
        with pytest.raises(ValueError, match="gave 0 items for the 1 indices") as caught:
            next(each)
        assert "element 2" in "".join(caught.value.__notes__)
    with loader(AtOnce(), workers=workers) as elements, pytest.raises(AssertionError):
        next(iter(elements))
