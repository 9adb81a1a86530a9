"""The end of stook.ProcessPoolExecutor: shut down, killed, dropped."""

from __future__ import annotations

import threading
import weakref
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import executor_calls
import pytest
from executor_calls import Gate, executor_with, hold, pass_gate, raise_it

import stook
from stook import _attendant, _futures_exit

# Fixtures, which are looked for here.
gate = executor_calls.gate


def test_shutdown_finishes_what_was_submitted(tmp_path: Path) -> None:
    for wait in (True, False):
        executor = stook.ProcessPoolExecutor(2)
        futures = [executor.submit(Path.touch, tmp_path / f"{wait}{n}") for n in range(100)]
        thread, processes = executor._executor_manager_thread, dict(executor._processes or {})
        executor.shutdown(wait=wait)
        with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
            executor.submit(abs, -1)
        if not wait:
            assert thread is not None
            thread.join(30)
        assert all(future.done() for future in futures)
        assert len(list(tmp_path.glob(f"{wait}*"))) == 100
        for process in processes.values():
            process.join(30)
            assert not process.is_alive()
        executor.shutdown()


def test_a_dropped_executor_finishes_what_was_submitted(gate: Gate) -> None:
    executor = stook.ProcessPoolExecutor(1)
    future = executor.submit(pass_gate, gate.path, "passed")
    behind = executor.submit(abs, -3)
    thread = executor._executor_manager_thread
    dropped = weakref.ref(executor)
    del executor
    assert dropped() is None
    gate.open()
    assert (future.result(30), behind.result(30)) == ("passed", 3)
    assert thread is not None
    thread.join(30)
    assert not thread.is_alive()


def test_shutdown_waits_for_callbacks() -> None:
    told: list[int] = []
    with executor_with() as executor:
        for number in range(50):
            future = executor.submit(abs, -number)
            future.add_done_callback(lambda done: told.append(done.result()))
    assert sorted(told) == [*range(50)]


def test_shutdown_cancels_what_no_worker_has(gate: Gate) -> None:
    with executor_with(2) as executor:
        running = [hold(executor, gate) for _ in range(2)]
        waiting = [executor.submit(abs, -1) for _ in range(500)]
        executor.shutdown(wait=False, cancel_futures=True)
        assert all(future.cancelled() for future in waiting)
        assert not any(future.done() for future in running)
        gate.open()
    assert [future.result(0) for future in running] == ["passed"] * 2


def test_shutdown_leaves_starting_workers_their_first_tasks() -> None:
    executor = stook.ProcessPoolExecutor(2)
    futures = [executor.submit(abs, -number) for number in range(100)]
    executor.shutdown(cancel_futures=True)
    assert all(future.done() for future in futures)
    assert [future.result() for future in futures[:2]] == [0, 1]
    assert any(future.cancelled() for future in futures)


def test_a_callback_may_shut_down() -> None:
    executor = stook.ProcessPoolExecutor(1)
    thread: Any = None
    future = executor.submit(abs, -1)
    thread = executor._executor_manager_thread
    future.add_done_callback(lambda _: executor.shutdown(wait=True))
    thread.join(30)
    assert not thread.is_alive()


def test_kill_workers_ends_what_is_stuck(gate: Gate) -> None:
    executor = stook.ProcessPoolExecutor(1)
    running = hold(executor, gate)
    waiting = executor.submit(abs, -1)
    processes = dict(executor._processes or {})
    executor.kill_workers()
    assert isinstance(running.exception(0), BrokenProcessPool)
    assert waiting.cancelled()
    for process in processes.values():
        process.join(30)
        assert not process.is_alive()
    with pytest.raises(RuntimeError):
        executor.submit(abs, -1)
    executor.shutdown()
    executor.kill_workers()


def test_terminate_workers_sends_them_a_signal(gate: Gate) -> None:
    executor = stook.ProcessPoolExecutor(1)
    running = hold(executor, gate)
    waiting = executor.submit(abs, -1)
    executor.terminate_workers()
    assert waiting.cancelled()
    error = running.exception(30)
    assert isinstance(error, stook.WorkerDied) and error.exit_code == -15
    executor.shutdown()


def test_an_executor_without_tasks_ends_without_workers() -> None:
    for end in ("shutdown", "kill_workers", "terminate_workers"):
        executor = stook.ProcessPoolExecutor(2)
        getattr(executor, end)()
        assert not executor._processes
        with pytest.raises(RuntimeError, match="after shutdown"):
            executor.submit(abs, -1)


def test_a_thread_that_cannot_be_started_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    executor = stook.ProcessPoolExecutor(2)
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            executor.submit(abs, -1)
    assert _futures_exit._pools == set()
    assert executor.submit(abs, -1).result(30) == 1
    executor.shutdown()


def test_a_fault_of_the_pools_thread_is_everybodys_error(
    gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", lambda fault: heard.append(fault.exc_value))
    executor = stook.ProcessPoolExecutor(1)
    running = hold(executor, gate)
    monkeypatch.setattr(_attendant.Attendant, "_call_back_all", raise_it)
    running.add_done_callback(print)
    with pytest.raises(BrokenProcessPool, match="thread of the process pool failed"):
        running.result(30)
    monkeypatch.undo()
    executor.shutdown()
    assert len(heard) == 1
