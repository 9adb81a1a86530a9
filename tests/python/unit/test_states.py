"""What a state is, which ones are refused, and the loader's own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from loader_cases import each_kind_of_workers, loader

import stook
from stook._state import ordinals

SETTINGS: dict[str, Any] = {"batch_size": 2, "shuffle": True, "collate": list}


def state_of(taken: int = 1, length: int = 10, **changes: Any) -> dict[str, Any]:
    elements = iter(stook.DataLoader(range(length), **{**SETTINGS, **changes}))
    for _ in range(taken):
        next(elements)
    return elements.get_state()


# ---- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "text"),
    [
        (state_of(length=11), "a source of length=11.*a source of length=10"),
        (state_of(seed=4), "seed=4, and this loader has seed=0"),
        (state_of(seed=None), "seed=None, and this loader has seed=0"),
        (state_of(batch_size=3), "batch_size=3, and this loader has batch_size=2"),
        (state_of(drop_remainder=True), "drop_remainder=True"),
        (state_of(shuffle=False), "shuffle=False, and this loader has shuffle=True"),
        (state_of(shuffle=False, sampler=[0, 1, 2]), "items='sampler'"),
        (
            state_of(shard=(0, 2)),
            r"shard=\(0, 2\), and this loader has shard=\(0, 1\).*reshard=True",
        ),
    ],
)
def test_a_state_of_other_data_is_refused_with_both_values(state: Any, text: str) -> None:
    made = stook.DataLoader(range(10), **SETTINGS)
    with pytest.raises(ValueError, match=text):
        made.set_state(state)
    elements = iter(made)
    with pytest.raises(ValueError, match=text):
        elements.set_state(state)
    assert len(list(elements)) == 5, "it stays where it was"


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (None, TypeError, r"the dict that get_state\(\) gives, got None"),
        ("{}", TypeError, r"json.loads\(\)"),
        ({}, ValueError, "not a state that get_state"),
        ({"stook": 2}, ValueError, "of version 2, and this stook reads version 1.*update stook"),
        ({"stook": "1"}, ValueError, "not a state"),
        ({"stook": True}, ValueError, "not a state"),
        ({"position": -1}, ValueError, "position must be 0 to"),
        ({"position": 6}, ValueError, "position must be 0 to 5, the elements of its epoch, got 6"),
        ({"position": 1.5}, ValueError, "position must be an int, got 1.5"),
        ({"position": True}, ValueError, "position must be an int"),
        ({"position": None}, ValueError, "position must be an int"),
        ({"epoch": "x"}, ValueError, "epoch must be an int"),
        ({"epoch": 2**70}, ValueError, "epoch must be 0 to"),
        ({"first_epoch": 5}, ValueError, "first_epoch must be 0 to 0, got 5"),
        ({"shard": [0]}, ValueError, "shard must be"),
        ({"shard": [2, 2]}, ValueError, "shard index must be 0 to 1, got 2"),
        ({"shard": 7}, ValueError, "shard must be"),
        ({"ahead": [2, 1]}, ValueError, "rising order"),
        ({"ahead": [0]}, ValueError, "ahead must be 1 to"),
        ({"ahead": "12"}, ValueError, "ahead must be a list"),
        ({"place": 11}, ValueError, "place must be 0 to 10"),
        ({"shuffle_seed": -1}, ValueError, "shuffle_seed"),
        ({"source": 3}, ValueError, "source must be a dict"),
        ({"source": {"bytes": "%", "drawn": 1}}, ValueError, "damaged"),
        ({"source": {"state": 1, "drawn": "1"}}, ValueError, "drawn must be an int"),
    ],
)
def test_what_is_no_state_is_refused(change: Any, error: type, text: str) -> None:
    state = change
    if isinstance(change, dict) and change:
        state = {**state_of(), **change}
    with pytest.raises(error, match=text):
        stook.DataLoader(range(10), **SETTINGS).set_state(state)


@pytest.mark.parametrize("key", ["stook", "items", "length", "seed", "shard", "epoch", "position"])
def test_a_state_that_lacks_something_is_refused(key: str) -> None:
    state = state_of()
    del state[key]
    with pytest.raises(ValueError, match=key):
        stook.DataLoader(range(10), **SETTINGS).set_state(state)


@each_kind_of_workers
def test_a_closed_iterator_tells_its_state_and_takes_none(workers: int) -> None:
    with loader(range(10), workers=workers) as made:
        elements = iter(made)
        next(elements)
        state = elements.get_state()
        elements.close()
        assert elements.get_state() == state
        with pytest.raises(stook.StookError, match="closed"):
            elements.set_state(state)


# ---- the loader's own ----------------------------------------------------------------------------


@each_kind_of_workers
def test_the_loaders_state_is_that_of_its_pass(workers: int) -> None:
    with loader(range(5), workers=workers, num_epochs=2) as made:
        fresh = made.get_state()
        assert (fresh["epoch"], fresh["position"]) == (0, 0)
        elements = iter(made)
        for taken in range(10):
            place = made.get_state()
            assert (place["epoch"], place["position"]) == divmod(taken, 5)
            next(elements)
        before_the_end = made.get_state()
        assert list(elements) == []
        after = made.get_state()
        assert (after["first_epoch"], after["epoch"], after["position"]) == (2, 2, 0)
        made.set_state(before_the_end)
        assert list(made) == [], "nothing was left of that pass"
        made.set_state(after)
        assert len(list(made)) == 10


@each_kind_of_workers
def test_a_loop_that_was_left_has_the_state_of_where(workers: int) -> None:
    with loader(range(5), workers=workers) as made:
        for element in made:
            if element == 2:
                break
        state = made.get_state()
        assert (state["epoch"], state["position"]) == (0, 3)
        assert list(made) == [0, 1, 2, 3, 4], "the next loop is the next pass"
        made.set_state(state)
        assert list(made) == [3, 4]
        assert made.get_state()["epoch"] == 1


@each_kind_of_workers
def test_a_state_set_on_the_loader_is_for_the_iterator_and_for_the_next(workers: int) -> None:
    with loader(range(6), workers=workers) as made:
        elements = iter(made)
        next(elements)
        state = made.get_state()
        assert list(elements) == [1, 2, 3, 4, 5]
        made.set_state(state)
        assert next(elements) == 1
        made.set_state(state)
        assert list(made) == [1, 2, 3, 4, 5], "nothing was delivered since"
        with pytest.raises(stook.StookError):
            elements.set_state(state)


def test_more_epochs_than_when_the_state_was_taken() -> None:
    elements = iter(stook.DataLoader(range(3), num_epochs=2))
    assert [next(elements) for _ in range(4)] == [0, 1, 2, 0]
    longer = stook.DataLoader(range(3), num_epochs=3)
    longer.set_state(elements.get_state())
    assert list(longer) == [1, 2, 0, 1, 2]
    assert longer.get_state()["epoch"] == 3


def test_the_seed_that_chance_drew_is_part_of_the_state() -> None:
    def made() -> stook.DataLoader:
        return stook.DataLoader(range(50), shuffle=True, seed=None, num_epochs=2)

    elements = iter(made())
    head = [next(elements) for _ in range(60)]
    other = iter(made())
    other.set_state(json.loads(json.dumps(elements.get_state())))
    rest = list(elements)
    assert list(other) == rest
    assert sorted(head[50:] + rest) == list(range(50))


@pytest.mark.leaves("tqdm makes a lock between processes once and keeps it", "mappings")
def test_a_bar_goes_on_where_the_state_is(capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tqdm")
    made = stook.DataLoader(range(8), progress=True, num_epochs=2)
    elements = iter(made)
    for _ in range(11):
        next(elements)
    state = elements.get_state()
    elements.close()
    again = stook.DataLoader(range(8), progress=True, num_epochs=2)
    again.set_state(state)
    each = iter(again)
    assert list(each) == [3, 4, 5, 6, 7]
    assert "16/16" in capfd.readouterr().err
    each.set_state(state)
    assert next(each) == 3
    each.close()
    assert "12/16" in capfd.readouterr().err


# ---- sources with a state ------------------------------------------------------------------------


class Counting:
    """An iterator with a state, which counts how often it is asked."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.next = 0
        self.given = 0

    def __iter__(self) -> Counting:
        return self

    def __next__(self) -> int:
        if self.next == self.count:
            raise StopIteration
        self.next += 1
        self.given += 1
        return self.next - 1

    def get_state(self) -> dict[str, int]:
        return {"next": self.next}

    def set_state(self, state: dict[str, int]) -> None:
        self.next = state["next"]


class Fresh:
    """An iterable whose iterators have a state."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.given = 0

    def __iter__(self) -> Iterator[int]:
        outer = self

        class Given(Counting):
            def __next__(self) -> int:
                item = super().__next__()
                outer.given += 1
                return item

        return Given(self.count)


class Items:
    """An iterable without a state."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.count))


@each_kind_of_workers
@pytest.mark.parametrize("batch_size", [None, 3])
@pytest.mark.parametrize("kind", [Counting, Fresh])
def test_the_state_of_a_source_is_part_of_the_state(
    workers: int, batch_size: int | None, kind: Any
) -> None:
    def made(source: Any, workers: int) -> Any:
        batches = {"batch_size": batch_size, "collate": list} if batch_size else {}
        epochs = 1 if kind is Counting else 2
        return loader(source, workers=workers, num_epochs=epochs, **batches)

    with made(kind(10), workers) as first:
        elements = iter(first)
        states = [json.dumps(elements.get_state())]
        found = []
        for element in elements:
            found.append(element)
            states.append(json.dumps(elements.get_state()))
        for taken, state in reversed(list(enumerate(states))):
            # Also the iterator that is at its end goes back, as it can.
            elements.set_state(json.loads(state))
            assert list(elements) == found[taken:]
            source = kind(10)
            # A state is of no number of workers, and processes for each place cost the most.
            with made(source, min(workers, 0) if taken % 5 else workers) as other:
                other.set_state(json.loads(state))
                rest = list(other)
            assert rest == found[taken:]
            items = sum(len(each) if batch_size else 1 for each in rest)
            assert source.given == items, "none of those before is asked for"


@each_kind_of_workers
@pytest.mark.parametrize("kind", [Fresh, Items])
def test_what_came_early_is_behind_the_state_beyond_an_epochs_end(workers: int, kind: Any) -> None:
    with loader(kind(5), workers=workers, num_epochs=2) as made:
        elements = iter(made)
        # Of the second epoch 0 and 1 have come.
        state = {**elements.get_state(), "position": 1, "ahead": [1, 3, 4, 5]}
        rest = [1, 3, 2, 3, 4]
        for taken in range(len(rest) + 1):
            elements.set_state(state)
            assert [next(elements) for _ in range(taken)] == rest[:taken]
            elements.set_state(json.loads(json.dumps(elements.get_state())))
            assert list(elements) == rest[taken:]


def test_only_so_many_states_of_a_source_are_kept() -> None:
    made = stook.DataLoader(Counting(3000))
    elements: Any = iter(made)
    for _ in range(2500):
        next(elements)
    assert len(elements._pass.jobs._states) < 50
    elements.set_state(elements.get_state())
    assert next(elements) == 2500


@each_kind_of_workers
def test_an_iterator_without_a_state_cannot_go_back_but_a_fresh_one_is_run_through(
    workers: int,
) -> None:
    with loader(iter(range(9)), workers=workers) as made:
        elements = iter(made)
        assert [next(elements) for _ in range(4)] == [0, 1, 2, 3]
        state = elements.get_state()
        with pytest.raises(stook.StookError, match="was run through before"):
            elements.set_state(state)
        assert next(elements) == 4, "it goes on as if nothing was asked"
    with loader(iter(range(9)), workers=workers) as made:
        made.set_state(state)
        assert list(made) == [4, 5, 6, 7, 8]


def test_an_iterable_that_gives_less_than_before_is_an_error() -> None:
    long = iter(stook.DataLoader(iter(range(20))))
    for _ in range(15):
        next(long)
    state = long.get_state()
    short = stook.DataLoader(iter(range(9)))
    short.set_state(state)
    with pytest.raises(ValueError, match=r"stands at item 15 .* gave 9: it is not what"):
        list(short)


def test_taking_a_state_runs_no_user_code() -> None:
    asked: list[str] = []

    class Source(Counting):
        def get_state(self) -> dict[str, int]:
            asked.append("state")
            return super().get_state()

    elements = iter(stook.DataLoader(Source(5), lambda item: asked.append("item") or item))
    next(elements)
    before = list(asked)
    elements.get_state()
    assert asked == before


# ---- odd lengths ---------------------------------------------------------------------------------


class Long:
    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> int:
        assert 0 <= index < self.length
        return index


@each_kind_of_workers
@pytest.mark.parametrize("length", [10**12, 2**62])
@pytest.mark.parametrize("batch_size", [None, 1000])
def test_the_end_of_a_very_long_source(workers: int, length: int, batch_size: int | None) -> None:
    batches: Any = {"batch_size": batch_size, "collate": len} if batch_size else {}
    with loader(Long(length), workers=workers, shuffle=True, shard=(1, 7), **batches) as made:
        state = made.get_state()
        each = iter(made)
        first = next(each)
        state["position"] = len(made) - 2
        each.set_state(state)
        last = list(each)
        assert len(last) == 2
        assert batch_size is not None or first not in last
        each.set_state({**state, "position": 0})
        assert next(each) == first


@each_kind_of_workers
@pytest.mark.parametrize("length", [0, 1])
@pytest.mark.parametrize("kind", [Long, lambda length: iter(range(length))])
def test_hardly_any_elements(workers: int, length: int, kind: Any) -> None:
    with loader(kind(length), workers=workers) as made:
        elements = iter(made)
        states = [elements.get_state()]
        for _ in range(length):
            next(elements)
            states.append(elements.get_state())
        assert list(elements) == []
    for taken, state in enumerate(states):
        with loader(kind(length), workers=workers) as made:
            made.set_state(state)
            assert list(made) == list(range(taken, length))


def test_numbers_as_dealt_become_ordinals() -> None:
    for skip in ((), (0,), (1, 2, 5), (0, 1, 2), (7, 9)):
        dealt = [ordinal for ordinal in range(20) if ordinal not in skip]
        for lowest in range(10):
            for ahead in ((), (lowest + 1,), (lowest + 3, lowest + 2)):
                given, others = ordinals(skip, lowest, ahead)
                delivered = {*skip, *dealt[:lowest], *(dealt[number] for number in ahead)}
                assert set(range(given)) <= delivered
                assert given not in delivered
                assert others == sorted(each for each in delivered if each > given)
