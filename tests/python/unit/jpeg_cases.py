"""JPEG files for tests, made by libjpeg-turbo's own programs."""

from __future__ import annotations

import base64
import re
import shutil
import subprocess

import numpy as np
import pytest
from numpy.typing import NDArray

Image = NDArray[np.uint8]

TOOLS = ("cjpeg", "djpeg")
missing = [tool for tool in TOOLS if shutil.which(tool) is None]
needs_tools = pytest.mark.skipif(
    bool(missing), reason=f"{' and '.join(missing)} not found: install libjpeg-turbo-progs"
)

# 3 x 2 grey pixels: 0, 128, 255 in both rows.
TINY = base64.b64decode(
    "/9j/2wBDAAEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEB"
    "AQEBAQH/wAALCAACAAMBAREA/8QAFAABAAAAAAAAAAAAAAAAAAAACv/EABkQAAIDAQAAAAAAAAAAAAAAAAUJADl4"
    "tf/aAAgBAQAAPwBPSCKbV7Z/D9w9P//Z"
)
# 4 x 2 pixels of CMYK at quality 100, with an Adobe marker; made with libjpeg.
CMYK = base64.b64decode(
    "/9j/7gAOQWRvYmUAZAAAAAAA/9sAQwABAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEB"
    "AQEBAQEBAQEBAQEBAQEBAQEBAQEB/8AAFAgAAgAEBEMRAE0RAFkRAEsRAP/EABYAAQEBAAAAAAAAAAAAAAAAAAkH"
    "CP/EAC0QAAADBAQPAAAAAAAAAAAAAAAEBQMGBwgWFxgkJTdCQ0RFUlRWYmOClrPU/9oADgRDAE0AWQBLAAA/ACnl"
    "txTO/wB/pLDcVYsQeO3y8nW/uFghshotEk/A6XlavKbDPohlp2zx20M+F8NZvSGu9Hecf//Z"
)


def picture(height: int, width: int) -> Image:
    """Gradients that differ between the channels, and noise."""
    y, x, c = np.ogrid[:height, :width, :3]
    noise = np.random.default_rng(7).integers(0, 32, (height, width, 3))
    return ((x * 9 + y * (5 + 3 * c) + 70 * c + noise) % 256).astype(np.uint8)


def cjpeg(image: Image, options: str = "") -> bytes:
    header = f"P6\n{image.shape[1]} {image.shape[0]}\n255\n".encode()
    command = ["cjpeg", *options.split()]
    return subprocess.run(
        command, input=header + image.tobytes(), capture_output=True, check=True
    ).stdout


def djpeg(jpeg: bytes, options: str = "") -> Image:
    """What djpeg makes of it, (height, width, 3) or (height, width); its warnings are ignored."""
    done = subprocess.run(["djpeg", "-pnm", *options.split()], input=jpeg, capture_output=True)
    assert done.returncode in (0, 2), done.stderr
    header = re.match(rb"P([56])\s(\d+) (\d+)\s255\s", done.stdout)
    assert header is not None
    pixels = np.frombuffer(done.stdout, np.uint8, offset=header.end())
    size = int(header[3]), int(header[2])
    return pixels.reshape(size if header[1] == b"5" else (*size, 3))


def with_exif(jpeg: bytes, orientation: int) -> bytes:
    entry = b"\x12\x01\x03\x00\x01\x00\x00\x00" + bytes([orientation, 0, 0, 0])
    body = b"Exif\0\0II*\0\x08\0\0\0\x01\0" + entry + bytes(4)
    return jpeg[:2] + b"\xff\xe1" + (len(body) + 2).to_bytes(2, "big") + body + jpeg[2:]


def with_size(jpeg: bytes, width: int, height: int) -> bytes:
    at = jpeg.index(b"\xff\xc0")
    size = height.to_bytes(2, "big") + width.to_bytes(2, "big")
    return jpeg[: at + 5] + size + jpeg[at + 9 :]
