"""What kind of source a loader was given: indexed, iterated, or nothing it should guess about."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from .errors import add_note
from .options import _shown

__all__ = [
    "MAX_LENGTH",
    "has_method",
    "is_iterator",
    "is_torch_iterable",
    "kind_name",
    "random_access_length",
]

MAX_LENGTH = 1 << 62


def is_iterator(source: Any) -> bool:
    """True for what can be run through once: generators, open files, `map` objects."""
    return isinstance(source, Iterator)


def random_access_length(source: Any, owner: str) -> int | None:
    """The length of a source that is indexed, or `None` for an iterable.

    Args:
      source: What the user passed.
      owner: Whose source it is, for messages.

    Raises:
      TypeError: It is neither, or a kind of object whose items are a guess.
    """
    kind = type(source)
    if isinstance(source, (str, bytes, bytearray)):
        raise TypeError(
            f"{owner}: the source is one {kind.__name__}, {_shown(source)}; pass a list of items"
            f" (for a single one: [{_shown(source)}])"
        )
    _refuse_tables(source, owner)
    if isinstance(source, Mapping) or (hasattr(kind, "keys") and hasattr(kind, "__getitem__")):
        raise TypeError(
            f"{owner}: the source is a mapping, a {kind.__name__}, whose keys are not 0..n-1; pass"
            " list(source.values()), or list(source.items()) for pairs of key and value"
        )
    if isinstance(source, type):  # its metaclass has what we look for; an Enum is indexed by name
        raise TypeError(
            f"{owner}: the source is the class {kind_name(source)} itself; pass an object of it, or"
            " list(...) of the class if it can be iterated"
        )
    indexed = has_method(kind, "__getitem__")
    if indexed and has_method(kind, "__len__") and not is_torch_iterable(kind):
        return _length_of(source, owner)
    if has_method(kind, "__iter__"):
        return None
    # NumPy's numbers have the method, and refuse to be indexed.
    if indexed and not isinstance(source, np.generic):
        raise TypeError(
            f"{owner}: the source, a {kind_name(kind)}, has __getitem__ and no __len__; give it"
            " __len__, or __iter__ if it is to be iterated"
        )
    raise TypeError(
        f"{owner}: the source must have __len__ and __getitem__, or be an iterable, or a callable"
        f" that takes (shard, count) and returns an iterable, got {_shown(source)}"
    )


def kind_name(kind: type) -> str:
    """A class as the user knows it."""
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"


def has_method(kind: type, name: str) -> bool:
    """True unless it is missing, or `None`, with which a class takes back what it inherits."""
    return getattr(kind, name, None) is not None


def _length_of(source: Any, owner: str) -> int:
    try:
        length = len(source)
    except TypeError as error:  # an array of shape (), for instance
        raise TypeError(f"{owner}: the source has no length: {error}") from error
    except OverflowError as error:  # it does not fit into an index
        raise ValueError(f"{owner}: the source has more than 2**62 items ({error})") from error
    except Exception as error:
        add_note(error, f"{owner}: while the source, a {kind_name(type(source))}, gave its length")
        raise
    if length > MAX_LENGTH:
        raise ValueError(f"{owner}: the source has {length} items, more than 2**62")
    return length


def _refuse_tables(source: Any, owner: str) -> None:
    """Data frames are indexed by label and iterated by column: no item of theirs is a row."""
    for kind in type(source).__mro__:
        library = kind.__module__.partition(".")[0]
        if library in ("pandas", "modin", "cudf") and kind.__name__ == "Series":
            raise TypeError(
                f"{owner}: the source is a {library} Series, which is indexed by label; pass"
                " source.to_numpy() or source.tolist()"
            )
        if kind.__name__ in ("DataFrame", "LazyFrame") or (
            library == "pyarrow" and kind.__name__ in ("Table", "RecordBatch")
        ):
            rows = {
                "polars": "source.to_dicts()",
                "pyarrow": "source.to_pylist()",
            }.get(library, 'source.to_dict("records")')
            raise TypeError(
                f"{owner}: the source is a {library} {kind.__name__}, whose items are columns;"
                f" pass a list of its rows, such as {rows}"
            )


def is_torch_iterable(kind: type) -> bool:
    """True for torch's IterableDataset: its `__getitem__` raises, and it may have a length."""
    return any(
        base.__name__ == "IterableDataset" and base.__module__.startswith("torch.")
        for base in kind.__mro__
    )
