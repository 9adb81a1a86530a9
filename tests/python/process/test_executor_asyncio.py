"""Event loops that wait for calls of stook.ProcessPoolExecutor: they deliver for themselves."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pool_calls import DEADLINE, die, fifo, square, wait_for

import stook


class Where:
    """Knows the thread in which it was unpickled, which is the one that delivered it."""

    def __init__(self, thread: int = 0) -> None:
        self.thread = thread

    def __reduce__(self) -> tuple[Any, ...]:
        return delivered_here, ()


def delivered_here() -> Where:
    return Where(threading.get_ident())


@pytest.fixture
def executor() -> Iterator[stook.ProcessPoolExecutor]:
    with stook.ProcessPoolExecutor(2) as made:
        yield made


@pytest.fixture
def gate(tmp_path: Path) -> str:
    return fifo(tmp_path, "gate")


def let_go(gate: str) -> None:
    with open(gate, "wb"):
        pass


def run_in(executor: stook.ProcessPoolExecutor, function: Callable[..., Any], *args: Any) -> Any:
    return asyncio.get_running_loop().run_in_executor(executor, function, *args)


def until(condition: Callable[[], bool]) -> None:
    """Waits without letting any event loop of this thread run."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline
        os.sched_yield()


def test_the_loops_thread_delivers(executor: stook.ProcessPoolExecutor) -> None:
    async def main() -> list[int]:
        await run_in(executor, square, 1)  # the workers are there
        return [(await run_in(executor, Where)).thread for _ in range(200)]

    threads = asyncio.run(main())
    # On a busy machine a loop may not come to run for so long that another thread takes over.
    assert threads.count(threading.get_ident()) > 150


def test_two_loops_share_an_executor(executor: stook.ProcessPoolExecutor) -> None:
    async def count(start: int) -> int:
        total = 0
        for number in range(start, start + 200, 4):
            calls = [run_in(executor, square, number + part) for part in range(4)]
            total += sum(await asyncio.gather(*calls))
        return total

    totals: dict[int, int] = {}

    def run(at: int) -> None:
        totals[at] = asyncio.run(count(at))

    threads = [threading.Thread(target=run, args=[at]) for at in (0, 1000, 2000)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
    assert totals == {at: sum(n * n for n in range(at, at + 200)) for at in (0, 1000, 2000)}


def test_threads_wait_beside_a_loop(executor: stook.ProcessPoolExecutor, gate: str) -> None:
    async def main() -> int:
        held = run_in(executor, wait_for, gate, 7)
        # Each of these runs the pool in the thread that waits, and leaves it again.
        plain = asyncio.to_thread(lambda: [executor.submit(square, n).result() for n in range(50)])
        own = [await run_in(executor, square, n) for n in range(50)]
        assert await plain == own == [n * n for n in range(50)]
        assert not held.done()
        let_go(gate)
        return int(await held)

    assert asyncio.run(main()) == 7


def test_a_loop_hears_of_its_result_after_a_thread_has_stopped_waiting(
    executor: stook.ProcessPoolExecutor, gate: str, tmp_path: Path
) -> None:
    other = fifo(tmp_path, "other")

    async def main() -> int:
        held = run_in(executor, wait_for, gate, 8)
        with pytest.raises(concurrent.futures.TimeoutError):
            await asyncio.to_thread(executor.submit(wait_for, other).result, 0.01)
        let_go(gate)
        return int(await held)

    with pytest.MonkeyPatch.context() as patch:
        # The pool's thread is not what helps.
        patch.setattr("stook._attendant._TAKE_OVER", 3600.0)
        result = asyncio.run(asyncio.wait_for(main(), DEADLINE))
    let_go(other)
    assert result == 8


def test_results_come_while_the_loop_is_kept_from_running(
    executor: stook.ProcessPoolExecutor,
) -> None:
    async def main() -> int:
        awaited = run_in(executor, square, 3)
        other = executor.submit(square, 4)
        until(other.done)
        return int(await awaited) + int(other.result())

    assert asyncio.run(main()) == 25


def test_other_callbacks_still_run_on_the_pools_thread(
    executor: stook.ProcessPoolExecutor,
) -> None:
    async def main() -> str:
        future = executor.submit(square, 3)
        called: list[str] = []
        future.add_done_callback(lambda _: called.append(threading.current_thread().name))
        assert await asyncio.wrap_future(future) == 9
        until(lambda: bool(called))
        return called[0]

    assert asyncio.run(main()) == "stook-executor"


def test_a_future_that_is_wrapped_twice(executor: stook.ProcessPoolExecutor) -> None:
    async def main() -> list[int]:
        future = executor.submit(square, 5)
        calls = asyncio.wrap_future(future), asyncio.wrap_future(future)
        return list(await asyncio.gather(*calls))

    assert asyncio.run(main()) == [25, 25]


def test_a_future_that_is_done_when_it_is_wrapped(executor: stook.ProcessPoolExecutor) -> None:
    async def main() -> int:
        future = executor.submit(square, 6)
        future.result(DEADLINE)
        return int(await asyncio.wrap_future(future))

    assert asyncio.run(main()) == 36


def test_a_loop_that_does_not_run_yet_is_told(executor: stook.ProcessPoolExecutor) -> None:
    loop = asyncio.new_event_loop()
    try:
        wrapped = asyncio.wrap_future(executor.submit(square, 7), loop=loop)
        assert loop.run_until_complete(wrapped) == 49
    finally:
        loop.close()


class NoReaders(asyncio.SelectorEventLoop):
    """A loop that cannot watch descriptors, as some are that are not asyncio's own."""

    def add_reader(self, *_: Any) -> None:  # type: ignore[override]
        raise NotImplementedError


def test_a_loop_that_cannot_watch_descriptors(executor: stook.ProcessPoolExecutor) -> None:
    loop = NoReaders()
    try:

        async def main() -> list[int]:
            return [await run_in(executor, square, number) for number in range(20)]

        assert loop.run_until_complete(main()) == [n * n for n in range(20)]
    finally:
        loop.close()


def test_a_loop_that_is_closed_while_it_waits(
    executor: stook.ProcessPoolExecutor, gate: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, "concurrent.futures")  # it says that the loop is closed
    loop = asyncio.new_event_loop()

    async def begin() -> None:
        run_in(executor, wait_for, gate)

    loop.run_until_complete(begin())
    loop.close()
    assert executor.submit(square, 3).result(DEADLINE) == 9

    async def go_on() -> list[int]:
        let_go(gate)
        return [await run_in(executor, square, number) for number in range(20)]

    assert asyncio.run(go_on()) == [n * n for n in range(20)]
    executor.submit(square, 3).result(DEADLINE)
    pool = executor._pool
    assert pool is not None
    until(lambda: not pool.tasks.outstanding)
    until(lambda: not pool.tasks._waiting)


def test_loops_leave_nothing_behind(executor: stook.ProcessPoolExecutor) -> None:
    async def main() -> int:
        return sum([await run_in(executor, square, number) for number in range(3)])

    assert asyncio.run(main()) == 5
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        assert asyncio.run(main()) == 5
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before
    assert executor._pool is not None
    assert executor._pool.tasks._waiting == []


def test_what_is_awaited_when_the_executor_shuts_down(gate: str) -> None:
    executor = stook.ProcessPoolExecutor(1)

    async def main() -> list[int]:
        calls = [run_in(executor, wait_for, gate, 1), *(run_in(executor, square, 2) for _ in "ab")]
        executor.shutdown(wait=False)
        let_go(gate)
        return list(await asyncio.gather(*calls))

    assert asyncio.run(main()) == [1, 4, 4]
    executor.shutdown()


def test_a_dead_worker_is_an_error_of_all_that_is_awaited(
    executor: stook.ProcessPoolExecutor, gate: str
) -> None:
    async def main() -> list[Any]:
        held = run_in(executor, wait_for, gate)
        calls = run_in(executor, die), held
        return list(await asyncio.gather(*calls, return_exceptions=True))

    errors = asyncio.run(asyncio.wait_for(main(), DEADLINE))
    assert [type(error) for error in errors] == [stook.WorkerDied] * 2
