"""Elements on JAX's devices, without a copy on the way where JAX can do without.

JAX is imported when something here is called.

Example:
  >>> import numpy as np, stook, stook.jax
  >>> loader = stook.DataLoader(range(2), lambda i: np.full(2000, i, np.float32))
  >>> [float(array.sum()) for array in loader.prefetch_to(stook.jax.device_put)]
  [0.0, 2000.0]
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

import numpy as np

__all__ = ["device_put", "make_array_from_process_local_data"]

# What JAX has no arrays of: such leaves stay as they are.
_NO_NUMBERS = "OSUMmV"


def device_put(tree: Any, device: Any = None) -> Any:
    """Puts the arrays of an element on a device, as `jax.device_put` does.

    On the CPU JAX's array is the delivered memory itself, if its dtype is one of JAX's and its
    elements lie one after the other; then nothing is copied. For other devices the transfer starts
    from that memory, and may go on when this returns. Either way JAX holds the memory for as long
    as it needs it, and it is used for nothing else meanwhile; NumPy's arrays become read-only, as
    what is written into them could be seen, or not, in JAX's.

    Args:
      tree: Dicts, lists, tuples and what else JAX knows as a tree. Leaves that are no arrays or
        numbers (`str`, `bytes`, objects, dates) stay as they are.
      device: A `jax.Device` or a `Sharding`; `None`: the default device.

    Returns:
      A tree of the same form, with `jax.Array`s. As everywhere in JAX, dicts come with their keys
      sorted, and 64-bit numbers become 32-bit ones unless `jax_enable_x64` is set.

    Raises:
      ImportError: JAX is not installed.

    Example:
      >>> import numpy as np, stook.jax
      >>> stook.jax.device_put({"x": np.ones((2, 2), np.float32), "name": "ones"})["name"]
      'ones'
    """
    jax = _jax()
    return _put(jax, tree, lambda leaves: jax.device_put(leaves, device))


def make_array_from_process_local_data(sharding: Any, tree: Any, global_shape: Any = None) -> Any:
    """The same with `jax.make_array_from_process_local_data`, for each array of an element.

    Args:
      sharding: Of the whole arrays, of which this process has a part.
      tree: As for `device_put`.
      global_shape: Of the whole array, if it does not follow from the sharding.

    Returns:
      A tree of the same form, with `jax.Array`s.

    Raises:
      ImportError: JAX is not installed.
    """
    jax = _jax()
    make = functools.partial(
        jax.make_array_from_process_local_data, sharding, global_shape=global_shape
    )
    return _put(jax, tree, lambda leaves: [make(np.asarray(leaf)) for leaf in leaves])


def _put(jax: Any, tree: Any, put: Callable[[list[Any]], list[Any]]) -> Any:
    leaves, form = jax.tree_util.tree_flatten(tree)
    places = [place for place, leaf in enumerate(leaves) if _is_numeric(leaf)]
    made = put([leaves[place] for place in places])
    for place, array in zip(places, made, strict=True):
        if isinstance(leaves[place], np.ndarray):
            leaves[place].flags.writeable = False
        leaves[place] = array
    return jax.tree_util.tree_unflatten(form, leaves)


def _is_numeric(leaf: Any) -> bool:
    if isinstance(leaf, (np.ndarray, np.generic)):
        # bfloat16 and the like are of kind V as well, but have no fields and a type of their own.
        return leaf.dtype.kind not in _NO_NUMBERS or (
            leaf.dtype.kind == "V" and leaf.dtype.type is not np.void
        )
    return (
        isinstance(leaf, (bool, int, float, complex))
        or hasattr(leaf, "__jax_array__")
        or (type(leaf).__module__.partition(".")[0] in ("jax", "jaxlib"))
    )


def _jax() -> Any:
    try:
        # By name: types are checked without it, too.
        return importlib.import_module("jax")
    except ImportError as error:
        raise ImportError("stook.jax needs JAX: install it with `pip install jax`") from error
