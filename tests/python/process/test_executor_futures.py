"""Futures of stook.ProcessPoolExecutor: cancelled, waited for, told of."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import threading
from pathlib import Path
from typing import Any

import executor_calls
import pytest
from executor_calls import Gate, executor_with, hold, pass_gate, raise_it

import stook
from leftovers import wait_until

# Fixtures, which are looked for here.
executor = executor_calls.executor
gate = executor_calls.gate


# ---- cancelling ------------------------------------------------------------------------------


def test_a_task_that_no_worker_has_can_be_cancelled(tmp_path: Path, gate: Gate) -> None:
    with executor_with(1) as executor:
        running = hold(executor, gate)
        mark = tmp_path / "ran"
        waiting = executor.submit(mark.touch)
        behind = executor.submit(abs, -3)
        assert running.running() and "running" in repr(running)
        assert not waiting.running() and not waiting.done()
        assert not running.cancel()
        assert waiting.cancel() and waiting.cancel()
        assert waiting.cancelled() and waiting.done() and not waiting.running()
        with pytest.raises(concurrent.futures.CancelledError):
            waiting.result()
        with pytest.raises(concurrent.futures.CancelledError):
            waiting.exception()
        gate.open()
        assert running.result(30) == "passed" and not running.running()
        assert behind.result(30) == 3
    assert not mark.exists()


def test_everybody_hears_of_a_cancellation(gate: Gate) -> None:
    with executor_with(1) as executor:
        running = hold(executor, gate)
        cancelled = executor.submit(abs, -1)
        heard: list[Any] = []
        cancelled.add_done_callback(lambda future: heard.append(future.cancelled()))

        def wait_for_result() -> None:
            try:
                cancelled.result(30)
            except concurrent.futures.CancelledError:
                heard.append("result")

        def wait_for_both() -> None:
            done, _ = concurrent.futures.wait(
                [running, cancelled], 30, concurrent.futures.FIRST_COMPLETED
            )
            heard.append(done == {cancelled})

        threads = [threading.Thread(target=wait_for_result), threading.Thread(target=wait_for_both)]
        for thread in threads:
            thread.start()
        pool = executor._pool
        assert pool is not None
        assert wait_until(
            lambda: pool.attendant._impatient and cancelled.__dict__.get("_waiters_"), 30
        )
        assert cancelled.cancel()
        for thread in threads:
            thread.join(30)
        gate.open()
    assert sorted(map(str, heard)) == ["True", "True", "result"]


def test_a_cancelled_task_is_not_waited_for_by_shutdown() -> None:
    with executor_with() as executor:
        futures = [executor.submit(abs, -number) for number in range(200)]
        cancelled = [future.cancel() for future in futures]
    assert all(future.done() for future in futures)
    assert [future.cancelled() for future in futures] == cancelled


# ---- being told ------------------------------------------------------------------------------


def test_callbacks_run_in_order_on_another_thread(
    executor: stook.ProcessPoolExecutor, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    future = executor.submit(pass_gate, gate.path, 3)
    told: list[Any] = []
    future.add_done_callback(lambda done: told.append((done, threading.current_thread())))
    future.add_done_callback(lambda done: raise_it(ValueError("in a callback")))
    future.add_done_callback(lambda done: told.append(done.result() * 2))
    assert wait_until(future.running, 30)
    gate.open()
    assert future.result(30) == 3
    assert wait_until(lambda: len(told) == 2, 30)
    (first, thread), second = told
    assert first is future and second == 6
    assert thread is not threading.current_thread()
    assert "exception calling callback" in caplog.text and "in a callback" in caplog.text
    caplog.clear()  # it holds frames of this test's
    future.add_done_callback(lambda done: told.append(threading.current_thread()))
    assert told[2] is threading.current_thread()


def test_a_callback_may_need_what_its_waiter_holds(executor: stook.ProcessPoolExecutor) -> None:
    lock = threading.Lock()
    called = threading.Event()

    def take_lock(_: Any) -> None:
        with lock:
            called.set()

    with lock:
        future = executor.submit(abs, -2)
        future.add_done_callback(take_lock)
        assert future.result(30) == 2
        assert executor.submit(abs, -3).result(30) == 3
    assert called.wait(30)


def test_a_callback_may_submit_and_wait(executor: stook.ProcessPoolExecutor) -> None:
    found: list[int] = []
    finished = threading.Event()

    def go_on(done: Any) -> None:
        found.append(executor.submit(abs, -done.result() - 1).result(30))
        finished.set()

    executor.submit(abs, -1).add_done_callback(go_on)
    assert finished.wait(30) and found == [2]


def test_wait_and_as_completed_know_these_futures(
    executor: stook.ProcessPoolExecutor, gate: Gate
) -> None:
    slow = executor.submit(pass_gate, gate.path, -1)
    fast = [executor.submit(abs, -number) for number in range(50)]
    failing = executor.submit(divmod, 1, 0)
    other: concurrent.futures.Future[int] = concurrent.futures.Future()
    first = concurrent.futures.wait(
        [slow, failing], 30, return_when=concurrent.futures.FIRST_EXCEPTION
    )
    assert first == ({failing}, {slow})
    assert {future.result() for future in concurrent.futures.as_completed(fast, 30)} == {*range(50)}
    with pytest.raises(concurrent.futures.TimeoutError):
        list(concurrent.futures.as_completed([slow], 0.01))
    assert concurrent.futures.wait([slow, other, *fast], 0.01).not_done == {slow, other}
    gate.open()
    other.set_result(4)
    assert concurrent.futures.wait([slow, other], 30).not_done == set()


def test_tasks_go_on_while_nobody_looks(
    executor: stook.ProcessPoolExecutor, tmp_path: Path
) -> None:
    for number in range(300):  # far more than lie at hand
        executor.submit(Path.touch, tmp_path / str(number))
    assert wait_until(lambda: len(os.listdir(tmp_path)) == 300, 30)


def test_submitting_never_waits(executor: stook.ProcessPoolExecutor, gate: Gate) -> None:
    first = [executor.submit(pass_gate, gate.path) for _ in range(2)]
    assert wait_until(lambda: all(future.running() for future in first), 30)
    futures = [executor.submit(abs, -number) for number in range(5000)]
    large = [executor.submit(len, bytes(4 << 20)) for _ in range(10)]
    assert not any(future.done() for future in [*futures, *large])
    gate.open()
    assert [future.result(30) for future in futures] == [*range(5000)]
    assert [future.result(30) for future in large] == [4 << 20] * 10


def test_a_result_that_is_late_is_a_timeout(
    executor: stook.ProcessPoolExecutor, gate: Gate
) -> None:
    future = executor.submit(pass_gate, gate.path, 1)
    for timeout in (0, -1, 0.01):
        with pytest.raises(concurrent.futures.TimeoutError):
            future.result(timeout)
        with pytest.raises(concurrent.futures.TimeoutError):
            future.exception(timeout)
    assert wait_until(future.running, 30)
    gate.open()
    assert future.result(30) == 1


def test_sixteen_threads_share_an_executor(executor: stook.ProcessPoolExecutor) -> None:
    wrong: list[Any] = []

    def work(number: int) -> None:
        for step in range(60):
            value = 1000 * number + step
            future = executor.submit(abs, -value)
            if step % 3 == 0:
                future.add_done_callback(lambda _: None)
            if step % 5 == 0:
                future.cancel()
                future = executor.submit(abs, -value)
            if future.result(30) != value or list(executor.map(abs, [-value, 1])) != [value, 1]:
                wrong.append(value)

    work(0)  # before there are threads, beside which forking is warned about
    threads = [threading.Thread(target=work, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# ---- asyncio ---------------------------------------------------------------------------------


def test_a_loop_runs_ten_thousand_calls(executor: stook.ProcessPoolExecutor) -> None:
    async def gather() -> list[int]:
        loop = asyncio.get_running_loop()
        calls = (loop.run_in_executor(executor, abs, -number) for number in range(10_000))
        return list(await asyncio.gather(*calls))

    assert asyncio.run(gather()) == [*range(10_000)]


def test_a_cancelled_await_cancels_what_was_not_begun(gate: Gate, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    with executor_with(1) as executor:

        async def cancel() -> Any:
            loop = asyncio.get_running_loop()
            begun = loop.run_in_executor(executor, pass_gate, gate.path, "passed")
            pool = executor._pool
            assert pool is not None
            (first,) = pool.futures
            while not first.running():
                await asyncio.sleep(0)
            waiting = loop.run_in_executor(executor, mark.touch)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            gate.open()
            return await begun

        assert asyncio.run(cancel()) == "passed"
    assert not mark.exists()


def test_an_error_reaches_the_loop(executor: stook.ProcessPoolExecutor) -> None:
    async def fail() -> None:
        await asyncio.wrap_future(executor.submit(divmod, 1, 0))

    with pytest.raises(ZeroDivisionError):
        asyncio.run(fail())
