"""What a loader withstands: user code that raises what ends loops and programs, odd data, deaths.

In processes, in threads and here alike. Ctrl-C is what a KeyboardInterrupt here is: see the tests
of loaders without workers.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import stook

PLACES: dict[str, Any] = {
    "here": stook.MultiprocessingOptions(),
    "workers": stook.MultiprocessingOptions(2, start_method="fork"),
    "threads": stook.MultithreadingOptions(2),
}
each_place = pytest.mark.parametrize("place", PLACES)
each_size = pytest.mark.parametrize("size", [None, 2])

LENGTH = 12
KINDS: dict[int, type[BaseException]] = {
    1: StopIteration,
    3: SystemExit,
    6: GeneratorExit,
    8: StopAsyncIteration,
    11: KeyboardInterrupt,
}


def kinds(place: str) -> dict[int, type[BaseException]]:
    found = dict(KINDS)
    if place == "here":
        found[11] = SystemExit
    return found


def raiser(place: str) -> Callable[[int], int]:
    of_index = kinds(place)

    def raise_some(index: int) -> int:
        if index in of_index:
            raise of_index[index]("of user code")
        return index

    return raise_some


class Source:
    def __init__(self, item: Callable[[int], Any], length: int = LENGTH) -> None:
        self.item = item
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Any:
        return self.item(index)


def outcomes(elements: Iterator[Any]) -> list[Any]:
    """Elements, batches as lists; of `ElementError`s what they say, of other errors the type."""
    found: list[Any] = []
    while True:
        try:
            element = next(elements)
        except StopIteration:
            return found
        except stook.ElementError as error:
            found.append((error.index, error.item_index, type(error.__cause__)))
        except BaseException as error:
            found.append(type(error))
        else:
            found.append(element.tolist() if isinstance(element, np.ndarray) else element)


# ---- what would end a loop, or the program -------------------------------------------------------


@each_place
@each_size
@pytest.mark.parametrize("code", ["transform", "source"])
def test_what_user_code_raises_for_an_item_is_an_element_error(
    place: str, size: int | None, code: str
) -> None:
    item = raiser(place)
    arguments = [range(LENGTH), item] if code == "transform" else [Source(item)]
    with stook.DataLoader(*arguments, batch_size=size, options=PLACES[place]) as loader:
        for _ in range(2):
            found = outcomes(iter(loader))
            wanted: list[Any] = []
            for first in range(0, LENGTH, size or 1):
                items = list(range(first, first + (size or 1)))
                failed = [index for index in items if index in KINDS]
                if failed:
                    wanted.append((first // (size or 1), failed[0], kinds(place)[failed[0]]))
                else:
                    wanted.append(items if size else items[0])
            assert found == wanted
        assert loader.stats().errors == 2 * len(KINDS)


@each_place
def test_what_collate_raises_is_an_element_error(place: str) -> None:
    item = raiser(place)

    def collate(items: list[int]) -> list[int]:
        return [item(index) for index in items]

    with stook.DataLoader(
        range(LENGTH), batch_size=2, collate=collate, options=PLACES[place]
    ) as loader:
        found = outcomes(iter(loader))
    of_batch = {index // 2: kind for index, kind in kinds(place).items()}
    assert found == [
        (batch, None, of_batch[batch]) if batch in of_batch else [2 * batch, 2 * batch + 1]
        for batch in range(LENGTH // 2)
    ]


@each_place
@each_size
def test_what_on_error_raises_is_an_element_error(place: str, size: int | None) -> None:
    item = raiser(place)

    def fail(index: int) -> int:
        if index in KINDS:
            raise LookupError(index)
        return index

    def settle(error: stook.ElementError) -> Any:
        assert error.item_index is not None
        return item(error.item_index)

    with stook.DataLoader(
        range(LENGTH), fail, batch_size=size, on_error=settle, options=PLACES[place]
    ) as loader:
        found = outcomes(iter(loader))
        assert loader.stats().errors == len(KINDS)
    errors = [outcome for outcome in found if isinstance(outcome, tuple)]
    assert errors == [(index // (size or 1), index, kind) for index, kind in kinds(place).items()]
    assert len(found) == LENGTH // (size or 1)


@pytest.mark.parametrize("code", ["transform", "source", "collate", "on_error"])
def test_ctrl_c_here_is_ctrl_c(code: str) -> None:
    """Whatever the policy is: the program is to end."""
    interrupts = [True]

    def interrupt(given: Any) -> Any:
        if interrupts:
            interrupts.clear()
            raise KeyboardInterrupt
        return given

    def fail(index: int) -> int:
        raise LookupError(index)

    settings: dict[str, Any] = {"on_error": "skip", "retries": 1}
    source: Any = range(4)
    if code == "source":
        source = Source(interrupt)
    elif code == "on_error":
        settings = {"transform": fail, "on_error": interrupt}
    else:
        settings[code] = interrupt
    with stook.DataLoader(source, batch_size=2, **settings) as loader:
        with pytest.raises(KeyboardInterrupt):
            next(iter(loader))
        assert not interrupts


# ---- iterables and samplers, which run in the consumer's thread ----------------------------------


class Given:
    """Gives 0 and 1, and then raises; or does so before."""

    def __init__(self, kind: type[BaseException], where: str) -> None:
        self.kind = kind
        self.where = where
        self.given = 0

    def set_epoch(self, epoch: int) -> None:
        if self.where == "set_epoch":
            raise self.kind("set_epoch")

    def __iter__(self) -> Iterator[int]:
        if self.where == "__iter__":
            raise self.kind("__iter__")
        return self.generated() if self.where == "generator" else self

    def generated(self) -> Iterator[int]:
        yield 0
        yield 1
        raise self.kind("generator")

    def __next__(self) -> int:
        self.given += 1
        if self.given > 2:
            raise self.kind("__next__")
        return self.given - 1


@each_place
@pytest.mark.parametrize("kind", [LookupError, SystemExit, GeneratorExit, StopIteration])
@pytest.mark.parametrize("what", ["source", "sampler"])
def test_what_the_drawing_raises_comes_behind_its_elements_and_is_the_last(
    place: str, kind: type[BaseException], what: str
) -> None:
    for where in ("__next__", "generator", "__iter__", "set_epoch"):
        if where == "set_epoch" and what == "source":
            continue
        given = Given(kind, where)
        arguments = (given,) if what == "source" else (range(5),)
        sampler = given if what == "sampler" else None
        with stook.DataLoader(*arguments, sampler=sampler, options=PLACES[place]) as loader:
            elements = iter(loader)
            found = outcomes(elements)[:3]
            # A generator's StopIteration is a RuntimeError of Python's own.
            error = [RuntimeError if kind is StopIteration else kind]
            before = [0, 1] if where in ("__next__", "generator") else []
            if where == "__next__" and kind is StopIteration:
                error = []  # as it is to be
            assert found == before + error
            assert outcomes(elements) == []


# ---- lengths -------------------------------------------------------------------------------------


@each_place
@each_size
@pytest.mark.parametrize("length", [0, 1])
@pytest.mark.parametrize("fill", [False, True])
def test_next_to_no_data(place: str, size: int | None, length: int, fill: bool) -> None:
    if fill and size is None:
        return  # it is about batches
    settings: dict[str, Any] = {"batch_size": size, "fill_batches": fill, "on_error": "skip"}
    wanted = [[0] if size else 0] * length
    for shuffle in (False, True):
        with stook.DataLoader(
            range(length), num_epochs=3, shuffle=shuffle, options=PLACES[place], **settings
        ) as loader:
            assert len(loader) == 3 * length
            for _ in range(2):
                elements = iter(loader)
                states = [elements.get_state()]
                for expected in 3 * wanted:
                    element = next(elements)
                    assert (element.tolist() if size else element) == expected
                    states.append(elements.get_state())
                assert outcomes(elements) == []
            for done, state in enumerate(states):
                elements.set_state(state)
                assert outcomes(elements) == (3 * wanted)[done:]
    if size:
        with stook.DataLoader(
            range(length), drop_remainder=True, options=PLACES[place], **settings
        ) as loader:
            assert (len(loader), list(loader)) == (0, [])


@each_place
@pytest.mark.parametrize("length", [0, 1])
def test_next_to_no_items_of_an_iterable(place: str, length: int) -> None:
    for size in (None, 2):
        items = [7] * length
        wanted = [[7] if size else 7] * length
        with stook.DataLoader(iter(items), batch_size=size, options=PLACES[place]) as loader:
            assert outcomes(iter(loader)) == wanted
        with stook.DataLoader(
            range(9), sampler=items, batch_size=size, num_epochs=2, options=PLACES[place]
        ) as loader:
            assert outcomes(iter(loader)) == 2 * wanted


MANY = 10**12


@each_place
@each_size
@pytest.mark.parametrize("shuffle", [False, True])
def test_more_data_than_there_is_memory(place: str, size: int | None, shuffle: bool) -> None:
    settings: dict[str, Any] = {"batch_size": size, "shuffle": shuffle, "seed": 5}
    with stook.DataLoader(range(MANY), options=PLACES[place], num_epochs=2, **settings) as loader:
        per_epoch = MANY // (size or 1)
        assert len(loader) == 2 * per_epoch
        elements = iter(loader)
        first = [np.atleast_1d(next(elements)).tolist() for _ in range(5)]
        indices = [index for element in first for index in element]
        assert len(set(indices)) == len(indices) == 5 * (size or 1)
        if not shuffle:
            assert indices == list(range(len(indices)))
        # Over the border of the epochs.
        state = {**elements.get_state(), "position": per_epoch - 2}
        elements.set_state(state)
        found = [np.atleast_1d(next(elements)).tolist() for _ in range(4)]
        flat = [index for element in found for index in element]
        assert all(0 <= index < MANY for index in flat)
        if not shuffle:
            assert flat[: len(flat) // 2] == list(range(MANY - len(flat) // 2, MANY))
            assert found[2:] == first[:2]
        else:
            assert found[2:] != first[:2], "another epoch, another order"
        # Up to the end of the pass.
        elements.set_state({**state, "epoch": 1})
        assert len(outcomes(elements)) == 2


# ---- deaths --------------------------------------------------------------------------------------


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("source", ["indexed", "iterable"])
def test_a_worker_dies_for_every_element_of_one_kind(ordered: bool, source: str) -> None:
    """Of every third one, in each pass anew; the others come, each once, and states are exact."""

    def transform(index: int) -> int:
        if index % 3 == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return index

    items: Any = range(LENGTH) if source == "indexed" else list(range(LENGTH)).__iter__
    options = stook.MultiprocessingOptions(2, start_method="fork", max_restarts=0)
    with stook.DataLoader(
        items if source == "indexed" else Iterable(items),
        transform,
        options=options,
        ordered=ordered,
    ) as loader:
        for passes in (1, 2):
            elements = iter(loader)
            found: list[int] = []
            lost: list[int] = []
            seen: set[int] = set()
            for _ in range(LENGTH):
                try:
                    found.append(next(elements))
                    seen.add(found[-1])
                except stook.WorkerDied as error:
                    assert error.exit_code == -signal.SIGKILL
                    assert error.index is not None
                    lost.append(error.index)
                    seen.add(error.index)
                state = elements.get_state()
                done = set(range(LENGTH if state["epoch"] >= passes else state["position"]))
                done |= {state["position"] + ahead for ahead in state.get("ahead", ())}
                assert done == seen
            assert outcomes(elements) == []
            assert sorted(found) == [index for index in range(LENGTH) if index % 3 != 1]
            assert sorted(lost) == [index for index in range(LENGTH) if index % 3 == 1]
            if ordered:
                assert (found, lost) == (sorted(found), sorted(lost))
            assert loader.stats().restarts == passes * LENGTH // 3


class Iterable:
    def __init__(self, begin: Callable[[], Iterator[int]]) -> None:
        self.begin = begin

    def __iter__(self) -> Iterator[int]:
        return self.begin()
