"""A Grain pipeline in worker processes: by Grain's own mp_prefetch, and by Stook's.

    pip install grain
    python examples/grain_pipeline.py

The pipeline shuffles, draws at random and makes batches. The elements are the same both ways, and a
checkpoint that was taken from the one is restored by the other.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from typing import Any

import numpy as np

import stook.grain

try:
    import grain
except ImportError:
    sys.exit("grain_pipeline: Grain is not installed: pip install grain")

BATCH = 32
SIDE = 224  # of an image, in pixels


def make_image(number: int, rng: np.random.Generator) -> np.ndarray:
    """(224, 224, 3) uint8: a gradient that turns with its number, brighter by chance."""
    rows, columns = np.ogrid[:SIDE, :SIDE]
    plane = (rows * (number % 7) + columns * (number % 5) + rng.integers(64)).astype(np.uint8)
    return np.repeat(plane[..., None], 3, axis=2)


def pipeline(batches: int) -> Any:
    images = grain.MapDataset.range(BATCH * batches).seed(1).shuffle().random_map(make_image)
    # No threads: what is made in its turn lies in shared memory from the start.
    here = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    return images.to_iter_dataset(here).batch(BATCH)  # (32, 224, 224, 3) uint8, 4.8 MB


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--batches", type=int, default=60)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    if args.batches < 4 or args.workers < 1:
        parser.error("--batches must be at least 4, --workers at least 1")

    options = grain.MultiprocessingOptions(args.workers, per_worker_buffer_size=2)
    ways = {
        "Grain": pipeline(args.batches).mp_prefetch(options),
        "stook.grain": stook.grain.mp_prefetch(pipeline(args.batches), options),
    }
    seconds = {}
    means: dict[str, list[float]] = {}
    states: dict[str, str] = {}
    for name, dataset in ways.items():
        elements = iter(dataset)
        means[name] = [float(next(elements).mean())]  # not timed: until everything has started
        began = time.perf_counter()
        for number, batch in enumerate(elements, 1):
            means[name].append(float(batch.mean()))
            if number == args.batches // 2:
                states[name] = json.dumps(elements.get_state())
        seconds[name] = time.perf_counter() - began
        elements.close()
    if means["Grain"] != means["stook.grain"]:
        sys.exit("grain_pipeline: the batches are not the same")

    elements = iter(ways["stook.grain"])
    elements.set_state(json.loads(states["Grain"]))
    rest = [float(batch.mean()) for batch in elements]
    elements.close()
    if rest != means["Grain"][args.batches // 2 + 1 :]:
        sys.exit("grain_pipeline: the checkpoint was not restored exactly")

    # Each worker makes batches of its own slice, whose last one may be smaller.
    count = len(means["Grain"])
    print(f"{count} batches, {args.workers} workers,", end=" ")
    print(f"mean brightness {np.mean(means['Grain']):.1f}; restored: the last {len(rest)} batches")
    print(f"{'mp_prefetch by':24}{'seconds':>10}{'batches/s':>12}")
    for name, took in seconds.items():
        print(f"{name:24}{took:10.2f}{(count - 1) / took:12,.0f}")


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # as other programs in front of `head`
    # Grain's workers look at absl's flags, which absl.app.run(main) would parse.
    from absl import flags

    flags.FLAGS.mark_as_parsed()
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)  # as other programs after Ctrl-C
