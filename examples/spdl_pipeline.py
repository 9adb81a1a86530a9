"""An SPDL pipeline in a process of its own: SPDL's function, with Stook's arena, and Stook's.

    pip install spdl
    python examples/spdl_pipeline.py

The pipeline makes images in threads and stacks them into batches. Nothing but the function that
runs it in a subprocess differs between the three runs.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Iterable
from typing import Any

import numpy as np

import stook.spdl

try:
    import spdl.pipeline
    from spdl.pipeline import run_pipeline_in_subprocess
except ImportError:
    sys.exit("spdl_pipeline: SPDL is not installed: pip install spdl")

PipelineBuilder: Any = spdl.pipeline.PipelineBuilder

BATCH = 32
SIDE = 224  # of an image, in pixels


def make_image(number: int) -> np.ndarray:
    """(224, 224, 3) uint8: a gradient that turns with its number."""
    rows, columns = np.ogrid[:SIDE, :SIDE]
    plane = (rows * (number % 7) + columns * (number % 5) + number).astype(np.uint8)
    return np.repeat(plane[..., None], 3, axis=2)


def pipeline(batches: int) -> Any:
    return (
        PipelineBuilder()
        .add_source(range(BATCH * batches))
        .pipe(make_image, concurrency=4, output_order="input")
        .aggregate(BATCH)
        .pipe(np.stack, output_order="input")  # (32, 224, 224, 3) uint8, 4.8 MB
        .add_sink(2)
        .get_config()
    )


def sources(batches: int) -> dict[str, Iterable[np.ndarray]]:
    config = pipeline(batches)
    # Forked, because this script has no `if __name__ == "__main__"`, which others would need.
    return {
        "SPDL": run_pipeline_in_subprocess(config, num_threads=2, mp_context="fork"),
        "SPDL, stook.spdl.arena()": run_pipeline_in_subprocess(
            config, num_threads=2, mp_context="fork", arena=stook.spdl.arena()
        ),
        "stook.spdl": stook.spdl.run_pipeline_in_subprocess(config, num_threads=2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--batches", type=int, default=60)
    args = parser.parse_args()
    if args.batches < 1:
        parser.error("--batches must be at least 1")

    means: dict[str, list[float]] = {}
    seconds = {}
    for name, source in sources(args.batches).items():
        for epoch in range(2):  # the first one is not timed: until everything has started
            began = time.perf_counter()
            means[name] = [float(batch.mean()) for batch in source]
            seconds[name] = time.perf_counter() - began
            print(f"{name}, epoch {epoch}: {len(means[name])} batches")
    if len({tuple(each) for each in means.values()}) != 1:
        sys.exit("spdl_pipeline: the batches are not the same")

    print(f"mean brightness {np.mean(means['stook.spdl']):.1f}")
    print(f"{'in a subprocess by':28}{'seconds':>10}{'batches/s':>12}")
    for name, took in seconds.items():
        print(f"{name:28}{took:10.2f}{args.batches / took:12,.0f}")


signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # as other programs in front of `head`
try:
    main()
except KeyboardInterrupt:
    sys.exit(130)  # as other programs after Ctrl-C
