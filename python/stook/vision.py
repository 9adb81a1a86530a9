"""Augmentations that decode only what they keep.

A chain of transforms becomes one call of `stook.io.decode_resized_crop`: which part of the image,
how large, mirrored or not, normalised how is known before a pixel is decoded. So pixels that are
thrown away are hardly decoded, and no intermediate picture exists.

Example:
    >>> from stook import vision
    >>> train = vision.Compose([
    ...     vision.RandomResizedCrop(224),
    ...     vision.RandomHorizontalFlip(),
    ...     vision.Normalize(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
    ... ])
    >>> import numpy as np
    >>> plan = train.plan(width=500, height=375, rng=np.random.default_rng(1))
    >>> plan.size, plan.flip, plan.dtype, plan.layout
    ((224, 224), False, 'float32', 'CHW')
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, SupportsIndex

import numpy as np

from . import io
from ._random import current
from ._resized_crop import check_filter, checked_mode, checked_size, scale_and_offset
from ._threads_rng import rng as element_rng

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ._io_source import Source

__all__ = [
    "CenterCrop",
    "Compose",
    "Normalize",
    "Plan",
    "RandomHorizontalFlip",
    "RandomResizedCrop",
    "Transform",
]

Box = tuple[float, float, float, float]
Filter = Literal["box", "bilinear", "hamming", "bicubic", "lanczos"]


@dataclass(frozen=True, slots=True)
class Plan:
    """What one image is to become: the arguments of one call of `decode_resized_crop`.

    Attributes:
        box: What is kept of the image as stored: left, top, right, bottom in its pixels, from its
            upper left corner; not necessarily whole numbers.
        size: Height and width of the result, in pixels.
        flip: Whether it is mirrored left to right.
        mode: `"RGB"` or `"L"`.
        filter: How it is resampled.
        scaled_decode: Whether the decoder may reduce the image where that loses nothing that the
            result could show.
        mean: Of each channel, in units of the full range (0 to 1), or `None`.
        std: Of each channel, in the same units, or `None`.
        dtype: Of the result.
        layout: `"HWC"` or `"CHW"`.
    """

    box: Box
    size: tuple[int, int]
    flip: bool = False
    mode: Literal["RGB", "L"] = "RGB"
    filter: Filter = "bilinear"
    scaled_decode: bool = True
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    dtype: Literal["uint8", "float16", "float32"] = "uint8"
    layout: Literal["HWC", "CHW"] = "HWC"


class Transform:
    """What all transforms have in common: they can be called, alone or as part of a `Compose`."""

    __slots__ = ()

    def __call__(self, source: Source, *, rng: np.random.Generator | None = None) -> NDArray[Any]:
        """Decodes a JPEG as planned.

        Args:
            source: What `stook.io.decode_jpeg` takes: a path, a part of a file, or bytes.
            rng: The generator to draw from. `None`: `stook.rng()`, that of the element which is
                being made, so that what is drawn does not depend on which worker makes it; where no
                loader of Stook makes one, NumPy's global generator, which torch's loaders (and
                `stook.torch.DataLoader`) seed in each of their workers.

        Returns:
            A new array, in a worker in shared memory: (height, width, 3) of dtype `uint8`, unless
            the transforms say otherwise.

        Raises:
            DecodeError: If the image cannot be decoded.
            OSError: If the file cannot be read.
            TypeError: If `source` is an array of pixels, or no source at all; if `rng` is no
                generator of NumPy.
        """
        if isinstance(source, np.ndarray) and source.ndim > 1:
            raise TypeError(
                f"{type(self).__name__} decodes a JPEG, and was given an array of shape"
                f" {source.shape}; to run several transforms, put them into one"
                " stook.vision.Compose"
            )
        info = io.jpeg_info(source)
        plan = self.plan(width=info.width, height=info.height, rng=rng)
        decoded: NDArray[Any] = io.decode_resized_crop(
            source,
            plan.box,
            plan.size,
            flip=plan.flip,
            mode=plan.mode,
            filter=plan.filter,
            scaled_decode=plan.scaled_decode,
            mean=plan.mean,
            std=plan.std,
            dtype=plan.dtype,
            layout=plan.layout,
        )
        return decoded

    def plan(self, *, width: int, height: int, rng: np.random.Generator | None = None) -> Plan:
        """What becomes of an image of this size; draws what is random.

        Args:
            width: Columns of the image, at least 1.
            height: Rows of the image, at least 1.
            rng: As for calls.

        Raises:
            ValueError: If there is no such image.
        """
        if width < 1 or height < 1:
            raise ValueError(f"an image has at least 1 x 1 pixels, not {width} x {height}")
        whole = Plan((0.0, 0.0, float(width), float(height)), (height, width))
        return self._onto(whole, rng)

    def _onto(self, plan: Plan, rng: np.random.Generator | None) -> Plan:
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class RandomResizedCrop(Transform):
    """A part of random size, shape and place, resized.

    Drawn as torchvision draws it: the area is uniform in `scale` times that of the image, the
    logarithm of width to height uniform in that of `ratio`, both sides are rounded to whole pixels,
    and the first of ten draws that fits is placed uniformly. If none fits, it is the largest part
    at the centre whose ratio is allowed.

    Args:
        size: Of the result: height and width, or one number for both.
        scale: Smallest and largest share of the image's area.
        ratio: Smallest and largest width to height.
        filter: How it is resampled, with antialiasing.
        scaled_decode: Let the decoder reduce the image first where that is faster. What that
            changes is told in `docs/resized-crops.md`.
        mode: `"RGB"`, or `"L"` for luma alone.

    Raises:
        ValueError: If a number makes no sense.

    Example:
        >>> import numpy as np
        >>> from stook import vision
        >>> crop = vision.RandomResizedCrop(224, scale=(0.25, 0.25), ratio=(1, 1))
        >>> plan = crop.plan(width=400, height=400, rng=np.random.default_rng(0))
        >>> left, top, right, bottom = plan.box
        >>> right - left, bottom - top, plan.size
        (200.0, 200.0, (224, 224))
    """

    size: int | tuple[int, int]
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    filter: Filter = field(default="bilinear", kw_only=True)
    scaled_decode: bool = field(default=True, kw_only=True)
    mode: Literal["RGB", "L"] = field(default="RGB", kw_only=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", _size(self.size))
        object.__setattr__(self, "scale", _range("scale", self.scale))
        object.__setattr__(self, "ratio", _range("ratio", self.ratio))
        if self.scale[1] > 1:
            raise ValueError(f"scale must end at 1, the whole image, not {self.scale[1]}")
        _check_decoding(self.mode, self.filter)

    def _onto(self, plan: Plan, rng: np.random.Generator | None) -> Plan:
        draw = _generator(rng)
        width, height = int(plan.box[2]), int(plan.box[3])
        for _ in range(10):
            area = width * height * draw.uniform(*self.scale)
            ratio = math.exp(draw.uniform(math.log(self.ratio[0]), math.log(self.ratio[1])))
            w = round(math.sqrt(area * ratio))
            h = round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                top = int(draw.integers(height - h + 1))
                left = int(draw.integers(width - w + 1))
                break
        else:
            # At least one pixel, whatever the ratio; torchvision would ask for none at times.
            w, h = width, height
            if width / height < self.ratio[0]:
                h = max(1, round(width / self.ratio[0]))
            elif width / height > self.ratio[1]:
                w = max(1, round(height * self.ratio[1]))
            w, h = min(w, width), min(h, height)
            top, left = (height - h) // 2, (width - w) // 2
        return replace(
            plan,
            box=(float(left), float(top), float(left + w), float(top + h)),
            size=_size(self.size),
            filter=self.filter,
            scaled_decode=self.scaled_decode,
            mode=self.mode,
        )


@dataclass(frozen=True, slots=True)
class CenterCrop(Transform):
    """The middle of an image whose short side is resized first, as for validation.

    `CenterCrop(224, resize=256)` is torchvision's `Resize(256)` and `CenterCrop(224)`, in one step:
    the same part of the image, resampled once. torchvision rounds the long side of what it resizes
    to whole pixels, which moves its edges by less than a pixel of the result.

    Args:
        size: Of the result: height and width, or one number for both.
        resize: Length of the short side after resizing, in pixels, at least the longer of `size`.
            `None`: as long as the result needs, so that the crop reaches two edges of the image.
        filter: As for `RandomResizedCrop`.
        scaled_decode: As for `RandomResizedCrop`.
        mode: As for `RandomResizedCrop`.

    Raises:
        ValueError: If a number makes no sense.

    Example:
        >>> from stook import vision
        >>> vision.CenterCrop(224, resize=256).plan(width=512, height=768).box
        (32.0, 160.0, 480.0, 608.0)
        >>> vision.CenterCrop(224).plan(width=512, height=768).box
        (0.0, 128.0, 512.0, 640.0)
    """

    size: int | tuple[int, int]
    resize: int | None = None
    filter: Filter = field(default="bilinear", kw_only=True)
    scaled_decode: bool = field(default=True, kw_only=True)
    mode: Literal["RGB", "L"] = field(default="RGB", kw_only=True)

    def __post_init__(self) -> None:
        height, width = _size(self.size)
        object.__setattr__(self, "size", (height, width))
        if self.resize is not None and not isinstance(self.resize, SupportsIndex):
            raise TypeError(f"resize must be an int or None, not {self.resize!r}")
        if self.resize is not None and operator.index(self.resize) < max(height, width):
            raise ValueError(
                f"resize, the short side before cropping, is {self.resize}, shorter than the crop"
                f" of {height} x {width} pixels"
            )
        _check_decoding(self.mode, self.filter)

    def _onto(self, plan: Plan, rng: np.random.Generator | None) -> Plan:
        width, height = plan.box[2:]
        rows, columns = _size(self.size)
        if self.resize is None:
            step = min(height / rows, width / columns)  # pixels of the image for one of the result
        else:
            step = min(height, width) / self.resize
        w, h = min(columns * step, width), min(rows * step, height)
        left, top = (width - w) / 2, (height - h) / 2
        return replace(
            plan,
            box=(left, top, left + w, top + h),
            size=(rows, columns),
            filter=self.filter,
            scaled_decode=self.scaled_decode,
            mode=self.mode,
        )


@dataclass(frozen=True, slots=True)
class RandomHorizontalFlip(Transform):
    """Mirrors left to right, or not.

    Args:
        p: How probable it is, from 0 to 1.

    Raises:
        ValueError: If `p` is no probability.

    Example:
        >>> import numpy as np
        >>> from stook import vision
        >>> flip, rng = vision.RandomHorizontalFlip(), np.random.default_rng(3)
        >>> [flip.plan(width=8, height=8, rng=rng).flip for _ in range(4)]
        [True, True, False, False]
    """

    p: float = 0.5

    def __post_init__(self) -> None:
        _check_number("p", self.p)
        if not 0 <= self.p <= 1:
            raise ValueError(f"p must be a probability, from 0 to 1, not {self.p}")

    def _onto(self, plan: Plan, rng: np.random.Generator | None) -> Plan:
        draw = _generator(rng)
        return replace(plan, flip=plan.flip != bool(draw.random() < self.p))


@dataclass(frozen=True, slots=True)
class Normalize(Transform):
    """Gives `(value / 255 - mean) / std`, as torchvision's `ToTensor` and `Normalize`.

    Args:
        mean: Of each channel, where 1 is full intensity.
        std: Of each channel, in the same units.
        dtype: `"float32"` or `"float16"`.
        layout: `"CHW"` as torch's models want it, or `"HWC"`.

    Raises:
        ValueError: If the numbers are not finite, a `std` is not above 0, or there are not as many
            of one as of the other, 1 or 3.

    Example:
        >>> from stook import vision
        >>> plan = vision.Normalize((0.5,) * 3, (0.25,) * 3).plan(width=8, height=6)
        >>> plan.mean, plan.std, plan.dtype, plan.layout
        ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25), 'float32', 'CHW')
    """

    mean: Sequence[float]
    std: Sequence[float]
    dtype: Literal["float16", "float32"] = field(default="float32", kw_only=True)
    layout: Literal["HWC", "CHW"] = field(default="CHW", kw_only=True)

    def __post_init__(self) -> None:
        mean, std = _of_channels("mean", self.mean), _of_channels("std", self.std)
        object.__setattr__(self, "mean", mean)
        object.__setattr__(self, "std", std)
        if len(mean) != len(std) or len(mean) not in (1, 3):
            raise ValueError(
                f"mean and std must have one number for each channel, 1 or 3, not {len(mean)} and"
                f" {len(std)}"
            )
        if not all(map(math.isfinite, mean + std)) or min(std) <= 0:
            raise ValueError(f"mean must be finite and std above 0, not {mean} and {std}")
        for channel_mean, channel_std in zip(mean, std, strict=True):
            scale_and_offset((channel_mean,) * 3, (channel_std,) * 3)
        if self.dtype not in ("float16", "float32"):
            raise ValueError(f'dtype must be "float16" or "float32", not {self.dtype!r}')
        if self.layout not in ("HWC", "CHW"):
            raise ValueError(f'layout must be "HWC" or "CHW", not {self.layout!r}')

    def _onto(self, plan: Plan, rng: np.random.Generator | None) -> Plan:
        channels = 3 if plan.mode == "RGB" else 1
        if len(self.mean) != channels:
            raise ValueError(
                f"Normalize has {len(self.mean)} channels, and an image of mode"
                f" {plan.mode!r} {channels}"
            )
        return replace(
            plan,
            mean=tuple(self.mean),
            std=tuple(self.std),
            dtype=self.dtype,
            layout=self.layout,
        )


@dataclass(frozen=True, slots=True)
class Compose(Transform):
    """Several transforms as one: a crop at the most, flips, a `Normalize` at the most, at the end.

    What is not of this module goes into `DataLoader(transform=[...])`, in front of it or behind.

    Args:
        transforms: The transforms, in their order. A `Compose` among them counts as what it holds.

    Raises:
        TypeError: If one of them is of another kind.
        ValueError: If there are two crops or two `Normalize`, or something follows a `Normalize`.

    Example:
        >>> from stook import vision
        >>> flip = vision.RandomHorizontalFlip(1)
        >>> val = vision.Compose([vision.CenterCrop(224, resize=256), flip])
        >>> plan = val.plan(width=256, height=256, rng=np.random.default_rng())
        >>> plan.box, plan.size, plan.flip
        ((16.0, 16.0, 240.0, 240.0), (224, 224), True)
    """

    transforms: Sequence[Transform]

    def __post_init__(self) -> None:
        flat: list[Transform] = []
        try:
            given = list(self.transforms)
        except TypeError:
            raise TypeError(
                f"Compose takes a list of transforms, not {self.transforms!r}"
            ) from None
        for transform in given:
            if not isinstance(transform, Transform):
                raise TypeError(
                    f"Compose takes transforms of stook.vision, not {transform!r}; other functions"
                    " go into DataLoader(transform=[...]), before it or after it"
                )
            flat += transform.transforms if isinstance(transform, Compose) else [transform]
        object.__setattr__(self, "transforms", tuple(flat))
        crops = [t for t in flat if isinstance(t, (RandomResizedCrop, CenterCrop))]
        if len(crops) > 1:
            raise ValueError(f"Compose can crop once, and was given {crops[0]} and {crops[1]}")
        for i, transform in enumerate(flat):
            if isinstance(transform, Normalize) and i + 1 < len(flat):
                raise ValueError(f"Normalize must come last, and {flat[i + 1]} follows it")
            if i > 0 and transform in crops:
                raise ValueError(f"the crop must come first, and {flat[0]} is in front of it")

    def _onto(self, plan: Plan, rng: np.random.Generator | None) -> Plan:
        for transform in self.transforms:
            plan = transform._onto(plan, rng)
        return plan


def _generator(rng: np.random.Generator | None) -> np.random.Generator:
    if rng is None:
        if current.element is not None:
            return element_rng()
        return np.random.Generator(np.random.get_bit_generator())  # type: ignore[attr-defined]
    if not isinstance(rng, np.random.Generator):
        raise TypeError(f"rng must be a numpy.random.Generator or None, not {rng!r}")
    return rng


def _size(size: int | tuple[int, int]) -> tuple[int, int]:
    """(height, width) of what was given."""
    try:
        if isinstance(size, SupportsIndex):
            return checked_size((size, size))
        return checked_size(size)
    except TypeError:
        raise TypeError(f"size must be an int, or (height, width), not {size!r}") from None


def _range(name: str, pair: tuple[float, float]) -> tuple[float, float]:
    try:
        low, high = map(float, pair)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be two numbers, not {pair!r}") from None
    if not 0 < low <= high < math.inf:
        raise ValueError(
            f"{name} must be two finite numbers above 0, the smaller first, not {pair}"
        )
    return low, high


def _of_channels(name: str, values: Sequence[float]) -> tuple[float, ...]:
    try:
        return tuple(map(float, values))
    except (TypeError, ValueError):
        raise TypeError(
            f"{name} must have one number for each channel, 1 or 3, not be {values!r}"
        ) from None


def _check_number(name: str, value: float) -> None:
    if not isinstance(value, (int, float, np.number)):
        raise TypeError(f"{name} must be a number, not {value!r}")


def _check_decoding(mode: str, filter: str) -> None:
    checked_mode(mode)
    check_filter(filter)
