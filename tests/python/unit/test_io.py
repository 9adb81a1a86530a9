"""stook.io: pixels are those of djpeg, and every bad input has a defined result."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import io
import mmap
import os
import signal
import threading
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import numpy as np
import pytest
from jpeg_cases import (
    CMYK,
    TINY,
    Image,
    cjpeg,
    djpeg,
    needs_tools,
    picture,
    with_exif,
    with_size,
)

import stook.io
from stook.errors import DecodeError, StookError

CODINGS = [
    "",
    "-sample 2x1",
    "-sample 1x2",
    "-sample 1x1",
    "-sample 4x1",
    "-progressive",
    "-progressive -sample 1x1 -restart 1B",
    "-restart 1",
    "-arithmetic",
    "-arithmetic -progressive",
    "-grayscale",
    "-grayscale -progressive",
    "-rgb",
    "-quality 12",
    "-optimize -quality 100",
]


@needs_tools
@pytest.mark.parametrize("options", CODINGS)
def test_pixels_equal_djpeg(options: str) -> None:
    sizes = [(n, 18 - n) for n in range(1, 18)] + [(1, 1), (17, 17), (64, 48), (97, 130)]
    for height, width in sizes:
        jpeg = cjpeg(picture(height, width), options)
        rgb = stook.io.decode_jpeg(jpeg)
        assert rgb.shape == (height, width, 3)
        assert rgb.dtype == np.uint8
        assert rgb.flags.c_contiguous and rgb.flags.owndata and rgb.flags.writeable
        np.testing.assert_array_equal(rgb, djpeg(jpeg, "-rgb"))
        luma = stook.io.decode_jpeg(jpeg, mode="L")
        assert luma.shape == (height, width)
        np.testing.assert_array_equal(luma, djpeg(jpeg, "-grayscale"))


@needs_tools
def test_grey_becomes_rgb_by_repetition() -> None:
    jpeg = cjpeg(picture(9, 14), "-grayscale")
    luma = stook.io.decode_jpeg(jpeg, mode="L")
    np.testing.assert_array_equal(stook.io.decode_jpeg(jpeg), np.stack([luma] * 3, axis=-1))


@needs_tools
def test_cmyk_of_adobe_equals_djpeg() -> None:
    np.testing.assert_array_equal(stook.io.decode_jpeg(CMYK), djpeg(CMYK))


def test_cmyk_is_inverted_only_with_an_adobe_marker() -> None:
    plain = CMYK[:2] + CMYK[18:]  # without its APP14 segment
    y, x = np.mgrid[:2, :4]
    cmyk = np.stack([40 + x * 20, 200 - y * 50, 100 + x * 10 + y * 20, 255 - x * 30 - y * 10], -1)
    for jpeg, ink in ((CMYK, cmyk), (plain, 255 - cmyk)):
        expected = ink[..., :3] * ink[..., 3:] / 255
        rgb = stook.io.decode_jpeg(jpeg)
        np.testing.assert_allclose(rgb, expected, atol=2)
        luma = stook.io.decode_jpeg(jpeg, mode="L")
        np.testing.assert_allclose(luma, rgb @ [0.299, 0.587, 0.114], atol=0.51)
    assert stook.io.jpeg_info(plain).color_space == "CMYK"


TURNED: dict[int, Callable[[Image], Image]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}


@needs_tools
@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_orientation_is_applied_when_asked(orientation: int, mode: str) -> None:
    jpeg = with_exif(cjpeg(picture(53, 37)), orientation)
    stored = djpeg(jpeg, "-grayscale" if mode == "L" else "")
    np.testing.assert_array_equal(stook.io.decode_jpeg(jpeg, mode=mode), stored)
    turned = stook.io.decode_jpeg(jpeg, mode=mode, apply_orientation=True)
    np.testing.assert_array_equal(turned, TURNED[orientation](stored))
    out = np.zeros((turned.shape[0], turned.shape[1] + 3, *turned.shape[2:]), np.uint8)
    into = out[:, 1:-2]
    assert stook.io.decode_jpeg(jpeg, mode=mode, apply_orientation=True, out=into) is into
    np.testing.assert_array_equal(into, turned)
    assert not out[:, 0].any() and not out[:, -2:].any()


def test_orientation_that_makes_no_sense_is_upright() -> None:
    for orientation in (0, 9, 255):
        jpeg = with_exif(TINY, orientation)
        assert stook.io.jpeg_info(jpeg).orientation == 1
        turned = stook.io.decode_jpeg(jpeg, apply_orientation=True)
        np.testing.assert_array_equal(turned, stook.io.decode_jpeg(TINY))


@needs_tools
@pytest.mark.parametrize("options", ["", "-progressive", "-arithmetic", "-restart 1B"])
def test_cut_anywhere_it_is_truncated(options: str) -> None:
    jpeg = cjpeg(picture(20, 24), options)
    header = jpeg.index(b"\xff\xda") + 2
    header += int.from_bytes(jpeg[header : header + 2], "big")
    stook.io.decode_jpeg(jpeg, allow_truncated=True)
    for cut in range(len(jpeg)):
        part = jpeg[:cut]
        with pytest.raises(DecodeError, match=r"Premature end|Empty input"):
            stook.io.decode_jpeg(part)
        if cut < header:
            with pytest.raises(DecodeError):
                stook.io.decode_jpeg(part, allow_truncated=True)
            continue
        kept = stook.io.decode_jpeg(part, allow_truncated=True)
        assert kept.shape == (20, 24, 3)
        if cut % 7 == 0 and options != "-progressive":
            np.testing.assert_array_equal(kept, djpeg(part))


@needs_tools
def test_rows_before_the_cut_are_kept() -> None:
    jpeg = cjpeg(picture(400, 300))
    whole = stook.io.decode_jpeg(jpeg)
    kept = stook.io.decode_jpeg(jpeg[: len(jpeg) // 2], allow_truncated=True)
    np.testing.assert_array_equal(kept[:100], whole[:100])
    assert (kept[-16:] != whole[-16:]).any()


@needs_tools
def test_damage_is_an_error_even_where_truncation_is_allowed() -> None:
    jpeg = cjpeg(picture(64, 64), "-restart 1")
    out_of_turn = jpeg.replace(b"\xff\xd1", b"\xff\xd5", 1)
    for allow_truncated in (False, True):
        with pytest.raises(DecodeError, match="Corrupt JPEG data: found marker 0xd5"):
            stook.io.decode_jpeg(out_of_turn, allow_truncated=allow_truncated)


@needs_tools
def test_stray_bytes_between_segments_are_harmless() -> None:
    jpeg = cjpeg(picture(16, 16))
    expected = stook.io.decode_jpeg(jpeg)
    at = jpeg.index(b"\xff\xdb")
    for odd in (jpeg[:at] + b"\x12\x34" + jpeg[at:], jpeg[:-2] + b"\0" + jpeg[-2:], jpeg + b"xyz"):
        np.testing.assert_array_equal(stook.io.decode_jpeg(odd), expected)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "cannot decode <bytes of 0 bytes>: Empty input file"),
        (b"\x89PNG", "cannot decode <bytes of 4 bytes>: Not a JPEG file: starts with 0x89 0x50"),
        (TINY.replace(b"\xff\xc0\0\x0b\x08", b"\xff\xc0\0\x0b\x0c"), "data precision 12"),
        (TINY.replace(b"\xff\xc0", b"\xff\xc3"), "Unsupported JPEG process: SOF type 0xc3"),
        (with_size(TINY, 3, 0), "DNL not supported"),
        (with_size(TINY, 0, 3), "Empty JPEG image"),
        (TINY[:30], "Premature end of JPEG file"),
        (
            TINY.replace(b"\xff\xc4", b"\xff\xc8"),
            "Unsupported marker type|Unsupported JPEG process",
        ),
    ],
)
def test_bad_data_name_the_reason(data: bytes, reason: str) -> None:
    for read in (stook.io.decode_jpeg, stook.io.jpeg_info):
        with pytest.raises(DecodeError, match=reason) as caught:
            read(data)
        assert isinstance(caught.value, StookError)
        assert isinstance(caught.value, ValueError)
        assert str(caught.value).startswith(f"cannot decode <bytes of {len(data)} bytes>: ")


def test_a_bad_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "näch%s.jpg"
    path.write_bytes(b"GIF89a")
    for source in (path, str(path)):
        with pytest.raises(DecodeError) as caught:
            stook.io.decode_jpeg(source)
        assert str(caught.value) == f"cannot decode {path}: Not a JPEG file: starts with 0x47 0x49"
    path.write_bytes(b"")
    with pytest.raises(DecodeError, match="Empty input file"):
        stook.io.decode_jpeg(path)


def test_max_pixels() -> None:
    assert stook.io.DEFAULT_MAX_PIXELS == 2 * (1024**3 // 4 // 3)
    assert stook.io.decode_jpeg(TINY, max_pixels=6).shape == (2, 3, 3)
    with pytest.raises(DecodeError, match=r"3 x 2 is 6 pixels, more than max_pixels=5; raise max"):
        stook.io.decode_jpeg(TINY, max_pixels=5)
    for no_limit in (None, 10**30):
        assert stook.io.decode_jpeg(TINY, max_pixels=no_limit).shape == (2, 3, 3)
    for senseless in (0, -1):
        with pytest.raises(ValueError, match=f"max_pixels must be at least 1.*not {senseless}"):
            stook.io.decode_jpeg(TINY, max_pixels=senseless)
    with pytest.raises(TypeError):
        stook.io.decode_jpeg(TINY, max_pixels=1.5)  # type: ignore[arg-type]


def test_a_bomb_is_refused_before_memory_is_taken() -> None:
    bomb = with_size(TINY, 65500, 65500)
    tracemalloc.start()
    try:
        with pytest.raises(DecodeError, match="65500 x 65500 is 4290250000 pixels"):
            stook.io.decode_jpeg(bomb)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    assert stook.io.jpeg_info(bomb).width == 65500


@needs_tools
def test_a_bomb_of_scans_is_refused(tmp_path: Path) -> None:
    scans = tmp_path / "scans"
    scans.write_text("0 1 2: 0-0, 0, 0;\n0: 1-63, 0, 0;\n1: 1-63, 0, 0;\n2: 1-63, 0, 0;\n")
    jpeg = cjpeg(picture(16, 16), f"-scans {scans}")
    last = jpeg[jpeg.rindex(b"\xff\xda") : -2]
    fine = jpeg[:-2] + last * 90 + jpeg[-2:]
    np.testing.assert_array_equal(stook.io.decode_jpeg(fine), djpeg(jpeg))
    for allow_truncated in (False, True):
        with pytest.raises(DecodeError, match="more than 100 scans"):
            stook.io.decode_jpeg(jpeg[:-2] + last * 5000, allow_truncated=allow_truncated)


def buffers() -> list[tuple[str, object]]:
    mapped = mmap.mmap(-1, len(TINY))
    mapped.write(TINY)
    return [
        ("bytes", TINY),
        ("bytearray", bytearray(TINY)),
        ("memoryview", memoryview(bytearray(TINY))),
        ("slice", memoryview(b"xx" + TINY)[2:]),
        ("ndarray", np.frombuffer(TINY, np.uint8)),
        ("int8", np.frombuffer(TINY, np.int8)),
        ("2-d", np.frombuffer(TINY, np.uint8).reshape(2, -1)),
        ("ctypes", (ctypes.c_ubyte * len(TINY)).from_buffer_copy(TINY)),
        ("BytesIO", io.BytesIO(TINY).getbuffer()),
        ("mmap", mapped),
    ]


@pytest.mark.parametrize("name", [name for name, _ in buffers()])
def test_sources_in_memory(name: str) -> None:
    source = dict(buffers())[name]
    expected = np.array([[0, 128, 255]] * 2, np.uint8)
    decoded = stook.io.decode_jpeg(source, mode="L")  # type: ignore[arg-type]
    np.testing.assert_array_equal(decoded, expected)
    assert stook.io.jpeg_info(source).height == 2  # type: ignore[arg-type]


def test_sources_on_disk(tmp_path: Path) -> None:
    class Custom:
        def __fspath__(self) -> str:
            return str(path)

    path = tmp_path / "tiny.jpg"
    path.write_bytes(TINY)
    in_array = np.array([str(path)])[0]  # numpy.str_, which exports its memory
    for source in (path, str(path), Custom(), in_array):
        assert stook.io.decode_jpeg(source).shape == (2, 3, 3)
        assert stook.io.jpeg_info(source).width == 3


def test_a_buffer_is_released_after_success_and_failure() -> None:
    for content in (TINY, TINY[:-1], b"no"):
        source = bytearray(content)
        for read in (stook.io.decode_jpeg, stook.io.jpeg_info):
            with contextlib.suppress(DecodeError):
                read(source)
            source.append(0)  # BufferError while it is exported
            del source[-1]
    strided = bytearray(8)
    with pytest.raises(ValueError, match="C-contiguous"):
        stook.io.decode_jpeg(memoryview(strided)[::2])
    strided.append(0)


def test_what_is_no_source() -> None:
    for source in (None, 3, ["a.jpg"], 1.5):
        with pytest.raises(TypeError, match=f"path .* not {type(source).__name__}"):
            stook.io.decode_jpeg(source)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="items of format 'f'"):
        stook.io.decode_jpeg(np.zeros(8, np.float32))
    with pytest.raises(ValueError, match="null"):
        stook.io.decode_jpeg("a\0b")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    missing_path = str(tmp_path / "missing.jpg")
    for read in (stook.io.decode_jpeg, stook.io.jpeg_info):
        with pytest.raises(FileNotFoundError) as not_found:
            read(missing_path)
        assert not_found.value.errno == errno.ENOENT
        assert not_found.value.filename == missing_path
        with pytest.raises(IsADirectoryError) as directory:
            read(tmp_path)
        assert directory.value.filename == str(tmp_path)
    huge = tmp_path / "huge.jpg"
    huge.write_bytes(TINY)
    os.truncate(huge, 2**30 + 1)
    with pytest.raises(OSError, match="too large"):
        stook.io.decode_jpeg(huge)


def test_reading_a_file_leaves_other_threads_running(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    result: list[Image] = []
    reader = threading.Thread(target=lambda: result.append(stook.io.decode_jpeg(pipe)))
    reader.start()
    with pipe.open("wb") as file:  # the reader waits for this without the GIL, or nobody goes on
        file.write(TINY[:50])
        file.flush()
        file.write(TINY[50:])
    reader.join()
    assert result[0].shape == (2, 3, 3)


def test_a_signal_interrupts_reading(tmp_path: Path) -> None:
    class Interrupted(Exception):
        pass

    handled: list[int] = []

    def interrupt(number: int, _frame: FrameType | None) -> None:
        handled.append(number)
        if len(handled) == 1:
            raise Interrupted

    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with pytest.raises(Interrupted):
            # Again and again: one alone could come just before the file is opened.
            signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
            stook.io.decode_jpeg(pipe)  # nobody ever writes
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_info_needs_the_beginning_alone(tmp_path: Path) -> None:
    padding = b"\xff\xe2\xff\xff" + bytes(0xFFFD)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    jpeg = TINY[:2] + padding * 3 + TINY[2:]  # a header longer than what is read at first
    done = threading.Event()

    def write() -> None:
        with pipe.open("wb", buffering=0) as file:
            with contextlib.suppress(BrokenPipeError):  # the reader had enough
                file.write(jpeg + bytes(100_000))
            done.wait()  # the end of the file does not come before the answer

    writer = threading.Thread(target=write)
    writer.start()
    try:
        assert stook.io.jpeg_info(pipe).width == 3
    finally:
        done.set()
        writer.join()
    file = tmp_path / "long.jpg"
    file.write_bytes(jpeg)
    assert stook.io.jpeg_info(file) == stook.io.jpeg_info(TINY)


@needs_tools
def test_info() -> None:
    jpeg = with_exif(cjpeg(picture(30, 41), "-progressive -sample 2x1"), 6)
    expected = stook.io.JpegInfo(
        width=41,
        height=30,
        components=3,
        color_space="YCbCr",
        subsampling="4:2:2",
        progressive=True,
        arithmetic=False,
        orientation=6,
    )
    info = stook.io.jpeg_info(jpeg)
    assert info == expected
    assert hash(info) == hash(expected)
    with pytest.raises(AttributeError):
        info.width = 3  # type: ignore[misc]
    assert not hasattr(info, "__dict__")
    grey = stook.io.jpeg_info(cjpeg(picture(8, 8), "-grayscale -arithmetic"))
    assert (grey.components, grey.color_space, grey.subsampling) == (1, "grayscale", None)
    assert grey.arithmetic and not grey.progressive and grey.orientation == 1


def test_out_is_filled_and_returned() -> None:
    expected = stook.io.decode_jpeg(TINY)
    canvas = np.full((6, 7, 3), 77, np.uint8)
    views = {
        "packed": np.zeros((2, 3, 3), np.uint8),
        "rows apart": canvas[1:5:2, 2:5],
        "upside down": np.zeros((2, 3, 3), np.uint8)[::-1],
    }
    for out in views.values():
        assert stook.io.decode_jpeg(TINY, out=out) is out
        np.testing.assert_array_equal(out, expected)
    canvas[1:5:2, 2:5] = 77
    assert (canvas == 77).all()
    luma = np.zeros((2, 5), np.uint8)[:, 1:4]
    assert stook.io.decode_jpeg(TINY, mode="L", out=luma) is luma
    np.testing.assert_array_equal(luma, expected[..., 0])


@needs_tools
def test_out_of_length_one_may_have_any_stride() -> None:
    column = cjpeg(picture(5, 1))
    out = np.zeros((5, 7, 3), np.uint8)[:, ::7]
    np.testing.assert_array_equal(stook.io.decode_jpeg(column, out=out), djpeg(column))
    row = cjpeg(picture(1, 5))
    out = np.lib.stride_tricks.as_strided(np.zeros(15, np.uint8), (1, 5, 3), (0, 3, 1))
    np.testing.assert_array_equal(stook.io.decode_jpeg(row, out=out), djpeg(row))


def overlapping() -> Image:
    return np.lib.stride_tricks.as_strided(np.zeros(64, np.uint8), (2, 3, 3), (8, 3, 1))


def read_only() -> Image:
    array = np.zeros((2, 3, 3), np.uint8)
    array.flags.writeable = False
    return array


@pytest.mark.parametrize(
    ("out", "error", "message"),
    [
        (np.zeros((3, 2, 3), np.uint8), ValueError, r"\(3, 2, 3\), the image needs \(2, 3, 3\)"),
        (np.zeros((2, 3), np.uint8), ValueError, r"\(2, 3\), the image needs \(2, 3, 3\)"),
        (np.zeros((2, 3, 3), np.int8), TypeError, "dtype uint8, not int8"),
        (np.zeros((2, 3, 3), np.float32), TypeError, "dtype uint8, not float32"),
        (read_only(), ValueError, "read-only"),
        ([[0]], TypeError, "numpy.ndarray of dtype uint8, not list"),
        (bytearray(18), TypeError, "numpy.ndarray of dtype uint8, not bytearray"),
        (np.zeros((2, 3, 6), np.uint8)[..., ::2], ValueError, r"strides .*not \(18, 6, 2\)"),
        (np.zeros((2, 6, 3), np.uint8)[:, ::2], ValueError, r"strides .*not \(18, 6, 1\)"),
        (np.zeros((2, 3, 3), np.uint8)[:, ::-1], ValueError, "strides"),
        (overlapping(), ValueError, r"not overlap.*not \(8, 3, 1\)"),
    ],
)
def test_out_that_does_not_fit(out: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        stook.io.decode_jpeg(TINY, out=out)  # type: ignore[arg-type]


def test_out_may_not_be_the_source() -> None:
    memory = np.zeros(1000, np.uint8)
    memory[: len(TINY)] = np.frombuffer(TINY, np.uint8)
    source = memory[: len(TINY)]
    with pytest.raises(ValueError, match="share memory"):
        stook.io.decode_jpeg(source, out=memory[100:118].reshape(2, 3, 3))
    beside = memory[len(TINY) : len(TINY) + 18].reshape(2, 3, 3)
    assert stook.io.decode_jpeg(source, out=beside) is beside


def test_mode_is_checked() -> None:
    for mode in ("rgb", "CMYK", "", None):
        with pytest.raises(ValueError, match=f'mode must be "RGB" or "L", not {mode!r}'):
            stook.io.decode_jpeg(TINY, mode=mode)  # type: ignore[arg-type]


@needs_tools
def test_many_threads_at_once() -> None:
    jpegs = [cjpeg(picture(100 + i, 90), o) for i, o in enumerate(["", "-progressive", "-rgb"])]
    expected = [djpeg(jpeg) for jpeg in jpegs]
    wrong: list[int] = []

    def decode(which: int) -> None:
        for i in range(which, which + 60):
            if not np.array_equal(stook.io.decode_jpeg(jpegs[i % 3]), expected[i % 3]):
                wrong.append(i)
            try:
                stook.io.decode_jpeg(jpegs[i % 3][:-30])
            except DecodeError:
                continue
            wrong.append(-i)

    threads = [threading.Thread(target=decode, args=(which,)) for which in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
