"""The random generator of one element, which user code asks for; the same wherever it runs.

The global generators (`random`, `numpy.random`, torch's) belong to a process. Worker processes seed
them for each element (see _random.py); threads, of which several make elements at the same time,
cannot: each would draw from what the others have seeded. What is kept here belongs to a thread.
"""

from __future__ import annotations

import contextlib
import pickle
import random
import sys
import warnings
from typing import Any

import numpy as np

from . import _random
from .errors import StookError

__all__ = ["GlobalDraws", "rng"]


def rng() -> np.random.Generator:
    """The random generator of the element that is being made: for transforms and sources.

    It depends on the loader's seed, the epoch and the element's position alone, so what it draws is
    the same in this process, in worker processes and in threads, with any number of them. In
    threads it is the only such generator: the global ones of `random`, `numpy.random` and torch are
    shared by all threads, and draws from them depend on timing.

    All calls for one element (with `batch_size`, one batch) give the same generator, which goes on
    where it was. With `seed=None` it is seeded by the system. For another library's generator draw
    its seed: `random.Random(int(stook.rng().integers(2**63)))`.

    Returns:
      A NumPy generator (PCG64), to be used while this element is made, in the thread that makes it.

    Raises:
      StookError: This thread is not making an element of a loader.

    Example:
      >>> import stook
      >>> def flip(row):
      ...     return row[::-1] if stook.rng().random() < 0.5 else row
      >>> here = list(stook.DataLoader(["ab", "cd", "ef", "gh"], flip, seed=1))
      >>> threads = stook.MultithreadingOptions(2)
      >>> list(stook.DataLoader(["ab", "cd", "ef", "gh"], flip, seed=1, options=threads)) == here
      True
    """
    element = _random.current.element
    if element is None:
        raise StookError(
            "stook.rng() gives the generator of the element that is being made, and this thread"
            " makes none: call it in a transform or a source of a DataLoader, not in threads that"
            " these start; elsewhere use numpy.random.default_rng()"
        )
    made = _random.current.made
    if made is None or made[0] is not element:
        seed, epoch, position = element
        # One integer of which each of the three has bits of its own.
        entropy = None if seed is None else seed | epoch << 64 | position << 128
        bits = np.random.PCG64(np.random.SeedSequence(entropy))
        made = _random.current.made = element, np.random.Generator(bits)
    return made[1]


class GlobalDraws:
    """Notices that user code in threads draws from the global generators, and warns once.

    It looks at the generators while the consumer waits for an element, and so does not draw itself.
    A look costs about 0.1 ms; they come at ever rarer waits (the 1st, 2nd, 4th, 8th ...).
    """

    def __init__(self) -> None:
        self._waits = 0
        self._next_look = 1
        self._before: dict[str, bytes] | None = None

    def wait_begins(self) -> None:
        """To be called before the consumer waits."""
        self._waits += 1
        self._before = None  # of a wait that Ctrl-C ended
        if self._waits >= self._next_look:
            self._next_look *= 2
            self._before = _states()

    def wait_ends(self) -> None:
        """To be called after it."""
        before, self._before = self._before, None
        if before is None:
            return
        now = _states()
        moved = [name for name, state in before.items() if now.get(name, state) != state]
        if not moved:
            return
        from ._pickling import users_stacklevel  # which loads more than `import stook` should

        self._next_look = sys.maxsize
        warnings.warn(
            f"while elements were made in threads, something drew from {' and '.join(moved)}, which"
            " all threads of a process share: what it drew depends on timing, and differs from run"
            " to run and from what worker processes give. If that is a transform, let it draw from"
            " stook.rng(), or use stook.MultiprocessingOptions; with seed=None nothing is promised"
            " and nothing said",
            RuntimeWarning,
            stacklevel=users_stacklevel(),
        )


def _states() -> dict[str, bytes]:
    states = {"Python's random": pickle.dumps(random.getstate())}
    numpy: Any = sys.modules.get("numpy.random")
    if numpy is not None:
        states["numpy.random"] = pickle.dumps(numpy.get_state(legacy=False))
    torch = _random.torch_generator()
    if torch is not None:
        with contextlib.suppress(Exception):  # a look must not become an error of the program
            states["torch's generator"] = torch.get_state().numpy().tobytes()
    return states
