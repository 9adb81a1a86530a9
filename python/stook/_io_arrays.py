"""`load_npy` and `load_npz` of `stook.io`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from . import _core

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ._io_source import Source

__all__ = ["load_npy", "load_npz"]


def load_npy(source: Source) -> NDArray[Any]:
    """Reads an array from a file of NumPy's `.npy` format.

    As `numpy.load`, but the GIL is not held while the items are read, so that threads read in
    parallel; and the items go straight into the result, which in a worker process of Stook lies in
    shared memory.

    Args:
        source: A path, a part of a file as `(path, offset, length)`, or the bytes of the file:
            `bytes` or any C-contiguous buffer of bytes, such as an `mmap`. It must not be changed
            while it is read. What follows the array is not looked at.

    Returns:
        A new array of the dtype, shape and order (C or Fortran) that the file names; its dtype may
        be any without Python objects, structured ones included. It is writable and never maps the
        file.

    Raises:
        DecodeError: If `source` is no `.npy` file of format version 1, 2 or 3, its header is not
            of the form that NumPy writes or longer than 1 MiB, it ends early, it holds pickled
            objects, or the file has no such part. Sizes are checked before memory is taken. The
            message names the source.
        OSError: If the file cannot be read, for example `FileNotFoundError`, with `errno` and
            `filename`. A pipe may give 1 GiB.
        TypeError: If `source` is no path, part of a file or buffer of bytes.
        ValueError: If `source` is not contiguous.
        MemoryError: If there is no memory for the result.

    Example:
        >>> import io
        >>> import numpy as np
        >>> import stook.io
        >>> file = io.BytesIO()
        >>> np.save(file, np.arange(6, dtype=">i2").reshape(2, 3))
        >>> stook.io.load_npy(file.getvalue())
        array([[0, 1, 2],
               [3, 4, 5]], dtype='>i2')
    """
    array: NDArray[Any] = _core.load_npy(source)
    return array


def load_npz(source: Source, *, names: Iterable[str] | None = None) -> dict[str, NDArray[Any]]:
    """Reads the arrays of a file as `numpy.savez` and `numpy.savez_compressed` make them.

    The GIL is not held while members are read and inflated. Stored and deflated members are read,
    of archives of any size (zip64), and checked against their CRC-32.

    Args:
        source: As for `load_npy`; a pipe is read to its end first.
        names: The arrays to read, by the names they were saved under; `None` for all. Members that
            are not named are not looked at.

    Returns:
        Arrays by name, in the order of the archive. Unlike what `numpy.load` returns it is a plain
        dict of arrays that are there, and no file stays open.

    Raises:
        DecodeError: If `source` is no zip archive, it is cut or damaged, or a member is encrypted,
            compressed otherwise, or not what `load_npy` reads. The message names source and member.
        KeyError: If there is no array of a name.
        OSError: As for `load_npy`.
        TypeError: If `source` is no path, part of a file or buffer of bytes, or `names` is a
            single `str`.
        ValueError: If `source` is not contiguous.
        MemoryError: If there is no memory for the arrays.

    Example:
        >>> import io
        >>> import numpy as np
        >>> import stook.io
        >>> file = io.BytesIO()
        >>> np.savez_compressed(file, image=np.zeros((2, 2)), label=np.int64(3))
        >>> arrays = stook.io.load_npz(file.getvalue())
        >>> arrays["image"].shape, int(arrays["label"])
        ((2, 2), 3)
        >>> list(stook.io.load_npz(file.getvalue(), names=["label"]))
        ['label']
    """
    if isinstance(names, str):
        raise TypeError(f"names must be several names, not one str; pass [{names!r}]")
    wanted = None if names is None else set(names)
    arrays: dict[str, NDArray[Any]] = _core.load_npz(source, wanted)
    if wanted is not None and len(arrays) < len(wanted):
        missing = ", ".join(sorted(map(repr, wanted - arrays.keys())))
        raise KeyError(f"the archive has no array {missing}")
    return arrays
