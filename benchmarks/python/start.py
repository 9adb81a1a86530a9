"""How long the first element takes, from the making of the loader on.

    python benchmarks/python/start.py --rounds 9

NumPy, OpenCV and Stook are imported before the clock starts; the function needs NumPy and OpenCV,
so that workers which do not inherit them import them. Each start is a fresh process; ways take
turns.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from report import Run, conditions_table, last_json, spread, table, write

WAYS = (
    "stook fork",
    "stook forkserver",
    "pool fork",
    "pool forkserver",
    "pool spawn",
    "torch fork",
)
NEEDS = {"stook": "stook", "torch": "torch"}


def make(index: int) -> np.ndarray:
    image = np.full((256, 256, 3), index % 256, np.uint8)
    return cv2.resize(image, (224, 224))


def first_element(way: str, workers: int) -> float:
    """Milliseconds until the first element is there."""
    kind, method = way.split()
    if kind == "stook":
        import stook

        start = time.perf_counter()
        options = stook.MultiprocessingOptions(num_workers=workers, start_method=method)
        with stook.DataLoader(range(1000), make, options=options) as loader:
            next(iter(loader))
            return (time.perf_counter() - start) * 1e3
    if kind == "torch":
        from torch.utils.data import DataLoader

        class Made:
            def __len__(self) -> int:
                return 1000

            def __getitem__(self, index: int) -> np.ndarray:
                return make(index)

        start = time.perf_counter()
        loader = DataLoader(
            Made(),  # type: ignore[arg-type]
            batch_size=None,
            num_workers=workers,
            multiprocessing_context=method,
        )
        elements = iter(loader)
        next(elements)
        return (time.perf_counter() - start) * 1e3
    start = time.perf_counter()
    with multiprocessing.get_context(method).Pool(workers) as pool:
        next(pool.imap(make, range(1000)))
        return (time.perf_counter() - start) * 1e3


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, help="write OUT.md and OUT.json")
    parser.add_argument("--child", choices=WAYS, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.child:
        print(json.dumps({"ms": first_element(args.child, args.workers)}), flush=True)
        return

    run = Run({"rounds": args.rounds, "workers": args.workers})
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    failed: dict[str, str] = {}
    skipped = [way for way in WAYS if (m := NEEDS.get(way.split()[0])) and not find_spec(m)]
    ways = [way for way in WAYS if way not in skipped]
    for round_ in range(args.rounds):
        turn = round_ % len(ways)
        for way in ways[turn:] + ways[:turn]:
            command = [sys.executable, __file__, "--child", way, "--workers", str(args.workers)]
            try:
                done = subprocess.run(
                    command, capture_output=True, text=True, timeout=100, check=True
                )
                times[way].append(last_json(done.stdout)["ms"])
            except subprocess.CalledProcessError as error:
                failed[way] = (error.stderr.strip().splitlines() or ["no message"])[-1]
            except subprocess.TimeoutExpired:
                failed[way] = "not done within 100 s"
    conditions = run.conditions()
    rows = [[way, spread(values)] for way, values in times.items() if values]
    parts = [
        "# The first element",
        conditions_table(conditions),
        table([f"{args.workers} workers", "ms: median (range)"], rows),
        "\n".join(
            [f"Skipped: {len(skipped)}", "", *(f"- {way}: not installed" for way in skipped)]
        ),
        "\n".join(
            [f"Failed: {len(failed)}", "", *(f"- {way}: {why}" for way, why in failed.items())]
        ),
    ]
    data: dict[str, Any] = {
        "conditions": conditions,
        "ms": times,
        "skipped": skipped,
        "failed": failed,
    }
    write(args.out, "\n\n".join(parts), data)
    if failed:
        sys.exit(f"start: {len(failed)} failed: {json.dumps(failed)}")


if __name__ == "__main__":
    main()
