"""Pythons that come with their own tests, and virtual environments in which those test stook."""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build"
CONFORMANCE = ROOT / "tests" / "python" / "conformance"


@dataclass(frozen=True)
class Python:
    """An interpreter that has the tests."""

    version: tuple[int, int]
    executable: str

    @property
    def name(self) -> str:
        """As in 3.13."""
        return ".".join(map(str, self.version))


def candidates(version: tuple[int, int]) -> Iterator[str]:
    """Where an interpreter of that version may lie."""
    name = f"python{version[0]}.{version[1]}"
    if sys.version_info[:2] == version:
        yield sys.executable
    for entry in os.environ.get("PATH", "").split(os.pathsep):
        yield os.path.join(entry, name)
    home = Path.home()
    pyenv = Path(os.environ.get("PYENV_ROOT", home / ".pyenv"))
    for folder, pattern in (
        (pyenv / "versions", f"{version[0]}.{version[1]}*/bin/{name}"),
        (home / ".local/share/uv/python", f"cpython-{version[0]}.{version[1]}*/bin/{name}"),
        (Path("/opt"), f"*/bin/{name}"),
        (Path("/usr/local/bin"), name),
        (Path("/usr/bin"), name),
    ):
        with contextlib.suppress(OSError):
            yield from map(str, sorted(folder.glob(pattern), reverse=True))


def find_python(version: tuple[int, int], modules: tuple[str, ...]) -> Python | None:
    """An interpreter of that version that has those modules of the package test, or None."""
    check = (
        "import importlib.util as u, sys, venv, ensurepip\n"
        f"assert sys.version_info[:2] == {version!r}\n"
        f"assert all(u.find_spec(name) for name in {modules!r})\n"
    )
    for path in dict.fromkeys(candidates(version)):
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            # A version manager may leave a shim on the path that does not start.
            done = subprocess.run([path, "-c", check], capture_output=True, timeout=60, check=False)
            if done.returncode == 0:
                return Python(version, path)
    return None


def environment_of(python: Python) -> Path:
    """The interpreter of a virtual environment that has stook and the stand-ins."""
    folder = BUILD / f"conformance-{python.name}"
    executable = folder / "bin" / "python"
    BUILD.mkdir(exist_ok=True)
    with (BUILD / f"conformance-{python.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two runs at once must not build the same thing
        if sys.version_info[:2] == python.version:
            if not executable.exists():
                run([python.executable, "-m", "venv", "--without-pip", "--clear", str(folder)])
            # What this Python has, stook among it, is there as well.
            inherited = [p for p in sys.path if Path(p).name in ("site-packages", "dist-packages")]
        else:
            inherited = []
            build_stook(python, folder, executable)
        site = folder / "lib" / f"python{python.name}" / "site-packages"
        lines = [f"import site; site.addsitedir({path!r})" for path in inherited]
        lines += [
            str(CONFORMANCE),
            "import os; 'STOOK_CONFORMANCE' in os.environ and __import__('standins')",
        ]
        write(site / "zz_stook_conformance.pth", "\n".join(lines) + "\n")
    return executable


def build_stook(python: Python, folder: Path, executable: Path) -> None:
    """Installs stook for another Python than the running one; afterwards only what changed."""
    made_of = (ROOT / "pyproject.toml").read_text() + (ROOT / "setup.py").read_text()
    stamp = folder / "made-of"
    if not stamp.exists() or stamp.read_text() != made_of:
        print(f"Building stook for Python {python.name} in {folder.relative_to(ROOT)}.", flush=True)
        run([python.executable, "-m", "venv", "--clear", str(folder)])
        install = [str(executable), "-m", "pip", "install", "--quiet"]
        run([*install, "setuptools>=77", "wheel", "numpy>=2", "pybind11>=2.13"])
        run([*install, "--no-build-isolation", "-e", str(ROOT)])
        write(stamp, made_of)
    run([str(executable), "setup.py", "--quiet", "build_ext", "--inplace"])


def write(path: Path, text: str) -> None:
    """Replaces a file, so that whoever starts meanwhile reads the old or the new text."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text)
    temporary.replace(path)


def run(command: list[str]) -> None:
    """Runs it; a RuntimeError holds what it printed if it fails."""
    done = subprocess.run(
        command,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
    )
    if done.returncode != 0:
        raise RuntimeError(f"$ {' '.join(command)}\n{done.stdout}\nended with {done.returncode}")
