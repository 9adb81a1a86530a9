"""An SPDL pipeline whose stage runs in processes: the standard executor, then Stook's.

    pip install spdl
    python examples/spdl_stage.py

The stage needs something that each worker loads once: a tone curve, which ``initializer`` makes
from ``initargs``. Nothing but the executor's class differs between the two runs.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import multiprocessing
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import AbstractContextManager
from functools import partial

import numpy as np

import stook

try:
    from spdl.pipeline import PipelineBuilder
except ImportError:
    sys.exit("spdl_stage: SPDL is not installed: pip install spdl")

BATCH = 32
SIDE = 224  # of an image, in pixels

curve: np.ndarray  # (256,) uint8, in each worker: see load_curve


def load_curve(gamma: float) -> None:
    """Runs once in each worker, before its first image."""
    global curve
    curve = np.round(255 * (np.arange(256) / 255) ** gamma).astype(np.uint8)


def make_image(number: int) -> np.ndarray:
    """A gradient that turns with its number, through the curve: (224, 224, 3) uint8, 150 KB."""
    rows, columns = np.ogrid[:SIDE, :SIDE]
    plane = (rows * (number % 7) + columns * (number % 5) + number).astype(np.uint8)
    return np.repeat(curve[plane][..., None], 3, axis=2)


def batches(executor: Executor, images: int, ahead: int) -> Iterator[np.ndarray]:
    """(32, 224, 224, 3) uint8 each, in order."""
    pipeline = (
        PipelineBuilder()
        .add_source(range(images))
        .pipe(make_image, executor=executor, concurrency=ahead, output_order="input")
        .aggregate(BATCH)
        .pipe(np.stack)
        .add_sink(2)
        # Without max_failures=0, SPDL would leave out the images that failed, and go on.
        .build(num_threads=1, max_failures=0)
    )
    with pipeline.auto_stop():
        yield from pipeline


def executors(workers: int, gamma: float) -> dict[str, partial[AbstractContextManager[Executor]]]:
    settings = {"max_workers": workers, "initializer": load_curve, "initargs": (gamma,)}
    # Forked, because this script has no `if __name__ == "__main__"`, which others would need.
    fork = multiprocessing.get_context("fork")
    return {
        "concurrent.futures": partial(
            concurrent.futures.ProcessPoolExecutor, mp_context=fork, **settings
        ),
        "stook": partial(stook.ProcessPoolExecutor, **settings),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--gamma", type=float, default=0.45)
    args = parser.parse_args()
    if args.images < 1 or args.workers < 1:
        parser.error("--images and --workers must be at least 1")

    ahead = 4 * args.workers
    means: dict[str, list[float]] = {}
    seconds = {}
    for name, make_executor in executors(args.workers, args.gamma).items():
        with make_executor() as executor:
            for _ in batches(executor, 2 * BATCH, ahead):
                pass  # not timed: until the workers are there
            began = time.perf_counter()
            means[name] = [batch.mean() for batch in batches(executor, args.images, ahead)]
            seconds[name] = time.perf_counter() - began
    if means["stook"] != means["concurrent.futures"]:
        sys.exit("spdl_stage: the executors made other batches")

    print(
        f"{args.images} images in {len(means['stook'])} batches, {args.workers} workers, "
        f"mean brightness {np.mean(means['stook']):.1f}"
    )
    print(f"{'ProcessPoolExecutor of':24}{'seconds':>10}{'images/s':>12}")
    for name, took in seconds.items():
        print(f"{name:24}{took:10.2f}{args.images / took:12,.0f}")


main()
