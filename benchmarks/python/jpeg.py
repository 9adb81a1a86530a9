"""From JPEGs in memory to the pixels that a model takes: Stook beside what else there is.

    STOOK_BENCHMARK_PHOTOS=FOLDER python benchmarks/python/jpeg.py [--rounds 5] [--out PATH]
        [--photographs 100] [--parts thread resampler loaders]

Minutes for a hundred photographs. `--out` is a path without its ending: .md and .json are written.

`thread`: one thread, thread CPU time; ways take turns image by image, in an order that turns; each
round's figure of a way is the sum over the photographs, divided by that of simplejpeg's full decode
into a given buffer in the same round. Boxes are drawn as RandomResizedCrop draws them. Once for the
photographs as they are, once enlarged to 1,600 pixels and encoded at quality 90.

`resampler`: bench_resample (benchmarks/cpp) beside Pillow's resize of an image that is decoded.

`loaders`: batches of 32 through two workers, beside one thread of one process and beside torch's
loader with Pillow; wall time of a pass that follows a whole one.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import io
import math
import random
import subprocess
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

import stook
import stook.io
from report import ROOT, Run, conditions_table, spread, table, version_of, write
from works import photographs

SIZE = (224, 224)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LARGE = 1600
BATCH = 32
WORKERS = 2

# What is asked of a way, of simplejpeg's full decode.
MOST = {
    "stook decode_jpeg, whole, out=": "1.03",
    "stook decode_resized_crop, unscaled": "0.85",
    "stook decode_resized_crop": "0.82",
    "... flipped, normalised, float32 CHW": "0.87",
}
MOST_OF_LARGE = {
    "stook decode_jpeg, whole, out=": "1.03",
    "stook decode_resized_crop, unscaled": "0.85",
    "stook decode_resized_crop": "0.70",
    "... flipped, normalised, float32 CHW": "0.75",
}

Box = tuple[int, int, int, int]
Way = Callable[[int], object]


def installed(name: str) -> Any:
    """A peer, or None."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def random_box(width: int, height: int, draw: random.Random) -> Box:
    """Area 8 to 100 %, ratio 3/4 to 4/3, ten tries, then the whole: RandomResizedCrop."""
    for _ in range(10):
        area = width * height * draw.uniform(0.08, 1)
        ratio = math.exp(draw.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = draw.randint(0, width - w), draw.randint(0, height - h)
            return left, top, left + w, top + h
    return 0, 0, width, height


def enlarged(data: bytes) -> bytes:
    """The longer side at 1,600 pixels, quality 90."""
    pillow = importlib.import_module("PIL.Image")
    with pillow.open(io.BytesIO(data)) as image:
        scale = LARGE / max(image.size)
        size = [round(side * scale) for side in image.size]
        buffer = io.BytesIO()
        image.convert("RGB").resize(size, pillow.Resampling.BICUBIC).save(
            buffer, "JPEG", quality=90
        )
    return buffer.getvalue()


def ways_of(datas: list[bytes], boxes: list[Box]) -> tuple[dict[str, Way], list[str]]:
    """What is compared, and what is missing. The first is the measure of all."""
    infos = [stook.io.jpeg_info(data) for data in datas]
    # Written once, so that no way pays for the first touch of their pages.
    whole = [np.full((info.height, info.width, 3), 1, np.uint8) for info in infos]
    out = np.empty((*SIZE, 3), np.uint8)
    real = np.empty((3, *SIZE), np.float32)
    crop = stook.io.decode_resized_crop
    ways: dict[str, Way] = {}
    missing = []

    if simplejpeg := installed("simplejpeg"):
        ways["simplejpeg, whole, into a buffer"] = lambda i: simplejpeg.decode_jpeg(
            datas[i], buffer=whole[i]
        )
    else:
        missing.append("simplejpeg")
    ways["stook decode_jpeg, whole, out="] = lambda i: stook.io.decode_jpeg(datas[i], out=whole[i])
    ways["stook decode_resized_crop, unscaled"] = lambda i: crop(
        datas[i], boxes[i], SIZE, out=out, scaled_decode=False
    )
    ways["stook decode_resized_crop"] = lambda i: crop(datas[i], boxes[i], SIZE, out=out)
    ways["... flipped, normalised, float32 CHW"] = lambda i: crop(
        datas[i],
        boxes[i],
        SIZE,
        out=real,
        flip=True,
        dtype="float32",
        layout="CHW",
        mean=MEAN,
        std=STD,
    )
    if cv2 := installed("cv2"):
        cv2.setNumThreads(1)

        def opencv(i: int) -> Any:
            return cv2.imdecode(np.frombuffer(datas[i], np.uint8), cv2.IMREAD_COLOR)

        def opencv_resized(i: int, how: int) -> Any:
            left, top, right, bottom = boxes[i]
            return cv2.resize(opencv(i)[top:bottom, left:right], SIZE[::-1], interpolation=how)

        ways["OpenCV decode, whole"] = opencv
        ways["OpenCV decode, crop, INTER_LINEAR (aliases)"] = lambda i: opencv_resized(
            i, cv2.INTER_LINEAR
        )
        ways["OpenCV decode, crop, INTER_AREA"] = lambda i: opencv_resized(i, cv2.INTER_AREA)
    else:
        missing.append("opencv-python-headless")
    if pillow := installed("PIL.Image"):

        def pillow_whole(i: int) -> Any:
            with pillow.open(io.BytesIO(datas[i])) as image:
                return np.asarray(image.convert("RGB"))

        def pillow_resized(i: int, draft: bool) -> Any:
            box = boxes[i]
            with pillow.open(io.BytesIO(datas[i])) as image:
                if draft:
                    width, height = image.size
                    w, h = box[2] - box[0], box[3] - box[1]
                    image.draft("RGB", (width * SIZE[1] // w, height * SIZE[0] // h))
                    shrunk = image.size[0] / width
                    box = tuple(edge * shrunk for edge in box)
                return np.asarray(
                    image.convert("RGB").resize(SIZE[::-1], pillow.Resampling.BILINEAR, box=box)
                )

        ways["Pillow decode, whole"] = pillow_whole
        ways["Pillow decode, crop and resize"] = lambda i: pillow_resized(i, False)
        ways["Pillow decode with draft, crop and resize"] = lambda i: pillow_resized(i, True)
    else:
        missing.append("pillow")
    return ways, missing


def measure_thread(
    datas: list[bytes], rounds: int, most: dict[str, str]
) -> tuple[str, list[str], dict[str, list[float]]]:
    """The table, what is missing, and the figures. `most`: what is asked of some of the ways."""
    draw = random.Random(1)
    infos = [stook.io.jpeg_info(data) for data in datas]
    boxes = [random_box(info.width, info.height, draw) for info in infos]
    ways, missing = ways_of(datas, boxes)
    names = list(ways)
    for way in ways.values():
        way(0)
    sums: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        total = dict.fromkeys(names, 0)
        for i in range(len(datas)):
            first = (turn + i) % len(names)
            for name in names[first:] + names[:first]:
                begin = time.thread_time_ns()
                ways[name](i)
                total[name] += time.thread_time_ns() - begin
        for name in names:
            sums[name].append(total[name] / len(datas) / 1e3)
    base = sums[names[0]]
    rows = []
    for name in names:
        ratios = [mine / its for mine, its in zip(sums[name], base, strict=True)]
        rows.append([name, spread(sums[name], 0), spread(ratios, 3), most.get(name, "")])
    head = [f"one thread, {len(datas)} photographs", "µs of each", "to the first", "at most"]
    return table(head, rows), missing, sums


def measure_resampler(rounds: int) -> tuple[str, dict[str, list[float]]]:
    program = ROOT / "build" / "release" / "bench_resample"
    pillow = installed("PIL.Image")
    if not program.exists():
        return f"resampler: skipped, {program.relative_to(ROOT)} is not built (make bench)", {}
    if pillow is None:
        return "resampler: skipped, Pillow is not installed", {}
    rows = []
    data: dict[str, list[float]] = {}
    for width, height in ((300, 280), (480, 375), (1200, 900)):
        image = pillow.fromarray(
            np.random.default_rng(1).integers(0, 256, (height, width, 3), "u1")
        )
        theirs: list[float] = []
        ours: dict[str, list[float]] = {}
        for _ in range(rounds):
            begin = time.thread_time_ns()
            for _ in range(20):
                image.resize(SIZE[::-1], pillow.Resampling.BILINEAR)
            theirs.append((time.thread_time_ns() - begin) / 20e3)
            done = subprocess.run(
                [program, *map(str, (width, height, *SIZE))],
                check=True,
                capture_output=True,
                text=True,
            )
            for line in done.stdout.splitlines():
                name, figure = line.rsplit(" ", 1)
                ours.setdefault(f"stook, {name}", []).append(float(figure))
        for name, figures in {"Pillow": theirs, **ours}.items():
            ratios = [mine / its for mine, its in zip(figures, theirs, strict=True)]
            most = "0.333" if "AVX2" in name else ""
            label = f"{name}, {width} x {height}"
            rows.append([label, spread(figures, 0), spread(ratios, 3), most])
            data[label] = figures
    head = ["the resampler alone, to 224 x 224", "µs", "to Pillow's", "at most"]
    return table(head, rows), data


@functools.cache
def files() -> tuple[list[bytes], list[Box]]:
    datas = [Path(path).read_bytes() for path in photographs()]
    draw = random.Random(2)
    infos = [stook.io.jpeg_info(data) for data in datas]
    return datas, [random_box(info.width, info.height, draw) for info in infos]


def stook_batch(indices: Iterable[int]) -> Any:
    datas, boxes = files()
    chosen = [i % len(datas) for i in indices]
    return stook.io.decode_batch(
        [datas[i] for i in chosen],
        SIZE,
        boxes=[boxes[i] for i in chosen],
        dtype="float32",
        layout="CHW",
        mean=MEAN,
        std=STD,
    )


class PillowDataset:
    """One photograph, cropped and resized in one call of Pillow's, normalised: what torch loads."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Any:
        pillow = importlib.import_module("PIL.Image")
        datas, boxes = files()
        index %= len(datas)
        with pillow.open(io.BytesIO(datas[index])) as image:
            resized = image.convert("RGB").resize(
                SIZE[::-1], pillow.Resampling.BILINEAR, box=boxes[index]
            )
        pixels = np.asarray(resized, np.float32).transpose(2, 0, 1) / np.float32(255)
        mean, std = (np.array(v, np.float32)[:, None, None] for v in (MEAN, STD))
        return np.ascontiguousarray((pixels - mean) / std)


def timed_pass(batches: Callable[[], Iterable[Any]]) -> float:
    begin = time.perf_counter()
    for batch in batches():
        batch[0, 0, 0, 0].item()
    return time.perf_counter() - begin


def measure_loaders(rounds: int, batches: int) -> tuple[str, dict[str, list[float]]]:
    plan = [range(i * BATCH, (i + 1) * BATCH) for i in range(batches)]
    options = stook.MultiprocessingOptions(num_workers=WORKERS, per_worker_buffer_size=2)
    loader = stook.DataLoader(plan, stook_batch, options=options)
    ours = f"stook.DataLoader, {WORKERS} workers, decode_batch"
    theirs = f"torch DataLoader, {WORKERS} workers, Pillow"
    ways: dict[str, Callable[[], Iterable[Any]]] = {
        "one thread, decode_batch": lambda: map(stook_batch, plan),
        ours: lambda: loader,
    }
    if (torch := installed("torch.utils.data")) and installed("PIL.Image"):
        torch_loader = torch.DataLoader(
            PillowDataset(batches * BATCH),
            batch_size=BATCH,
            num_workers=WORKERS,
            persistent_workers=True,
        )
        ways[theirs] = lambda: torch_loader
    with loader:
        for way in ways.values():
            timed_pass(way)  # starts the workers
        taken: dict[str, list[float]] = {name: [] for name in ways}
        names = list(ways)
        for turn in range(rounds):
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                taken[name].append(timed_pass(ways[name]) * 1e3)
    rows = []
    asked = {ours: ("at most 0.52", ""), theirs: ("", "at least 2.5")}
    for name, figures in taken.items():
        ratios = [mine / its for mine, its in zip(figures, taken[names[0]], strict=True)]
        times = [mine / its for mine, its in zip(figures, taken[ours], strict=True)]
        first, second = asked.get(name, ("", ""))
        rows.append([name, spread(figures, 0), spread(ratios, 3), first, spread(times, 2), second])
    if theirs not in taken:
        rows.append([theirs, "skipped: not installed", "", "", "", ""])
    title = f"{batches} batches of {BATCH} to float32 CHW"
    return table([title, "ms", "to the first", "", "to Stook's loader", ""], rows), taken


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--photographs", type=int, default=100, help="how many of them at most")
    parser.add_argument("--batches", type=int, default=30)
    parser.add_argument("--out", type=Path, help="also write the report here")
    parts = ["thread", "resampler", "loaders"]
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts)
    args = parser.parse_args(argv)

    shown = {name: value for name, value in vars(args).items() if name not in ("out", "parts")}
    run = Run({**shown, "parts": " ".join(args.parts)})
    tables: list[str] = []
    data: dict[str, Any] = {}
    if "thread" in args.parts:
        datas = [Path(path).read_bytes() for path in photographs()[: args.photographs]]
        text, missing, data["thread"] = measure_thread(datas, args.rounds, MOST)
        tables.append(text)
        if installed("PIL.Image"):
            large = [enlarged(data) for data in datas]
            text, _, data["thread, enlarged"] = measure_thread(large, args.rounds, MOST_OF_LARGE)
            tables += [f"Enlarged to {LARGE} pixels, quality 90:", text]
        tables += [f"Missing: {', '.join(missing)}"] if missing else []
    if "resampler" in args.parts:
        text, data["resampler"] = measure_resampler(args.rounds)
        tables.append(text)
    if "loaders" in args.parts:
        text, data["loaders"] = measure_loaders(args.rounds, args.batches)
        tables.append(text)
    conditions = {
        **run.conditions(),
        **{package: version_of(package) for package in ("simplejpeg", "pillow")},
    }
    head = ["# From a JPEG to the pixels that a model takes", conditions_table(conditions)]
    head.append("Medians and ranges of the rounds; boxes as RandomResizedCrop draws them.")
    write(args.out, "\n\n".join(head + tables), {"conditions": conditions, **data})


if __name__ == "__main__":
    main()
