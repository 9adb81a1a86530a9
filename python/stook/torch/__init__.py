"""torch's loader on Stook's workers: `stook.torch.DataLoader`, and `stook.torch.as_tensors`.

torch itself is imported by what needs it: by naming `DataLoader`, and by calling `as_tensors`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .tensors import as_tensors

if TYPE_CHECKING:
    from .loader import DataLoader

__all__ = ["DataLoader", "as_tensors"]


def __getattr__(name: str) -> Any:
    if name != "DataLoader":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .loader import DataLoader

    globals()[name] = DataLoader
    return DataLoader
