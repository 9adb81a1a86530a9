"""decode_resized_crop beside Pillow's crop and resize, on photographs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import stook.io

pytestmark = pytest.mark.leaves("what scikit-learn imports keeps threads", "threads")

MODULE = "PIL.Image"
WHY = "Pillow is not installed"


def photographs() -> list[Path]:
    datasets = pytest.importorskip("sklearn.datasets", reason="scikit-learn is not installed")
    found = sorted((Path(datasets.__file__).parent / "images").glob("*.jpg"))
    assert len(found) >= 2
    return found


@pytest.mark.parametrize("filter", ["box", "bilinear", "hamming"])
def test_within_one_of_pillow(filter: Any) -> None:
    """Filters without negative weights: Pillow clamps between its passes, which changes others."""
    pillow = pytest.importorskip(MODULE, reason=WHY)
    rng = np.random.default_rng(3)
    for path in photographs():
        whole = stook.io.decode_jpeg(path)
        height, width = whole.shape[:2]
        image = pillow.fromarray(whole)
        for _ in range(60):
            left, right = np.sort(rng.choice(width + 1, 2, replace=False)).tolist()
            top, bottom = np.sort(rng.choice(height + 1, 2, replace=False)).tolist()
            box = (left, top, right, bottom)
            size: Any = tuple(rng.integers(1, 400, 2).tolist())
            expected = image.crop(box).resize(size[::-1], pillow.Resampling[filter.upper()])
            got = stook.io.decode_resized_crop(path, box, size, filter=filter, scaled_decode=False)
            difference = np.abs(got.astype(int) - np.asarray(expected))
            assert difference.max() <= 1, (path.name, box, size)


@pytest.mark.parametrize("filter", ["bicubic", "lanczos"])
def test_near_pillow_where_it_clamps(filter: Any) -> None:
    pillow = pytest.importorskip(MODULE, reason=WHY)
    for path in photographs():
        whole = stook.io.decode_jpeg(path)
        image = pillow.fromarray(whole)
        for size in ((224, 224), (500, 900)):
            expected = image.resize(size[::-1], pillow.Resampling[filter.upper()])
            got = stook.io.decode_resized_crop(path, None, size, filter=filter, scaled_decode=False)
            difference = np.abs(got.astype(int) - np.asarray(expected))
            assert (difference > 1).mean() < 0.005


def test_scaled_decoding_of_photographs() -> None:
    """At least 32 dB from unscaled decoding, for crops as they are drawn for training."""
    rng = np.random.default_rng(4)
    figures = []
    for path in photographs():
        height, width = stook.io.decode_jpeg(path).shape[:2]
        for _ in range(40):
            area = height * width * rng.uniform(0.25, 1)
            ratio = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
            w, h = min(np.sqrt(area * ratio), width), min(np.sqrt(area / ratio), height)
            left, top = rng.uniform(0, width - w), rng.uniform(0, height - h)
            box = (left, top, left + w, top + h)
            scaled = stook.io.decode_resized_crop(path, box, (96, 96))
            unscaled = stook.io.decode_resized_crop(path, box, (96, 96), scaled_decode=False)
            error = np.mean((scaled.astype(float) - unscaled) ** 2)
            figures.append(10 * np.log10(255**2 / error))
    assert min(figures) > 32, figures
