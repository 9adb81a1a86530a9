"""Jobs that a Python iterator gave: each is dealt once, whatever comes between."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

import stook
from stook import _core, _processes
from stook._task import LoaderTask


@contextmanager
def pool_of(workers: int = 2, **settings: Any) -> Iterator[_processes.ProcessPool]:
    options = stook.MultiprocessingOptions(num_workers=workers, start_method="fork")
    pool = _processes.start(LoaderTask(None, **settings), options)
    try:
        yield pool
    finally:
        pool.close()


class Item:
    """Goes to a worker as its number, and Ctrl-C comes as it is sent for the first time."""

    def __init__(self, number: int, interrupted: set[int]) -> None:
        self.number = number
        self.interrupted = interrupted

    def __reduce__(self) -> Any:
        if self.number in self.interrupted:
            self.interrupted.remove(self.number)
            raise KeyboardInterrupt(self.number)
        return int, (self.number,)


@pytest.mark.parametrize("ordered", [True, False])
def test_an_item_that_was_drawn_as_ctrl_c_came_is_not_lost(ordered: bool) -> None:
    interrupted = {0, 3, 4, 9}
    with pool_of() as pool:
        iterator = pool.iterate(
            ((0, at, Item(at, interrupted)) for at in range(10)), ordered=ordered
        )
        seen: list[int] = []
        interrupts: list[int] = []
        while len(seen) < 10:
            try:
                seen.append(next(iterator))
            except KeyboardInterrupt as interrupt:
                interrupts.append(interrupt.args[0])
                lowest, ahead = iterator.delivered()
                assert lowest + len(ahead) == len(seen)
        assert list(iterator) == []
        assert sorted(seen) == list(range(10))
        assert seen == sorted(seen) or not ordered
        assert interrupts == [0, 3, 4, 9]
        assert iterator.delivered() == (10, [])


def test_a_job_that_waits_to_be_dealt_is_not_the_next_pass_s() -> None:
    with pool_of() as pool:
        iterator = pool.iterate(iter([(0, 0, Item(0, {0})), (0, 1, 1)]), ordered=True)
        with pytest.raises(KeyboardInterrupt):
            next(iterator)
        iterator._restart(iter([(1, 0, 7), (1, 1, 8)]), ())
        assert list(iterator) == [7, 8]
        assert iterator.delivered() == (2, [])


class Unsendable:
    def __reduce__(self) -> Any:
        raise ValueError("not this one")


def test_an_item_that_cannot_be_sent_is_an_error_in_its_place() -> None:
    with pool_of() as pool:
        jobs = [(0, 0, "a"), (0, 1, Unsendable()), (0, 2, "c")]
        iterator = pool.iterate(iter(jobs), ordered=True)
        assert next(iterator) == "a"
        assert iterator.delivered() == (1, [])
        with pytest.raises(stook.StookError, match="not this one"):
            next(iterator)
        assert iterator.delivered() == (2, [])
        assert list(iterator) == ["c"]


@pytest.mark.parametrize("job", [(0, 1), (0, 1, 2, 3, 4), "job", (0, "1", 2), (0, 1, 2, -1)])
def test_what_is_no_job_ends_the_jobs_in_its_place(job: Any) -> None:
    with pool_of() as pool:
        iterator = pool.iterate(iter([(0, 0, "a"), job, (0, 2, "c")]), ordered=True)
        assert next(iterator) == "a"
        with pytest.raises((TypeError, ValueError, SystemError)):
            next(iterator)
        assert list(iterator) == []
        assert iterator.delivered() == (1, [])


def test_a_batch_that_has_no_length_ends_the_jobs_in_its_place() -> None:
    with pool_of(batch_size=2) as pool:
        iterator = pool.iterate(iter([(0, 0, [1, 2]), (0, 1, 3)]), ordered=True, max_errors=1)
        assert next(iterator).tolist() == [1, 2]
        with pytest.raises(TypeError, match="len"):
            next(iterator)
        assert list(iterator) == []


def test_a_batch_that_is_too_large_is_an_error() -> None:
    with pool_of(batch_size=2**62) as pool:
        iterator = pool.iterate(_core.IndexPlan(2**62, 2**62), ordered=True)
        with pytest.raises(ValueError, match=f"batch of {2**62} items"):
            next(iterator)
        assert list(iterator) == []
        iterator._restart(_core.IndexPlan(2, 2**62), ())
        assert iterator.delivered() == (0, [])
    with pytest.raises(ValueError, match=f"batch of {2**62} items"):
        next(_core.IndexPlan(2**62, 2**62))
