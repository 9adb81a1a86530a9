"""The random generators of a worker, as torch seeds them: from base seed and worker number."""

from __future__ import annotations

import random

from ._partner import import_torch

__all__ = ["numpy_seed", "seed_worker"]


def numpy_seed(base_seed: int, worker: int) -> list[int]:
    """Four words of 32 bits for NumPy's global generator.

    torch mixes them as NumPy's SeedSequence does, so that `random` and NumPy, which are the same
    algorithm, do not give the same numbers.
    """
    import numpy as np

    words = [worker, base_seed & 0xFFFFFFFF, base_seed >> 32, 0]
    return [int(word) for word in np.random.SeedSequence(words).generate_state(4)]


def seed_worker(base_seed: int, worker: int) -> int:
    """Seeds `random`, torch and NumPy; returns the seed that `get_worker_info()` tells."""
    import numpy as np

    seed = base_seed + worker
    random.seed(seed)
    import_torch().manual_seed(seed)
    np.random.seed(numpy_seed(base_seed, worker))
    return seed
