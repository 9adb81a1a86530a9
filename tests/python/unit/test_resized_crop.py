"""decode_resized_crop and decode_batch: the right pixels in the right place, or a clear error."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jpeg_cases import CMYK, TINY, Image, cjpeg, needs_tools, picture, with_size
from numpy.typing import NDArray

import stook.io
from stook.errors import DecodeError
from stook.io import decode_resized_crop

FILTERS = ("box", "bilinear", "hamming", "bicubic", "lanczos")
WHOLE = (0, 0, 131, 97)


def triangle_weights(begin: float, end: float, inputs: int, outputs: int) -> NDArray[np.float64]:
    """(outputs, inputs): the antialiased bilinear filter, in double precision."""
    step = (end - begin) / outputs
    centers = begin + (np.arange(outputs) + 0.5) * step
    distances = np.abs(np.arange(inputs) + 0.5 - centers[:, None]) / max(step, 1)
    weights = np.maximum(0, 1 - distances)
    return weights / weights.sum(axis=1, keepdims=True)


def reference(image: Image, box: tuple[float, ...], size: tuple[int, int]) -> NDArray[np.float64]:
    """What `bilinear` gives without any rounding: of the pixels that the box touches."""
    left, top = int(np.floor(box[0])), int(np.floor(box[1]))
    part = image[top : int(np.ceil(box[3])), left : int(np.ceil(box[2]))].astype(np.float64)
    down = triangle_weights(box[1] - top, box[3] - top, part.shape[0], size[0])
    across = triangle_weights(box[0] - left, box[2] - left, part.shape[1], size[1])
    return np.einsum("yj,jk...,xk->yx...", down, part, across, optimize=True)


@pytest.fixture(scope="module")
def jpeg() -> bytes:
    """131 columns, 97 rows, with colour at half the resolution."""
    return cjpeg(picture(97, 131))


edges = st.one_of(st.integers(0, 131), st.floats(0, 131, allow_nan=False))


@needs_tools
@settings(max_examples=150, deadline=None)
@given(
    st.tuples(edges, edges).map(sorted),
    st.tuples(edges, edges).map(sorted),
    st.tuples(st.integers(1, 300), st.integers(1, 300)),
    st.booleans(),
    st.sampled_from(["RGB", "L"]),
)
def test_bilinear_is_within_one_of_the_reference(
    jpeg: bytes,
    across: list[float],
    down: list[float],
    size: tuple[int, int],
    flip: bool,
    mode: Any,
) -> None:
    down = [min(edge, 97) for edge in down]
    if across[0] >= across[1] or down[0] >= down[1]:
        return
    box = (across[0], down[0], across[1], down[1])
    expected = reference(stook.io.decode_jpeg(jpeg, mode=mode), box, size)
    got = decode_resized_crop(jpeg, box, size, scaled_decode=False, flip=flip, mode=mode)
    assert got.shape == (size if mode == "L" else (*size, 3))
    assert got.dtype == np.uint8 and got.flags.c_contiguous and got.flags.owndata
    np.testing.assert_allclose(got[:, ::-1] if flip else got, expected, atol=0.75)


@needs_tools
@settings(max_examples=100, deadline=None)
@given(
    st.tuples(st.integers(0, 130), st.integers(1, 131)),
    st.tuples(st.integers(0, 96), st.integers(1, 97)),
    st.sampled_from(FILTERS),
)
def test_at_its_own_size_a_box_is_a_slice(
    jpeg: bytes, x: tuple[int, int], y: tuple[int, int], filter: Any
) -> None:
    left, top = x[0], y[0]
    right, bottom = min(131, left + x[1]), min(97, top + y[1])
    got = decode_resized_crop(
        jpeg, (left, top, right, bottom), (bottom - top, right - left), filter=filter
    )
    np.testing.assert_array_equal(got, stook.io.decode_jpeg(jpeg)[top:bottom, left:right])


@needs_tools
@pytest.mark.parametrize("size", [(1, 1), (1, 2000), (2000, 1), (900, 1100)])
@pytest.mark.parametrize("filter", FILTERS)
def test_extreme_sizes(jpeg: bytes, size: tuple[int, int], filter: Any) -> None:
    whole = decode_resized_crop(jpeg, None, size, filter=filter, scaled_decode=False)
    assert whole.shape == (*size, 3)
    pixel = decode_resized_crop(jpeg, (70, 40, 71, 41), size, filter=filter)
    np.testing.assert_array_equal(pixel, np.broadcast_to(pixel[0, 0], pixel.shape))
    np.testing.assert_array_equal(pixel[0, 0], stook.io.decode_jpeg(jpeg)[40, 70])
    if filter == "bilinear":
        expected = reference(stook.io.decode_jpeg(jpeg), WHOLE, size)
        np.testing.assert_allclose(whole, expected, atol=0.75)


def test_one_pixel_becomes_10000_by_10000() -> None:
    pixel = decode_resized_crop(TINY, (1, 1, 2, 2), (1, 1), mode="L")
    large = decode_resized_crop(TINY, (1, 1, 2, 2), (10_000, 10_000), mode="L")
    assert large.min() == large.max() == pixel[0, 0]


@needs_tools
def test_10000_by_10000_become_one_pixel() -> None:
    """Rows of 0 and of 255 in turns: their mean is known, whatever is done on the way."""
    header = b"P5\n10000 10000\n255\n"
    rows = (bytes(10_000) + b"\xff" * 10_000) * 5_000
    data = subprocess.run(["cjpeg", "-quality", "100"], input=header + rows, capture_output=True)
    for scaled in (False, True):
        for mode in ("L", "RGB"):
            how: dict[str, Any] = {"mode": mode, "scaled_decode": scaled, "filter": "box"}
            pixel = decode_resized_crop(data.stdout, None, (1, 1), **how)
            np.testing.assert_allclose(pixel.astype(int), 127.5, atol=1)


@needs_tools
def test_a_box_of_none_is_the_whole_image(jpeg: bytes) -> None:
    np.testing.assert_array_equal(
        decode_resized_crop(jpeg, None, (50, 60)), decode_resized_crop(jpeg, WHOLE, (50, 60))
    )
    numpy_box = np.array(WHOLE, np.float32)
    np.testing.assert_array_equal(
        decode_resized_crop(jpeg, None, (50, 60)), decode_resized_crop(jpeg, numpy_box, (50, 60))
    )


@needs_tools
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("layout", ["HWC", "CHW"])
@pytest.mark.parametrize("dtype", ["uint8", "float32", "float16"])
def test_types_and_layouts_hold_the_same_pixels(
    jpeg: bytes, mode: Any, layout: Any, dtype: str
) -> None:
    box, size = (3.5, 2, 120, 90.25), (61, 53)
    pixels = decode_resized_crop(jpeg, box, size, mode=mode)
    got = decode_resized_crop(jpeg, box, size, mode=mode, layout=layout, dtype=dtype, flip=True)
    assert got.dtype == dtype and got.flags.c_contiguous
    expected: NDArray[Any] = pixels[:, ::-1]
    if layout == "CHW" and mode == "RGB":
        expected = np.moveaxis(expected, -1, 0)
    if dtype != "uint8":
        expected = expected.astype(np.float32) * np.float32(1 / 255)
    np.testing.assert_array_equal(got, expected.astype(dtype))


@needs_tools
def test_mean_and_std(jpeg: bytes) -> None:
    mean, std = (0.485, 0.456, 0.406), [0.229, 0.224, 0.225]
    pixels = decode_resized_crop(jpeg, None, (30, 40))
    got = decode_resized_crop(jpeg, None, (30, 40), dtype=np.float32, mean=mean, std=std)
    np.testing.assert_allclose(got, (pixels / 255 - mean) / std, rtol=0, atol=1e-6)
    half = decode_resized_crop(jpeg, None, (30, 40), dtype=np.float16, mean=mean, std=std)
    np.testing.assert_array_equal(half, got.astype(np.float16))
    one = decode_resized_crop(jpeg, None, (30, 40), mode="L", dtype="float32", mean=[0.5], std=0.25)
    for mean_of_one in (np.float32(0.5), np.array(0.5)):
        same = decode_resized_crop(
            jpeg, None, (30, 40), mode="L", dtype="float32", mean=mean_of_one, std=np.float64(0.25)
        )
        np.testing.assert_array_equal(same, one)
    luma = decode_resized_crop(jpeg, None, (30, 40), mode="L")
    np.testing.assert_allclose(one, (luma / 255 - 0.5) / 0.25, rtol=0, atol=1e-6)


SAMPLINGS = ["1x1", "2x1", "1x2", "2x2", "4x1", "1x4", "4x2", "2x4", "2x2,1x2,2x1"]


@needs_tools
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_scaled_windows_are_those_of_the_whole(sampling: str) -> None:
    height, width = 192, 256
    data = cjpeg(picture(height, width), f"-sample {sampling}")
    for divisor in (2, 4, 8):
        whole = decode_resized_crop(data, None, (height // divisor, width // divisor))
        for left, top, right, bottom in ((3, 2, 9, 7), (0, 1, 5, 6), (13, 0, 32, 24)):
            box = tuple(divisor * edge for edge in (left, top, right, bottom))
            got = decode_resized_crop(data, box, (bottom - top, right - left))
            np.testing.assert_array_equal(got, whole[top:bottom, left:right])


CODINGS = ["-sample 1x1", "-sample 1x2", "-sample 4x1", "-progressive", "-arithmetic", "-restart 1"]


@needs_tools
@pytest.mark.parametrize("options", [*CODINGS, "-grayscale", "-rgb", "-grayscale -progressive"])
def test_every_coding(options: str) -> None:
    data = cjpeg(picture(70, 90), options)
    whole = stook.io.decode_jpeg(data)
    for box in ((0, 0, 90, 70), (33, 17, 34, 18), (89, 69, 90, 70), (5, 6, 77, 55)):
        left, top, right, bottom = box
        got = decode_resized_crop(data, box, (bottom - top, right - left), scaled_decode=False)
        np.testing.assert_array_equal(got, whole[top:bottom, left:right])
    y, x, c = np.ogrid[:70, :90, :3]
    waves = 127.5 + 60 * (np.sin(x * 0.1 + c) + np.cos(y * 0.12 - c))
    smooth = cjpeg(waves.astype(np.uint8), options)
    for size in (34, 17, 8):
        # Colour that is coarser one way than the other gets coarser still, so there only luma.
        mode: Any = "L" if options in ("-sample 1x2", "-sample 4x1") else "RGB"
        scaled = decode_resized_crop(smooth, None, (size, size), mode=mode)
        unscaled = decode_resized_crop(smooth, None, (size, size), mode=mode, scaled_decode=False)
        assert np.abs(scaled.astype(int) - unscaled).mean() < 3
        assert (scaled != unscaled).any()


def test_cmyk() -> None:
    whole = stook.io.decode_jpeg(CMYK)
    np.testing.assert_array_equal(decode_resized_crop(CMYK, None, (2, 4)), whole)
    for mode in ("RGB", "L"):
        part = decode_resized_crop(CMYK, (1, 1, 3, 2), (1, 2), mode=mode)
        np.testing.assert_array_equal(part, stook.io.decode_jpeg(CMYK, mode=mode)[1:2, 1:3])


@needs_tools
def test_portable_kernels_give_the_same(jpeg: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(jpeg)
    code = """
        import hashlib, sys, stook.io
        digest = hashlib.sha256()
        for size in (20, 131, 200):
            for dtype in ("uint8", "float16"):
                box = (0.5, 3, 128, 96)
                how = {"dtype": dtype, "filter": "lanczos"}
                image = stook.io.decode_resized_crop(sys.argv[1], box, (size, size + 1), **how)
                digest.update(image)
        print(digest.hexdigest())
    """
    digests = {
        subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code), path],
            env={**os.environ, "STOOK_SIMD": simd},
            capture_output=True,
            check=True,
        ).stdout
        for simd in ("portable", "")
    }
    assert len(digests) == 1


@pytest.mark.parametrize(
    "box",
    [(0, 0, 4, 2), (0, 0, 3, 3), (-1, 0, 3, 2), (0, -0.5, 3, 2), (2, 0, 1, 2), (1, 0, 1, 2)],
)
def test_a_box_outside_is_an_error(box: Any) -> None:
    with pytest.raises(ValueError, match=r"box \(.*\) is not a box .* within 3 x 2") as caught:
        decode_resized_crop(TINY, box, (2, 2))
    assert not isinstance(caught.value, DecodeError)
    assert str(caught.value).startswith(f"cannot decode <bytes of {len(TINY)} bytes>: ")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"box": (0, 0, 1)}, TypeError, r"four numbers .* not \(0, 0, 1\)"),
        ({"box": "abcd"}, TypeError, "four numbers"),
        ({"box": 3}, TypeError, "four numbers"),
        ({"box": (0, 0, 1, float("nan"))}, ValueError, "finite"),
        ({"box": (0, 0, float("inf"), 1)}, ValueError, "finite"),
        ({"size": 4}, TypeError, r"pair of ints \(height, width\), not 4"),
        ({"size": (4, 4, 3)}, TypeError, "pair of ints"),
        ({"size": (4.5, 4)}, TypeError, "pair of ints"),
        ({"size": (0, 4)}, ValueError, "1 to 65535"),
        ({"size": (4, 70000)}, ValueError, "1 to 65535"),
        ({"mode": "CMYK"}, ValueError, "mode must be"),
        ({"filter": "nearest"}, ValueError, "filter must be one of box, bilinear"),
        ({"layout": "NCHW"}, ValueError, "layout must be"),
        ({"dtype": "float64"}, ValueError, "dtype must be one of uint8, float32, float16"),
        ({"dtype": ">f4"}, ValueError, "dtype must be one of"),
        ({"mean": 0.5}, ValueError, "uint8 is not normalised"),
        ({"std": 0.5}, ValueError, "uint8 is not normalised"),
        ({"dtype": "float32", "std": 0}, ValueError, "std must be greater than 0"),
        ({"dtype": "float32", "std": (1, 1, -1)}, ValueError, "std must be greater than 0"),
        ({"dtype": "float32", "mean": (1, 1)}, ValueError, "mean must be one number, or three"),
        ({"dtype": "float32", "mean": float("nan")}, ValueError, "mean must be finite"),
        ({"dtype": "float32", "mode": "L", "mean": (1, 1, 1)}, ValueError, "must be one number"),
        ({"dtype": "float32", "mean": ()}, ValueError, "mean must be one number, or three"),
        ({"dtype": "float32", "std": 1e-300}, ValueError, "single precision cannot hold"),
        ({"dtype": "float32", "mean": 1e300}, ValueError, "single precision cannot hold"),
        ({"dtype": "float32", "mean": "grey"}, ValueError, "mean must be numbers, not 'grey'"),
        ({"max_pixels": 0}, ValueError, "max_pixels must be at least 1"),
        ({"max_pixels": 5}, DecodeError, "3 x 2 is 6 pixels, more than max_pixels=5"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    given: dict[str, Any] = {"box": (0, 0, 3, 2), "size": (2, 2), **arguments}
    with pytest.raises(error, match=message):
        decode_resized_crop(TINY, given.pop("box"), given.pop("size"), **given)


def test_bad_sources(tmp_path: Path) -> None:
    with pytest.raises(DecodeError, match="Not a JPEG file"):
        decode_resized_crop(b"GIF89a", None, (2, 2))
    with pytest.raises(DecodeError, match="Empty input"):
        decode_resized_crop(b"", None, (2, 2))
    with pytest.raises(TypeError, match=r"path .* not int"):
        decode_resized_crop(3, None, (2, 2))  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError) as caught:
        decode_resized_crop(tmp_path / "none.jpg", None, (2, 2))
    assert caught.value.errno == errno.ENOENT
    assert caught.value.filename == str(tmp_path / "none.jpg")
    with pytest.raises(DecodeError, match="65500 x 65500 is 4290250000 pixels"):
        decode_resized_crop(with_size(TINY, 65500, 65500), (0, 0, 1, 1), (1, 1))


@needs_tools
@pytest.mark.parametrize("options", ["", "-progressive", "-restart 1"])
def test_cut_anywhere_it_is_truncated(options: str) -> None:
    data = cjpeg(picture(40, 33), options)
    for box in ((0, 0, 33, 1), (7, 35, 20, 40)):
        for cut in range(1, len(data)):
            with pytest.raises(DecodeError, match=r"Premature end.*allow_truncated=True"):
                decode_resized_crop(data[:cut], box, (4, 4))
        kept = decode_resized_crop(data[:-2], box, (4, 4), allow_truncated=True)
        np.testing.assert_array_equal(kept, decode_resized_crop(data, box, (4, 4)))


@needs_tools
def test_out(jpeg: bytes) -> None:
    box, size = (5, 6, 100, 90), (20, 24)
    expected = decode_resized_crop(jpeg, box, size)
    memory = np.full((22, 30, 3), 7, np.uint8)
    out = memory[1:-1, 2:26]
    assert decode_resized_crop(jpeg, box, size, out=out) is out
    np.testing.assert_array_equal(out, expected)
    out[:] = 7
    assert (memory == 7).all()
    upside_down = memory[-2:0:-1, 2:26]
    decode_resized_crop(jpeg, box, size, out=upside_down)
    np.testing.assert_array_equal(upside_down, expected)
    planes = np.zeros((3, 21, 26), np.float32)[:, :20, :24]
    decode_resized_crop(jpeg, box, size, out=planes, dtype="float32", layout="CHW")
    np.testing.assert_allclose(planes, np.moveaxis(expected, -1, 0) / 255, atol=1e-6)


def _read_only() -> NDArray[Any]:
    array = np.zeros((2, 2, 3), np.uint8)
    array.flags.writeable = False
    return array


@pytest.mark.parametrize(
    ("out", "error", "message"),
    [
        ([], TypeError, "numpy.ndarray of dtype uint8, not list"),
        (np.zeros((2, 2, 3), np.int8), TypeError, "dtype uint8, not int8"),
        (np.zeros((2, 2, 3), np.float32), TypeError, "dtype uint8, not float32"),
        (np.zeros((2, 2), np.uint8), ValueError, r"shape \(2, 2\), the result needs \(2, 2, 3\)"),
        (np.zeros((1, 2, 2, 3), np.uint8), ValueError, "the result needs"),
        (np.zeros((3, 2, 2), np.uint8).transpose(1, 2, 0), ValueError, "contiguous"),
        (np.zeros((2, 4, 3), np.uint8)[:, ::2], ValueError, "contiguous"),
        (np.zeros((2, 2, 3), np.uint8)[:, ::-1], ValueError, "contiguous"),
        (_read_only(), ValueError, "read-only"),
    ],
)
def test_out_that_does_not_fit(out: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        decode_resized_crop(TINY, None, (2, 2), out=out)


def test_out_may_not_overlap_itself_or_the_source() -> None:
    memory = np.zeros(64, np.uint8)
    same_rows = np.lib.stride_tricks.as_strided(memory, (2, 2, 3), (0, 3, 1))
    with pytest.raises(ValueError, match="do not overlap"):
        decode_resized_crop(TINY, None, (2, 2), out=same_rows)
    misaligned = np.frombuffer(bytearray(49), np.uint8)[1:].view(np.float32).reshape(2, 2, 3)
    with pytest.raises(ValueError, match="aligned"):
        decode_resized_crop(TINY, None, (2, 2), out=misaligned, dtype="float32")
    memory = np.zeros(1000, np.uint8)
    memory[: len(TINY)] = np.frombuffer(TINY, np.uint8)
    with pytest.raises(ValueError, match="share memory"):
        decode_resized_crop(memory[: len(TINY)], None, (2, 2), out=memory[100:112].reshape(2, 2, 3))


@needs_tools
def test_memory_is_that_of_the_box(tmp_path: Path) -> None:
    """Of 3,000 x 3,000 pixels (27 MB) a narrow box keeps a few rows."""
    code = """
        import sys, stook.io

        def peak():
            status = open("/proc/self/status").read()
            return int(status.split("VmHWM:")[1].split()[0])

        data = open(sys.argv[1], "rb").read()
        stook.io.decode_resized_crop(data, (0, 0, 300, 64), (224, 224))
        before = peak()
        for box in ((1000, 1000, 1300, 2900), (0, 0, 3000, 3000)):
            for size in ((224, 224), (3, 3)):
                stook.io.decode_resized_crop(data, box, size, scaled_decode=False)
        print(peak() - before)
    """
    path = tmp_path / "large.jpg"
    path.write_bytes(cjpeg(np.tile(picture(100, 100), (30, 30, 1))))
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), path],
        capture_output=True,
        check=True,
        text=True,
    )
    assert int(done.stdout) < 4 << 10  # KiB
