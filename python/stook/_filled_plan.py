"""What is dealt with `fill_batches`: batches that may take further items of their epoch."""

from __future__ import annotations

from typing import Any

from . import _core
from ._element_errors import items_used_by

__all__ = ["FilledPlan"]


class FilledPlan(_core.IndexPlan):
    """A plan of batches that go on to further items, and how far its pass is.

    A batch is dealt `batch_size` items, and says when it is made how many it has used up. If these
    are more, all batches behind it begin elsewhere: they are dealt anew.

    For the iterators that are Python. That over worker processes keeps its own account.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        drop_remainder: bool,
        *,
        first_epoch: int,
        first_position: int,
        first_item: int,
        **options: Any,
    ) -> None:
        super().__init__(
            length,
            batch_size,
            drop_remainder,
            first_epoch=first_epoch,
            first_position=first_position,
            first_item=first_item,
            fill=True,
            **options,
        )
        # Ordinal of the next batch, and its place. Set at once, whatever interrupts.
        self._next = 0, first_epoch, first_position, first_item

    def next_item(self) -> tuple[int, int, int]:
        """(epoch, position of the batch, number of its first item) of what comes next."""
        return self._next[1:]

    def settle(self, ordinal: int, epoch: int, payload: Any, made: Any) -> bool:
        """Goes on behind a batch that is to be delivered.

        Called again for the same batch, because the first call was interrupted, it does the rest.

        Args:
          ordinal: Of the batch; they come in order.
          epoch: Of the batch.
          payload: What was dealt: a `FurtherItems`, and the indices.
          made: What the task returned or raised.

        Returns:
          True if what was dealt behind it is void.
        """
        dealt = len(payload) - 1
        noted = items_used_by(made)
        used = dealt if noted is None else noted
        if ordinal == self._next[0]:
            _, before, position, item = self._next
            if epoch != before:
                position = item = 0
            self._next = ordinal + 1, epoch, position + 1, item + used
        if used == dealt:
            return False
        self.rewind(*self._next[1:], ordinal + 1)
        return True
