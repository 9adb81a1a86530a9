"""Formatters, linters, types, versions, and the size of files."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from codebase import ROOT, files, read

MAX_LINES = 500

# Longer files, each with the reason why it is still one thing.
LONGER: dict[str, str] = {
    "tests/cpp/model/checker.cpp": "one algorithm: the parts of the explorer share all state",
    "tests/cpp/unit/block_allocator_test.cpp": "the cases of one class",
    "tests/cpp/unit/segment_owner_test.cpp": "the cases of one room: owners, attachers, sweepers",
    "tests/cpp/unit/segment_test.cpp": "the cases of one class, in a /dev/shm of their own",
    "tests/cpp/unit/jpeg_test.cpp": "the cases of one function, with the encoder that makes them",
    "tests/python/process/test_main_globals.py": "the cases of one rule, each a program of its own",
    "tests/python/unit/test_threads.py": "what a pool of threads promises, one test a promise",
    "tests/python/unit/test_io.py": "the cases of one function, with the files they need",
}

# A path of one machine: it says where somebody worked, and is nowhere else.
MACHINE_PATH = re.compile(r"(?:^|[^A-Za-z0-9._-])/(?:work|farm|tmp/bash_jobs)(?:/|$)", re.MULTILINE)

NO_TEXT = {".jpg", ".jpeg", ".png", ".npy", ".npz"}


def run(*command: str) -> None:
    """Runs a tool over the repository; fails with what it printed."""
    done = subprocess.run(
        command,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "MYPYPATH": "python", "NO_COLOR": "1"},
    )
    if done.returncode != 0:
        pytest.fail(f"$ {' '.join(command[:8])}\n{done.stdout}", pytrace=False)


def tool(name: str) -> str:
    """A tool of the test extra, from this interpreter's environment first."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        pytest.fail(f"{name} is not installed: pip install -e '.[test]'", pytrace=False)
    return found


def test_clang_format() -> None:
    run(tool("clang-format"), "--dry-run", "--Werror", *map(str, files(".h", ".cpp")))


def test_ruff_check() -> None:
    run(tool("ruff"), "check", "--quiet", "--no-cache", ".")


def test_ruff_format() -> None:
    run(tool("ruff"), "format", "--check", "--no-cache", ".")


def test_mypy() -> None:
    run(sys.executable, "-m", "mypy", "--no-incremental")


def test_the_stub_of_the_extension_tells_the_truth() -> None:
    assert (ROOT / "python/stook/_core.pyi").is_file()
    run(sys.executable, "-m", "mypy.stubtest", "stook._core")


def test_versions_agree() -> None:
    # Here, so that the other tests of this file run where the extension does not build.
    import stook
    import stook._core

    versions = {
        "python": stook.__version__,
        "extension": stook._core.__version__,
        "pyproject.toml": found(r'^version = "([^"]+)"$', "pyproject.toml"),
        "CMakeLists.txt": found(r"^project\(stook VERSION (\S+)", "CMakeLists.txt"),
        "CHANGELOG.md": found(r"^## (\d\S*)", "CHANGELOG.md"),
    }
    assert len(set(versions.values())) == 1, versions


def found(pattern: str, path: str) -> str:
    """The first group of the first match in a file."""
    match = re.search(pattern, read(Path(path)), re.MULTILINE)
    assert match is not None, f"{path} has no {pattern}"
    return match[1]


def test_no_path_of_one_machine() -> None:
    text_files = [path for path in files() if path.suffix not in NO_TEXT]
    assert [str(path) for path in text_files if MACHINE_PATH.search(read(path))] == []


def test_files_are_short() -> None:
    lengths = {
        str(path): len(read(path).splitlines()) for path in files(".h", ".cpp", ".py", ".pyi")
    }
    long = {path for path, lines in lengths.items() if lines > MAX_LINES}
    assert long - LONGER.keys() == set(), {path: lengths[path] for path in long}
    assert LONGER.keys() - long == set(), "these are not that long any more"
    assert all(LONGER.values())


def test_names_of_test_modules_are_unique() -> None:
    """They are imported as top-level modules, so that worker processes can import them too."""
    names = Counter(p.name for p in files(".py") if p.is_relative_to("tests/python"))
    names.pop("conftest.py")
    assert [name for name, count in names.items() if count > 1] == []
