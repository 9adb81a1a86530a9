"""Threads that are stuck in user code, and those that take their places."""

from __future__ import annotations

import threading
from typing import Any

import pytest

import stook
from leftovers import wait_until
from stook._threads_crew import Crew

DEADLINE = 60


def test_threads_that_were_replaced_are_forgotten() -> None:
    crew = Crew(1, "replaced")
    for _ in range(5):
        crew.jobs.put(lambda refused: True)  # as one whose job was given up
        crew.threads[-1].join(DEADLINE)
        crew.replace_one()
    assert len(crew.threads) == 1
    assert crew.threads[0].name == "replaced-5"
    crew.end()
    assert crew.join(DEADLINE)


def test_an_element_is_not_given_up_before_there_is_another_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gate = threading.Event()

    def refuse(crew: Crew) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(Crew, "replace_one", refuse)
    options = stook.MultithreadingOptions(1, timeout=0.05)
    made = stook.DataLoader(range(3), lambda index: index or gate.wait(DEADLINE), options=options)
    with made:
        elements: Any = iter(made)
        with pytest.raises(RuntimeError, match="new thread"):
            next(elements)
        gate.set()
        assert wait_until(lambda: 0 in elements._shared.done, 10)
        with pytest.raises(stook.ElementTimeout):
            next(elements)
        assert list(elements) == [1, 2]
