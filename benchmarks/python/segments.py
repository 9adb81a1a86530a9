"""Named arrays in shared memory: their whole life, dropping a large one, computing with one.

    python benchmarks/python/segments.py --rounds 7

A life is: create, fill, pickle the handle, unpickle it (attach), read every byte, drop both and
remove the segment; all in one process, so that no pipe is in the figure. Each measurement is a
process of its own; ways take turns. Torch has no second mapping in one process: its life is create,
share_memory_(), fill, read, drop.
"""

from __future__ import annotations

import argparse
import gc
import json
import pickle
import statistics
import subprocess
import sys
import time
import timeit
from collections.abc import Callable
from importlib.util import find_spec
from multiprocessing import resource_tracker
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any

import numpy as np

from report import Run, conditions_table, last_json, spread, table, write

SIZES = {"64 B": 64, "150 KB": 150_528, "6 MiB": 6 << 20, "100 MB": 100_000_000}
WAYS = ("stook", "grain", "stdlib", "torch", "pages")
TITLES = {
    "stook": "Stook",
    "grain": "Grain",
    "stdlib": "multiprocessing.shared_memory",
    "torch": "torch share_memory_ (no attach)",
    "pages": "the floor: fresh pages, mapped twice",
}
NEEDS = {"stook": "stook", "grain": "grain", "torch": "torch"}
OPERATIONS = {"a + b": 350, "a.sum()": 350, "a[1:]": 20, "np.asarray(a)": 100}


def read(array: np.ndarray) -> int:
    return int(array.view(np.uint64).sum())


def life_of_stook(size: int) -> None:
    from stook import SharedMemoryArray

    array = SharedMemoryArray(size, np.uint8)
    array.fill(1)
    attached = pickle.loads(pickle.dumps(array))
    attached.unlink_on_del()
    read(attached)


def life_of_grain(size: int) -> None:
    from grain.multiprocessing import SharedMemoryArray

    array = SharedMemoryArray((size,), np.uint8)
    array.fill(1)
    attached = SharedMemoryArray.from_metadata(pickle.loads(pickle.dumps(array.metadata)))
    attached.unlink_on_del()
    read(attached)


def life_of_stdlib(size: int) -> None:
    memory = SharedMemory(create=True, size=size)
    array = np.ndarray((size,), np.uint8, memory.buf)
    array.fill(1)
    name = pickle.loads(pickle.dumps(memory.name))
    second = SharedMemory(name)
    attached = np.ndarray((size,), np.uint8, second.buf)
    read(attached)
    del array, attached
    second.close()
    memory.close()
    memory.unlink()


def life_of_torch(size: int) -> None:
    import torch

    tensor = torch.empty(size, dtype=torch.uint8).share_memory_()
    tensor.fill_(1)
    read(tensor.numpy())


def life_of_pages(size: int) -> None:
    """What every one of them has to pay: fresh pages, zeroed, mapped, written, mapped, read."""
    import mmap
    import os

    descriptor = os.memfd_create("floor")
    os.posix_fallocate(descriptor, 0, size)
    first = mmap.mmap(descriptor, size, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE)
    np.frombuffer(first, np.uint8).fill(1)
    second = mmap.mmap(descriptor, size, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE)
    read(np.frombuffer(second, np.uint8))
    first.close()
    second.close()
    os.close(descriptor)


LIVES: dict[str, Callable[[int], None]] = {
    "stook": life_of_stook,
    "grain": life_of_grain,
    "stdlib": life_of_stdlib,
    "torch": life_of_torch,
    "pages": life_of_pages,
}


def measure_life(way: str, size: int, seconds: float) -> dict[str, float]:
    life = LIVES[way]
    for _ in range(3):
        life(size)
    count, start = 0, time.perf_counter()
    while (took := time.perf_counter() - start) < seconds or count < 5:
        life(size)
        count += 1
    return {"us": took / count * 1e6}


DROPS = {
    "without reclaim threads": (0, False),
    "with one, right after it was filled": (1, False),
    "with one, after a small one was dropped": (1, True),
}


def measure_drop(how: str) -> dict[str, float]:
    """Dropping 100 MB that were filled. What was filled has displaced everything in the caches."""
    from stook import SharedMemoryArray, _core

    threads, warm = DROPS[how]
    if threads:
        SharedMemoryArray.enable_async_del(threads)
    times = []
    for _ in range(15):
        array = SharedMemoryArray(100_000_000, np.uint8)
        array.unlink_on_del()
        array.fill(1)
        if warm:
            small = SharedMemoryArray(64, np.uint8)
            small.unlink_on_del()
            del small
            _core.flush_reclaimer(60)
        start = time.perf_counter()
        del array
        times.append((time.perf_counter() - start) * 1e6)
        _core.flush_reclaimer(60)
    return {"us": statistics.median(times)}


def measure_operations() -> dict[str, float]:
    """Nanoseconds more than the same on an ndarray, 24 items of int32."""
    from stook import SharedMemoryArray

    shared = SharedMemoryArray((4, 6), np.int32)
    shared.unlink_on_del()
    plain = np.zeros((4, 6), np.int32)
    other = np.ones((4, 6), np.int32)
    gc.disable()
    more = {}
    for statement in OPERATIONS:
        best = [
            min(
                timeit.repeat(
                    statement, globals={"a": a, "b": other, "np": np}, number=50_000, repeat=7
                )
            )
            for a in (shared, plain)
        ]
        more[statement] = (best[0] - best[1]) / 50_000 * 1e9
    return more


def run_child(what: list[str], seconds: float) -> dict[str, float]:
    command = [sys.executable, __file__, "--seconds", str(seconds), "--child", *what]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=True)
    return last_json(done.stdout)


def child(what: list[str], seconds: float) -> dict[str, float]:
    kind, *rest = what
    if kind == "life":
        if rest[0] in ("stdlib", "grain"):
            resource_tracker.ensure_running()
        return measure_life(rest[0], SIZES[rest[1]], seconds)
    if kind == "drop":
        return measure_drop(rest[0])
    return measure_operations()


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.5, help="of one measurement")
    parser.add_argument("--out", type=Path, help="write OUT.md and OUT.json")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.child:
        print(json.dumps(child(args.child, args.seconds)), flush=True)
        return

    run = Run({"rounds": args.rounds, "seconds": args.seconds})
    skipped = [way for way in WAYS if (m := NEEDS.get(way)) and not find_spec(m)]
    ways = [way for way in WAYS if way not in skipped]
    lives: dict[tuple[str, str], list[float]] = {}
    drops: dict[str, list[float]] = {how: [] for how in DROPS}
    operations: dict[str, list[float]] = {name: [] for name in OPERATIONS}
    for round_ in range(args.rounds):
        print(f"round {round_ + 1} of {args.rounds}", file=sys.stderr)
        turn = round_ % len(ways)
        for size in SIZES:
            for way in ways[turn:] + ways[:turn]:
                found = run_child(["life", way, size], args.seconds)
                lives.setdefault((way, size), []).append(found["us"])
        for how, times in drops.items():
            times.append(run_child(["drop", how], args.seconds)["us"])
        for name, more in run_child(["operations"], args.seconds).items():
            operations[name].append(more)

    conditions = run.conditions()
    rows = []
    for way in ways:
        row = [TITLES[way]]
        for size in SIZES:
            times = lives[way, size]
            ratios = [t / s for t, s in zip(times, lives["stook", size], strict=True)]
            row += [spread(times), f"{statistics.median(ratios):.2f}"]
        rows.append(row)
    head = ["whole life, µs: median (range)"]
    for size in SIZES:
        head += [size, "x Stook"]
    parts = [
        "# Named arrays in shared memory",
        conditions_table(conditions),
        table(head, rows),
        table(
            ["dropping 100 MB", "µs on this thread: median (range)"],
            [[name, spread(values)] for name, values in drops.items()],
        ),
        table(
            ["on a SharedMemoryArray, more than on an ndarray", "ns: median (range)", "at most"],
            [[f"`{n}`", spread(v, 0), str(OPERATIONS[n])] for n, v in operations.items()],
        ),
        "\n".join(
            [f"Skipped: {len(skipped)}", "", *(f"- {way}: not installed" for way in skipped)]
        ),
    ]
    data: dict[str, Any] = {
        "conditions": conditions,
        "life_us": {f"{way}, {size}": times for (way, size), times in lives.items()},
        "drop_us": drops,
        "operations_ns": operations,
        "skipped": skipped,
    }
    write(args.out, "\n\n".join(parts), data)


if __name__ == "__main__":
    main()
