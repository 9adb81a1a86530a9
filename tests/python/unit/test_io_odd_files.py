"""stook.io on real files that are odd, damaged, or simply photographs.

The files are not part of the repository. STOOK_ODD_JPEGS names a folder such as Pillow's
`Tests/images`, STOOK_PHOTOS one with photographs; without them these tests are skipped.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import stook.io
from stook.errors import DecodeError

# Damage after which the pixels cannot be trusted, in djpeg's words. The rest of its warnings is
# about bytes between segments and headers that are odd.
FATAL = re.compile(
    r"Premature end|premature end|bad Huffman|bad arithmetic|found marker|Inconsistent progression"
    r"|extraneous bytes before marker 0xd[0-7]"
)


def files(variable: str) -> list[object]:
    folder = os.environ.get(variable)
    if not folder:
        reason = f"{variable} is not set: it names a folder of JPEG files to try"
        return [pytest.param(None, marks=pytest.mark.skip(reason=reason), id=variable)]
    found = sorted(
        path for path in Path(folder).iterdir() if path.suffix.lower() in (".jpg", ".jpeg")
    )
    if not found:
        raise FileNotFoundError(f"{variable}={folder} holds no .jpg or .jpeg file")
    return [pytest.param(path, id=path.name) for path in found]


needs_djpeg = pytest.mark.skipif(
    shutil.which("djpeg") is None, reason="djpeg not found: install libjpeg-turbo-progs"
)


def djpeg(path: Path, *options: str) -> tuple[NDArray[np.uint8] | None, str]:
    """The pixels, if there are any, and what djpeg has to say (all warnings: -verbose thrice)."""
    command = ["djpeg", "-pnm", *options]
    done = subprocess.run([*command, str(path)], capture_output=True)
    said = subprocess.run(
        [*command, "-verbose", "-verbose", "-verbose", str(path)], capture_output=True
    ).stderr.decode(errors="replace")
    if done.returncode == 1:
        return None, said
    header = re.match(rb"P([56])\s(\d+) (\d+)\s255\s", done.stdout)
    assert header is not None
    pixels = np.frombuffer(done.stdout, np.uint8, offset=header.end())
    size = int(header[3]), int(header[2])
    return pixels.reshape(size if header[1] == b"5" else (*size, 3)), said


@needs_djpeg
@pytest.mark.parametrize("path", files("STOOK_ODD_JPEGS"))
def test_odd_files(path: Path) -> None:
    rgb, said = djpeg(path, "-rgb") if _components(path) != 4 else djpeg(path)
    damage = FATAL.search(said)
    if rgb is None or damage:
        with pytest.raises(DecodeError, match=re.escape(str(path))):
            stook.io.decode_jpeg(path)
        if rgb is not None and damage and damage.group() == "Premature end":
            kept = stook.io.decode_jpeg(path, allow_truncated=True)
            np.testing.assert_array_equal(kept, rgb)
        return
    np.testing.assert_array_equal(stook.io.decode_jpeg(path), rgb)
    data = path.read_bytes()
    np.testing.assert_array_equal(stook.io.decode_jpeg(data), rgb)
    info = stook.io.jpeg_info(path)
    assert (info.height, info.width) == rgb.shape[:2]
    if info.components != 4:
        luma, _ = djpeg(path, "-grayscale")
        np.testing.assert_array_equal(stook.io.decode_jpeg(path, mode="L"), luma)
    turned = stook.io.decode_jpeg(path, apply_orientation=True)
    assert turned.shape[:2] == (rgb.shape[:2] if info.orientation < 5 else rgb.shape[1::-1])


@pytest.mark.parametrize("path", files("STOOK_ODD_JPEGS"))
def test_odd_files_cut_and_damaged(path: Path) -> None:
    data = path.read_bytes()
    rng = np.random.default_rng(len(data))
    limit = 1 << 20
    for _ in range(20):
        cut = data[: rng.integers(len(data))]
        damaged = bytearray(data)
        for at in rng.integers(len(data), size=5):
            damaged[at] = rng.integers(256)
        for bad in (cut, damaged):
            for allow_truncated in (False, True):
                try:
                    decoded = stook.io.decode_jpeg(
                        bad,
                        max_pixels=limit,
                        allow_truncated=allow_truncated,
                        apply_orientation=True,
                    )
                except DecodeError as error:
                    assert str(error).startswith("cannot decode <")
                else:
                    assert decoded.dtype == np.uint8


@needs_djpeg
@pytest.mark.parametrize("path", files("STOOK_PHOTOS"))
def test_photographs(path: Path) -> None:
    rgb, _ = djpeg(path, "-rgb") if _components(path) != 4 else djpeg(path)
    assert rgb is not None
    np.testing.assert_array_equal(stook.io.decode_jpeg(path), rgb)


def _components(path: Path) -> int:
    try:
        return stook.io.jpeg_info(path).components
    except DecodeError:
        return 0
