"""OpenCV in worker processes: what it makes is born in shared memory, and moved."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from partner_loader import (
    DEADLINE,
    PARTNER_FLAGS,
    Courier,
    each_start_method,
    loader,
    require,
    settled,
)

from conftest import RunPython

(cv2,) = require("cv2")

pytestmark = pytest.mark.leaves("OpenCV keeps the threads of its first operation", "threads")


def picture() -> Any:
    rows, columns = np.mgrid[0:90, 0:120]
    return np.stack([rows, columns, rows + columns], axis=-1).astype(np.uint8)


def _read(path: str) -> Any:
    return cv2.imread(path)


def _decode(data: bytes) -> Any:
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)


OPERATIONS = {
    "resize": lambda image: cv2.resize(image, (60, 50)),
    "cvtColor": lambda image: cv2.cvtColor(image, cv2.COLOR_BGR2RGB),
    "grey": lambda image: cv2.cvtColor(image, cv2.COLOR_BGR2GRAY),
    "flip": lambda image: cv2.flip(image, 1),
    "blur": lambda image: cv2.GaussianBlur(image, (5, 5), 0),
    "warp": lambda image: cv2.warpAffine(image, np.eye(2, 3), (100, 80)),
    "imencode": lambda image: cv2.imencode(".bmp", image)[1],
    "float": lambda image: cv2.resize(image, (60, 50)).astype(np.float32) / 255,
    "reversed": lambda image: cv2.resize(image, (60, 50))[..., ::-1],
    "upside-down": lambda image: cv2.resize(image, (60, 50))[::-1, ::-1],
    "cropped": lambda image: cv2.resize(image, (60, 50))[5:45, 3:57],
}


def _perform(name: str) -> Any:
    return OPERATIONS[name](picture())


@pytest.fixture(scope="module")
def courier() -> Iterator[Courier]:
    with settled() as courier:
        yield courier


def assert_moved(courier: Courier, got: Any, want: Any) -> None:
    assert (got.dtype, got.shape, got.strides) == (want.dtype, want.shape, want.strides)
    assert np.array_equal(got, want)
    assert got.flags.writeable
    assert (courier.stats.moved, courier.stats.copied) == (1, 0)


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_result_is_moved(courier: Courier, name: str) -> None:
    assert_moved(courier, courier.call(_perform, name), _perform(name))


def test_a_picture_that_is_read_is_moved(courier: Courier, tmp_path: Path) -> None:
    path = str(tmp_path / "picture.png")
    assert cv2.imwrite(path, picture())
    assert_moved(courier, courier.call(_read, path), picture())


def test_a_picture_that_is_decoded_is_moved(courier: Courier) -> None:
    data = cv2.imencode(".png", picture())[1].tobytes()
    assert_moved(courier, courier.call(_decode, data), picture())


def test_a_small_part_is_copied(courier: Courier) -> None:
    got = courier.call(_small_part)
    assert np.array_equal(got, cv2.resize(picture(), (600, 500))[:50])
    assert (courier.stats.moved, courier.stats.copied) == (0, 1)


def _small_part() -> Any:
    return cv2.resize(picture(), (600, 500))[:50]


def test_an_image_that_is_missing_is_none(courier: Courier) -> None:
    assert courier.call(_read, os.devnull) is None


def test_a_delivered_picture_goes_into_opencv(courier: Courier) -> None:
    got = courier.call(_perform, "reversed")
    with pytest.raises(cv2.error):
        cv2.rectangle(got, (0, 0), (5, 5), 255)  # as OpenCV has it with every reversed view
    whole = courier.call(_perform, "resize")
    cv2.rectangle(whole, (0, 0), (5, 5), (1, 2, 3))
    assert whole[0, 0].tolist() == [1, 2, 3]
    assert np.array_equal(cv2.resize(whole, (60, 50)), whole)


def test_pictures_are_assembled() -> None:
    with loader(["resize", "resize"], _perform, batch_size=2) as batches:
        (batch,) = batches
        assert (batches.stats().moved, batches.stats().copied) == (1, 0)
    assert np.array_equal(batch, np.stack([_perform("resize")] * 2))


@pytest.mark.parametrize("threads", [1, 2])
def test_the_threads_of_opencv_are_limited(threads: int) -> None:
    options = {"threads_per_worker": threads}
    with loader(range(2), _number_of_threads, num_workers=2, options=options) as counts:
        assert list(counts) == [threads, threads]


def _number_of_threads(index: int) -> int:
    return int(cv2.getNumThreads())


@each_start_method
@pytest.mark.parametrize("imported", ["in the script", "in the worker"])
def test_both_start_methods(run_python: RunPython, start_method: str, imported: str) -> None:
    code = """
        import sys
        import numpy as np, stook

        start_method, imported = sys.argv[1:]
        picture = np.arange(90 * 120 * 3).reshape(90, 120, 3).astype(np.uint8)
        if imported == "in the script":
            import cv2
            cv2.setNumThreads(2)
            cv2.GaussianBlur(np.zeros((2000, 2000), np.uint8), (31, 31), 0)  # uses its threads

        def element(index):
            import cv2
            blurred = cv2.GaussianBlur(np.zeros((2000, 2000), np.uint8), (31, 31), 0)
            return {
                "image": cv2.resize(picture, (60, 50)),
                "reversed": cv2.resize(picture, (60, 50))[..., ::-1],
                "blurred": int(blurred.sum()),
                "threads": cv2.getNumThreads(),
            }

        options = stook.MultiprocessingOptions(num_workers=2, start_method=start_method)
        with stook.DataLoader(range(4), element, options=options) as loader:
            elements = list(loader)
            stats = loader.stats()
        import cv2
        want = cv2.resize(picture, (60, 50))
        for element in elements:
            assert np.array_equal(element["image"], want)
            assert np.array_equal(element["reversed"], want[..., ::-1])
            assert element["reversed"].strides == (180, 3, -1)
            assert (element["blurred"], element["threads"]) == (0, 1)
        print(stats.moved, stats.copied)
    """
    done = run_python(code, start_method, imported, deadline=DEADLINE, flags=PARTNER_FLAGS)
    assert done.check().stdout == "8 0\n"
