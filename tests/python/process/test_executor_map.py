"""stook.ProcessPoolExecutor.map."""

from __future__ import annotations

import concurrent.futures
import functools
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import executor_calls
import numpy as np
import pytest
from executor_calls import Gate, executor_with, pass_gate

import stook
from leftovers import wait_until

# Fixtures, which are looked for here.
executor = executor_calls.executor
gate = executor_calls.gate


def test_map_is_map(executor: stook.ProcessPoolExecutor) -> None:
    for chunksize in (1, 4, 100):
        assert list(executor.map(pow, range(10), range(12), chunksize=chunksize)) == list(
            map(pow, range(10), range(12))
        )
    assert list(executor.map(abs, [])) == []
    assert list(executor.map(abs, [], chunksize=3)) == []
    assert list(executor.map(lambda a, b: (a, b), [1, 2], [[3], [4]], chunksize=2)) == [
        (1, [3]),
        (2, [4]),
    ]


def test_map_raises_an_error_in_its_place(executor: stook.ProcessPoolExecutor) -> None:
    for chunksize in (1, 2, 10):
        results = executor.map(divmod, [1] * 6, [1, 2, 5, 0, 1, 1], chunksize=chunksize)
        assert [next(results) for _ in range(3)] == [(1, 0), (0, 1), (0, 1)]
        with pytest.raises(ZeroDivisionError):
            next(results)
        with pytest.raises(StopIteration):
            next(results)


def test_map_takes_the_chunks_of_large_results_in_order(
    executor: stook.ProcessPoolExecutor,
) -> None:
    shapes = [(1 << 20,)] * 24  # a worker comes back before the chunk's end
    results = executor.map(np.full, shapes, range(24), itertools.repeat(np.uint8), chunksize=24)
    assert [int(result[-1]) for result in results] == [*range(24)]


def test_map_draws_everything_at_once_without_a_buffersize(
    executor: stook.ProcessPoolExecutor,
) -> None:
    drawn: list[int] = []

    def draw(numbers: Any) -> Iterator[int]:
        for number in numbers:
            drawn.append(number)
            yield number

    executor.map(abs, draw(range(20)))
    assert drawn == [*range(20)]
    drawn.clear()
    results = executor.map(abs, draw(itertools.count()), buffersize=3)
    assert drawn == [0, 1, 2]
    assert [next(results) for _ in range(4)] == [0, 1, 2, 3]
    assert drawn == [*range(7)]
    drawn.clear()
    results = executor.map(abs, draw(itertools.count()), buffersize=2, chunksize=5)
    assert len(drawn) == 10
    assert list(itertools.islice(results, 12)) == [*range(12)]
    assert len(drawn) == 25


def test_map_is_late_by_its_own_clock(executor: stook.ProcessPoolExecutor, gate: Gate) -> None:
    for chunksize in (1, 2):
        results = executor.map(
            pass_gate, [gate.path] * 3, range(3), timeout=0.01, chunksize=chunksize
        )
        with pytest.raises(concurrent.futures.TimeoutError):
            next(results)
    gate.open()
    assert list(executor.map(pass_gate, [gate.path] * 3, range(3), timeout=60)) == [0, 1, 2]


def first_then_gate_then_touch(path: str, folder: Path, number: int) -> int:
    if number == 1:
        pass_gate(path)
    elif number > 1:
        (folder / str(number)).touch()
    return number


def test_a_map_that_is_given_up_cancels_what_was_not_begun(gate: Gate, tmp_path: Path) -> None:
    work = functools.partial(first_then_gate_then_touch, gate.path, tmp_path)
    with executor_with(1) as executor:
        results = executor.map(work, range(40))
        assert next(results) == 0
        pool = executor._pool
        assert pool is not None
        assert wait_until(lambda: any(future.running() for future in list(pool.futures)), 30)
        results.close()  # type: ignore[attr-defined]
        gate.open()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("how", "error"),
    [
        ({"chunksize": 0}, ValueError),
        ({"buffersize": 0}, ValueError),
        ({"buffersize": 1.5}, TypeError),
    ],
)
def test_map_refuses_what_makes_no_sense(how: dict[str, Any], error: type[Exception]) -> None:
    with executor_with() as executor, pytest.raises(error):
        executor.map(abs, [1], **how)
