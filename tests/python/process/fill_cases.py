"""What the tests of filled batches leave out, and of how many."""

from __future__ import annotations

from collections.abc import Callable

LENGTH = 43
BATCH = 4

BAD: dict[str, Callable[[int], bool]] = {
    "none": lambda index: False,
    "all": lambda index: True,
    "some": lambda index: index % 5 == 2,
    "most": lambda index: index % 7 != 0,
    "runs": lambda index: index // 6 % 2 == 1,
    "the first": lambda index: index < 9,
    "the last": lambda index: index > 30,
}
