"""Private memory of each worker, beside its arena, in the middle of a pass.

    python benchmarks/python/memory.py --workers 8

Private: what the machine would get back if this worker alone ended - Private_Clean and
Private_Dirty of /proc/<pid>/smaps, summed over all mappings except memfds (the arena, and with it
every element that the parent holds). Pages that the worker still shares with the process it was
forked from do not count; what user code itself keeps does: here one array of 150,528 bytes at a
time, which lies in the arena.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from processes import private_bytes
from report import Run, conditions_table, last_json, table, write

WAYS = ("stook fork", "stook forkserver", "pool fork")
MIB = 1024 * 1024


def make(index: int) -> dict[str, Any]:
    return {"image": np.full((224, 224, 3), index % 251, np.uint8), "worker": os.getpid()}


def sample(elements: Any, workers: int, at_least: int) -> list[dict[str, int]]:
    """Takes elements until every worker has made some, then looks at each worker."""
    seen: dict[int, int] = {}
    deadline = time.monotonic() + 60
    for taken, element in enumerate(elements, start=1):
        seen[element["worker"]] = seen.get(element["worker"], 0) + 1
        if taken >= at_least and len(seen) == workers and min(seen.values()) > 10:
            return [{"elements": seen[pid], **private_bytes(pid)} for pid in seen]
        if time.monotonic() > deadline:
            raise SystemExit(f"after 60 s only {len(seen)} of {workers} workers made elements")
    raise SystemExit(f"the pass ended before {workers} workers had made elements")


def measure(way: str, workers: int, at_least: int) -> list[dict[str, int]]:
    kind, method = way.split()
    if kind == "pool":
        with multiprocessing.get_context(method).Pool(workers) as pool:
            return sample(pool.imap(make, range(10**6)), workers, at_least)
    import stook

    options = stook.MultiprocessingOptions(
        num_workers=workers, per_worker_buffer_size=8, start_method=method
    )
    with stook.DataLoader(range(10**7), make, options=options) as loader:
        return sample(iter(loader), workers, at_least)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--elements", type=int, default=5000, help="taken before the look")
    parser.add_argument("--out", type=Path, help="write OUT.md and OUT.json")
    parser.add_argument("--child", choices=WAYS, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.child:
        print(json.dumps({"workers": measure(args.child, args.workers, args.elements)}))
        return

    run = Run({"workers": args.workers, "elements": args.elements})
    found: dict[str, list[dict[str, int]]] = {}
    failed: dict[str, str] = {}
    for way in WAYS:
        command = [sys.executable, __file__, "--child", way]
        command += ["--workers", str(args.workers), "--elements", str(args.elements)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
        if done.returncode == 0:
            found[way] = last_json(done.stdout)["workers"]
        else:
            failed[way] = (done.stderr.strip().splitlines() or ["no message"])[-1]
    rows = []
    for way, workers in found.items():
        private = [worker["private"] / MIB for worker in workers]
        arena = [worker["arena"] / MIB for worker in workers]
        rows.append(
            [
                way,
                f"{statistics.median(private):.1f}",
                f"{max(private):.1f}",
                f"{statistics.median(arena):.1f}",
            ]
        )
    conditions = run.conditions()
    head = [f"MiB in each of {args.workers} workers", "private, median", "private, most", "arena"]
    parts = [
        "# Memory of a worker",
        conditions_table(conditions),
        table(head, rows),
        "\n".join(
            [f"Failed: {len(failed)}", "", *(f"- {way}: {why}" for way, why in failed.items())]
        ),
    ]
    data = {"conditions": conditions, "workers": found, "failed": failed}
    write(args.out, "\n\n".join(parts), data)
    if failed:
        sys.exit(f"memory: {len(failed)} failed: {failed}")


if __name__ == "__main__":
    main()
