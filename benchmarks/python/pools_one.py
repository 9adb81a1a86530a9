"""One measurement of pools.py, in a process of its own; prints one line of JSON.

    python benchmarks/python/pools_one.py submit-tiny loky --workers 2 --seconds 1

Not timed: the start of the workers, so many results as the row names, and a fifth of the time.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

from peers import NotComparable
from pools_rows import ROWS, TITLES, Row


def measure(row: Row, way: str, workers: int, seconds: float) -> dict[str, Any]:
    with row.ways[way](row, workers) as job:
        start = time.perf_counter()
        job(row.warm)
        while time.perf_counter() - start < seconds / 5:
            job(row.count)
        count, cpu, start = 0, time.process_time(), time.perf_counter()
        while (took := time.perf_counter() - start) < seconds or not count:
            job(row.count)
            count += row.count
        cpu = time.process_time() - cpu
    return {
        "us_per_result": took / count * 1e6,
        "parent_cpu_us_per_result": cpu / count * 1e6,
        "results": count,
        "seconds": took,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("row", choices=ROWS)
    parser.add_argument("way", choices=TITLES)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=1.0)
    args = parser.parse_args()
    row = ROWS[args.row]
    try:
        if args.way not in row.ways:
            raise NotComparable(f"{TITLES[args.way]} has no part in the row {args.row}")
        result = measure(row, args.way, args.workers, args.seconds)
    except NotComparable as reason:
        result = {"not_comparable": str(reason)}
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
