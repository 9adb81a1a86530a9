"""Elements whose user code would end the loop, or ends the worker."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

import pytest
from process_loader import each_method, made

import stook

# ---- leaving a worker ----------------------------------------------------------------------------


def leaves(how: str) -> Any:
    if how == "sys.exit":
        sys.exit(3)
    if how == "interrupt":
        raise KeyboardInterrupt
    if how == "stop":
        raise StopIteration
    if how == "generator":
        raise GeneratorExit
    return how


@each_method
@pytest.mark.parametrize(
    ("how", "kind"),
    [
        ("sys.exit", SystemExit),
        ("interrupt", KeyboardInterrupt),
        ("stop", StopIteration),
        ("generator", GeneratorExit),
    ],
)
def test_what_would_end_the_loop_is_an_error_of_its_element(
    method: str, how: str, kind: type[BaseException]
) -> None:
    with made(method, ["a", how, "b"], leaves) as loader:
        elements = iter(loader)
        assert next(elements) == "a"
        with pytest.raises(stook.ElementError, match=f"{kind.__name__} was raised") as caught:
            next(elements)
        assert isinstance(caught.value.__cause__, kind)
        assert (caught.value.index, caught.value.worker in (0, 1)) == (1, True)
        assert list(elements) == ["b"]
        assert loader.stats().restarts == 0


def dies(how: str) -> Any:
    if how == "exit 0":
        os._exit(0)
    if how == "abort":
        os.abort()
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "term":
        os.kill(os.getpid(), signal.SIGTERM)
    return how


DEATHS = {"exit 0": 0, "abort": -signal.SIGABRT, "kill": -signal.SIGKILL, "term": -signal.SIGTERM}


@each_method
@pytest.mark.parametrize("how", DEATHS)
@pytest.mark.parametrize("on_worker_death", ["restart", "raise"])
def test_an_element_that_its_workers_die_of(
    method: str, how: str, on_worker_death: str, capfd: pytest.CaptureFixture[str]
) -> None:
    code = DEATHS[how]
    with made(
        method, ["a", how, "b", "c"], dies, on_worker_death=on_worker_death, max_restarts=2
    ) as loader:
        elements = iter(loader)
        assert next(elements) == "a"
        with pytest.raises(stook.WorkerDied) as caught:
            next(elements)
        assert f"terminated unexpectedly with exit code {code}" in str(caught.value)
        assert (caught.value.exit_code, caught.value.index) == (code, 1)
        assert isinstance(caught.value, RuntimeError)
        times = 3 if on_worker_death == "restart" else 1
        assert ("3 workers died of this element" in str(caught.value)) == (times == 3)
        assert list(elements) == ["b", "c"]
        assert loader.stats().restarts == times
    capfd.readouterr()  # faulthandler's


def dies_at_first(index: int) -> Any:
    info = stook.worker_info()
    assert info is not None
    if info.incarnation == 0:
        os._exit(1)
    return index


@each_method
def test_a_lost_element_is_made_by_the_next_worker(method: str) -> None:
    with made(method, range(20), dies_at_first) as loader:
        assert list(loader) == list(range(20))
        assert 1 <= loader.stats().restarts <= 2


def dies_always(index: int) -> Any:
    os._exit(index % 3)


@each_method
def test_every_element_dies(method: str) -> None:
    with made(method, range(10), dies_always, max_restarts=0) as loader:
        elements = iter(loader)
        for index in range(10):
            with pytest.raises(stook.WorkerDied, match=f"exit code {index % 3}"):
                next(elements)
        assert list(elements) == []
