"""Time to load an .npy file: stook.io.load_npy beside numpy.load, in one thread and in two.

    python benchmarks/python/npy.py [--seconds 0.5] [--rounds 5] [--out PATH]

Two threads load the same number of files each; the figure is the time of one file, so that 0.5 of
one thread's is perfect. The files lie in memory (/dev/shm), for what is asked is what the GIL and
copying cost, not what a disk does. Ways take turns; medians of the rounds.
"""

from __future__ import annotations

import argparse
import io
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

import stook.io
from report import Run, conditions_table, spread, table, write

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


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=0.5, help="of one measurement, at least")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="also write the report here")
    args = parser.parse_args(argv)
    run = Run({"seconds": args.seconds, "rounds": args.rounds})
    tables: list[str] = []
    data: dict[str, dict[str, list[float]]] = {}
    for name, size in SIZES.items():
        with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
            path = Path(folder) / "array.npy"
            np.save(path, np.random.default_rng(0).integers(0, 256, size, np.uint8))
            CONTENT[path] = path.read_bytes()
            times = measure_size(path, args.seconds, args.rounds)
            CONTENT.clear()
        rows = []
        for way in WAYS:
            one, two = times[f"{way}, 1"], times[f"{way}, 2"]
            ratios = [b / a for a, b in zip(one, two, strict=True)]
            most = "0.80" if (name, way) == ("1 MB", "stook.io.load_npy") else ""
            rows.append([f"`{way}`", spread(one, 3), spread(two, 3), spread(ratios, 2), most])
        head = [f"{name}, ms of each file", "one thread", "two threads", "two to one", "at most"]
        tables.append(table(head, rows))
        data[name] = times
    conditions = run.conditions()
    head = ["# Loading `.npy` files in threads", conditions_table(conditions)]
    head.append("Files in memory; medians and ranges of the rounds.")
    write(args.out, "\n\n".join(head + tables), {"conditions": conditions, **data})


def measure_size(path: Path, seconds: float, rounds: int) -> dict[str, list[float]]:
    """Milliseconds of a file by way and number of threads, of each round."""
    for way, function in WAYS.items():
        np.testing.assert_array_equal(function(path), np.load(path), err_msg=way)
    counts = {
        way: max(1, int(seconds / measure(function, path, 1, 3))) for way, function in WAYS.items()
    }
    times: dict[str, list[float]] = {}
    for turn in range(rounds):
        for step in range(len(WAYS)):
            way = list(WAYS)[(turn + step) % len(WAYS)]
            for threads in (1, 2):
                taken = measure(WAYS[way], path, threads, counts[way])
                times.setdefault(f"{way}, {threads}", []).append(taken * 1e3)
    return times


if __name__ == "__main__":
    main()
