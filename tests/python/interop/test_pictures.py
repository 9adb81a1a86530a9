"""The pictures and figures of docs/resized-crops.md can be made again."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


def test_the_page_shows_what_the_script_makes(tmp_path: Path) -> None:
    for name in ("PIL", "cv2", "sklearn"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed")
    command = [sys.executable, ROOT / "scripts/make_pictures.py", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    page = (ROOT / "docs/resized-crops.md").read_text()
    shown = set(re.findall(r"\(pictures/([\w.-]+)\)", page))
    assert shown == {path.name for path in tmp_path.iterdir()}
    assert shown == {path.name for path in (ROOT / "docs/pictures").iterdir()}
    # Pillow's is the filter of these pictures; the others differ as the page says.
    most = re.findall(r"^\| pillow-bilinear \| (\d+) \|", done.stdout, re.MULTILINE)
    assert most == ["1", "1"]
