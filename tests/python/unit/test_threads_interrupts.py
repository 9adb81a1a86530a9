"""Ctrl-C wherever it may come in a `ThreadPool`: the pool ends, and gives what it was asked for."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Any

import pytest

import stook
import stook._pool_methods
import stook._results
import stook._threads_calls
import stook._threads_crew
import stook.threads
from interrupts import Ctrl, RaisesOnce, every_place

DEADLINE = 60

FILES = {
    module.__file__
    for module in (
        stook.threads,
        stook._threads_calls,
        stook._threads_crew,
        stook._results,
        stook._pool_methods,
    )
}


def ends(pool: stook.ThreadPool) -> bool:
    """In another thread, since a lock that this one has left locked would not hold it up."""

    def end() -> None:
        pool.close()
        pool.join()

    thread = threading.Thread(target=end, daemon=True)
    thread.start()
    thread.join(DEADLINE)
    return not thread.is_alive()


CALLS: dict[str, Callable[[stook.ThreadPool], Any]] = {
    "apply": lambda pool: pool.apply(abs, (-1,)),
    "map": lambda pool: pool.map(abs, range(4), 1),
    "imap": lambda pool: list(pool.imap(abs, range(4))),
}


@pytest.mark.parametrize("call", CALLS)
def test_a_pool_whose_call_was_interrupted_ends(call: str) -> None:
    def run(once: RaisesOnce) -> None:
        pool = stook.ThreadPool(1)
        with contextlib.suppress(Ctrl), once:
            CALLS[call](pool)
        assert ends(pool), once.place

    every_place(FILES, run)


def test_an_imap_that_was_interrupted_goes_on() -> None:
    def run(once: RaisesOnce) -> None:
        with stook.ThreadPool(1) as pool:
            results = pool.imap(abs, range(40))
            taken = []
            number = once.left
            for _ in range(6):  # more often than there are chunks ahead
                once.left = number
                with contextlib.suppress(Ctrl), once:
                    for _ in range(5):
                        taken.append(next(results))
            while True:
                try:
                    taken.append(results.next(DEADLINE))
                except StopIteration:
                    break
            # What next() was about to return is lost with its return.
            assert len(taken) >= 40 - 6 and taken == sorted(set(taken)), once.place

    every_place(FILES, run)


@pytest.mark.parametrize("how", ["close", "join", "terminate"])
def test_an_end_that_was_interrupted_is_gone_on_with(how: str) -> None:
    def run(once: RaisesOnce) -> None:
        pool = stook.ThreadPool(1)
        never = threading.Event()
        result = pool.apply_async(never.wait)
        later = pool.apply_async(abs, (-1,))
        if how != "terminate":
            never.set()
        if how == "close":
            later.get(DEADLINE)
        if how == "join":
            pool.close()
        with contextlib.suppress(Ctrl), once:
            getattr(pool, how)()
        if how == "terminate":
            pool.terminate()
            with pytest.raises(stook.StookError, match="terminated"):
                later.get(DEADLINE)
            never.set()
        assert ends(pool), once.place
        if how != "terminate":
            assert result.get(DEADLINE) and later.get(DEADLINE) == 1

    every_place(FILES, run)
