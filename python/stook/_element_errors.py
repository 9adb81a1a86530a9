"""What a task may return besides an element: that there is none, and what became of its items."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any, Final, final

from .errors import ElementError

__all__ = [
    "DEFAULT_POLICY",
    "SKIP",
    "Policy",
    "Report",
    "Skip",
    "forget_items_used",
    "items_used_by",
    "note_items_used",
]


@final
class Skip:
    """The type of `SKIP`."""

    __slots__ = ()

    _only: Skip | None = None

    def __new__(cls) -> Skip:
        if cls._only is None:
            cls._only = super().__new__(cls)
        return cls._only

    def __reduce__(self) -> str:
        return "SKIP"

    def __repr__(self) -> str:
        return "stook.SKIP"


# What stands for nothing: a transform that returns it leaves its item out.
SKIP: Final = Skip()


class Report:
    """An element, and what is to be known of how it was made.

    A task returns one where something special happened, and the bare element otherwise. Whoever
    takes the element out drops the report before anything is tested for uniqueness: nothing else
    holds the element.

    Attributes:
      element: The element, or `SKIP`: then there is nothing to deliver.
      failed: Items that failed, and were left out or replaced.
      consumed: How many items of the plan, from its own first one on, a batch has used up; `None`:
        as many as were planned.
    """

    __slots__ = ("consumed", "element", "failed")

    def __init__(self, element: Any, failed: int = 0, consumed: int | None = None) -> None:
        self.element = element
        self.failed = failed
        self.consumed = consumed


def note_items_used(error: BaseException, count: int) -> None:
    """Notes on what a batch raises how many items of the plan it has used up (`fill_batches`)."""
    # Also where it was noted before: one object may be raised for several batches.
    with contextlib.suppress(Exception):
        error._stook_consumed = count  # type: ignore[attr-defined]


def forget_items_used(error: BaseException) -> None:
    """Takes that note off again."""
    with contextlib.suppress(Exception):
        del error._stook_consumed  # type: ignore[attr-defined]


def items_used_by(made: Any) -> int | None:
    """How many items an element, or what was raised in its stead, has used up.

    `None`: as many as were planned.
    """
    if type(made) is Report:
        return made.consumed
    if isinstance(made, BaseException):
        used = getattr(made, "_stook_consumed", None)
        return used if type(used) is int else None
    return None


@dataclasses.dataclass(frozen=True, slots=True)
class Policy:
    """What is done about items that fail.

    Attributes:
      on_error: `"raise"`, `"skip"`, or what makes a replacement.
      retries: How often an item is tried again before that.
      timeout: Seconds an item may take, or `None`.
      fill: Batches take further items in place of those left out. The payload of a batch is then
        a function (number of an item, counted from the batch's first one) -> its index, or `None`
        beyond the end of the epoch; and then the indices.
      drop_remainder: With `fill`, leave out a batch that is not full at the end of an epoch.
      most_errors: With `fill`, a batch in which more have failed looks for no further items: the
        pass is over when it is delivered. `None`: any number.
    """

    on_error: str | Callable[[ElementError], Any] = "raise"
    retries: int = 0
    timeout: float | None = None
    fill: bool = False
    drop_remainder: bool = False
    most_errors: int | None = None

    @property
    def is_needed(self) -> bool:
        """False where errors are raised at once, and no time is taken."""
        return bool(
            self.on_error != "raise" or self.retries or self.timeout is not None or self.fill
        )

    @property
    def takes_losses(self) -> bool:
        """True if an item whose worker died of it is to be told to the task."""
        return self.on_error != "raise"


DEFAULT_POLICY: Final = Policy()
