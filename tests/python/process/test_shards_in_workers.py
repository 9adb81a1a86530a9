"""Sources that workers read, one iterable for each shard, with any number of workers."""

from __future__ import annotations

import collections
import json
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
from process_loader import each_method, made

import stook


def uneven(shard: int, count: int) -> Iterator[int]:
    return iter([100 * shard + i for i in range(3 * shard)])


def beginning(shards: int) -> dict[str, Any]:
    with made("fork", uneven, num_workers=shards) as loader:
        return loader.get_state()


@each_method
def test_each_shard_is_read_in_one_worker(method: str) -> None:
    def source(shard: int, count: int) -> Iterator[tuple[int, int, int]]:
        for _ in range(4):
            yield shard, count, os.getpid()

    with made(method, source) as loader:
        elements = list(loader)
    assert [element[:2] for element in elements] == [(0, 2), (1, 2)] * 4
    workers = collections.defaultdict(set)
    for shard, _, pid in elements:
        workers[shard].add(pid)
    assert workers[0] != workers[1]
    assert all(len(pids) == 1 and os.getpid() not in pids for pids in workers.values())


def test_the_stream_is_the_same_with_any_number_of_workers() -> None:
    start = beginning(3)
    expected = [100, 200, 101, 201, 102, 202, 203, 204, 205]
    for workers in (0, 1, 2, 5):
        with made("forkserver", uneven, num_workers=workers, num_epochs=2) as loader:
            loader.set_state(start)
            elements = iter(loader)
            states, seen = [elements.get_state()], []
            for element in elements:
                seen.append(element)
                states.append(elements.get_state())
            assert seen == expected * 2
            for number, state in enumerate(states):
                elements = iter(loader)
                elements.set_state(json.loads(json.dumps(state)))
                assert list(elements) == seen[number:], (workers, state)


def test_each_element_comes_once_over_a_break_without_order() -> None:
    expected = sorted([100, 200, 101, 201, 102, 202, 203, 204, 205])
    with made("forkserver", uneven, num_workers=3, ordered=False) as loader:
        for taken in range(10):
            elements = iter(loader)
            head = [next(elements) for _ in range(taken)]
            state = json.loads(json.dumps(elements.get_state()))
            elements.set_state(state)
            assert sorted(head + list(elements)) == expected, state


def test_arrays_of_an_iterable_arrive_in_shared_memory() -> None:
    def source(shard: int, count: int) -> Iterator[np.ndarray[Any, Any]]:
        return (np.full(10_000, shard) for _ in range(2))

    with made("forkserver", source) as loader:
        arrays = list(loader)
    assert [int(array[0]) for array in arrays] == [0, 1, 0, 1]
    assert all(stook.is_shared(array) for array in arrays)


def test_a_pass_that_is_left_begins_the_next_epoch_anew() -> None:
    with made("forkserver", uneven) as loader:
        for _ in range(3):
            assert next(iter(loader)) == 100
        assert list(loader) == [100, 101, 102]
