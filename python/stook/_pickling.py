"""What is pickled, and how: functions and data sets on their way in, odd leaves on their way out.

cloudpickle in both directions: it takes lambdas, closures and the functions of a notebook by value,
and it remembers which class of `__main__` it has sent, so that an instance which comes back is one
of the same class.
"""

from __future__ import annotations

import contextlib
import copyreg
import functools
import importlib
import io
import os
import pickle
import sys
import types
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.context import get_spawning_popen
from multiprocessing.reduction import ForkingPickler
from typing import Any

import cloudpickle  # type: ignore[import-untyped]

from . import _main_names
from ._elsewhere import Elsewhere, StaysHere
from ._main_names import HOME, Value
from .errors import StookError

__all__ = [
    "dump_for_workers",
    "dump_function",
    "pickle_dtype",
    "pickle_main_value",
    "pickle_objects",
    "pickle_results",
    "track_classes",
    "unpickle_dtype",
    "unpickle_objects",
    "users_stacklevel",
    "warn_of_large",
]

_LARGE_PAYLOAD = 100 << 20
_PACKAGE = os.path.dirname(__file__) + os.sep


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """Takes by name what the standard library's pickle takes by name, and refuses what it refuses.

    An open text file, for one: cloudpickle would read it, here and whole.
    """

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, io.TextIOWrapper) and obj not in (sys.stdout, sys.stderr):
            raise TypeError(f"cannot pickle the open file {obj.name!r}")
        if get_spawning_popen() is not None:  # queues, pipes and the like
            reduce = ForkingPickler._extra_reducers.get(type(obj))  # type: ignore[attr-defined]
            if reduce is not None:
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
        reduced = super().reducer_override(obj)
        if isinstance(reduced, tuple) and len(reduced) > 2:
            if isinstance(obj, types.FunctionType):
                _add_submodules(obj, reduced)
            elif isinstance(obj, type) and isinstance(reduced[2], tuple):
                # copyreg leaves it there when the first instance is pickled: no change of a class.
                reduced[2][0].pop("__slotnames__", None)
        return reduced


# What code asks its module for without naming it, as a relative import does.
_MODULE_NAMES = ("__package__", "__path__", "__file__")


class _SendingPickler(_Pickler):
    """For what goes to workers: there, `__main__` is one for all that comes (_main_names.py)."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._sent: set[str] = set()
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
        values: dict[str, Value] = {}
        todo = list(wanted)
        if self._by_id is None:
            names = _main_names.home()
            self._by_id = _names_by_id(names)
            todo += [name for name in _MODULE_NAMES if name in names]
        for name in todo:  # which grows
            if name in self._sent or name == "__builtins__":
                continue
            self._sent.add(name)
            values[name], used = pickle_main_value(name, self._by_id)
            todo += used
        return values


class _Globals:
    """Pickles as the dict of the globals of `__main__`, with these values in it."""

    def __init__(self, values: dict[str, Value]) -> None:
        self._values = values

    def __reduce__(self) -> Any:
        return _main_names.receive, (self._values,)


class _ValuePickler(_Pickler):
    """Pickles what one name of `__main__` is bound to; what other names are bound to, as these.

    So nothing of one value is in the bytes of another, and what is one object stays one.
    """

    def __init__(self, file: io.BytesIO, name: str, value: Any, by_id: dict[int, str]) -> None:
        super().__init__(file, protocol=5)
        self.used: dict[str, None] = {}  # in the order of the pickle
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
        if name is None:
            return None
        if obj is self._value and name == self._name and type(obj) not in (dict, list):
            return None  # the pickler remembers it from its beginning on
        if name != self._name:
            self.used[name] = None
        return _copied(name)

    def reducer_override(self, obj: Any) -> Any:
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
        and kind not in _Pickler.dispatch_table
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


def _names_by_id(names: dict[str, Any]) -> dict[int, str]:
    found: dict[int, str] = {}
    for name, value in list(names.items()):
        if not isinstance(value, _VALUES) and not name.startswith("__") and not _crosses(value):
            found.setdefault(id(value), name)
    return found


def _crosses(value: Any) -> bool:
    """True for what is imported into `__main__` from a module that workers can import, too."""
    return isinstance(value, (type, types.FunctionType)) and value.__module__ != "__main__"


def pickle_main_value(name: str, by_id: dict[int, str] | None = None) -> tuple[Value, list[str]]:
    """The value of a global of `__main__`, and the names of the other ones that it needs.

    Args:
      name: Is bound to something.
      by_id: What `_names_by_id` says, if it was asked already.
    """
    names = _main_names.home()
    value = names[name]
    if type(value) in (type(None), bool, int, float, str, bytes):
        return (pickle.dumps(value, protocol=5), 0), []
    state = _state_of(value) if type(value) is types.FunctionType else None
    if state is not None:
        known = _pickled_functions.get(value)
        if known is not None and known[0] == (name, *state):
            return (known[1], 0), known[2]
    file = io.BytesIO()
    pickler = _ValuePickler(file, name, value, _names_by_id(names) if by_id is None else by_id)
    pickler.dump_value()
    data = file.getvalue()
    used = [other for other in pickler.used if other in names]
    if state is not None:
        _pickled_functions[value] = ((name, *state), data, used)
    tells = _main_names.forks_workers() and not isinstance(value, (*_VALUES, types.FunctionType))
    return (data, id(value) if tells else 0), used


# By function: what it was made of when it was pickled, the bytes, the names it uses.
_pickled_functions: weakref.WeakKeyDictionary[Any, tuple[Any, bytes, list[str]]] = (
    weakref.WeakKeyDictionary()
)


def _state_of(function: types.FunctionType) -> tuple[Any, ...] | None:
    """What tells whether a function is as it was; `None` if that is not told easily."""
    if (
        function.__closure__
        or function.__defaults__
        or function.__kwdefaults__
        or function.__dict__
        or function.__annotations__
        or function.__globals__ is not _main_names.home()
    ):
        return None
    code = function.__code__
    used = cloudpickle.cloudpickle._extract_code_globals(code)  # which remembers them
    present = [name for name in used if name in function.__globals__]
    return code, function.__qualname__, function.__doc__, present, len(sys.modules)


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


def _dumps(value: Any) -> bytes:
    file = io.BytesIO()
    _SendingPickler(file, protocol=5).dump(value)
    return file.getvalue()


class _LeafPickler(_Pickler):
    """Pickles leaves of elements: buffers out of band, torch tensors as arrays."""

    def reducer_override(self, obj: Any) -> Any:
        # By name: torch is not imported for this.
        if type(obj).__module__ == "torch" and type(obj).__name__ == "Tensor":
            reduced = _reduce_tensor(obj)
            if reduced is not None:
                return reduced
        return super().reducer_override(obj)


class _ArgumentPickler(_LeafPickler, _SendingPickler):
    """For what goes to workers with each job."""


class _ResultPickler(_LeafPickler):
    """For what workers send back.

    A class that the caller has is that class there, and stays as it is: not what a worker knows
    is right, but what the caller does.
    """

    def reducer_override(self, obj: Any) -> Any:
        reduced = super().reducer_override(obj)
        if isinstance(obj, type) and isinstance(reduced, tuple) and len(reduced) == 6:
            make, args, state, *_ = reduced
            state = state, reduced[5]
            return _make_returned_class, (make, args), state, None, None, _set_up_class
        return reduced


# Classes that results brought here, and that are not those of this process.
_foreign_classes: weakref.WeakSet[type] = weakref.WeakSet()


def _make_returned_class(make: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    # Next to last is the number by which cloudpickle knows it.
    found = cloudpickle.cloudpickle._DYNAMIC_CLASS_TRACKER_BY_ID.get(args[-2])
    if found is not None:
        return found
    made = make(*args)
    _foreign_classes.add(made)
    return made


def _set_up_class(made: Any, state: tuple[Any, Callable[..., Any]]) -> None:
    if made in _foreign_classes:
        state[1](made, state[0])


def _reduce_tensor(tensor: Any) -> Any:
    """A plain tensor as the array over the same memory; `None` for every other kind."""
    torch = sys.modules["torch"]
    if (
        tensor.device.type != "cpu"
        or tensor.layout != torch.strided
        or tensor.is_nested
        or tensor.requires_grad
        or tensor.is_quantized
        or tensor.is_conj()
        or tensor.is_neg()
        or tensor.__dict__
    ):
        return None
    axes = None
    if not tensor.is_contiguous():
        # Axes may only have been exchanged, as those of an image whose channels go first.
        order = sorted(range(tensor.dim()), key=tensor.stride, reverse=True)
        tensor = tensor.permute(order)
        if not tensor.is_contiguous():
            return None
        axes = [order.index(axis) for axis in range(tensor.dim())]
    try:
        return _tensor_from_array, (tensor.numpy(), None, axes)
    except TypeError:  # a dtype that NumPy has not
        integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32}.get(tensor.element_size())
        if integers is None:
            return None
        name = str(tensor.dtype).removeprefix("torch.")
        return _tensor_from_array, (tensor.view(integers).numpy(), name, axes)


def _tensor_from_array(array: Any, view_as: str | None, axes: list[int] | None) -> Any:
    torch: Any = importlib.import_module("torch")
    tensor = torch.from_numpy(array)
    if view_as is not None:
        tensor = tensor.view(getattr(torch, view_as))
    return tensor if axes is None else tensor.permute(axes)


def pickle_objects(objects: list[Any], min_shared_bytes: int) -> tuple[bytes, list[Any]]:
    """Pickles a list for a worker; buffers of at least `min_shared_bytes` come beside it."""
    return _pickle_leaves(_ArgumentPickler, objects, min_shared_bytes)


def pickle_results(objects: list[Any], min_shared_bytes: int) -> tuple[bytes, list[Any]]:
    """As `pickle_objects`, for the way back."""
    return _pickle_leaves(_ResultPickler, objects, min_shared_bytes)


def _pickle_leaves(
    pickler: type[_LeafPickler], objects: list[Any], min_shared_bytes: int
) -> tuple[bytes, list[Any]]:
    buffers: list[pickle.PickleBuffer] = []

    def keep_in_band(buffer: pickle.PickleBuffer) -> bool:
        with buffer.raw() as view:
            if view.nbytes < min_shared_bytes:
                return True
        buffers.append(buffer)
        return False

    file = io.BytesIO()
    pickler(file, protocol=5, buffer_callback=keep_in_band).dump(objects)
    return file.getvalue(), buffers


def unpickle_objects(data: bytes, buffers: list[Any]) -> list[Any]:
    """The other way round."""
    objects: list[Any] = pickle.loads(data, buffers=buffers)
    return objects


def pickle_dtype(dtype: Any) -> bytes:
    return pickle.dumps(dtype, protocol=5)


def unpickle_dtype(data: bytes) -> Any:
    return pickle.loads(data)


# ---- on the way in ---------------------------------------------------------------------------


def dump_function(function: Any) -> bytes:
    """Pickles a function that a pool's workers are to call.

    Raises:
      StookError: Something in it cannot be pickled; the message says what and where it hangs.
    """
    try:
        return _dumps(function)
    except Exception:
        dump_for_workers({"function": function})  # raises, and says why
        raise


def dump_for_workers(parts: dict[str, Any]) -> bytes:
    """Pickles what workers start with.

    Args:
      parts: By the name under which the user knows it, such as `transform`.

    Raises:
      StookError: Something in it cannot be pickled; the message says what and where it hangs.
    """
    try:
        data = _dumps(parts)
    except Exception as error:
        path, culprit = _find_culprit(parts)
        raise StookError(
            f"{path} cannot be sent to worker processes: {_shown(culprit)} cannot be pickled"
            f" ({type(error).__name__}: {error}). Open it in the workers"
            " (MultiprocessingOptions(worker_init_fn=...), or on first use), or pass"
            " start_method='fork': forked workers inherit everything"
        ) from error
    return data


def warn_of_large(data: bytes, parts: dict[str, Any]) -> None:
    """Warns if `data`, which `dump_for_workers` made of `parts`, is large."""
    if len(data) <= _LARGE_PAYLOAD:
        return
    sizes = {name: len(_dumps(part)) for name, part in parts.items()}
    largest = max(sizes, key=lambda name: sizes[name])
    warnings.warn(
        f"starting the workers sends them {len(data) >> 20} MiB, most of it in {largest};"
        " consider a source that opens its data in the workers, or start_method='fork'",
        RuntimeWarning,
        stacklevel=users_stacklevel(),
    )


def users_stacklevel() -> int:
    """`stacklevel` with which the caller's warning shows the user's line, not one of this package.

    (`skip_file_prefixes` does it from Python 3.12 on.)
    """
    level = 1
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame = frame.f_back
        level += 1
    return level


def track_classes() -> None:
    """Before a fork: lets instances of classes of `__main__` come back as of the same classes.

    cloudpickle recognizes a class by a number that it gives it when it is first pickled. Here they
    are all given, so that parent and children have the same ones.
    """
    _main_names.will_fork()
    seen: set[type] = set()
    found: list[type] = [object]
    while found:
        for kind in type.__subclasses__(found.pop()):
            if kind in seen:
                continue
            seen.add(kind)
            found.append(kind)
            if kind.__module__ == "__main__" or "<locals>" in kind.__qualname__:
                with contextlib.suppress(Exception):  # a class that cannot be a key of a dict
                    cloudpickle.cloudpickle._get_or_create_tracker_id(kind)


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except Exception:
        return f"a {type(value).__name__}"
    return text if len(text) <= 80 else text[:77] + "..."


def _pickles(value: Any) -> bool:
    try:
        _dumps(value)
    except Exception:
        return False
    return True


def _find_culprit(parts: dict[str, Any]) -> tuple[str, Any]:
    """The path to the innermost object that cannot be pickled, and the object."""
    for name, part in parts.items():
        if not _pickles(part):
            path, value = name, part
            break
    else:
        return "the loader", parts
    seen: set[int] = set()
    while id(value) not in seen:
        seen.add(id(value))
        for step, child in _children(value):
            if id(child) not in seen and not _pickles(child):
                path, value = path + step, child
                break
        else:
            break
    return path, value


def _children(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield f"[{key!r}]", item
    elif isinstance(value, (list, tuple, set, frozenset)):
        for number, item in enumerate(value):
            yield f"[{number}]", item
    elif isinstance(value, types.MethodType):
        yield ".__self__", value.__self__
        yield ".__func__", value.__func__
    elif isinstance(value, types.FunctionType):
        names = value.__code__.co_freevars
        for name, cell in zip(names, value.__closure__ or (), strict=False):
            try:
                yield f" (closure variable {name!r})", cell.cell_contents
            except ValueError:
                continue
        for name in value.__code__.co_names:
            if name in value.__globals__:
                yield f" (global {name!r})", value.__globals__[name]
        for default in value.__defaults__ or ():
            yield " (default argument)", default
    else:
        state = getattr(value, "__dict__", None)
        if isinstance(state, dict):
            for name, item in state.items():
                yield f".{name}", item
        for name in getattr(type(value), "__slots__", ()):
            if isinstance(name, str) and hasattr(value, name):
                yield f".{name}", getattr(value, name)
        if isinstance(value, functools.partial):
            yield ".func", value.func
            yield ".args", value.args
            yield ".keywords", value.keywords
