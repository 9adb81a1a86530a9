"""Who waits for an element in an event loop hears of it, whoever else took the news.

Each test brings about the one order of events in which nobody else would say it, and waits for
`SECONDS` at most, which a wake-up that is lost makes it do.
"""

from __future__ import annotations

import asyncio
import os
import select
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import stook
from stook import _async_iteration
from stook._async_iteration import ABSENT, Waiters

SECONDS = 20
PROCESS = stook.MultiprocessingOptions(1, per_worker_buffer_size=4)
PROCESSES = stook.MultiprocessingOptions(2, per_worker_buffer_size=4)
THREAD = stook.MultithreadingOptions(1, per_thread_buffer_size=4)
THREADS = stook.MultithreadingOptions(2, per_thread_buffer_size=4)

one_worker = pytest.mark.parametrize("options", [PROCESS, THREAD], ids=["process", "thread"])
two_workers = pytest.mark.parametrize("options", [PROCESSES, THREADS], ids=["processes", "threads"])


class Gate:
    """Items: the first is made when the gate is opened, the third says that two are there."""

    def __init__(self, folder: Path) -> None:
        self.path = str(folder / "gate")
        self.marker = folder / "third"
        os.mkfifo(self.path)
        self.items = [self.path, "second", str(self.marker)]

    def open(self) -> None:
        Path(self.path).write_text("first")

    def open_and_wait(self) -> None:
        """Blocks the loop, too."""
        self.open()
        wait_for_file(self.marker)

    def wait_for_reader(self) -> None:
        wait_for_file(Path(self.path + ".read"))


def wait_for_file(path: Path) -> None:
    end = time.monotonic() + SECONDS
    while not path.exists():
        assert time.monotonic() < end
        time.sleep(0.001)


def load(item: str) -> str:
    if item.endswith("gate"):
        Path(item + ".read").touch()
        with open(item) as file:
            return file.read()
    if item.endswith("third"):
        Path(item).touch()
    return item


async def waiting(elements: Any) -> asyncio.Task[Any]:
    """A task that waits for the next element."""
    task = asyncio.ensure_future(anext(elements))
    while len(elements._waiters()) == 0:
        await asyncio.sleep(0)
    return task


def in_thread(call: Callable[[], Any]) -> Any:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(call()))
    thread.start()
    thread.join(SECONDS)
    (value,) = found
    return value


@one_worker
@pytest.mark.parametrize("taker", ["next", "another loop"])
def test_who_takes_the_news_passes_them_on(options: Any, taker: str, tmp_path: Path) -> None:
    gate = Gate(tmp_path)

    async def main() -> None:
        with stook.DataLoader(gate.items, load, options=options) as loader:
            elements = iter(loader)
            waits = await waiting(elements)
            # Until the thread has its element this loop looks at nothing.
            gate.open_and_wait()
            if taker == "next":
                first = in_thread(lambda: next(elements))
            else:
                first = in_thread(lambda: asyncio.run(_async_iteration.take(elements)))
            assert first == "first"
            assert await asyncio.wait_for(waits, SECONDS) == "second"

    asyncio.run(main())


@one_worker
def test_what_came_before_the_wait_began_is_found(
    options: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    gate = Gate(tmp_path)
    add = Waiters.add
    between: list[Any] = []

    def add_late(self: Waiters, *arguments: Any) -> None:
        if between:
            between.pop()()
        add(self, *arguments)

    monkeypatch.setattr(Waiters, "add", add_late)

    async def main() -> None:
        with stook.DataLoader(gate.items, load, options=options) as loader:
            elements = iter(loader)

            def come_and_take() -> None:
                gate.open_and_wait()
                assert in_thread(lambda: next(elements)) == "first"

            between.append(come_and_take)
            assert await asyncio.wait_for(anext(elements), SECONDS) == "second"
            assert not between

    asyncio.run(main())


@two_workers
def test_who_waits_goes_on_at_a_state_that_is_set(options: Any, tmp_path: Path) -> None:
    gate = Gate(tmp_path)

    async def main() -> None:
        # One item: nothing else becomes ready, and tells.
        with stook.DataLoader(gate.items[:1], load, options=options) as loader:
            elements = iter(loader)
            state = elements.get_state()
            waits = await waiting(elements)
            gate.wait_for_reader()
            elements.set_state({**state, "epoch": 1})
            with pytest.raises(StopAsyncIteration):
                await asyncio.wait_for(waits, SECONDS)
            if options is THREADS:
                gate.open()  # nobody can end one that reads

    asyncio.run(main())


async def until_nothing_rings(loader: stook.DataLoader, elements: Any) -> None:
    """The worker's birth was told, which rings late, and whoever waits has looked."""
    descriptor = elements._descriptor()
    while (
        not loader._pool._core.worker_pids
        or select.select([descriptor], [], [], 0)[0]
        or len(elements._waiters()) == 0
    ):
        await asyncio.sleep(0)


@pytest.mark.parametrize("change", ["close", "set_state"])
def test_who_waits_hears_of_what_no_worker_rings_for(change: str, tmp_path: Path) -> None:
    gate = Gate(tmp_path)

    async def main() -> None:
        with stook.DataLoader(gate.items[:1], load, options=PROCESS) as loader:
            elements = iter(loader)
            state = elements.get_state()
            waits = await waiting(elements)
            gate.wait_for_reader()
            await until_nothing_rings(loader, elements)
            if change == "close":
                elements.close()
                with pytest.raises(stook.StookError, match="closed"):
                    await asyncio.wait_for(waits, SECONDS)
            else:
                elements.set_state({**state, "epoch": 1})
                with pytest.raises(StopAsyncIteration):
                    await asyncio.wait_for(waits, SECONDS)

    asyncio.run(main())


@two_workers
def test_who_waits_hears_of_the_end_that_a_thread_took(options: Any, tmp_path: Path) -> None:
    gate = Gate(tmp_path)

    async def main() -> None:
        with stook.DataLoader(gate.items[:1], load, options=options) as loader:
            elements = iter(loader)
            waits = await waiting(elements)
            gate.open()
            assert in_thread(lambda: next(elements)) == "first"
            with pytest.raises(StopAsyncIteration):
                await asyncio.wait_for(waits, SECONDS)

    asyncio.run(main())


def test_closing_ends_the_wait_for_a_function_that_does_not_return() -> None:
    go_on = threading.Event()

    async def main() -> None:
        with stook.DataLoader(range(3)) as loader:
            elements = loader.prefetch_to(lambda _: go_on.wait())
            waits = await waiting(elements)
            elements.close()
            with pytest.raises(stook.StookError, match="closed"):
                await asyncio.wait_for(waits, SECONDS)
            go_on.set()

    asyncio.run(main())


@one_worker
def test_waiting_neither_spins_nor_leaves_anything(
    options: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    gate = Gate(tmp_path)
    look = _async_iteration._look
    absent = []

    def count(iterator: Any) -> Any:
        element = look(iterator)
        if element is ABSENT:
            absent.append(1)
        return element

    monkeypatch.setattr(_async_iteration, "_look", count)

    async def main() -> None:
        with stook.DataLoader(["before", *gate.items], load, options=options) as loader:
            elements = iter(loader)
            assert await anext(elements) == "before"
            waits = await waiting(elements)
            for _ in range(100):
                await asyncio.sleep(0.001)
            assert len(absent) < 20  # one for each news; not one for each turn of the loop
            assert len(elements._waiters()) == 1
            waits.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waits
            assert len(elements._waiters()) == 0
            gate.open()
            assert await anext(elements) == "first"
            assert len(elements._waiters()) == 0

    asyncio.run(main())


def test_others_get_their_turn_while_elements_are_there() -> None:
    async def main() -> None:
        turns = 0

        async def other() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        task = asyncio.ensure_future(other())
        async for _ in stook.DataLoader(range(1000), num_epochs=1000):
            if turns:
                break
        else:
            pytest.fail("a million elements, and nobody else had a turn")
        task.cancel()

    asyncio.run(main())
