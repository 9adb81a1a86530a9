"""Which tests of test._test_multiprocessing are about pools."""

from __future__ import annotations

import unittest
from typing import Any

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


def install_pool_tests(module: dict[str, Any], start_method: str) -> None:
    """Puts the test classes about pools, with their fixtures, into a module's dictionary."""
    everything: dict[str, Any] = {"__name__": module["__name__"]}
    _test_multiprocessing.install_tests_in_module_dict(everything, start_method)
    for name in ("setUpModule", "tearDownModule", *POOL_TESTS):
        # A class that is not there would be a suite that has become smaller unnoticed.
        module[name] = everything[name]


def is_pool_test(case: unittest.TestCase) -> bool:
    """Whether the test is one of those above."""
    names = POOL_TESTS[type(case).__name__]
    return not names or case._testMethodName in names
