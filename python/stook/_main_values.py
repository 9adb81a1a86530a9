"""How what goes to workers refers to the caller's `__main__`; _main_names.py is the other end."""

from __future__ import annotations

import copyreg
import functools
import hashlib
import io
import pickle
import sys
import types
import typing
import weakref
from collections.abc import Iterable, Iterator
from typing import Any

import cloudpickle  # type: ignore[import-untyped]

from . import _main_names
from ._main_names import HOME, Value
from ._picklers import Pickler

__all__ = ["SendingPickler", "pickle_by_name", "pickle_main_value"]

# What code asks its module for without naming it, as a relative import does.
_MODULE_NAMES = ("__package__", "__path__", "__file__")


class SendingPickler(Pickler):
    """For what goes to workers: there, `__main__` is one for all that comes (_main_names.py)."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.names: set[str] = set()
        # Of these: when each changed last by itself, and the names that are part of it.
        self._parts: dict[str, tuple[int, tuple[str, ...]]] = {}
        self._by_id: dict[int, str] | None = None

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, (type, types.FunctionType, functools._lru_cache_wrapper)):
            name = _name_in_main(obj)
            if name is not None:
                return _main_names.by_name, (name, self._values([name]))
        reduced = super().reducer_override(obj)
        if _is_by_value_from_main(obj, reduced):
            make, (code, _, *rest), state = reduced[:3]
            used = state[1]["__globals__"]
            state[1]["__globals__"] = {}
            return make, (code, _Globals(self._values(used)), *rest), *reduced[2:]
        return reduced

    def _values(self, wanted: Iterable[str]) -> dict[str, Value]:
        """The values of names of `__main__`, and of those that they use, but for those sent."""
        found: dict[str, tuple[bytes, int]] = {}
        todo = list(wanted)
        if self._by_id is None:
            names = _main_names.home()
            self._by_id = _names_by_id(names)
            todo += [name for name in _MODULE_NAMES if name in names]
        for name in todo:  # which grows
            if name in self.names or name == "__builtins__":
                continue
            self.names.add(name)
            data, identity, changed, parts, used = _pickle_value(name, self._by_id)
            found[name] = data, identity
            self._parts[name] = changed, parts
            todo += parts + used
        return {
            name: (data, identity, *self._version(name)) for name, (data, identity) in found.items()
        }

    def _version(self, name: str) -> tuple[int, tuple[str, ...]]:
        """A value's version, and all names that are part of it, by way of others as well.

        A value is as new as its newest part: made again of the same bytes, a dict of functions is
        another dict if a function is another one.
        """
        version, parts = self._parts[name]
        if not parts:
            return version, parts
        reached = {name: None}  # in which they may refer to each other
        todo = list(parts)
        for part in todo:  # which grows
            if part not in reached:
                reached[part] = None
                changed, more = self._parts[part]
                version = max(version, changed)
                todo += more
        return version, tuple(reached) if _main_names.forks_workers() else ()


class _Globals:
    """Pickles as the dict of the globals of `__main__`, with these values in it."""

    def __init__(self, values: dict[str, Value]) -> None:
        self._values = values

    def __reduce__(self) -> Any:
        return _main_names.receive, (self._values,)


class _ValuePickler(Pickler):
    """Pickles what one name of `__main__` is bound to; what other names are bound to, as these.

    So nothing of one value is in the bytes of another, and what is one object stays one.
    """

    def __init__(self, file: io.BytesIO, name: str, value: Any, by_id: dict[int, str]) -> None:
        super().__init__(file, protocol=5)
        # Names that the value holds, and those that it may look up; in the order of the pickle.
        self.parts: dict[str, None] = {}
        self.used: dict[str, None] = {}
        self._constants: set[int] = set()
        self._name = name
        self._value = value
        self._names = _main_names.home()
        self._by_id = by_id

    def dump_value(self) -> None:
        value = self._value
        # Of several names for one object, the first has it.
        if type(value) in (dict, list) and self._by_id.get(id(value)) == self._name:
            value = _Container(value, self._name)  # begun by name, for it may hold itself
        self.dump(value)

    def persistent_id(self, obj: Any) -> str | None:
        if obj is self._names:
            return HOME
        name = self._by_id.get(id(obj))
        if name is None or id(obj) in self._constants:
            return None
        if obj is self._value and name == self._name and type(obj) not in (dict, list):
            return None  # the pickler remembers it from its beginning on
        if name != self._name:
            self.parts[name] = None
        return _copied(name)

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, types.CodeType):
            # A literal is not the global that the compiler has made one object with it.
            self._constants.update(_literals(obj))
        reduced = super().reducer_override(obj)
        if _is_by_value_from_main(obj, reduced):
            make, (code, _, *rest), state = reduced[:3]
            self.used.update(dict.fromkeys(state[1]["__globals__"]))
            state[1]["__globals__"] = {}
            reduced = make, (code, self._names, *rest), *reduced[2:]
        if obj is not self._value:
            return reduced
        if reduced is NotImplemented and _is_plain(obj):
            reduced = obj.__reduce_ex__(5)
        if isinstance(reduced, tuple) and len(reduced) > 2:
            # Others may refer to it while its state is on the way.
            return _main_names.begin, (_copied(self._name), *reduced[:2]), *reduced[2:]
        return reduced


class _Container:
    """Pickles as a dict or a list that is there before what it holds."""

    def __init__(self, value: Any, name: str) -> None:
        self._value = value
        self._name = name

    def __reduce__(self) -> Any:
        value = self._value
        make = _main_names.begin, (_copied(self._name), type(value), ()), None
        return (*make, None, iter(value.items())) if type(value) is dict else (*make, iter(value))


def _literals(code: types.CodeType) -> Iterator[int]:
    """The ids of what is written down in code, and is not a number or a text."""
    todo: list[Any] = list(code.co_consts)
    for value in todo:  # which grows
        if isinstance(value, (tuple, frozenset)):
            yield id(value)
            todo += value


def _copied(name: str) -> str:
    """A string of its own: whether two are one object in memory shows in a pickle, and varies."""
    return "".join(name)


def _is_by_value_from_main(obj: Any, reduced: Any) -> bool:
    return (
        isinstance(obj, types.FunctionType)
        and isinstance(reduced, tuple)
        and len(reduced) > 2
        and obj.__globals__ is _main_names.home()
    )


def _is_plain(obj: Any) -> bool:
    """True for an instance that pickles as objects do if nobody says otherwise."""
    kind: Any = type(obj)
    return (
        not isinstance(obj, type)
        and kind.__reduce_ex__ is object.__reduce_ex__
        and kind.__reduce__ is object.__reduce__
        and kind not in Pickler.dispatch_table
        and kind not in copyreg.dispatch_table
        and bool(kind.__flags__ & 1 << 9)  # made by a class statement
    )


def _name_in_main(obj: Any) -> str | None:
    """The name of a function or class that `__main__` knows by its own name."""
    if getattr(obj, "__module__", None) != "__main__":
        return None
    name = getattr(obj, "__qualname__", None)
    return name if isinstance(name, str) and _main_names.home().get(name) is obj else None


# What is the same object wherever it is equal, or as good as that.
_VALUES = (
    *(type(None), bool, int, float, complex, str, bytes),
    *(types.ModuleType, types.BuiltinFunctionType, types.MethodType, type(...)),
)


_EMPTY: tuple[()] = ()  # all empty tuples are this one


def _names_by_id(names: dict[str, Any]) -> dict[int, str]:
    found: dict[int, str] = {}
    for name, value in list(names.items()):
        if isinstance(value, _VALUES) or value is _EMPTY:
            continue
        if not name.startswith("__") and not _crosses(value):
            found.setdefault(id(value), name)
    return found


def _crosses(value: Any) -> bool:
    """True for what is imported into `__main__` from a module that workers can import, too."""
    return isinstance(value, (type, types.FunctionType)) and value.__module__ != "__main__"


def pickle_main_value(name: str) -> bytes:
    """What the value of a global of `__main__` is pickled to; nothing if it cannot be."""
    return _pickle_value(name, _names_by_id(_main_names.home()))[0]


# What a value is pickled to, its identity as in `Value`, when it changed last by itself, the names
# that are part of it, and those that it may look up.
_Pickled = tuple[bytes, int, int, tuple[str, ...], tuple[str, ...]]


def _pickle_value(name: str, by_id: dict[int, str]) -> _Pickled:
    names = _main_names.home()
    value = names[name]
    if type(value) in (type(None), bool, int, float, str, bytes):
        data = pickle.dumps(value, protocol=5)
        return data, 0, _changed(name, data), (), ()
    state = _state_of(value) if type(value) is types.FunctionType else None
    if state is not None:
        known = _pickled_functions.get(value)
        if known is not None and known[0] == (name, *state):
            return known[1], 0, _changed(name, known[1]), *known[2:]
    file = io.BytesIO()
    pickler = _ValuePickler(file, name, value, by_id)
    try:
        pickler.dump_value()
    except Exception:
        if not _main_names.forks_workers():
            raise
        # A lock, an open file: forked workers have inherited it.
        return b"", id(value), _changed(name, b"object %d" % id(value)), (), ()
    data = file.getvalue()
    parts = tuple(other for other in pickler.parts if other in names)
    used = tuple(other for other in pickler.used if other in names)
    if state is not None:
        _pickled_functions[value] = (name, *state), data, parts, used
    tells = _main_names.forks_workers() and not isinstance(value, (*_VALUES, types.FunctionType))
    return data, id(value) if tells else 0, _changed(name, data), parts, used


class _Sent:
    """What this process has sent of its `__main__`.

    Attributes:
      epoch: Grows with each change of a value that is sent.
      values: By name: the last value's pickle, or a digest of it, and the epoch that began with it.
      definitions: By name: a function, and what was pickled of it last; see `pickle_by_name`.
    """

    def __init__(self) -> None:
        self.epoch = 0
        self.values: dict[str, tuple[bytes, int]] = {}
        self.definitions: dict[str, tuple[Any, int, list[tuple[str, Any, Any]] | None, bytes]] = {}


_sent = _Sent()
_LARGEST_KEPT = 4096  # bytes of a pickle


def _changed(name: str, data: bytes) -> int:
    mark = data if len(data) <= _LARGEST_KEPT else hashlib.blake2b(data).digest()
    last_mark, changed = _sent.values.get(name, (None, 0))
    if last_mark != mark:
        _sent.epoch = changed = _sent.epoch + 1
        _sent.values[name] = mark, changed
    return changed


def pickle_by_name(function: Any) -> bytes | None:
    """Pickles a function that `__main__` knows by its name; `None` if it is another one.

    As long as no value has changed of all that were sent, what a function is pickled to is the same
    object: workers that have it need nothing new.
    """
    if not isinstance(function, (types.FunctionType, functools._lru_cache_wrapper)):
        return None
    name = _name_in_main(function)
    if name is None:
        return None
    epoch = _sent.epoch
    last = _sent.definitions.get(name)
    if last is not None and (last[0] is not function or last[1] != epoch):
        last = None
    if last is not None and last[2] is not None and _are_as_they_were(last[2]):
        return last[3]
    file = io.BytesIO()
    pickler = SendingPickler(file, protocol=5)
    pickler.dump(function)
    definition = file.getvalue()
    if last is not None and last[3] == definition and _sent.epoch == epoch:
        return last[3]
    # Else this pickling has noticed changes, or another thread's has: what is pickled next counts.
    if _sent.epoch == epoch and len(definition) <= 1 << 16:
        _sent.definitions[name] = function, epoch, _constants(pickler.names), definition
    return definition


def _constants(used: Iterable[str]) -> list[tuple[str, Any, Any]] | None:
    """Names with values of which it is seen at once whether they changed; `None`: some others."""
    names = _main_names.home()
    found = []
    for name in used:
        value = names.get(name)
        state = _state_of(value) if type(value) is types.FunctionType else None
        if state is None and not _is_constant(value) and not _crosses(value):
            return None
        found.append((name, value, state))
    return found


_CONSTANTS = (
    *(type(None), bool, int, float, complex, str, bytes),
    *(types.ModuleType, types.BuiltinFunctionType),
)


def _are_as_they_were(constants: list[tuple[str, Any, Any]]) -> bool:
    names = _main_names.home()
    return all(
        names.get(name) is value and (state is None or _state_of(value) == state)
        for name, value, state in constants
    )


# By function: what it was made of when it was pickled, the bytes, the names in it, those it uses.
_pickled_functions: weakref.WeakKeyDictionary[
    Any, tuple[Any, bytes, tuple[str, ...], tuple[str, ...]]
] = weakref.WeakKeyDictionary()


def _state_of(function: types.FunctionType) -> tuple[Any, ...] | None:
    """What tells whether a function is as it was; `None` if that is not told easily."""
    if function.__closure__ or function.__dict__ or function.__globals__ is not _main_names.home():
        return None
    beside: tuple[Any, ...] = ()
    for named in (
        dict(enumerate(function.__defaults__ or ())),
        function.__kwdefaults__ or {},
        function.__annotations__,
    ):
        for name, value in named.items():
            if not _is_constant(value):
                return None
            # By identity, for 1 == True; the value itself, so that its id stays its own.
            beside += (name, id(value), value)
    code = function.__code__
    used = cloudpickle.cloudpickle._extract_code_globals(code)  # which remembers them
    present = [name for name in used if name in function.__globals__]
    return code, function.__qualname__, function.__doc__, present, len(sys.modules), beside


def _is_constant(value: Any) -> bool:
    """True for what cannot change: also types, unless they are of `__main__`, and hints of them."""
    if type(value) in _CONSTANTS or any(value is form for form in _FORMS):
        return True
    if type(value) in _HINTS:
        return all(map(_is_constant, (typing.get_origin(value), *typing.get_args(value))))
    return isinstance(value, type) and _crosses(value)


_FORMS = (typing.Any, typing.Union, ...)
# What `list[int]`, `int | None`, `typing.Optional[int]` and `typing.List[int]` are.
_HINTS = (
    types.GenericAlias,
    types.UnionType,
    type(typing.Optional[int]),  # noqa: UP045
    type(typing.List[int]),  # noqa: UP006
)
