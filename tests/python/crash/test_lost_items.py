"""Items that cost a worker its life, or too much time: with a policy they are lost alone."""

from __future__ import annotations

import ctypes
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import stook

LENGTH = 14
SECONDS = 0.2
DEADLY = frozenset({2, 5, 6, 13})
SURVIVORS = [index for index in range(LENGTH) if index not in DEADLY]

each_number = pytest.mark.parametrize("workers", [1, 2, 5])
each_batch = pytest.mark.parametrize("batch_size", [None, 4])


def kill(_: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def leave(_: int) -> None:
    os._exit(0)


def crash(_: int) -> None:
    ctypes.string_at(0)


def hang(_: int) -> None:
    while True:
        time.sleep(60)


WAYS: dict[str, tuple[Callable[[int], Any], int]] = {
    "killed": (kill, -signal.SIGKILL),
    "exit": (leave, 0),
    "crash": (crash, -signal.SIGSEGV),
}
each_way = pytest.mark.parametrize("way", WAYS)


def loader(transform: Any, workers: int = 2, **settings: Any) -> stook.DataLoader:
    fields = {
        name: settings.pop(name)
        for name in ("timeout", "max_restarts", "on_worker_death")
        if name in settings
    }
    options = stook.MultiprocessingOptions(workers, start_method="fork", **fields)
    return stook.DataLoader(range(LENGTH), transform, options=options, **settings)


def dies(way: str, deadly: frozenset[int] = DEADLY) -> Callable[[int], Any]:
    end = WAYS[way][0]

    def transform(index: int) -> Any:
        if index in deadly:
            end(index)
        return index

    return transform


def batches(items: list[Any]) -> list[list[Any]]:
    """Of items by their index, where every four are a batch."""
    found = [[i for i in items if abs(i) // 4 == number] for number in range(4)]
    return [batch for batch in found if batch]


@each_way
@each_number
@each_batch
def test_only_what_costs_a_worker_is_skipped(
    way: str, workers: int, batch_size: int | None
) -> None:
    with loader(
        dies(way), workers, batch_size=batch_size, max_restarts=1, on_error="skip"
    ) as elements:
        found = list(elements)
        stats = elements.stats()
    if batch_size is None:
        assert found == SURVIVORS
    else:
        assert [batch.tolist() for batch in found] == batches(SURVIVORS)
    assert stats.errors == len(DEADLY)
    assert stats.restarts == 2 * len(DEADLY)


@each_way
@each_batch
@pytest.mark.parametrize("ordered", [True, False])
def test_what_costs_a_worker_is_replaced(way: str, batch_size: int | None, ordered: bool) -> None:
    code = WAYS[way][1]

    def tell(error: stook.ElementError) -> int:
        cause = error.__cause__
        assert isinstance(cause, stook.WorkerDied)
        assert cause.exit_code == code
        assert cause.signal == (signal.Signals(-code) if code < 0 else None)
        assert cause.index == error.index
        assert cause.item_index == error.item_index
        assert cause.worker in range(2)
        assert "its process id was" in cause.detail
        assert error.item_index is not None
        return -error.item_index

    with loader(
        dies(way),
        batch_size=batch_size,
        ordered=ordered,
        on_worker_death="raise",
        on_error=tell,
    ) as elements:
        found = [element if batch_size is None else element.tolist() for element in elements]
        assert elements.stats().errors == len(DEADLY)
    items = [-index if index in DEADLY else index for index in range(LENGTH)]
    want = items if batch_size is None else batches(items)
    assert found == want if ordered else sorted(found, key=repr) == sorted(want, key=repr)


@pytest.mark.parametrize("ordered", [True, False])
def test_all_items_of_a_batch_may_be_lost(ordered: bool) -> None:
    with loader(
        dies("killed", frozenset(range(4, 8))),
        batch_size=4,
        ordered=ordered,
        on_worker_death="raise",
        on_error="skip",
    ) as elements:
        found = sorted(batch.tolist() for batch in elements)
    assert found == [[0, 1, 2, 3], [8, 9, 10, 11], [12, 13]]


def test_losses_and_errors_of_one_batch_are_each_their_own() -> None:
    def transform(index: int) -> int:
        if index == 1:
            kill(index)
        if index == 2:
            raise ValueError("two")
        return index

    seen = []

    with loader(
        transform,
        batch_size=4,
        on_worker_death="raise",
        on_error=lambda error: {"WorkerDied": -1, "ValueError": -2}[type(error.__cause__).__name__],
    ) as elements:
        for batch in elements:
            seen.append(batch.tolist())
    assert seen[0] == [0, -1, -2, 3]


@each_batch
def test_a_policy_that_costs_workers_is_not_asked_for_ever(batch_size: int | None) -> None:
    def transform(index: int) -> int:
        if index == 2:
            raise ValueError("two")
        return index

    with loader(
        transform, batch_size=batch_size, on_worker_death="raise", on_error=lambda e: kill(0)
    ) as elements:
        iterator = iter(elements)
        found: list[Any] = []
        while True:
            try:
                element = next(iterator)
            except StopIteration:
                break
            except stook.WorkerDied as error:
                assert error.item_index == 2
                found.append("died")
            else:
                found.append(element if batch_size is None else element.tolist())
    if batch_size is None:
        assert found == ["died" if index == 2 else index for index in range(LENGTH)]
    else:
        assert found == ["died", *batches(list(range(4, LENGTH)))]


def test_a_collate_that_costs_workers_costs_its_batch() -> None:
    def collate(items: list[int]) -> list[int]:
        if 5 in items:
            kill(0)
        return items

    with loader(
        lambda index: index,
        batch_size=4,
        collate=collate,
        on_worker_death="raise",
        on_error="skip",
    ) as elements:
        assert list(elements) == [[0, 1, 2, 3], [8, 9, 10, 11], [12, 13]]
        assert elements.stats().errors == 1


@pytest.mark.parametrize("end", ["killed", "hang"])
def test_without_a_policy_the_error_names_the_item(end: str) -> None:
    lost = 5

    def transform(index: int) -> int:
        if index == lost:
            (kill if end == "killed" else hang)(index)
        return index

    with loader(
        transform, shuffle=True, seed=1, timeout=SECONDS, on_worker_death="raise"
    ) as elements:
        iterator = iter(elements)
        found = []
        with pytest.raises((stook.WorkerDied, stook.ElementTimeout)) as caught:
            while True:
                found.append(next(iterator))
        assert caught.value.item_index == lost  # type: ignore[union-attr]
        assert caught.value.index == len(found) != lost  # type: ignore[union-attr]
        assert f"element {len(found)} (index {lost})" in str(caught.value)
        assert sorted([*found, lost, *iterator]) == list(range(LENGTH))
    with loader(transform, batch_size=4, timeout=SECONDS, on_worker_death="raise") as elements:
        iterator = iter(elements)
        next(iterator)
        with pytest.raises((stook.WorkerDied, stook.ElementTimeout)) as caught:
            next(iterator)
        assert (caught.value.index, caught.value.item_index) == (1, lost)  # type: ignore[union-attr]


# ---- time-outs -----------------------------------------------------------------------------------


@each_batch
@pytest.mark.parametrize("workers", [1, 2])
def test_only_what_takes_too_long_is_skipped(workers: int, batch_size: int | None) -> None:
    def transform(index: int) -> int:
        return hang(index) if index in (2, 13) else index  # type: ignore[func-returns-value]

    left = [index for index in range(LENGTH) if index not in (2, 13)]
    with loader(
        transform, workers, batch_size=batch_size, timeout=SECONDS, on_error="skip"
    ) as elements:
        found = list(elements)
        stats = elements.stats()
    if batch_size is None:
        assert found == left
    else:
        assert [batch.tolist() for batch in found] == batches(left)
    assert (stats.errors, stats.restarts) == (2, 2)


@pytest.mark.parametrize("retries", [0, 3])
def test_a_time_out_tells_the_policy_which_item_it_was(retries: int) -> None:
    def transform(index: int) -> int:
        return hang(index) if index == 6 else index  # type: ignore[func-returns-value]

    def tell(error: stook.ElementError) -> list[Any]:
        cause = error.__cause__
        assert isinstance(cause, stook.ElementTimeout)
        return [cause.index, cause.item_index, cause.seconds, cause.worker in (0, 1)]

    with loader(
        transform, batch_size=None, timeout=SECONDS, on_error=tell, retries=retries
    ) as elements:
        assert list(elements)[6] == [6, 6, SECONDS, True]
        assert elements.stats().restarts == 1


@each_batch
def test_threads_leave_behind_what_takes_too_long(batch_size: int | None) -> None:
    let_go = threading.Event()

    def transform(index: int) -> int:
        if index in (0, 1, 6):  # as many as there are threads, and one more
            let_go.wait(60)
        return index

    options = stook.MultithreadingOptions(2, timeout=SECONDS)
    with stook.DataLoader(
        range(LENGTH), transform, options=options, batch_size=batch_size, on_error="skip"
    ) as elements:
        found = list(elements)
        assert elements.stats().errors == 3
        let_go.set()
    left = [index for index in range(LENGTH) if index not in (0, 1, 6)]
    if batch_size is None:
        assert found == left
    else:
        assert [batch.tolist() for batch in found] == batches(left)


def test_threads_raise_what_takes_too_long() -> None:
    let_go = threading.Event()
    options = stook.MultithreadingOptions(1, timeout=SECONDS)

    def transform(index: int) -> int:
        if index == 1:
            let_go.wait(60)
        return index

    with stook.DataLoader([7, 1, 8], transform, options=options, seed=None) as elements:
        iterator = iter(elements)
        assert next(iterator) == 7
        with pytest.raises(stook.ElementTimeout) as caught:
            next(iterator)
        assert (caught.value.index, caught.value.item_index) == (1, 1)
        assert list(iterator) == [8]
        let_go.set()


def test_without_workers_what_took_too_long_is_noticed_at_its_end() -> None:
    def transform(index: int) -> int:
        if index == 2:
            end = time.monotonic() + 2 * SECONDS
            while time.monotonic() < end:
                pass
        return index

    options = stook.MultiprocessingOptions(timeout=SECONDS)
    loader = stook.DataLoader(
        range(4), transform, options=options, batch_size=2, on_error=lambda e: -9
    )
    assert np.concatenate(list(loader)).tolist() == [0, 1, -9, 3]


def test_what_took_too_long_is_not_tried_again() -> None:
    asked = []

    def transform(index: int) -> int:
        asked.append(index)
        end = time.monotonic() + 2 * SECONDS
        while index == 1 and time.monotonic() < end:
            pass
        return index

    options = stook.MultiprocessingOptions(timeout=SECONDS)
    loader = stook.DataLoader(range(3), transform, options=options, retries=3, on_error="skip")
    assert list(loader) == [0, 2]
    assert asked == [0, 1, 2]


@pytest.mark.parametrize("ordered", [True, False])
def test_what_comes_too_late_is_dropped_and_its_thread_ends(ordered: bool) -> None:
    let_go = threading.Event()
    stuck: list[threading.Thread] = []

    def transform(index: int) -> int:
        if index == 1:
            stuck.append(threading.current_thread())
            let_go.wait(60)
        if index == 3:
            let_go.set()
            stuck[0].join(60)
        return index

    options = stook.MultithreadingOptions(1, timeout=SECONDS)
    with stook.DataLoader(
        range(6), transform, options=options, ordered=ordered, seed=None
    ) as elements:
        iterator = iter(elements)
        assert next(iterator) == 0
        with pytest.raises(stook.ElementTimeout):
            next(iterator)
        # The third may itself be late: it waits for a thread.
        found = [next(iterator)]
        for _ in range(3):
            try:
                found.append(next(iterator))
            except stook.ElementTimeout as error:
                found.append(error.index)
        assert found == [2, 3, 4, 5]
        assert not stuck[0].is_alive()
        assert list(iterator) == []


def test_lost_items_count_against_max_errors() -> None:
    with loader(
        dies("killed"), batch_size=4, on_worker_death="raise", on_error="skip", max_errors=2
    ) as elements:
        found = []
        with pytest.raises(stook.TooManyErrors) as caught:
            for batch in elements:
                found.append(batch.tolist())
    assert found == [[0, 1, 3], [4, 7]]
    assert (caught.value.errors, caught.value.items) == (3, 8)
