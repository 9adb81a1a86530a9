"""CPython's tests of multiprocessing.Pool with the start method fork.

A module of its own, because worker processes import by its name what they run.
"""

from __future__ import annotations

from pool_suite import install_pool_tests

install_pool_tests(globals(), "fork")
