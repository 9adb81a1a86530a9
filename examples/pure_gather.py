"""Draws the Mandelbrot set in plain Python, on all cores: threads and asyncio.gather.

    python examples/pure_gather.py
    python examples/pure_gather.py --rows 600 --limit 2000     # a larger picture

The functions hold the GIL all the time, so threads alone gain nothing. With @stook.pure each call
runs in a worker process while its caller, a thread or a coroutine, waits without the GIL: the same
threads and the same gather now run in parallel.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np

import stook

SHADES = " .:-=+*%@#"
Draw = Callable[[int, int], np.ndarray]


def plain_row(row: int, rows: int, limit: int) -> np.ndarray:
    """How soon each of the row's points escapes: (2 * rows,) uint16, ``limit`` if it never does."""
    times = np.empty(2 * rows, np.uint16)
    imaginary = 2.4 * (row + 0.5) / rows - 1.2
    for column in range(2 * rows):
        point = complex(3.2 * (column + 0.5) / (2 * rows) - 2.2, imaginary)
        z, time_ = 0j, 0
        while time_ < limit and abs(z) < 2:
            z = z * z + point
            time_ += 1
        times[column] = time_
    return times


@stook.pure
def pure_row(row: int, rows: int, limit: int) -> np.ndarray:
    return plain_row(row, rows, limit)


@stook.pure
async def pure_row_async(row: int, rows: int, limit: int) -> np.ndarray:
    return plain_row(row, rows, limit)


# ---- the same picture, four ways -----------------------------------------------------------------


def in_a_loop(rows: int, limit: int) -> np.ndarray:
    return np.stack([plain_row(row, rows, limit) for row in range(rows)])


def in_threads(
    draw_row: Callable[[int, int, int], np.ndarray], rows: int, limit: int
) -> np.ndarray:
    with ThreadPoolExecutor(2 * (os.cpu_count() or 1)) as threads:
        drawn = threads.map(partial(draw_row, rows=rows, limit=limit), range(rows))
        return np.stack(list(drawn))


def gathered(rows: int, limit: int) -> np.ndarray:
    async def picture() -> list[np.ndarray]:
        return await asyncio.gather(*(pure_row_async(row, rows, limit) for row in range(rows)))

    return np.stack(asyncio.run(picture()))


WAYS: dict[str, Draw] = {
    "a loop": in_a_loop,
    "threads": partial(in_threads, plain_row),
    "threads, pure": partial(in_threads, pure_row),
    "gather, pure": gathered,
}


def show(picture: np.ndarray, limit: int) -> None:
    """Prints some 20 lines of it; what escapes soon is light."""
    step = max(1, len(picture) // 20)
    shades = np.log1p(picture[::step, ::step], dtype=float) / np.log1p(limit) * (len(SHADES) - 1)
    for line in shades.astype(int):
        print("".join(SHADES[shade] for shade in line).rstrip())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=200, help="of the picture; twice as many wide")
    parser.add_argument("--limit", type=int, default=500, help="steps until a point counts as dark")
    args = parser.parse_args()
    if args.rows < 1 or not 1 <= args.limit < 1 << 16:
        parser.error("--rows must be at least 1, --limit from 1 to 65535")

    for draw in WAYS.values():
        draw(2, 1)  # not timed: until the workers are there
    pictures, seconds = {}, {}
    for way, draw in WAYS.items():
        began = time.perf_counter()
        pictures[way] = draw(args.rows, args.limit)
        seconds[way] = time.perf_counter() - began
    for way, picture in pictures.items():
        if not np.array_equal(picture, pictures["a loop"]):
            sys.exit(f"pure_gather: {way} drew another picture")

    show(pictures["a loop"], args.limit)
    print(f"\n{args.rows} rows, {os.cpu_count()} cores")
    print(f"{'':22}{'seconds':>10}{'x a loop':>12}")
    for way, took in seconds.items():
        print(f"{way:22}{took:10.2f}{took / seconds['a loop']:12.2f}")


main()
