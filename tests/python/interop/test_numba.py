"""Compiled functions that release the GIL, called in worker processes."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
from partner_loader import DEADLINE, PARTNER_FLAGS, each_start_method, loader, require

from conftest import RunPython

(numba,) = require("numba")


@numba.njit("int64[:, :](int64)", nogil=True)
def table(index: int) -> Any:
    out = np.empty((80, 90), np.int64)
    for row in range(80):
        for column in range(90):
            out[row, column] = row * column + index
    return out


@numba.njit("void(int64[:], int64)", nogil=True)
def fill(out: Any, value: int) -> None:
    for place in range(out.size):
        out[place] = value + place


def expected(index: int) -> Any:
    return np.outer(np.arange(80), np.arange(90)) + index


def test_a_compiled_function_is_a_transform() -> None:
    with loader(range(4), table, num_workers=2) as elements:
        for index, element in enumerate(elements):
            assert np.array_equal(element, expected(index))
        # Numba allocates by itself, not through NumPy.
        assert (elements.stats().moved, elements.stats().copied) == (0, 4)


def _filled(index: int) -> Any:
    out = np.empty(5000, np.int64)
    fill(out, index)
    return out


def test_what_a_compiled_function_fills_is_moved() -> None:
    with loader(range(4), _filled, num_workers=2) as elements:
        for index, element in enumerate(elements):
            assert np.array_equal(element, np.arange(5000) + index)
        assert (elements.stats().moved, elements.stats().copied) == (4, 0)


def _filled_by_threads(index: int) -> Any:
    out = np.empty((4, 5000), np.int64)
    threads = [threading.Thread(target=fill, args=(row, index)) for row in out]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {"filled": out, "made": table(index)}


def test_threads_without_the_gil_fill_one_array() -> None:
    with loader(range(4), _filled_by_threads, num_workers=2) as elements:
        for index, element in enumerate(elements):
            assert np.array_equal(element["filled"], np.tile(np.arange(5000) + index, (4, 1)))
            assert np.array_equal(element["made"], expected(index))


@each_start_method
@pytest.mark.parametrize("compiled", ["before", "in the worker"])
def test_a_function_of_a_script(run_python: RunPython, start_method: str, compiled: str) -> None:
    code = """
        import sys
        import numba, numpy as np, stook

        @numba.njit(nogil=True, cache=False)
        def squares(count):
            out = np.empty(count, np.float64)
            for place in range(count):
                out[place] = place * place
            return out

        if sys.argv[2] == "before":
            squares(3)
        options = stook.MultiprocessingOptions(num_workers=1, start_method=sys.argv[1])
        with stook.DataLoader([5000, 6000], lambda n: squares(n), options=options) as loader:
            print([(len(element), element[-1]) for element in loader] == [
                (5000, 4999.0**2), (6000, 5999.0**2)])
    """
    done = run_python(code, start_method, compiled, deadline=DEADLINE, flags=PARTNER_FLAGS).check()
    assert done.stdout == "True\n"
