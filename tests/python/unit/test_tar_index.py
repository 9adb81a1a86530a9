"""stook.io.TarIndex: the members that tarfile finds, as samples, each where it lies."""

from __future__ import annotations

import io
import os
import pickle
import random
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from test_io import TINY

import stook
from stook.errors import DecodeError
from stook.io import FilePart, TarIndex

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


def content_of(name: str) -> bytes:
    return random.Random(name).randbytes(len(name) * 37 % 1500)


def make(
    path: Path,
    names: list[str],
    kind: int = tarfile.PAX_FORMAT,
    change: Callable[[tarfile.TarInfo], object] = lambda member: None,
) -> Path:
    with tarfile.open(path, "w", format=kind) as tar:
        for name in names:
            member = tarfile.TarInfo(name)
            content = content_of(name)
            member.size = len(content)
            change(member)
            tar.addfile(member, io.BytesIO(content) if member.isreg() else None)
    return path


NAMES = ["000.jpg", "000.cls", "sub/001.jpg", "sub/001.json", "002.seg.png", "002.JPG"]


@pytest.mark.parametrize("kind", FORMATS)
def test_samples_in_the_manner_of_webdataset(kind: str, tmp_path: Path) -> None:
    index = TarIndex(make(tmp_path / "a.tar", NAMES, FORMATS[kind]))
    assert len(index) == 3
    assert [list(sample) for sample in index] == [
        ["__key__", "jpg", "cls"],
        ["__key__", "jpg", "json"],
        ["__key__", "seg.png", "jpg"],
    ]
    assert [sample["__key__"] for sample in index] == ["000", "sub/001", "002"]
    assert index[-1] == index[2]
    assert index[1:] == [index[1], index[2]]
    assert repr(index) == f"TarIndex({str(tmp_path / 'a.tar')!r}): 3 samples"
    for i in (3, -4):
        with pytest.raises(IndexError, match=f"sample {i} of .*, which has 3"):
            index[i]
    part = index[2]["seg.png"]
    assert isinstance(part, FilePart)
    assert part.read() == content_of("002.seg.png")


LONG = [
    "d" * 90 + "/" + "n" * 90 + ".x",  # prefix and name of ustar
    "d" * 140 + "/" + "n" * 95 + ".y",
    "\u8c61\u00e9 \U0001f418.txt",
    "a.b/c.d.e",
]


@pytest.mark.parametrize("kind", FORMATS)
def test_what_tarfile_finds(kind: str, tmp_path: Path) -> None:
    names = [*NAMES, *LONG]
    if kind != "ustar":
        names += ["long/" * 300 + "name.txt", "x" * 101 + ".y", "after.txt"]
    path = make(tmp_path / "a.tar", names, FORMATS[kind])
    found = list(TarIndex(path).members())
    with tarfile.open(path) as tar:
        expected = [(m.name, (str(path), m.offset_data, m.size)) for m in tar]
    assert found == expected
    assert [name for name, _ in found] == names
    for name, part in found:
        assert part.read() == content_of(name)


@pytest.mark.skipif(shutil.which("tar") is None, reason="there is no tar program")
@pytest.mark.parametrize("kind", ["v7", "oldgnu", "gnu", "ustar", "pax"])
def test_what_the_program_tar_makes(kind: str, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    (folder / "deep").mkdir(parents=True)
    names = ["a.txt", "b.txt", "deep/c.bin"]
    for name in names:
        (folder / name).write_bytes(content_of(name))
    (folder / "d.lnk").symlink_to("a.txt")
    os.link(folder / "b.txt", folder / "z.txt")
    if kind != "v7":  # which has none
        os.mkfifo(folder / "pipe.x")
    path = tmp_path / "a.tar"
    subprocess.run(
        ["tar", f"--format={kind}", "--sort=name", "-cf", path, "-C", folder, "."], check=True
    )
    found = {name: part.read() for name, part in TarIndex(path).members()}
    expected = {f"./{name}": content_of(name) for name in names}
    assert found == {**expected, "./z.txt": content_of("b.txt")}


def test_what_belongs_to_no_sample(tmp_path: Path) -> None:
    names = ["README", "1.jpg", "Makefile", "1.cls", ".hidden.jpg", "sub/.hidden", "1.x/2.jpg"]
    index = TarIndex(make(tmp_path / "a.tar", names))
    assert [sample["__key__"] for sample in index] == ["1", "1.x/2"]
    assert list(index[0]) == ["__key__", "jpg", "cls"]
    assert [name for name, _ in index.members()] == names


def test_a_key_that_comes_again_is_another_sample(tmp_path: Path) -> None:
    index = TarIndex(make(tmp_path / "a.tar", ["1.a", "2.a", "1.a"]))
    assert [sample["__key__"] for sample in index] == ["1", "2", "1"]
    with pytest.raises(DecodeError, match=r"two members of sample '1' have the ending of '1.A'"):
        TarIndex(make(tmp_path / "b.tar", ["1.a", "1.b", "1.A"]))


def test_hard_links(tmp_path: Path) -> None:
    def link(member: tarfile.TarInfo) -> None:
        if member.name != "1.txt":
            member.type = tarfile.LNKTYPE
            member.linkname = {"2.txt": "1.txt", "3.txt": "2.txt"}.get(member.name, "9.txt")
            member.size = 0

    index = TarIndex(make(tmp_path / "a.tar", ["1.txt", "2.txt", "3.txt"], change=link))
    assert [sample["txt"] for sample in index] == [index[0]["txt"]] * 3
    with pytest.raises(DecodeError, match=r"'4.txt' is a hard link to '9.txt', which is not in"):
        TarIndex(make(tmp_path / "b.tar", ["1.txt", "4.txt"], change=link))


def test_a_pipe_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.tar")
    with pytest.raises(ValueError, match=r"'.*a\.tar' is a pipe; save the archive to a file"):
        TarIndex(tmp_path / "a.tar")


def test_links_to_what_is_no_file_are_none_either(tmp_path: Path) -> None:
    def link(member: tarfile.TarInfo) -> None:
        kind, target = {
            "2.txt": (tarfile.SYMTYPE, "1.txt"),
            "3.txt": (tarfile.LNKTYPE, "2.txt"),
            "4.txt": (tarfile.LNKTYPE, "3.txt"),
            "5.txt": (tarfile.LNKTYPE, "1.txt"),
        }.get(member.name, (tarfile.REGTYPE, ""))
        if target:
            member.type, member.linkname, member.size = kind, target, 0

    names = ["1.txt", "2.txt", "3.txt", "4.txt", "5.txt"]
    index = TarIndex(make(tmp_path / "a.tar", names, change=link))
    assert [sample["__key__"] for sample in index] == ["1", "5"]
    assert index[1]["txt"] == index[0]["txt"]


def test_it_is_a_source_for_workers(tmp_path: Path) -> None:
    path = tmp_path / "shard.tar"
    with tarfile.open(path, "w") as tar:
        for i in range(6):
            for ending, content in (("jpg", TINY), ("cls", b"%d" % i)):
                member = tarfile.TarInfo(f"{i:04}.{ending}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    index = TarIndex(path)

    def read(sample: stook.io.TarSample) -> tuple[str, np.ndarray, int]:
        image, label = sample["jpg"], sample["cls"]
        assert isinstance(image, FilePart) and isinstance(label, FilePart)
        key = sample["__key__"]
        assert isinstance(key, str)
        return key, stook.io.decode_jpeg(image, mode="L"), int(label.read())

    for options in (stook.MultiprocessingOptions(), stook.MultiprocessingOptions(num_workers=1)):
        with stook.DataLoader(index, read, options=options) as loader:
            for i, (key, image, label) in enumerate(loader):
                assert (key, label) == (f"{i:04}", i)
                assert image.tolist() == [[0, 128, 255]] * 2


def test_it_pickles_and_holds_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / "a.tar", NAMES)
    monkeypatch.chdir(tmp_path)
    descriptors = len(os.listdir("/proc/self/fd"))
    index = TarIndex("a.tar")
    copy = pickle.loads(pickle.dumps(index))
    assert list(copy) == list(index)
    monkeypatch.chdir("/")
    part = copy[0]["jpg"]
    assert isinstance(part, FilePart)
    assert part.read() == content_of("000.jpg")
    assert copy.path == str(tmp_path / "a.tar")
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_a_large_index_is_small_and_shared(tmp_path: Path) -> None:
    names = [f"{i:06}.x" for i in range(2000)]
    index = TarIndex(make(tmp_path / "a.tar", names))
    assert [sample["__key__"] for sample in index] == [name[:-2] for name in names]
    assert len(pickle.dumps(index)) < 2000 * 60


def test_cut_anywhere_it_is_an_error(tmp_path: Path) -> None:
    names = ["1.a", "2.a", "n" * 120 + ".a"]
    path = make(tmp_path / "a.tar", names)
    data = path.read_bytes()
    with tarfile.open(path) as tar:
        ends = [member.offset_data + member.size for member in tar]
    whole = (ends[-1] + 511) // 512 * 512 + 512  # with the first of the two empty blocks
    for cut in range(0, whole, 3):
        path.write_bytes(data[:cut])
        with pytest.raises(DecodeError, match=r"ends early.*allow_truncated=True keeps|empty"):
            TarIndex(path)
        if cut > 0:
            kept = [name for name, _ in TarIndex(path, allow_truncated=True).members()]
            assert kept == names[: sum(end <= cut for end in ends)]
    path.write_bytes(data[:whole])
    assert len(TarIndex(path)) == 3


def test_no_changed_byte_of_a_header_goes_unnoticed(tmp_path: Path) -> None:
    path = make(tmp_path / "a.tar", ["1.a"], tarfile.USTAR_FORMAT)
    data = path.read_bytes()
    for at in range(512):
        path.write_bytes(data[:at] + bytes([data[at] ^ 0x15]) + data[at + 1 :])
        with pytest.raises(DecodeError, match="checksum"):
            TarIndex(path)


def resummed(header: bytes) -> bytes:
    blank = header[:148] + b" " * 8 + header[156:]
    return blank[:148] + b"%06o\0 " % sum(blank) + blank[156:]


def header(name: bytes = b"1.a", size: bytes = b"00000000001", kind: bytes = b"0") -> bytes:
    fields = name.ljust(124, b"\0") + size.ljust(32, b"\0") + kind
    return resummed(fields.ljust(257, b"\0").ljust(512, b"\0"))


END = bytes(1024)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty: 0 bytes"),
        (b"\x1f\x8b" + bytes(600), r"compressed \(gzip\).*decompress it first"),
        (b"\x28\xb5\x2f\xfd" + bytes(600), r"compressed \(zstd\)"),
        (b"\xfd7zXZ" + bytes(600), r"compressed \(xz\)"),
        (b"BZh9" + bytes(600), r"compressed \(bzip2\)"),
        (TINY.ljust(1024, b"x"), "no tar archive, or a damaged one"),
        (header(size=b"0000000000x") + END, "the size of a member is no number"),
        (header(size=b"\x80" + b"\xff" * 11) + END, "the size of a member is no number"),
        (header(size=b"\xff" * 12) + END, "the size of a member is no number"),
        (header(size=b"\x80" + bytes(3) + b"\x7f" + b"\xff" * 7) + END, "ends early"),
        (header(size=b"77777777777") + END, "ends early"),
        (header(kind=b"S") + END, "sparse"),
        (header(kind=b"x", size=b"00010000000") + END, "ends early"),
        (header(kind=b"L", size=b"00004000001") + bytes(1 << 21), "header of 1048577 bytes"),
        (header(kind=b"x", size=b"3") + b"9 a".ljust(512) + END, "damaged pax"),
        (header(kind=b"x", size=b"3") + b"3 \n".ljust(512) + END, "damaged pax|without a value"),
        (header(kind=b"x", size=b"5") + b"5 ab\n".ljust(512) + END, "without a value"),
        (header(kind=b"x", size=b"11") + b"9 size=x\n".ljust(512) + END, "no number|damaged pax"),
        (header(kind=b"x", size=b"31") + b"25 GNU.sparse.major=1.00\n".ljust(512) + END, "sparse"),
    ],
)
def test_bad_archives(data: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.tar"
    path.write_bytes(data)
    with pytest.raises(DecodeError, match=reason) as caught:
        TarIndex(path)
    assert str(caught.value).startswith(f"cannot decode {path}: ")


def test_sizes_beyond_octal_digits_and_sums_of_signed_bytes(tmp_path: Path) -> None:
    binary = header(size=b"\x80" + (5).to_bytes(11, "big"))
    path = tmp_path / "a.tar"
    path.write_bytes(binary + b"hello".ljust(512, b"\0") + END)
    assert next(TarIndex(path).members())[1].read() == b"hello"
    name = header(name="\u00e9.a".encode())
    blank = name[:148] + b" " * 8 + name[156:]
    total = sum(byte - 256 if byte > 127 else byte for byte in blank)
    path.write_bytes(blank[:148] + b"%06o\0 " % total + blank[156:] + b"x".ljust(512) + END)
    assert TarIndex(path)[0]["__key__"] == "\u00e9"


def test_a_name_that_is_not_utf8_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(header(name=b"\xff.A") + b"x".ljust(512) + END)
    sample = TarIndex(path)[0]
    assert os.fsencode(str(sample["__key__"])) == b"\xff"
    assert list(sample) == ["__key__", "a"]


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        TarIndex(tmp_path / "missing.tar")
    assert caught.value.filename == str(tmp_path / "missing.tar")
    index = TarIndex(make(tmp_path / "a.tar", NAMES))
    part = index[2]["jpg"]
    assert isinstance(part, FilePart)
    os.truncate(tmp_path / "a.tar", part.offset + 1)
    with pytest.raises(DecodeError, match=r"the file has 1 of these \d+ bytes; was it cut"):
        part.read()
    os.unlink(tmp_path / "a.tar")
    with pytest.raises(FileNotFoundError):
        part.read()
