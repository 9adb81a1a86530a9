"""stook.io.load_npz: what numpy.load gives, and an error for whatever is damaged."""

from __future__ import annotations

import io
import struct
import threading
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import stook.io
from stook.errors import DecodeError

Array = np.ndarray[Any, Any]

ARRAYS: dict[str, Array] = {
    "image": np.arange(60000, dtype=np.uint8).reshape(100, 200, 3),
    "fortran": np.asfortranarray(np.random.default_rng(5).random((40, 30))),
    "label": np.array(7),
    "nothing": np.zeros((0, 4)),
    "records": np.zeros(3, [("a", "<f4"), ("b", ">i2", (2,))]),
    "\u8c61/\u00e9": np.array(["a", "bc"]),
}


def npz(save: Callable[..., None] = np.savez, **arrays: Array) -> bytes:
    file = io.BytesIO()
    save(file, **(arrays or ARRAYS))
    return file.getvalue()


def assert_same(loaded: dict[str, Array], expected: dict[str, Array]) -> None:
    assert list(loaded) == list(expected)
    for name, array in expected.items():
        assert type(loaded[name]) is np.ndarray
        assert loaded[name].dtype == array.dtype
        assert loaded[name].shape == array.shape
        assert loaded[name].flags.f_contiguous == array.flags.f_contiguous
        assert loaded[name].flags.owndata
        assert loaded[name].tobytes("A") == array.tobytes("A")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_what_numpy_saves(save: Callable[..., None], tmp_path: Path) -> None:
    data = npz(save)
    path = tmp_path / "arrays.npz"
    path.write_bytes(b"x" * 31 + data + b"y" * 9)
    for source in (data, bytearray(data), (path, 31, len(data)), path):
        assert_same(stook.io.load_npz(source), ARRAYS)
    assert_same(stook.io.load_npz(npz(save, arr_0=np.ones(3))), {"arr_0": np.ones(3)})


def test_only_the_names_that_are_asked_for() -> None:
    data = npz()
    some = {name: ARRAYS[name] for name in ("image", "label")}
    assert_same(stook.io.load_npz(data, names=["label", "image"]), some)
    assert stook.io.load_npz(data, names=[]) == {}
    broken = data.replace(ARRAYS["image"].tobytes()[:50], bytes(50), 1)
    assert_same(stook.io.load_npz(broken, names=iter(["label"])), {"label": ARRAYS["label"]})
    with pytest.raises(KeyError, match="no array 'a', 'b'"):
        stook.io.load_npz(data, names=["b", "a", "image"])
    with pytest.raises(TypeError, match=r"pass \['image'\]"):
        stook.io.load_npz(data, names="image")


def with_zip64(data: bytes) -> bytes:
    """The same archive with all its sizes and places in zip64 records."""
    end = data.rindex(b"PK\5\6")
    count, _, at = struct.unpack_from("<HII", data, end + 10)
    directory = b""
    rest = data[at:end]
    while rest:
        name, extra, comment = struct.unpack_from("<3H", rest, 28)
        assert extra == comment == 0
        stored, content = struct.unpack_from("<2I", rest, 20)
        place = struct.unpack_from("<I", rest, 42)[0]
        more = struct.pack("<HHH", 0x9999, 2, 0) + struct.pack(
            "<HHQQQ", 1, 24, content, stored, place
        )
        directory += rest[:20] + b"\xff" * 8 + rest[28:30] + struct.pack("<H", len(more))
        directory += rest[32:42] + b"\xff" * 4 + rest[46 : 46 + name] + more
        rest = rest[46 + name :]
    end64 = struct.pack(
        "<IQHHIIQQQQ", 0x06064B50, 44, 45, 45, 0, 0, count, count, len(directory), at
    )
    locator = struct.pack("<IIQI", 0x07064B50, 0, at + len(directory), 1)
    last = struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    return data[:at] + directory + end64 + locator + last


def test_zip64() -> None:
    # numpy.savez asks for zip64 in each member's own header, which the first array crosses.
    data = npz(np.savez_compressed, a=np.arange(9), b=np.ones(4))
    plain = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(plain, "w") as copy:
        for name in source.namelist():
            copy.writestr(name, source.read(name), zipfile.ZIP_DEFLATED)
    long = with_zip64(plain.getvalue())
    expected: dict[str, Array] = {"a": np.arange(9), "b": np.ones(4)}
    assert_same(stook.io.load_npz(plain.getvalue()), expected)
    assert_same(stook.io.load_npz(long), expected)
    with np.load(io.BytesIO(long)) as numpys:  # and it is what others take for zip64
        np.testing.assert_array_equal(numpys["a"], np.arange(9))
    damaged = long.replace(struct.pack("<HH", 1, 24), struct.pack("<HH", 1, 8))
    with pytest.raises(DecodeError, match=r"damaged sizes of member 'a.npy'"):
        stook.io.load_npz(damaged)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_cut_anywhere_it_is_an_error(save: Callable[..., None], tmp_path: Path) -> None:
    data = npz(save, a=np.arange(20), b=np.ones(3, np.float32))
    path = tmp_path / "cut.npz"
    path.write_bytes(data)
    for cut in range(len(data)):
        for source in (data[:cut], (path, 0, cut)):
            with pytest.raises(DecodeError, match=r"no zip archive|empty"):
                stook.io.load_npz(source)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_no_changed_byte_changes_an_array(save: Callable[..., None]) -> None:
    arrays: dict[str, Array] = {"a": np.arange(20), "b": np.ones(3, np.float32)}
    data = npz(save, **arrays)
    refused = 0
    for at in range(len(data)):
        changed = data[:at] + bytes([data[at] ^ 0x15]) + data[at + 1 :]
        try:
            loaded = stook.io.load_npz(changed)
        except DecodeError:
            refused += 1
            continue
        for name in loaded.keys() & arrays.keys():  # names, times and the like are not protected
            np.testing.assert_array_equal(loaded[name], arrays[name])
    assert refused > len(data) // 2


def archive(name: str, content: bytes, method: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as made:
        made.writestr(name, content)
    return file.getvalue()


def npy(array: Array) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def patched(data: bytes, mark: bytes, offset: int, value: bytes) -> bytes:
    at = data.rindex(mark) + offset
    return data[:at] + value + data[at + len(value) :]


ENTRY, END = b"PK\1\2", b"PK\5\6"
ONE = npy(np.arange(300))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (ONE, r"no zip archive: begins with '\\x93NUM'"),
        (archive("a.npy", b""), "member 'a.npy': empty"),
        (archive("a.npy", ONE[:-1]), "member 'a.npy': ends early: 2399 of 2400"),
        (archive("a.npy", ONE + b"\0"), "member 'a.npy': has more content than its .npy header"),
        (archive("a.txt", b"something else"), "member 'a.txt': no .npy file: begins with 'someth'"),
        (archive("a.npy", ONE, zipfile.ZIP_BZIP2), "member 'a.npy': compressed by method 12"),
        (patched(archive("a.npy", ONE), ENTRY, 8, b"\1\0"), "member 'a.npy': encrypted"),
        (patched(archive("a.npy", ONE), ENTRY, 16, b"abcd"), "member 'a.npy': .*CRC-32 is wrong"),
        (patched(archive("a.npy", ONE), ENTRY, 20, b"\1"), "cannot have 2528 bytes of content in"),
        (patched(archive("a.npy", ONE), ENTRY, 42, b"\1"), "is not where the directory says"),
        (patched(archive("a.npy", ONE), ENTRY, 42, b"\1\1\1\1"), "lies outside of its archive"),
        (patched(archive("a.npy", ONE), ENTRY, 20, b"\xff\xff\x09\0" * 2), "lies outside"),
        (patched(archive("a.npy", ONE), END, 10, b"\2\0"), "has 1 members, its end says 2"),
        (patched(archive("a.npy", ONE), END, 4, b"\1\0"), "several volumes"),
        (patched(archive("a.npy", ONE), END, 12, b"\x32"), "damaged directory"),
        (patched(archive("a.npy", ONE), END, 16, b"\xff\xff\xff"), "does not fit"),
        (patched(archive("a.npy", ONE), ENTRY, 28, b"\xff\xff"), "damaged directory"),
        (patched(archive("a\u00e9.npy", ONE), ENTRY, 47, b"\xff"), "is not in UTF-8"),
    ],
)  # fmt: skip
def test_bad_archives(data: bytes, reason: str) -> None:
    with pytest.raises(DecodeError, match=reason) as caught:
        stook.io.load_npz(data)
    assert str(caught.value).startswith(f"cannot decode <bytes of {len(data)} bytes>: ")


def test_deflated_content_must_be_what_the_directory_says() -> None:
    good = archive("a.npy", ONE, zipfile.ZIP_DEFLATED)
    assert_same(stook.io.load_npz(good), {"a": np.arange(300)})
    for size, reason in ((2527, "ends early"), (2529, "more content than its .npy header")):
        wrong = patched(good, ENTRY, 24, size.to_bytes(4, "little"))
        with pytest.raises(DecodeError, match=reason):
            stook.io.load_npz(wrong)
    longer = archive("a.npy", ONE + b"1", zipfile.ZIP_DEFLATED)
    with pytest.raises(DecodeError, match="more content than its header says"):
        stook.io.load_npz(patched(longer, ENTRY, 24, (2528).to_bytes(4, "little")))
    shorter = archive("a.npy", ONE[:-1], zipfile.ZIP_DEFLATED)
    with pytest.raises(DecodeError, match="less content than its header says"):
        stook.io.load_npz(patched(shorter, ENTRY, 24, (2528).to_bytes(4, "little")))
    stored = struct.unpack_from("<I", good, good.rindex(ENTRY) + 20)[0]
    for size in (stored - 1, stored - 9):
        with pytest.raises(DecodeError, match="less content"):
            stook.io.load_npz(patched(good, ENTRY, 20, size.to_bytes(4, "little")))
    at = good.index(b"a.npy") + len("a.npy")
    with pytest.raises(DecodeError, match="cannot be inflated: invalid block type"):
        stook.io.load_npz(good[:at] + b"\xff" + good[at + 1 :])


def test_two_members_of_one_name_are_refused() -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as made:
        made.writestr("a.npy", ONE)
        made.writestr("a", ONE)
    with pytest.raises(DecodeError, match="member 'a': a second one of this name"):
        stook.io.load_npz(file.getvalue())


def test_members_that_share_their_bytes_are_refused() -> None:
    one = archive("a.npy", ONE, zipfile.ZIP_DEFLATED)
    at, end = one.rindex(ENTRY), one.rindex(END)
    entry = one[at:end]
    entries = entry + entry.replace(b"a.npy", b"b.npy")
    both = one[:at] + entries + one[end:]
    both = patched(both, END, 10, b"\2\0" + len(entries).to_bytes(4, "little"))
    with pytest.raises(DecodeError, match=r"members '.\.npy' and '.\.npy' overlap"):
        stook.io.load_npz(both)


def test_folders_are_passed_over_and_names_may_be_of_old_code_pages() -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as made:
        made.writestr("folder/", b"")
        made.writestr("folder/a\u00e9.npy", ONE)
    data = file.getvalue()
    at = data.rindex(ENTRY)
    assert list(stook.io.load_npz(data)) == ["folder/a\u00e9"]
    old = data[: at + 8] + b"\0\0" + data[at + 10 :]
    assert list(stook.io.load_npz(old)) == ["folder/a\u251c\u2310"]


def test_pickled_objects_are_refused() -> None:
    with pytest.raises(DecodeError, match=r"member 'b.npy': holds pickled Python objects"):
        stook.io.load_npz(npz(a=np.ones(3), b=np.array([None])))


def test_a_bomb_takes_no_memory() -> None:
    header = npy(np.zeros(0)).replace(b"(0,), }" + b" " * 14, b"(125000000,), }      ")
    content = header + bytes(1 << 20)
    bomb = archive("a.npy", content, zipfile.ZIP_DEFLATED)
    bomb = patched(bomb, ENTRY, 24, (10**9 + 128).to_bytes(4, "little"))
    tracemalloc.start()
    try:
        with pytest.raises(DecodeError, match="cannot have 1000000128 bytes of content in"):
            stook.io.load_npz(bomb)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_threads_read_at_the_same_time() -> None:
    data = npz(np.savez_compressed)
    failures: list[BaseException] = []

    def read() -> None:
        try:
            for _ in range(5):
                assert_same(stook.io.load_npz(data), ARRAYS)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_ctrl_c_between_the_names_is_not_taken_for_a_bad_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Interrupted:  # as a signal handler that runs while a name is decoded
        @staticmethod
        def charmap_decode(*_: Any) -> Any:
            raise KeyboardInterrupt

    monkeypatch.setattr("encodings.cp437.codecs", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        stook.io.load_npz(npz(a=np.zeros(3)))
