"""`async for` over loaders: the loop goes on, and no element is lost or given twice."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import stook
from conftest import RunPython

HERE = stook.MultiprocessingOptions()
PROCESSES = stook.MultiprocessingOptions(num_workers=2)
THREADS = stook.MultithreadingOptions(num_threads=2)
WAYS = ["here", "processes", "threads"]

each_way = pytest.mark.parametrize("options", [HERE, PROCESSES, THREADS], ids=WAYS)
each_way_ahead = pytest.mark.parametrize("options", [PROCESSES, THREADS], ids=WAYS[1:])


def row(index: int) -> Any:
    return np.full(3000, index)


def first(element: Any) -> int:
    return int(element[0])


def when_there(path: str) -> str:
    """Waits for a file, without the GIL."""
    with open(path) as file:
        return file.read()


@each_way
@pytest.mark.parametrize("ordered", [True, False])
def test_every_element_comes_once(options: Any, ordered: bool) -> None:
    async def main() -> None:
        with stook.DataLoader(range(200), row, options=options, ordered=ordered) as loader:
            for _ in range(2):
                found = [first(element) async for element in loader]
                assert found == list(range(200)) or (not ordered and sorted(found) == [*range(200)])

    asyncio.run(main())


@each_way
def test_items_of_an_iterable(options: Any) -> None:
    async def main() -> None:
        with stook.DataLoader((row(i) for i in range(50)), options=options) as loader:
            assert [first(element) async for element in loader] == list(range(50))

    asyncio.run(main())


@each_way
def test_tasks_a_thread_and_next_share_an_iterator(options: Any) -> None:
    found: list[int] = []

    async def take(elements: Any) -> None:
        async for element in elements:
            found.append(first(element))
            await asyncio.sleep(0)

    def take_in_thread(elements: Any) -> None:
        found.extend(first(element) for element in elements)

    async def main() -> None:
        with stook.DataLoader(range(600), row, options=options) as loader:
            elements = iter(loader)
            found.append(first(next(elements)))
            await asyncio.gather(
                take(elements),
                take(elements),
                asyncio.to_thread(take_in_thread, elements),
                asyncio.to_thread(asyncio.run, take(elements)),
            )
            assert elements.stats().elements == 600

    asyncio.run(main())
    assert sorted(found) == list(range(600))


@each_way_ahead
def test_the_loop_goes_on_and_a_cancelled_task_loses_nothing(options: Any, tmp_path: Path) -> None:
    gate = str(tmp_path / "gate")
    os.mkfifo(gate)

    async def main() -> None:
        with stook.DataLoader([gate], when_there, options=options) as loader:
            elements = iter(loader)
            waits = asyncio.ensure_future(anext(elements))
            for _ in range(20):
                await asyncio.sleep(0.001)
            assert not waits.done()
            threads = {thread.name for thread in threading.enumerate()}
            assert not any(name.startswith("asyncio") for name in threads)
            waits.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waits
            Path(gate).write_text("open")
            assert await anext(elements) == "open"
            with pytest.raises(StopAsyncIteration):
                await anext(elements)

    asyncio.run(main())


@each_way_ahead
def test_the_loop_goes_on_while_a_source_is_read_elsewhere(options: Any, tmp_path: Path) -> None:
    gate = str(tmp_path / "gate")
    os.mkfifo(gate)

    def paths(shard: int, count: int) -> Any:
        if shard == 1:  # the answer that shard 0 is over comes first
            yield when_there(gate)
            yield "the second"

    async def main() -> None:
        with stook.DataLoader(paths, options=options) as loader:
            elements = iter(loader)
            waits = asyncio.ensure_future(anext(elements))
            for _ in range(20):
                await asyncio.sleep(0.001)
            assert not waits.done()
            waits.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waits
            Path(gate).write_text("open")
            assert [element async for element in elements] == ["open", "the second"]
            assert elements.stats().elements == 2

    asyncio.run(main())


@each_way_ahead
def test_closing_ends_the_wait(options: Any, tmp_path: Path) -> None:
    gate = str(tmp_path / "gate")
    os.mkfifo(gate)

    async def main() -> None:
        loader = stook.DataLoader([gate], when_there, options=options)
        elements = iter(loader)
        waits = asyncio.ensure_future(anext(elements))
        await asyncio.sleep(0.01)
        elements.close()
        with pytest.raises(stook.StookError, match="closed"):
            await waits
        if options is THREADS:
            Path(gate).write_text("for the thread, which nobody can end")
        loader.close()

    asyncio.run(main())


def test_several_loaders_in_one_loop() -> None:
    async def count(loader: Any) -> int:
        return sum([1 async for _ in loader])

    async def main() -> None:
        loaders = [stook.DataLoader(range(90), row, options=PROCESSES) for _ in range(3)]
        assert await asyncio.gather(*map(count, loaders)) == [90] * 3
        for loader in loaders:
            loader.close()

    asyncio.run(main())


def fail(index: int) -> int:
    errors = {1: ValueError("one"), 2: StopIteration(), 3: StopAsyncIteration()}
    if index in errors:
        raise errors[index]
    return index


@each_way
def test_errors_come_in_their_place(options: Any) -> None:
    async def main() -> None:
        with stook.DataLoader(range(6), fail, options=options) as loader:
            elements = iter(loader)
            assert await anext(elements) == 0
            with pytest.raises(ValueError, match="one"):
                await anext(elements)
            with pytest.raises(stook.ElementError, match="StopIteration"):
                await anext(elements)
            with pytest.raises(stook.ElementError, match="StopAsyncIteration"):
                await anext(elements)
            assert [element async for element in elements] == [4, 5]

    asyncio.run(main())


@each_way
def test_states_between_elements(options: Any) -> None:
    async def main() -> None:
        with stook.DataLoader(range(40), row, options=options, shuffle=True) as loader:
            elements = iter(loader)
            for _ in range(15):
                await anext(elements)
            state = elements.get_state()
            rest = [first(element) async for element in elements]
            elements.set_state(state)
            assert [first(element) async for element in elements] == rest
            assert len(rest) == 25

    asyncio.run(main())


def test_a_worker_that_dies_is_heard_of() -> None:
    async def main() -> None:
        options = stook.MultiprocessingOptions(num_workers=1, max_restarts=0)
        with stook.DataLoader(range(3), end_at_one, options=options) as loader:
            elements = iter(loader)
            assert await anext(elements) == 0
            with pytest.raises(stook.WorkerDied):
                await anext(elements)
            assert await anext(elements) == 2

    asyncio.run(main())


def end_at_one(index: int) -> int:
    if index == 1:
        os._exit(3)
    return index


@each_way_ahead
def test_a_time_out_is_heard_of(options: Any, tmp_path: Path) -> None:
    gate = str(tmp_path / "gate")
    os.mkfifo(gate)
    if options is PROCESSES:
        options = stook.MultiprocessingOptions(num_workers=1, timeout=0.05)
    else:
        options = stook.MultithreadingOptions(num_threads=1, timeout=0.05)

    async def main() -> None:
        with stook.DataLoader([gate], when_there, options=options) as loader:
            with pytest.raises(stook.ElementTimeout):
                await anext(iter(loader))
            if isinstance(options, stook.MultithreadingOptions):
                Path(gate).write_text("for the thread, which nobody can end")

    asyncio.run(main())


def test_a_loop_that_is_closed_in_the_middle_leaves_nothing(tmp_path: Path) -> None:
    gate = str(tmp_path / "gate")
    os.mkfifo(gate)
    with stook.DataLoader([gate], when_there, options=PROCESSES) as loader:
        elements = iter(loader)
        before = len(os.listdir("/proc/self/fd"))
        loop = asyncio.new_event_loop()
        waits: Any = elements.__anext__()
        task = loop.create_task(waits)
        loop.run_until_complete(asyncio.sleep(0.01))
        loop.close()
        coroutine: Any = task.get_coro()
        coroutine.close()
        vars_of_task: Any = task
        vars_of_task._log_destroy_pending = False
        del task, vars_of_task, coroutine, waits, loop
        gc.collect()
        assert len(os.listdir("/proc/self/fd")) == before
        Path(gate).write_text("open")
        assert next(elements) == "open"


def test_ctrl_c_ends_the_loop(run_python: RunPython) -> None:
    done = run_python(
        """
        import asyncio, os, signal, threading, time
        import stook

        async def main():
            options = stook.MultiprocessingOptions(num_workers=1)
            loader = stook.DataLoader([1], lambda item: time.sleep(1000), options=options)
            loop = asyncio.get_running_loop()
            loop.call_later(0.3, os.kill, os.getpid(), signal.SIGINT)
            async for element in loader:
                print("an element")

        try:
            asyncio.run(main())
        except KeyboardInterrupt:
            print("interrupted")
        """
    ).check()
    assert done.stdout == "interrupted\n"
