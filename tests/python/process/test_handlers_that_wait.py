"""A signal handler waits, in whatever way, for the pool that it interrupts."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from handlers import (
    WhenPickled,
    WhenUnpickled,
    handled_by,
    same_of,
    signal_when_waiting,
    wait_until_there,
)

import stook
from stook._task_pool import TaskPool

PATIENCE = 30
GATE = "gate"

# Outer calls that a handler interrupts: while the main thread sleeps in the pool, while it
# unpickles a result, while it pickles an argument. `call(function, *args)` returns a result.
Call = Callable[..., Any]


def asleep(call: Call, tasks: TaskPool, handle: Callable[[], None], folder: Path) -> Any:
    gate = folder / GATE

    def handle_and_open() -> None:
        try:
            handle()
        finally:
            gate.touch()

    with handled_by(handle_and_open), signal_when_waiting(tasks):
        return call(wait_until_there, str(gate), 7)


def unpickling(call: Call, tasks: TaskPool, handle: Callable[[], None], folder: Path) -> Any:
    with handled_by(handle):
        return call(same_of, WhenUnpickled(), 7)[1]


def pickling(call: Call, tasks: TaskPool, handle: Callable[[], None], folder: Path) -> Any:
    with handled_by(handle):
        return call(same_of, WhenPickled(), 7)[1]


each_place = pytest.mark.parametrize("place", [asleep, unpickling, pickling])


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def in_a_thread(call: Callable[[], Any]) -> Any:
    with concurrent.futures.ThreadPoolExecutor(1) as other:
        return other.submit(call).result(PATIENCE)


# ---- executors -----------------------------------------------------------------------------------


def poll(executor: stook.ProcessPoolExecutor) -> Any:
    future = executor.submit(abs, -3)
    until(future.done)
    return future.result()


def callback(executor: stook.ProcessPoolExecutor) -> Any:
    called = threading.Event()
    future = executor.submit(abs, -3)
    future.add_done_callback(lambda done: called.set())
    assert called.wait(PATIENCE)
    return future.result()


def wait(executor: stook.ProcessPoolExecutor) -> Any:
    future = executor.submit(abs, -3)
    assert concurrent.futures.wait([future], PATIENCE).done
    return future.result()


def as_completed(executor: stook.ProcessPoolExecutor) -> Any:
    (future,) = concurrent.futures.as_completed([executor.submit(abs, -3)], PATIENCE)
    return future.result()


def thread_waits(executor: stook.ProcessPoolExecutor) -> Any:
    return in_a_thread(executor.submit(abs, -3).result)


def thread_polls(executor: stook.ProcessPoolExecutor) -> Any:
    return in_a_thread(lambda: poll(executor))


def thread_submits(executor: stook.ProcessPoolExecutor) -> Any:
    return in_a_thread(lambda: executor.submit(abs, -3).result(PATIENCE))


def event_loop(executor: stook.ProcessPoolExecutor) -> Any:
    async def main() -> Any:
        return await asyncio.wait_for(asyncio.wrap_future(executor.submit(abs, -3)), PATIENCE)

    return in_a_thread(lambda: asyncio.run(main()))


def result(executor: stook.ProcessPoolExecutor) -> Any:
    return executor.submit(abs, -3).result(PATIENCE)


EXECUTOR_WAYS = [
    poll,
    callback,
    wait,
    as_completed,
    thread_waits,
    thread_polls,
    thread_submits,
    event_loop,
    result,
]


@pytest.fixture(scope="module")
def executor() -> Iterator[stook.ProcessPoolExecutor]:
    with stook.ProcessPoolExecutor(2) as made:
        assert list(made.map(abs, range(4))) == [0, 1, 2, 3]
        assert made._pool is not None
        assert len(made._pool.tasks.workers()) == 2
        yield made


@each_place
@pytest.mark.parametrize("way", EXECUTOR_WAYS)
def test_a_handler_waits_for_an_executor(
    executor: stook.ProcessPoolExecutor, place: Callable[..., Any], way: Call, tmp_path: Path
) -> None:
    got: list[Any] = []
    pool = executor._pool
    assert pool is not None

    def call(function: Callable[..., Any], *args: Any) -> Any:
        return executor.submit(function, *args).result()

    assert place(call, pool.tasks, lambda: got.append(way(executor)), tmp_path) == 7
    assert got == [3]


def test_what_another_thread_submits_is_sent_though_nobody_waits_for_it(
    executor: stook.ProcessPoolExecutor, tmp_path: Path
) -> None:
    got: list[Any] = []
    pool = executor._pool
    assert pool is not None

    def handle() -> None:
        # The pool's thread sleeps in it, and had nothing to send when it went there.
        until(lambda: pool.attendant._steps_aside)
        got.append(thread_polls(executor))

    def call(function: Callable[..., Any], *args: Any) -> Any:
        return executor.submit(function, *args).result()

    assert pickling(call, pool.tasks, handle, tmp_path) == 7
    assert got == [3]


@pytest.mark.parametrize("place", [asleep, unpickling])
def test_a_handler_shuts_an_executor_down(place: Callable[..., Any], tmp_path: Path) -> None:
    """As one of SIGTERM does: what runs is waited for, what does not is cancelled."""
    executor = stook.ProcessPoolExecutor(1)
    assert executor.submit(abs, -1).result() == 1
    pool = executor._pool
    assert pool is not None
    futures: list[concurrent.futures.Future[Any]] = []
    ended: list[bool] = []

    def call(function: Callable[..., Any], *args: Any) -> Any:
        futures.append(executor.submit(function, *args))
        futures.extend(executor.submit(abs, -number) for number in range(100))
        return futures[0].result()

    def shut_down() -> None:
        if place is asleep:  # what the main thread waits for has to end
            (tmp_path / GATE).touch()
        executor.shutdown(wait=False, cancel_futures=True)
        pool.thread.join(PATIENCE)  # as wait=True does, with an end
        ended.append(not pool.thread.is_alive())

    assert place(call, pool.tasks, shut_down, tmp_path) == 7
    assert ended == [True]
    assert all(future.done() for future in futures)


# ---- pools ---------------------------------------------------------------------------------------


def pool_polls(pool: Any) -> Any:
    outcome = pool.apply_async(abs, (-3,))
    until(outcome.ready)
    return outcome.get()


def pool_calls_back(pool: Any) -> Any:
    called = threading.Event()
    outcome = pool.apply_async(abs, (-3,), callback=lambda value: called.set())
    assert called.wait(PATIENCE)
    return outcome.get()


def thread_applies(pool: Any) -> Any:
    return in_a_thread(lambda: pool.apply(abs, (-3,)))


def thread_draws(pool: Any) -> Any:
    return in_a_thread(lambda: sum(pool.imap(abs, [-1] * 3)))


def thread_maps(pool: Any) -> Any:
    return in_a_thread(lambda: sum(pool.map(abs, [-1] * 3, 1)))


@pytest.fixture(scope="module")
def pool() -> Iterator[stook.Pool]:
    with stook.Pool(2) as made:
        assert made.map(abs, range(4), 1) == [0, 1, 2, 3]
        made.apply_async(abs, (-1,)).wait()  # starts its thread
        assert len(made._tasks.workers()) == 2
        yield made


@each_place
@pytest.mark.parametrize(
    "way", [pool_polls, pool_calls_back, thread_applies, thread_draws, thread_maps]
)
def test_a_handler_waits_for_a_pool(
    pool: stook.Pool, place: Callable[..., Any], way: Call, tmp_path: Path
) -> None:
    got: list[Any] = []

    def call(function: Callable[..., Any], *args: Any) -> Any:
        return pool.apply(function, args)

    assert place(call, pool._tasks, lambda: got.append(way(pool)), tmp_path) == 7
    assert got == [3]


@each_place
def test_a_handler_waits_for_a_thread_that_calls_a_pure_function(
    place: Callable[..., Any], tmp_path: Path
) -> None:
    @stook.pure(max_workers=2)
    def run(function: Callable[..., Any], *args: Any) -> Any:
        return function(*args)

    got: list[Any] = []
    assert run(abs, -1) == 1
    tasks = run._shared.pool()
    handle = lambda: got.append(in_a_thread(lambda: run(abs, -3)))  # noqa: E731
    assert place(run, tasks, handle, tmp_path) == 7
    assert got == [3]
    run.close()
