"""Runs one module of CPython's tests, in this process, and writes down what becomes of each test.

    python run_suite.py MODULE EVENTS PATTERN...

EVENTS is a file of JSON lines that the parent process reads while this one runs. Tests whose end is
written there already are not run again: after a hang or a crash the parent starts this program
anew, and it goes on with the next test. The patterns select tests by their full names, as in
fnmatch.
"""

from __future__ import annotations

import importlib
import json
import multiprocessing.forkserver
import os
import sys
import time
import traceback
import unittest
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import standins
from exclusions import exclusion_of

sys.path.append(str(Path(__file__).resolve().parent.parent))
from leftovers import Snapshot, left_since

# A process may take this long to end after the test that started it.
LEFTOVER_SECONDS = 8.0


class Events:
    """The file of events. Only this process writes to it, whoever inherits it by forking."""

    def __init__(self, path: Path) -> None:
        self.ended = set()
        if path.exists():
            for line in path.read_text().splitlines():
                event = json.loads(line)
                if event["event"] == "end":
                    self.ended.add(event["test"])
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)

    def write(self, event: str, **values: Any) -> None:
        os.write(self._file, (json.dumps({"event": event, **values}) + "\n").encode())


class Result(unittest.TestResult):
    """Writes an event at the start and at the end of each test, and looks at what it leaves."""

    def __init__(self, events: Events) -> None:
        super().__init__()
        self._events = events
        self._before = Snapshot()
        self._began = 0.0
        self._outcome = ("passed", "")

    def startTest(self, test: unittest.TestCase) -> None:
        super().startTest(test)
        self._events.write("start", test=test.id())
        self._outcome = ("passed", "")
        self._before = Snapshot.take(("processes",))
        self._began = time.monotonic()

    def stopTest(self, test: unittest.TestCase) -> None:
        seconds = time.monotonic() - self._began
        text = left_behind(self._before)
        if text:
            self._fail(text)
        outcome, text = self._outcome
        self._events.write("end", test=test.id(), outcome=outcome, text=text, seconds=seconds)
        super().stopTest(test)

    def addError(self, test: Any, error: Any) -> None:
        if isinstance(test, unittest.TestCase):
            self._fail("".join(traceback.format_exception(*error)))
        else:  # a fixture of a class or of a module
            self._events.write(
                "end",
                test=f"{test}",
                outcome="failed",
                text="".join(traceback.format_exception(*error)),
                seconds=0,
            )

    def addFailure(self, test: Any, error: Any) -> None:
        self.addError(test, error)

    def addSubTest(self, test: Any, subtest: Any, error: Any) -> None:
        if error is not None:
            self._fail(f"{subtest}\n" + "".join(traceback.format_exception(*error)))

    def addSkip(self, test: Any, reason: str) -> None:
        if isinstance(test, unittest.TestCase):
            self._outcome = ("skipped", reason)
        else:
            self._events.write("end", test=f"{test}", outcome="skipped", text=reason, seconds=0)

    def addUnexpectedSuccess(self, test: Any) -> None:
        self._fail("CPython expects this test to fail, and it did not.")

    def leave_class(self, name: str, before: Snapshot) -> None:
        text = left_behind(before)
        if text:
            self._events.write(
                "end", test=f"{name} (as a whole)", outcome="failed", text=text, seconds=0
            )

    def _fail(self, text: str) -> None:
        outcome, earlier = self._outcome
        self._outcome = ("failed", f"{earlier}\n{text}" if outcome == "failed" else text)


def left_behind(before: Snapshot) -> str:
    """What is new since then and does not end, or what CPython's support module says of it."""
    from test import support

    lines = []
    if support.environment_altered:
        support.environment_altered = False
        lines.append("CPython's test support found threads or processes left (see the log).")
    now = Snapshot.take(("processes",))
    # One server for all forkserver contexts of this process: it lives on, its children do not.
    server = multiprocessing.forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
    for key, text in now.found["processes"].items():
        if isinstance(key, tuple) and key[0] == server:
            before.found["processes"][key] = text
    lines += left_since(before, ("processes",), LEFTOVER_SECONDS)
    return "Left behind:\n" + "\n".join(lines) if lines else ""


class Suite(unittest.TestSuite):
    """Says which class comes, and looks at the end of each at what it left behind."""

    _before: Snapshot | None = None

    def __init__(self, events: Events, tests: list[unittest.TestCase]) -> None:
        super().__init__(tests)
        self._events = events

    def _handleClassSetUp(self, test: Any, result: Any) -> None:
        if getattr(result, "_previousTestClass", None) is not type(test):
            self._before = Snapshot.take(("processes",))
            self._events.write("class", name=name_of(type(test)))
        super()._handleClassSetUp(test, result)  # type: ignore[misc]

    def _tearDownPreviousClass(self, test: Any, result: Any) -> None:
        previous = getattr(result, "_previousTestClass", None)
        super()._tearDownPreviousClass(test, result)  # type: ignore[misc]
        if previous is not None and type(test) is not previous and self._before is not None:
            result.leave_class(name_of(previous), self._before)
            self._before = None


def name_of(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def flattened(suite: Any) -> Iterator[unittest.TestCase]:
    """The test cases of nested suites."""
    if isinstance(suite, unittest.TestCase):
        yield suite
    else:
        for part in suite:
            yield from flattened(part)


def belongs(case: unittest.TestCase) -> bool:
    """Whether the test is about pools of processes, or threads with the interface of such."""
    executor = getattr(case, "executor_type", None)
    if executor is not None:
        from concurrent.futures import ThreadPoolExecutor

        if executor is ThreadPoolExecutor:
            return False
        expected = standins.stand_in("ProcessPoolExecutor")
        assert executor is expected, f"{case.id()} tests {executor}, not {expected}"
    if type(case).__module__.startswith("pools_"):
        from pool_suite import is_pool_test

        return is_pool_test(case)
    # The base class has the tests of futures themselves, which have no executor.
    return not type(case).__module__.endswith(("test_as_completed", "test_wait")) or bool(executor)


def main() -> int:
    """Runs the module named on the command line."""
    name, path, *patterns = sys.argv[1:]
    from test import support

    support.verbose = 0
    events = Events(Path(path))
    try:
        module = importlib.import_module(name)
    except unittest.SkipTest as skip:
        events.write("end", test=name, outcome="skipped", text=str(skip), seconds=0)
        events.write("done")
        return 0
    tests = []
    for case in flattened(unittest.defaultTestLoader.loadTestsFromModule(module)):
        test = case.id()
        if not belongs(case) or not any(fnmatchcase(test, p) for p in patterns):
            continue
        if test in events.ended:
            continue
        exclusion = exclusion_of(test)
        if exclusion is None:
            tests.append(case)
        else:
            text = f"{exclusion.reason}; instead of it: {exclusion.ours}"
            events.write(
                "end",
                test=test,
                outcome="skipped",
                text=text,
                seconds=0,
                excluded=exclusion.tests,
            )
    events.write("plan", tests=[case.id() for case in tests])
    result = Result(events)
    Suite(events, tests).run(result)
    events.write("done")
    return 0


if __name__ == "__main__":
    sys.exit(main())
