"""scripts/conformance.py reports what is planted in broken.py; nothing passes that should not."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(
        importlib.util.find_spec("test") is None
        or importlib.util.find_spec("test._test_multiprocessing") is None,
        reason="this Python comes without its own tests (the package test)",
    ),
]


def failures(
    tmp_path: Path, target: str, *tests: str, silence: float = 60
) -> dict[str, str | None]:
    """What the harness writes of those tests: the text of a failure, None for a pass."""
    report = tmp_path / "report.xml"
    done = subprocess.run(
        [
            *(sys.executable, str(ROOT / "scripts" / "conformance.py")),
            *("--target", target, "--tests", *(f"*ProcessesTestPool.{test}" for test in tests)),
            *("--only", f"{sys.version_info[0]}.{sys.version_info[1]}/pools_fork"),
            *("--report", str(report), "--logs", str(tmp_path), "--silence", str(silence)),
        ],
        capture_output=True,
        text=True,
    )
    cases = {
        str(case.get("name")).rpartition(".")[2]: case.findtext("failure")
        for case in ElementTree.parse(report).iter("testcase")
    }
    assert done.returncode == (1 if any(cases.values()) else 0), done.stdout
    return cases


def test_the_originals_pass(tmp_path: Path) -> None:
    assert failures(tmp_path, "originals", "test_map") == {"test_map": None}


def test_a_wrong_result_is_a_failure(tmp_path: Path) -> None:
    text = failures(tmp_path, "broken", "test_map")["test_map"]
    assert text is not None
    assert "one too many" in text


def test_a_hang_is_the_tracebacks_of_all_processes_and_the_next_test_runs(tmp_path: Path) -> None:
    cases = failures(tmp_path, "broken", "test_starmap", "test_terminate", silence=15)
    text = cases["test_starmap"]
    assert text is not None
    assert "in starmap" in text  # where the caller stands
    assert text.count("in worker") == 4  # and each worker
    assert cases["test_terminate"] is None


def test_a_crash_is_a_failure_and_the_next_test_runs(tmp_path: Path) -> None:
    cases = failures(tmp_path, "broken", "test_imap_unordered", "test_traceback")
    text = cases["test_imap_unordered"]
    assert text is not None
    assert "Segmentation fault" in text
    assert cases["test_traceback"] is None


def test_a_process_left_behind_is_a_failure(tmp_path: Path) -> None:
    text = failures(tmp_path, "broken", "test_starmap_async")["test_starmap_async"]
    assert text is not None
    assert "time.sleep(1000)" in text


def test_no_test_at_all_is_a_failure(tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    done = subprocess.run(
        [
            *(sys.executable, str(ROOT / "scripts" / "conformance.py"), "--only", "nothing"),
            *("--report", str(report)),
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
