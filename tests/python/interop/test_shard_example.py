"""`examples/shard_photos.py` learns, and the number of workers does not show in what it learns."""

from __future__ import annotations

import functools
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[3] / "examples" / "shard_photos.py"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    for name in ("torch", "sklearn"):  # sklearn carries photographs
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed")
    command = [sys.executable, EXAMPLE, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)


@functools.cache
def epochs(workers: int) -> list[str]:
    """What is printed of each epoch, up to how fast it was."""
    done = run("--samples", "64", "--epochs", "2", "--workers", str(workers))
    assert done.returncode == 0, done.stderr
    first, *lines = done.stdout.splitlines()
    assert re.match(rf"64 samples of \d photographs in a shard of .* MB, {workers} worker", first)
    assert all(re.search(r"images/s$", line) for line in lines)
    return [line.partition("%")[0] for line in lines]


def test_it_trains() -> None:
    assert len(epochs(2)) == 2
    assert re.match(r"epoch 2  loss \d\.\d+  right  *\d+$", epochs(2)[1])


def test_the_number_of_workers_does_not_show() -> None:
    assert epochs(0) == epochs(2)


def test_a_folder_without_photographs_is_named(tmp_path: Path) -> None:
    done = run("--photos", str(tmp_path))
    assert done.returncode == 1
    assert done.stderr.startswith(f"shard_photos: {tmp_path}: no .jpg or .jpeg file in it")
