"""examples/profile_me.py: it finds what was put there to be found."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

EXAMPLE = Path(__file__).parents[3] / "examples" / "profile_me.py"


def test_the_example_names_the_slow_stage_and_the_copy(tmp_path: Path) -> None:
    trace = tmp_path / "trace.json"
    done = subprocess.run(
        [sys.executable, EXAMPLE, trace], capture_output=True, text=True, timeout=120, check=True
    )
    slow, copies, then = done.stdout.splitlines()
    assert slow == "slow: normalise_slowly takes longest; 64 arrays are copied:"
    assert copies == "  64 x ['image']: kept by 1 other reference"
    assert then == "then: 0 arrays are copied, 64 are moved"
    assert done.stderr.count("the trainer waited") == 2
    assert any(
        event["name"] == "normalise_slowly"
        for event in json.loads(trace.read_text())["traceEvents"]
    )
