"""The files of this repository, as the tests of the codebase see them."""

from __future__ import annotations

import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


def files(*suffixes: str) -> list[Path]:
    """Every file that is in version control or would be added to it, relative to the root."""
    if (ROOT / ".git").exists():
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        found = [Path(name) for name in listed.stdout.split("\0") if name]
    else:  # An unpacked archive.
        found = [path.relative_to(ROOT) for path in ROOT.rglob("*")]
        found = [path for path in found if not {"build", ".venv"} & set(path.parts)]
    return sorted(
        path
        for path in found
        if (ROOT / path).is_file() and (not suffixes or path.suffix in suffixes)
    )


def read(path: Path) -> str:
    """The text of a file of the repository; bytes that are no text are replaced."""
    return (ROOT / path).read_text(errors="replace")
