"""The names of the caller's `__main__`, as its functions see them in a worker.

Functions of `__main__` cross by value, for a fresh interpreter cannot import it. Here, in the
worker, they all share one dict of globals, as they do where they come from: what an initializer
sets by `global` is there for the functions that come later.

With each definition come the values of the names it uses, each with a version that grows when the
caller's value changes, or one that it holds. A newer one is taken over; until then the worker's own
object stays, with all that was done to it, as that of a module that both had imported. A name that
the worker's own code has bound stays bound as it is.
"""

from __future__ import annotations

import io
import os
import pickle
import sys
from collections.abc import Callable
from typing import Any

__all__ = ["HOME", "Value", "begin", "by_name", "forks_workers", "home", "receive", "will_fork"]

# What a value is pickled to (nothing: it cannot be, and only who inherited it has it), which object
# of the caller's it is, if that tells (else 0), its version; in a process that forks workers, the
# names of the values that it holds, and those hold, itself included.
Value = tuple[bytes, int, int, tuple[str, ...]]

# The persistent id of the dict of globals itself; other persistent ids are names in it.
HOME = ""


class _State:
    """Of this process. Used with the GIL, by the thread that loads definitions."""

    def __init__(self) -> None:
        # In a worker that is a fresh interpreter: stands for `__main__`'s own dict.
        self.globals: dict[str, Any] | None = None
        # By name: the newest version that came, and the object that was made of it.
        self.received: dict[str, tuple[int, Any]] = {}
        # In a forked child: what the parent's names were bound to.
        self.inherited: dict[str, Any] | None = None
        self.forks = False
        # While values are loaded: those to come, and those that others may refer to already.
        self.pending: dict[str, Value] = {}
        self.came: dict[str, Value] = {}  # all that `pending` was
        self.loading: dict[str, bytes] = {}
        self.begun: dict[str, Any] = {}


_state = _State()
_MISSING = object()
_OWN = object()  # in `received`: the worker's own code has bound the name


def home() -> dict[str, Any]:
    """The globals of the functions of `__main__` in this process."""
    if _state.globals is not None:
        return _state.globals
    return sys.modules["__main__"].__dict__


def will_fork() -> None:
    """Before this process forks workers: they are to know what they inherited."""
    _state.forks = True


def forks_workers() -> bool:
    """True once `will_fork` was called."""
    return _state.forks


def _note_inheritance() -> None:
    if _state.forks:
        _state.inherited = dict(home())
        _state.received.clear()


os.register_at_fork(after_in_child=_note_inheritance)


def receive(values: dict[str, Value]) -> dict[str, Any]:
    """Takes over what of `values` is new; returns the dict that holds them."""
    if _state.globals is None and _state.inherited is None:
        _state.globals = {"__name__": "__main__"}
    names = home()
    if values:
        outer = _state.pending, _state.came
        _state.pending = {**outer[0], **values}
        _state.came = {**outer[1], **values}
        try:
            for name in values:
                _take(name, names)
        finally:
            _state.pending, _state.came = outer
    return names


def by_name(name: str, values: dict[str, Value]) -> Any:
    """What a name of `__main__` is bound to."""
    names = receive(values)
    if name not in names:
        raise pickle.UnpicklingError(f"{name!r} of __main__ was deleted in this worker")
    return names[name]


def begin(name: str, make: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    """Makes an object before its state comes, which may refer to it by name."""
    if name not in _state.begun:  # its class may have needed it
        _state.begun[name] = make(*args)
    return _state.begun[name]


class _Unpickler(pickle.Unpickler):
    def persistent_load(self, name: Any) -> Any:
        names = home()
        if name == HOME:
            return names
        if name in _state.begun:
            return _state.begun[name]
        if name in _state.pending:
            _take(name, names)
        elif name in _state.loading:
            # What it is made from needs it in turn, as a class does that holds an instance.
            _state.begun[name] = _Unpickler(io.BytesIO(_state.loading.pop(name))).load()
            return _state.begun[name]
        _, value = _state.received.get(name, (0, _OWN))
        if value is not _OWN:
            return value
        if name in names:
            return names[name]
        raise pickle.UnpicklingError(f"the global {name!r} of __main__ is not there in this worker")


def _take(name: str, names: dict[str, Any]) -> None:
    value = _state.pending.pop(name, None)
    if value is None:  # another one needed it, and took it
        return
    data, _, version, parts = value
    last_version, last = _state.received.get(name, (0, _MISSING))
    if version <= last_version:
        return
    present = names.get(name, _MISSING)
    inherited = _state.inherited
    if last is _MISSING and inherited is not None and name in inherited:
        last = inherited[name]
        if present is last and all(map(_is_inherited, parts or (name,))):
            _state.received[name] = version, present
            return
    if present is not last:  # the worker's own code has bound it
        _state.received[name] = version, _OWN
        return
    if not data:
        raise pickle.UnpicklingError(
            f"the global {name!r} of __main__ cannot be pickled, and this worker did not inherit it"
        )
    _state.loading[name] = data
    try:
        made = _Unpickler(io.BytesIO(data)).load()
        made = _state.begun.get(name, made)
    finally:
        _state.loading.pop(name, None)
        _state.begun.pop(name, None)
    _state.received[name] = version, made
    names[name] = made


def _is_inherited(name: str) -> bool:
    """True if the caller's value by itself still is the one that this process inherited.

    True as well of what the worker's own code has bound, whatever the caller's is.
    """
    inherited = (_state.inherited or {}).get(name, _MISSING)
    present = home().get(name, _MISSING)
    if name in _state.received:
        return present is inherited or _state.received[name][1] is not present
    value = _state.came.get(name)
    if value is None or present is not inherited:
        return True
    if value[1]:
        return value[1] == id(present)
    from ._main_values import pickle_main_value

    return pickle_main_value(name) == value[0]
