"""torch trains a small network to tell photographs apart, from a tar shard and by random crops.

    pip install torch
    python examples/shard_photos.py                          # photographs of installed packages
    python examples/shard_photos.py --photos my/pictures     # one's own

The way of ImageNet: a shard as WebDataset makes them, random crops, mirrored by half, normalised to
float32. Each image is one read and one call that decodes what its crop needs, in a worker process;
the batch is assembled there, and torch gets it as it lies.
"""

from __future__ import annotations

import argparse
import sys
import tarfile
import tempfile
import time
from io import BytesIO
from pathlib import Path
from typing import Any

from photos import NoPhotographs, find_photographs

import stook
from stook import vision

try:
    import torch
    from torch import nn
except ImportError:
    sys.exit("shard_photos: PyTorch is not installed: pip install torch")

import stook.torch

SIDE = 64  # of the square that the network sees, in pixels
BATCH = 32

TRAIN = vision.Compose(
    [
        vision.RandomResizedCrop(SIDE, scale=(0.25, 1)),
        vision.RandomHorizontalFlip(),
        vision.Normalize(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
    ]
)


def write_shard(paths: list[str], shard: Path, samples: int) -> int:
    """Samples 000000.jpg, 000000.cls and so on; a photograph's class is its number."""
    with tarfile.open(shard, "w") as tar:

        def add(name: str, content: bytes) -> None:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, BytesIO(content))

        for i in range(samples):
            which = i % len(paths)
            add(f"{i:06}.jpg", Path(paths[which]).read_bytes())
            add(f"{i:06}.cls", str(which).encode())
    return len(paths)


def load(sample: Any) -> dict[str, Any]:
    """(3, 64, 64) float32 and its class. What is drawn depends on seed, epoch and batch alone."""
    return {"image": TRAIN(sample["jpg"]), "label": int(sample["cls"].read())}


def make_network(classes: int) -> nn.Module:
    layers: list[nn.Module] = []
    channels = 3
    for wider in (16, 32, 64):
        layers += [nn.Conv2d(channels, wider, 3, padding=1, stride=2), nn.BatchNorm2d(wider)]
        layers += [nn.ReLU()]
        channels = wider
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, classes))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--photos", metavar="FOLDER", help="JPEG files to train on")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--samples", type=int, default=20 * BATCH, help="in the shard")
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    if args.epochs < 1 or args.samples < 2 or args.workers < 0:
        parser.error("--epochs must be at least 1, --samples at least 2, --workers at least 0")
    try:
        paths = find_photographs(args.photos)[: args.samples]
    except NoPhotographs as error:
        sys.exit(f"shard_photos: {error}")

    torch.manual_seed(0)
    torch.set_num_threads(1)  # the other cores belong to the workers
    with tempfile.TemporaryDirectory() as folder:
        shard = Path(folder) / "train-000000.tar"
        classes = write_shard(paths, shard, args.samples)
        source = stook.io.TarIndex(shard)
        print(f"{len(source)} samples of {classes} photographs in a shard of", end=" ")
        print(f"{shard.stat().st_size / 1e6:.1f} MB, {args.workers} workers", flush=True)
        train(source, classes, args)


def train(source: stook.io.TarIndex, classes: int, args: argparse.Namespace) -> None:
    network = make_network(classes)
    optimizer = torch.optim.Adam(network.parameters(), 2e-3)
    measure = nn.CrossEntropyLoss()
    options = stook.MultiprocessingOptions(num_workers=args.workers, per_worker_buffer_size=4)
    with stook.DataLoader(source, load, batch_size=BATCH, shuffle=True, options=options) as loader:
        for epoch in range(1, args.epochs + 1):
            losses, rights, began = [], 0, time.perf_counter()
            for batch in loader:
                tensors = stook.torch.as_tensors(batch)  # the same memory
                scores = network(tensors["image"])
                loss = measure(scores, tensors["label"])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
                rights += int((scores.argmax(1) == tensors["label"]).sum())
            rate = len(source) / (time.perf_counter() - began)
            loss_of_all = sum(losses) / len(losses)
            print(
                f"epoch {epoch}  loss {loss_of_all:.4f}  right {rights / len(source):4.0%}",
                end="  ",
            )
            print(f"{rate:,.0f} images/s", flush=True)


if __name__ == "__main__":
    main()
