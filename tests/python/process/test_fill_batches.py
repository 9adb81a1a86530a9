"""Batches that take further items in place of those left out: the list, filtered, then batched."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from fill_cases import BAD, BATCH, LENGTH

import stook
from stook import _core, _processes
from stook._element_errors import Report
from stook._task import BoundTask, LoaderTask


class FillingTask(LoaderTask):
    """Batches of the good ones, as lists of indices."""

    __slots__ = ("bad", "drop")

    def __init__(self, bad: Callable[[int], bool], drop: bool) -> None:
        super().__init__(None, batch_size=BATCH)
        self.bad = bad
        self.drop = drop

    def bind(self, where: str = "worker") -> BoundTask:
        def run(epoch: int, position: int, payload: Any, *losses: Any) -> Any:
            further, *planned = payload
            rows: list[int] = []
            number = failed = 0
            while len(rows) < BATCH:
                index = planned[number] if number < len(planned) else further(number)
                if index is None:
                    break
                if number < len(planned):
                    assert further(number) == index
                if self.bad(index):
                    failed += 1
                else:
                    rows.append(index)
                number += 1
            consumed = None if number == len(planned) else number
            short = not rows or (self.drop and len(rows) < BATCH)
            if failed == 0 and consumed is None and not short:
                return rows
            return Report(stook.SKIP if short else rows, failed, consumed)

        return run


@contextmanager
def pool_of(bad: str, drop: bool, workers: int) -> Iterator[_processes.ProcessPool]:
    options = stook.MultiprocessingOptions(num_workers=workers, start_method="fork")
    pool = _processes.start(FillingTask(BAD[bad], drop), options)
    try:
        yield pool
    finally:
        pool.close()


def plan(
    drop: bool, seed: int | None, shard: tuple[int, int], epochs: int, *, fill: bool, **begin: int
) -> Any:
    settings: dict[str, Any] = {"first_epoch": 3, "num_epochs": epochs, **begin}
    return _core.IndexPlan(
        LENGTH,
        BATCH if fill else 0,
        drop and fill,
        seed,
        shard_index=shard[0],
        shard_count=shard[1],
        fill=fill,
        **settings,
    )


def expected(
    bad: str, drop: bool, seed: int | None, shard: tuple[int, int], epochs: int
) -> list[list[int]]:
    order: dict[int, list[int]] = {}
    for epoch, _, index in plan(drop, seed, shard, epochs, fill=False):
        order.setdefault(epoch, []).append(index)
    batches = []
    for indices in order.values():
        good = [index for index in indices if not BAD[bad](index)]
        for start in range(0, len(good), BATCH):
            batch = good[start : start + BATCH]
            if len(batch) == BATCH or not drop:
                batches.append(batch)
    return batches


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("bad", list(BAD))
def test_batches_are_those_of_the_filtered_list(bad: str, workers: int) -> None:
    for drop in (False, True):
        with pool_of(bad, drop, workers) as pool:
            for seed in (None, 6):
                for shard in ((0, 1), (1, 3)):
                    wanted = expected(bad, drop, seed, shard, 3)
                    for _ in range(2):
                        jobs = plan(drop, seed, shard, 3, fill=True)
                        iterator = pool.iterate(jobs, ordered=True)
                        assert list(iterator) == wanted
                        assert iterator.delivered()[1] == []
                        # Each item was looked at once: what was given up is not counted.
                        whole = plan(drop, seed, shard, 3, fill=False)
                        failed = sum(BAD[bad](index) for _, _, index in whole)
                        if not drop:
                            assert iterator.stats().errors == failed


@pytest.mark.parametrize("bad", ["some", "runs", "all"])
def test_a_pass_goes_on_at_any_element(bad: str) -> None:
    with pool_of(bad, False, 2) as pool:
        wanted = expected(bad, False, 6, (1, 2), 2)
        for taken in range(len(wanted) + 1):
            first = pool.iterate(plan(False, 6, (1, 2), 2, fill=True), ordered=True)
            assert [next(first) for _ in range(taken)] == wanted[:taken]
            epoch, position, item = first.next_item()
            rest = plan(
                False,
                6,
                (1, 2),
                5 - epoch,
                fill=True,
                first_epoch=epoch,
                first_position=position,
                first_item=item,
            )
            again = pool.iterate(rest, ordered=True)
            assert again.next_item() == (epoch, position, item)
            assert list(again) == wanted[taken:]


def test_a_pass_without_end_goes_on() -> None:
    with pool_of("some", True, 2) as pool:
        jobs = _core.IndexPlan(LENGTH, BATCH, True, num_epochs=None, fill=True)
        iterator = pool.iterate(jobs, ordered=True)
        wanted = expected("some", True, None, (0, 1), 1)
        for _ in range(20):
            assert [next(iterator) for _ in wanted] == wanted


def test_batches_cannot_be_filled_without_an_order() -> None:
    with pool_of("some", True, 1) as pool:
        with pytest.raises(ValueError, match="ordered=True"):
            pool.iterate(plan(False, None, (0, 1), 1, fill=True), ordered=False)
        with pytest.raises(ValueError, match="fill"):
            pool.iterate(plan(False, None, (0, 1), 1, fill=False), ordered=True).next_item()


class RaisingTask(LoaderTask):
    """The batch of one position raises, and says so many items were used up."""

    __slots__ = ("at", "used")

    def __init__(self, at: int, used: Any) -> None:
        super().__init__(None, batch_size=BATCH)
        self.at = at
        self.used = used

    def bind(self, where: str = "worker") -> BoundTask:
        def run(epoch: int, position: int, payload: Any, *losses: Any) -> Any:
            if position == self.at:
                error = ValueError("this batch")
                error._stook_consumed = self.used  # type: ignore[attr-defined]
                raise error
            return list(payload[1:])

        return run


@pytest.mark.parametrize(
    ("used", "behind"), [(4, 8), (6, 10), (39, 43), (100, 43), ("six", 8), (-1, 8), (2**40, 8)]
)
def test_a_batch_that_raises_has_used_up_what_it_says(used: Any, behind: int) -> None:
    options = stook.MultiprocessingOptions(num_workers=2, start_method="fork")
    pool = _processes.start(RaisingTask(1, used), options)
    try:
        dealt = _core.IndexPlan(LENGTH, BATCH, fill=True)
        iterator = pool.iterate(dealt, ordered=True)
        assert next(iterator) == [0, 1, 2, 3]
        with pytest.raises(ValueError, match="this batch") as caught:
            next(iterator)
        assert not hasattr(caught.value, "_stook_consumed"), "it is the iterator's"
        if behind < LENGTH:
            assert iterator.next_item() == (0, 2, behind)
        assert [index for batch in iterator for index in batch] == list(range(behind, LENGTH))
    finally:
        pool.close()
