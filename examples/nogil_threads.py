"""Threads or worker processes: the same loop with the GIL held and released.

    python examples/nogil_threads.py [--workers N] [--calls N]

Each function mixes an integer many times over, which takes a few milliseconds. What holds the GIL
gains nothing from threads; what releases it needs no processes. Numba's and Cython's functions are
compiled here, with the GIL and without; where one of the two is not installed, its functions are
left out, and that is said.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import stook

Function = Callable[[int], int]

ROUNDS = 2_000_000
MASK = (1 << 64) - 1

CYTHON = """
# cython: language_level=3
from libc.stdint cimport uint64_t

cdef uint64_t mixed(uint64_t value, long rounds) noexcept nogil:
    cdef long i
    for i in range(rounds):
        value = value * 6364136223846793005ULL + 1442695040888963407ULL
        value ^= value >> 29
    return value

def held(uint64_t seed):
    return mixed(seed, {rounds})

def released(uint64_t seed):
    cdef uint64_t value
    with nogil:
        value = mixed(seed, {rounds})
    return value
"""


def plain_python(seed: int) -> int:
    """The same loop in Python, a fiftieth of it: this is the slow way."""
    value = seed
    for _ in range(ROUNDS // 50):
        value = (value * 6364136223846793005 + 1442695040888963407) & MASK
        value ^= value >> 29
    return value


def standard_library(seed: int) -> int:
    """Hashing: `hashlib` releases the GIL for all but small inputs."""
    digest = hashlib.blake2b(seed.to_bytes(8, "little") * ROUNDS, digest_size=8).digest()
    return int.from_bytes(digest, "little")


def numba_functions() -> dict[str, Function]:
    """The loop compiled by Numba, with the GIL and without; nothing without Numba."""
    try:
        import numba
        import numpy as np
    except ImportError as error:
        print(f"left out: Numba ({error}); pip install numba")
        return {}
    factor, summand, shift = np.uint64(6364136223846793005), np.uint64(1442695040888963407), 29

    def mixed(seed: int) -> int:
        value = np.uint64(seed)
        for _ in range(ROUNDS):
            value = value * factor + summand
            value ^= value >> np.uint64(shift)
        return value

    return {
        "Numba, GIL held": numba.njit("uint64(uint64)")(mixed),
        "Numba, nogil=True": numba.njit("uint64(uint64)", nogil=True)(mixed),
    }


def cython_functions(folder: Path) -> dict[str, Function]:
    """The loop compiled by Cython, with the GIL and without; nothing without it or a compiler."""
    try:
        importlib.import_module("Cython")
    except ImportError as error:
        print(f"left out: Cython ({error}); pip install cython")
        return {}
    (folder / "mixing.pyx").write_text(CYTHON.format(rounds=ROUNDS))
    command = [sys.executable, "-m", "Cython.Build.Cythonize", "--inplace", "--quiet", "mixing.pyx"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    # Worker processes look for modules where this process does.
    sys.path.append(str(folder))
    try:
        mixing = importlib.import_module("mixing")
    except ImportError:
        reason = (done.stderr.strip() or done.stdout.strip() or "no module came out").splitlines()
        print(f"left out: Cython (its module was not built: {reason[-1]})")
        return {}
    return {"Cython, GIL held": mixing.held, "Cython, with nogil": mixing.released}


def timed(function: Function, seeds: list[int], options: object) -> tuple[float, list[int]]:
    """Milliseconds for each call, and the results."""
    with stook.DataLoader(seeds, function, options=options, seed=None) as loader:
        first = list(loader)  # until all workers are up
        start = time.perf_counter()
        results = list(loader)
        took = time.perf_counter() - start
    assert results == first
    return took / len(seeds) * 1e3, results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--calls", type=int, default=100)
    arguments = parser.parse_args()
    workers = arguments.workers
    seeds = list(range(1, arguments.calls + 1))

    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        functions = {
            "Python": plain_python,
            "hashlib": standard_library,
            **numba_functions(),
            **cython_functions(folder),
        }
        ways = {
            "one thread": stook.MultiprocessingOptions(0),
            f"{workers} threads": stook.MultithreadingOptions(workers),
            f"{workers} processes": stook.MultiprocessingOptions(workers),
        }
        print(f"\nmilliseconds a call, {arguments.calls} calls")
        print(f"{'':<20}" + "".join(f"{way:>14}" for way in ways), flush=True)
        loop_results = []
        for name, function in functions.items():
            print(f"{name:<20}", end="", flush=True)
            found = []
            for options in ways.values():
                took, results = timed(function, seeds, options)
                found.append(results)
                print(f"{took:>14.2f}", end="", flush=True)
            print()
            assert found[0] == found[1] == found[2]
            if name.startswith(("Numba", "Cython")):
                loop_results.append(found[0])
        assert all(results == loop_results[0] for results in loop_results)

        print("\nwhat stook.recommend says:")
        for function in list(functions.values())[:2]:
            stook.recommend(function, seeds, num_workers=workers, seconds=0.5)


if __name__ == "__main__":
    main()
