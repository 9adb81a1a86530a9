"""Pillow, simplejpeg and imageio in worker processes."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from partner_loader import DEADLINE, PARTNER_FLAGS, each_start_method, loader

from conftest import RunPython


def picture() -> Any:
    rows, columns = np.mgrid[0:90, 0:120]
    return np.stack([rows, columns, rows + columns], axis=-1).astype(np.uint8)


def _opened() -> Any:
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    return image.fromarray(picture())


def as_array(index: int) -> Any:
    return np.asarray(_opened())


def array_of(index: int) -> Any:
    return np.array(_opened())


def image_itself(index: int) -> Any:
    return _opened()


@pytest.mark.parametrize(
    ("transform", "moved", "copied"), [(as_array, 0, 1), (array_of, 1, 0)], ids=["asarray", "array"]
)
def test_arrays_of_pillow(transform: Any, moved: int, copied: int) -> None:
    _opened()  # skips
    with loader(range(1), transform) as elements:
        (got,) = elements
        stats = elements.stats()
    assert np.array_equal(got, picture())
    assert got.flags.writeable
    # np.asarray() makes an array over bytes that are Pillow's, np.array() one of its own.
    assert (stats.moved, stats.copied) == (moved, copied)


def test_an_image_of_pillow_is_an_element() -> None:
    _opened()
    with loader(range(1), image_itself) as elements:
        (got,) = elements
    assert got == _opened()


def test_pillow_takes_delivered_arrays() -> None:
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    with loader(range(1), array_of) as elements:
        made = image.fromarray(next(iter(elements)))
    assert np.array_equal(np.asarray(made), picture())


@each_start_method
def test_a_comprehension_over_a_submodule(run_python: RunPython, start_method: str) -> None:
    # Before Python 3.12 a comprehension is a function of its own, within that of the script.
    pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    code = """
        import sys
        import numpy as np, stook
        import PIL.Image

        def load(sizes):
            return np.stack([np.array(PIL.Image.new("L", (60, 80), size)) for size in sizes])

        options = stook.MultiprocessingOptions(num_workers=1, start_method=sys.argv[1])
        with stook.DataLoader([(1, 2), (3, 4)], load, options=options) as loader:
            print([batch[:, 0, 0].tolist() for batch in loader])
    """
    done = run_python(code, start_method, deadline=DEADLINE, flags=PARTNER_FLAGS).check()
    assert done.stdout == "[[1, 2], [3, 4]]\n"


def _simplejpeg() -> Any:
    return pytest.importorskip("simplejpeg", reason="simplejpeg is not installed")


def decode(data: bytes) -> Any:
    return _simplejpeg().decode_jpeg(data)


def test_what_simplejpeg_decodes_is_moved() -> None:
    data = _simplejpeg().encode_jpeg(picture())
    with loader([data], decode) as elements:
        (got,) = elements
        stats = elements.stats()
    assert np.array_equal(got, decode(data))
    assert (stats.moved, stats.copied) == (1, 0)


def _imageio() -> Any:
    return pytest.importorskip("imageio.v3", reason="imageio is not installed")


def read(data: bytes) -> Any:
    return _imageio().imread(io.BytesIO(data), extension=".png")


def test_what_imageio_reads_arrives() -> None:
    data = _imageio().imwrite("<bytes>", picture(), extension=".png")
    with loader([data], read) as elements:
        (got,) = elements
    assert type(got) is np.ndarray
    assert np.array_equal(got, picture())
