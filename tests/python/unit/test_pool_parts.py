"""Parts of the pools, each alone: how large jobs become, and iterators that several take from."""

from __future__ import annotations

import contextlib
from collections import deque
from types import SimpleNamespace
from typing import Any

import pytest

import stook._imap
import stook._results
from interrupts import Ctrl, RaisesOnce, every_place, interrupted
from stook._streams import Pace


class Core:
    """Stands for a pool whose results hold `each` bytes."""

    def __init__(self, each: int) -> None:
        self.each = each
        self.items = 0

    def totals(self) -> tuple[int, int]:
        return self.items, self.each * self.items


def pace_of(core: Core) -> Pace:
    tasks: Any = SimpleNamespace(_core=core, num_workers=2)
    return Pace(tasks, 1)


@pytest.mark.parametrize("each", [512 << 10, 16 << 20])
def test_large_results_do_not_travel_together(each: int) -> None:
    core = Core(each)
    pace = pace_of(core)
    for _ in range(100):
        core.items += pace.chunks
        pace.note(pace.chunks, whole=True)
        assert pace.chunks == 1


@pytest.mark.parametrize("ordered", [True, False])
def test_a_handler_takes_from_the_iterator_of_threads_that_it_interrupts(ordered: bool) -> None:
    iterator = stook._results.IMapIterator(SimpleNamespace(), ordered=ordered)  # type: ignore[arg-type]
    for number in range(20):
        iterator._put(number, [(True, number)])
    iterator._end(20)
    taken: list[int] = []

    def take() -> None:
        if len(taken) < 15:
            taken.append(iterator.next())

    with interrupted(stook._results.IMapIterator._next_chunk.__code__, take):
        taken.extend(iterator)
    assert sorted(taken) == list(range(20))


@pytest.mark.parametrize("ordered", [True, False])
def test_ctrl_c_costs_an_iterator_of_threads_one_result_at_most(ordered: bool) -> None:
    def run(once: RaisesOnce) -> None:
        iterator = stook._results.IMapIterator(SimpleNamespace(), ordered=ordered)  # type: ignore[arg-type]
        for number in range(5):
            iterator._put(number, [(True, 3 * number + part) for part in range(3)])
        iterator._end(5)
        taken: list[int] = []
        with contextlib.suppress(Ctrl), once:
            for _ in range(8):
                taken.append(iterator.next())
        taken.extend(iterator)
        assert len(taken) >= 15 - 1 and taken == sorted(set(taken)), once.place

    every_place({stook._results.__file__}, run)


def test_another_thread_takes_what_was_seen() -> None:
    class Ready(deque[int]):
        """Its first element is gone when it is reached for."""

        gone = False

        def popleft(self) -> int:
            if not self.gone:
                self.gone = True
                super().popleft()
                raise IndexError
            return super().popleft()

    feed: Any = SimpleNamespace(
        ready=Ready([1, 2]), low=-1, is_over=lambda: False, drop=lambda: None
    )
    iterator = stook._imap.IMapIterator(SimpleNamespace(), feed)  # type: ignore[arg-type]
    assert next(iterator) == 2
