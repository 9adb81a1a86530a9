"""`examples/torch_photos.py` runs as it stands, with either loader."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import RunPython

EXAMPLE = Path(__file__).parents[3] / "examples" / "torch_photos.py"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    for name in ("torch", "sklearn"):  # sklearn carries photographs
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed")
    command = [sys.executable, EXAMPLE, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)


def test_both_loaders_train_alike() -> None:
    lines = {}
    for loader in ("stook", "torch"):
        done = run("--steps", "4", "--workers", "2", "--loader", loader)
        assert done.returncode == 0, done.stderr
        first, step, rate = done.stdout.splitlines()
        assert f"2 workers of {loader}; 4 steps of 32 crops" in first
        assert step.startswith("step    4  loss ")
        assert "crops/s" in rate
        lines[loader] = step
    assert lines["stook"] == lines["torch"]


def test_a_folder_without_photographs_is_named(tmp_path: Path) -> None:
    done = run("--photos", str(tmp_path))
    assert done.returncode == 1
    assert done.stderr == (
        f"torch_photos: {tmp_path}: no .jpg or .jpeg file in it or in its subfolders\n"
    )


def test_it_says_that_torch_is_missing(run_python: RunPython) -> None:
    done = run_python(
        """
        import runpy, sys

        sys.path.insert(0, sys.argv[1])
        sys.modules["torch"] = None
        runpy.run_path(sys.argv[1] + "/torch_photos.py", run_name="__main__")
        """,
        str(EXAMPLE.parent),
    )
    assert done.returncode == 1
    assert "pip install torch" in done.stderr
    assert "Traceback" not in done.stderr
