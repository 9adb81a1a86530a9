"""What an executor does while nothing is to be done."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from pool_calls import DEADLINE, fifo, wait_for

import stook


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        os.sched_yield()


def sleeps(executor: stook.ProcessPoolExecutor) -> int:
    """How often the pool's thread has gone to sleep."""
    assert executor._pool is not None
    thread = executor._pool.thread.native_id
    status = Path(f"/proc/self/task/{thread}/status").read_text()
    return int(status.split("voluntary_ctxt_switches:")[1].split()[0])


def stays_asleep(executor: stook.ProcessPoolExecutor) -> bool:
    before = sleeps(executor)
    time.sleep(0.3)  # for so long it is looked at
    return sleeps(executor) == before


def test_an_idle_pool_sleeps() -> None:
    with stook.ProcessPoolExecutor(1) as executor:
        assert executor.submit(abs, -1).result() == 1
        until(lambda: stays_asleep(executor))
        assert executor.submit(abs, -2).result() == 2


@pytest.mark.parametrize("how", ["result", "callback", "nobody"])
def test_the_pool_sleeps_while_a_call_takes_long(how: str, tmp_path: Path) -> None:
    gate = fifo(tmp_path, "gate")
    with stook.ProcessPoolExecutor(1) as executor:
        assert executor.submit(abs, -1).result() == 1
        future = executor.submit(wait_for, gate, 5)
        waits = threading.Thread(target=future.result)
        if how == "callback":
            future.add_done_callback(lambda done: None)
        if how == "result":
            waits.start()
        until(lambda: stays_asleep(executor))
        with open(gate, "wb"):
            pass
        assert future.result(DEADLINE) == 5
        if how == "result":
            waits.join()
