"""`enable_profiling`: figures add up, copies have their true reasons, traces are on one clock."""

from __future__ import annotations

import dataclasses
import json
import os
import time
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import stook

KEPT: list[Any] = []
SIZE = 10_000  # of the arrays, in numbers: more than min_shared_bytes
OPTIONS = stook.MultiprocessingOptions(2, enable_profiling=True)
INLINE = stook.MultiprocessingOptions(enable_profiling=True)
THREADS = stook.MultithreadingOptions(2, enable_profiling=True)
BURN = 0.002


def burn(index: int) -> int:
    """Takes so much time of the clock at least, which is what is measured."""
    begin = time.perf_counter()
    while time.perf_counter() - begin < BURN:
        pass
    return index


def array_of(index: int) -> np.ndarray:
    return np.full(SIZE, index, np.float64)


class Squares:
    def __call__(self, array: np.ndarray) -> np.ndarray:
        return array * array


def stages(profile: stook.LoaderProfile) -> dict[str, stook.StageProfile]:
    return {stage.name: stage for stage in profile.stages}


@pytest.mark.parametrize("options", [INLINE, THREADS, OPTIONS], ids=["inline", "threads", "two"])
def test_each_stage_is_counted_by_its_name(options: Any, capfd: Any) -> None:
    with stook.DataLoader(range(20), [burn, array_of, Squares()], options=options) as loader:
        for _ in loader:
            pass
        profile = loader.profile()
    found = stages(profile)
    assert list(found)[:5] == ["source", "burn", "array_of", "Squares", "rest"]
    assert [found[name].calls for name in list(found)[:5]] == [20] * 5
    assert found["burn"].seconds >= 20 * BURN
    assert found["array_of"].bytes == found["Squares"].bytes == 20 * SIZE * 8
    assert profile.elements == 20
    assert profile.bytes == 20 * SIZE * 8
    work = sum(stage.seconds for stage in profile.stages)
    assert work + sum(profile.waits.values()) <= profile.worker_seconds * 1.001
    assert profile.consumer_seconds <= profile.seconds
    assert "burn" in capfd.readouterr().err
    if options is OPTIONS:
        assert found["encode"].calls == 20
        assert profile.bytes_encoded == profile.bytes


def test_passes_are_measured_each_by_itself() -> None:
    with stook.DataLoader(range(6), array_of, options=OPTIONS) as loader:
        first = iter(loader)
        list(first)
        before = first.profile()
        list(loader)
        assert stages(loader.profile())["array_of"].calls == 6
        assert first.profile() == dataclasses.replace(before, bytes_live=first.profile().bytes_live)


@pytest.mark.parametrize("options", [INLINE, OPTIONS], ids=["inline", "two"])
def test_batches_have_a_stage_of_assembling(options: Any) -> None:
    for arguments, name in (({}, "assemble"), ({"collate": np.stack}, "collate stack")):
        with stook.DataLoader(
            range(12), array_of, options=options, batch_size=4, **arguments
        ) as loader:
            assert len(list(loader)) == 3
            found = stages(loader.profile())
        assert found[name].calls == 3
        assert found[name].bytes == 12 * SIZE * 8
        assert found["array_of"].calls == found["source"].calls == 12


@pytest.mark.parametrize("options", [INLINE, OPTIONS], ids=["inline", "two"])
def test_a_policy_for_errors_changes_nothing(options: Any) -> None:
    with stook.DataLoader(
        range(12), array_of, options=options, batch_size=4, on_error="skip", retries=1
    ) as loader:
        list(loader)
        found = stages(loader.profile())
    assert found["assemble"].calls == 3
    assert found["array_of"].calls == 12


def test_sources_that_give_batches_and_iterables_are_stages() -> None:
    class Batches(list):  # type: ignore[type-arg]
        def __getitems__(self, indices: list[int]) -> list[int]:
            return [self[index] for index in indices]

    with stook.DataLoader(Batches(range(6)), array_of, options=INLINE, batch_size=3) as loader:
        list(loader)
        assert stages(loader.profile())["source"].calls == 2
    with stook.DataLoader((burn(i) for i in range(6)), array_of, options=OPTIONS) as loader:
        list(loader)
        profile = loader.profile()
        assert profile.source_in_parent
        assert stages(profile)["source"].seconds >= 6 * BURN


# ---- why leaves are copied -----------------------------------------------------------------------


def shared(array: np.ndarray) -> Any:
    KEPT[:] = [array]
    return {"x": array}


def in_shared_dict(array: np.ndarray) -> Any:
    KEPT[:] = [{"x": array}]
    return KEPT[0]


def view_of_shared(array: np.ndarray) -> Any:
    KEPT[:] = [array]
    return {"x": array[1:]}


def weakly_held(array: np.ndarray) -> Any:
    KEPT[:] = [weakref.ref(array)]
    return {"x": array}


def over_bytes(array: np.ndarray) -> Any:
    return {"x": np.frombuffer(array.tobytes(), np.uint8)}


class Own(np.ndarray):
    pass


def subclass(array: np.ndarray) -> Any:
    return {"x": array.view(Own)}


def objects(array: np.ndarray) -> Any:
    return {"x": np.array([array, None], dtype=object)}


def small(array: np.ndarray) -> Any:
    return {"x": array[:4].copy()}


def small_view(array: np.ndarray) -> Any:
    return {"x": array[: SIZE // 4]}


BEFORE = np.zeros(SIZE)


def made_before(_: np.ndarray) -> Any:
    return {"x": BEFORE.reshape(2, -1)}


@pytest.mark.parametrize(
    ("transform", "reason"),
    [
        (shared, "kept by 1 other reference"),
        (in_shared_dict, "the dict it is in is kept by 1 other reference"),
        (view_of_shared, "a view of an array that is kept by 1 other reference"),
        (weakly_held, "there is a weak reference to it"),
        (over_bytes, "its base is a bytes"),
        (subclass, "a subclass of ndarray (Own): pickled"),
        (objects, "object dtype"),
        (small, "smaller than min_shared_bytes (4096)"),
        (small_view, "a view that covers less than half of its block"),
        (made_before, "a view of an array that is kept by"),
    ],
)
def test_a_copy_has_its_reason_and_a_place(transform: Any, reason: str) -> None:
    with stook.DataLoader(range(4), [array_of, transform], options=OPTIONS) as loader:
        list(loader)
        profile = loader.profile()
    (copy,) = profile.copies
    assert copy.reason.startswith(reason)
    assert copy.leaves == 4
    assert copy.path == "['x']"


def test_what_is_moved_has_no_reason_and_paths_are_those_of_the_first_leaf() -> None:
    def nested(index: int) -> Any:
        KEPT[:] = [np.zeros(SIZE)]
        return [{"a": array_of(index), 7: (index, KEPT[0])}]

    with stook.DataLoader(range(4), nested, options=OPTIONS) as loader:
        list(loader)
        profile = loader.profile()
        stats = loader.stats()
    assert (profile.moved, profile.copied) == (stats.moved, stats.copied) == (4, 4)
    (copy,) = profile.copies
    assert copy.path == "[0][7][1]"
    assert copy.leaves == profile.copied
    assert copy.bytes == 4 * SIZE * 8


# ---- waits and traces ----------------------------------------------------------------------------


def test_workers_wait_for_a_trainer_that_does_not_ask() -> None:
    with stook.DataLoader(range(6), array_of, options=OPTIONS) as loader:
        elements = iter(loader)
        next(elements)
        # The window is full, and then this process is the one who is waited for.
        while elements.profile().waits["trainer"] == 0:
            pass
        assert elements.profile().elements == 1


def test_figures_of_a_worker_that_died_stay() -> None:
    def die_once(index: int) -> int:
        info = stook.worker_info()
        if index == 3 and info is not None and info.incarnation == 0:
            os._exit(3)
        return index

    options = stook.MultiprocessingOptions(1, enable_profiling=True)
    with stook.DataLoader(range(6), [burn, die_once], options=options) as loader:
        assert list(loader) == list(range(6))
        assert stages(loader.profile())["burn"].calls == 7


@pytest.mark.parametrize("options", [INLINE, THREADS, OPTIONS], ids=["inline", "threads", "two"])
def test_a_trace_is_on_one_clock(options: Any, tmp_path: Path) -> None:
    begin = time.perf_counter_ns() / 1000
    with stook.DataLoader(range(10), [burn, array_of], options=options) as loader:
        list(loader)
        loader.profile(trace=tmp_path / "x.json")
    end = time.perf_counter_ns() / 1000
    events = json.loads((tmp_path / "x.json").read_text())["traceEvents"]
    complete = [event for event in events if event["ph"] == "X"]
    times = [event["ts"] for event in complete]
    assert times == sorted(times)
    assert begin <= times[0]
    assert all(event["dur"] >= 0 and event["ts"] + event["dur"] <= end for event in complete)
    burns = [event for event in complete if event["name"] == "burn"]
    assert sorted(event["args"]["position"] for event in burns) == list(range(10))
    named = {event["pid"] for event in events if event["name"] == "process_name"}
    assert {event["pid"] for event in complete} <= named
    assert os.getpid() in named
    if options is OPTIONS:
        assert len(named) >= 2
        # Within the element that it is a part of, as the worker's clock has it.
        for event in burns:
            (whole,) = [
                other
                for other in complete
                if other["name"] == "element" and other["args"] == event["args"]
            ]
            assert whole["ts"] <= event["ts"]
            assert event["ts"] + event["dur"] <= whole["ts"] + whole["dur"] + 1


@pytest.mark.parametrize("options", [INLINE, OPTIONS], ids=["inline", "two"])
def test_states_and_bars_go_through(options: Any) -> None:
    with stook.DataLoader(range(8), hex, options=options, shuffle=True) as loader:
        elements = iter(loader)
        next(elements)
        state = loader.get_state()
        rest = list(elements)
        loader.set_state(state)
        assert list(loader) == rest


def test_a_failing_element_is_counted_and_raised() -> None:
    with stook.DataLoader([1, 0, 2], lambda x: 1 / x, options=OPTIONS) as loader:
        elements = iter(loader)
        assert next(elements) == 1.0
        with pytest.raises(ZeroDivisionError):
            next(elements)
        assert next(elements) == 0.5
        assert list(elements) == []
        assert [stage.calls for stage in loader.profile().stages][:2] == [3, 3]


def test_tasks_are_plain_without_profiling() -> None:
    """What runs for each element is the same function as ever, and nothing asks whether it is."""
    from stook._task import LoaderTask

    run = LoaderTask([1, 2], (hex,)).bind()
    assert type(run).__name__ == "function"
    names = run.__code__.co_names + run.__code__.co_freevars
    assert not any("profile" in name for name in names)
