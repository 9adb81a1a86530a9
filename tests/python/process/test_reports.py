"""Tasks that give no element, or say more of it, and what becomes of that in the consumer."""

from __future__ import annotations

import itertools
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

import stook
from stook import _core, _processes
from stook._element_errors import Report
from stook._task import BoundTask, LoaderTask

WORKERS = pytest.mark.parametrize("workers", [1, 2, 5])
ORDERED = pytest.mark.parametrize("ordered", [True, False])


class Task(LoaderTask):
    """Runs a function of the payload as it is."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        super().__init__(None)
        self.transforms = (function,)

    def bind(self, where: str = "worker") -> BoundTask:
        function = self.transforms[0]
        return lambda epoch, position, payload: function(payload)


@contextmanager
def pool_of(
    function: Callable[[Any], Any], workers: int = 2, **settings: Any
) -> Iterator[_processes.ProcessPool]:
    options = stook.MultiprocessingOptions(num_workers=workers, start_method="fork", **settings)
    pool = _processes.start(Task(function), options)
    try:
        yield pool
    finally:
        pool.close()


def plan(length: int, **settings: Any) -> Any:
    return _core.IndexPlan(length, **settings)


@WORKERS
@ORDERED
def test_what_is_skipped_does_not_come(workers: int, ordered: bool) -> None:
    def only_thirds(index: int) -> Any:
        return index if index % 3 == 0 else stook.SKIP

    with pool_of(only_thirds, workers) as pool:
        for length in (1, 2, 100):  # the last one is skipped, and it is not
            for jobs in (plan(length), iter([(0, at, at) for at in range(length)])):
                iterator = pool.iterate(jobs, ordered=ordered)
                assert sorted(iterator) == list(range(0, length, 3))
                assert list(iterator) == []
                assert iterator.delivered() == (length, [])
                stats = iterator.stats()
                assert (stats.elements, stats.errors) == (len(range(0, length, 3)), 0)


@ORDERED
def test_a_pass_of_nothing_but_skips_is_over(ordered: bool) -> None:
    with pool_of(lambda index: Report(stook.SKIP, 1)) as pool:
        iterator = pool.iterate(plan(5000), ordered=ordered)
        assert list(iterator) == []
        assert iterator.stats().errors == 5000
        assert iterator.delivered() == (5000, [])
        assert pool.stats().errors == 5000


def test_in_order_an_element_counts_with_the_skips_before_it() -> None:
    with pool_of(lambda index: index if index % 4 == 3 else stook.SKIP) as pool:
        iterator = pool.iterate(plan(20), ordered=True)
        for index in range(3, 20, 4):
            assert next(iterator) == index
            assert iterator.delivered() == (index + 1, [])


def test_failed_items_are_errors_beside_those_that_are_raised() -> None:
    def report(index: int) -> Any:
        if index == 4:
            raise ValueError("four")
        return Report(index, failed=index) if index % 2 else index

    with pool_of(report) as pool:
        iterator = pool.iterate(plan(6), ordered=True)
        assert [next(iterator) for _ in range(4)] == [0, 1, 2, 3]
        assert iterator.stats().errors == 1 + 3
        with pytest.raises(ValueError, match="four"):
            next(iterator)
        assert list(iterator) == [5]
        stats = iterator.stats()
        assert (stats.elements, stats.errors) == (5, 1 + 3 + 1 + 5)


def test_the_element_of_a_report_is_moved() -> None:
    with pool_of(lambda index: Report({"array": np.full(50_000, index)}, failed=1)) as pool:
        iterator = pool.iterate(plan(10), ordered=True)
        assert [int(element["array"][-1]) for element in iterator] == list(range(10))
        stats = iterator.stats()
        assert (stats.moved, stats.copied) == (10, 0)


def test_the_element_of_a_report_that_somebody_keeps_is_copied() -> None:
    kept: list[Report] = []

    def keep(index: int) -> Report:
        kept.append(Report(np.full(50_000, index), failed=1))
        return kept[-1]

    with pool_of(keep) as pool:
        iterator = pool.iterate(plan(10), ordered=True)
        assert [int(element[-1]) for element in iterator] == list(range(10))
        stats = iterator.stats()
        assert (stats.moved, stats.copied) == (0, 10)


def test_a_report_that_cannot_be_read_is_an_error() -> None:
    reports: list[Callable[[], Any]] = [
        lambda: Report(0, failed=-1),
        lambda: Report(0, failed=2**32),
        lambda: Report(0, 1, consumed=2**64),
        lambda: Report(0, failed="many"),  # type: ignore[arg-type]
        lambda: Report.__new__(Report),
    ]
    with pool_of(lambda index: reports[index]()) as pool:
        iterator = pool.iterate(plan(len(reports)), ordered=True)
        for kind in (OverflowError, OverflowError, OverflowError, TypeError, AttributeError):
            with pytest.raises(kind):
                next(iterator)
        assert list(iterator) == []


class Unsendable:
    def __reduce__(self) -> Any:
        raise ValueError("not this one")


def test_what_failed_of_an_element_that_cannot_be_sent_counts_too() -> None:
    with pool_of(lambda index: Report(Unsendable() if index else 0, failed=3)) as pool:
        iterator = pool.iterate(plan(2), ordered=True)
        assert next(iterator) == 0
        with pytest.raises(Exception, match="not this one"):
            next(iterator)
        assert list(iterator) == []
        assert iterator.stats().errors == 3 + 3 + 1


def test_an_element_that_holds_skip_is_an_element() -> None:
    with pool_of(lambda index: [stook.SKIP, index]) as pool:
        assert list(pool.iterate(plan(2), ordered=True)) == [[stook.SKIP, 0], [stook.SKIP, 1]]


def endless() -> Iterator[tuple[int, int, int]]:
    return ((0, position, position) for position in itertools.count())


@pytest.mark.parametrize("jobs", ["plan", "python"])
def test_a_signal_ends_a_wait_in_which_everything_is_skipped(jobs: str) -> None:
    with pool_of(lambda index: stook.SKIP) as pool:
        of_pass = plan(10, num_epochs=None) if jobs == "plan" else endless()
        iterator = pool.iterate(of_pass, ordered=True)
        seen = threading.Event()

        def interrupt() -> None:
            # Other threads run while one waits: this one does.
            while iterator.delivered()[0] < 1000:
                pass
            seen.set()
            os.kill(os.getpid(), signal.SIGINT)

        thread = threading.Thread(target=interrupt)
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            thread.start()
            with pytest.raises(KeyboardInterrupt):
                next(iterator)
        finally:
            thread.join()
            signal.signal(signal.SIGINT, before)
        assert seen.is_set()


def test_pools_give_back_what_a_function_returned() -> None:
    """Skips and reports are a loader's: a pool's tasks are what the user wrote."""
    with stook.Pool(1) as pool:
        assert pool.apply(skip) is stook.SKIP
        assert pool.map(skip_item, [1, 2]) == [stook.SKIP] * 2


def skip() -> Any:
    return stook.SKIP


def skip_item(item: int) -> Any:
    return stook.SKIP
