"""Random draws that depend on the element alone.

Elements go to whichever worker is free, so a seed per worker would make augmentation depend on
timing. Instead `random` and NumPy's global generator are seeded anew for each element from (seed,
epoch, position): the same draws for any number of workers, and again after a restart.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["isolated", "mix", "seeder"]

_MASK = (1 << 64) - 1


def mix(value: int) -> int:
    """The splitmix64 step: a bijection of 64-bit integers that scatters neighbours.

    Sebastiano Vigna, https://prng.di.unimi.it/splitmix64.c (public domain). The same function keys
    the permutations in `workers/index_plan.cpp`.
    """
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def seeder(seed: int) -> Callable[[int, int], None]:
    """Returns `reseed(epoch, position)`, which seeds both generators for one element.

    `random` gets a 64-bit seed. NumPy's gets 32 bits, because its `seed` takes five times as long
    for anything longer; two elements in four billion share one.
    """
    from numpy import random as np_random

    set_bit_generator: Any = np_random.set_bit_generator  # type: ignore[attr-defined]
    seed_key = mix(seed & _MASK)
    epoch_key = mix(seed_key)
    epoch_of_key = 0
    seed_python = random.seed
    seed_numpy = np_random.seed

    def reseed(epoch: int, position: int) -> None:
        nonlocal epoch_key, epoch_of_key
        if epoch != epoch_of_key:
            epoch_key = mix(seed_key ^ epoch)
            epoch_of_key = epoch
        key = mix(epoch_key ^ position)
        seed_python(key)
        # Bits that `random` also saw, but after another mix: equal streams would be correlated.
        low = (key * 0xD6E8FEB86659FD93) & _MASK
        try:
            seed_numpy(low >> 32)
        except TypeError:
            # The program exchanged the global generator for one without `seed`.
            set_bit_generator(np_random.MT19937(0))
            seed_numpy(low >> 32)

    return reseed


@contextmanager
def _restoring(np_random: Any) -> Iterator[None]:
    bits = np_random.get_bit_generator()
    numpy_state = np_random.get_state(legacy=False)
    python_state = random.getstate()
    try:
        yield
    finally:
        random.setstate(python_state)
        if np_random.get_bit_generator() is not bits:
            np_random.set_bit_generator(bits)
        np_random.set_state(numpy_state)


def isolated(run: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps `run` so that both global generators are afterwards as they were before.

    With `num_workers=0` user code draws in the consumer's process. The consumer's own draws must
    not depend on the loader (they do not when it runs in workers), so its generators are put back
    after each element. That takes some 0.1 ms, most of it NumPy's `get_state` and `set_state`;
    `seed=None` has neither the seeds nor this cost.
    """
    from numpy import random as np_random

    def run_isolated(*args: Any) -> Any:
        with _restoring(np_random):
            return run(*args)

    return run_isolated
