"""Writes what fuzzing of the array and archive readers begins with: a few good files for a target.

    python make_archives.py FOLDER TARGET

From nothing a fuzzer does not find a checksum. The standard library alone makes them.
"""

from __future__ import annotations

import io
import sys
import tarfile
import zipfile
from pathlib import Path


def npy(descr: str, shape: str, items: bytes, version: int = 1, order: str = "False") -> bytes:
    header = f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}\n".encode()
    length = len(header).to_bytes(2 if version == 1 else 4, "little")
    return b"\x93NUMPY" + bytes([version, 0]) + length + header + items


ARRAYS = [
    npy("'<f8'", "(2, 3)", bytes(48)),
    npy("'|S3'", "()", b"abc", 2),
    npy("'<M8[3s]'", "(0, 4)", b"", 3),
    npy("'<i2'", "(2L, 1L)", bytes(4), 1, "True"),
    npy("[(('title', 'n\\xe9\\u8c61'), '<f4'), ('c', '>i2', (2, 3))]", "(1,)", bytes(16), 3),
    npy("[('a', [('b', '|u1')], (2,))]", "(3,)", bytes(6), 2),
]  # fmt: skip


def archives() -> list[bytes]:
    made = []
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        for zip64 in (False, True):
            file = io.BytesIO()
            with zipfile.ZipFile(file, "w", method) as archive:
                for i, content in enumerate(ARRAYS[:3]):
                    with archive.open(f"arr_{i}.npy", "w", force_zip64=zip64) as member:
                        member.write(content)
            made.append(b"in front" * zip64 + file.getvalue())
    return made


def shards() -> list[bytes]:
    made = []
    for kind in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        file = io.BytesIO()
        names = ["1.jpg", "1.cls", "sub/2.JPG", "d" * 90 + "/" + "n" * 30 + ".x"]
        if kind != tarfile.USTAR_FORMAT:
            names.append("long" * 50 + "\u8c61.y")
        with tarfile.open(fileobj=file, mode="w", format=kind) as archive:
            for name in names:
                member = tarfile.TarInfo(name)
                member.size = len(name)
                archive.addfile(member, io.BytesIO(bytes(len(name))))
            link = tarfile.TarInfo("3.jpg")
            link.type, link.linkname = tarfile.LNKTYPE, "1.jpg"
            archive.addfile(link)
            folder = tarfile.TarInfo("folder")
            folder.type = tarfile.DIRTYPE
            archive.addfile(folder)
        made.append(file.getvalue()[: archive.offset])  # without what fills up a tape
    return made


def main() -> None:
    folder, target = sys.argv[1:]
    files = {"npy_fuzz": ARRAYS, "npz_fuzz": archives(), "tar_fuzz": shards()}[target]
    for i, content in enumerate(files):
        (Path(folder) / f"seed-{i}").write_bytes(content)


if __name__ == "__main__":
    main()
