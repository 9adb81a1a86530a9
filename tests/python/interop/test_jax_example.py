"""`examples/jax_photos.py` runs as it stands, with any number of workers."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import RunPython

EXAMPLE = Path(__file__).parents[3] / "examples" / "jax_photos.py"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    for name in ("jax", "sklearn"):  # sklearn carries photographs
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed")
    command = [sys.executable, EXAMPLE, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)


def test_any_number_of_workers_trains_alike() -> None:
    steps = set()
    for workers in ("0", "2"):
        done = run("--steps", "3", "--workers", workers)
        assert done.returncode == 0, done.stderr
        first, step, rate = done.stdout.splitlines()
        assert f"{workers} workers; 3 steps of 32 crops" in first
        assert step.startswith("step    3  loss ")
        assert "crops/s" in rate
        steps.add(step)
    assert len(steps) == 1


def test_a_folder_without_photographs_is_named(tmp_path: Path) -> None:
    done = run("--photos", str(tmp_path))
    assert done.returncode == 1
    assert done.stderr == (
        f"jax_photos: {tmp_path}: no .jpg or .jpeg file in it or in its subfolders\n"
    )


def test_it_says_that_jax_is_missing(run_python: RunPython) -> None:
    done = run_python(
        """
        import runpy, sys

        sys.path.insert(0, sys.argv[1])
        sys.modules["jax"] = None
        runpy.run_path(sys.argv[1] + "/jax_photos.py", run_name="__main__")
        """,
        str(EXAMPLE.parent),
    )
    assert done.returncode == 1
    assert "pip install jax" in done.stderr
    assert "Traceback" not in done.stderr
