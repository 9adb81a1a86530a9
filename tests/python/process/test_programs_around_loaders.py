"""Programs that use a loader: scripts, threads, sessions; and what workers see of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from process_loader import each_method, made

from conftest import RunPython
from stook import _start

# A module's own level, without a guard.
SCRIPT = """
import sys
import stook

scale = 3

class Item:
    def __init__(self, value):
        self.value = value

def load(index):
    return Item(index * scale)

options = stook.MultiprocessingOptions(num_workers=2, start_method={method!r})
loader = stook.DataLoader(range(4), load, options=options)
items = [item.value for item in loader]
assert items == [0, 3, 6, 9], items
assert all(type(item) is Item for item in loader)
scale = 5
items = [item.value for item in loader]
assert {method!r} == "fork" or items == [0, 5, 10, 15], items
print("ok", [x for x in stook.DataLoader(range(3), lambda index: -index, options=options)])
"""


@each_method
def test_a_script_without_a_guard(method: str, run_python: RunPython) -> None:
    done = run_python(SCRIPT.format(method=method)).check()
    assert done.stdout == "ok [0, -1, -2]\n"


@each_method
@pytest.mark.parametrize("way", ["-c", "stdin", "-i"])
def test_other_ways_to_run_a_program(method: str, way: str) -> None:
    code = SCRIPT.format(method=method)
    if way == "-i":
        # Line by line, as typed: a blank line ends a block.
        code = code.replace("\n\n", "\n").replace("scale = 3\n", "scale = 3\n\n")
        lines = code.splitlines()
        typed = []
        for number, line in enumerate(lines):
            before = lines[number - 1] if number else ""
            if line and not line.startswith(" ") and before.startswith(" "):
                typed.append("")
            typed.append(line)
        code = "\n".join(typed) + "\n"
    arguments = {"-c": ["-c", code], "stdin": ["-"], "-i": ["-i", "-q"]}[way]
    done = subprocess.run(
        [sys.executable, *arguments],
        input=None if way == "-c" else code,
        stdin=subprocess.DEVNULL if way == "-c" else None,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == "ok [0, -1, -2]\n", done.stderr
    assert "Error" not in done.stderr


@each_method
def test_cells_of_a_notebook(method: str, run_python: RunPython) -> None:
    run_python(
        """
        import sys
        # As IPython does: each cell is compiled on its own and executed in one namespace.
        namespace = sys.modules["__main__"].__dict__

        def cell(number, text):
            exec(compile(text, f"<ipython-input-{number}>", "exec"), namespace)

        cell(1, "import stook, numpy as np\\nfactor = 2")
        cell(2, "def load(i):\\n    return {'x': np.full(5000, i * factor), 'y': helper(i)}")
        cell(3, "def helper(i):\\n    return -i")
        cell(4, f"options = stook.MultiprocessingOptions(2, start_method={sys.argv[1]!r})")
        cell(5, "loader = stook.DataLoader(range(3), load, options=options)")
        for _ in range(2):
            cell(6, "found = [(int(e['x'].sum()), e['y']) for e in loader]")
            assert found == [(0, 0), (10_000, -1), (20_000, -2)], found
        # A cell is changed, and run again.
        cell(7, "def helper(i):\\n    return 100 + i")
        cell(8, "loader.close()")
        cell(5, "loader = stook.DataLoader(range(3), load, options=options)")
        cell(6, "found = [(int(e['x'].sum()), e['y']) for e in loader]")
        assert found == [(0, 100), (10_000, 101), (20_000, 102)], found
        """,
        method,
    ).check()


@each_method
def test_functions_called_twice_and_threads(method: str, run_python: RunPython) -> None:
    run_python(
        """
        import sys, threading, warnings, stook
        method = sys.argv[1]
        if method == "fork":  # beside other threads it warns
            warnings.simplefilter("ignore")

        def run(offset):
            options = stook.MultiprocessingOptions(num_workers=2, start_method=method)
            return list(stook.DataLoader(range(5), lambda i: i + offset, options=options))

        assert run(1) == [1, 2, 3, 4, 5]
        assert run(2) == [2, 3, 4, 5, 6]
        found = {}
        threads = [threading.Thread(target=lambda k=k: found.update({k: run(k)})) for k in range(3)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        assert found == {k: list(range(k, k + 5)) for k in range(3)}, found
        """,
        method,
    ).check()


def test_forking_beside_threads_is_warned_about_at_the_users_line(run_python: RunPython) -> None:
    run_python(
        """
        import threading, warnings, stook
        go = threading.Event()
        thread = threading.Thread(target=go.wait)
        thread.start()
        options = stook.MultiprocessingOptions(num_workers=1, start_method="fork")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert list(stook.DataLoader([1, 2], abs, options=options)) == [1, 2]
        texts = [(str(w.message), w.filename) for w in caught if w.category is RuntimeWarning]
        assert len(texts) == 1 and "1 other Python threads" in texts[0][0], texts
        assert texts[0][1] == __file__, texts
        go.set()
        thread.join()
        """
    ).check()


def test_forking_with_cuda_initialized_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # Initializing CUDA opens the device.
    (tmp_path / "3").symlink_to("/dev/null")
    assert not _start._cuda_initialized(str(tmp_path))
    (tmp_path / "4").symlink_to("/dev/nvidia0")
    assert _start._cuda_initialized(str(tmp_path))
    monkeypatch.setattr(_start, "_cuda_initialized", lambda: True)
    with made("fork", [1, 2], abs) as loader:
        with pytest.raises(RuntimeError, match=r"CUDA.*use start_method='forkserver'"):
            iter(loader)
    with made("forkserver", [1, -2], abs) as loader:
        assert list(loader) == [1, 2]


# ---- what workers see ----------------------------------------------------------------------------


@each_method
def test_surroundings_changed_before_the_start(
    method: str, run_python: RunPython, tmp_path: Path
) -> None:
    run_python(
        """
        import os, sys, stook
        folder = sys.argv[2]
        os.mkdir(os.path.join(folder, "modules"))
        with open(os.path.join(folder, "modules", "added_module.py"), "w") as file:
            file.write("import os\\ndef value(): return os.environ['ADDED']\\n")

        def look(index):
            import added_module
            return os.getcwd(), sys.argv, added_module.value(), os.environ.get("REMOVED")

        os.environ["REMOVED"] = "x"
        os.chdir(folder)
        sys.argv = ["changed", "arguments"]
        sys.path.insert(0, os.path.join(folder, "modules"))
        os.environ["ADDED"] = "yes"
        del os.environ["REMOVED"]
        options = stook.MultiprocessingOptions(num_workers=1, start_method="forkserver")
        found = list(stook.DataLoader(range(2), look, options=options))
        assert found == [(folder, ["changed", "arguments"], "yes", None)] * 2, found
        """,
        method,
        str(tmp_path),
    ).check()


@each_method
def test_modules_beside_a_script(method: str, tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text("class Own:\n    value = 7\ndef load(i):\n    return Own\n")
    (tmp_path / "script.py").write_text(
        "import stook\nfrom beside import Own, load\n"
        f"options = stook.MultiprocessingOptions(1, start_method={method!r})\n"
        "assert list(stook.DataLoader([1], load, options=options)) == [Own]\n"
    )
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "loading.py").write_text("def load(i):\n    return i + 1\n")
    (package / "main.py").write_text(
        "import stook\nfrom .loading import load\n"
        "def step(i):\n    from .loading import load\n    return load(i)\n"
        f"options = stook.MultiprocessingOptions(1, start_method={method!r})\n"
        "assert list(stook.DataLoader([1], [load, step], options=options)) == [3]\n"
    )
    for arguments in (["script.py"], ["-m", "package.main"]):
        done = subprocess.run(
            [sys.executable, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
    # From another folder, by its path.
    done = subprocess.run(
        [sys.executable, str(tmp_path / "script.py")],
        cwd=tmp_path.parent,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


def test_a_working_directory_that_is_gone(run_python: RunPython, tmp_path: Path) -> None:
    run_python(
        """
        import os, sys, stook
        gone = os.path.join(sys.argv[1], "gone")
        os.mkdir(gone)
        os.chdir(gone)
        os.rmdir(gone)
        sys.path.insert(0, "")  # as in a session
        options = stook.MultiprocessingOptions(num_workers=1)
        assert list(stook.DataLoader([1, -2], abs, options=options)) == [1, 2]
        """,
        str(tmp_path),
    ).check()
