"""Signal handlers that use the pool which they interrupt."""

from __future__ import annotations

import pytest

from conftest import RunPython

CALLS = {
    "map": "pool.map(double, range(10))",
    "map, one by one": "pool.map(double, range(10), 1)",
    "imap": "list(pool.imap(double, range(10)))",
    "imap of a generator": "list(pool.imap(double, iter(list(range(10))), 2))",
}


@pytest.mark.parametrize("outer", CALLS)
@pytest.mark.parametrize("inner", ["map", "imap"])
def test_a_handler_that_uses_the_pool_changes_no_result(
    run_python: RunPython, outer: str, inner: str
) -> None:
    run_python(
        f"""
import signal
import stook

pool = stook.Pool(2)
expected = [2 * i for i in range(10)]
inside = False
handled = 0

def double(x):
    return 2 * x

def handle(*_):
    global inside, handled
    if inside:
        return
    inside = True
    got = {CALLS[inner]}
    inside = False
    assert got == expected, ("in the handler", got)
    handled += 1
    signal.setitimer(signal.ITIMER_REAL, 0.0002 + 0.00002 * (handled % 40))

pool.map(double, range(10))
signal.signal(signal.SIGALRM, handle)
signal.setitimer(signal.ITIMER_REAL, 0.001)
while handled < 1000:
    got = {CALLS[outer]}
    assert got == expected, got
signal.setitimer(signal.ITIMER_REAL, 0)
signal.signal(signal.SIGALRM, signal.SIG_IGN)
pool.terminate()
"""
    ).check()
