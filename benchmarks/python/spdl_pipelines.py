"""SPDL's pipelines: a subprocess of 4.8 MB items, and a stage in processes; Stook beside SPDL.

    python benchmarks/python/spdl_pipelines.py [--rounds 5] [--items 400] [--only subprocess|stage]

The ways of a row take turns within each round; given are milliseconds an item (median of the
rounds), and the median of the per-round ratios to the first way, with their range. "SPDL alone" is
what SPDL takes for the stage with an executor that has its result at once: no executor is faster.
"SPDL, this process" runs the pipeline of the subprocess here, where nothing has to be sent: no way
over to another process is faster than its pipeline, which it is for the consumer's share alone.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import multiprocessing
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import spdl.pipeline

import stook
import stook.spdl

PipelineBuilder: Any = spdl.pipeline.PipelineBuilder

ITEM = 4_816_896  # bytes: 32 images of 224 x 224 x 3


def large(number: int) -> np.ndarray:
    return np.full(ITEM, number % 251, np.uint8)


def image(number: int) -> np.ndarray:
    """(224, 224, 3) uint8, 150 KB."""
    return np.full((224, 224, 3), number % 251, np.uint8)


class AtOnce(concurrent.futures.Executor):
    """Has the same array for every call, at once."""

    def __init__(self) -> None:
        self._result = image(0)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        future: concurrent.futures.Future[Any] = concurrent.futures.Future()
        future.set_result(self._result)
        return future


def seconds_an_item(source: Iterable[Any], items: int) -> float:
    began = time.perf_counter()
    received = sum(1 for _ in source)
    took = time.perf_counter() - began
    if received != items:
        raise SystemExit(f"spdl_pipelines: {received} items of {items} arrived")
    return took / items


def subprocess_ways(items: int) -> dict[str, Callable[[], float]]:
    config = (
        PipelineBuilder()
        .add_source(range(items))
        .pipe(large, concurrency=2, output_order="input")
        .add_sink(3)
        .get_config()
    )
    method = "fork"  # its arena takes the default one alone
    theirs = spdl.pipeline.run_pipeline_in_subprocess
    pool = spdl.pipeline.SharedMemorySegmentPool(ITEM + 4096, 8)
    sources = {
        "SPDL, its arena": theirs(config, num_threads=2, mp_context=method, arena=pool),
        "SPDL, stook's arena": theirs(
            config, num_threads=2, mp_context=method, arena=stook.spdl.arena()
        ),
        "stook": stook.spdl.run_pipeline_in_subprocess(config, num_threads=2),
    }
    ways: dict[str, Callable[[], float]] = {
        name: lambda source=source: seconds_an_item(source, items)  # type: ignore[misc]
        for name, source in sources.items()
    }
    ways["SPDL, this process"] = lambda: in_this_process(config, items)
    return ways


def in_this_process(config: Any, items: int) -> float:
    pipeline = spdl.pipeline.build_pipeline(config, num_threads=2)
    with pipeline.auto_stop():
        return seconds_an_item(pipeline, items)


def stage_ways(items: int) -> dict[str, Callable[[], float]]:
    fork = multiprocessing.get_context("forkserver")
    executors: dict[str, concurrent.futures.Executor] = {
        "standard executor": concurrent.futures.ProcessPoolExecutor(2, mp_context=fork),
        "SPDL alone": AtOnce(),
        "stook": stook.ProcessPoolExecutor(2),
    }

    def run(executor: concurrent.futures.Executor) -> float:
        pipeline = (
            PipelineBuilder()
            .add_source(range(items))
            .pipe(image, executor=executor, concurrency=8, output_order="input")
            .aggregate(32)
            .add_sink(2)
            .build(num_threads=1, max_failures=0)
        )
        with pipeline.auto_stop():
            return seconds_an_item((each for batch in pipeline for each in batch), items)

    return {
        name: lambda executor=executor: run(executor)  # type: ignore[misc]
        for name, executor in executors.items()
    }


def report(title: str, ways: dict[str, Callable[[], float]], rounds: int) -> None:
    for way in ways.values():
        way()  # not measured: until the processes are there
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            taken[name].append(way())
    print(title)
    first = next(iter(taken.values()))
    for name, each in taken.items():
        ratios = [one / other for one, other in zip(first, each, strict=True)]
        print(
            f"  {name:22}{1e3 * statistics.median(each):9.3f} ms"
            f"{statistics.median(ratios):8.2f}x  ({min(ratios):.2f}-{max(ratios):.2f})"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--items", type=int, default=400)
    parser.add_argument("--only", choices=["subprocess", "stage"])
    args = parser.parse_args()
    if args.only is None:
        # A process for each: SPDL's subprocesses work ahead, also when nobody iterates any more.
        for part in ("stage", "subprocess"):
            subprocess.run([sys.executable, __file__, *sys.argv[1:], "--only", part], check=True)
    elif args.only == "subprocess":
        ways = subprocess_ways(args.items)
        report("run_pipeline_in_subprocess, 4.8 MB an item", ways, args.rounds)
    else:
        report("a stage in 2 processes, 150 KB", stage_ways(10 * args.items), args.rounds)


if __name__ == "__main__":
    main()
