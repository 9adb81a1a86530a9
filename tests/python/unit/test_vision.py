"""stook.vision: what is drawn, how it is planned, and that it becomes one call."""

from __future__ import annotations

import math
import pickle
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from test_io import TINY

import stook
from stook import vision

Array = np.ndarray[Any, Any]

SIZES = [(1, 1), (1, 500), (500, 1), (2, 3), (37, 53), (640, 480), (3000, 10), (10, 3000)]


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def boxes(crop: vision.Transform, width: int, height: int, count: int) -> Iterator[Array]:
    rng = generator(width * 7919 + height)
    for _ in range(count):
        yield np.array(crop.plan(width=width, height=height, rng=rng).box)


@pytest.mark.parametrize(("width", "height"), SIZES)
@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.3, 0.4), (1e-9, 1e-9), (1, 1)])
def test_random_crops_lie_in_the_image(width: int, height: int, scale: tuple[float, float]) -> None:
    for left, top, right, bottom in boxes(vision.RandomResizedCrop(7, scale), width, height, 50):
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
        assert all(float(edge).is_integer() for edge in (left, top, right, bottom))


def test_area_ratio_and_place_are_drawn_uniformly() -> None:
    crop = vision.RandomResizedCrop((5, 9), (0.1, 0.3), (1 / 2, 2))
    drawn = np.array(list(boxes(crop, 1000, 1000, 4000)))
    size = drawn[:, 2:] - drawn[:, :2]
    area = size.prod(axis=1) / 1000**2
    ratio = np.log2(size[:, 0] / size[:, 1])
    place = drawn[:, :2] / (1000 - size)
    # Of a uniform distribution: ends, mean and standard deviation. Those of 4,000 draws have errors
    # of 0.5 and 0.4 % of the range; the seed is fixed.
    for values, low, high in (
        (area, 0.1, 0.3),
        (ratio, -1, 1),
        (place[:, 0], 0, 1),
        (place[:, 1], 0, 1),
    ):
        share = (values - low) / (high - low)
        assert -0.01 < share.min() < 0.01 and 0.99 < share.max() < 1.01
        assert abs(share.mean() - 0.5) < 0.02
        assert abs(share.std() - math.sqrt(1 / 12)) < 0.02
    assert abs(np.corrcoef(np.column_stack([area, ratio, place]).T) - np.eye(4)).max() < 0.06


def test_what_no_draw_fits_is_the_largest_part_at_the_centre() -> None:
    crop = vision.RandomResizedCrop(224, (1, 1))
    for size, box in (
        ((1000, 10), (493, 0, 506, 10)),
        ((10, 1000), (0, 493, 10, 506)),
        ((1, 9), (0, 4, 1, 5)),
    ):
        drawn = {tuple(box) for box in boxes(crop, *size, 20)}
        assert drawn == {box}
    wide = vision.RandomResizedCrop(224, (1, 1), (0.1, 0.1))
    assert {tuple(box) for box in boxes(wide, 1, 3, 5)} == {(0, 0, 1, 3)}


def test_center_crop() -> None:
    plan = vision.CenterCrop((20, 10)).plan(width=100, height=100)
    assert plan == vision.Plan((25.0, 0.0, 75.0, 100.0), (20, 10))
    plan = vision.CenterCrop(100, resize=200, filter="bicubic", mode="L").plan(
        width=300, height=400
    )
    assert plan == vision.Plan((75.0, 125.0, 225.0, 275.0), (100, 100), filter="bicubic", mode="L")
    for width, height in SIZES:
        for resize in (None, 224, 225, 256, 999):
            crop = vision.CenterCrop((224, 100), resize=resize)
            left, top, right, bottom = crop.plan(width=width, height=height).box
            assert 0 <= left < right <= width
            assert 0 <= top < bottom <= height
            assert left == pytest.approx(width - right, abs=1e-9)
            assert top == pytest.approx(height - bottom, abs=1e-9)
            assert (right - left) / (bottom - top) == pytest.approx(100 / 224)
            if resize is not None:
                assert (bottom - top) / min(width, height) == pytest.approx(224 / resize)
            else:
                assert left == pytest.approx(0, abs=1e-9) or top == pytest.approx(0, abs=1e-9)


def test_flips() -> None:
    for p, share in ((0, 0), (1, 1), (0.25, 0.25)):
        flip, rng = vision.RandomHorizontalFlip(p), generator()
        flips = [flip.plan(width=2, height=2, rng=rng).flip for _ in range(2000)]
        assert abs(np.mean(flips) - share) < 0.03
    twice = vision.Compose([vision.RandomHorizontalFlip(1), vision.RandomHorizontalFlip(1)])
    assert not twice.plan(width=2, height=2, rng=generator()).flip


MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)


def test_a_chain_is_one_plan() -> None:
    crop = vision.RandomResizedCrop((5, 6), filter="lanczos", scaled_decode=False)
    flip = vision.RandomHorizontalFlip()
    normalize = vision.Normalize(list(MEAN), np.array(STD), dtype="float16", layout="HWC")  # type: ignore[arg-type]
    chain = vision.Compose([crop, vision.Compose([flip, normalize])])
    assert chain.transforms == (crop, flip, normalize)
    plan = chain.plan(width=50, height=40, rng=generator(5))
    rng = generator(5)  # each draws in its turn
    box = crop.plan(width=50, height=40, rng=rng).box
    flipped = flip.plan(width=50, height=40, rng=rng).flip
    assert plan == vision.Plan(
        box, (5, 6), flipped, "RGB", "lanczos", False, MEAN, STD, "float16", "HWC"
    )
    assert pickle.loads(pickle.dumps(chain)) == chain
    assert vision.Compose([]).plan(width=3, height=2) == vision.Plan((0.0, 0.0, 3.0, 2.0), (2, 3))


def test_one_call_decodes(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Any, ...]] = []

    def record(*arguments: object, **options: object) -> str:
        calls.append((arguments, options))
        return "decoded"

    monkeypatch.setattr(stook.io, "decode_resized_crop", record, raising=False)
    monkeypatch.setattr(stook.io, "decode_jpeg", None)
    chain = vision.Compose(
        [vision.CenterCrop(2), vision.RandomHorizontalFlip(1), vision.Normalize(MEAN, STD)]
    )
    assert chain(TINY, rng=generator()) == "decoded"
    options = {
        "flip": True,
        "mode": "RGB",
        "filter": "bilinear",
        "scaled_decode": True,
        "mean": MEAN,
        "std": STD,
        "dtype": "float32",
        "layout": "CHW",
    }
    assert calls == [((TINY, (0.5, 0.0, 2.5, 2.0), (2, 2)), options)]


def resampled(image: Array, size: int, axis: int) -> Array:
    """A float64 reference of antialiased bilinear resizing along one axis."""
    length = image.shape[axis]
    step = length / size
    centers = (np.arange(size)[:, None] + 0.5) * step
    weights = np.clip(1 - abs(np.arange(length) + 0.5 - centers) / max(step, 1), 0, None)
    weights /= weights.sum(axis=1, keepdims=True)
    return np.moveaxis(np.tensordot(weights, image, (1, axis)), 0, axis)


def reference(source: Any, box: tuple[float, ...], size: tuple[int, int], **options: Any) -> Array:
    """What `decode_resized_crop` gives for whole boxes, but for rounding."""
    left, top, right, bottom = map(int, box)
    image = stook.io.decode_jpeg(source, mode=options["mode"])[top:bottom, left:right]
    result = np.rint(resampled(resampled(image.astype(float), size[0], 0), size[1], 1))
    if options["flip"]:
        result = result[:, ::-1]
    if options["mean"] is not None:
        result = (result / 255 - options["mean"]) / options["std"]
    if options["layout"] == "CHW" and result.ndim == 3:
        result = result.transpose(2, 0, 1)
    return result.astype(options["dtype"])


needs_decoder = pytest.mark.skipif(
    not hasattr(stook.io, "decode_resized_crop"), reason="stook.io has no decode_resized_crop"
)


@needs_decoder
def test_pixels() -> None:
    for mode, channels in (("RGB", 3), ("L", 1)):
        chain = vision.Compose(
            [
                vision.RandomResizedCrop((3, 5), (0.3, 1), (1, 2), mode=mode),  # type: ignore[arg-type]
                vision.RandomHorizontalFlip(),
                vision.Normalize(MEAN[:channels], STD[:channels]),
            ]
        )
        for seed in range(20):
            plan = chain.plan(width=3, height=2, rng=generator(seed))
            image = chain(TINY, rng=generator(seed))
            expected = reference(
                TINY,
                plan.box,
                plan.size,
                mode=mode,
                flip=plan.flip,
                mean=plan.mean,
                std=plan.std,
                dtype="float32",
                layout="CHW",
            )
            assert image.dtype == np.float32
            np.testing.assert_allclose(image, expected, atol=1.01 / 255 / min(STD))


def test_what_is_drawn_depends_on_the_element_alone() -> None:
    train = vision.Compose([vision.RandomResizedCrop(8), vision.RandomHorizontalFlip()])

    def plan(item: int) -> vision.Plan:
        return train.plan(width=300 + item, height=200)

    plans: list[list[vision.Plan]] = []
    for options in (
        stook.MultiprocessingOptions(),
        stook.MultiprocessingOptions(num_workers=2),
        stook.MultithreadingOptions(2),
    ):
        with stook.DataLoader(range(12), plan, seed=4, num_epochs=2, options=options) as loader:
            plans.append(list(loader))
    assert plans[0] == plans[1] == plans[2]
    assert len({plan.box for plan in plans[0]}) == 24  # and on the epoch
    assert {plan.flip for plan in plans[0]} == {False, True}


def test_outside_of_a_loader_numpys_global_generator_is_drawn_from() -> None:
    crop = vision.RandomResizedCrop(8)
    plans: list[list[vision.Plan]] = []

    def draw() -> None:
        for seed in (3, 3, 4):
            np.random.seed(seed)  # as torch does in the workers of its loaders
            plans.append([crop.plan(width=300, height=200) for _ in range(3)])

    # In a thread of its own, which has never made an element.
    thread = threading.Thread(target=draw)
    thread.start()
    thread.join()
    assert plans[0] == plans[1] != plans[2]
    assert len({plan.box for plan in plans[0]}) == 3
    with pytest.raises(TypeError, match=r"rng must be a numpy\.random\.Generator or None, not 5"):
        crop.plan(width=30, height=30, rng=5)  # type: ignore[arg-type]


def test_pixels_are_no_source() -> None:
    with pytest.raises(TypeError, match=r"array of shape \(4, 4, 3\).*into one stook.vision.Comp"):
        vision.CenterCrop(8)(np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(TypeError, match="source must be a path"):
        vision.CenterCrop(8)(None)  # type: ignore[arg-type]


def test_arguments_are_checked_when_made() -> None:
    crop, center, normalize = vision.RandomResizedCrop, vision.CenterCrop, vision.Normalize
    for make, message in (
        (lambda: crop(0), "each from 1 to 65535, not"),
        (lambda: crop((3, -1)), "not \\(3, -1\\)"),
        (lambda: crop(8, (0, 1)), r"scale must be two finite numbers above 0.*\(0, 1\)"),
        (lambda: crop(8, (0.5, 0.2)), "scale must be two"),
        (lambda: crop(8, (0.5, 1.2)), "scale must end at 1, the whole image, not 1.2"),
        (lambda: crop(8, ratio=(1, math.inf)), "ratio must be two"),
        (lambda: crop(8, ratio=(1, math.nan)), "ratio must be two"),
        (lambda: crop(8, mode="BGR"), "mode must be .* not 'BGR'"),
        (lambda: center(8, mode="BGR"), "mode must be"),
        (lambda: center((8, 9), resize=8), "is 8, shorter than the crop of 8 x 9 pixels"),
        (lambda: vision.RandomHorizontalFlip(1.1), "p must be a probability.*1.1"),
        (lambda: vision.RandomHorizontalFlip(math.nan), "p must be a probability"),
        (lambda: normalize(MEAN, STD[:2]), "1 or 3, not 3 and 2"),
        (lambda: normalize(MEAN[:2], STD[:2]), "1 or 3, not 2 and 2"),
        (lambda: normalize(MEAN, (0.1, 0, 0.1)), "std above 0"),
        (lambda: normalize((math.nan,), (1,)), "finite"),
        (lambda: normalize(MEAN, STD, dtype="float64"), "dtype must be"),
        (lambda: normalize(MEAN, STD, layout="NCHW"), "layout must be"),
        (lambda: vision.Compose([crop(8), center(8)]), "crop once, and was given Random.*Center"),
        (lambda: vision.Compose([normalize(MEAN, STD), crop(8)]), "Normalize must come last"),
        (
            lambda: vision.Compose([vision.RandomHorizontalFlip(), crop(8)]),
            "crop must come first, and RandomHorizontalFlip",
        ),
        (
            lambda: vision.Compose([normalize((0.5,), (0.5,))]).plan(width=1, height=1),
            "Normalize has 1 channels, and an image of mode 'RGB' 3",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            make()
    with pytest.raises(TypeError, match=r"takes transforms of stook.vision, not <built-in"):
        vision.Compose([len])  # type: ignore[list-item]
    with pytest.raises(TypeError):
        crop(8.5)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: vision.RandomResizedCrop(22.5), TypeError, r"size must be .* not 22.5"),  # type: ignore[arg-type]
        (lambda: vision.CenterCrop((1, 2, 3)), TypeError, r"size must be .* not \(1, 2, 3\)"),  # type: ignore[arg-type]
        (lambda: vision.CenterCrop(70_000), ValueError, "1 to 65535"),
        (lambda: vision.CenterCrop(7, resize=8.5), TypeError, "resize must be"),  # type: ignore[arg-type]
        (lambda: vision.CenterCrop(7, filter="area"), ValueError, "filter must be one of"),  # type: ignore[arg-type]
        (lambda: vision.RandomResizedCrop(7, 0.5), TypeError, "scale must be two numbers"),  # type: ignore[arg-type]
        (lambda: vision.RandomHorizontalFlip("a"), TypeError, "p must be a number, not 'a'"),  # type: ignore[arg-type]
        (lambda: vision.Normalize(0.5, 0.5), TypeError, "mean must have one number"),  # type: ignore[arg-type]
        (lambda: vision.Normalize([1e30], [1e-30]), ValueError, "single precision"),
        (lambda: vision.Compose(vision.CenterCrop(3)), TypeError, "a list of transforms"),  # type: ignore[arg-type]
        (lambda: vision.CenterCrop(3).plan(width=0, height=4), ValueError, "not 0 x 4"),
    ],
)
def test_what_makes_no_sense_is_refused_when_it_is_made(
    make: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        make()
