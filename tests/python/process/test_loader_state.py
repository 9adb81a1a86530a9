"""States: a pass goes on exactly where one was taken, after every element, whoever runs it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import pytest
from process_loader import made

import stook
from conftest import RunPython

LENGTH = 11


def make(index: int) -> Any:
    """An element with a draw; every fifth fails, each time in another way."""
    if index % 5 == 3:
        raise (ValueError, StopIteration, KeyboardInterrupt)[index // 5](index)
    if index % 7 == 6:
        return stook.SKIP
    return index, stook.rng().random()


class Items:
    """An iterable without a length or a state."""

    def __iter__(self) -> Iterator[int]:
        return iter(range(LENGTH))


class Backwards:
    """A sampler whose order depends on the epoch."""

    def __init__(self) -> None:
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        yield from ((index + self.epoch) % LENGTH for index in reversed(range(LENGTH)))


SETTINGS: dict[str, dict[str, Any]] = {
    "indexed": {},
    "batches": {"batch_size": 3},
    "whole batches": {"batch_size": 4, "drop_remainder": True},
    "shuffled": {"shuffle": True},
    "shuffled batches": {"shuffle": True, "batch_size": 2, "num_epochs": 3},
    "skipped": {"on_error": "skip", "batch_size": 2},
    "shard": {"shuffle": True, "shard": (1, 3), "num_epochs": 3},
    "iterable": {"source": Items()},
    "iterable batches": {"source": Items(), "batch_size": 4, "num_epochs": 3},
    "iterable shard": {"source": Items(), "batch_size": 2, "shard": (1, 2)},
    "sampler": {"sampler": Backwards()},
    "sampler batches": {"sampler": Backwards(), "batch_size": 3, "num_epochs": 3},
}
WORKERS = [(0, 1), (1, 1), (2, 1), (2, 3), (5, 2), (-1, 1), (-3, 2)]  # below 0: threads


@contextlib.contextmanager
def loader_of(
    workers: int, buffer: int, source: Any, *transform: Any, **settings: Any
) -> Iterator[stook.DataLoader]:
    """A loader with so many workers or threads; it is closed at the end."""
    if workers < 0:
        options = stook.MultithreadingOptions(-workers, per_thread_buffer_size=buffer)
        with stook.DataLoader(source, *transform, options=options, **settings) as loader:
            yield loader
    else:
        sizes = {"num_workers": workers, "per_worker_buffer_size": buffer}
        with made("fork", source, *transform, **sizes, **settings) as loader:
            yield loader


def outcome(elements: Any) -> Any:
    """The next element, or what is known of its error; `None` at the end."""
    try:
        return next(elements)
    except StopIteration:
        return None
    except Exception as error:
        return type(error).__name__, str(error)


def outcomes(elements: Any) -> list[Any]:
    return list(iter(lambda: outcome(elements), None))


def arguments(settings: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    settings = {"num_epochs": 2, **settings}
    if "batch_size" in settings:
        settings["collate"] = tuple
    return settings.pop("source", range(LENGTH)), settings


def saved(elements: Any) -> str:
    text = json.dumps(elements.get_state())
    assert len(text) < 500
    return text


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize(("workers", "buffer"), WORKERS)
def test_every_state_is_exact(name: str, workers: int, buffer: int) -> None:
    source, settings = arguments(SETTINGS[name])
    plain = outcomes(iter(stook.DataLoader(source, make, **settings)))
    assert len(plain) >= 4
    there = iter(stook.DataLoader(source, make, **settings))
    with loader_of(workers, buffer, source, make, **settings) as loader:
        elements = iter(loader)
        states = [saved(elements)]
        for expected in plain:
            assert outcome(elements) == expected
            states.append(saved(elements))
        assert outcome(elements) is None
        for done, state in enumerate(states):
            elements.set_state(json.loads(state))
            assert saved(elements) == state
            # Here, by the same iterator and workers; in turn to the end and not.
            rest = plain[done:]
            upto = len(rest) + 1 if done % 3 == 0 else 1
            for expected in [*rest, None][:upto]:
                assert outcome(elements) == expected
            there.set_state(json.loads(state))
            assert outcomes(there) == rest
        assert loader.stats().restarts == 0


@pytest.mark.parametrize("name", ["indexed", "shuffled batches", "iterable", "sampler"])
@pytest.mark.parametrize(("workers", "buffer"), WORKERS)
def test_without_an_order_each_element_comes_once(name: str, workers: int, buffer: int) -> None:
    source, settings = arguments(SETTINGS[name])
    plain = sorted(map(repr, outcomes(iter(stook.DataLoader(source, make, **settings)))))
    there = iter(stook.DataLoader(source, make, **settings))
    with loader_of(workers, buffer, source, make, **settings, ordered=False) as loader:
        first = iter(loader)
        seen: list[str] = []
        states = [(saved(first), list(seen))]
        for found in iter(lambda: outcome(first), None):
            seen.append(repr(found))
            states.append((saved(first), list(seen)))
        for state, before in states:
            there.set_state(json.loads(state))
            assert sorted(before + [repr(found) for found in outcomes(there)]) == plain
            # Broken off a second time, by whoever is ahead then.
            again = iter(loader)
            again.set_state(json.loads(state))
            more = [repr(found) for found in (outcome(again), outcome(again)) if found is not None]
            there.set_state(json.loads(saved(again)))
            rest = [repr(found) for found in outcomes(there)]
            assert sorted(before + more + rest) == plain


@pytest.mark.parametrize("workers", [0, 2, -2])
def test_another_process_goes_on(run_python: RunPython, workers: int) -> None:
    code = """
        import json, sys
        import stook

        def make(index):
            return index, stook.rng().random()

        def loader(workers):
            if workers < 0:
                options = stook.MultithreadingOptions(-workers)
            else:
                options = stook.MultiprocessingOptions(num_workers=workers)
            return stook.DataLoader(
                range(20), make, options=options, batch_size=3, shuffle=True, seed=None,
                num_epochs=2, collate=lambda items: [index for index, _ in items],
            )

        workers, state = int(sys.argv[1]), json.loads(sys.argv[2])
        made = loader(workers)
        if state is None:
            elements = iter(made)
            seen = [next(elements) for _ in range(9)]
            print(json.dumps([made.get_state(), seen, list(elements)]))
        else:
            made.set_state(state)
            print(json.dumps(list(made)))
    """
    state, _, rest = json.loads(run_python(code, "1", "null").check().stdout)
    assert state["seed"] is None
    then = json.loads(run_python(code, str(workers), json.dumps(state)).check().stdout)
    assert then == rest


def test_setting_a_state_keeps_the_workers() -> None:
    with made("fork", range(9), lambda index: (stook.worker_info().pid, index)) as loader:
        elements = iter(loader)
        state = elements.get_state()
        pids = {pid for pid, _ in elements}
        for _ in range(5):
            elements.set_state(state)
            found = list(elements)
            assert [index for _, index in found] == list(range(9))
            pids |= {pid for pid, _ in found}
        loader.set_state(state)
        pids |= {pid for pid, _ in loader}
    assert len(pids) <= 2


class Closing:
    """A source that says when its iterator was let go."""

    def __init__(self) -> None:
        self.open = 0

    def __iter__(self) -> Iterator[int]:
        self.open += 1
        try:
            yield from range(1000)
        finally:
            self.open -= 1


@pytest.mark.parametrize("workers", [0, 2, -2])
def test_what_was_dealt_before_is_let_go(workers: int) -> None:
    source = Closing()
    with loader_of(workers, 1, source) as loader:
        elements = iter(loader)
        state = elements.get_state()
        for _ in range(3):
            assert next(elements) == 0
            assert source.open == 1
            elements.set_state(state)
        del elements
