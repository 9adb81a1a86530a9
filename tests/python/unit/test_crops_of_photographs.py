"""decode_resized_crop on whole folders of files: photographs, and JPEGs that are odd.

STOOK_PHOTOS and STOOK_ODD_JPEGS name such folders, as for test_io_odd_files.py. Without the first
the photographs that scikit-learn carries are taken.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_io_odd_files import files

import stook.io
from stook.errors import DecodeError

Box = tuple[Any, Any, Any, Any]


def random_box(rng: np.random.Generator, width: int, height: int) -> Box:
    """Whole numbers; often at an edge of the image, often of a few pixels."""
    edges = []
    for length in (width, height):
        size = rng.integers(1, length + 1) if rng.random() < 0.8 else min(length, 2)
        first = rng.choice([0, length - size, rng.integers(0, length - size + 1)])
        edges.append((int(first), int(first + size)))
    (left, right), (top, bottom) = edges
    return left, top, right, bottom


def photographs() -> list[Path]:
    if folder := os.environ.get("STOOK_PHOTOS"):
        found = [
            path for path in Path(folder).iterdir() if path.suffix.lower() in (".jpg", ".jpeg")
        ]
    else:
        spec = importlib.util.find_spec("sklearn")
        if spec is None or not spec.submodule_search_locations:
            pytest.skip("STOOK_PHOTOS is not set, and scikit-learn with its two is not installed")
        found = list(Path(spec.submodule_search_locations[0], "datasets/images").glob("*.jpg"))
    assert found
    return sorted(found)


@pytest.mark.long
def test_10000_boxes_are_within_one_of_pillow() -> None:
    pillow: Any = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    rng = np.random.default_rng(5)
    paths = photographs()
    for path in paths:
        whole = stook.io.decode_jpeg(path)
        image = pillow.fromarray(whole)
        data = path.read_bytes()
        for _ in range(-(-10_000 // len(paths))):
            box = random_box(rng, image.width, image.height)
            size = tuple(int(side) for side in np.exp(rng.uniform(0, np.log(500), 2)))
            expected = image.crop(box).resize(size[::-1], pillow.Resampling.BILINEAR)
            got = stook.io.decode_resized_crop(data, box, (size[0], size[1]), scaled_decode=False)
            difference = np.abs(got.astype(np.int16) - np.asarray(expected)).max()
            assert difference <= 1, (path.name, box, size)


@pytest.mark.parametrize("path", files("STOOK_ODD_JPEGS"))
def test_boxes_of_odd_files_are_slices(path: Path) -> None:
    for allow_truncated in (False, True):
        try:
            whole = stook.io.decode_jpeg(path, allow_truncated=allow_truncated)
        except DecodeError:
            continue
        height, width = whole.shape[:2]
        rng = np.random.default_rng(height)
        for _ in range(20):
            left, top, right, bottom = random_box(rng, width, height)
            got = stook.io.decode_resized_crop(
                path,
                (left, top, right, bottom),
                (bottom - top, right - left),
                scaled_decode=False,
                allow_truncated=allow_truncated,
            )
            np.testing.assert_array_equal(got, whole[top:bottom, left:right])


@pytest.mark.parametrize("path", files("STOOK_ODD_JPEGS"))
def test_what_no_decoder_takes_is_an_error_in_part_too(path: Path) -> None:
    try:
        stook.io.jpeg_info(path)
    except DecodeError:
        with pytest.raises(DecodeError):
            stook.io.decode_resized_crop(path, None, (5, 5))
        return
    try:
        stook.io.decode_resized_crop(path, None, (5, 5))
    except DecodeError:
        with pytest.raises(DecodeError):
            stook.io.decode_jpeg(path)
