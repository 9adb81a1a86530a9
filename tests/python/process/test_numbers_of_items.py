"""What errors call the item that failed: its index in the source, or its number in the epoch."""

from __future__ import annotations

import threading
from typing import Any

import pytest

import stook

LENGTH = 20
PLACES = {
    "here": stook.MultiprocessingOptions(),
    "workers": stook.MultiprocessingOptions(2, start_method="fork"),
    "threads": stook.MultithreadingOptions(2),
}
each_place = pytest.mark.parametrize("place", PLACES)


def fail(item: int) -> int:
    raise LookupError(item)


def told(place: str, source: Any, size: int | None, shard: tuple[int, int], **settings: Any) -> Any:
    """What was failed at, and what the callable was told of it: (item, item_index, index)."""
    loader = stook.DataLoader(
        source,
        fail,
        batch_size=size,
        collate=list if size else None,
        shard=shard,
        options=PLACES[place],
        on_error=lambda error: (error.__cause__.args[0], error.item_index, error.index),
        **settings,
    )
    with loader:
        found = list(loader)
    return [item for batch in found for item in batch] if size else found


@each_place
@pytest.mark.parametrize("size", [None, 3])
@pytest.mark.parametrize("shard", [(0, 1), (1, 2), (2, 3)])
def test_items_of_an_iterable_are_numbered_over_all_shards(
    place: str, size: int | None, shard: tuple[int, int]
) -> None:
    index, count = shard
    found = told(place, iter(range(LENGTH)), size, shard)
    assert [item for item, _, _ in found] == list(range(LENGTH))[index::count]
    for number, (item, item_index, element) in enumerate(found):
        assert item_index == item
        assert element == number // (size or 1) * count + index


@each_place
@pytest.mark.parametrize("size", [None, 3])
def test_so_are_those_of_an_epoch_that_was_dealt_anew(place: str, size: int | None) -> None:
    settings: Any = {"batch_size": size, "shard": (0, 2)}
    elements = iter(stook.DataLoader(list(range(LENGTH)).__iter__(), **settings))
    next(elements)
    state = elements.get_state()
    left = []
    for index in range(3):
        numbers: list[tuple[int, int]] = []
        loader = stook.DataLoader(
            iter(range(LENGTH)),
            fail,
            batch_size=size,
            collate=list if size else None,
            shard=(index, 3),
            options=PLACES[place],
            on_error=lambda error: (error.__cause__.args[0], error.item_index),
        )
        with loader:
            loader.set_state(state, reshard=True)
            for element in loader:
                numbers += element if size else [element]
        assert all(item == item_index for item, item_index in numbers)
        left += [item for item, _ in numbers]
    assert sorted(left) == list(range(2 * (size or 1), LENGTH))


@each_place
def test_indices_are_those_of_the_source(place: str) -> None:
    for size in (None, 3):
        found = told(place, range(LENGTH), size, (1, 2), shuffle=True)
        assert len(found) == LENGTH // 2
        assert all(item == item_index for item, item_index, _ in found)
        found = told(place, range(LENGTH), size, (1, 2), sampler=range(LENGTH - 1, -1, -1))
        assert [item for item, _, _ in found] == [item_index for _, item_index, _ in found]


@each_place
@pytest.mark.parametrize(("size", "item"), [(None, 3), (3, 9)])
def test_notes_of_errors_say_the_same(place: str, size: int | None, item: int) -> None:
    """Of the second element of shard 1 of 2, without a policy."""

    def fail_there(value: int) -> int:
        if value == item:
            raise LookupError(value)
        return value

    loader = stook.DataLoader(
        iter(range(LENGTH)), fail_there, batch_size=size, shard=(1, 2), options=PLACES[place]
    )
    with loader:
        elements = iter(loader)
        next(elements)
        with pytest.raises(LookupError) as caught:
            next(elements)
    (note,) = [note for note in caught.value.__notes__ if "loading" in note]
    assert f"while loading element 3 (index {item}" in note


@pytest.mark.parametrize(
    ("items", "settings", "wanted"),
    [
        (iter([700, 701, 702]), {}, (1, 1)),  # not 701, which is the item itself
        (range(699, 703), {"sampler": [1, 2, 0]}, (1, 2)),
        (iter([700, 700, 700, 701, 700]), {"batch_size": 2}, (1, 3)),
    ],
)
def test_threads_number_what_takes_too_long(
    items: Any, settings: Any, wanted: tuple[int, int]
) -> None:
    let_go = threading.Event()

    def transform(item: int) -> int:
        if item == 701:
            let_go.wait(60)
        return item

    options = stook.MultithreadingOptions(1, timeout=1)
    with stook.DataLoader(items, transform, options=options, seed=None, **settings) as loader:
        elements = iter(loader)
        next(elements)
        with pytest.raises(stook.ElementTimeout) as caught:
            next(elements)
        assert (caught.value.index, caught.value.item_index) == wanted
        let_go.set()
