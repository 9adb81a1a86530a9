"""Loops that are left again and again, and loaders over what other loaders give."""

from __future__ import annotations

import itertools
import os
from typing import Any

import pytest
from process_loader import made

import stook


def used() -> tuple[int, int, int]:
    """Descriptors, threads, and resident kilobytes of this process."""
    with open("/proc/self/status") as file:
        fields = dict(line.split(":", 1) for line in file)
    kilobytes = int(fields["VmRSS"].split()[0])
    return len(os.listdir("/proc/self/fd")), int(fields["Threads"]), kilobytes


def children() -> set[int]:
    with open(f"/proc/self/task/{os.getpid()}/children") as file:
        return set(map(int, file.read().split()))


@pytest.mark.parametrize("indexed", [True, False])
def test_a_thousand_loops_that_are_left_leave_nothing(indexed: bool) -> None:
    source: Any = range(50) if indexed else Items()
    with made("fork", source, lambda _: stook.worker_info().index) as loader:
        first = 0

        def leave(times: int) -> None:
            for _ in range(times):
                for element in loader:
                    assert element in (0, 1)
                    assert loader.get_state()["position"] == 1
                    break

        leave(100)
        while set(loader) != {0, 1}:  # both are there
            first += 1
        first += 1
        leave(100)
        before, processes = used(), children()
        leave(800)
        after = used()
        assert children() == processes
        assert after[:2] == before[:2]
        assert after[2] - before[2] < 2048
        assert loader.get_state()["epoch"] == 999 + first
        assert loader.stats().restarts == 0


class Items:
    def __iter__(self) -> Any:
        return iter(range(50))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_over_a_loaders_output_goes_on_as_well(workers: int) -> None:
    def pair() -> tuple[stook.DataLoader, stook.DataLoader]:
        options = stook.MultiprocessingOptions(num_workers=workers, start_method="fork")
        inner = stook.DataLoader(range(7), lambda x: 10 * x, shuffle=True, options=options)
        outer = stook.DataLoader(
            inner, lambda x: x + 1, num_epochs=3, batch_size=3, collate=list, options=options
        )
        return inner, outer

    inner, outer = pair()
    with inner, outer:
        elements = iter(outer)
        states = [elements.get_state()]
        found = []
        for batch in elements:
            found.append(batch)
            states.append(elements.get_state())
    assert [len(batch) for batch in found] == [3, 3, 1] * 3
    epochs = [tuple(itertools.chain(*found[at : at + 3])) for at in (0, 3, 6)]
    assert len(set(epochs)) == 3
    assert all(sorted(epoch) == [10 * x + 1 for x in range(7)] for epoch in epochs)
    for taken in (0, 1, 2, 3, 4, 6, 8, 9):
        inner, outer = pair()
        with inner, outer:
            outer.set_state(states[taken])
            assert list(iter(outer)) == found[taken:]


def test_two_loaders_take_turns_over_one_source() -> None:
    words = [f"{number}" for number in range(20)]
    with made("fork", words, int) as numbers, made("fork", numbers, str) as texts:
        pairs = list(zip(texts, made_twice(words), strict=True))
    assert pairs == [(word, 2 * int(word)) for word in words]


def made_twice(words: list[str]) -> Any:
    with made("fork", words, lambda word: 2 * int(word)) as loader:
        yield from loader
