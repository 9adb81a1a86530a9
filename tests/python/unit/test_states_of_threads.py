"""States of loaders with threads: at whatever moment one is taken, it is one to go on from."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

import pytest

import stook
from stook._async_iteration import ABSENT, SOON

COUNT = 30
DEADLINE = 60


def loader(source: Any, *arguments: Any, threads: int = 3, **settings: Any) -> stook.DataLoader:
    options = stook.MultithreadingOptions(threads)
    return stook.DataLoader(source, *arguments, options=options, **settings)


@pytest.mark.parametrize("ordered", [True, False])
def test_a_state_that_is_taken_within_a_step_is_one_to_go_on_from(ordered: bool) -> None:
    late = threading.Event()

    def transform(index: int) -> int:
        if index == 0 and not ordered:
            assert late.wait(DEADLINE)
        return index

    made = loader(range(COUNT), transform, ordered=ordered)
    other = stook.DataLoader(range(COUNT))
    elements: Any = iter(made)
    behind: set[int] = set()
    seen: list[int] = []
    early = False
    wrong: list[Any] = []

    def look(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal behind, early
        if not frame.f_code.co_filename.endswith("_threads_loader.py"):
            return None
        state = elements.get_state()
        early = early or "ahead" in state
        try:
            other.set_state(state)
        except ValueError as error:
            wrong.append((frame.f_lineno, state, error))
        lowest, ahead = elements.delivered()
        delivered = {*range(lowest), *ahead}
        if not behind | set(seen) <= delivered:  # what was delivered stays behind the state
            wrong.append((frame.f_lineno, lowest, ahead, seen))
        behind = delivered
        return look

    before = sys.gettrace()
    sys.settrace(look)
    try:
        for element in elements:
            seen.append(element)
            if len(seen) == 4:
                late.set()
    finally:
        sys.settrace(before)
        late.set()
    made.close()
    assert wrong == []
    assert sorted(seen) == list(range(COUNT))
    assert early is not ordered


def test_a_look_while_another_loop_looks_is_told_to_look_again() -> None:
    gate = threading.Event()
    with loader([0], lambda item: gate.wait(DEADLINE) and item) as made:
        elements: Any = iter(made)
        found: list[Any] = []
        with elements._lock:  # as a look by the loop of another thread has it
            looker = threading.Thread(target=lambda: found.append(elements._look()))
            looker.start()
            looker.join(DEADLINE)
        assert found == [SOON], "the other tells nobody, as it takes nothing"
        waits = threading.Event()

        class Noting(type(elements)):  # type: ignore[misc]
            def _sleep(self) -> None:
                waits.set()
                super()._sleep()

            def _wait_and_look(self, draws: Any) -> None:
                waits.set()
                super()._wait_and_look(draws)

        elements.__class__ = Noting
        consumer = threading.Thread(target=lambda: found.append(next(elements)))
        consumer.start()
        assert waits.wait(DEADLINE)
        assert elements._look() is ABSENT, "who is in next() tells at its end"
        gate.set()
        consumer.join(DEADLINE)
        assert found[1:] == [0]


class Parser:
    """An iterable whose iterator has a method of a name that loaders once asked for."""

    class Given(Iterator[int]):
        def __init__(self) -> None:
            self.next = 0

        def __next__(self) -> int:
            if self.next == 8:
                raise StopIteration
            self.next += 1
            return self.next - 1

        def _advance(self, count: int = 1) -> None:
            self.next += 1

    def __iter__(self) -> Iterator[int]:
        return self.Given()


@pytest.mark.parametrize("sampled", [False, True])
def test_an_iterator_with_methods_of_its_own_is_run_through(sampled: bool) -> None:
    def made() -> stook.DataLoader:
        if sampled:
            return stook.DataLoader(range(8), sampler=Parser())
        return stook.DataLoader(Parser())

    elements = iter(made())
    assert [next(elements) for _ in range(6)] == [0, 1, 2, 3, 4, 5]
    other = made()
    other.set_state(elements.get_state())
    assert list(other) == [6, 7]
