"""Samplers: which indices of a source an epoch is made of, where that is not each of them once."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .options import _shown, check_bool, check_int

__all__ = ["WeightedSampler"]

_OWNER = "WeightedSampler"
# Draws with replacement that are made at once. Each run of them has a generator of its own, so that
# the k-th draw is found without those before it. Part of what a seed gives: changing it changes the
# draws of every program.
_AT_ONCE = 4096


class WeightedSampler:
    """Indices drawn with a probability proportional to their weights, for `DataLoader(sampler=)`.

    The draws depend on the seed and the epoch alone; a loader tells the sampler each epoch. They
    are drawn as they are asked for, 4096 at a time, and a loader that goes on from a state finds
    its place without drawing those before it.

    Without replacement no index comes twice in an epoch: each next one is drawn among those that
    are left, by their weights. That takes the whole order at once, so memory and time of the
    number of weights at the beginning of each epoch.

    Args:
      weights: One number for each item of the source, 0 or above: a sequence or an array of shape
        (n,). They need not sum up to 1. An index with weight 0 is never drawn.
      num_samples: Draws in one epoch; `None`: as many as there are weights, or without replacement,
        as many as are above 0.
      replacement: Whether an index may be drawn again.
      seed: What the draws depend on, besides the epoch.

    Raises:
      TypeError: An argument is of the wrong type.
      ValueError: There is no weight above 0; one is negative or not finite; or without replacement
        fewer are above 0 than are to be drawn.

    Example:
      >>> import stook
      >>> sampler = stook.WeightedSampler([0, 3, 1], num_samples=1000)
      >>> drawn = list(sampler)
      >>> drawn.count(0), 700 < drawn.count(1) < 800, len(drawn)
      (0, True, 1000)
      >>> loader = stook.DataLoader(["a", "b", "c"], sampler=sampler, batch_size=4)
      >>> set(next(iter(loader))) <= {"b", "c"}
      True
    """

    def __init__(
        self,
        weights: Sequence[float] | ArrayLike,
        num_samples: int | None = None,
        replacement: bool = True,
        *,
        seed: int = 0,
    ) -> None:
        self._replacement = check_bool(_OWNER, "replacement", replacement)
        self._seed = check_int(_OWNER, "seed", seed, 0, (1 << 64) - 1)
        self._weights = _checked(weights)
        above = int(np.count_nonzero(self._weights))
        if num_samples is None:
            self._count = len(self._weights) if replacement else above
        else:
            self._count = check_int(_OWNER, "num_samples", num_samples, 0)
        if not replacement and self._count > above:
            raise ValueError(
                f"{_OWNER}: num_samples={self._count} different indices cannot be drawn, as"
                f" {above} of the {len(self._weights)} weights are above 0; pass replacement=True"
                " or fewer samples"
            )
        # Summed up once, and searched for each draw.
        self._sums = np.cumsum(self._weights) if replacement else None
        self._last = int(np.flatnonzero(self._weights)[-1])
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Lets the next iterations be those of an epoch; a loader calls it.

        Example:
          >>> import stook
          >>> sampler = stook.WeightedSampler([1, 1, 1, 1], 20)
          >>> first = list(sampler)
          >>> sampler.set_epoch(1)
          >>> list(sampler) == first
          False
        """
        self._epoch = check_int(_OWNER, "epoch", epoch, 0)

    def __len__(self) -> int:
        """Draws in one epoch."""
        return self._count

    def __iter__(self) -> Iterator[int]:
        """The indices of the epoch that `set_epoch` named last, or of epoch 0."""
        return WeightedDraws(self, self._epoch)

    def __repr__(self) -> str:
        return (
            f"<stook.WeightedSampler: {self._count} of {len(self._weights)} indices"
            f"{'' if self._replacement else ', without replacement'}>"
        )

    def _generator(self, epoch: int, run: int) -> np.random.Generator:
        # Each of the three has bits of its own. Not the stream of stook.rng(), whose numbers end at
        # 192 bits.
        entropy = self._seed | epoch << 64 | run << 128 | 1 << 192
        return np.random.Generator(np.random.PCG64(np.random.SeedSequence(entropy)))

    def _run(self, epoch: int, run: int) -> NDArray[Any]:
        """The draws from 4096 * `run` on; without replacement all that are left after those."""
        if self._sums is None:
            return self._order(epoch) if run == 0 else np.empty(0, np.intp)
        count = min(_AT_ONCE, self._count - run * _AT_ONCE)
        drawn = self._generator(epoch, run).random(_AT_ONCE)[:count] * self._sums[-1]
        # To the right of its place, so that 0.0 does not draw a weight of 0. Rounding up to the
        # sum itself would be beyond the last weight that counts.
        places = np.searchsorted(self._sums, drawn, side="right")
        found: NDArray[Any] = np.minimum(places, self._last)
        return found

    def _order(self, epoch: int) -> NDArray[Any]:
        # With a time to wait for each index that is exponential at the rate of its weight, the
        # order of the times is that of drawing without replacement (Efraimidis and Spirakis,
        # "Weighted random sampling with a reservoir", 2006).
        above = np.flatnonzero(self._weights)
        times = self._generator(epoch, 0).exponential(size=len(above)) / self._weights[above]
        first = np.argsort(times, kind="stable")[: self._count]
        ordered: NDArray[Any] = above[first]
        return ordered


class WeightedDraws(Iterator[int]):
    """The draws of one epoch."""

    def __init__(self, sampler: WeightedSampler, epoch: int) -> None:
        self._sampler = sampler
        self._epoch = epoch
        self._next = 0
        self._drawn: list[int] = []
        self._first = 0  # of those that were drawn
        self._run = -1

    def __next__(self) -> int:
        if self._next >= self._sampler._count:
            raise StopIteration
        place = self._next - self._first
        if self._run < 0 or not 0 <= place < len(self._drawn):
            self._run = self._next // _AT_ONCE if self._sampler._replacement else 0
            self._drawn = self._sampler._run(self._epoch, self._run).tolist()
            self._first = self._run * _AT_ONCE
            place = self._next - self._first
        self._next += 1
        return self._drawn[place]

    def advance(self, count: int) -> None:
        """Leaves out so many draws, without making them; see `_drawn_jobs`."""
        self._next += count


def _checked(weights: Any) -> NDArray[np.float64]:
    try:
        found = np.array(weights, dtype=np.float64)  # a copy: what is drawn must not change
    except (TypeError, ValueError) as error:
        raise TypeError(f"{_OWNER}: weights must be numbers, got {_shown(weights)}") from error
    if found.ndim != 1:
        raise ValueError(f"{_OWNER}: weights must be of shape (n,), got {found.shape}")
    wrong = np.flatnonzero(~(np.isfinite(found) & (found >= 0)))
    if len(wrong):
        place = int(wrong[0])
        raise ValueError(
            f"{_OWNER}: weights must be finite and 0 or above, and weights[{place}] is"
            f" {found[place]}"
        )
    total = float(found.sum())
    if total <= 0 or not math.isfinite(total):
        raise ValueError(f"{_OWNER}: the sum of weights must be above 0 and finite, got {total}")
    return found
