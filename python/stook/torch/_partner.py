"""torch, imported when it is first needed."""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["import_torch"]


def import_torch() -> Any:
    """The torch module.

    Raises:
      ImportError: It is not installed; the message says what to install.
    """
    try:
        torch: Any = importlib.import_module("torch")
        importlib.import_module("torch.utils.data")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "torch":
            raise
        raise ImportError("stook.torch needs PyTorch: pip install torch") from error
    return torch
