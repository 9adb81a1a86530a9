"""Signal handlers that use the executor which they interrupt."""

from __future__ import annotations

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
