"""Imports run one way: shm <- workers <- bindings <- python/stook."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from codebase import ROOT, files, read

INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]', re.MULTILINE)

# Which rooms the files of a room may include. The longest prefix of a file's path is its room.
MAY_INCLUDE = {
    "shm": {"shm"},
    "workers": {"shm", "workers"},
    "workers/decode": {"workers/decode"},
    "bindings": {"shm", "workers", "workers/decode", "bindings"},
    "tests/cpp": {"shm", "workers", "workers/decode", "tests/cpp"},
    "tests/fuzz": {"workers/decode", "tests/cpp", "tests/fuzz"},
    "benchmarks/cpp": {"shm", "workers", "workers/decode", "benchmarks/cpp"},
}

# The only rooms that may include somebody else's headers.
LIBRARIES = {
    r"Python\.h|pybind11/|numpy/|structmember\.h|frameobject\.h|pythread\.h": {"bindings"},
    r"boost/": {"shm"},
    r"jpeglib\.h|jerror\.h|jconfig\.h|jmorecfg\.h": {"workers/decode", "tests/cpp"},
    r"zlib\.h": {"workers/decode", "tests/cpp"},
    r"gtest/|gmock/": {"tests/cpp"},
}

# What python/stook may not import: the layout of shared memory is the business of the rooms below.
LOW_LEVEL = {"ctypes", "mmap", "multiprocessing.shared_memory", "_posixshmem"}

# Who may nevertheless, and for what: nothing that has to do with our shared memory.
EXCUSED = {
    "python/stook/_random.py": {"ctypes"},  # the state of NumPy's own generator, set in one copy
    "python/stook/_thread_limits.py": {"ctypes"},  # setters of libraries that are already loaded
    # A segment of SPDL's own functions, which want objects of Python that map it where they run.
    "python/stook/_spdl_arena.py": {"mmap"},
    # Files of the user's behind np.memmap; and the payload that a server is started with, whose
    # buffers begin at pages, so that all processes may map one copy of them.
    "python/stook/_memory_maps.py": {"mmap"},
    "python/stook/_start.py": {"mmap"},
    "python/stook/_server.py": {"mmap"},
}

CPP = files(".h", ".cpp")
PYTHON = [path for path in files(".py", ".pyi") if path.is_relative_to("python/stook")]


def room_of(path: Path) -> str | None:
    """The room that a file or an included path belongs to."""
    rooms = [room for room in MAY_INCLUDE if path.is_relative_to(room)]
    return max(rooms, key=len, default=None)


def includes(path: Path) -> list[tuple[str, str]]:
    """(bracket, target) of each include of a file."""
    return INCLUDE.findall(read(path))


def test_a_room_includes_only_rooms_below_it() -> None:
    wrong = []
    for path in CPP:
        room = room_of(path)
        if room is None:
            wrong.append(f"{path} lies in no room of {sorted(MAY_INCLUDE)}")
            continue
        for bracket, target in includes(path):
            ours = (ROOT / target).is_file()
            if bracket == '"' and not ours:
                wrong.append(f"{path}: {target} is not rooted at the repository")
            if ours and room_of(Path(target)) not in MAY_INCLUDE[room]:
                wrong.append(f"{path}: {room} must not know {target}")
    assert wrong == []


def test_libraries_stay_in_their_rooms() -> None:
    wrong = [
        f"{path}: {target} belongs to {sorted(rooms)} alone"
        for path in CPP
        for _, target in includes(path)
        for library, rooms in LIBRARIES.items()
        if re.match(library, target) and room_of(path) not in rooms
    ]
    assert wrong == []


def test_headers_are_guarded() -> None:
    guard = re.compile(r"^#pragma once$", re.MULTILINE)
    headers = [path for path in CPP if path.suffix == ".h"]
    assert [str(path) for path in headers if len(guard.findall(read(path))) != 1] == []


def imported_modules(path: Path) -> set[str]:
    """The absolute names of all modules that a Python file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(read(path))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            assert node.module is not None
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_python_knows_no_layout_of_shared_memory() -> None:
    used = {str(path): imported_modules(path) & LOW_LEVEL for path in PYTHON}
    assert {path: modules for path, modules in used.items() if modules} == EXCUSED


def test_the_rules_look_at_files() -> None:
    assert {room_of(path) for path in CPP} >= {"shm", "workers", "bindings"}
    assert PYTHON
