"""Runs CPython's own tests of process pools against stook's pools.

    python scripts/conformance.py [--only PATTERN] [--tests PATTERN...] [--target MODULE]

The tests come from installed Pythons (their package `test`): those of concurrent.futures from 3.13,
those of multiprocessing.Pool from 3.13 and from the Python that runs this. Each gets a virtual
environment in build/ in which the classes are replaced (tests/python/conformance/standins.py).
build/reports/conformance.xml is the report, build/conformance-logs holds what was printed.

  --only      suites to run, as in fnmatch: 3.13/futures.test_wait, 3.11/pools_fork, '3.13/*' ...
  --tests     tests to run, as in fnmatch, of their full names: '*TestPool.test_map'
  --target    originals or broken instead of stook: a check of the harness itself
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from conformance_pythons import BUILD, CONFORMANCE, ROOT, environment_of, find_python

sys.path[:0] = [str(CONFORMANCE.parent), str(CONFORMANCE)]
from exclusions import CORRECTED, EXCLUSIONS  # noqa: E402

from leftovers import RUN_MARK, Process, process_tree, wait_until  # noqa: E402

MINUTE = 60

# The Python whose tests of concurrent.futures count: older ones know less, newer ones ask for more.
FUTURES_PYTHON = (3, 13)

FUTURES = tuple(
    f"test.test_concurrent_futures.{name}"
    for name in (
        "test_process_pool",
        "test_shutdown",
        "test_wait",
        "test_as_completed",
        "test_init",
        "test_deadlock",
    )
)
POOLS = (
    "pools_fork",
    "pools_forkserver",
    "pools_spawn",
    "test.test_multiprocessing_main_handling",
)

# The longest of the tests takes five seconds on two cores; a silence of this length is a hang.
SILENCE = 100.0
# A class is given up after so many hangs: each costs the silence above.
HANGS_OF_A_CLASS = 3


def say(text: str) -> None:
    """Prints at once, so that the lines of child processes come where they belong."""
    print(text, flush=True)


@dataclass
class Case:
    """What became of one test."""

    suite: str
    test: str
    outcome: str
    text: str = ""
    seconds: float = 0.0
    excluded: str | None = None


@dataclass
class Report:
    """All of them."""

    cases: list[Case] = field(default_factory=list)

    def add(self, *case: object, **more: object) -> None:
        """Notes it down, and prints it if it is bad."""
        made = Case(*case, **more)  # type: ignore[arg-type]
        self.cases.append(made)
        if made.outcome == "failed":
            say(f"FAILED {made.suite} {made.test}\n{made.text.rstrip()}\n")

    def write(self, path: Path) -> None:
        """As JUnit XML, which scripts/test.py counts."""
        root = ElementTree.Element("testsuites")
        suite = ElementTree.SubElement(root, "testsuite", name="conformance")
        for case in self.cases:
            element = ElementTree.SubElement(
                suite,
                "testcase",
                classname=case.suite,
                name=case.test,
                time=f"{case.seconds:.3f}",
            )
            if case.outcome == "failed":
                lines = case.text.strip().splitlines() or ["failed"]
                failure = ElementTree.SubElement(element, "failure", message=printable(lines[-1]))
                failure.text = printable(case.text)
            elif case.outcome == "skipped":
                ElementTree.SubElement(element, "skipped", message=printable(case.text))
        path.parent.mkdir(parents=True, exist_ok=True)
        ElementTree.ElementTree(root).write(path, encoding="utf-8", xml_declaration=True)


def printable(text: str) -> str:
    """XML cannot hold most control characters, not even escaped."""
    return re.sub(r"[^\t\n\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "?", text)


class Runner:
    """One process that runs one module of tests, all that it started, and what they report."""

    def __init__(
        self, python: Path, module: str, target: str, tests: list[str], files: Path
    ) -> None:
        self._mark = f"{RUN_MARK}={secrets.token_hex(8)}"
        name, _, value = self._mark.partition("=")
        self._events = files.with_suffix(".events")
        self._log = files.with_suffix(".log")
        self._log_start = self._log.stat().st_size if self._log.exists() else 0
        self._read = self._events.stat().st_size if self._events.exists() else 0
        self._folder = tempfile.TemporaryDirectory(prefix="conformance-")
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    str(python),
                    "-X",
                    "faulthandler",
                    str(CONFORMANCE / "run_suite.py"),
                    module,
                    str(self._events),
                    *tests,
                ],
                cwd=self._folder.name,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, name: value, "STOOK_CONFORMANCE": target},
                start_new_session=True,
            )

    def events(self) -> list[dict[str, object]]:
        """What it has reported since the last call."""
        if not self._events.exists():
            return []
        with self._events.open("rb") as file:
            file.seek(self._read)
            text = file.read()
        complete = text[: text.rfind(b"\n") + 1]
        self._read += len(complete)
        return [json.loads(line) for line in complete.splitlines()]

    def status(self) -> int | None:
        """How it ended, None while it runs."""
        return self._process.poll()

    def printed(self) -> str:
        """The end of what it and its processes have printed."""
        with self._log.open("rb") as file:
            file.seek(self._log_start)
            return file.read()[-20_000:].decode(errors="replace")

    def tree(self) -> list[Process]:
        """All that it started and that lives, also where the parents are gone."""
        pid = self._process.pid
        return [
            process
            for process in process_tree(pid, mark=self._mark, session=pid)
            if process.pid != pid
        ]

    def abort(self) -> None:
        """Makes every process print where it stands, and ends it.

        All are stopped first and die one after the other, so that none reacts to the death of
        another before its own, and so that their tracebacks do not mix.
        """
        pids = [self._process.pid, *(process.pid for process in self.tree())]
        for number in (signal.SIGSTOP, signal.SIGABRT):
            for pid in pids:
                send(pid, number)
        for pid in pids:
            send(pid, signal.SIGCONT)
            wait_until(functools.partial(self._dead, pid), 2)
        self.kill()

    def kill(self) -> list[str]:
        """Ends what is left, by its number; returns what that was, one line each."""
        left = [str(process) for process in self.tree()]

        def killed() -> bool:
            alive = [process.pid for process in self.tree() if process.state != "Z"]
            if self._process.poll() is None:
                alive.append(self._process.pid)
            for pid in alive:
                send(pid, signal.SIGKILL)
            return not alive

        wait_until(killed, 10)
        return left

    def close(self) -> None:
        """Removes the folder in which it ran."""
        self._folder.cleanup()

    def _dead(self, pid: int) -> bool:
        if pid == self._process.pid:
            return self._process.poll() is not None
        return all(process.pid != pid or process.state == "Z" for process in self.tree())


def send(pid: int, number: int) -> None:
    """A signal to a process that may be gone."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


class Watch:
    """Follows the processes of one suite until every test has had its turn."""

    def __init__(self, suite: str, files: Path, report: Report, silence: float) -> None:
        self._silence = silence
        self._suite = suite
        self._files = files
        self._report = report
        self._plan: list[str] = []
        self._started: str | None = None
        self._class: str | None = None
        self._done = False
        self._hung = False
        self._hangs: Counter[str] = Counter()

    def run(self, start: Callable[[], Runner], deadline: float) -> None:
        """Starts a process, and another one after each hang or crash."""
        while not self._done:
            self._started = self._class = None
            self._hung = False
            runner = start()
            try:
                why = self._follow(runner, deadline)
            except BaseException:
                runner.abort()
                runner.close()
                say(runner.printed())
                raise
            left = runner.kill()
            if why is not None:
                self._failed(f"{why}\n{runner.printed()}")
            elif left:
                self._report.add(
                    self._suite, "(as a whole)", "failed", "Left behind:\n" + "\n".join(left)
                )
            runner.close()

    def _follow(self, runner: Runner, deadline: float) -> str | None:
        """Reads events until the process has ended; returns what went wrong with it."""
        heard = time.monotonic()
        while True:
            status = runner.status()  # before the events: what it wrote last is read
            events = runner.events()
            for event in events:
                self._take(event)
            if status is not None:
                wait_until(lambda: not runner.tree(), 5)
                if self._done:
                    return None if status == 0 else f"The tests' process ended with {status}."
                return f"The tests' process ended with {status} amid the tests."
            now = time.monotonic()
            if events:
                heard = now
            elif now - heard > self._silence or now > deadline:
                runner.abort()
                if now > deadline:
                    self._done = True
                    return "The time for all suites is over (tracebacks of every process below)."
                self._hung = True
                return f"Hung: silent for {self._silence} s (tracebacks of every process below)."
            time.sleep(0.05)

    def _take(self, event: dict[str, object]) -> None:
        kind = event.pop("event")
        if kind == "plan":
            self._plan = [str(test) for test in event["tests"]]  # type: ignore[attr-defined]
        elif kind == "class":
            self._class = str(event["name"])
            self._started = None
        elif kind == "start":
            self._started = str(event["test"])
        elif kind == "end":
            self._started = None
            self._report.add(self._suite, **event)
        elif kind == "done":
            self._done = True

    def _failed(self, text: str) -> None:
        """Blames the test that ran, or the class whose fixture did, and goes on after it."""
        if self._started is not None:
            self._end(self._started, text)
            name = self._started.rpartition(".")[0]
            self._hangs[name] += self._hung
            if self._hangs[name] < HANGS_OF_A_CLASS:
                return
            self._give_up(name, f"not run: {HANGS_OF_A_CLASS} tests of its class hung")
        elif self._class is not None and not self._done:
            self._report.add(self._suite, f"{self._class} (fixtures)", "failed", text)
            self._give_up(self._class, "not run: a fixture of its class had hung or crashed")
        else:
            self._report.add(self._suite, "(as a whole)", "failed", text)
            self._done = True

    def _give_up(self, cls: str, text: str) -> None:
        ended = {case.test for case in self._report.cases if case.suite == self._suite}
        for test in self._plan:
            if test.rpartition(".")[0] == cls and test not in ended:
                self._end(test, text)

    def _end(self, test: str, text: str) -> None:
        self._report.add(self._suite, test, "failed", text)
        # So that the next process leaves it out.
        with self._files.with_suffix(".events").open("a") as file:
            file.write(json.dumps({"event": "end", "test": test}) + "\n")


def check_exclusions(report: Report, *, all_ran: bool) -> None:
    """An exclusion that excludes nothing, or whose own test is gone, is a mistake.

    With `all_ran=False` suites are missing in which they may.
    """
    used = {case.excluded for case in report.cases}
    for exclusion in EXCLUSIONS:
        if all_ran and exclusion.before is None and exclusion.tests not in used:
            report.add("exclusions", exclusion.tests, "failed", "It excludes no test.")
        if exclusion.ours == CORRECTED:
            continue
        path, _, name = exclusion.ours.partition("::")
        file = ROOT / path
        if not file.is_file() or f"def {name}(" not in file.read_text():
            report.add("exclusions", exclusion.tests, "failed", f"No such test: {exclusion.ours}")


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="*")
    parser.add_argument("--tests", nargs="+", default=["*"])
    parser.add_argument("--target", default="stook")
    parser.add_argument("--silence", type=float, default=SILENCE, help="seconds that are a hang")
    parser.add_argument("--minutes", type=float, default=60, help="for all suites together")
    parser.add_argument("--logs", type=Path, default=BUILD / "conformance-logs")
    parser.add_argument("--report", type=Path, default=BUILD / "reports" / "conformance.xml")
    return parser.parse_args(arguments)


def suites(only: str) -> Iterator[tuple[str, tuple[int, int], str]]:
    """Name, version of Python and module of what is to be run."""
    running = sys.version_info[:2]
    for version in dict.fromkeys((FUTURES_PYTHON, running)):
        modules = (*FUTURES, *POOLS) if version == FUTURES_PYTHON else POOLS
        for module in modules:
            short = module.removeprefix("test.").replace("test_concurrent_futures", "futures")
            name = f"{version[0]}.{version[1]}/{short}"
            if fnmatchcase(name, only):
                yield name, version, module


def run_suites(options: argparse.Namespace, report: Report) -> bool:
    """Runs what the command line asks for; False if a Python for some of it was not found."""
    all_ran = True
    deadline = time.monotonic() + options.minutes * MINUTE
    pythons: dict[tuple[int, int], Path | None] = {}
    for name, version, module in suites(options.only):
        if version not in pythons:
            needed: tuple[str, ...] = ("test.support", "test._test_multiprocessing")
            if version == FUTURES_PYTHON:
                needed += FUTURES
            found = find_python(version, needed)
            try:
                pythons[version] = None if found is None else environment_of(found)
            except RuntimeError as error:
                report.add(name, "(the environment of this Python)", "failed", str(error))
                break
        python = pythons[version]
        if python is None:
            wanted = ".".join(map(str, version))
            text = f"no Python {wanted} with its own tests (the package test) was found"
            say(f"skipped {name}: {text}")
            report.add(name, module, "skipped", text)
            all_ran = False
            continue
        options.logs.mkdir(parents=True, exist_ok=True)
        files = options.logs / f"{options.target}-{name.replace('/', '-')}"
        for suffix in (".events", ".log"):
            Path(f"{files}{suffix}").unlink(missing_ok=True)
        began, before = time.monotonic(), len(report.cases)
        watch = Watch(name, Path(f"{files}.x"), report, options.silence)
        watch.run(
            functools.partial(
                Runner, python, module, options.target, options.tests, Path(f"{files}.x")
            ),
            deadline,
        )
        outcomes = Counter(case.outcome for case in report.cases[before:])
        counts = ", ".join(f"{outcomes[kind]} {kind}" for kind in ("passed", "failed", "skipped"))
        say(f"{name}: {counts} in {time.monotonic() - began:.0f} s")
    return all_ran


def main() -> int:
    """Runs the suites; 1 if anything failed."""
    options = parse(sys.argv[1:])
    # However this program is ended, the processes of the tests are ended with it.
    for number in (signal.SIGTERM, signal.SIGABRT):
        signal.signal(number, lambda *_: sys.exit(124))
    report = Report()
    try:
        all_ran = run_suites(options, report)
        if options.only == "*" and options.tests == ["*"]:
            check_exclusions(report, all_ran=all_ran)
    finally:
        report.write(options.report)
    outcomes = Counter(case.outcome for case in report.cases)
    say(", ".join(f"{outcomes[kind]} {kind}" for kind in ("passed", "failed", "skipped")))
    return 1 if outcomes["failed"] or not outcomes["passed"] + outcomes["skipped"] else 0


if __name__ == "__main__":
    sys.exit(main())
