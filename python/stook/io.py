"""Reading images and arrays without the GIL, straight into the memory of the result.

JPEG is decoded by libjpeg-turbo; the pixels are those of its own `djpeg`, bit for bit. In a worker
process of Stook the result is born in shared memory, as every array is that NumPy allocates there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from stook import _core
from stook._resized_crop import (
    DEFAULT_MAX_PIXELS,
    checked_max_pixels,
    checked_mode,
    decode_batch,
    decode_resized_crop,
)

from ._io_arrays import load_npy, load_npz
from ._tar_index import FilePart, TarIndex, TarSample

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ._io_source import Source

__all__ = [
    "DEFAULT_MAX_PIXELS",
    "FilePart",
    "JpegInfo",
    "TarIndex",
    "TarSample",
    "decode_batch",
    "decode_jpeg",
    "decode_resized_crop",
    "jpeg_info",
    "load_npy",
    "load_npz",
]


@dataclass(frozen=True, slots=True)
class JpegInfo:
    """What the header of a JPEG says.

    Attributes:
        width: Columns as stored, in pixels, before any turning by `orientation`.
        height: Rows as stored, in pixels.
        components: Colour components: 1 (grey), 3 or 4 in practice.
        color_space: How the components are to be read: `"grayscale"`, `"YCbCr"`, `"RGB"`, `"CMYK"`,
            `"YCCK"`, or `"unknown"`, which `decode_jpeg` does not accept.
        subsampling: Resolution of the colour components in the usual notation, such as `"4:2:0"`;
            None for grey images and for sampling factors without a name.
        progressive: Whether the image comes in several scans of growing detail.
        arithmetic: Whether it is coded arithmetically instead of with Huffman codes.
        orientation: Exif orientation, 1 to 8. 1 means upright, and also stands for a file that
            names none, an invalid one, or whose Exif data are damaged.
    """

    width: int
    height: int
    components: int
    color_space: str
    subsampling: str | None
    progressive: bool
    arithmetic: bool
    orientation: int


def decode_jpeg(
    source: Source,
    *,
    mode: Literal["RGB", "L"] = "RGB",
    out: NDArray[np.uint8] | None = None,
    max_pixels: int | None = DEFAULT_MAX_PIXELS,
    allow_truncated: bool = False,
    apply_orientation: bool = False,
) -> NDArray[np.uint8]:
    """Decodes a JPEG into an array.

    The GIL is not held while the file is read and decoded, so threads decode in parallel.

    Colours are handed on as stored; embedded colour profiles are not applied. Grey images become
    RGB by repeating the value. `"L"` of a YCbCr image is its first component, as stored. CMYK and
    YCCK become RGB as `round(C * K / 255)` and so on, where a file with an Adobe marker holds
    inverted values (255 means no ink) and any other file is inverted first; `"L"` is then the luma
    of that RGB.

    Args:
        source: A path (`str` or `os.PathLike`); a part of a file as `(path, offset, length)`; or
            the JPEG itself: `bytes` or any C-contiguous buffer of bytes, such as a `memoryview`, a
            `bytearray` or a `uint8` array. It must not be changed while it is decoded.
        mode: `"RGB"` for an array of shape (height, width, 3), `"L"` (luma) for (height, width).
        out: The array to decode into instead of a new one: dtype `uint8`, exactly the right shape,
            writable. Rows may lie apart (or upside down), pixels of a row must be contiguous.
            After an error its content is undefined.
        max_pixels: The most pixels (width times height) that the header may name; `None` for no
            limit. Checked before any memory is taken for them.
        allow_truncated: Accept an image whose data end early, and fill in what is missing as
            libjpeg does: grey, or the last known coarse version of a progressive image. The
            header must be complete.
        apply_orientation: Turn and mirror the image the way its Exif orientation says. Where
            that is a quarter turn, height and width of the result change places.

    Returns:
        `out`, or a new C-contiguous `uint8` array.

    Raises:
        DecodeError: If `source` is empty, no JPEG, of an unsupported kind (12 bits a sample,
            lossless, components of unknown meaning), corrupt, truncated, larger than `max_pixels`,
            or has more than 100 scans; or if the file has no such part. The message names the
            source and the decoder's reason.
        OSError: If the file cannot be read, for example `FileNotFoundError` or
            `IsADirectoryError`, with `errno` and `filename`; `EFBIG` above 1 GiB.
        TypeError: If `source` is no path, part of a file or buffer of bytes, or `out` is not a
            `uint8` array.
        ValueError: If `mode` is unknown, `max_pixels` below 1, `source` not contiguous, or `out`
            has the wrong shape or layout, is read-only, or shares memory with `source`.
        MemoryError: If there is no memory for the result or for decoding.

    Example:
        >>> import base64
        >>> import stook.io
        >>> jpeg = base64.b64decode(
        ...     "/9j/2wBDAAEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEB"
        ...     "AQEBAQEBAQEBAQEBAQEBAQH/wAALCAACAAMBAREA/8QAFAABAAAAAAAAAAAAAAAAAAAACv/E"
        ...     "ABkQAAIDAQAAAAAAAAAAAAAAAAUJADl4tf/aAAgBAQAAPwBPSCKbV7Z/D9w9P//Z"
        ... )
        >>> stook.io.decode_jpeg(jpeg, mode="L")
        array([[  0, 128, 255],
               [  0, 128, 255]], dtype=uint8)
        >>> stook.io.decode_jpeg(jpeg).shape
        (2, 3, 3)
        >>> stook.io.decode_jpeg(jpeg[:-1])
        Traceback (most recent call last):
        ...
        stook.errors.DecodeError: cannot decode <bytes of 155 bytes>: Premature end of ...
    """
    gray = checked_mode(mode)
    decoded: NDArray[np.uint8] = _core.decode_jpeg(
        source, out, gray, checked_max_pixels(max_pixels), allow_truncated, apply_orientation
    )
    return decoded


def jpeg_info(source: Source) -> JpegInfo:
    """Reads the header of a JPEG, without decoding and, from a file, without reading all of it.

    Args:
        source: As for `decode_jpeg`.

    Returns:
        What the header says. Nothing in it is a promise that the image behind it can be decoded.

    Raises:
        DecodeError: If `source` is empty, no JPEG, of an unsupported kind, or ends before the image
            data begin, or if the file has no such part.
        OSError: If the file cannot be read, with `errno` and `filename`.
        TypeError: If `source` is no path, part of a file or buffer of bytes.
        ValueError: If `source` is not contiguous.

    Example:
        >>> import base64
        >>> import stook.io
        >>> jpeg = base64.b64decode(
        ...     "/9j/2wBDAAEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEB"
        ...     "AQEBAQEBAQEBAQEBAQEBAQH/wAALCAACAAMBAREA/8QAFAABAAAAAAAAAAAAAAAAAAAACv/E"
        ...     "ABkQAAIDAQAAAAAAAAAAAAAAAAUJADl4tf/aAAgBAQAAPwBPSCKbV7Z/D9w9P//Z"
        ... )
        >>> info = stook.io.jpeg_info(jpeg)
        >>> info.width, info.height, info.color_space, info.orientation
        (3, 2, 'grayscale', 1)
    """
    return JpegInfo(*_core.jpeg_info(source))
