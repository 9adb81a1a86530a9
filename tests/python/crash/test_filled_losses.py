"""`fill_batches` where items cost a worker its life, or too much time: further ones come then."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import Any

import pytest

import stook

LENGTH = 22
BATCH = 4
SECONDS = 0.3
# Planned items and further ones, two in a row among them, and the last.
BAD = frozenset({2, 5, 6, 13, 21})
GOOD = [index for index in range(LENGTH) if index not in BAD]
BATCHES = [GOOD[start : start + BATCH] for start in range(0, len(GOOD), BATCH)]

each_number = pytest.mark.parametrize("workers", [1, 2, 5])


def loader(transform: Any, options: Any, **settings: Any) -> stook.DataLoader:
    arguments: dict[str, Any] = {"on_error": "skip", "batch_size": BATCH, "collate": list}
    return stook.DataLoader(
        range(LENGTH), transform, options=options, fill_batches=True, **{**arguments, **settings}
    )


def dies(index: int) -> int:
    if index in BAD:
        os.kill(os.getpid(), signal.SIGKILL)
    return index


def hangs(index: int) -> int:
    while index in BAD:
        time.sleep(60)
    return index


@each_number
@pytest.mark.parametrize("max_restarts", [0, 1])
def test_items_that_kill_their_worker_are_made_up_for(workers: int, max_restarts: int) -> None:
    options = stook.MultiprocessingOptions(workers, start_method="fork", max_restarts=max_restarts)
    with loader(dies, options) as made:
        assert list(made) == BATCHES
        assert made.stats().errors == len(BAD)
        assert made.stats().restarts >= len(BAD) * (max_restarts + 1)


@each_number
def test_items_that_take_too_long_are_made_up_for(workers: int) -> None:
    options = stook.MultiprocessingOptions(workers, start_method="fork", timeout=SECONDS)
    with loader(hangs, options) as made:
        assert list(made) == BATCHES
        assert made.stats().errors == len(BAD)


def test_a_state_between_losses_is_exact() -> None:
    options = stook.MultiprocessingOptions(2, start_method="fork", max_restarts=0)
    with loader(dies, options) as made:
        elements = iter(made)
        for taken in range(len(BATCHES) + 1):
            state = elements.get_state()
            assert list(elements) == BATCHES[taken:]
            elements.set_state(state)
            next(elements, None)


def test_what_a_callable_puts_in_their_place_stays() -> None:
    def settle(error: stook.ElementError) -> Any:
        assert isinstance(error.__cause__, stook.WorkerDied)
        assert error.item_index is not None
        return stook.SKIP if error.item_index == 5 else -error.item_index

    options = stook.MultiprocessingOptions(2, start_method="fork", max_restarts=0)
    with loader(dies, options, on_error=settle) as made:
        items = [-index if index in BAD else index for index in range(LENGTH) if index != 5]
        assert list(made) == [items[start : start + 4] for start in range(0, len(items), 4)]


@pytest.mark.parametrize("threads", [1, 2])
def test_items_that_hang_in_threads_are_made_up_for(threads: int) -> None:
    over = threading.Event()

    def hang(index: int) -> int:
        if index in BAD:
            over.wait()
        return index

    try:
        with loader(hang, stook.MultithreadingOptions(threads, timeout=SECONDS)) as made:
            assert list(made) == BATCHES
            assert made.stats().errors == len(BAD)
            over.set()
    finally:
        over.set()


def test_a_thread_that_hangs_in_what_is_void_is_replaced() -> None:
    """The only thread; the batch in its hands is dealt anew when the one before it comes."""
    hanging, over = threading.Event(), threading.Event()

    def hang(index: int) -> Any:
        if index == 11:
            hanging.set()
            over.wait()
        return stook.SKIP if index == 5 else index

    options = stook.MultithreadingOptions(1, 2, timeout=SECONDS)
    try:
        with loader(hang, options) as made:
            elements = iter(made)
            assert next(elements) == [0, 1, 2, 3]
            assert hanging.wait(60)  # of 8 to 11
            assert next(elements) == [4, 6, 7, 8]
            assert next(elements) == [9, 10, 12, 13]
            assert list(elements) == [[14, 15, 16, 17], [18, 19, 20, 21]]
            assert made.stats().errors == 1
            over.set()
    finally:
        over.set()


def test_a_further_item_that_hangs_is_named() -> None:
    over = threading.Event()

    def hang(index: int) -> Any:
        if index == 5:
            over.wait()
        return stook.SKIP if index in (1, 2) else index

    try:
        options = stook.MultithreadingOptions(1, timeout=SECONDS)
        with loader(hang, options, on_error="raise") as made:
            with pytest.raises(stook.ElementTimeout) as caught:
                next(iter(made))
            assert caught.value.item_index == 5
            over.set()
    finally:
        over.set()
