"""Makes the pictures and the figures of docs/resized-crops.md.

    python scripts/make_pictures.py [FOLDER]         # docs/pictures, unless told otherwise

Needs Pillow, OpenCV and scikit-learn, which carries the photograph (`datasets/images/README.txt` in
it names author and licence). The figures are printed; they depend on no clock, but on the versions
of these libraries and of libjpeg-turbo.
"""

from __future__ import annotations

import importlib
import importlib.util
import io
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stook.io import decode_jpeg, decode_resized_crop

Image = NDArray[Any]

ROOT = Path(__file__).resolve().parent.parent
RINGS = 640  # pixels of their square
SMALL = 150
TEMPLE_BOX = (60, 40, 420, 400)
TEMPLE_SIDE = 150
LOUDER = 8  # how much differences are enlarged
SHOWN = {
    *("rings-unscaled", "rings-scaled", "rings-opencv-linear", "rings-opencv-area"),
    *("temple-unscaled", "temple-flip", "temple-scaled", "temple-scaled-difference"),
    *("temple-opencv-linear", "temple-opencv-linear-difference"),
}


def needed(module: str, package: str) -> Any:
    """A module of somebody else's, or the end of the program."""
    try:
        return importlib.import_module(module)
    except ImportError:
        sys.exit(f"make_pictures: {package} is not installed: pip install {package}")


def rings() -> Image:
    """Circles that get finer outwards, until at the middle of each edge a pixel is half a wave."""
    square = (np.arange(RINGS) - (RINGS - 1) / 2) ** 2
    phase = math.pi / RINGS * (square[:, None] + square)
    return np.round(127.5 + 127.5 * np.cos(phase)).astype(np.uint8)


def jpeg_of(pixels: Image) -> bytes:
    """Encodes at quality 95."""
    buffer = io.BytesIO()
    needed("PIL.Image", "pillow").fromarray(pixels).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def photograph() -> bytes:
    """The photograph of a temple that scikit-learn carries."""
    spec = importlib.util.find_spec("sklearn")
    if spec is None or not spec.submodule_search_locations:
        sys.exit("make_pictures: scikit-learn is not installed: pip install scikit-learn")
    return Path(spec.submodule_search_locations[0], "datasets/images/china.jpg").read_bytes()


def ways(data: bytes, box: tuple[int, int, int, int], side: int) -> dict[str, Image]:
    """A box of a JPEG as a square, by what made it. The first is what others differ from."""
    pillow, cv2 = needed("PIL.Image", "pillow"), needed("cv2", "opencv-python-headless")
    left, top, right, bottom = box
    crop = decode_jpeg(data)[top:bottom, left:right]
    square = (side, side)
    by_pillow = pillow.fromarray(crop)
    filters = pillow.Resampling
    return {
        "unscaled": decode_resized_crop(data, box, square, scaled_decode=False),
        "scaled": decode_resized_crop(data, box, square),
        "lanczos": decode_resized_crop(data, box, square, filter="lanczos", scaled_decode=False),
        "pillow-bilinear": np.asarray(by_pillow.resize(square, filters.BILINEAR)),
        "opencv-linear": cv2.resize(crop, square, interpolation=cv2.INTER_LINEAR),
        "opencv-area": cv2.resize(crop, square, interpolation=cv2.INTER_AREA),
    }


def louder(image: Image, than: Image) -> Image:
    """Differences around grey, enlarged."""
    difference = (image.astype(int) - than) * LOUDER + 128
    return np.clip(difference, 0, 255).astype(np.uint8)


def psnr(image: Image, than: Image) -> float:
    """Peak signal to noise, in dB."""
    error = float(np.mean((image.astype(float) - than) ** 2))
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def main() -> None:
    """Writes the pictures that are shown and prints the figures."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "pictures"
    folder.mkdir(parents=True, exist_ok=True)
    pillow = needed("PIL.Image", "pillow")

    def write(name: str, pixels: Image) -> None:
        if name in SHOWN:
            grey = pixels.ndim == 3 and (pixels == pixels[:, :, :1]).all()
            shown = pillow.fromarray(pixels[:, :, 0] if grey else pixels)
            shown.save(folder / f"{name}.png", optimize=True)

    subjects = {
        "rings": (jpeg_of(rings()), (0, 0, RINGS, RINGS), SMALL),
        "temple": (photograph(), TEMPLE_BOX, TEMPLE_SIDE),
    }
    for subject, (data, box, side) in subjects.items():
        made = ways(data, box, side)
        first = next(iter(made.values()))
        print(f"\n| {subject} | largest difference | mean | PSNR, dB |\n|---|---:|---:|---:|")
        for name, image in made.items():
            write(f"{subject}-{name}", image)
            if image is not first:
                off = np.abs(image.astype(int) - first)
                print(f"| {name} | {off.max()} | {off.mean():.2f} | {psnr(image, first):.1f} |")
    for name in ("scaled", "opencv-linear", "opencv-area"):
        write(f"temple-{name}-difference", louder(made[name], first))
    mirrored = decode_resized_crop(data, box, (side, side), scaled_decode=False, flip=True)
    write("temple-flip", mirrored)
    whole = decode_jpeg(data)
    left, top, right, bottom = box
    outlined = whole.copy()
    outlined[top - 3 : bottom + 3, left - 3 : right + 3] = (255, 220, 0)
    outlined[top:bottom, left:right] = whole[top:bottom, left:right]
    # Few colours: it shows where the box lies, and no pixel of it is claimed to be anything.
    where = pillow.fromarray(outlined).resize((320, 213), pillow.Resampling.BOX)
    where.quantize(48).save(folder / "temple.png", optimize=True)


if __name__ == "__main__":
    main()
