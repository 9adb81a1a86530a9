"""Profiles with what a loader has beside: sources, filled batches, event loops, threads ahead."""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tqdm.auto

import stook
from stook._filled_plan import FilledPlan

SIZE = 10_000
OPTIONS = stook.MultiprocessingOptions(2, enable_profiling=True)
INLINE = stook.MultiprocessingOptions(enable_profiling=True)
THREADS = stook.MultithreadingOptions(2, enable_profiling=True)
FORKED = stook.MultiprocessingOptions(2, enable_profiling=True, start_method="fork")
BURN = 0.002
WAYS = ["inline", "threads", "two"]

each_way = pytest.mark.parametrize("options", [INLINE, THREADS, OPTIONS], ids=WAYS)


def burn(value: Any) -> Any:
    begin = time.perf_counter()
    while time.perf_counter() - begin < BURN:
        pass
    return value


def array_of(index: int) -> np.ndarray:
    return np.full(SIZE, index, np.float64)


def drawn(shard: int, count: int) -> Iterator[int]:
    yield from map(burn, range(shard, 12, count))


def calls(profile: stook.LoaderProfile) -> dict[str, int]:
    return {stage.name: stage.calls for stage in profile.stages}


def tables(text: str) -> list[str]:
    return re.findall(r"^stook: .*$", text, re.MULTILINE)


# ---- sources -------------------------------------------------------------------------------------


@each_way
@pytest.mark.parametrize("policy", [{}, {"on_error": "skip"}], ids=["raise", "skip"])
def test_a_source_that_is_read_in_the_workers_is_a_stage(
    options: Any, policy: Any, capfd: Any
) -> None:
    with stook.DataLoader(drawn, array_of, options=options, **policy) as loader:
        elements = iter(loader)
        assert sorted(int(element[0]) for element in elements) == list(range(12))
        profile = elements.profile()
        assert loader.profile() == profile
    found = {stage.name: stage for stage in profile.stages}
    assert list(found)[:3] == ["source", "array_of", "rest"]
    assert found["source"].seconds >= 12 * BURN
    assert found["array_of"].calls == 12
    assert found["array_of"].bytes == 12 * SIZE * 8
    assert profile.elements == 12  # the answers that a shard is over are none
    assert not profile.source_in_parent
    (line,) = tables(capfd.readouterr().err)
    assert line.startswith("stook: 12 elements, ")


@each_way
def test_batches_of_such_a_source_are_assembled(options: Any) -> None:
    with stook.DataLoader(drawn, array_of, options=options, batch_size=3) as loader:
        assert sum(len(batch) for batch in loader) == 12
        found = calls(loader.profile())
    assert found["array_of"] == 12
    assert found["assemble"] in (4, 5)


def test_items_that_the_consumer_draws_are_counted_without_the_end(capfd: Any) -> None:
    with stook.DataLoader((i for i in range(5)), options=OPTIONS) as loader:
        list(loader)
        assert calls(loader.profile())["source"] == 5


@each_way
def test_batches_are_filled_as_without_a_profile(options: Any, monkeypatch: Any) -> None:
    def odd_is_left_out(index: int) -> Any:
        return stook.SKIP if index % 2 else np.int64(index)

    settled = []
    settle = FilledPlan.settle
    monkeypatch.setattr(
        FilledPlan,
        "settle",
        lambda self, *arguments: settled.append(1) or settle(self, *arguments),
    )
    with stook.DataLoader(
        range(20), odd_is_left_out, options=options, batch_size=4, fill_batches=True
    ) as loader:
        elements = iter(loader)
        batches = [next(elements).tolist()]
        state = elements.get_state()
        assert (state["position"], state["item"]) == (1, 7)
        batches += [batch.tolist() for batch in elements]
        assert batches == [[0, 2, 4, 6], [8, 10, 12, 14], [16, 18]]
        elements.set_state(state)
        assert [batch.tolist() for batch in elements] == batches[1:]
        assert calls(elements.profile())["odd_is_left_out"] >= 20
    assert bool(settled) == (options is not OPTIONS)  # there it is C++ that does


# ---- event loops, threads ahead, bars ------------------------------------------------------------


@each_way
def test_coroutines_wait_and_are_measured(options: Any, capfd: Any) -> None:
    async def main() -> int:
        count = 0
        async for _ in loader:
            count += 1
        return count

    with stook.DataLoader(range(10), [burn, array_of], options=options) as loader:
        assert asyncio.run(main()) == 10
        profile = loader.profile()
    assert profile.elements == 10
    assert 0 < profile.consumer_seconds <= profile.seconds
    assert len(tables(capfd.readouterr().err)) == 1


@each_way
def test_the_function_of_a_thread_ahead_is_measured_and_so_is_who_waits_for_it(
    options: Any, capfd: Any, tmp_path: Any
) -> None:
    def doubled(array: np.ndarray) -> Any:
        return burn(int(2 * array[0]))

    with stook.DataLoader(range(10), array_of, options=options) as loader:
        elements = loader.prefetch_to(doubled)
        assert list(elements) == [2 * index for index in range(10)]
        profile = elements.profile(trace=tmp_path / "x.json")
        assert loader.profile() == elements.profile()
    assert profile.prefetch is not None
    assert profile.prefetch.name.startswith("prefetch_to ")
    assert profile.prefetch.name.endswith("doubled")
    assert profile.prefetch.calls == 10
    assert profile.prefetch.seconds >= 10 * BURN
    # Of the trainer in its next(), not of the thread in that of the workers.
    assert profile.consumer_seconds >= BURN
    assert profile.elements == 10
    assert calls(profile)["array_of"] == 10
    assert "doubled" in capfd.readouterr().err
    assert '"prefetch_to"' in (tmp_path / "x.json").read_text()


def test_states_go_through_a_measured_thread_ahead() -> None:
    with stook.DataLoader(range(12), array_of, options=OPTIONS, shuffle=True) as loader:
        elements = loader.prefetch_to(lambda array: int(array[0]))
        found = [next(elements) for _ in range(5)]
        state, of_loader = elements.get_state(), loader.get_state()
        assert state == of_loader
        assert state["position"] == 5
        rest = list(elements)
        assert sorted(found + rest) == list(range(12))
        elements.set_state(state)
        assert list(elements) == rest
        elements.close()
        loader.set_state(state)
        assert [int(array[0]) for array in loader] == rest


@pytest.mark.parametrize("way", ["for", "async for", "prefetch_to"])
def test_the_bar_is_closed_before_the_table_is_printed(
    way: str, monkeypatch: Any, capfd: Any
) -> None:
    class Bar:
        def __init__(self, **settings: Any) -> None:
            pass

        def update(self, count: int) -> None:
            pass

        def set_postfix_str(self, text: str, refresh: bool) -> None:
            pass

        def close(self) -> None:
            os.write(2, b"bar closed\n")

    monkeypatch.setattr(tqdm.auto, "tqdm", Bar)

    async def run() -> None:
        async for _ in loader:
            pass

    with stook.DataLoader(range(4), array_of, options=INLINE, progress=True) as loader:
        if way == "for":
            list(loader)
        elif way == "async for":
            asyncio.run(run())
        else:
            list(loader.prefetch_to(burn))
        assert loader.profile().elements == 4
        assert loader.profile().consumer_seconds > 0
    err = capfd.readouterr().err
    assert len(tables(err)) == 1
    assert err.index("stook: ") > err.rindex("bar closed")


# ---- the ends of passes --------------------------------------------------------------------------


@each_way
def test_a_pass_that_is_left_early_has_its_table_too(options: Any, capfd: Any) -> None:
    with stook.DataLoader(range(10), hex, options=options) as loader:
        for _ in loader:
            break
        (line,) = tables(capfd.readouterr().err)
        assert line.startswith("stook: 1 elements, ")
        elements = iter(loader)
        next(elements)
        next(elements)
        loader.close()
        (line,) = tables(capfd.readouterr().err)
        assert line.startswith("stook: 2 elements, ")
        assert elements.profile().elements == loader.profile().elements == 2


def test_workers_that_are_forks_of_this_process_write_their_figures() -> None:
    with stook.DataLoader(range(6), [burn, array_of], options=FORKED) as loader:
        list(loader)
        profile = loader.profile()
        assert calls(profile)["burn"] == calls(profile)["encode"] == 6
        assert profile.moved == 6
        list(loader)
        assert calls(loader.profile())["burn"] == 6


def test_a_new_source_has_new_workers_and_figures_of_its_own() -> None:
    with stook.DataLoader(range(6), array_of, options=OPTIONS) as loader:
        list(loader)
        first = loader.profile()
        loader.update(range(9))
        list(loader)
        second = loader.profile()
    assert (calls(first)["array_of"], calls(second)["array_of"]) == (6, 9)
    assert second.worker_seconds <= second.seconds * 2


def test_two_hundred_passes_leave_descriptors_and_memory_as_they_were() -> None:
    def mapped() -> int:
        with open("/proc/self/maps") as maps:
            return sum("stook-profile" in line for line in maps)

    with stook.DataLoader(range(2), hex, options=OPTIONS) as loader:
        for _ in range(3):
            list(loader)
        before = len(os.listdir("/proc/self/fd")), mapped()
        for number in range(200):
            elements = iter(loader)
            next(elements)
            if number % 2:
                list(elements)
        del elements
        assert (len(os.listdir("/proc/self/fd")), mapped()) == before
    for _ in range(3):
        with stook.DataLoader(range(2), hex, options=OPTIONS) as loader:
            list(loader)
    del loader
    assert mapped() == 0


@each_way
def test_counts_are_those_of_stats(options: Any) -> None:
    def zero_fails(index: int) -> Any:
        return 1 / index

    with stook.DataLoader(range(8), zero_fails, options=options, on_error="skip") as loader:
        elements = iter(loader)
        list(elements)
        stats, profile = elements.stats(), elements.profile()
        assert (stats.elements, stats.errors) == (7, 1)
        assert (profile.elements, profile.bytes) == (stats.elements, stats.bytes)
        assert loader.stats().elements == 7
        assert calls(profile)["zero_fails"] == 8
