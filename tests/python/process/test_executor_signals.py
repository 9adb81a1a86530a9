"""Signal handlers that use the executor which they interrupt."""

from __future__ import annotations

import concurrent.futures
import threading
from typing import Any

import stook

PATIENCE = 30


def test_a_handler_submits_while_the_workers_are_being_started() -> None:
    got: list[int] = []
    executor = stook.ProcessPoolExecutor(1)
    make = executor._make_pool

    def interrupted(method: str) -> Any:
        executor._make_pool = make  # type: ignore[method-assign]
        pool = make(method)
        got.append(executor.submit(abs, -1).result())  # the handler's
        return pool

    executor._make_pool = interrupted  # type: ignore[method-assign]
    outer = threading.Thread(
        target=lambda: got.append(executor.submit(abs, -2).result()), daemon=True
    )
    outer.start()
    outer.join(PATIENCE)
    assert got == [1, 2]
    executor.shutdown()


def test_a_handler_shuts_down_while_the_workers_are_being_started() -> None:
    executor = stook.ProcessPoolExecutor(1)
    make = executor._make_pool
    refused: list[BaseException] = []

    def interrupted(method: str) -> Any:
        executor.shutdown(wait=False)
        return make(method)

    def submit() -> None:
        try:
            executor.submit(abs, -2)
        except RuntimeError as error:
            refused.append(error)

    executor._make_pool = interrupted  # type: ignore[method-assign]
    outer = threading.Thread(target=submit, daemon=True)
    outer.start()
    outer.join(PATIENCE)
    assert "after shutdown" in str(refused[0])


def test_ctrl_c_left_the_lock_of_a_future_locked() -> None:
    """As it may in `concurrent.futures.wait`; nobody hangs for it but who needs that lock."""
    executor = stook.ProcessPoolExecutor(1)
    executor.submit(abs, 0).result()
    future = executor.submit(abs, -1)
    with concurrent.futures.ThreadPoolExecutor(1) as another_thread:
        # Of a thread that is alive and will not give it back before the end of this block.
        another_thread.submit(future._condition.acquire).result(PATIENCE)
        future._pool.attendant.watch()  # as wait() does
        assert executor.submit(abs, -2).result(PATIENCE) == 2
        assert future.result(PATIENCE) == 1
        assert future.done()
        assert future.exception(PATIENCE) is None
        assert not future.cancel()
        another_thread.submit(future._condition.release).result(PATIENCE)
    told: list[int] = []
    called = threading.Event()
    future.add_done_callback(lambda done: (told.append(done.result()), called.set()))
    assert called.wait(PATIENCE)
    assert told == [1]
    assert concurrent.futures.wait([future], PATIENCE).done == {future}
    executor.shutdown()


def test_who_was_to_be_told_is_told_when_the_lock_is_free() -> None:
    executor = stook.ProcessPoolExecutor(1)
    executor.submit(abs, 0).result()
    future = executor.submit(abs, -1)
    called = threading.Event()
    future.add_done_callback(lambda done: called.set())
    with concurrent.futures.ThreadPoolExecutor(1) as another_thread:
        another_thread.submit(future._condition.acquire).result(PATIENCE)
        assert future.result(PATIENCE) == 1
        another_thread.submit(future._condition.release).result(PATIENCE)
    assert called.wait(PATIENCE)
    executor.shutdown()


def test_who_has_the_lock_waits_for_the_future_again() -> None:
    executor = stook.ProcessPoolExecutor(1)
    executor.submit(abs, 0).result()
    future = executor.submit(abs, -1)
    future._condition.acquire()  # interrupted here, in this thread
    future._pool.attendant.watch()
    assert executor.submit(abs, -2).result(PATIENCE) == 2
    assert concurrent.futures.wait([future], PATIENCE).done == {future}
    future._condition.release()
    executor.shutdown()
