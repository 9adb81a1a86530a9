"""setuptools' build backend, which asks for CMake and Ninja only where the system has none."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping

from setuptools.build_meta import *  # noqa: F403
from setuptools.build_meta import get_requires_for_build_editable as _editable
from setuptools.build_meta import get_requires_for_build_wheel as _wheel

Config = Mapping[str, str | list[str] | None] | None


def get_requires_for_build_wheel(config_settings: Config = None) -> list[str]:
    return [*_wheel(config_settings), *_missing_tools()]


def get_requires_for_build_editable(config_settings: Config = None) -> list[str]:
    return [*_editable(config_settings), *_missing_tools()]


def _missing_tools() -> list[str]:
    missing = [] if _runs("cmake", (3, 22)) else ["cmake>=3.22"]
    return missing if _runs("ninja", (1, 0)) else [*missing, "ninja"]


def _runs(tool: str, at_least: tuple[int, int]) -> bool:
    """Whether the tool starts: a version manager may leave a shim on the path that does not."""
    if shutil.which(tool) is None:
        return False
    try:
        done = subprocess.run([tool, "--version"], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return False
    found = re.search(r"(\d+)\.(\d+)", done.stdout)
    return (
        done.returncode == 0 and found is not None and ((int(found[1]), int(found[2])) >= at_least)
    )
