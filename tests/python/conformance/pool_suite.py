"""Which tests of test._test_multiprocessing are about pools."""

from __future__ import annotations

import unittest
from multiprocessing.process import BaseProcess
from typing import Any
from unittest import mock

from test import _test_multiprocessing

# A class, or the tests of a class that is about more than pools.
POOL_TESTS: dict[str, tuple[str, ...]] = {
    "WithProcessesTestPool": (),
    "WithManagerTestPool": (),
    "WithThreadsTestPool": (),
    "WithProcessesTestPoolWorkerErrors": (),
    "WithProcessesTestPoolWorkerLifetime": (),
    "TestPoolNotLeakOnFailure": (),
    "TestInitializers": ("test_pool_initializer",),
    "TestStdinBadfiledescriptor": ("test_pool_in_process",),
    "TestSyncManagerTypes": ("test_pool",),
    "MiscTestCase": ("test_large_pool",),
}


IN_A_PROCESS = "TestStdinBadfiledescriptor"


class InAProcess:
    """CPython's test of a pool in a child process does not ask how the child ended: this does."""

    def test_pool_in_process(self) -> None:
        join = BaseProcess.join

        def join_and_ask(process: BaseProcess, timeout: float | None = None) -> None:
            join(process, timeout)
            assert process.exitcode == 0, f"{process} ended with {process.exitcode}"

        with mock.patch.object(BaseProcess, "join", join_and_ask):
            super().test_pool_in_process()  # type: ignore[misc]


def install_pool_tests(module: dict[str, Any], start_method: str) -> None:
    """Puts the test classes about pools, with their fixtures, into a module's dictionary."""
    everything: dict[str, Any] = {"__name__": module["__name__"]}
    _test_multiprocessing.install_tests_in_module_dict(everything, start_method)
    for name in ("setUpModule", "tearDownModule", *POOL_TESTS):
        # A class that is not there would be a suite that has become smaller unnoticed.
        module[name] = everything[name]
    module[IN_A_PROCESS] = type(
        IN_A_PROCESS, (InAProcess, everything[IN_A_PROCESS]), {"__module__": module["__name__"]}
    )


def is_pool_test(case: unittest.TestCase) -> bool:
    """Whether the test is one of those above."""
    names = POOL_TESTS[type(case).__name__]
    return not names or case._testMethodName in names
