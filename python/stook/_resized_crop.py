"""From JPEGs to pixels of a trained model's size: `decode_resized_crop` and `decode_batch`."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from stook import _core

if TYPE_CHECKING:
    from numpy.typing import DTypeLike, NDArray

    from ._io_source import Source

DEFAULT_MAX_PIXELS = 178_956_970
"""Pixels above which an image counts as a decompression bomb unless the caller says otherwise.

The number at which Pillow raises `DecompressionBombError`: twice its `MAX_IMAGE_PIXELS`, which is
what fits a quarter of a gibibyte at 3 bytes a pixel. As RGB that is an array of 512 MiB.
"""

_UNLIMITED = 2**63 - 1
_MAX_SIDE = 65_535
_MAX_FLOAT = float(np.finfo(np.float32).max)
_FILTERS = ("box", "bilinear", "hamming", "bicubic", "lanczos")  # the order of decode::Filter
_DTYPES = ("uint8", "float32", "float16")  # the order of decode::ElementType
_Box = tuple[float, float, float, float]
_Channels = tuple[float, float, float]


def checked_mode(mode: str) -> bool:
    """Whether a mode is the grey one; ValueError if it is none."""
    if mode not in ("RGB", "L"):
        raise ValueError(f'mode must be "RGB" or "L", not {mode!r}')
    return mode == "L"


def checked_max_pixels(max_pixels: int | None) -> int:
    """The number for the decoder; ValueError below 1."""
    try:
        limit = _UNLIMITED if max_pixels is None else operator.index(max_pixels)
    except TypeError:
        raise TypeError(f"max_pixels must be an int or None, not {max_pixels!r}") from None
    if limit < 1:
        raise ValueError(f"max_pixels must be at least 1, or None for no limit, not {max_pixels}")
    return min(limit, _UNLIMITED)


@dataclass(frozen=True, slots=True)
class _Recipe:
    """What is done with every image of a batch alike, in the terms of the decoder."""

    size: tuple[int, int]
    gray: bool
    filter: int
    scaled_decode: bool
    element_type: int
    planes: bool
    scale: tuple[float, float, float]
    offset: tuple[float, float, float]
    max_pixels: int
    allow_truncated: bool

    def decode(
        self,
        sources: list[Any],
        boxes: list[_Box | None],
        flips: list[bool],
        batch: bool,
        out: NDArray[Any] | None,
    ) -> tuple[NDArray[Any], list[tuple[int, Exception]]]:
        return _core.decode_resized_crops(
            sources,
            boxes,
            flips,
            *self.size,
            self.gray,
            self.filter,
            self.scaled_decode,
            self.element_type,
            self.planes,
            self.scale,
            self.offset,
            self.max_pixels,
            self.allow_truncated,
            batch,
            out,
        )


def _recipe(
    size: tuple[int, int],
    mode: str,
    filter: str,
    scaled_decode: bool,
    mean: float | Sequence[float] | None,
    std: float | Sequence[float] | None,
    dtype: DTypeLike,
    layout: str,
    max_pixels: int | None,
    allow_truncated: bool,
) -> _Recipe:
    # Checking all of it takes as long as a tenth of a photograph, and most calls are like the last.
    means, stds = _hashable("mean", mean), _hashable("std", std)
    limit = checked_max_pixels(max_pixels)
    arguments = (checked_size(size), mode, filter, bool(scaled_decode), means, stds)
    rest: tuple[Any, ...] = (dtype, layout, limit, bool(allow_truncated))
    try:
        return _checked_recipe(*arguments, *rest)
    except TypeError:  # something that has no hash
        return _checked_recipe.__wrapped__(*arguments, *rest)


def _hashable(name: str, value: Any) -> float | tuple[float, ...] | None:
    if value is None or isinstance(value, (int, float)):
        return value
    try:
        array = np.asarray(value, np.float64)
        return float(array) if array.ndim == 0 else tuple(np.ravel(array).tolist())
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be numbers, not {value!r}") from None


@functools.lru_cache(maxsize=64)
def _checked_recipe(
    size: tuple[int, int],
    mode: str,
    filter: str,
    scaled_decode: bool,
    mean: float | tuple[float, ...] | None,
    std: float | tuple[float, ...] | None,
    dtype: DTypeLike,
    layout: str,
    max_pixels: int,
    allow_truncated: bool,
) -> _Recipe:
    gray = checked_mode(mode)
    check_filter(filter)
    if layout not in ("HWC", "CHW"):
        raise ValueError(f'layout must be "HWC" or "CHW", not {layout!r}')
    try:
        kind = np.dtype(dtype)
    except TypeError:
        kind = None
    if kind is None or kind.name not in _DTYPES or not kind.isnative:
        raise ValueError(f"dtype must be one of {', '.join(_DTYPES)}, not {dtype!r}")
    type_name = kind.name
    if type_name == "uint8" and not (mean is None and std is None):
        raise ValueError('mean and std need dtype "float32" or "float16": uint8 is not normalised')
    count = 1 if gray else 3
    means = _of_channels("mean", 0.0 if mean is None else mean, count)
    stds = _of_channels("std", 1.0 if std is None else std, count)
    if not all(value > 0 for value in stds):
        raise ValueError(f"std must be greater than 0, not {std!r}")
    scale, offset = scale_and_offset(means, stds)
    return _Recipe(
        size=size,
        gray=gray,
        filter=_FILTERS.index(filter),
        scaled_decode=scaled_decode,
        element_type=_DTYPES.index(type_name),
        planes=layout == "CHW",
        scale=scale,
        offset=offset,
        max_pixels=max_pixels,
        allow_truncated=allow_truncated,
    )


def check_filter(filter: str) -> None:
    """ValueError if there is no such filter."""
    if filter not in _FILTERS:
        raise ValueError(f"filter must be one of {', '.join(_FILTERS)}, not {filter!r}")


def scale_and_offset(mean: _Channels, std: _Channels) -> tuple[_Channels, _Channels]:
    """What a pixel is multiplied by, and what is added; ValueError if they are too large."""
    scale = (1 / (255 * std[0]), 1 / (255 * std[1]), 1 / (255 * std[2]))
    offset = (-mean[0] / std[0], -mean[1] / std[1], -mean[2] / std[2])
    if not all(abs(value) <= _MAX_FLOAT for value in (*scale, *offset)):
        raise ValueError(
            f"mean {mean!r} and std {std!r} give numbers that single precision cannot hold"
        )
    return scale, offset


def checked_size(size: tuple[int, int]) -> tuple[int, int]:
    try:
        height, width = (operator.index(side) for side in size)
    except (TypeError, ValueError):
        raise TypeError(f"size must be a pair of ints (height, width), not {size!r}") from None
    if not (1 <= height <= _MAX_SIDE and 1 <= width <= _MAX_SIDE):
        raise ValueError(f"size must be (height, width), each from 1 to {_MAX_SIDE}, not {size!r}")
    return height, width


def _of_channels(name: str, value: float | tuple[float, ...], count: int) -> _Channels:
    """Three numbers, of which a grey image takes the first."""
    values = np.asarray(value, np.float64)
    if values.shape not in ((), (count,)):
        expected = "one number" if count == 1 else "one number, or three of them"
        raise ValueError(f"{name} must be {expected} for this mode, not {value!r}")
    if not np.isfinite(values).all():
        raise ValueError(f"{name} must be finite, not {value!r}")
    first, second, third = np.broadcast_to(values, 3).tolist()
    return first, second, third


def _checked_box(box: Sequence[float] | None) -> _Box | None:
    if box is None:
        return None
    try:
        left, top, right, bottom = map(float, box)
    except OverflowError:
        raise ValueError(f"box must be of finite numbers, not {box!r}") from None
    except (TypeError, ValueError):
        raise TypeError(
            f"box must be four numbers (left, top, right, bottom) or None, not {box!r}"
        ) from None
    if not all(map(math.isfinite, (left, top, right, bottom))):
        raise ValueError(f"box must be of finite numbers, not {box!r}")
    return left, top, right, bottom


def decode_resized_crop(
    source: Source,
    box: Sequence[float] | None,
    size: tuple[int, int],
    *,
    flip: bool = False,
    mode: Literal["RGB", "L"] = "RGB",
    filter: Literal["box", "bilinear", "hamming", "bicubic", "lanczos"] = "bilinear",
    scaled_decode: bool = True,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    dtype: DTypeLike = "uint8",
    layout: Literal["HWC", "CHW"] = "HWC",
    out: NDArray[Any] | None = None,
    max_pixels: int | None = DEFAULT_MAX_PIXELS,
    allow_truncated: bool = False,
) -> NDArray[Any]:
    """Decodes a part of a JPEG to a given size, and nothing but that part.

    Blocks beside and above the box are not transformed, rows below it are not read at all, and the
    rows in between are filtered as they come, so that neither the picture nor the crop ever lies
    in memory. The GIL is not held meanwhile.

    The filters are antialiased: where the image gets smaller, they get wider. They see the pixels
    that the box touches, as in `image.crop(box).resize(...)` of Pillow, whose filters they are;
    `"bilinear"` gives Pillow's pixels to within 1 of 255.

    Args:
        source: A path, a part of a file, or the JPEG itself, as for `decode_jpeg`.
        box: (left, top, right, bottom) in pixels of the image as stored, whatever its orientation:
            column x covers x to x + 1. Any numbers within the image, also with fractions; None for
            the whole image.
        size: (height, width) of the result, each from 1 to 65,535.
        flip: Mirror the result left to right.
        mode: `"RGB"`, or `"L"` (luma), as for `decode_jpeg`.
        filter: `"box"`, `"bilinear"`, `"hamming"`, `"bicubic"` or `"lanczos"`.
        scaled_decode: Let libjpeg shrink the image by 2, 4 or 8 while it decodes, as long as the
            box still has as many pixels as the result both ways. Faster, with slightly other
            pixels: libjpeg drops fine detail block by block. Box edges then take in up to 7 pixels
            beyond the box.
        mean: For floating-point results: one number, or one a channel, in units of the full range:
            the result is (pixel / 255 - mean) / std, computed as pixel * a + b in single precision.
            None for 0.
        std: What it is divided by; None for 1.
        dtype: `"uint8"`, `"float32"` or `"float16"`. The pixels are those of `"uint8"` in any case;
            without `mean` and `std`, floating-point results are from 0 to 1.
        layout: `"HWC"` for shape (height, width, 3), `"CHW"` for (3, height, width). With mode
            `"L"` the shape is (height, width) either way.
        out: The array to decode into instead of a new one: of the right dtype and shape, writable,
            aligned, with contiguous rows. Rows and channels may lie apart. After an error its
            content is undefined.
        max_pixels: The most pixels that the header may name, as for `decode_jpeg`. Checked before
            any memory is taken for the image.
        allow_truncated: Accept an image whose data end early, as for `decode_jpeg`.

    Returns:
        `out`, or a new C-contiguous array.

    Raises:
        DecodeError: As `decode_jpeg` does. Also a file that is cut below the box is truncated;
            other damage there, where nothing is decoded, is not noticed.
        ValueError: If `box` is empty or does not lie within the image; if a value is none of those
            above; if `out` does not fit, is read-only, or shares memory with `source`.
        TypeError: If `source` is no path, part of a file or buffer, or `box`, `size` or `out` are
            not of the right type.
        OSError: If the file cannot be read, with `errno` and `filename`.
        MemoryError: If there is no memory for the result or for decoding.

    Example:
        >>> import base64
        >>> import stook.io
        >>> jpeg = base64.b64decode(
        ...     "/9j/2wBDAAEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEB"
        ...     "AQEBAQEBAQEBAQEBAQEBAQH/wAALCAACAAMBAREA/8QAFAABAAAAAAAAAAAAAAAAAAAACv/E"
        ...     "ABkQAAIDAQAAAAAAAAAAAAAAAAUJADl4tf/aAAgBAQAAPwBPSCKbV7Z/D9w9P//Z"
        ... )
        >>> stook.io.decode_resized_crop(jpeg, None, (2, 3), mode="L")
        array([[  0, 128, 255],
               [  0, 128, 255]], dtype=uint8)
        >>> stook.io.decode_resized_crop(jpeg, (1, 0, 3, 2), (1, 2), mode="L", flip=True)
        array([[255, 128]], dtype=uint8)
        >>> image = stook.io.decode_resized_crop(
        ...     jpeg, (0, 0, 3, 2), (4, 6), dtype="float32", mean=0.5, std=0.25, layout="CHW"
        ... )
        >>> image.shape, float(image.min()), float(image.max())
        ((3, 4, 6), -2.0, 2.0)
        >>> stook.io.decode_resized_crop(jpeg, (0, 0, 4, 2), (2, 2))
        Traceback (most recent call last):
        ...
        ValueError: cannot decode <bytes of 156 bytes>: box (0, 0, 4, 2) is not a box ...
    """
    recipe = _recipe(
        size,
        mode,
        filter,
        scaled_decode,
        mean,
        std,
        dtype,
        layout,
        max_pixels,
        allow_truncated,
    )
    result, errors = recipe.decode([source], [_checked_box(box)], [bool(flip)], False, out)
    for _, error in errors:
        raise error
    return result


def decode_batch(
    sources: Sequence[Source],
    size: tuple[int, int],
    *,
    boxes: Sequence[Sequence[float] | None] | NDArray[Any] | None = None,
    flip: bool | Sequence[bool] | NDArray[np.bool_] = False,
    mode: Literal["RGB", "L"] = "RGB",
    filter: Literal["box", "bilinear", "hamming", "bicubic", "lanczos"] = "bilinear",
    scaled_decode: bool = True,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    dtype: DTypeLike = "uint8",
    layout: Literal["HWC", "CHW"] = "HWC",
    out: NDArray[Any] | None = None,
    max_pixels: int | None = DEFAULT_MAX_PIXELS,
    allow_truncated: bool = False,
    errors: dict[int, Exception] | None = None,
) -> NDArray[Any]:
    """Decodes several JPEGs to one size, into one array.

    What `decode_resized_crop` does for each image, one after the other in the calling thread, with
    the GIL released once for all of them. An image that cannot be read or decoded leaves zeros in
    its place and holds up no other.

    Args:
        sources: Paths, parts of files, or the JPEGs themselves; also none.
        size: (height, width) of all results.
        boxes: A box for each image, or None for the whole of it; for instance an array of shape
            (number of images, 4). None: all images whole.
        flip: Mirror left to right: all of them, or one bool for each.
        mode: As for `decode_resized_crop`.
        filter: As for `decode_resized_crop`.
        scaled_decode: As for `decode_resized_crop`.
        mean: As for `decode_resized_crop`.
        std: As for `decode_resized_crop`.
        dtype: As for `decode_resized_crop`.
        layout: `"HWC"` for shape (images, height, width, 3), `"CHW"` for (images, 3, height,
            width). With mode `"L"` the shape is (images, height, width).
        out: The array to decode into instead of a new one. Images may lie apart.
        max_pixels: As for `decode_resized_crop`, for each image.
        allow_truncated: As for `decode_resized_crop`.
        errors: A dict that the errors of single images are put into, by index. None: the first of
            them is raised when all images are done.

    Returns:
        `out`, or a new C-contiguous array.

    Raises:
        DecodeError: Where `errors` is None, if an image cannot be decoded; the message begins with
            the index of the image.
        OSError: Where `errors` is None, if a file cannot be read.
        ValueError: Where `errors` is None, if a box does not lie within its image; if `boxes` or
            `flip` are not as many as `sources`; and as `decode_resized_crop` for arguments that
            concern all images.
        TypeError: Where `errors` is None, if a source or a box is none; if another argument is not
            of the right type.

    Example:
        >>> import base64
        >>> import stook.io
        >>> jpeg = base64.b64decode(
        ...     "/9j/2wBDAAEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEB"
        ...     "AQEBAQEBAQEBAQEBAQEBAQH/wAALCAACAAMBAREA/8QAFAABAAAAAAAAAAAAAAAAAAAACv/E"
        ...     "ABkQAAIDAQAAAAAAAAAAAAAAAAUJADl4tf/aAAgBAQAAPwBPSCKbV7Z/D9w9P//Z"
        ... )
        >>> boxes = [(0, 0, 1, 1), None, (1, 0, 3, 2)]
        >>> images = stook.io.decode_batch(
        ...     [jpeg] * 3, (1, 1), boxes=boxes, mode="L", scaled_decode=False
        ... )
        >>> images.ravel()
        array([  0, 128, 192], dtype=uint8)
        >>> errors = {}
        >>> stook.io.decode_batch([jpeg, b"GIF89a"], (2, 2), errors=errors).shape
        (2, 2, 2, 3)
        >>> errors
        {1: DecodeError('cannot decode <bytes of 6 bytes>: Not a JPEG file: starts with 0x47 0x49')}
    """
    recipe = _recipe(
        size,
        mode,
        filter,
        scaled_decode,
        mean,
        std,
        dtype,
        layout,
        max_pixels,
        allow_truncated,
    )
    if isinstance(sources, (str, bytes, bytearray, memoryview)):
        raise TypeError(f"sources must be a sequence of images, not one {type(sources).__name__}")
    if errors is not None and not isinstance(errors, MutableMapping):
        raise TypeError(f"errors must be a dict or None, not {errors!r}")
    images: list[Any] = _listed("sources", sources, "a sequence of images")
    count = len(images)
    given_boxes: list[Any] = [None] * count
    if boxes is not None:
        given_boxes = _listed("boxes", boxes, "a sequence of boxes, or None")
    flips = [flip] * count
    if not isinstance(flip, (bool, np.bool_)):
        flips = _listed("flip", flip, "a bool, or one for each image")
    for name, given in (("boxes", given_boxes), ("flip", flips)):
        if len(given) != count:
            raise ValueError(f"there are {count} sources, but {len(given)} of {name}")
    checked_boxes: list[_Box | None] = [None] * count
    for index, box in enumerate(given_boxes):
        try:
            checked_boxes[index] = _checked_box(box)
        except (TypeError, ValueError) as refusal:
            images[index] = refusal  # in its place: it is its own, like that of a bad source
    result, failed = recipe.decode(images, checked_boxes, list(map(bool, flips)), True, out)
    if errors is not None:
        errors.update(failed)
    elif failed:
        index, error = failed[0]
        if isinstance(error, (TypeError, ValueError)):
            error = type(error)(f"image {index}: {error}")
        raise error
    return result


def _listed(name: str, given: Any, wanted: str) -> list[Any]:
    try:
        return list(given)
    except TypeError:
        raise TypeError(f"{name} must be {wanted}, not {given!r}") from None
