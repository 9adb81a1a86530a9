"""Random draws that depend on the element alone.

Elements go to whichever worker is free, so a seed per worker would make augmentation depend on
timing. Instead `random` and NumPy's global generator are seeded anew for each element from (seed,
epoch, position): the same draws for any number of workers, and again after a restart. So is torch's
generator for the CPU, where torch has been imported, for its users' augmentations draw from it.

Those belong to a process. What belongs to a thread is which element it makes, for `stook.rng()`.
"""

from __future__ import annotations

import ctypes
import random
import struct
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

__all__ = [
    "Draws",
    "announcer",
    "current",
    "isolated",
    "mix",
    "put_back",
    "seeder",
    "torch_generator",
]

_MASK = (1 << 64) - 1

Element = tuple["int | None", int, int]  # seed, epoch, position


class _Current(threading.local):
    """What this thread makes, and the generator that `stook.rng()` made for it."""

    element: Element | None = None
    made: tuple[Element, np.random.Generator] | None = None


current = _Current()


def mix(value: int) -> int:
    """The splitmix64 step: a bijection of 64-bit integers that scatters neighbours.

    Sebastiano Vigna, https://prng.di.unimi.it/splitmix64.c (public domain). The same function keys
    the permutations in `workers/index_plan.cpp`.
    """
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def announcer(seed: int | None) -> Callable[[int, int], None]:
    """Returns `announce(epoch, position)`: which element this thread makes from now on."""
    now = current

    def announce(epoch: int, position: int) -> None:
        # A new object each time: `rng` tells elements apart by it.
        now.element = (seed, epoch, position)

    return announce


def seeder(seed: int) -> Callable[[int, int], None]:
    """Returns `reseed(epoch, position)`: seeds the generators for one element, and announces it.

    `random` gets a 64-bit seed. NumPy's gets 32 bits, because its `seed` takes five times as long
    for anything longer; two elements in four billion share one.
    """
    from numpy import random as np_random

    numpy: Any = np_random  # not all of it is in every NumPy's type stubs
    get_bit_generator = numpy.get_bit_generator
    standard = numpy.MT19937
    seed_key = mix(seed & _MASK)
    epoch_key = mix(seed_key)
    epoch_of_key = 0
    seed_python = random.seed
    seed_numpy = numpy.seed
    modules = sys.modules
    now = current

    def reseed(epoch: int, position: int) -> None:
        # In one frame, since it is called for each element: the lines of `mix`, and others' too.
        nonlocal epoch_key, epoch_of_key
        now.element = (seed, epoch, position)  # a new object each time, as in `announcer`
        if epoch != epoch_of_key:
            epoch_key = mix(seed_key ^ epoch)
            epoch_of_key = epoch
        key = ((epoch_key ^ position) + 0x9E3779B97F4A7C15) & _MASK
        key = ((key ^ (key >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        key = ((key ^ (key >> 27)) * 0x94D049BB133111EB) & _MASK
        key ^= key >> 31
        seed_python(key)
        # Bits that `random` also saw, but after another mix: equal streams would be correlated.
        low = (key * 0xD6E8FEB86659FD93) & _MASK
        if type(get_bit_generator()) is not standard:
            # The program exchanged it; a worker that does not know of that would draw otherwise.
            numpy.set_bit_generator(standard(0))
        seed_numpy(low >> 32)
        if "torch" in modules:
            generator = torch_generator()
            if generator is not None:
                generator.manual_seed(low)

    return reseed


def torch_generator() -> Any:
    """Torch's generator for the CPU, or `None` where user code has not imported torch (so far)."""
    # Half imported, in another thread, it has none yet.
    return getattr(sys.modules.get("torch"), "default_generator", None)


class _NumpyGenerator:
    """Puts NumPy's global generator aside and back.

    `get_state` and `set_state` do it in 75 µs, a word at a time. What takes 5 µs is copying the
    Mersenne Twister's memory, which NumPy gives the address of, and asking for one normal deviate:
    the generator makes them in pairs, and a spare one lies outside of that memory. If asking leaves
    the memory unchanged, what came was the spare.
    """

    _SIZE = 624 * 4 + 4  # the words and the place among them, as NumPy's mt19937_state has them

    def __init__(self) -> None:
        from numpy import random as np_random

        self._numpy: Any = np_random
        self._bits: Any = None
        self._address: int | None = None

    def save(self) -> tuple[Any, ...]:
        """Returns what `restore` takes; the generator's state is then undefined."""
        bits = self._numpy.get_bit_generator()
        if bits is not self._bits:
            self._bits = bits
            self._address = self._address_of(bits)
        if self._address is None:
            return bits, self._numpy.get_state(legacy=False)
        words = ctypes.string_at(self._address, self._SIZE)
        deviate = self._numpy.standard_normal()
        is_spare = ctypes.string_at(self._address, self._SIZE) == words
        return bits, self._address, words, deviate if is_spare else None

    def restore(self, saved: tuple[Any, ...]) -> None:
        """Makes the generator what it was when it was saved."""
        bits = saved[0]
        if self._numpy.get_bit_generator() is not bits:
            self._numpy.set_bit_generator(bits)
        if len(saved) == 2:
            self._numpy.set_state(saved[1])
            return
        _, address, words, spare = saved
        if spare is None:
            self._numpy.seed(0)  # drops a spare deviate of the element's
            ctypes.memmove(address, words, self._SIZE)
        else:
            ctypes.memmove(address, words, self._SIZE)
            state = self._numpy.get_state(legacy=False)
            self._numpy.set_state({**state, "has_gauss": 1, "gauss": spare})

    def _address_of(self, bits: Any) -> int | None:
        """Where the memory is, or `None` if it does not look as expected."""
        if type(bits) is not self._numpy.MT19937:
            return None
        address: int = bits.ctypes.state_address
        state = bits.state["state"]
        expected = state["key"].astype("uint32").tobytes() + struct.pack("=i", state["pos"])
        return address if ctypes.string_at(address, self._SIZE) == expected else None


class Draws:
    """Puts the generators of an element back to where they were before one of its items.

    Args:
      global_ones: Those of the process as well, not only that of `stook.rng()`.
    """

    def __init__(self, *, global_ones: bool) -> None:
        self._numpy = _NumpyGenerator() if global_ones else None

    def save(self) -> tuple[Any, ...]:
        """Returns what `restore` takes, and changes nothing."""
        made = current.made
        if made is None or made[0] is not current.element:
            made = None
        own = None if made is None else (made, made[1].bit_generator.state)
        if self._numpy is None:
            return (own,)
        numpy = self._numpy.save()
        self._numpy.restore(numpy)
        torch = torch_generator()
        return (
            own,
            random.getstate(),
            numpy,
            None if torch is None else (torch, torch.get_state()),
        )

    def restore(self, saved: tuple[Any, ...]) -> None:
        own = saved[0]
        if own is None:
            current.made = None  # which is made anew, and begins at its beginning
        else:
            current.made, own[0][1].bit_generator.state = own
        if self._numpy is None:
            return
        random.setstate(saved[1])
        self._numpy.restore(saved[2])
        if saved[3] is not None:
            saved[3][0].set_state(saved[3][1])


def isolated(run: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps `run` so that the global generators are afterwards as they were before.

    With `num_workers=0` user code draws in the consumer's process. The consumer's own draws must
    not depend on the loader (they do not when it runs in workers), so its generators are put back
    after each element, and so is what `put_back` puts back. `seed=None` has neither the seeds nor
    this cost.
    """
    numpy_generator = _NumpyGenerator()
    now = current

    def run_isolated(*args: Any) -> Any:
        before = now.element, now.made
        python_state = random.getstate()
        numpy_state = numpy_generator.save()
        torch = torch_generator()
        torch_state = None if torch is None else torch.get_state()
        try:
            return run(*args)
        finally:
            now.element, now.made = before
            random.setstate(python_state)
            numpy_generator.restore(numpy_state)
            if torch is not None:
                torch.set_state(torch_state)

    return run_isolated


def put_back(run: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps `run` so that this thread afterwards makes what it made before.

    That is nothing, or the element whose user code iterates a loader of its own.
    """
    now = current

    def run_put_back(*args: Any) -> Any:
        before = now.element, now.made
        try:
            return run(*args)
        finally:
            now.element, now.made = before

    return run_put_back
