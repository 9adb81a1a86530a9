"""Pure coroutine functions: futures of the running loop, of several loops, and their cancelling."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pure_module
import pytest
from pure_module import add, multiply, raises

import stook
from stook._shared_pools import end_kept_pools


@pytest.fixture(autouse=True)
def no_pools() -> Iterator[None]:
    """Ends the workers that a test's calls have started."""
    yield
    end_kept_pools()


pure = stook.pure(max_workers=2)


@pure
def wait_for(path: str) -> None:
    """Until somebody writes to the pipe and closes it."""
    with open(path) as file:
        file.read()


@pytest.fixture
def pipe(tmp_path: Path) -> str:
    path = str(tmp_path / "pipe")
    os.mkfifo(path)
    return path


def let_go(pipe: str) -> None:
    with open(pipe, "w"):
        pass


# ---- results -------------------------------------------------------------------------------------


def test_gather_runs_calls_at_the_same_time(pipe: str) -> None:
    @pure
    async def open_pipe(mode: str) -> str:
        with open(pipe, mode):  # waits for who opens the other end
            return mode

    async def main() -> list[str]:
        return await asyncio.gather(open_pipe("w"), open_pipe("r"))

    assert asyncio.run(main()) == ["w", "r"]


def test_gather_of_ten_thousand() -> None:
    async def main() -> list[int]:
        return await asyncio.gather(*(multiply(number) for number in range(10_000)))

    assert asyncio.run(main()) == [2 * number for number in range(10_000)]


def test_one_after_the_other() -> None:
    async def main() -> int:
        total = 1
        for _ in range(100):
            total = await multiply(total, 3) % 1009
        return total

    assert asyncio.run(main()) == pow(3, 100, 1009)


def test_all_the_ways_to_wait_for_it() -> None:
    async def main() -> list[int]:
        future = multiply(1)
        task = asyncio.create_task(multiply(2))  # type: ignore[arg-type]
        waited = await asyncio.wait_for(multiply(3), 60)
        done, _ = await asyncio.wait([add.call_async(4, 4)])
        completed = [await result for result in asyncio.as_completed([multiply(5)])]
        shielded = await asyncio.shield(multiply(6))
        plain = await add.call_async(13, 1)
        return [
            await future, await task, waited, done.pop().result(), *completed, shielded, plain
        ]  # fmt: skip

    assert asyncio.run(main()) == [2, 4, 6, 8, 10, 12, 14]


def test_asyncio_run_of_a_call() -> None:
    assert asyncio.run(multiply(4, right=5)) == 20  # type: ignore[arg-type]


def test_call_async_needs_a_running_loop() -> None:
    with pytest.raises(RuntimeError, match="no running event loop"):
        add.call_async(1)


def test_the_loop_goes_on_while_it_waits(pipe: str) -> None:
    async def main() -> None:
        waiting = wait_for.call_async(pipe)
        for _ in range(100):
            await asyncio.sleep(0)
        assert not waiting.done()
        await asyncio.to_thread(let_go, pipe)
        await waiting

    asyncio.run(main())


def test_calls_are_begun_while_another_one_blocks(pipe: str) -> None:
    async def main() -> None:
        waiting = wait_for.call_async(pipe)
        for number in range(200):
            assert await multiply(number) == 2 * number
        assert not waiting.done()
        await asyncio.to_thread(let_go, pipe)
        await waiting

    asyncio.run(main())


@pytest.mark.parametrize("plain", [False, True])
def test_idle_workers_are_told_while_a_thread_takes_delivery(plain: bool, tmp_path: Path) -> None:
    # Two workers are kept busy, the second only just before the third is needed.
    three = stook.pure(max_workers=3)
    wait, double = three(wait_for.__wrapped__), three(lambda number: 2 * number)
    pipes = [str(tmp_path / name) for name in "ab"]
    for path in pipes:
        os.mkfifo(path)
    assert double(1) == 2
    thread = threading.Thread(target=wait, args=(pipes[0],))

    async def main() -> None:
        thread.start()
        held = await asyncio.to_thread(os.open, pipes[0], os.O_WRONLY)  # once a worker reads
        waiting = wait.call_async(pipes[1])
        result = double(4) if plain else await double.call_async(4)
        assert result == 8
        await asyncio.to_thread(let_go, pipes[1])
        await waiting
        os.close(held)

    asyncio.run(main())
    thread.join()


def test_arrays_come_in_shared_memory() -> None:
    @pure
    async def full(size: int) -> np.ndarray:
        await asyncio.sleep(0)
        return np.full(size, 3)

    async def main() -> None:
        for array in await asyncio.gather(*(full(10_000) for _ in range(4))):
            assert stook.is_shared(array)
            assert array.sum() == 30_000

    asyncio.run(main())


@pytest.mark.parametrize("error", [KeyError("x"), asyncio.CancelledError(), StopIteration(1)])
def test_what_the_call_raises(error: BaseException) -> None:
    async def main() -> None:
        expected = RuntimeError if isinstance(error, StopIteration) else type(error)
        with pytest.raises(expected):
            await raises.call_async(error)
        assert await multiply(1) == 2

    asyncio.run(main())


def test_arguments_that_cannot_be_sent() -> None:
    async def main() -> None:
        future = multiply(threading.Lock())  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="pickle"):
            await future
        assert await multiply(1) == 2

    asyncio.run(main())


def test_a_killed_worker_is_an_error_of_its_call_alone() -> None:
    @pure
    async def die() -> None:
        os.kill(os.getpid(), 9)

    async def main() -> list[Any]:
        return await asyncio.gather(die(), multiply(1), multiply(2), return_exceptions=True)

    died, *others = asyncio.run(main())
    assert isinstance(died, stook.WorkerDied)
    assert others == [2, 4]


# ---- in the worker -------------------------------------------------------------------------------


def test_the_coroutine_has_a_loop_and_a_task() -> None:
    @pure
    async def body() -> tuple[bool, bool, int]:
        async with asyncio.Lock():
            inner = asyncio.create_task(asyncio.sleep(0, 5))
        return (
            asyncio.get_running_loop().is_running(),
            asyncio.current_task() is not None,
            await inner,
        )

    assert asyncio.run(body()) == (True, True, 5)  # type: ignore[arg-type]


def test_tasks_left_behind_are_ended(tmp_path: Path) -> None:
    log = tmp_path / "log"

    @stook.pure(max_workers=1)
    async def leave(log: Path) -> int:
        async def inner() -> None:
            try:
                await asyncio.sleep(3600)
            finally:
                log.write_text("ended")

        leave.task = asyncio.create_task(inner())  # type: ignore[attr-defined]
        await asyncio.sleep(0)
        return 1

    assert asyncio.run(leave(log)) == 1  # type: ignore[arg-type]
    assert log.read_text() == "ended"


# ---- cancelling ----------------------------------------------------------------------------------


def test_cancelling_keeps_what_has_not_begun_from_running(tmp_path: Path, pipe: str) -> None:
    @stook.pure(max_workers=1)
    async def touch(name: str) -> None:
        (tmp_path / name).touch()

    @stook.pure(max_workers=1)
    def block() -> None:
        with open(pipe) as file:
            file.read()

    async def main() -> None:
        blocking = block.call_async()

        async def waits() -> None:
            await touch("cancelled")

        task = asyncio.create_task(waits())
        await asyncio.sleep(0)
        kept = touch("kept")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.to_thread(let_go, pipe)
        await asyncio.gather(blocking, kept)

    asyncio.run(main())
    assert [path.name for path in tmp_path.iterdir() if path.name != "pipe"] == ["kept"]


def test_what_was_begun_runs_to_its_end(pipe: str) -> None:
    async def main() -> None:
        begun = wait_for.call_async(pipe)
        opened = await asyncio.to_thread(os.open, pipe, os.O_WRONLY)  # once the worker has it open
        assert begun.cancel()
        with pytest.raises(asyncio.CancelledError):
            await begun
        os.close(opened)
        assert await multiply(4) == 8

    asyncio.run(main())


def test_a_timeout_cancels() -> None:
    async def main() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(_sleep(3600), 0.01)
        assert await multiply(3) == 6

    asyncio.run(main())


@pure
async def _sleep(seconds: float) -> None:
    await asyncio.sleep(seconds)


def test_a_gather_of_thousands_is_cancelled() -> None:
    async def main() -> None:
        calls = asyncio.gather(*(_sleep(0.0) for _ in range(2000)))
        await asyncio.sleep(0)
        calls.cancel()
        with pytest.raises(asyncio.CancelledError):
            await calls
        assert await multiply(3) == 6

    asyncio.run(main())


# ---- several loops -------------------------------------------------------------------------------


def test_one_loop_after_the_other() -> None:
    async def main() -> list[int]:
        return await asyncio.gather(*(multiply(number) for number in range(20)))

    for _ in range(5):
        assert asyncio.run(main()) == [2 * number for number in range(20)]


def test_loops_and_threads_at_the_same_time() -> None:
    wrong: list[Any] = []

    async def main(base: int) -> None:
        for start in range(base, base + 500, 50):
            got = await asyncio.gather(*(multiply(number) for number in range(start, start + 50)))
            if got != [2 * number for number in range(start, start + 50)]:
                wrong.append(got)
        for number in range(base, base + 50):
            if await multiply(number) != 2 * number:
                wrong.append(number)

    def calls(base: int) -> None:
        for number in range(base, base + 200):
            if add(number, number) != 2 * number:
                wrong.append(number)

    threads = [threading.Thread(target=lambda base=i: asyncio.run(main(base))) for i in range(4)]
    threads += [threading.Thread(target=calls, args=(1000 * i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_plain_call_within_a_coroutine() -> None:
    async def main() -> None:
        others = [multiply(number) for number in range(100)]
        assert add(3, 4) == 7  # keeps the loop waiting, and delivers the others meanwhile
        assert await asyncio.gather(*others) == [2 * number for number in range(100)]

    asyncio.run(main())


def test_a_loop_that_ends_with_calls_outstanding() -> None:
    begun = threading.Event()
    results: list[list[int]] = []

    async def other() -> None:
        calls = [multiply(number) for number in range(200)]
        begun.set()
        results.append(await asyncio.gather(*calls))

    async def ends() -> None:
        for number in range(200):
            multiply(number)

    thread = threading.Thread(target=lambda: asyncio.run(other()))
    thread.start()
    begun.wait()
    asyncio.run(ends())
    thread.join()
    assert results == [[2 * number for number in range(200)]]
    assert add(1) == 2


def test_a_pool_that_is_closed_under_a_loop(pipe: str) -> None:
    async def main() -> None:
        waiting = wait_for.call_async(pipe)
        await asyncio.sleep(0)
        wait_for.close()
        with pytest.raises(stook.PoolBroken):
            await waiting
        assert await multiply(2) == 4

    asyncio.run(main())


def test_no_thread_helps() -> None:
    async def main() -> None:
        before = threading.active_count()
        calls = [multiply(number) for number in range(50)]
        assert threading.active_count() == before
        await asyncio.gather(*calls)
        assert threading.active_count() == before

    asyncio.run(main())


def test_a_loop_that_waits_for_nothing_watches_nothing() -> None:
    async def main() -> None:
        await multiply(1)
        loop: Any = asyncio.get_running_loop()
        link = pure_module.multiply._shared.link(loop)
        assert link._descriptor == -1
        assert link.pool._waiting == []

    asyncio.run(main())
