"""Runs test suites one after the other and ends with a line that sums them up.

    python scripts/test.py SUITE...

Suites: cpp:PRESET (configure, build, ctest), python, interop, long, conformance (CPython's own
tests of process pools), fuzz (each target for a minute; FUZZ_SECONDS says for how long). Each must
end within its deadline; what still runs then is ended, and the suite has failed.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REPORTS = ROOT / "build" / "reports"
JOBS = os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL") or str(len(os.sched_getaffinity(0)))
PYTEST_NO_TESTS = 5
MINUTE = 60

# tests/fuzz: how many bytes each target reads in front of the JPEG; None for those of other files.
FUZZ_TARGETS = {
    "jpeg_fuzz": 1,
    "resized_crop_fuzz": 13,
    "npy_fuzz": None,
    "npz_fuzz": None,
    "tar_fuzz": None,
}


@dataclass
class Counts:
    """What a suite came to."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0

    def __iadd__(self, other: Counts) -> Counts:
        self.passed += other.passed
        self.failed += other.failed
        self.skipped += other.skipped
        return self


def say(text: str) -> None:
    """Prints at once, so that the lines of child processes come where they belong."""
    print(text, flush=True)


def run(command: list[str], deadline: int, env: dict[str, str] | None = None) -> int:
    """Runs a command in a process group of its own; returns its status, 124 past the deadline."""
    say(f"$ {' '.join(command)}")
    with subprocess.Popen(
        command,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        env={**os.environ, **(env or {})},
        start_new_session=True,
    ) as process:
        try:
            return process.wait(deadline)
        except subprocess.TimeoutExpired:
            say(f"Still running after {deadline} s: ended.")
            # SIGABRT first: faulthandler then prints where every Python process of the group stood.
            os.killpg(process.pid, signal.SIGABRT)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
            return 124
        except BaseException:  # Ctrl-C reaches this process alone, the group is its own.
            os.killpg(process.pid, signal.SIGKILL)
            raise


def read_junit(path: Path) -> Counts:
    """Counts the test cases of a JUnit report; a report that was never written holds none."""
    counts = Counts()
    if not path.exists():
        return counts
    for case in ElementTree.parse(path).getroot().iter("testcase"):
        kinds = {child.tag for child in case}
        if kinds & {"failure", "error"}:
            counts.failed += 1
        elif "skipped" in kinds or case.get("status") in ("disabled", "notrun"):
            counts.skipped += 1
        else:
            counts.passed += 1
    return counts


def judged(status: int, report: Path, name: str) -> Counts:
    """The counts of a report; a run that failed with no failed test in it is itself a failure."""
    counts = read_junit(report)
    if status != 0 and counts.failed == 0:
        say(f"{name}: ended with status {status} although no test is reported as failed")
        counts.failed += 1
    return counts


def fresh_report(name: str) -> Path:
    """The path of a report that does not exist yet."""
    REPORTS.mkdir(parents=True, exist_ok=True)
    report = REPORTS / f"{name}.xml"
    report.unlink(missing_ok=True)
    return report


def run_cpp(preset: str) -> Counts:
    """Configures, builds and tests one CMake preset."""
    if run(["cmake", "--preset", preset, "--log-level=WARNING"], 5 * MINUTE) != 0:
        return Counts(failed=1)
    if run(["cmake", "--build", "--preset", preset, "--parallel", JOBS], 20 * MINUTE) != 0:
        return Counts(failed=1)
    report = fresh_report(f"cpp-{preset}")
    command = ["ctest", "--preset", preset, "--parallel", JOBS, "--output-junit", str(report)]
    if preset == "tsan" and can_fix_addresses():
        # ThreadSanitizer of GCC 12 does not start where the kernel randomises addresses widely.
        command = ["setarch", "--addr-no-randomize", *command]
    return judged(run(command, 20 * MINUTE), report, f"cpp:{preset}")


def can_fix_addresses() -> bool:
    """Whether address randomisation may be switched off here (containers often forbid it)."""
    return (
        shutil.which("setarch") is not None
        and subprocess.run(
            ["setarch", "--addr-no-randomize", "true"], stderr=subprocess.DEVNULL, check=False
        ).returncode
        == 0
    )


def run_pytest(name: str, arguments: list[str], deadline: int) -> Counts:
    """Runs pytest; a folder without tests is no failure, but it is said."""
    report = fresh_report(name)
    status = run(
        [sys.executable, "-X", "faulthandler", "-m", "pytest", f"--junitxml={report}", *arguments],
        deadline,
        # tests/python/leftovers.py finds by this what outlived its parent.
        {"STOOK_TEST_RUN": secrets.token_hex(8)},
    )
    if status == PYTEST_NO_TESTS:
        say(f"{name}: there are no tests")
        status = 0
    return judged(status, report, name)


def run_conformance() -> Counts:
    """Runs CPython's own tests of process pools against ours."""
    report = fresh_report("conformance")
    command = [sys.executable, "scripts/conformance.py", "--minutes=40", f"--report={report}"]
    return judged(run(command, 50 * MINUTE), report, "conformance")


def run_fuzz() -> Counts:
    """Runs each fuzz target from fresh seeds; a target that finds something leaves it in build/."""
    if shutil.which("clang++") is None:
        say("fuzz: skipped, because clang++ is not installed (libFuzzer comes with Clang)")
        return Counts(skipped=1)
    seconds = int(os.environ.get("FUZZ_SECONDS", "60"))
    if run(["cmake", "--preset", "fuzz", "--log-level=WARNING"], 5 * MINUTE) != 0:
        return Counts(failed=1)
    if run(["cmake", "--build", "--preset", "fuzz", "--parallel", JOBS], 20 * MINUTE) != 0:
        return Counts(failed=1)
    counts = Counts()
    folder = ROOT / "build" / "fuzz" / "tests" / "fuzz"
    for target, parameters in FUZZ_TARGETS.items():
        corpus = folder / f"{target}-corpus"
        corpus.mkdir(exist_ok=True)
        if parameters is None:
            maker = [sys.executable, str(ROOT / "tests/fuzz/make_archives.py"), str(corpus), target]
        else:
            maker = [str(folder / "make_seeds"), str(corpus), str(parameters)]
        seeded = run(maker, MINUTE)
        max_len = 4096 if parameters is not None else 16384  # long names in blocks of 512
        limits = [
            f"-max_len={max_len}",
            "-timeout=10",
            "-rss_limit_mb=2048",
            "-print_final_stats=1",
        ]
        time = [f"-max_total_time={seconds}", f"-artifact_prefix={folder}/{target}-"]
        command = [str(folder / target), *limits, *time, "-verbosity=0", str(corpus)]
        status = seeded or run(command, seconds + 5 * MINUTE)
        counts += Counts(passed=1) if status == 0 else Counts(failed=1)
    return counts


def run_suite(suite: str) -> Counts:
    """Runs the suite of that name."""
    kind, _, preset = suite.partition(":")
    if kind == "cpp" and preset:
        return run_cpp(preset)
    if suite == "python":
        paths = [p for p in ("tests/python", "python/stook", "README.md") if (ROOT / p).exists()]
        return run_pytest(
            suite, ["-m", "not long", "--ignore=tests/python/interop", *paths], 30 * MINUTE
        )
    if suite == "interop":
        # Partners warn about each other, and that is not ours to mend: shown, not failed on.
        (ROOT / "tests/python/interop").mkdir(exist_ok=True)
        return run_pytest(suite, ["-W", "default", "tests/python/interop"], 20 * MINUTE)
    if suite == "long":
        options = ["-m", "long", "-o", "faulthandler_timeout=900"]
        return run_pytest(
            suite, [*options, "--ignore=tests/python/interop", "tests/python"], 30 * MINUTE
        )
    if suite == "conformance":
        return run_conformance()
    if suite == "fuzz":
        return run_fuzz()
    sys.exit(f"Unknown suite {suite!r}: use cpp:PRESET, python, interop, long, conformance, fuzz.")


def main() -> int:
    """Runs the suites named on the command line; 1 if anything failed."""
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    total = Counts()
    for suite in sys.argv[1:]:
        total += run_suite(suite)
    say(f"{total.passed} passed, {total.failed} failed, {total.skipped} skipped")
    return 1 if total.failed else 0


if __name__ == "__main__":
    sys.exit(main())
