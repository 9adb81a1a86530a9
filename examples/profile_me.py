"""Finds what makes a loader slow: the profile says so, one change follows, and says so again.

    python examples/profile_me.py                # or: profile_me.py trace.json, for ui.perfetto.dev

The first loader keeps each image in a cache, which costs a copy of it; and it normalises in a
loop. The second one does neither.
"""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np

import stook

SIDE = 96
CACHE: dict[int, np.ndarray] = {}


def load(index: int) -> np.ndarray:
    """An image, made up."""
    return np.random.default_rng(index).random((SIDE, SIDE, 3), np.float32)


def cached(image: np.ndarray) -> np.ndarray:
    """Keeps it, so that the worker and the trainer would have the same memory."""
    CACHE[0] = image
    return image


def normalise_slowly(image: np.ndarray) -> dict[str, np.ndarray]:
    for row in image:
        for pixel in row:
            pixel -= 0.5
    return {"image": image}


def normalise(image: np.ndarray) -> dict[str, np.ndarray]:
    image -= 0.5
    return {"image": image}


def profile_of(transform: Any, workers: int, trace: str | None = None) -> stook.LoaderProfile:
    """One pass; its table goes to standard error."""
    options = stook.MultiprocessingOptions(workers, enable_profiling=True)
    with stook.DataLoader(range(64), transform, options=options) as loader:
        for batch in loader:
            batch["image"].mean()
        return loader.profile(trace)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("trace", nargs="?", help="where to write a trace of the slow pass")
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    if args.workers < 0:
        parser.error("--workers must be at least 0")
    if args.trace is not None and not Path(args.trace).absolute().parent.is_dir():
        parser.error(f"{args.trace}: there is no such folder to write to")
    slow = profile_of([load, cached, normalise_slowly], args.workers, args.trace)
    longest = max(slow.stages, key=lambda stage: stage.seconds)
    print(f"slow: {longest.name} takes longest; {slow.copied} arrays are copied:")
    for copy in slow.copies:
        print(f"  {copy.leaves} x {copy.path}: {copy.reason}")
    fast = profile_of([load, normalise], args.workers)
    print(f"then: {fast.copied} arrays are copied, {fast.moved} are moved")


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # as other programs in front of `head`
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)  # as other programs after Ctrl-C
