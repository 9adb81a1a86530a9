"""A loader over threads: what it promises with worker processes, and what differs."""

from __future__ import annotations

import dataclasses
import itertools
import random
import threading
import warnings
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from loader_cases import outcomes

import stook
from conftest import RunPython
from leftovers import wait_until
from stook import _random

DEADLINE = 60


@pytest.fixture(autouse=True)
def no_element_of_another_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests of what runs in workers leave this thread with the last element they made."""
    monkeypatch.setattr(_random.current, "element", None)


@pytest.fixture(autouse=True)
def no_waking_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wake-up that does not come must not be made up for within a second."""
    monkeypatch.setattr("stook._threads_loader.LONGEST_SLEEP", 1000.0)


def loader(source: Any, *arguments: Any, threads: int = 3, **settings: Any) -> stook.DataLoader:
    """A loader with so many threads."""
    options = stook.MultithreadingOptions(threads)
    return stook.DataLoader(source, *arguments, options=options, **settings)


def each_way(source: Any, transform: Any, **settings: Any) -> Iterator[stook.DataLoader]:
    """The same loader with threads (one, several, none) and with worker processes."""
    options: list[Any] = [stook.MultithreadingOptions(count) for count in (0, 1, 3)]
    for option in (*options, stook.MultiprocessingOptions(2)):
        with stook.DataLoader(source, transform, options=option, **settings) as made:
            yield made


def plain(tree: Any) -> Any:
    """A tree with lists in place of arrays, to be compared."""
    if isinstance(tree, dict):
        return {key: plain(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [plain(value) for value in tree]
    return tree.tolist() if isinstance(tree, np.ndarray) else tree


# ---- the same as with processes ------------------------------------------------------------------


def describe(index: int) -> dict[str, Any]:
    draws = stook.rng()
    return {
        "array": np.full(3, index),
        "float": float(draws.random()),
        "more": int(stook.rng().integers(1 << 40)),  # the same generator, going on
    }


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"batch_size": 4},
        {"batch_size": 4, "drop_remainder": True},
        {"batch_size": 3, "collate": list},
        {"shuffle": True, "seed": 5, "num_epochs": 3},
        {"seed": 2**64 - 1},
    ],
    ids=str,
)
def test_the_same_elements_as_in_processes(settings: dict[str, Any]) -> None:
    passes = [
        [[plain(element) for element in made] for _ in range(2)]
        for made in each_way(range(10), describe, **settings)
    ]
    assert passes[0] == passes[1] == passes[2] == passes[3]


def test_the_same_elements_of_an_iterable() -> None:
    ways = [list(made) for made in each_way(({4, 5, 6}), lambda item: item * 2, num_epochs=2)]
    assert ways[0] == ways[1] == ways[2] == ways[3]


def fail(index: int) -> int:
    if index % 3 == 1:
        raise [LookupError, StopIteration, KeyError][index // 3 % 3](index)
    return index


@pytest.mark.parametrize("batch_size", [None, 2])
def test_the_same_errors_as_in_processes(batch_size: int | None) -> None:
    ways = [
        (outcomes(iter(made)), made.stats().errors, made.stats().elements)
        for made in each_way(range(11), fail, batch_size=batch_size)
    ]
    text = [str(way) for way in ways]
    assert text[0] == text[1] == text[2] == text[3]
    assert "while loading element" in text[0]


def test_an_error_has_the_traceback_of_its_thread() -> None:
    with loader([1], fail) as elements:
        with pytest.raises(LookupError) as caught:
            next(iter(elements))
    assert caught.traceback[-1].name == "fail"


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, GeneratorExit])
def test_what_would_end_the_program_is_an_element_error(error: type[BaseException]) -> None:
    def transform(_: Any) -> None:
        raise error("by user code")

    with loader([1], transform) as elements:
        with pytest.raises(stook.ElementError, match="element 0") as caught:
            next(iter(elements))
    assert isinstance(caught.value.__cause__, error)


def test_an_error_of_the_source_comes_after_its_elements() -> None:
    def source() -> Iterator[int]:
        yield from range(5)
        raise OSError("the disk is gone")

    with loader(source()) as elements:
        iterator = iter(elements)
        assert [next(iterator) for _ in range(5)] == list(range(5))
        with pytest.raises(OSError, match="the disk is gone"):
            next(iterator)
        assert list(iterator) == []


def test_the_source_is_iterated_where_the_loader_is() -> None:
    def source() -> Iterator[int]:
        for _ in range(20):
            yield threading.get_ident()

    with loader(source()) as elements:
        assert set(elements) == {threading.get_ident()}


@pytest.mark.parametrize("ordered", [True, False])
def test_the_window_bounds_what_is_drawn(ordered: bool) -> None:
    drawn: list[int] = []
    first = threading.Event()

    def source() -> Iterator[int]:
        for value in itertools.count():
            drawn.append(value)
            yield value

    def transform(value: int) -> int:
        if value == 0 and not ordered:
            assert first.wait(DEADLINE)
        return value

    with loader(source(), transform, threads=2, ordered=ordered) as elements:
        iterator = iter(elements)
        if ordered:
            for taken in range(50):
                assert next(iterator) == taken
                assert len(drawn) <= taken + 4
        else:
            # Counted from the lowest element not delivered, which is stuck.
            assert sorted(next(iterator) for _ in range(3)) == [1, 2, 3]
            assert drawn == [0, 1, 2, 3]
            first.set()
            assert next(iterator) == 0
            assert len(drawn) <= 8


def test_unordered_gives_every_element_once() -> None:
    with loader(range(200), threads=3, ordered=False) as elements:
        assert sorted(elements) == list(range(200))


def test_stats_count_as_in_processes() -> None:
    counts = [
        (list(made), dataclasses.astuple(made.stats())[:2], made.stats().errors)[1:]
        for made in each_way(range(5), lambda index: {"a": np.zeros((index, 100))})
    ]
    assert counts == [((5, 10 * 800), 0)] * 4


def test_update_takes_another_source() -> None:
    with loader([1, 2]) as elements:
        iterator = iter(elements)
        assert next(iterator) == 1
        elements.update([3])
        assert list(iterator) == [2]
        assert list(elements) == [3]


# ---- the element's generator ---------------------------------------------------------------------


def test_the_generator_depends_on_seed_epoch_and_position() -> None:
    draws = [
        float(draw)
        for seed in range(4)
        for draw in stook.DataLoader(
            range(6), lambda _: stook.rng().random(), seed=seed, num_epochs=3
        )
    ]
    assert len(set(draws)) == 4 * 6 * 3
    # Must never change: who stored a seed wants the same data again.
    assert list(stook.DataLoader([0], lambda _: stook.rng().integers(1 << 40))) == [700346781657]


def test_without_a_seed_the_generator_is_the_systems() -> None:
    for made in each_way([1, 2], lambda _: stook.rng().random(), seed=None):
        assert len({*made, *made}) == 4


def test_outside_of_an_element_there_is_no_generator() -> None:
    with pytest.raises(stook.StookError, match="this thread makes none"):
        stook.rng()
    for made in each_way([1], lambda _: stook.rng().random()):
        list(made)
        with pytest.raises(stook.StookError, match="this thread makes none"):
            stook.rng()


def test_a_loader_within_an_element_has_generators_of_its_own() -> None:
    def transform(_: int) -> tuple[float, ...]:
        before = stook.rng().random()
        inner = list(stook.DataLoader([1], lambda _: stook.rng().random(), seed=9))
        return (before, *inner, stook.rng().random())

    ways = [list(made) for made in each_way(range(3), transform)]
    assert ways[0] == ways[1] == ways[2] == ways[3]
    bare = stook.DataLoader(range(3), lambda _: tuple(stook.rng().random(2)))
    assert [(first, last) for first, _, last in ways[0]] == list(bare)


@pytest.mark.parametrize(
    ("draw", "name"),
    [(random.random, "Python's random"), (np.random.rand, "numpy.random")],
    ids=["random", "numpy"],
)
def test_draws_from_global_generators_are_told(draw: Any, name: str) -> None:
    with loader(range(20), lambda _: draw()) as elements:
        with pytest.warns(RuntimeWarning, match=f"drew from {name}.*stook.rng") as told:
            list(elements)
        assert [warning.filename for warning in told] == [__file__]
        list(elements)  # told once


def test_the_consumers_own_draws_are_not_told() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with loader(range(50), lambda _: stook.rng().random()) as elements:
            for _ in elements:
                random.random()
                np.random.rand()
        with loader(range(20), lambda _: random.random(), seed=None) as elements:
            list(elements)


def test_the_global_generators_are_left_alone() -> None:
    random.seed(3)
    np.random.seed(3)
    expected = random.random(), np.random.rand()
    random.seed(3)
    np.random.seed(3)
    with loader(range(20), lambda _: stook.rng().random()) as elements:
        list(elements)
    assert (random.random(), np.random.rand()) == expected


# ---- threads -------------------------------------------------------------------------------------


def test_elements_are_made_in_threads_at_once() -> None:
    together = threading.Barrier(3, timeout=DEADLINE)

    def transform(_: int) -> int:
        together.wait()
        return threading.get_ident()

    with loader(range(6), transform, threads=3) as elements:
        first = set(elements)
        assert len(first) == 3
        assert threading.get_ident() not in first
        assert set(elements) == first  # the next pass, by the same threads


def test_nothing_is_copied() -> None:
    array = np.zeros(100_000)
    with loader([array]) as elements:
        assert next(iter(elements)) is array


def test_close_does_not_wait_for_what_is_stuck() -> None:
    gate, inside = threading.Event(), threading.Event()

    def transform(index: int) -> None:
        if index > 0:
            inside.set()
            assert gate.wait(DEADLINE)

    elements = loader(range(100), transform, threads=1)
    iterator = iter(elements)
    next(iterator)
    assert inside.wait(DEADLINE)
    elements.close()
    with pytest.raises(stook.StookError, match="this iterator is closed"):
        next(iterator)
    gate.set()


def test_close_in_another_thread_wakes_who_waits() -> None:
    gate, inside = threading.Event(), threading.Event()

    def transform(_: int) -> None:
        inside.set()
        assert gate.wait(DEADLINE)

    elements = loader([1], transform, threads=1)
    iterator = iter(elements)
    raised: list[BaseException] = []

    def consume() -> None:
        try:
            next(iterator)
        except BaseException as error:
            raised.append(error)

    consumer = threading.Thread(target=consume)
    consumer.start()
    assert inside.wait(DEADLINE)
    iterator.close()
    consumer.join(DEADLINE)
    gate.set()
    assert [type(error) for error in raised] == [stook.StookError]
    elements.close()


def test_a_pass_that_was_left_early_makes_no_more() -> None:
    made: list[int] = []
    with loader(range(10**6), made.append, threads=2) as elements:
        with iter(elements) as iterator:
            next(iterator)
        assert next(iter(elements)) is None
    assert len(made) < 20


def test_threads_may_share_an_iterator() -> None:
    found: list[int] = []
    with loader(range(300), threads=2) as elements:
        iterator = iter(elements)
        consumers = [threading.Thread(target=found.extend, args=(iterator,)) for _ in range(4)]
        for consumer in consumers:
            consumer.start()
        for consumer in consumers:
            consumer.join(DEADLINE)
    assert sorted(found) == list(range(300))


def test_a_source_cannot_ask_its_own_iterator() -> None:
    def source() -> Iterator[int]:
        yield 1
        next(iterator)

    elements = stook.DataLoader(source(), options=stook.MultithreadingOptions(1, 4))
    iterator = iter(elements)
    assert next(iterator) == 1
    with pytest.raises(stook.StookError, match="by the source"):
        next(iterator)
    elements.close()


def test_a_dropped_loader_ends_its_threads() -> None:
    elements = loader(range(5))
    assert list(elements) == list(range(5))
    assert any(thread.name.startswith("stook-loader") for thread in threading.enumerate())
    dropped = weakref.ref(elements)
    del elements
    assert dropped() is None
    assert wait_until(
        lambda: not any(t.name.startswith("stook-loader") for t in threading.enumerate()), DEADLINE
    )


def test_what_was_delivered_is_let_go() -> None:
    class Thing:
        pass

    with loader(range(4), lambda _: Thing()) as elements:
        iterator = iter(elements)
        gone = weakref.ref(next(iterator))
        assert gone() is None


def test_options_say_what_is_wrong() -> None:
    with pytest.raises(TypeError, match=r"num_threads must be an int of at least 0.*got 'two'"):
        stook.MultithreadingOptions("two")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="per_thread_buffer_size must be an int of at least 1"):
        stook.MultithreadingOptions(2, 0)
    with pytest.raises(TypeError, match=r"stook.MultithreadingOptions, got 2"):
        stook.DataLoader([1], options=2)  # type: ignore[arg-type]
    with pytest.raises(dataclasses.FrozenInstanceError):
        stook.MultithreadingOptions(2).num_threads = 3  # type: ignore[misc]
    assert "num_threads=2" in repr(loader([1], threads=2))


# ---- the end of the program, and forks -----------------------------------------------------------


@pytest.mark.parametrize("ending", ["", "del loader, iterator", "sys.exit(3)", "1 / 0"])
def test_the_interpreter_ends_with_elements_under_way(run_python: RunPython, ending: str) -> None:
    code = f"""
        import stook, sys, threading
        started = threading.Event()
        def stuck(index):
            if index > 0:
                started.set()
                threading.Event().wait()
        loader = stook.DataLoader(range(9), stuck, options=stook.MultithreadingOptions(2))
        iterator = iter(loader)
        next(iterator)
        started.wait()
        {ending}
    """
    done = run_python(code, deadline=DEADLINE)
    assert done.returncode == {"sys.exit(3)": 3, "1 / 0": 1}.get(ending, 0)


def test_a_forked_child_is_told(run_python: RunPython) -> None:
    code = """
        import os, stook
        loader = stook.DataLoader(range(9), options=stook.MultithreadingOptions(2))
        iterator = iter(loader)
        print(next(iterator), flush=True)
        if os.fork() == 0:
            for call in (lambda: next(iterator), lambda: iter(loader)):
                try:
                    call()
                except stook.StookError as error:
                    print("told:", "forked child" in str(error), flush=True)
            loader.close()
            os._exit(0)
        os.wait()
        print(list(iterator))
    """
    done = run_python(code, deadline=DEADLINE, flags=("-X", "dev")).check()
    assert done.stdout.splitlines() == [
        "0",
        "told: True",
        "told: True",
        "[1, 2, 3, 4, 5, 6, 7, 8]",
    ]


def test_ctrl_c_ends_a_wait_and_loses_nothing(run_python: RunPython) -> None:
    code = """
        import signal, stook, threading
        gate = threading.Event()
        def transform(index):
            if index == 0 and not gate.is_set():
                signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
                gate.wait()
            return index
        loader = stook.DataLoader(range(5), transform, options=stook.MultithreadingOptions(2))
        try:
            iterator = iter(loader)
            next(iterator)
        except KeyboardInterrupt:
            gate.set()
        print(list(iterator))
    """
    done = run_python(code, deadline=DEADLINE).check()
    assert done.stdout == "[0, 1, 2, 3, 4]\n"
