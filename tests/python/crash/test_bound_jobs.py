"""Jobs that are for one worker, as Python iterators of jobs name them."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

import stook
from stook import _core
from stook._start import start_processes
from stook._task import LoaderTask


def which_worker(item: object) -> tuple[object, int, int]:
    info = stook.worker_info()
    assert info is not None
    return item, info.index, os.getpid()


def die_once(item: Any) -> tuple[object, int, int]:
    info = stook.worker_info()
    assert info is not None
    if item == "die" and info.incarnation == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return which_worker(item)


@contextmanager
def running(
    jobs: Iterable[Any], *, transform: Any = which_worker, workers: int = 3, ordered: bool = True
) -> Iterator[_core.ResultIterator]:
    options = stook.MultiprocessingOptions(workers, 2, start_method="fork")
    core, logs = start_processes({}, LoaderTask(None, (transform,)), options)
    try:
        yield _core.ResultIterator(core, iter(jobs), ordered)
    finally:
        core.close()
        logs.close()


@pytest.mark.parametrize("ordered", [True, False])
def test_each_job_is_run_by_the_worker_that_it_names(ordered: bool) -> None:
    jobs = ((0, position, position, position % 3) for position in range(100))
    with running(jobs, ordered=ordered) as results:
        found = {item: worker for item, worker, _ in results}
    assert found == {position: position % 3 for position in range(100)}


def test_jobs_without_a_worker_are_for_anybody() -> None:
    jobs = [(0, 0, "a"), (0, 1, "b", None), (0, 2, "c", 1), (0, 3, "d", True)]
    with running(jobs) as results:
        found = list(results)
    assert [item for item, _, _ in found] == ["a", "b", "c", "d"]
    assert [worker for _, worker, _ in found[2:]] == [1, 1]


@pytest.mark.parametrize("worker", [3, -1, 2**40, -(2**70)])
def test_a_worker_that_cannot_be_is_named(worker: int) -> None:
    """In its place in the order, where the jobs then end."""
    with running([(0, 0, "a"), (0, 1, "b", worker), (0, 2, "c")]) as results:
        assert next(results)[0] == "a"
        with pytest.raises(ValueError, match=rf"worker {worker}, and the workers are 0 to 2"):
            next(results)
        assert list(results) == []
        assert results.delivered() == (1, [])


def test_a_worker_that_is_no_number_is_refused() -> None:
    with running([(0, 0, "a", "one")]) as results, pytest.raises(TypeError, match="str"):
        next(results)


def test_the_successor_of_a_killed_worker_takes_its_jobs() -> None:
    items = ["x"] * 10 + ["die"] + ["x"] * 10
    jobs = ((0, position, item, 1) for position, item in enumerate(items))
    with running(jobs, transform=die_once) as results:
        found = list(results)
    assert [item for item, _, _ in found] == items
    assert {worker for _, worker, _ in found} == {1}
    assert len({pid for _, _, pid in found}) == 2
