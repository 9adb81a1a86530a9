"""Elements that take too long, and jobs that go on without the item that their worker died of."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

import stook
from stook import _core
from stook._start import start_processes

# Long enough for whatever is not stuck, on a machine that is busy with other things.
ALLOWED = 1.5


class _Policy:
    def __init__(self, takes_losses: bool) -> None:
        self.takes_losses = takes_losses


class BatchTask:
    """Each item of the payload is a word that says what happens to it; losses are left out."""

    seed = None

    def __init__(self, takes_losses: bool, heed: bool = True) -> None:
        self.policy = _Policy(takes_losses)
        self.heed = heed

    def bind(self) -> Callable[..., Any]:
        return self.run

    def run(self, epoch: int, position: int, payload: Any, losses: Any = ()) -> Any:
        done = []
        lost = {loss[0] for loss in losses} if self.heed else set()
        for number, what in enumerate(payload):
            if number in lost:
                continue
            _core.begin_item(number)
            if what == "stick":
                time.sleep(1000)
            elif what == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            elif what == "exit":
                os._exit(3)
            elif what == "fork":
                child = os.fork()
                if child == 0:
                    _core.begin_item(0)
                    os._exit(0)
                os.waitpid(child, 0)
            done.append((number, what))
        return done, losses


@contextmanager
def running(
    jobs: Iterable[Any],
    *,
    losses: bool = True,
    heed: bool = True,
    workers: int = 2,
    ordered: bool = True,
    timeout: float | None = ALLOWED,
    max_restarts: int = 0,
) -> Iterator[tuple[_core.WorkerPool, _core.ResultIterator]]:
    options = stook.MultiprocessingOptions(
        workers, 2, start_method="fork", timeout=timeout, max_restarts=max_restarts
    )
    core, logs = start_processes({}, BatchTask(losses, heed), options)
    try:
        yield core, _core.ResultIterator(core, iter(jobs), ordered)
    finally:
        core.close()
        logs.close()


def restarts(core: _core.WorkerPool) -> int:
    return core.totals()[4]


@pytest.mark.parametrize("ordered", [True, False])
def test_a_stuck_element_is_an_error_and_the_others_come(ordered: bool) -> None:
    jobs = [(0, p, ["stick" if p == 3 else "fine"]) for p in range(10)]
    fine = []
    with running(jobs, losses=False, ordered=ordered) as (core, results):
        while True:
            try:
                fine.append(next(results))
            except StopIteration:
                break
            except stook.ElementTimeout as error:
                assert (error.index, error.seconds) == (3, ALLOWED)
                assert error.worker in (0, 1)
        assert restarts(core) == 1
    assert len(fine) == 9


def test_a_batch_comes_without_the_items_that_took_too_long() -> None:
    job = (0, 0, ["fine", "stick", "fine", "fork", "stick"])
    with running([job]) as (core, results):
        done, losses = next(results)
        assert restarts(core) == 2
    assert done == [(0, "fine"), (2, "fine"), (3, "fork")]
    assert [(item, late) for item, _, _, _, _, late, _ in losses] == [(1, True), (4, True)]
    assert {os.waitstatus_to_exitcode(loss[3]) for loss in losses} == {-signal.SIGKILL}


@pytest.mark.parametrize("max_restarts", [0, 2])
def test_a_batch_comes_without_the_item_that_its_workers_died_of(max_restarts: int) -> None:
    job = (0, 0, ["fine", "exit", "die", "fine"])
    with running([job, (0, 1, ["fine"])], timeout=None, max_restarts=max_restarts) as (
        core,
        results,
    ):
        done, losses = next(results)
        assert next(results) == ([(0, "fine")], ())
        assert restarts(core) == 2 * (max_restarts + 1)
    assert done == [(0, "fine"), (3, "fine")]
    assert [(loss[0], loss[4], loss[5]) for loss in losses] == [
        (1, max_restarts + 1, False),
        (2, max_restarts + 1, False),
    ]
    assert [os.waitstatus_to_exitcode(loss[3]) for loss in losses] == [3, -signal.SIGKILL]


@pytest.mark.parametrize("what", ["die", "stick"])
def test_a_task_that_does_not_heed_its_losses_is_not_run_for_ever(what: str) -> None:
    error = stook.WorkerDied if what == "die" else stook.ElementTimeout
    with running([(0, 0, ["fine", what]), (0, 1, ["fine"])], heed=False) as (core, results):
        with pytest.raises(error) as caught:
            next(results)
        assert caught.value.index == 0
        assert next(results)[0] == [(0, "fine")]
        assert restarts(core) == 3


def test_begin_item_outside_of_workers_does_nothing() -> None:
    assert _core.begin_item(5) is None  # type: ignore[func-returns-value]
    with pytest.raises(TypeError):
        _core.begin_item("five")  # type: ignore[arg-type]


def test_a_loader_with_a_timeout_goes_on_after_the_element() -> None:
    program = textwrap.dedent(
        f"""
        import time
        import stook

        def load(index):
            if index == 4:
                time.sleep(1000)
            return index * 10

        options = stook.MultiprocessingOptions(2, timeout={ALLOWED})
        with stook.DataLoader(range(8), load, options=options) as loader:
            elements = iter(loader)
            found = []
            for _ in range(8):
                try:
                    found.append(next(elements))
                except stook.ElementTimeout as error:
                    found.append((error.index, error.seconds, error.worker in (0, 1)))
            print(found, loader.stats().restarts)
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.stderr == ""
    assert done.stdout == f"[0, 10, 20, 30, (4, {ALLOWED}, True), 50, 60, 70] 1\n"
