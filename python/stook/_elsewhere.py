"""Loaders that user code refers to where it runs, in a worker: they stay in their own process.

A method of the object that holds the loader is the usual case: `DataLoader(paths, self.load)` kept
as `self.loader`. The worker is sent `self`, and in it this in place of the loader.
"""

from __future__ import annotations

from typing import Any, NoReturn

from .errors import StookError

__all__ = ["Elsewhere", "StaysHere"]


class StaysHere:
    """Mixed into what is bound to its process: pickled for workers it is an `Elsewhere`."""

    __slots__ = ()

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        name = type(self).__name__
        raise TypeError(
            f"a {name} cannot be copied or pickled: it has processes and a position that belong to"
            " it and to this process. Make another where one is needed"
        )


class Elsewhere:
    """Says so to whoever uses it."""

    def __init__(self, kind: str) -> None:
        self.__dict__["_kind"] = kind

    def _refuse(self, *_: Any) -> NoReturn:
        raise StookError(
            f"this {self.__dict__['_kind']} belongs to the process that made it, and this is one of"
            " its workers; make another one here"
        )

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what copy and pickle look for
            raise AttributeError(name)
        self._refuse()

    __setattr__ = __iter__ = __next__ = __aiter__ = __len__ = __enter__ = __exit__ = _refuse

    def __repr__(self) -> str:
        return f"<a {self.__dict__['_kind']} of another process>"
