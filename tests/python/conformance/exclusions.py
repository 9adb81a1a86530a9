"""The tests of CPython that are not run, each with its reason and the test of ours in its place."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from fnmatch import fnmatchcase


@dataclass(frozen=True)
class Exclusion:
    """Tests that are not run.

    Attributes:
      tests: A pattern of their names, as in `pools_fork.WithProcessesTestPool.test_*`.
      reason: What they ask of the implementation that is not of the interface.
      ours: The test that asks for the behaviour itself, `tests/python/.../test_x.py::test_name`, or
        CORRECTED.
      before: Only the tests of Pythons older than this.
    """

    tests: str
    reason: str
    ours: str
    before: tuple[int, int] | None = None


CORRECTED = "the same test as corrected in a later Python"

EXCLUSIONS: tuple[Exclusion, ...] = (
    Exclusion(
        "WithThreadsTestPool.test_terminate",
        "lets threads sleep for five minutes, and hangs if one of them starts before terminate()",
        CORRECTED,
        before=(3, 13),
    ),
    Exclusion(
        "test_process_pool.*test_python_finalization_error",
        "fails the second thread that CPython's executor starts; this one has a single thread",
        "tests/python/process/test_executor_end.py::test_a_thread_that_cannot_be_started_leaves_nothing",
    ),
    Exclusion(
        "TestPoolNotLeakOnFailure.test_release_unused_processes",
        "starts the workers through a fake multiprocessing.Process; here a fork server forks them",
        "tests/python/process/test_task_pool_workers.py::test_a_pool_that_cannot_start_leaves_nothing",
    ),
)


def exclusion_of(test: str) -> Exclusion | None:
    """What excludes the test of that name, if anything does."""
    for exclusion in EXCLUSIONS:
        old = exclusion.before is None or sys.version_info[:2] < exclusion.before
        if old and fnmatchcase(test, f"*{exclusion.tests}"):
            return exclusion
    return None
