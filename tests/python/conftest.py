"""What every Python test has: a check of what it left behind, and programs of its own."""

from __future__ import annotations

import os
import secrets
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy  # starts OpenBLAS's threads, which are no test's fault.
import pytest

from leftovers import KINDS, RUN_MARK, Snapshot, left_since
from python_process import STRICT, Finished, PythonProcess

# What scripts/conformance.py runs, in environments of its own.
collect_ignore_glob = ["conformance/[!t]*.py"]

# What a shell starts in the background is deaf to Ctrl-C, and so would be the programs of tests.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

os.environ.setdefault(RUN_MARK, secrets.token_hex(8))

_blas_threads = set(os.listdir("/proc/self/task")) - {str(os.getpid())}


def _start_blas() -> None:
    """Starts OpenBLAS's threads again, which end when the process forks.

    Else they would be started by the next test that multiplies matrices, and be left behind by it.
    """
    global _blas_threads
    before = set(os.listdir("/proc/self/task"))
    if not _blas_threads <= before:
        matrix = numpy.ones((200, 200))
        matrix @ matrix
        _blas_threads = set(os.listdir("/proc/self/task")) - before


@pytest.fixture(autouse=True)
def nothing_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fails a test that leaves a process, thread, descriptor, mapping or segment behind.

    ``@pytest.mark.leaves("reason", "threads", ...)`` lets a test leave those kinds.
    """
    kinds = list(KINDS)
    for mark in request.node.iter_markers("leaves"):
        reason, *allowed = mark.args
        if not reason or not allowed or not set(allowed) <= set(KINDS):
            pytest.fail(f"leaves(reason, *kinds) needs a reason and kinds out of {KINDS}")
        kinds = [kind for kind in kinds if kind not in allowed]
    _start_blas()
    before = Snapshot.take(kinds)
    yield
    if "stook._core" in sys.modules:
        # What a process that has made segments keeps until its end: a descriptor and its file.
        sys.modules["stook._core"].leave_segments()
    left = left_since(before, kinds)
    if left:
        pytest.fail("This test left behind:\n" + "\n".join(left), pytrace=False)


class StartPython(Protocol):
    """Starts a script; what is left of it at the test's end is killed."""

    def __call__(
        self,
        code: str,
        *arguments: str,
        env: dict[str, str | None] | None = None,
        cwd: Path | None = None,
        flags: tuple[str, ...] = STRICT,
    ) -> PythonProcess: ...


class RunPython(Protocol):
    """Runs a script to its end, and asserts that nothing of its process tree is left then."""

    def __call__(
        self,
        code: str,
        *arguments: str,
        deadline: float = 60,
        env: dict[str, str | None] | None = None,
        cwd: Path | None = None,
        flags: tuple[str, ...] = STRICT,
    ) -> Finished: ...


@pytest.fixture
def start_python(tmp_path: Path) -> Iterator[StartPython]:
    """See StartPython."""
    started: list[PythonProcess] = []

    def start(
        code: str,
        *arguments: str,
        env: dict[str, str | None] | None = None,
        cwd: Path | None = None,
        flags: tuple[str, ...] = STRICT,
    ) -> PythonProcess:
        folder = tmp_path / f"python-{len(started)}"
        started.append(PythonProcess(folder, code, arguments, env or {}, cwd, flags))
        return started[-1]

    yield start
    for process in started:
        process.end()


@pytest.fixture
def run_python(start_python: StartPython) -> RunPython:
    """See RunPython."""

    def run(
        code: str,
        *arguments: str,
        deadline: float = 60,
        env: dict[str, str | None] | None = None,
        cwd: Path | None = None,
        flags: tuple[str, ...] = STRICT,
    ) -> Finished:
        return start_python(code, *arguments, env=env, cwd=cwd, flags=flags).finish(deadline)

    return run
