"""Trains a small network, in NumPy alone, to tell which way up a crop of a photograph is.

    python examples/train_photos.py                          # photographs of installed packages
    python examples/train_photos.py --photos my/pictures     # one's own

No labels are needed: each crop is turned by 0, 90, 180 or 270 degrees, and the network says which.
Worker processes decode, crop, resize, flip, turn and assemble batches; this process only trains. At
the end the same job is timed in one process, with threads, with multiprocessing.Pool and with
Stook.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import random
import statistics
import sys
import time
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # the other cores belong to the workers

import numpy as np
from network import Network
from photos import NoPhotographs, find_photographs
from tqdm import tqdm

import stook

SIDE = 96  # of the square that the network sees, in pixels
BATCH = 32
MOST = 2000  # photographs; each is decoded once beforehand to see that it can be used
Batch = dict[str, Any]
Batches = Generator[Batch, None, None]


# ---- what the workers do -------------------------------------------------------------------------


def load(path: str) -> Batch:
    """One random crop, turned: {"image": (96, 96, 3) uint8, "turns": 0, 1, 2 or 3}."""
    photo = stook.io.decode_jpeg(path, apply_orientation=True)
    height, width, _ = photo.shape
    side = random.randint(min(height, width) // 2, min(height, width))
    top, left = random.randint(0, height - side), random.randint(0, width - side)
    crop = resize(photo[top : top + side, left : left + side])
    if random.random() < 0.5:
        crop = crop[:, ::-1]
    turns = random.randrange(4)
    return {"image": np.rot90(crop, turns), "turns": turns}


def resize(square: np.ndarray) -> np.ndarray:
    """(n, n, 3) uint8 to (96, 96, 3) uint8: each pixel is the mean of two by two samples."""
    at = np.arange(2 * SIDE) * len(square) // (2 * SIDE)
    s = square[at][:, at].astype(np.uint16)
    return ((s[::2, ::2] + s[1::2, ::2] + s[::2, 1::2] + s[1::2, 1::2]) // 4).astype(np.uint8)


def problem_of(path: str) -> str:
    """Why the photograph cannot be used; empty if it can."""
    try:
        height, width, _ = stook.io.decode_jpeg(path).shape
    except (stook.StookError, OSError) as error:
        return str(error)
    return f"only {width} x {height} pixels" if min(height, width) < SIDE else ""


def load_batch(paths: list[str]) -> Batch:
    """What a Stook worker does by itself, spelt out for the other ways of the table."""
    elements = [load(path) for path in paths]
    return {name: np.stack([element[name] for element in elements]) for name in elements[0]}


# ---- what the parent does ------------------------------------------------------------------------


def make_loader(paths: list[str], epochs: int | None, workers: int) -> stook.DataLoader:
    return stook.DataLoader(
        paths,
        load,
        batch_size=BATCH,
        drop_remainder=True,
        shuffle=True,
        num_epochs=epochs,
        options=stook.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=4),
    )


def usable(paths: list[str], workers: int) -> list[str]:
    """Decodes every photograph once, in the workers; says which are left out, and why."""
    good = []
    with stook.DataLoader(
        paths, problem_of, options=stook.MultiprocessingOptions(num_workers=workers)
    ) as problems:
        for path, problem in zip(paths, problems, strict=True):
            if problem:
                print(f"left out: {path}: {problem}", file=sys.stderr)
            else:
                good.append(path)
    if not good:
        raise NoPhotographs(f"none of the {len(paths)} photographs found can be used")
    return good


def train(network: Network, paths: list[str], args: argparse.Namespace) -> None:
    print(f"{args.steps} steps of {BATCH} crops; guessing is right in 25%, at a loss of 1.386")
    losses: list[float] = []
    rights: list[float] = []
    # disable=None: no bar where the output is not a terminal; the lines come either way
    bar = tqdm(total=args.steps, unit="batch", disable=None, leave=False)
    with make_loader(paths, None, args.workers) as loader, bar:
        for step, batch in zip(range(1, args.steps + 1), loader, strict=False):
            loss, right = network.train(batch)
            losses.append(loss)
            rights.append(right)
            bar.update()
            if step % 32 == 0 or step == args.steps:
                line = f"step {step:4}  loss {np.mean(losses):.3f}  right {np.mean(rights):4.0%}"
                bar.write(line, file=sys.stdout)
                sys.stdout.flush()
                losses.clear()
                rights.clear()


# ---- the same job, four ways ---------------------------------------------------------------------


def in_one_process(jobs: list[list[str]], workers: int) -> Batches:
    yield from map(load_batch, jobs)


def with_threads(jobs: list[list[str]], workers: int) -> Batches:
    with ThreadPoolExecutor(workers) as pool:
        ahead: deque[Future[Batch]] = deque()
        for job in jobs:
            ahead.append(pool.submit(load_batch, job))
            if (
                len(ahead) == 5 * workers
            ):  # as far ahead as the loader: per worker 4 and one in hand
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def with_pool(jobs: list[list[str]], workers: int) -> Batches:
    # Forked, because this script has no `if __name__ == "__main__"`, which other start methods of
    # multiprocessing need. random.seed: forked workers would otherwise all draw the same crops.
    with multiprocessing.get_context("fork").Pool(workers, random.seed) as pool:
        yield from pool.imap(load_batch, jobs)


def with_stook(jobs: list[list[str]], workers: int) -> Batches:
    with make_loader([path for job in jobs for path in job], 1, workers) as loader:
        yield from loader


WAYS: dict[str, Callable[[list[list[str]], int], Batches]] = {
    "one process": in_one_process,
    "threads": with_threads,
    "multiprocessing.Pool": with_pool,
    "Stook": with_stook,
}


def measure(way: str, network: Network, paths: list[str], workers: int, steps: int) -> list[float]:
    """Trains on ``steps`` batches, after some that start the workers and are not timed.

    Returns:
        Photographs per second, and the share of the time that the trainer waited for a batch.
    """
    start = 2 * workers
    jobs = [random.choices(paths, k=BATCH) for _ in range(start + steps)]
    with contextlib.closing(WAYS[way](jobs, workers)) as batches:
        for _ in range(start):
            network.train(next(batches))
        waited, began = 0.0, time.perf_counter()
        for _ in range(steps):
            asked = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - asked
            network.train(batch)
        took = time.perf_counter() - began
    return [steps * BATCH / took, waited / took]


def compare(network: Network, paths: list[str], args: argparse.Namespace) -> None:
    results: dict[str, list[list[float]]] = {way: [] for way in WAYS}
    for _ in range(args.rounds):  # in turns, so that a disturbance meets all of them
        for way in WAYS:
            results[way].append(measure(way, network, paths, args.workers, args.table_steps))
    print(
        f"\nthe same job, {args.workers} workers, median of {args.rounds} rounds on this machine:"
    )
    print(f"{'':22}{'photographs/s':>14}{'trainer waited':>17}")
    for way, rows in results.items():
        speed, waited = (statistics.median(column) for column in zip(*rows, strict=True))
        print(f"{way:22}{speed:14.0f}{waited:17.0%}")


def at_least(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if int(text) < least:
            raise argparse.ArgumentTypeError(f"{text}: must be at least {least}")
        return int(text)

    return number


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    workers = min(8, max(2, os.cpu_count() or 2))
    parser.add_argument("--photos", help="a folder of JPEG files, subfolders included")
    parser.add_argument("--workers", type=at_least(1), default=workers)
    parser.add_argument("--steps", type=at_least(1), default=512, help="batches to train on")
    parser.add_argument("--rounds", type=at_least(0), default=3, help="of the table; 0: no table")
    parser.add_argument(
        "--table-steps", type=at_least(1), default=24, help="batches per round, way"
    )
    return parser.parse_args()


def main() -> None:
    args = arguments()
    try:
        found = find_photographs(args.photos)
        if len(found) > MOST:
            print(f"{MOST} of the {len(found)} photographs found, drawn at random")
            found = random.sample(found, MOST)
        paths = usable(found, args.workers)
    except NoPhotographs as error:
        sys.exit(f"train_photos: {error}")
    print(f"{len(paths)} photographs, {args.workers} worker processes")
    network = Network()
    # A few photographs are used over and over: each time another crop of them is drawn.
    train(network, paths * -(-1024 // len(paths)), args)
    if args.rounds:
        compare(network, paths, args)


main()
