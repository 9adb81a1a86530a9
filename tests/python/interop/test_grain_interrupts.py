"""Ctrl-C wherever it may come in `stook.grain`: elements and states stay as they were."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from partner_loader import require

import stook.grain
from interrupts import Ctrl, RaisesOnce, every_place
from stook import _grain_dataset

(grain,) = require("grain")

pytestmark = pytest.mark.leaves("Grain's threads, and JAX's", "threads", "descriptors", "mappings")

FILES = {_grain_dataset.__file__}
LENGTH = 5  # so that one of two workers has an element more


def item(number: int) -> int:
    if number == 1:
        raise LookupError("number 1")
    return number


class Unloadable:
    """Cannot be unpickled, so that no result says whose it was."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __reduce__(self) -> Any:
        return divmod, (self.number, 0)


def odd_item(number: int) -> Any:
    return Unloadable(number) if number == 1 else number


@pytest.fixture(params=[item, odd_item])
def elements(request: pytest.FixtureRequest) -> Iterator[Any]:
    from absl import flags

    flags.FLAGS.mark_as_parsed()
    data = grain.MapDataset.range(LENGTH).map(request.param)
    data = data.to_iter_dataset(grain.ReadOptions(0, 0))
    with closing(iter(stook.grain.mp_prefetch(data, grain.MultiprocessingOptions(2, 2)))) as made:
        yield made


def take(elements: Any) -> Any:
    """What the next element is, or what comes in its place."""
    try:
        return next(elements)
    except (LookupError, ZeroDivisionError, StopIteration) as error:
        return type(error).__name__


def states_of(elements: Any, count: int) -> list[Any]:
    """What comes, and each time the state behind it."""
    return [(take(elements), json.dumps(elements.get_state())) for _ in range(count)]


# An element, one that failed, and the end of the worker that has fewer.
@pytest.mark.parametrize("before", [0, 1, LENGTH])
def test_next(elements: Any, before: int) -> None:
    begin = elements.get_state()
    wanted = states_of(elements, LENGTH + 1)

    def run(once: RaisesOnce) -> None:
        elements.set_state(begin)
        assert states_of(elements, before) == wanted[:before]
        try:
            with once:
                found = [take(elements)]
        except Ctrl:
            found = []
        place = before + len(found)
        assert found == [each for each, _ in wanted[before:place]], once.place
        if 0 < place < LENGTH:  # behind the last one the end of a worker is known, or not yet
            assert json.dumps(elements.get_state()) == wanted[place - 1][1], once.place
        assert states_of(elements, LENGTH + 1 - place) == wanted[place:], once.place

    every_place(FILES, run)


@pytest.mark.parametrize("elements", [item], indirect=True)
def test_set_state(elements: Any) -> None:
    begin = elements.get_state()
    wanted = states_of(elements, LENGTH + 1)
    elements.set_state(begin)
    states_of(elements, 3)
    saved = elements.get_state()

    def run(once: RaisesOnce) -> None:
        elements.set_state(begin)
        assert states_of(elements, 1) == wanted[:1]
        try:
            with once:
                elements.set_state(saved)
        except Ctrl:
            # It is there or not, and not in between.
            assert elements.get_state() in (saved, json.loads(wanted[0][1])), once.place
        place = 3 if elements.get_state() == saved else 1
        assert states_of(elements, LENGTH + 1 - place) == wanted[place:], once.place

    every_place(FILES, run)


@pytest.mark.parametrize("elements", [item], indirect=True)
def test_start_prefetch(elements: Any) -> None:
    begin = elements.get_state()
    wanted = states_of(elements, LENGTH + 1)

    def run(once: RaisesOnce) -> None:
        elements.set_state(begin)
        try:
            with once:
                elements.start_prefetch()
                found = [take(elements)]
        except Ctrl:
            found = []
        place = len(found)
        assert found == [each for each, _ in wanted[:place]], once.place
        assert states_of(elements, LENGTH + 1 - place) == wanted[place:], once.place

    every_place(FILES, run)
