"""What is pickled by value, and what is refused: cloudpickle, with what it leaves out."""

from __future__ import annotations

import contextlib
import enum
import functools
import importlib
import io
import sys
import threading
import types
from collections.abc import Callable
from multiprocessing.context import get_spawning_popen
from multiprocessing.reduction import ForkingPickler
from typing import Any

import cloudpickle  # type: ignore[import-untyped]

from ._elsewhere import Elsewhere, StaysHere

__all__ = ["Pickler"]

_RLOCK = type(threading.RLock())
# What is behind a name in `__slots__`; `__dict__` and `__weakref__` are of the second kind.
_SLOTS = (types.MemberDescriptorType, types.GetSetDescriptorType)


class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """Takes by name what the standard library's pickle takes by name, and refuses what it refuses.

    An open text file, for one: cloudpickle would read it, here and whole.
    """

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, io.TextIOWrapper) and obj not in (sys.stdout, sys.stderr):
            raise TypeError(
                f"cannot pickle the open file {obj.name!r}: between processes, send its path"
                " and open it where it is used"
            )
        if get_spawning_popen() is not None:  # queues, pipes and the like
            reduce = ForkingPickler._extra_reducers.get(type(obj))  # type: ignore[attr-defined]
            # Others register there, too: torch would send tensors as descriptors that it closes.
            if reduce is not None and reduce.__module__.startswith("multiprocessing."):
                return reduce(obj)
        if isinstance(obj, StaysHere):
            return Elsewhere, (type(obj).__name__,)
        if isinstance(obj, (type, types.FunctionType)):
            # A class may name a module that exports it and that nobody imported yet, as NumPy's
            # recarray names numpy.rec. cloudpickle would then send the class by value.
            module = getattr(obj, "__module__", None)
            if isinstance(module, str) and module not in sys.modules:
                with contextlib.suppress(Exception):
                    importlib.import_module(module)
        elif isinstance(obj, functools._lru_cache_wrapper) and not _is_importable(obj):
            # Such a function pickles as its name, also where nobody can look that up.
            return _cached, (obj.__wrapped__, obj.cache_parameters())
        elif isinstance(obj, functools.cached_property) and _has_lock_only(obj):
            state = {name: value for name, value in vars(obj).items() if name != "lock"}
            return _locked, (type(obj),), state
        reduced = super().reducer_override(obj)
        if isinstance(reduced, tuple) and len(reduced) > 2:
            if isinstance(obj, types.FunctionType):
                _add_submodules(obj, reduced)
            elif isinstance(obj, type) and isinstance(reduced[2], tuple):
                # copyreg leaves it there when the first instance is pickled: no change of a class.
                reduced[2][0].pop("__slotnames__", None)
                _add_slots(obj, reduced)
        return reduced


def _is_importable(function: Any) -> bool:
    """True if its name leads to it in a worker too."""
    if function.__module__ == "__main__":
        return False
    found: Any = sys.modules.get(function.__module__)
    for step in function.__qualname__.split("."):
        found = getattr(found, step, None)
    return found is function


def _cached(function: Callable[..., Any], parameters: dict[str, Any]) -> Any:
    """The function with an empty cache of its own."""
    return functools.lru_cache(**parameters)(function)


def _has_lock_only(prop: functools.cached_property[Any]) -> bool:
    """True if only its lock, which it has before Python 3.12, keeps it from being pickled."""
    return (
        isinstance(vars(prop).get("lock"), _RLOCK)
        and type(prop).__reduce_ex__ is object.__reduce_ex__
        and type(prop).__reduce__ is object.__reduce__
        and not hasattr(type(prop), "__setstate__")
    )


def _locked(kind: Any) -> Any:
    """A `functools.cached_property` that has a lock, and nothing else yet."""
    made = kind.__new__(kind)
    made.lock = threading.RLock()
    return made


def _add_slots(kind: type, reduced: tuple[Any, ...]) -> None:
    """Has a class made with the slots that it has: cloudpickle adds `__slots__` too late for that.

    Without them its instances have a `__dict__` instead, where they come to.
    """
    if "__slots__" not in vars(kind) or issubclass(kind, (tuple, enum.Enum)):
        # Tuples cannot have any, and typing.NamedTuple says so itself; enumerations are made by
        # their members.
        return
    slots = []
    for name, member in vars(kind).items():
        if isinstance(member, _SLOTS) and member.__objclass__ is kind:
            slots.append("".join(name))  # a copy, as cloudpickle makes: pickles show identity
            reduced[2][0].pop(name, None)  # a private one, which it knows by its other name
    reduced[1][3]["__slots__"] = tuple(slots)


def _add_submodules(function: types.FunctionType, reduced: tuple[Any, ...]) -> None:
    """Sends along the submodules that only a function's inner functions name.

    `package.submodule` works in a process that imported the submodule. cloudpickle sends those that
    the function's own code names; comprehensions (before Python 3.12) and lambdas are code apart.
    """
    try:
        sent = reduced[2][1]["_cloudpickle_submodules"]
    except (IndexError, KeyError, TypeError):  # by name, or another cloudpickle
        return
    names: set[str] = set()
    codes = [function.__code__]
    for code in codes:  # which grows
        names.update(code.co_names)
        codes += [inner for inner in code.co_consts if isinstance(inner, types.CodeType)]
    values = [value for name, value in function.__globals__.items() if name in names]
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):  # an empty one
            values.append(cell.cell_contents)
    for package in values:
        if isinstance(package, types.ModuleType) and hasattr(package, "__path__"):
            prefix = package.__name__ + "."
            for name, module in sorted(sys.modules.items()):
                if name.startswith(prefix) and names.issuperset(name[len(prefix) :].split(".")):
                    sent.append(module)
