"""Time to load an .npy file: stook.io.load_npy beside numpy.load, in one thread and in two.

    python benchmarks/python/npy.py [--seconds 0.5] [--rounds 5]

Two threads load the same number of files each; the figure is the time of one file, so that 0.5 of
one thread's is perfect. The files lie in memory (/dev/shm), for what is asked is what the GIL and
copying cost, not what a disk does. Ways take turns; medians of the rounds.
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

import stook.io

SIZES = {"1 MB": 10**6, "100 MB": 10**8}

Load = Callable[[Path], object]

WAYS: dict[str, Load] = {
    "stook.io.load_npy": stook.io.load_npy,
    "numpy.load": np.load,
    "stook.io.load_npy, bytes": lambda path: stook.io.load_npy(CONTENT[path]),
    "numpy.load, bytes": lambda path: np.load(io.BytesIO(CONTENT[path])),
}
CONTENT: dict[Path, bytes] = {}


def measure(load: Load, path: Path, threads: int, count: int) -> float:
    """Seconds for one file, when each of the threads loads `count`."""
    ready = threading.Barrier(threads + 1)

    def run() -> None:
        ready.wait()
        for _ in range(count):
            load(path)

    running = [threading.Thread(target=run) for _ in range(threads)]
    for thread in running:
        thread.start()
    ready.wait()
    begin = time.perf_counter()
    for thread in running:
        thread.join()
    return (time.perf_counter() - begin) / (count * threads)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=0.5, help="of one measurement, at least")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    load = os.getloadavg()[0]
    if load > 0.3:
        print(f"Warning: the load average is {load:.1f}; something else runs.")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        for name, size in SIZES.items():
            path = Path(folder) / "array.npy"
            np.save(path, np.random.default_rng(0).integers(0, 256, size, np.uint8))
            CONTENT[path] = path.read_bytes()
            for way, function in WAYS.items():
                np.testing.assert_array_equal(function(path), np.load(path), err_msg=way)
            counts = {
                way: max(1, int(options.seconds / measure(function, path, 1, 3)))
                for way, function in WAYS.items()
            }
            times: dict[tuple[str, int], list[float]] = {}
            for turn in range(options.rounds):
                for step in range(len(WAYS)):
                    way = list(WAYS)[(turn + step) % len(WAYS)]
                    for threads in (1, 2):
                        taken = measure(WAYS[way], path, threads, counts[way])
                        times.setdefault((way, threads), []).append(taken)
            print(f"\n| {name} | one thread, ms | two threads, ms | ratio |\n|---|---|---|---|")
            for way in WAYS:
                one, two = (statistics.median(times[way, threads]) * 1e3 for threads in (1, 2))
                print(f"| `{way}` | {one:.3f} | {two:.3f} | {two / one:.2f} |")


if __name__ == "__main__":
    main()
