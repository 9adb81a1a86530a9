"""What is pickled, and how: functions and data sets on their way in, odd leaves on their way out.

cloudpickle in both directions: it takes lambdas, closures and the functions of a notebook by value,
and it remembers which class of `__main__` it has sent, so that an instance which comes back is one
of the same class.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import os
import pickle
import sys
import types
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import cloudpickle  # type: ignore[import-untyped]

from . import _main_names
from ._main_values import SendingPickler, pickle_by_name
from ._memory_maps import reduce_mapped
from ._picklers import Pickler
from ._signal_handlers import raised_by_one
from .errors import StookError

__all__ = [
    "dump_for_workers",
    "dump_function",
    "pickle_dtype",
    "pickle_error",
    "pickle_objects",
    "pickle_results",
    "track_classes",
    "unpickle_dtype",
    "unpickle_objects",
    "users_stacklevel",
    "warn_of_large",
]

_LARGE_PAYLOAD = 100 << 20
# A buffer that is worth pages of its own.
_LARGE_BUFFER = 1 << 18
_PACKAGE = os.path.dirname(__file__) + os.sep


class _StartPickler(SendingPickler):
    """For what workers are started with: what lies in a file stays there."""

    def reducer_override(self, obj: Any) -> Any:
        kind = type(obj)
        if kind.__module__ == "numpy" and kind.__name__ in ("ndarray", "memmap"):
            reduced = None if obj.base is None else reduce_mapped(obj)
            if reduced is not None:
                return reduced
        return super().reducer_override(obj)


def _dumps(value: Any, buffers: list[pickle.PickleBuffer] | None = None) -> bytes:
    """`buffers`: takes the large ones, which else are part of what is returned."""

    def keep_in_band(buffer: pickle.PickleBuffer) -> bool:
        if buffers is None:
            return True
        with buffer.raw() as view:
            if view.nbytes < _LARGE_BUFFER:
                return True
        buffers.append(buffer)
        return False

    file = io.BytesIO()
    _dump(_StartPickler(file, protocol=5, buffer_callback=keep_in_band), value)
    return file.getvalue()


class _LeafPickler(Pickler):
    """Pickles leaves of elements: buffers out of band, torch tensors as arrays."""

    def reducer_override(self, obj: Any) -> Any:
        # By name: torch is not imported for this.
        if type(obj).__module__ == "torch" and type(obj).__name__ == "Tensor":
            reduced = _reduce_tensor(obj)
            if reduced is not None:
                return reduced
        return super().reducer_override(obj)


class _ArgumentPickler(_LeafPickler, SendingPickler):
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
    """As `pickle_objects`, for the way back; says of what it raises that it was raised here."""
    try:
        return _pickle_leaves(_ResultPickler, objects, min_shared_bytes)
    except BaseException as error:
        with contextlib.suppress(Exception):  # a class that forbids attributes
            error._stook_unsendable = ", ".join(map(_shown, objects)) or "it"  # type: ignore[attr-defined]
        raise


def pickle_error(error: Any) -> bytes:
    """Pickles what is part of an error on the way back."""
    file = io.BytesIO()
    _dump(_ResultPickler(file, protocol=5), error)
    return file.getvalue()


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
    _dump(pickler(file, protocol=5, buffer_callback=keep_in_band), objects)
    return file.getvalue(), buffers


def _dump(pickler: Any, value: Any) -> None:
    try:
        pickler.dump(value)
    except BaseException:
        # Python 3.10's collector of cycles does not look into it, so that what failed would live
        # for ever: the error's traceback leads back to it.
        pickler.clear_memo()
        raise


def unpickle_objects(data: bytes, buffers: list[Any]) -> list[Any]:
    """The other way round."""
    try:
        objects: list[Any] = pickle.loads(data, buffers=buffers)
    finally:
        utilities = sys.modules.get("torch._utils")
        # torch keeps the sparse tensors that it unpickles until its own loading does this.
        if utilities is not None and getattr(utilities, "_sparse_tensors_to_validate", None):
            utilities._validate_loaded_sparse_tensors()
    return objects


def pickle_dtype(dtype: Any) -> bytes:
    return pickle.dumps(dtype, protocol=5)


def unpickle_dtype(data: bytes) -> Any:
    return pickle.loads(data)


# ---- on the way in ---------------------------------------------------------------------------


def dump_function(function: Any) -> bytes:
    """Pickles a function that a pool's workers are to call.

    If it is the same object as last time, workers that have it need no other.

    Raises:
      StookError: Something in it cannot be pickled; the message says what and where it hangs.
    """
    try:
        return pickle_by_name(function) or _dumps(function)
    except Exception as error:
        if raised_by_one(error):
            raise
        dump_for_workers({"function": function})  # raises, and says why
        raise


def dump_for_workers(
    parts: dict[str, Any], buffers: list[pickle.PickleBuffer] | None = None
) -> bytes:
    """Pickles what workers start with.

    Args:
      parts: By the name under which the user knows it, such as `transform`.
      buffers: Takes what arrays hold, if it is large; it is to come beside the pickle.

    Raises:
      StookError: Something in it cannot be pickled; the message says what and where it hangs.
    """
    try:
        data = _dumps(parts, buffers)
    except Exception as error:
        if raised_by_one(error):
            raise
        path, culprit = _find_culprit(parts)
        raise StookError(
            f"{path} cannot be sent to worker processes: {_shown(culprit)} cannot be pickled"
            f" ({type(error).__name__}: {error}). Open it in the workers"
            " (in an initializer or worker_init_fn, or on first use), or pass"
            " start_method='fork': forked workers inherit everything"
        ) from error
    return data


def warn_of_large(data: bytes, buffers: list[pickle.PickleBuffer], parts: dict[str, Any]) -> None:
    """Warns if what `dump_for_workers` made of `parts` is large."""
    size = _size_of(data, buffers)
    if size <= _LARGE_PAYLOAD:
        return
    sizes = {}
    for name, part in parts.items():
        beside: list[pickle.PickleBuffer] = []
        sizes[name] = _size_of(_dumps(part, beside), beside)
    largest = max(sizes, key=lambda name: sizes[name])
    warnings.warn(
        f"starting the workers sends them {size >> 20} MiB, most of it in {largest};"
        " consider a source that opens its data in the workers, or start_method='fork'",
        RuntimeWarning,
        stacklevel=users_stacklevel(),
    )


def _size_of(data: bytes, buffers: list[pickle.PickleBuffer]) -> int:
    return len(data) + sum(buffer.raw().nbytes for buffer in buffers)


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
