"""What a function refers to when it is sent to workers, to know later whether that is stale."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

from ._start import crosses_by_name

__all__ = ["Decorated", "References"]


class Decorated:
    """Base of callables that are sent as the function that they wrap, or by name."""

    __wrapped__: Callable[..., Any]

    def _crosses_by_name(self) -> bool:
        raise NotImplementedError


class References:
    """What a function that crosses by value refers to, as it was when this was made.

    That is global variables and those of closures, of the functions that it calls as well, and what
    these functions are made of.
    """

    __slots__ = ("_are_constant", "_cells", "_functions", "_names")

    def __init__(self, function: Callable[..., Any]) -> None:
        self._names: list[tuple[dict[str, Any], str, Any]] = []
        self._cells: list[tuple[Any, Any]] = []
        self._functions: list[tuple[types.FunctionType, Any, Any, Any]] = []
        self._are_constant = True
        self._look_at(function, set())

    def are_fresh(self) -> bool:
        """False if one is another object now, or can change without becoming another."""
        if not self._are_constant:
            return False
        for variables, name, value in self._names:
            if variables.get(name, _Missing) is not value:
                return False
        for function, code, defaults, keywords in self._functions:
            if (
                function.__code__ is not code
                or function.__defaults__ is not defaults
                or function.__kwdefaults__ is not keywords
            ):
                return False
        return all(_contents(cell) is value for cell, value in self._cells)

    def _look_at(self, value: Any, seen: set[int]) -> None:
        if id(value) in seen or isinstance(value, _CONSTANT) or crosses_by_name(value):
            return
        seen.add(id(value))
        if isinstance(value, Decorated):
            if not value._crosses_by_name():
                self._look_at(value.__wrapped__, seen)
        elif isinstance(value, (tuple, frozenset)):
            for item in value:
                self._look_at(item, seen)
        elif isinstance(value, types.FunctionType):
            self._functions.append(
                (value, value.__code__, value.__defaults__, value.__kwdefaults__)
            )
            variables = value.__globals__
            for name in _names_in(value.__code__):
                found = variables.get(name, _Missing)
                self._names.append((variables, name, found))
                self._look_at(found, seen)
            for cell in value.__closure__ or ():
                found = _contents(cell)
                self._cells.append((cell, found))
                self._look_at(found, seen)
            self._look_at(value.__defaults__ or (), seen)
            for attributes in (value.__kwdefaults__ or {}, value.__dict__):
                for name, found in list(attributes.items()):
                    self._names.append((attributes, name, found))
                    self._look_at(found, seen)
        else:
            self._are_constant = False


class _Missing:
    """In place of what a name or a cell does not have. A class, so a constant itself."""


# What does not change, or is compared by identity: a class is redefined rather than changed.
_CONSTANT = (
    bool, int, float, complex, str, bytes, range, type, types.NoneType, types.EllipsisType,
    types.ModuleType, types.BuiltinFunctionType, types.CodeType,
)  # fmt: skip


def _names_in(code: types.CodeType) -> set[str]:
    """Names that the code of a function, and of those defined in it, may look up globally."""
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= _names_in(constant)
    return names


def _contents(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # an empty one
        return _Missing
