"""set_state() waits for user code that is under way, and user code may ask the loader meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

import stook

DEADLINE = 60


class Call:
    """A call in a thread of its own, and what became of it."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self.value: Any = None
        self.error: BaseException | None = None
        self._function = function
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.value = self._function()
        except BaseException as error:
            self.error = error

    def has_come_back(self) -> bool:
        self._thread.join(DEADLINE)
        return not self._thread.is_alive()


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], threading.Event]:
    """Gives an event that is set when set_state() of an iterator comes to where it waits."""

    def of(elements: Any) -> threading.Event:
        event = threading.Event()
        kind = type(elements)
        at_standstill = kind._at_standstill

        def noting(self: Any, call: Callable[[], None]) -> None:
            event.set()
            at_standstill(self, call)

        monkeypatch.setattr(kind, "_at_standstill", noting)
        return event

    return of


@pytest.mark.parametrize("by", ["loader", "iterator"])
@pytest.mark.parametrize("ask", ["stats", "profile", "get_state", "close"])
@pytest.mark.parametrize("way", ["here", "threads", "prefetch_to"])
def test_user_code_asks_its_loader_while_a_state_is_set(
    way: str, ask: str, by: str, waits: Callable[[Any], threading.Event]
) -> None:
    is_there = threading.Event()

    def load(number: int) -> int:
        if number == 1:
            is_there.set()
            assert is_waiting.wait(DEADLINE)
            getattr(loader, ask)()
        return number

    options = stook.MultithreadingOptions(1 if way == "threads" else 0, enable_profiling=True)
    loader = stook.DataLoader(range(3), load, options=options)
    elements: Any = iter(loader)
    if way == "prefetch_to":
        elements = elements.prefetch_to(lambda number: number)
    state = elements.get_state()
    is_waiting = waits(elements)
    consumer = Call(lambda: list(elements))
    assert is_there.wait(DEADLINE)
    setter = Call(lambda: (loader if by == "loader" else elements).set_state(state))
    assert setter.has_come_back()
    assert consumer.has_come_back()
    loader.close()
    if ask == "close":
        assert isinstance(setter.error or consumer.error, stook.StookError)
    else:
        assert setter.error is consumer.error is None
        assert consumer.value[-3:] == [0, 1, 2]


@pytest.mark.parametrize("by", ["loader", "iterator"])
def test_a_loader_is_closed_while_a_state_waits_for_a_stuck_function(
    by: str, waits: Callable[[Any], threading.Event]
) -> None:
    is_there, release = threading.Event(), threading.Event()

    def stuck(number: int) -> int:
        is_there.set()
        assert release.wait(DEADLINE)
        return number

    loader = stook.DataLoader(range(3))
    elements = loader.prefetch_to(stuck)
    is_waiting = waits(elements)
    consumer = Call(lambda: next(elements))
    assert is_there.wait(DEADLINE)
    setter = Call(lambda: (loader if by == "loader" else elements).set_state(loader.get_state()))
    assert is_waiting.wait(DEADLINE)
    closer = Call(loader.close)
    try:
        assert closer.has_come_back()
        assert setter.has_come_back()
        assert consumer.has_come_back()
    finally:
        release.set()
    assert isinstance(setter.error, stook.StookError)
    assert isinstance(consumer.error, stook.StookError)


def test_a_state_is_for_the_next_pass_if_the_one_under_way_ends_while_it_waits(
    waits: Callable[[Any], threading.Event],
) -> None:
    is_there, release = threading.Event(), threading.Event()

    def load(number: int) -> int:
        if number == 1:
            is_there.set()
            assert release.wait(DEADLINE)
        return number

    loader = stook.DataLoader(range(4), load)
    elements = iter(loader)
    is_waiting = waits(elements)
    consumer = Call(lambda: list(elements))
    assert is_there.wait(DEADLINE)
    setter = Call(lambda: loader.set_state({**loader.get_state(), "position": 2}))
    assert is_waiting.wait(DEADLINE)
    elements.close()
    release.set()
    assert setter.has_come_back()
    assert consumer.has_come_back()
    assert setter.error is None
    assert isinstance(consumer.error, stook.StookError)
    assert list(loader) == [2, 3]
