"""stook.ProcessPoolExecutor where others expect the standard one."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

import numpy as np
import pytest

import stook
from conftest import RunPython


def require_installed(name: str) -> None:
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")


SPDL = """
import numpy as np, stook
from spdl.pipeline import PipelineBuilder

offset = 0

def set_up(value):
    global offset
    offset = value

def image(number):
    return np.full((64, 64, 3), number + offset, np.uint8)

def several(number):
    yield from (np.full(5000, 10 * number + part, np.uint16) for part in range(3))

def run(function, executor, order, items=12):
    pipeline = (
        PipelineBuilder()
        .add_source(range(items))
        .pipe(function, executor=executor, concurrency=4, output_order=order)
        .add_sink(2)
        .build(num_threads=1, max_failures=0)
    )
    with pipeline.auto_stop():
        return list(pipeline)

if __name__ == "__main__":
    with stook.ProcessPoolExecutor(2, initializer=set_up, initargs=(100,)) as executor:
        images = run(image, executor, "input")
        assert [int(one[0, 0, 0]) for one in images] == [100 + n for n in range(12)]
        assert all(stook.is_shared(one) for one in images)
        parts = run(several, executor, "completion")
        assert sorted(int(one[0]) for one in parts) == [
            10 * n + p for n in range(12) for p in range(3)
        ]
    print("same")
"""


def test_an_spdl_stage_runs_on_it(run_python: RunPython) -> None:
    require_installed("spdl")
    done = run_python(SPDL, flags=()).check()
    assert done.stdout == "same\n", done


def square(number: int) -> int:
    return number * number


TQDM = """
import concurrent.futures, stook
from tqdm.contrib.concurrent import process_map

concurrent.futures.ProcessPoolExecutor = stook.ProcessPoolExecutor

def square(number):
    return number * number

for _ in range(5):
    assert process_map(square, range(30), max_workers=2) == [n * n for n in range(30)]
assert process_map(square, range(30), chunksize=9) == [n * n for n in range(30)]
"""


def test_tqdm_maps_on_it(run_python: RunPython) -> None:
    """Its bar is updated by callbacks, and its workers are sent a lock that is only inherited."""
    done = run_python(TQDM, flags=()).check()
    assert done.stderr.count("30/30") == 5


def test_dask_computes_on_it() -> None:
    require_installed("dask")
    import dask

    with stook.ProcessPoolExecutor(2) as executor:
        tasks = [dask.delayed(square)(number) for number in range(20)]
        total = dask.delayed(sum)(tasks)
        assert total.compute(scheduler=executor) == sum(n * n for n in range(20))


@pytest.fixture
def executor() -> Iterator[stook.ProcessPoolExecutor]:
    with stook.ProcessPoolExecutor(2) as made:
        yield made


def test_numpy_results_stay_after_the_executor(executor: stook.ProcessPoolExecutor) -> None:
    arrays = [executor.submit(np.full, 100_000, n, np.int32).result(30) for n in range(5)]
    executor.shutdown()
    assert [int(array.sum()) for array in arrays] == [100_000 * n for n in range(5)]
