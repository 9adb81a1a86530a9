"""`stook.io.TarIndex`: the members of a tar archive, each where it lies."""

from __future__ import annotations

import operator
import os
import stat
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple, SupportsIndex, overload

from . import _core
from .errors import DecodeError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["FilePart", "TarIndex", "TarSample"]


class FilePart(NamedTuple):
    """A part of a file: a `source` of everything in `stook.io`.

    Attributes:
        file: The path.
        offset: Where the part begins, in bytes.
        length: How many bytes it has.

    Example:
        >>> import stook.io
        >>> part = stook.io.FilePart("shard.tar", 512, 2048)
        >>> part.offset, part.length
        (512, 2048)
    """

    file: str
    offset: int
    length: int

    def read(self) -> bytes:
        """The bytes of the part, read from the file, which is opened and closed again.

        Raises:
            DecodeError: If the file has no such part (any more).
            OSError: If the file cannot be read.
        """
        with open(self.file, "rb") as file:
            file.seek(self.offset)
            content = file.read(self.length)
        if len(content) < self.length:
            end = self.offset + self.length
            raise DecodeError(
                f"cannot decode {self.file}[{self.offset}:{end}]: the file has {len(content)} of"
                f" these {self.length} bytes; was it cut or replaced?"
            )
        return content


TarSample = dict[str, "str | FilePart"]
"""What an index of a `TarIndex` gives: `"__key__"`, and a `FilePart` for each ending."""


class TarIndex(Sequence[TarSample]):
    """Random access to the samples of a tar archive in the manner of WebDataset.

    Neighbouring members whose names agree up to the first dot of the last path component are one
    sample; what follows that dot, in lower case, tells its parts apart. The headers are read once,
    when the index is made; the content of a member is read when it is asked for, from where it
    lies, by `part.read()` or by the functions of `stook.io`, which take a part as a source.

    It is a `source` for `DataLoader`: it can be pickled, holds no open file, and its tables lie
    in memory once for all workers.

    Formats: v7, ustar, GNU and pax, uncompressed. Folders, symbolic links and devices are passed
    over, a hard link is the file that it leads to, and what has no dot in its name, or nothing in
    front of the first, belongs to no sample; `members` has it.

    Args:
        path: The archive. It must be readable for the workers, under the same path.
        allow_truncated: Accept an archive that ends early, and take the members that are whole.

    Raises:
        DecodeError: If the file is no tar archive, is compressed or damaged, ends early, holds
            sparse files, or two members of one sample have the same ending.
        ValueError: If it is a pipe.
        OSError: If the file cannot be read, with `errno` and `filename`.

    Example:
        >>> import io, os, tarfile, tempfile
        >>> import stook
        >>> folder = tempfile.TemporaryDirectory()
        >>> path = os.path.join(folder.name, "shard.tar")
        >>> with tarfile.open(path, "w") as tar:
        ...     for name in ("000.txt", "000.cls", "001.txt", "001.cls"):
        ...         member = tarfile.TarInfo(name)
        ...         member.size = len(name)
        ...         tar.addfile(member, io.BytesIO(name.encode()))
        >>> shard = stook.io.TarIndex(path)
        >>> len(shard), shard[1]["__key__"], shard[1]["cls"].read()
        (2, '001', b'001.cls')
        >>> list(stook.DataLoader(shard, lambda sample: sample["txt"].read()))
        [b'000.txt', b'001.txt']
        >>> folder.cleanup()
    """

    __slots__ = ("_ends", "_member_ends", "_members", "_names", "_offsets", "_path", "_sizes")

    def __init__(self, path: str | os.PathLike[str], *, allow_truncated: bool = False) -> None:
        # Absolute, for workers that run elsewhere.
        self._path: str = os.path.abspath(os.fsdecode(path))
        if stat.S_ISFIFO(os.stat(self._path).st_mode):  # its members could not be read afterwards
            raise ValueError(
                f"TarIndex reads members where they lie, and {self._path!r} is a pipe; save the"
                " archive to a file first"
            )
        self._names: NDArray[np.uint8]
        self._member_ends: NDArray[np.int64]
        self._offsets: NDArray[np.int64]
        self._sizes: NDArray[np.int64]
        self._members: NDArray[np.int64]
        self._ends: NDArray[np.int64]
        (
            self._names,
            self._member_ends,
            self._offsets,
            self._sizes,
            self._members,
            self._ends,
        ) = _core.index_tar(self._path, allow_truncated)

    @property
    def path(self) -> str:
        """The archive, as an absolute path."""
        return self._path

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: SupportsIndex) -> TarSample: ...
    @overload
    def __getitem__(self, index: slice) -> list[TarSample]: ...
    def __getitem__(self, index: SupportsIndex | slice) -> TarSample | list[TarSample]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        number = operator.index(index)
        length = len(self._ends)
        if not -length <= number < length:
            raise IndexError(f"sample {number} of {self._path}, which has {length}")
        number %= length
        begin = int(self._ends[number - 1]) if number else 0
        sample: TarSample = {}
        for member in self._members[begin : self._ends[number]].tolist():
            name = self._name(member)
            dot = name.index(".", name.rfind("/") + 2)
            sample.setdefault("__key__", name[:dot])
            sample[_lower(name[dot + 1 :])] = self._part(member)
        return sample

    def members(self) -> Iterator[tuple[str, FilePart]]:
        """Name and place of every file of the archive, in its order."""
        for member in range(len(self._sizes)):
            yield self._name(member), self._part(member)

    def _name(self, member: int) -> str:
        begin = int(self._member_ends[member - 1]) if member else 0
        name = self._names[begin : self._member_ends[member]].tobytes()
        return name.decode("utf-8", "surrogateescape")

    def _part(self, member: int) -> FilePart:
        return FilePart(self._path, int(self._offsets[member]), int(self._sizes[member]))

    def __getstate__(self) -> tuple[object, ...]:
        return tuple(getattr(self, name) for name in sorted(self.__slots__))

    def __setstate__(self, state: tuple[object, ...]) -> None:
        for name, value in zip(sorted(self.__slots__), state, strict=True):
            setattr(self, name, value)

    def __repr__(self) -> str:
        return f"TarIndex({self._path!r}): {len(self)} samples"


def _lower(ending: str) -> str:
    """ASCII alone, as the index compares endings."""
    return ending.encode("utf-8", "surrogateescape").lower().decode("utf-8", "surrogateescape")
