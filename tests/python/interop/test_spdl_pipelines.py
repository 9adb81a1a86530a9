"""stook.spdl.run_pipeline_in_subprocess: what SPDL's promises, and what it does not."""

from __future__ import annotations

import importlib.util
import itertools
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import stook
import stook.spdl
from leftovers import wait_until

if importlib.util.find_spec("spdl") is None:
    pytest.skip("spdl is not installed", allow_module_level=True)

import spdl.pipeline
from spdl.pipeline import PipelineFailure

PipelineBuilder: Any = spdl.pipeline.PipelineBuilder

offset = 0


def set_offset(value: int) -> None:
    global offset
    offset = value


def image(number: int) -> np.ndarray:
    return np.full((64, 64, 3), number + offset, np.uint8)


def fail_at_three(number: int) -> int:
    if number == 3:
        raise KeyError("three")
    return number


def pair(number: int) -> Iterator[int]:
    yield number
    yield -number


def pid(_: int) -> int:
    return os.getpid()


def builder(function: Any, items: Any = 12, **settings: Any) -> Any:
    source = range(items) if isinstance(items, int) else items
    settings = {"concurrency": 3, "output_order": "input"} | settings
    return PipelineBuilder().add_source(source).pipe(function, **settings).add_sink(2)


def first_pixels(images: Any) -> list[int]:
    return [int(one[0, 0, 0]) for one in images]


def run(pipeline: Any, **settings: Any) -> Any:
    return stook.spdl.run_pipeline_in_subprocess(pipeline, num_threads=2, **settings)


@pytest.mark.parametrize("kind", ["builder", "config"])
def test_results_of_every_iteration_arrive_in_shared_memory(kind: str) -> None:
    pipeline = builder(image) if kind == "builder" else builder(image).get_config()
    with run(pipeline) as images:
        for _ in range(3):
            received = list(images)
            assert first_pixels(received) == [*range(12)]
            assert all(stook.is_shared(one) for one in received)


def test_it_runs_in_one_other_process() -> None:
    with run(builder(pid)) as pids:
        first, second = set(pids), set(pids)
    assert len(first) == 1
    assert first == second != {os.getpid()}


def test_several_at_once() -> None:
    with run(builder(pid)) as one, run(builder(pid)) as other:
        pairs = list(zip(one, other, strict=True))
    assert len(pairs) == 12
    assert len({*pairs}) == 1
    assert pairs[0][0] != pairs[0][1]


def test_breaking_off_stops_the_pipeline(tmp_path: Path) -> None:
    def count_threads(_: int) -> int:
        return threading.active_count()

    with run(builder(count_threads, 10_000)) as counts:
        most = 0
        for _ in range(8):
            for count in counts:
                most = max(most, count)
                break
        # Each run has an event loop, a source and workers; eight that went on would have 24.
        assert most < 16
        assert len(list(counts)) == 10_000


def test_errors_have_their_type_and_the_traceback() -> None:
    with run(builder(fail_at_three), max_failures=0) as numbers:
        for _ in range(2):
            with pytest.raises(PipelineFailure) as raised:
                list(numbers)
            (failure,) = raised.value.exceptions
            assert "fail_at_three" in str(failure)
            assert type(failure.__cause__) is KeyError
            assert "KeyError: 'three'" in str(raised.value.__cause__)


def test_failures_that_are_allowed_are_left_out() -> None:
    with run(builder(fail_at_three)) as numbers:
        assert list(numbers) == [0, 1, 2, *range(4, 12)]


def test_a_killed_process_is_an_error_at_once() -> None:
    with run(builder(image, 10_000), timeout=None) as images:
        iterator = iter(images)
        next(iterator)
        process = images._process
        assert process is not None
        (worker,) = process.pool._core.worker_pids
        os.kill(worker, signal.SIGKILL)
        with pytest.raises(stook.WorkerDied):
            list(iterator)
        assert first_pixels([next(iter(images))]) == [0]


def test_a_timeout() -> None:
    with run(builder(time.sleep, [0, 3600]), timeout=1.0) as results, pytest.raises(TimeoutError):
        list(results)


@pytest.mark.parametrize(
    "kind", [ThreadPoolExecutor, ProcessPoolExecutor, stook.ProcessPoolExecutor]
)
def test_executors_of_stages_are_made_again(kind: Any) -> None:
    executor = kind(2, initializer=set_offset, initargs=(100,))
    with run(builder(image, executor=executor)) as images:
        for _ in range(2):
            assert first_pixels(images) == [*range(100, 112)]
    executor.shutdown()


def test_an_executor_in_use_is_refused() -> None:
    with ThreadPoolExecutor(1) as executor:
        executor.submit(int).result()
        with pytest.raises(ValueError, match="ThreadPoolExecutor has been used"):
            run(builder(image, executor=executor))


def test_generator_and_coroutine_stages() -> None:
    async def double(number: int) -> int:
        return 2 * number

    pipeline = (
        PipelineBuilder()
        .add_source(range(1, 5))
        .pipe(pair)
        .pipe(double, output_order="input")
        .aggregate(3)
        .add_sink(2)
    )
    with run(pipeline) as batches:
        assert list(batches) == [[2, -2, 4], [-4, 6, -6], [8, -8]]


def test_a_continuous_source_goes_on() -> None:
    config = (
        PipelineBuilder().add_source([1, 2, 3], continuous=True).pipe(abs).add_sink(2).get_config()
    )
    with run(config) as numbers:
        assert [list(numbers) for _ in range(3)] == [[1, 2, 3]] * 3


def test_random_numbers_go_on_from_here() -> None:
    def draw(_: int) -> tuple[float, float]:
        return random.random(), float(np.random.random())

    before = random.getstate(), np.random.get_state()
    try:
        random.seed(3)
        np.random.seed(4)
        with run(builder(draw, 3, concurrency=1)) as draws:
            drawn = list(draws)
        assert drawn == [draw(0) for _ in range(3)]
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])


def test_initializers_are_called_first() -> None:
    with run(builder(image), initializer=lambda: set_offset(50)) as images:
        assert first_pixels(images) == [*range(50, 62)]


def test_an_arena_is_not_needed() -> None:
    from spdl.pipeline import SharedMemorySegmentPool

    with run(builder(image), arena=SharedMemorySegmentPool(100_000, 4)) as images:
        assert first_pixels(images) == [*range(12)]


def test_what_is_no_pipeline_is_refused() -> None:
    with pytest.raises(TypeError, match="PipelineConfig or a PipelineBuilder"):
        run([1, 2, 3])


# ---- what is referred to -------------------------------------------------------------------------


def test_results_are_nobody_elses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stook.spdl, "_SECONDS_A_BYTE", 1.0)

    def large(number: int) -> list[np.ndarray]:
        return [np.full(1 << 18, number, np.uint8)]

    for threads in (True, False):
        settings = {"num_threads": 2, "use_thread_output_queue": threads}
        with ThreadPoolExecutor(2) as executor:
            config = builder(large, 40, executor=executor).get_config()
            seen = 0
            for result in stook.spdl._Runs(config, settings):
                assert sys.getrefcount(result) == 2  # `result`, and the argument
                seen += 1
        assert seen == 40


def wait_for_ever() -> None:
    stook.spdl._SECONDS_A_BYTE = 1.0


def test_what_is_made_ahead_of_the_consumer_is_moved_too(tmp_path: Path) -> None:
    def large(number: int) -> np.ndarray:
        made = np.full(1 << 20, number, np.uint8)
        (tmp_path / str(number)).touch()
        return made

    pipeline = builder(large, 4, concurrency=1)
    with run(pipeline, buffer_size=1, initializer=wait_for_ever) as arrays:
        iterator = iter(arrays)
        received = [next(iterator)]
        # The process has at most one job meanwhile, and the others are made without one.
        assert wait_until((tmp_path / "3").exists, 30)
        received.extend(iterator)
        assert [int(one[0]) for one in received] == [0, 1, 2, 3]
        _, _, moved, copied, *_ = arrays._process.pool._core.totals()
    assert (moved, copied) == (4, 0)


class Clock:
    """In the place of `time`, with what is to happen in the sleep with this number."""

    def __init__(self, at: int = -1, happens: Any = None) -> None:
        self.sleeps = 0
        self._at = at
        self._happens = happens

    def perf_counter(self) -> float:
        return 1e-4 * self.sleeps

    def sleep(self, _: float) -> None:
        self.sleeps += 1
        if self.sleeps == self._at:
            self._happens()


def test_a_result_that_somebody_refers_to_for_a_while_is_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kept = [np.zeros(1 << 20, np.uint8), np.zeros(1000, np.uint8)]
    clock = Clock(3, lambda: kept.__setitem__(0, None))
    monkeypatch.setattr(stook.spdl, "time", clock)
    results = stook.spdl._LetGoOf(map(kept.__getitem__, range(2)))
    next(results)
    assert clock.sleeps == 3
    next(results)  # a small one, which is kept: it is copied in less time
    assert clock.sleeps == 3


def test_results_that_are_kept_are_soon_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(stook.spdl, "time", clock)
    kept = np.zeros(1 << 20, np.uint8)
    results = stook.spdl._LetGoOf(itertools.repeat((kept,), 1000))
    waited = []
    before = 0
    for number, _ in enumerate(results):
        if clock.sleeps > before:
            waited.append(number)
        before = clock.sleeps
    assert waited == [0, 3, 8, 17, 34, 67, 132, 261, 518, 775]
