"""`fill_batches`: the batches of the list without what is left out, whoever makes them."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from fill_cases import BAD, BATCH, LENGTH

import stook

PLACES = {
    "here": stook.MultiprocessingOptions(),
    "worker": stook.MultiprocessingOptions(1, start_method="fork"),
    "workers": stook.MultiprocessingOptions(2, start_method="fork"),
    "fresh workers": stook.MultiprocessingOptions(2),
    "many workers": stook.MultiprocessingOptions(5, 2, start_method="fork"),
    "thread": stook.MultithreadingOptions(1),
    "threads": stook.MultithreadingOptions(3),
}
each_place = pytest.mark.parametrize("place", [place for place in PLACES if place[:5] != "fresh"])
a_place_of_each_kind = pytest.mark.parametrize("place", ["here", "workers", "threads"])


class NoItemError(Exception):
    pass


@contextmanager
def made(place: str, source: Any, *transform: Any, **settings: Any) -> Iterator[stook.DataLoader]:
    arguments = {"batch_size": BATCH, "fill_batches": True, **settings}
    with stook.DataLoader(source, *transform, options=PLACES[place], **arguments) as loader:
        yield loader


def failing(bad: str) -> Callable[[int], int]:
    def item(index: int) -> int:
        if BAD[bad](index):
            raise NoItemError(index)
        return index

    return item


def epochs_of(count: int, **settings: Any) -> list[list[int]]:
    """The indices of each epoch, as a loader without batches takes them."""
    pass_ = list(stook.DataLoader(range(LENGTH), num_epochs=count, **settings))
    size = len(pass_) // count
    return [pass_[size * epoch : size * (epoch + 1)] for epoch in range(count)]


def batches_of(epochs: list[list[int]], drop: bool) -> list[list[int]]:
    cut = [
        items[start : start + BATCH] for items in epochs for start in range(0, len(items), BATCH)
    ]
    return [batch for batch in cut if len(batch) == BATCH or not drop]


def outcomes(elements: Any) -> list[Any]:
    """Elements, and the types of errors."""
    found: list[Any] = []
    while True:
        try:
            found.append(next(elements))
        except StopIteration:
            return found
        except stook.TooManyErrors as error:
            found.append((error.errors, error.items))
        except Exception as error:
            found.append(type(error))


@pytest.mark.parametrize("drop", [False, True])
@each_place
def test_batches_are_those_of_the_filtered_list(place: str, drop: bool) -> None:
    """Of what is not alike in all places, as little as shows it: each loader costs processes."""
    shuffled = {"shuffle": True, "shard": (1, 3)}
    for bad in BAD:
        for settings in ({}, shuffled) if place == "here" else (shuffled if drop else {},):
            epochs = epochs_of(3, **settings)
            good = [[index for index in items if not BAD[bad](index)] for items in epochs]
            wanted = batches_of(good, drop)
            with made(
                place,
                range(LENGTH),
                failing(bad),
                num_epochs=3,
                on_error="skip",
                drop_remainder=drop,
                **settings,
            ) as loader:
                for passes in (1, 2):
                    found = [batch.tolist() for batch in loader]
                    assert len(found) <= len(loader), bad
                    if passes == 1:
                        assert found == wanted, bad
                    elif not settings:
                        assert found == wanted, f"the next pass is like it: {bad}"
                if not drop and not settings:
                    # Each item once: what was made ahead and dropped does not count.
                    failed = sum(map(len, epochs)) - sum(map(len, good))
                    assert loader.stats().errors == 2 * failed, bad


@pytest.mark.parametrize("place", ["here", "fresh workers", "many workers", "threads"])
def test_arrays_come_whole(place: str) -> None:
    def item(index: int) -> Any:
        return stook.SKIP if index % 3 == 1 else {"a": np.full(3000, index), "b": [index] * 3}

    with made(place, range(LENGTH), item) as loader:
        held = list(loader)
        held += list(loader)
        wanted = batches_of([[index for index in range(LENGTH) if index % 3 != 1]] * 2, False)
        assert [batch["a"][:, 0].tolist() for batch in held] == wanted
        assert all((batch["a"] == batch["a"][:, :1]).all() for batch in held)
        assert loader.stats().errors == 0


@a_place_of_each_kind
def test_what_a_filter_leaves_out_is_made_up_for(place: str) -> None:
    for bad in ("all", "some", "runs", "the last"):

        def item(index: int, bad: str = bad) -> Any:
            return stook.SKIP if BAD[bad](index) else index

        good = [index for index in range(LENGTH) if not BAD[bad](index)]
        with made(place, range(LENGTH), item, collate=list) as loader:
            assert list(loader) == batches_of([good], False), bad
            assert loader.stats().errors == 0


@a_place_of_each_kind
def test_replacements_stay_and_what_a_callable_skips_is_made_up_for(place: str) -> None:
    def settle(error: stook.ElementError) -> Any:
        assert error.item_index is not None
        return stook.SKIP if error.item_index % 2 else -error.item_index

    bad = BAD["runs"]
    items = [-index if bad(index) else index for index in range(LENGTH)]
    wanted = batches_of([[item for item in items if item >= 0 or item % 2 == 0]], False)
    with made(place, range(LENGTH), failing("runs"), on_error=settle, collate=list) as loader:
        assert list(loader) == wanted
        assert loader.stats().errors == sum(map(bad, range(LENGTH)))


_attempts = threading.local()


def at_the_second_attempt(index: int) -> Any:
    """Fails every other time; for some indices always."""
    counts = _attempts.__dict__
    key = str(index)
    counts[key] = counts.get(key, 0) + 1
    draw = stook.rng().integers(1 << 60)
    if counts[key] % 2 == 1 or index % 5 == 2:
        raise NoItemError(index)
    return index, int(draw)


@each_place
def test_retries_come_first_and_draw_the_same(place: str) -> None:
    settings: Any = {"retries": 1, "on_error": "skip", "collate": list, "shuffle": True}
    with made("here", range(LENGTH), at_the_second_attempt, **settings) as loader:
        wanted = list(loader)
    good = [[index for index in items if index % 5 != 2] for items in epochs_of(1, shuffle=True)]
    assert [[index for index, _ in batch] for batch in wanted] == batches_of(good, False)
    with made(place, range(LENGTH), at_the_second_attempt, **settings) as loader:
        assert list(loader) == wanted


@each_place
@pytest.mark.parametrize(
    ("bad", "wanted"),
    [
        # Of 10 to 13.
        (13, [[0, 2, 3, 4], [5, 7, 8, 9], NoItemError, [14, 15, 16, 17]]),
        # A further item behind 5 to 8, of which 6 is left out.
        (9, [[0, 2, 3, 4], NoItemError, [10, 11, 13, 14], [15, 16, 17]]),
    ],
)
def test_a_batch_that_raises_has_used_up_what_it_took(
    place: str, bad: int, wanted: list[Any]
) -> None:
    def item(index: int) -> Any:
        if index == bad:
            raise NoItemError(index)
        return stook.SKIP if index in (1, 6, 12) else index

    with made(place, range(18), item, collate=list) as loader:
        elements = iter(loader)
        found = outcomes(elements)
        assert found == wanted
        assert elements.stats().errors == found.count(NoItemError)
    if bad == 9:
        with made(place, range(18), item, collate=list, max_errors=0) as loader:
            # What was seen: the first batch is of five items, and so is this one.
            assert outcomes(iter(loader)) == [*wanted[:1], (1, 10)]


@each_place
def test_a_collate_that_raises_has_used_up_the_items_of_its_batch(place: str) -> None:
    """No more and no less: a worker notes the collating as if it were one more item."""

    def item(index: int) -> Any:
        return stook.SKIP if index in (1, 2) else index

    def collate(items: list[int]) -> list[int]:
        if 0 in items:
            raise NoItemError("collate")
        return items

    with made(place, range(12), item, collate=collate, max_errors=0.5) as loader:
        elements = iter(loader)
        with pytest.raises(NoItemError) as caught:
            next(elements)
        assert "stook" not in "".join(vars(caught.value)), "no notes of ours"
        assert outcomes(elements) == [[6, 7, 8, 9], [10, 11]]


# ---- states --------------------------------------------------------------------------------------


def drawing(index: int) -> Any:
    if index % 5 == 2:
        raise NoItemError(index)
    if index % 7 == 3:
        return stook.SKIP
    return index, int(stook.rng().integers(1 << 60))


SETTINGS: dict[str, dict[str, Any]] = {
    "in order": {},
    "shuffled": {"shuffle": True, "num_epochs": 3},
    "whole batches": {"shuffle": True, "drop_remainder": True, "num_epochs": 2},
    "shard": {"shuffle": True, "shard": (1, 2), "num_epochs": 3},
    "raise": {"on_error": "raise", "num_epochs": 2},
    "all bad": {"transform": failing("all"), "num_epochs": 2},
    "the last bad": {"transform": failing("the last"), "num_epochs": 2},
}


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("place", ["here", "workers", "many workers", "threads"])
def test_every_state_is_exact(place: str, name: str) -> None:
    settings = {"on_error": "skip", "collate": list, "transform": drawing, **SETTINGS[name]}
    with (
        made("here", range(LENGTH), **settings) as here,
        made(place, range(LENGTH), **settings) as loader,
    ):
        there = iter(here)
        plain = outcomes(there)
        elements = iter(loader)
        states = [json.dumps(elements.get_state())]
        for expected in plain:
            try:
                assert next(elements) == expected
            except NoItemError:
                assert expected is NoItemError
            states.append(json.dumps(elements.get_state()))
        assert outcomes(elements) == []
        states[-1] = json.dumps(elements.get_state())
        for done, state in enumerate(states):
            assert len(state) < 500
            for iterator in (elements, there):
                iterator.set_state(json.loads(state))
                assert json.dumps(iterator.get_state()) == state
                assert outcomes(iterator) == plain[done:]


@a_place_of_each_kind
def test_a_loop_that_was_left_goes_on(place: str) -> None:
    with made(place, range(LENGTH), failing("runs"), on_error="skip", collate=list) as loader:
        whole = list(loader)
        state: Any = None
        for _ in loader:
            state = loader.get_state()
            break
        assert loader.get_state() == state, "also when its iterator is gone"
        assert list(loader) == whole, "the next loop is the next pass"
        loader.set_state(state)
        assert list(loader) == whole[1:]
        assert loader.get_state()["position"] == loader.get_state()["item"] == 0


def test_shards_are_dealt_anew_between_epochs_alone() -> None:
    def shard(index: int, count: int) -> Any:
        settings: Any = {"on_error": "skip", "collate": list, "num_epochs": 2}
        return stook.DataLoader(
            range(LENGTH),
            failing("some"),
            shard=(index, count),
            batch_size=BATCH,
            fill_batches=True,
            **settings,
        )

    elements = iter(shard(0, 2))
    next(elements)
    for reshard in (False, True):
        with pytest.raises(ValueError, match=r"shard=\(0, 2\).*at an item of its own"):
            shard(0, 3).set_state(elements.get_state(), reshard=reshard)
    while elements.get_state()["position"]:
        next(elements)
    state = elements.get_state()
    assert (state["epoch"], state["item"]) == (1, 0)
    with pytest.raises(ValueError, match="reshard=True"):
        shard(0, 3).set_state(state)
    rest = []
    for index in range(3):
        loader = shard(index, 3)
        loader.set_state(state, reshard=True)
        rest += [item for batch in loader for item in batch]
    assert sorted(rest) == [index for index in range(LENGTH) if index % 5 != 2]


# ---- too many errors -----------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["workers", "many workers", "thread", "threads"])
def test_too_many_errors_are_the_same_everywhere(place: str) -> None:
    for most in (0, 3, 9, 0.15, 0.5):
        settings: Any = {"on_error": "skip", "collate": list, "num_epochs": 6, "max_errors": most}
        with made("here", range(LENGTH), failing("some"), **settings) as loader:
            wanted = outcomes(iter(loader))
        assert isinstance(wanted[-1], tuple) == (most < 0.2 or isinstance(most, int))
        with made(place, range(LENGTH), failing("some"), **settings) as loader:
            assert outcomes(iter(loader)) == wanted


@a_place_of_each_kind
def test_the_items_of_batches_to_which_nothing_happened_are_counted(place: str) -> None:
    settings: Any = {"on_error": "skip", "collate": list, "max_errors": 0}
    with made(place, range(LENGTH), failing("the last"), **settings) as loader:
        assert outcomes(iter(loader))[-1] == (1, 32)  # the next ones are not looked for


class Endless:
    def __len__(self) -> int:
        return 10**12

    def __getitem__(self, index: int) -> int:
        raise NoItemError(index)


@a_place_of_each_kind
def test_a_batch_does_not_look_for_items_beyond_the_errors_allowed(place: str) -> None:
    with made(place, Endless(), on_error="skip", max_errors=20) as loader:
        assert outcomes(iter(loader)) == [(21, 21)]


# ---- what does not go together -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"batch_size": None}, ValueError, "it needs batch_size"),
        ({"ordered": False}, ValueError, "fill_batches=True needs ordered=True"),
        ({"sampler": [1, 2]}, ValueError, "a sampler.*pass shuffle=True"),
        ({"source": iter([1, 2])}, ValueError, "__len__ and __getitem__.*pass a list"),
        ({"fill_batches": "yes"}, TypeError, "fill_batches must be"),
    ],
)
def test_what_does_not_go_together_is_refused(changes: Any, error: type, text: str) -> None:
    settings = {"source": [1, 2], "batch_size": 2, "fill_batches": True, **changes}
    with pytest.raises(error, match=text):
        stook.DataLoader(**settings)


def test_an_update_is_held_against_it() -> None:
    loader = stook.DataLoader([1, 2, 3], batch_size=2, fill_batches=True)
    with pytest.raises(ValueError, match="__len__"):
        loader.update(iter([1]))
    assert [batch.tolist() for batch in loader] == [[1, 2], [3]]


def state_of(**changes: Any) -> dict[str, Any]:
    settings: Any = {"batch_size": 2, "fill_batches": True, **changes}
    elements = iter(stook.DataLoader(range(10), **settings))
    next(elements)
    return elements.get_state()


@pytest.mark.parametrize(
    ("state", "text"),
    [
        (state_of(fill_batches=False), "fill_batches=False, and this loader has fill_batches=True"),
        ({**state_of(), "item": 1}, "item must be 2 to 10 at position 1, got 1"),
        ({**state_of(), "item": 11}, "item must be 2 to 10"),
        ({**state_of(), "position": 0}, "item must be 0 to 0 at position 0, got 2"),
        ({**state_of(), "item": None}, "item must be an int"),
        ({**state_of(), "ahead": [1]}, "1 are ahead of others"),
        ({**state_of(), "place": 4}, "place must be 0 to 0, got 4"),
    ],
)
def test_what_is_no_state_of_it_is_refused(state: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        stook.DataLoader(range(10), batch_size=2, fill_batches=True).set_state(state)


def test_a_state_of_it_is_refused_without() -> None:
    with pytest.raises(ValueError, match="fill_batches=True, and this loader has fill_batches=F"):
        stook.DataLoader(range(10), batch_size=2).set_state(state_of())
    state = state_of()
    del state["item"]
    with pytest.raises(ValueError, match="no 'item'"):
        stook.DataLoader(range(10), batch_size=2, fill_batches=True).set_state(state)
