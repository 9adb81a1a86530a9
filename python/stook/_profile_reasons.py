"""Why a leaf of an element was copied, in words (bindings/copy_reasons.h has the numbers)."""

from __future__ import annotations

__all__ = ["NOT_COPIED", "text_of"]

# Handed over, within the envelope, or by its handle.
NOT_COPIED = frozenset({0, 16})


def text_of(reason: int, references: int, kind: str, min_shared_bytes: int) -> str:
    """Says why.

    Args:
      reason: Its number.
      references: On what is in the way, the element's own among them.
      kind: The name of its type.
      min_shared_bytes: Of the options.
    """
    others = references - 1
    held = f"kept by {others} other reference{'' if others == 1 else 's'}"
    what = _shown(kind)
    texts = {
        0: "moved",
        1: f"smaller than min_shared_bytes ({min_shared_bytes}): in the envelope",
        2: held,
        3: f"the {what} it is in is {held}",
        4: f"a view of an array that is {held}",
        5: f"its base is a {what}",
        6: "there is a weak reference to it, or to its base",
        7: "NumPy writes it back to another array (WRITEBACKIFCOPY)",
        8: "its memory was not made in the worker while it made the element",
        9: f"object dtype ({what}): pickled",
        10: f"a subclass of ndarray ({what}): pickled",
        11: "a view that covers less than half of its block",
        12: "its items overlap",
        13: "it reaches beyond its block",
        14: f"no array but a {what}: pickled",
        15: "in one pickle with what shares it",
        16: "a SharedMemoryArray, which crosses as its handle",
    }
    return texts.get(reason, f"reason {reason}")


def _shown(kind: str) -> str:
    return {"Tensor": "torch tensor", "torch.Tensor": "torch tensor"}.get(kind, kind)
