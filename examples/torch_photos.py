"""torch trains a small convolutional network to tell which way up a crop of a photograph is.

    pip install torch
    python examples/torch_photos.py                          # photographs of installed packages
    python examples/torch_photos.py --photos my/pictures     # one's own
    python examples/torch_photos.py --loader torch           # with torch's own loader, to compare

The data set, the sampler and the training loop are as for torch alone; one import is changed. Both
loaders give the same batches, so both runs print the same losses.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import time
from typing import Any

from photos import NoPhotographs, find_photographs

import stook

try:
    import torch
    from torch import nn
    from torch.utils.data import DataLoader, Dataset
except ImportError:
    sys.exit("torch_photos: PyTorch is not installed: pip install torch")

import stook.torch

SIDE = 64  # of the square that the network sees, in pixels
BATCH = 32


class TurnedCrops(Dataset):
    """Item i: a random crop of a photograph, turned, and by how many quarters.

    ((3, 64, 64) uint8, 0, 1, 2 or 3)
    """

    def __init__(self, paths: list[str], length: int) -> None:
        self.paths = paths
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        photo = stook.io.decode_jpeg(self.paths[index % len(self.paths)], apply_orientation=True)
        height, width, _ = photo.shape
        side = random.randint(min(height, width) // 2, min(height, width))
        top, left = random.randint(0, height - side), random.randint(0, width - side)
        # Near every pixel that is kept, the mean of two by two.
        at = torch.arange(2 * SIDE) * side // (2 * SIDE)
        crop = torch.from_numpy(photo)[top + at][:, left + at].permute(2, 0, 1)
        crop = nn.functional.avg_pool2d(crop.float(), 2)
        if random.random() < 0.5:
            crop = crop.flip(2)
        turns = random.randrange(4)
        return crop.rot90(turns, (1, 2)).to(torch.uint8), turns


def make_network() -> nn.Module:
    layers: list[nn.Module] = []
    channels = 3
    for wider in (16, 32, 64):
        layers += [nn.Conv2d(channels, wider, 3, padding=1, stride=2), nn.BatchNorm2d(wider)]
        layers += [nn.ReLU()]
        channels = wider
    layers += [nn.MaxPool2d(2), nn.Flatten(), nn.Linear(channels * (SIDE // 16) ** 2, 4)]
    return nn.Sequential(*layers)


def train(loader: Any, steps: int) -> None:
    network = make_network()
    optimizer = torch.optim.Adam(network.parameters(), 2e-3)
    measure = nn.CrossEntropyLoss()
    losses: list[float] = []
    rights: list[float] = []
    waited = 0.0
    asked = began = time.perf_counter()
    for step, (crops, turns) in enumerate(loader, 1):
        if step == 1:
            began = time.perf_counter()  # when the workers are there
        else:
            waited += time.perf_counter() - asked
        scores = network(crops.float() / 127.5 - 1)
        loss = measure(scores, turns)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        rights.append((scores.argmax(1) == turns).float().mean().item())
        if step % 25 == 0 or step == steps:
            mean, right = sum(losses) / len(losses), sum(rights) / len(rights)
            print(f"step {step:4}  loss {mean:.3f}  right {right:4.0%}", flush=True)
            losses.clear()
            rights.clear()
        asked = time.perf_counter()
    took = asked - began
    if steps > 1:
        rate = (steps - 1) * BATCH / took
        print(f"{rate:,.0f} crops/s; {waited / took:.0%} of the time waiting for a batch")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--photos", metavar="FOLDER", help="JPEG files to train on")
    parser.add_argument("--loader", choices=("stook", "torch"), default="stook")
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    if args.steps < 1 or args.workers < 0:
        parser.error("--steps must be at least 1, and --workers at least 0")
    try:
        paths = find_photographs(args.photos)
    except NoPhotographs as error:
        sys.exit(f"torch_photos: {error}")

    torch.manual_seed(0)
    torch.set_num_threads(1)  # the other cores belong to the workers
    kind = stook.torch.DataLoader if args.loader == "stook" else DataLoader
    loader = kind(
        TurnedCrops(paths, args.steps * BATCH),
        BATCH,
        shuffle=True,
        num_workers=args.workers,
    )
    print(
        f"{len(paths)} photographs, {args.workers} workers of {args.loader}; {args.steps} steps of"
        f" {BATCH} crops; guessing is right in 25%, at a loss of 1.386",
        flush=True,
    )
    train(loader, args.steps)


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # as other programs in front of `head`
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)  # as other programs after Ctrl-C
