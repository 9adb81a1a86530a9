"""An executor for a test, and a gate that keeps its workers."""

from __future__ import annotations

import contextlib
import fcntl
import multiprocessing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import stook
from leftovers import wait_until

METHODS = ("forkserver", "fork")


@contextlib.contextmanager
def executor_with(
    max_workers: int = 2, method: str = "forkserver", **settings: Any
) -> Iterator[stook.ProcessPoolExecutor]:
    context = multiprocessing.get_context(method)
    with stook.ProcessPoolExecutor(max_workers, context, **settings) as executor:
        yield executor


@pytest.fixture(params=METHODS)
def executor(request: pytest.FixtureRequest) -> Iterator[stook.ProcessPoolExecutor]:
    with executor_with(method=request.param) as made:
        yield made


class Gate:
    """Keeps workers that come to it until it is opened: a file lock, so that nobody has to look."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self._file = path.open("w")
        fcntl.flock(self._file, fcntl.LOCK_EX)

    def open(self) -> None:
        fcntl.flock(self._file, fcntl.LOCK_UN)

    def close(self) -> None:
        self.open()
        self._file.close()


@pytest.fixture
def gate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gate]:
    made = Gate(tmp_path_factory.mktemp("gate") / "gate")
    yield made
    made.close()


def pass_gate(path: str, value: Any = None) -> Any:
    with open(path) as gate:
        fcntl.flock(gate, fcntl.LOCK_SH)
    return value


def hold(executor: stook.ProcessPoolExecutor, gate: Gate) -> Any:
    """A task that a worker has begun, and that ends when the gate is opened."""
    future = executor.submit(pass_gate, gate.path, "passed")
    assert wait_until(future.running, 30)
    return future


def raise_it(error: BaseException) -> None:
    raise error
