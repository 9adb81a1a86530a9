"""What a task may return besides an element: that there is none, and what became of its items."""

from __future__ import annotations

from typing import Any, Final, final

__all__ = ["SKIP", "Report", "Skip"]


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
      consumed: With `fill_batches`, how many items of the plan, from its own first one on, the
        batch has used up; `None`: as many as were planned.
    """

    __slots__ = ("consumed", "element", "failed")

    def __init__(self, element: Any, failed: int = 0, consumed: int | None = None) -> None:
        self.element = element
        self.failed = failed
        self.consumed = consumed
