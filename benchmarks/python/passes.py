"""What a pass costs beside its elements: the next epoch's first element, and shuffled indices.

    python benchmarks/python/passes.py --rounds 9

Each measurement is a fresh process; ways take turns. The loaders have run one epoch when the clock
starts, and their workers, where they keep them, are idle. Indices are those of a shuffled source of
10^9, drawn one by one without worker processes.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from report import Run, conditions_table, last_json, spread, table, write

ELEMENTS = 100
MANY = 10**9
INDICES = 200_000
FIRSTS = {
    "stook": "stook.DataLoader",
    "stook-torch": "stook.torch.DataLoader, persistent_workers=True",
    "torch-persistent": "torch's DataLoader, persistent_workers=True",
    "torch": "torch's DataLoader",
    "grain": "Grain's mp_prefetch",
}
NEEDS = {"stook-torch": "torch", "torch-persistent": "torch", "torch": "torch", "grain": "grain"}


def make(index: int) -> np.ndarray:
    return np.full((224, 224, 3), index % 256, np.uint8)


class Made:
    def __len__(self) -> int:
        return ELEMENTS

    def __getitem__(self, index: int) -> np.ndarray:
        if not 0 <= index < ELEMENTS:
            raise IndexError(index)
        return make(index)


def loader_of(way: str, workers: int) -> Any:
    """Something to iterate again and again."""
    if way == "stook":
        import stook

        options = stook.MultiprocessingOptions(num_workers=workers)
        return stook.DataLoader(range(ELEMENTS), make, seed=None, options=options)
    if way == "grain":
        import grain
        from absl import flags

        flags.FLAGS.mark_as_parsed()
        data = grain.MapDataset.range(ELEMENTS).map(make)
        data = data.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
        return data.mp_prefetch(grain.MultiprocessingOptions(workers, 2))
    if way == "stook-torch":
        from stook.torch import DataLoader
    else:
        from torch.utils.data import DataLoader
    return DataLoader(
        Made(), batch_size=None, num_workers=workers, persistent_workers=way != "torch"
    )


def first_of_next_epoch(way: str, workers: int) -> dict[str, float]:
    loader = loader_of(way, workers)
    for _ in loader:
        pass
    start = time.perf_counter()
    next(iter(loader))
    return {"value": (time.perf_counter() - start) * 1e3}


def resident_bytes() -> int:
    kilobytes = Path("/proc/self/smaps_rollup").read_text().split("Rss:")[1].split()[0]
    return int(kilobytes) * 1024


def shuffled_indices() -> dict[str, float]:
    """Nanoseconds for each index, and bytes by which the process has grown."""
    import stook

    for _ in itertools.islice(stook.DataLoader(range(1000), shuffle=True, seed=None), 1000):
        pass  # what only the first pass of a program imports
    before = resident_bytes()
    loader = stook.DataLoader(range(MANY), shuffle=True, seed=None)
    elements = iter(loader)
    next(elements)
    start = time.perf_counter()
    for _ in itertools.islice(elements, INDICES):
        pass
    seconds = time.perf_counter() - start
    grown = resident_bytes() - before
    plan = stook._core.IndexPlan(MANY, 0, False, 7, 0, 1)
    next(plan)
    start = time.perf_counter()
    for _ in itertools.islice(plan, INDICES):
        pass
    alone = time.perf_counter() - start
    return {"value": alone / INDICES * 1e9, "with": seconds / INDICES * 1e9, "grown": grown}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, help="write OUT.md and OUT.json")
    parser.add_argument("--child", choices=[*FIRSTS, "indices"], help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.child:
        result = (
            shuffled_indices()
            if args.child == "indices"
            else first_of_next_epoch(args.child, args.workers)
        )
        print(json.dumps(result), flush=True)
        return

    run = Run({"rounds": args.rounds, "workers": args.workers})
    skipped = [way for way, module in NEEDS.items() if find_spec(module) is None]
    ways = [way for way in [*FIRSTS, "indices"] if way not in skipped]
    results: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    failed: dict[str, str] = {}
    for round_ in range(args.rounds):
        turn = round_ % len(ways)
        for way in ways[turn:] + ways[:turn]:
            command = [sys.executable, __file__, "--child", way, "--workers", str(args.workers)]
            try:
                done = subprocess.run(
                    command, capture_output=True, text=True, timeout=100, check=True
                )
                results[way].append(last_json(done.stdout))
            except subprocess.CalledProcessError as error:
                failed[way] = (error.stderr.strip().splitlines() or ["no message"])[-1]
            except subprocess.TimeoutExpired:
                failed[way] = "not done within 100 s"
    conditions = run.conditions()
    firsts = [
        [FIRSTS[way], spread([result["value"] for result in results[way]])]
        for way in FIRSTS
        if results.get(way)
    ]
    indices = results.get("indices", [])
    parts = [
        "# What a pass costs beside its elements",
        conditions_table(conditions),
        table([f"the next epoch's first element, {args.workers} workers", "ms"], firsts),
        table(
            [f"shuffled indices of {MANY:,}", "median (range)"],
            [
                ["ns an index, the plan alone", spread([r["value"] for r in indices])],
                ["ns an index, through next(loader)", spread([r["with"] for r in indices])],
                ["bytes by which the process grew", spread([r["grown"] for r in indices])],
            ]
            if indices
            else [],
        ),
        "\n".join([f"Skipped: {len(skipped)}", "", *(f"- {w}: not installed" for w in skipped)]),
        "\n".join([f"Failed: {len(failed)}", "", *(f"- {w}: {y}" for w, y in failed.items())]),
    ]
    data = {
        "conditions": conditions,
        "results": results,
        "skipped": skipped,
        "failed": failed,
    }
    write(args.out, "\n\n".join(parts), data)
    if failed:
        sys.exit(f"passes: {len(failed)} failed: {json.dumps(failed)}")


if __name__ == "__main__":
    main()
