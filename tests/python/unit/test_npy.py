"""stook.io.load_npy: what numpy.load gives, and an error for whatever NumPy does not write."""

from __future__ import annotations

import errno
import io
import mmap
import os
import threading
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.lib import format as npy_format

import stook.io
from stook.errors import DecodeError

Array = np.ndarray[Any, Any]


def npy(array: Array, version: tuple[int, int] | None = None) -> bytes:
    file = io.BytesIO()
    npy_format.write_array(file, array, version=version)
    return file.getvalue()


def with_header(header: str | bytes, version: int = 1, body: bytes = b"") -> bytes:
    text = header.encode("latin-1") if isinstance(header, str) else header
    return (
        b"\x93NUMPY"
        + bytes([version, 0])
        + len(text).to_bytes(2 if version == 1 else 4, "little")
        + text
        + body
    )


DTYPES = [
    "?", "b", "B", "<i2", ">i2", "<u4", ">u8", "<f2", ">f4", "f8", "g", "F", "D", "S3", "<U5",
    ">U2", "V7", "M8[ns]", "M8[3D]", "m8[us]", "m8", "S0",
    [("a", "<f4"), ("b", ">i2", (2, 3)), ("c", "S2")],
    [(("a title", "name"), "i4"), ("\u00e9'\n\"\\", "u1")],
    [("outer", [("inner", "<c16"), ("other", "V3")], (2,))],
    np.dtype([("a", "i1"), ("b", "f8")], align=True),
    np.dtype({"names": ["a"], "formats": ["i4"], "offsets": [8], "itemsize": 32}),
    [],
]  # fmt: skip


def filled(dtype: Any, shape: tuple[int, ...]) -> Array:
    array = np.zeros(shape, dtype)
    if array.dtype.kind == "U":
        array[...] = "ab"
    elif array.dtype.itemsize:
        count = array.size * array.dtype.itemsize
        raw = np.random.default_rng(3).integers(0, 2, count, np.uint8)
        array = np.frombuffer(raw.tobytes(), array.dtype).reshape(shape)
    return array


def memory(array: Array) -> Array:
    """Its bytes as they lie."""
    return array.ravel("K").view(np.uint8)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_numpy_saves(dtype: Any) -> None:
    for shape in ((), (1,), (0,), (5,), (3, 4), (2, 0, 3), (2, 3, 4)):
        for array in (filled(dtype, shape), np.asfortranarray(filled(dtype, shape))):
            data = npy(array)
            expected = np.load(io.BytesIO(data))
            loaded = stook.io.load_npy(data)
            assert type(loaded) is np.ndarray
            assert loaded.dtype == expected.dtype
            assert loaded.shape == expected.shape
            assert loaded.flags.owndata and loaded.flags.writeable
            if array.dtype.itemsize:  # where there are no bytes, NumPy forgets the order
                assert loaded.flags.c_contiguous == expected.flags.c_contiguous
                assert loaded.flags.f_contiguous == expected.flags.f_contiguous
                np.testing.assert_array_equal(loaded, expected)
            if array.dtype.names is None and array.dtype.itemsize:  # NumPy drops padding at times
                np.testing.assert_array_equal(memory(loaded), memory(expected))


def test_all_versions() -> None:
    array = np.arange(6.0).reshape(2, 3)
    for version in ((1, 0), (2, 0), (3, 0)):
        np.testing.assert_array_equal(stook.io.load_npy(npy(array, version)), array)
    named = np.zeros(2, [("\u00e9", "i4")])
    for version in ((1, 0), (2, 0), (3, 0)):
        assert stook.io.load_npy(npy(named, version)).dtype.names == ("\u00e9",)
    chinese = np.zeros(2, [("\u8c61\U0001f418", "i4")])
    assert stook.io.load_npy(npy(chinese, (3, 0))).dtype == chinese.dtype
    header = "{'descr': '<i2', 'fortran_order': False, 'shape': (2L, 1L)}"
    assert stook.io.load_npy(with_header(header, 1, bytes(4))).shape == (2, 1)
    with pytest.raises(DecodeError, match="a comma expected"):
        stook.io.load_npy(with_header(header, 3, bytes(4)))


def test_layouts_of_the_header_that_mean_the_same() -> None:
    for header in (
        "{'shape':(2,),'descr':'<i2','fortran_order':False}",
        ' \t{ "descr" : "<i2" ,\n "fortran_order" : False , "shape" : ( 2 , ) , } \n\n',
        r"{'\x64esc\u0072': '\U0000003ci2', 'fortran_order': False, 'shape': (2,)}",
    ):
        assert stook.io.load_npy(with_header(header, 1, b"\1\0\2\0")).tolist() == [1, 2]


DICT = "{'descr': %s, 'fortran_order': %s, 'shape': %s}"


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ("", "a value expected"),
        ("()", "no dict"),
        ("{}", "is missing"),
        ("{'descr': '<i2', 'fortran_order': False}", "is missing"),
        (DICT % ("'<i2'", "False", "(2,)") + "x", "something follows"),
        (DICT % ("'<i2'", "False", "(2,)") + " # no", "something follows"),
        (DICT[:-1] % ("'<i2'", "False", "(2,)") + ", 'shape': (2,)}", "a key too many: 'shape'"),
        (DICT[:-1] % ("'<i2'", "False", "(2,)") + ", 'more': ()}", "a key too many: 'more'"),
        (DICT % ("'<i2'", "0", "(2,)"), "neither True nor False"),
        (DICT % ("'<i2'", "None", "(2,)"), "a value expected"),
        (DICT % ("'<i2'", "False", "(2)"), "without its comma"),
        (DICT % ("'<i2'", "False", "[2]"), "shape is no tuple"),
        (DICT % ("'<i2'", "False", "(-1,)"), "a value expected"),
        (DICT % ("'<i2'", "False", "(True,)"), "shape is no tuple"),
        (DICT % ("'<i2'", "False", "(1.0,)"), "a comma expected"),
        (DICT % ("'<i2'", "False", "(02,)"), "begins with 0"),
        (DICT % ("'<i2'", "False", "(9223372036854775808,)"), "2\\*\\*63"),
        (DICT % ("'<i2'", "False", "(4611686018427387904,)"), "more than 2\\*\\*63 bytes"),
        (DICT % ("'<i2'", "False", "(4611686018427387904, 0)"), "more than 2\\*\\*63 bytes"),
        (DICT % ("'<i2'", "False", "(" + "1, " * 65 + ")"), "NumPy says: .*dimension"),
        (DICT % ("'<i2", "False", "(2,)"), "a comma expected|a colon|a value"),
        (DICT % ("'<i3'", "False", "(2,)"), "NumPy says"),
        (DICT % ("'i2,i4'", "False", "(2,)"), "no dtype is called 'i2,i4'"),
        (DICT % ("'float32'", "False", "(2,)"), "no dtype is called 'float32'"),
        (DICT % ("'(2,)i4'", "False", "(2,)"), "no dtype is called"),
        (DICT % ("'<V99999999999'", "False", "(2,)"), "no dtype is called"),
        (DICT % ("'M8[ns'", "False", "(2,)"), "no dtype is called"),
        (DICT % ("'i8[ns]'", "False", "(2,)"), "no dtype is called"),
        (DICT % ("'T'", "False", "(2,)"), "no dtype is called"),
        (DICT % ("''", "False", "(2,)"), "no dtype is called"),
        (DICT % ("('<i2', (2,))", "False", "(2,)"), "descr is no dtype"),
        (DICT % ("{'names': ['a'], 'formats': ['O']}", "False", "(2,)"), "descr is no dtype"),
        (DICT % ("['<i2']", "False", "(2,)"), "a field is not"),
        (DICT % ("[('a',)]", "False", "(2,)"), "a field is not"),
        (DICT % ("[('a', '<i2', 3)]", "False", "(2,)"), "shape of a field"),
        (DICT % ("[('a', '<i2'), ('a', '<i2')]", "False", "(2,)"), "NumPy says"),
        (DICT % ("[('a', '<i2', (4294967296, 4294967296))]", "False", "(2,)"), "NumPy says"),
        (DICT % ("'\\N{DIGIT TWO}'", "False", "(2,)"), "an escape"),
        (DICT % ("'\\ud800'", "False", "(2,)"), "no code point"),
        (DICT % ("'\\U00110000'", "False", "(2,)"), "no code point"),
        ("(" * 200, "too many levels"),
    ],
)
def test_headers_that_numpy_does_not_write(header: str, reason: str) -> None:
    data = with_header(header, 1, bytes(64))
    with pytest.raises(DecodeError, match=reason) as caught:
        stook.io.load_npy(data)
    assert str(caught.value).startswith(f"cannot decode <bytes of {len(data)} bytes>: ")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty: 0 bytes"),
        (b"\x93NUMP", "ends in the middle of its .npy header"),
        (b"PK\3\4" + bytes(60), r"no .npy file: begins with 'PK\\x03\\x04\\x00\\x00'"),
        (b"\x93NUMPY\4\0" + bytes(60), "format version 4.0"),
        (b"\x93NUMPY\0\0" + bytes(60), "format version 0.0"),
        (b"\x93NUMPY\1\1" + bytes(60), "format version 1.1"),
        (b"\x93NUMPY\2\0\1\0\x10\0" + bytes(60), "header of 1048577 bytes; more than 1048576"),
        (with_header(b"{'\xff'", 3), "version 3 is in UTF-8"),
        (with_header(b"{'\xed\xa0\x80'", 3), "version 3 is in UTF-8"),
        (with_header(b"{'\xc0\xaf'", 3), "version 3 is in UTF-8"),
    ],
)
def test_what_is_no_npy_file(data: bytes, reason: str) -> None:
    with pytest.raises(DecodeError, match=reason):
        stook.io.load_npy(data)


def test_pickled_objects_are_refused() -> None:
    for dtype in ("O", [("a", "i4"), ("b", "O")]):
        file = io.BytesIO()
        np.save(file, np.zeros(3, dtype), allow_pickle=True)
        with pytest.raises(DecodeError, match=r"holds pickled Python objects \(dtype '\|O'\)"):
            stook.io.load_npy(file.getvalue())


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_cut_anywhere_it_is_an_error(version: tuple[int, int], tmp_path: Path) -> None:
    array = np.arange(20, dtype=">i4").reshape(4, 5)
    data = npy(array, version)
    path = tmp_path / "cut.npy"
    for cut in range(len(data)):
        path.write_bytes(data[:cut])
        for source in (data[:cut], path, (path, 0, cut)):
            with pytest.raises(DecodeError, match=r"ends|empty|in the file|begins"):
                stook.io.load_npy(source)


def test_what_follows_the_array_is_left_alone(tmp_path: Path) -> None:
    first, second = np.arange(3), np.ones((2, 2), np.float32)
    path = tmp_path / "two.npy"
    path.write_bytes(npy(first) + npy(second))
    np.testing.assert_array_equal(stook.io.load_npy(path), first)
    begin = len(npy(first))
    for length in (len(npy(second)), path.stat().st_size - begin):
        np.testing.assert_array_equal(stook.io.load_npy((path, begin, length)), second)


def test_sources(tmp_path: Path) -> None:
    array = np.arange(1000, dtype="<f8").reshape(10, 100, order="F")
    path = tmp_path / "array.npy"
    np.save(path, array)
    data = path.read_bytes()
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        for source in (path, str(path), data, bytearray(data), memoryview(data), mapped):
            loaded = stook.io.load_npy(source)
            np.testing.assert_array_equal(loaded, array)
            assert loaded.flags.f_contiguous
        mapped_array = np.memmap(path, np.uint8, "r")
        np.testing.assert_array_equal(stook.io.load_npy(mapped_array), array)
        del mapped_array
    for source in (None, 3, [path]):
        with pytest.raises(TypeError, match="source must be a path"):
            stook.io.load_npy(source)  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError) as caught:
        stook.io.load_npy(tmp_path / "missing.npy")
    assert caught.value.filename == str(tmp_path / "missing.npy")
    with pytest.raises(IsADirectoryError):
        stook.io.load_npy(tmp_path)
    with pytest.raises(DecodeError, match=r"the file has 8100 of these 9000 bytes"):
        stook.io.load_npy((path, 28, 9000))


def test_a_pipe_is_read_to_its_end(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    result: list[Array] = []
    reader = threading.Thread(target=lambda: result.append(stook.io.load_npy(pipe)))
    reader.start()
    data = npy(np.arange(40000))
    with pipe.open("wb") as file:
        file.write(data[:50])
        file.flush()
        file.write(data[50:])
    reader.join()
    np.testing.assert_array_equal(result[0], np.arange(40000))
    with pytest.raises(OSError) as caught:
        writer = os.open(pipe, os.O_RDWR)
        try:
            stook.io.load_npy((pipe, 0, 10))
        finally:
            os.close(writer)
    assert caught.value.errno == errno.ESPIPE


def test_no_memory_is_taken_for_what_is_not_there() -> None:
    tracemalloc.start()
    try:
        for shape in ("(1000000000000,)", "(65536, 65536)", "(9, 1000000)"):
            with pytest.raises(DecodeError, match=r"ends early: 100 of .* bytes of the array"):
                stook.io.load_npy(with_header(DICT % ("'<f8'", "False", shape), 1, bytes(100)))
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_the_file_is_closed_and_the_buffer_released(tmp_path: Path) -> None:
    path = tmp_path / "array.npy"
    for content in (npy(np.arange(5)), b"\x93NUMPY\1\0", b"no array at all"):
        path.write_bytes(content)
        source = bytearray(content)
        descriptors = len(os.listdir("/proc/self/fd"))
        for _ in range(3):
            for read_from in (path, source):
                try:
                    stook.io.load_npy(read_from)
                except DecodeError:
                    assert not content.endswith(bytes(7))
        source.append(0)  # BufferError while it is exported
        assert len(os.listdir("/proc/self/fd")) == descriptors
