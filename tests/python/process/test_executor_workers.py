"""Workers of stook.ProcessPoolExecutor: how many, set up how, replaced when."""

from __future__ import annotations

import logging
import multiprocessing
import os
import pickle
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import executor_calls
import pytest
from executor_calls import METHODS, Gate, executor_with, pass_gate, raise_it

import stook

# Fixtures, which are looked for here.
executor = executor_calls.executor
gate = executor_calls.gate


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"max_workers": 0}, ValueError, "max_workers must be greater than 0"),
        ({"max_workers": -1}, ValueError, "max_workers must be greater than 0"),
        ({"mp_context": "fork"}, TypeError, "must be a context"),
        ({"initializer": 3}, TypeError, "initializer must be a callable"),
        ({"max_tasks_per_child": 0}, ValueError, "must be >= 1"),
        ({"max_tasks_per_child": 1.5}, TypeError, "must be an integer"),
        (
            {"max_tasks_per_child": 2, "mp_context": multiprocessing.get_context("fork")},
            ValueError,
            "incompatible with the 'fork'",
        ),
        ({"options": {"num_workers": 2}}, TypeError, "MultiprocessingOptions or None, got {"),
    ],
)
def test_arguments_are_checked(
    arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        stook.ProcessPoolExecutor(**arguments)


def test_the_number_of_workers_is_that_of_the_processors_or_the_options() -> None:
    assert stook.ProcessPoolExecutor()._max_workers == len(os.sched_getaffinity(0))
    options = stook.MultiprocessingOptions(num_workers=3, start_method="fork")
    executor = stook.ProcessPoolExecutor(options=options)
    assert executor._max_workers == 3
    assert executor._mp_context.get_start_method() == "fork"
    assert (
        stook.ProcessPoolExecutor(max_tasks_per_child=3)._mp_context.get_start_method() == "spawn"
    )


def test_workers_are_started_when_they_are_needed(gate: Gate) -> None:
    with executor_with(3) as executor:
        assert executor._processes == {}
        for _ in range(4):
            executor.submit(abs, -1).result(30)
        assert len(executor._processes) == 1
        futures = [executor.submit(pass_gate, gate.path) for _ in range(10)]
        assert len(executor._processes) == 3
        gate.open()
        assert all(future.result(30) is None for future in futures)
    with executor_with(3, "fork") as executor:
        executor.submit(abs, -1).result(30)
        assert len(executor._processes) == 3  # type: ignore[arg-type]


initialized: list[Any] = []


def initialize(*arguments: Any) -> None:
    initialized.extend([*arguments, os.getpid()])


def look() -> tuple[list[Any], int]:
    return initialized, os.getpid()


def put_through_the_queue(text: str) -> None:
    queue, lock, _ = initialized
    with lock:
        queue.put(text)


def test_the_initializer_runs_once_in_each_worker(executor: stook.ProcessPoolExecutor) -> None:
    with executor_with(2, initializer=initialize, initargs=("a", [1])) as made:
        seen = [made.submit(look).result(30) for _ in range(20)]
    assert all(state == ["a", [1], pid] for state, pid in seen)


@pytest.mark.parametrize("method", METHODS)
def test_an_initializer_gets_what_only_new_processes_are_sent(method: str) -> None:
    context = multiprocessing.get_context(method)
    queue, lock = context.Queue(), context.Lock()
    with executor_with(1, method, initializer=initialize, initargs=(queue, lock)) as executor:
        executor.submit(put_through_the_queue, "through the queue").result(30)
        assert queue.get(timeout=30) == "through the queue"
    queue.close()
    queue.join_thread()


@pytest.mark.parametrize("method", METHODS)
def test_an_initializer_that_fails_breaks_the_pool(
    method: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.CRITICAL):
        with executor_with(2, method, initializer=raise_it, initargs=(OSError(5, "no"),)) as made:
            futures = [made.submit(abs, -1) for _ in range(3)]
            for future in futures:
                with pytest.raises(BrokenProcessPool, match="no"):
                    future.result(30)
            assert made._broken
            with pytest.raises(BrokenProcessPool, match="no"):
                made.submit(abs, -1)
    assert "Exception in initializer:" in caplog.text


def test_a_worker_is_replaced_after_so_many_tasks() -> None:
    with stook.ProcessPoolExecutor(1, max_tasks_per_child=3) as executor:
        pids = [executor.submit(os.getpid).result(30) for _ in range(7)]
        assert pids[0] == pids[1] == pids[2] != pids[3] == pids[4] == pids[5] != pids[6]
        assert list(executor.map(abs, range(20))) == [*range(20)]


def test_an_executor_in_a_worker(executor: stook.ProcessPoolExecutor) -> None:
    def submit_there(number: int) -> int:
        with stook.ProcessPoolExecutor(1) as inner:
            return int(inner.submit(pow, number, 2).result())

    assert [executor.submit(submit_there, n).result(60) for n in (3, 4)] == [9, 16]


def test_a_worker_that_is_sent_an_executor_is_told_to_make_its_own(
    executor: stook.ProcessPoolExecutor,
) -> None:
    def use() -> Any:
        return executor.submit(abs, -1)

    with pytest.raises(stook.StookError, match="make"):
        executor.submit(use).result(30)
    with pytest.raises(TypeError, match="cannot be copied or pickled"):
        pickle.dumps(executor)


def in_forked_child(body: Callable[[], str]) -> str:
    """What `body` gives there; the child does not outlive it."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(writer, body().encode())
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader) as file:
        text = file.read()
    os.waitpid(pid, 0)
    return text


def test_a_forked_child_is_told_to_make_its_own(executor: stook.ProcessPoolExecutor) -> None:
    assert executor.submit(abs, -1).result(30) == 1

    def use() -> str:
        try:
            executor.submit(abs, -2)
        except stook.StookError as error:
            executor.shutdown()
            return str(error)
        return "accepted"

    assert "make a pool here" in in_forked_child(use)
    assert executor.submit(abs, -3).result(30) == 3


def test_an_unused_executor_works_in_a_forked_child() -> None:
    executor = stook.ProcessPoolExecutor(1)

    def use() -> str:
        with executor:
            return str(executor.submit(abs, -2).result(30))

    assert in_forked_child(use) == "2"
