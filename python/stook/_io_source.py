"""What `stook.io` reads from, as a type."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    import os

    from typing_extensions import Buffer

__all__ = ["Source"]

Source: TypeAlias = "str | os.PathLike[str] | Buffer | tuple[str | os.PathLike[str], int, int]"
"""A path, a buffer of bytes, or a part of a file: path, offset and length in bytes."""
