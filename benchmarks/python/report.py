"""What all measuring scripts share: the conditions of a run, Markdown tables, result files."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
RESULTS = ROOT / "benchmarks" / "results"
PACKAGES = (
    "stook",
    "numpy",
    "opencv-python-headless",
    "torch",
    "grain",
    "spdl",
    "joblib",
)


def first_line_with(path: str, start: str) -> str:
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return "unknown"
    found = (line.partition(":")[2].strip() for line in lines if line.startswith(start))
    return next(found, "unknown")


def run_group(command: list[str], timeout: float) -> tuple[int, str, str]:
    """Runs a command in a process group of its own, which ends with it and with this program."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=timeout)
        return process.returncode, out, err
    except subprocess.TimeoutExpired:
        return -1, "", f"not done within {timeout:.0f} s"
    finally:
        # What a peer left running would disturb those that follow, and so after Ctrl-C.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def version_of(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def commit() -> str:
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


def stolen_ticks() -> list[int]:
    """All processor time since boot and that which the hypervisor took, in ticks."""
    ticks = [int(t) for t in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return [sum(ticks), ticks[7]]


class Run:
    """The conditions of one run, from its start to its end."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        self.arguments = arguments
        self.start = datetime.datetime.now(datetime.timezone.utc)
        self.load = os.getloadavg()[0]
        self.ticks = stolen_ticks()
        if self.load > 0.3:
            print(
                f"warning: the load average is {self.load:.2f}: something else runs, and what is "
                "measured beside it is worth nothing",
                file=sys.stderr,
            )

    def conditions(self) -> dict[str, Any]:
        passed, stolen = (now - then for now, then in zip(stolen_ticks(), self.ticks, strict=True))
        end = datetime.datetime.now(datetime.timezone.utc)
        huge = Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled")
        return {
            "date": self.start.strftime("%Y-%m-%d %H:%M UTC"),
            "minutes": round((end - self.start).total_seconds() / 60, 1),
            "processor": first_line_with("/proc/cpuinfo", "model name"),
            "cores": len(os.sched_getaffinity(0)),
            "virtual machine": "hypervisor" in first_line_with("/proc/cpuinfo", "flags").split(),
            "stolen by the hypervisor": f"{stolen / max(passed, 1):.1%}",
            "load average before": round(self.load, 2),
            "kernel": platform.release(),
            "huge pages in shared memory": huge.read_text().strip() if huge.exists() else "unknown",
            "C library": " ".join(platform.libc_ver()),
            "Python": platform.python_version(),
            "commit": commit(),
            **{package: version_of(package) for package in PACKAGES},
            "arguments": self.arguments,
        }


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; the first column is text, the others are figures."""
    lines = [
        "| " + " | ".join(head) + " |",
        "|" + "|".join(["---"] + ["---:"] * (len(head) - 1)) + "|",
    ]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines)


def conditions_table(conditions: dict[str, Any]) -> str:
    shown = {name: value for name, value in conditions.items() if name != "arguments"}
    words = " ".join(f"--{k} {v}" for k, v in conditions["arguments"].items() if v is not None)
    return table(
        ["conditions", ""], [[k, str(v)] for k, v in [*shown.items(), ("arguments", words)]]
    )


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Median and range."""
    median = statistics.median(values)
    return f"{median:,.{digits}f} ({min(values):,.{digits}f} - {max(values):,.{digits}f})"


def write(path: Path | None, markdown: str, data: dict[str, Any]) -> None:
    """Prints the Markdown; with a path, writes path.md and path.json too."""
    print(markdown)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".md").write_text(markdown + "\n")
        path.with_suffix(".json").write_text(json.dumps(data, indent=1) + "\n")
        print(f"written: {path.with_suffix('.md')} and .json", file=sys.stderr)


def last_json(text: str) -> dict[str, Any]:
    result = json.loads(text.strip().splitlines()[-1])
    if not isinstance(result, dict):
        raise ValueError(f"not a JSON object: {text!r}")
    return result
