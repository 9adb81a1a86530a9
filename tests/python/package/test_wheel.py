"""What is packed is whole: the source archive builds, and what it builds runs."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from codebase import ROOT

from conftest import RunPython


@pytest.mark.long
def test_the_wheel_of_the_source_archive_imports(tmp_path: Path, run_python: RunPython) -> None:
    # The list of files is made anew, elsewhere: an old one may name what is gone.
    pack = ["egg_info", "--egg-base", str(tmp_path), "sdist", "--dist-dir", str(tmp_path)]
    subprocess.run([sys.executable, "setup.py", "--quiet", *pack], cwd=ROOT, check=True)
    (archive,) = tmp_path.glob("stook-*.tar.gz")
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*build, "-w", str(tmp_path), str(archive)], cwd=tmp_path, check=True)
    (wheel,) = tmp_path.glob("stook-*.whl")
    with zipfile.ZipFile(wheel) as content:
        names = content.namelist()
        content.extractall(tmp_path / "unpacked")
    assert "stook/py.typed" in names
    assert "stook/_core.pyi" in names
    assert [name for name in names if name.startswith("stook/_core.") and name.endswith(".so")]
    assert {name.split("/")[0].split("-")[0] for name in names} == {"stook"}
    code = "import stook, stook._core; print(stook.__file__, stook._core.__file__)"
    done = run_python(code, env={"PYTHONPATH": str(tmp_path / "unpacked")}).check()
    assert all(path.startswith(str(tmp_path)) for path in done.stdout.split())
