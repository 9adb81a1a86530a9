"""SharedMemoryArrays as arguments and results of calls in a pool's workers."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest

from stook import SharedMemoryArray
from stook._task_pool import TaskPool


class Pair(NamedTuple):
    first: Any
    second: Any


def segments() -> set[str]:
    """Without the marker files of processes: after each test none of them may be left, either."""
    return {name for name in os.listdir("/dev/shm") if re.fullmatch("stook_[^_]+_[^_]+", name)}


def named(value: int) -> SharedMemoryArray:
    array = SharedMemoryArray((100, 10), "int64")
    array[...] = value
    return array


@contextlib.contextmanager
def one_worker() -> Iterator[TaskPool]:
    pool = TaskPool(1)
    try:
        yield pool
    finally:
        pool.close()


def results_of(
    pool: TaskPool, function: Callable[[Any], Any], items: list[Any]
) -> list[list[tuple[Any, BaseException | None]]]:
    """In the parts in which they come."""
    parts: list[list[tuple[Any, BaseException | None]]] = []

    def sink(ok: bool, results: list[Any], errors: dict[int, BaseException] | None) -> None:
        assert ok
        parts.append([(one, (errors or {}).get(i)) for i, one in enumerate(results)])

    pool.submit_items(pool.function(function), items, sink=sink, background=False)
    assert pool.wait(lambda: sum(map(len, parts)) == len(items), 60)
    return parts


@pytest.mark.parametrize("flagged", [False, True])
def test_results_of_a_chunk_come_together(flagged: bool) -> None:
    def make(index: int) -> Any:
        if index == 7:
            raise ValueError("seven")
        array = named(index)
        if flagged:
            array.unlink_on_del()
        plain = np.full(20_000, index)
        return [array, plain] if index % 2 else Pair(array, {"view": array[50:], "plain": plain})

    before = segments()
    with one_worker() as pool:
        (part,) = results_of(pool, make, list(range(40)))
        for index, (value, error) in enumerate(part):
            if index == 7:
                assert isinstance(error, ValueError)
                continue
            assert error is None
            if index % 2:
                array, plain = value
            else:
                array, plain = value.first, value.second["plain"]
                assert (value.second["view"] == index).all()
            assert type(array) is SharedMemoryArray
            assert (array == index).all() and (plain == index).all()
        del part, value, array, plain, error
        assert segments() == before  # while the worker lives


def test_views_of_what_the_worker_keeps() -> None:
    kept: list[Any] = []

    def row(index: int) -> Any:
        if not kept:
            kept.append(named(3))
        kept[0][index] = index
        return kept[0][index], np.full(20_000, index)

    with one_worker() as pool:
        parts = results_of(pool, row, list(range(100)))
        names = set()
        for index, ((view, plain), _) in enumerate(itertools.chain(*parts)):
            assert (view == index).all() and (plain == index).all()
            names.add(view.metadata.name)
        assert len(parts) < 10 and len(names) == 1


def test_what_the_worker_drops_with_the_next_call() -> None:
    last: list[Any] = []

    def make(index: int) -> Any:
        array = named(index)
        array.unlink_on_del()
        last[:] = [array]
        return Pair(array, np.full(20_000, index))

    with one_worker() as pool:
        for index, (value, _) in enumerate(itertools.chain(*results_of(pool, make, [*range(90)]))):
            assert (value.first == index).all() and (value.second == index).all()


def test_arguments_that_are_dropped_at_once() -> None:
    def double(array: Any) -> Any:
        array *= 2
        return array[1:]  # the caller's own, come back

    def flagged(value: int) -> Any:
        array = named(value)
        array.unlink_on_del()
        return array

    before = segments()
    found: dict[int, Any] = {}
    with one_worker() as pool:
        function = pool.function(double)
        for number in range(30):
            pool.submit(
                function,
                (flagged(number),),
                sink=lambda ok, value, number=number: found.__setitem__(number, (ok, value)),
                background=False,
            )
        assert pool.wait(lambda: len(found) == 30, 60)
        for number, (ok, value) in found.items():
            assert ok and value.shape == (99, 10) and (value == 2 * number).all()
        del value
        found.clear()
        assert segments() == before


def test_results_that_nobody_takes_leave_nothing() -> None:
    before = segments()
    results: list[Any] = []
    with one_worker() as pool:

        def sink(ok: bool, part: list[Any], errors: Any) -> None:
            results.append(part)

        function = pool.function(named)
        pool.submit_items(function, [0], sink=sink, background=False)
        for number in range(20):
            pool.submit_items(function, list(range(number, number + 3)), sink=sink)
        assert pool.wait(lambda: results, 60)
    results.clear()
    assert segments() == before
