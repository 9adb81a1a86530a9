"""Workers that die while they read a shard of a source: their successors go on in its middle."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import stook


def loader(source: Any, *transform: Any, restarts: int = 2, **settings: Any) -> stook.DataLoader:
    options = stook.MultiprocessingOptions(num_workers=2, max_restarts=restarts)
    return stook.DataLoader(source, *transform, options=options, **settings)


def numbers(shard: int, count: int) -> Iterator[int]:
    yield from range(10 * shard, 10 * shard + 5)


EXPECTED = [0, 10, 1, 11, 2, 12, 3, 13, 4, 14]


def test_a_successor_goes_on_in_the_middle_of_the_iterable(tmp_path: Path) -> None:
    def dies_once(item: int) -> int:
        marker = tmp_path / str(item)
        if item in (12, 4) and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return item

    with loader(numbers, dies_once) as made:
        assert list(made) == EXPECTED
        assert made.stats().restarts == 2


def test_an_element_whose_transform_kills_is_lost_alone() -> None:
    def kills(item: int) -> int:
        if item == 12:
            os._exit(3)
        return item

    with loader(numbers, kills, restarts=0) as made:
        elements = iter(made)
        found: list[Any] = []
        while True:
            try:
                found.append(next(elements))
            except StopIteration:
                break
            except stook.WorkerDied as error:
                found.append(error.exit_code)
        assert found == [0, 10, 1, 11, 2, 3, 3, 13, 4, 14]
    with loader(numbers, kills, restarts=0, on_error="skip") as made:
        assert list(made) == [one for one in EXPECTED if one != 12]
        assert made.stats().errors == 1


def killing(shard: int, count: int) -> Iterator[int]:
    for number in itertools.count():
        if shard == 1 and number == 2:
            os._exit(3)
        if number == 5:
            return
        yield 10 * shard + number


def test_an_iterable_that_kills_its_readers_is_over_at_last() -> None:
    with loader(killing, restarts=0) as made:
        elements = iter(made)
        found: list[Any] = []
        lost = 0
        while True:
            try:
                found.append(next(elements))
            except StopIteration:
                break
            except stook.WorkerDied:
                lost += 1
        assert found == [0, 10, 1, 11, 2, 3, 4]
        assert lost >= 8


def test_with_a_policy_it_is_over_at_once() -> None:
    with loader(killing, restarts=0, on_error="skip") as made:
        assert list(made) == [0, 10, 1, 11, 2, 3, 4]
        assert made.stats().errors == 1
