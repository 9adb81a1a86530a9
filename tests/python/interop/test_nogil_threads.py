"""Threads in place of processes: libraries that release the GIL, and the example that shows it."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from partner_loader import DEADLINE, PARTNER_FLAGS, require

import stook
from conftest import RunPython

EXAMPLE = Path(__file__).parents[3] / "examples" / "nogil_threads.py"


def has(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def test_the_example_runs_and_says_what_it_left_out() -> None:
    command = [sys.executable, EXAMPLE, "--workers", "2", "--calls", "3"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE, check=False)
    assert done.returncode == 0, done.stderr
    table = done.stdout[: done.stdout.index("what stook.recommend says")]
    rows = [line[:20].strip() for line in table.splitlines()]
    assert {"Python", "hashlib"} <= set(rows)
    for package, module, names in (
        ("Numba", "numba", {"Numba, GIL held", "Numba, nogil=True"}),
        ("Cython", "Cython", {"Cython, GIL held", "Cython, with nogil"}),
    ):
        assert names <= set(rows) if has(module) else not names & set(rows)
        assert (f"left out: {package}" in done.stdout) != has(module)
    assert "plain_python: " in done.stdout
    assert "standard_library: " in done.stdout


def test_cythons_functions_hold_and_release_the_gil(run_python: RunPython) -> None:
    require("Cython")
    code = f"""
        import importlib.util, pathlib, tempfile
        from stook.recommend import _in_one_thread

        spec = importlib.util.spec_from_file_location("example", {str(EXAMPLE)!r})
        example = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(example)
        example.ROUNDS *= 10
        with tempfile.TemporaryDirectory() as folder:
            for function in example.cython_functions(pathlib.Path(folder)).values():
                rate, share = _in_one_thread(function, [1, 2], 0.5)
                print("held" if share > 0.7 else "released" if share < 0.3 else share)
    """
    done = run_python(code, deadline=DEADLINE, flags=PARTNER_FLAGS).check()
    assert done.stdout.split() == ["held", "released"]


def same_in_threads(transform: Callable[[Any], Any], count: int = 12) -> None:
    """Several threads at once give what one thread gives."""
    expected = list(stook.DataLoader(range(count), transform))
    options = stook.MultithreadingOptions(4, 2)
    with stook.DataLoader(range(count), transform, options=options) as loader:
        for _ in range(3):
            found = list(loader)
            assert len(found) == count
            assert all(
                np.array_equal(one, other) for one, other in zip(found, expected, strict=True)
            )


@pytest.mark.leaves("OpenCV keeps threads of its own", "threads")
def test_opencv_in_threads() -> None:
    (cv2,) = require("cv2")
    image = np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)

    def transform(index: int) -> Any:
        return cv2.GaussianBlur(cv2.resize(image, (100 + index, 90)), (5, 5), 0)

    same_in_threads(transform)


def test_pillow_in_threads() -> None:
    (image_module,) = require("PIL.Image")
    pixels = np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)

    def transform(index: int) -> Any:
        return np.asarray(image_module.fromarray(pixels).resize((100 + index, 90)))

    same_in_threads(transform)


def test_the_share_of_the_gil_of_compiled_functions(run_python: RunPython) -> None:
    require("numba")
    # In a process of its own: Numba keeps what it has compiled.
    code = """
        import numba
        from stook.recommend import _in_one_thread

        def mix(value):
            for _ in range(20_000_000):
                value = value * 6364136223846793005 + 1
                value ^= value >> 29
            return value

        for nogil in (False, True):
            compiled = numba.njit("int64(int64)", nogil=nogil)(mix)
            rate, share = _in_one_thread(compiled, [1, 2], 0.5)
            print("held" if share > 0.7 else "released" if share < 0.3 else share)
    """
    done = run_python(code, deadline=DEADLINE, flags=PARTNER_FLAGS).check()
    assert done.stdout.split() == ["held", "released"]


def test_a_pool_of_threads_fills_one_array(run_python: RunPython) -> None:
    require("numba")
    code = """
        import numba, numpy as np, stook

        @numba.njit("void(int64[:], int64)", nogil=True)
        def fill(row, value):
            for place in range(row.size):
                row[place] = value + place

        out = np.empty((8, 5000), np.int64)
        with stook.ThreadPool(4) as pool:
            pool.starmap(fill, zip(out, range(8)))
        print(np.array_equal(out, np.arange(8)[:, None] + np.arange(5000)))
    """
    done = run_python(code, deadline=DEADLINE, flags=PARTNER_FLAGS).check()
    assert done.stdout == "True\n"
