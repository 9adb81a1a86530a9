"""examples/resume.py: killed in the middle, it goes on as if nothing had been."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

EXAMPLE = Path(__file__).parents[3] / "examples" / "resume.py"


def command(checkpoint: Path, workers: int) -> list[str]:
    sizes = ["--examples", "150", "--epochs", "2", "--workers", str(workers)]
    return [sys.executable, str(EXAMPLE), str(checkpoint), *sizes]


def last_line(checkpoint: Path, workers: int) -> str:
    done = subprocess.run(
        command(checkpoint, workers), capture_output=True, text=True, timeout=100, check=True
    )
    return done.stdout.splitlines()[-1]


def test_killed_twice_it_trains_on_the_same(tmp_path: Path) -> None:
    plain = last_line(tmp_path / "plain.json", 0)
    assert plain.startswith("done: 30 steps")
    checkpoint = tmp_path / "killed.json"
    for workers, step in ((2, 7), (1, 19)):
        with subprocess.Popen(
            command(checkpoint, workers), stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if line == f"step {step}\n":
                    process.kill()
                    break
        assert process.returncode == -9
    assert last_line(checkpoint, 2) == plain
