"""Examples end as other programs do: quietly after Ctrl-C, and with a line about what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from conftest import RunPython

EXAMPLES = Path(__file__).parents[3] / "examples"

INTERRUPTED = """
import argparse, runpy, sys

def interrupt(*arguments):
    raise KeyboardInterrupt

argparse.ArgumentParser.parse_args = interrupt
sys.path[0] = sys.argv[1].rpartition("/")[0]
runpy.run_path(sys.argv[1], run_name="__main__")
"""

RUN = """
import runpy, sys

sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("name", ["profile_me", "resume"])
def test_ctrl_c_is_no_traceback(run_python: RunPython, name: str) -> None:
    done = run_python(INTERRUPTED, str(EXAMPLES / f"{name}.py"))
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["profile_me", "no-folder/trace.json"], "no-folder/trace.json: there is no such folder"),
        (["profile_me", "--workers", "-1"], "--workers must be at least 0"),
        (["resume", "no-folder/run.json"], "no-folder/run.json: there is no such folder"),
        (["resume", "run.json", "--epochs", "0"], "--epochs at least 1"),
        (["resume", "run.json"], "resume: run.json cannot be gone on from: KeyError('model')"),
        (["resume", "torn.json"], "resume: torn.json cannot be gone on from: JSONDecodeError"),
    ],
)
def test_what_is_wrong_is_a_line(
    run_python: RunPython, tmp_path: Path, arguments: list[str], text: str
) -> None:
    (tmp_path / "run.json").write_text('{"step": 1}')
    (tmp_path / "torn.json").write_text('{"step": 1')
    name, *rest = arguments
    done = run_python(RUN, str(EXAMPLES / f"{name}.py"), *rest, cwd=tmp_path)
    assert done.returncode != 0
    assert text in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
