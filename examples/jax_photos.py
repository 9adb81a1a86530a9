"""JAX trains a small network to tell which way up a crop of a photograph is.

    pip install jax
    python examples/jax_photos.py                          # photographs of installed packages
    python examples/jax_photos.py --photos my/pictures     # one's own
    python examples/jax_photos.py --workers 0              # everything in this process

Workers decode, crop and turn; a thread hands the batches to JAX ahead of the step. On the CPU that
copies nothing: JAX's arrays are the memory that the workers wrote. The losses are the same for any
number of workers.
"""

from __future__ import annotations

import argparse
import itertools
import signal
import sys
import time
from typing import Any

import numpy as np
from photos import NoPhotographs, find_photographs

import stook

try:
    import jax
    import jax.numpy as jnp
except ImportError:
    sys.exit("jax_photos: JAX is not installed: pip install jax")

import stook.jax

SIDE = 64  # of the square that the network sees, in pixels
BATCH = 32
CHANNELS = (3, 16, 32, 64)


def turned_crop(path: str) -> dict[str, Any]:
    """A random crop of a photograph, turned, (64, 64, 3) uint8, and by how many quarters."""
    rng = stook.rng()
    photo = stook.io.decode_jpeg(path, apply_orientation=True)
    height, width, _ = photo.shape
    side = rng.integers(min(height, width) // 2, min(height, width), endpoint=True)
    top, left = (
        rng.integers(height - side, endpoint=True),
        rng.integers(width - side, endpoint=True),
    )
    at = np.arange(2 * SIDE) * side // (2 * SIDE)
    # Near every pixel that is kept, the mean of two by two.
    crop = photo[np.ix_(top + at, left + at)].reshape(SIDE, 2, SIDE, 2, 3).mean((1, 3))
    turns = int(rng.integers(4))
    return {"crop": np.rot90(crop.astype(np.uint8), turns), "turns": turns}


def make_network(key: Any) -> Any:
    network = []
    for before, after in itertools.pairwise(CHANNELS):
        key, draw = jax.random.split(key)
        scale = (2 / (9 * before)) ** 0.5
        network.append(scale * jax.random.normal(draw, (3, 3, before, after)))
    return network, 0.05 * jax.random.normal(key, (CHANNELS[-1] * (SIDE // 8) ** 2, 4))


def measure(network: Any, crops: Any, turns: Any) -> tuple[Any, Any]:
    layers, last = network
    values = crops.astype(jnp.float32) / 127.5 - 1
    for weights in layers:
        values = jax.lax.conv_general_dilated(
            values, weights, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        values = jax.nn.relu(values)
    scores = jax.nn.log_softmax(values.reshape(len(crops), -1) @ last)
    right = (scores.argmax(1) == turns).mean()
    return -jnp.take_along_axis(scores, turns[:, None], 1).mean(), right


@jax.jit
def train_step(network: Any, speed: Any, batch: Any) -> tuple[Any, Any, Any, Any]:
    grade = jax.value_and_grad(measure, has_aux=True)
    (loss, right), slope = grade(network, batch["crop"], batch["turns"])
    speed = jax.tree_util.tree_map(lambda v, g: 0.9 * v + g, speed, slope)
    network = jax.tree_util.tree_map(lambda w, v: w - 3e-3 * v, network, speed)
    return network, speed, loss, right


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--photos", metavar="FOLDER", help="JPEG files to train on")
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    if args.steps < 1 or args.workers < 0:
        parser.error("--steps must be at least 1, and --workers at least 0")
    try:
        paths = find_photographs(args.photos)
    except NoPhotographs as error:
        sys.exit(f"jax_photos: {error}")

    network = make_network(jax.random.key(0))
    speed = jax.tree_util.tree_map(jnp.zeros_like, network)
    items = [paths[number % len(paths)] for number in range(args.steps * BATCH)]
    options = stook.MultiprocessingOptions(num_workers=args.workers)
    loader = stook.DataLoader(items, turned_crop, options=options, batch_size=BATCH, shuffle=True)
    print(
        f"{len(paths)} photographs, {args.workers} workers; {args.steps} steps of {BATCH} crops;"
        " guessing is right in 25%, at a loss of 1.386",
        flush=True,
    )
    began = time.perf_counter()
    for step, batch in enumerate(loader.prefetch_to(stook.jax.device_put), 1):
        network, speed, loss, right = train_step(network, speed, batch)
        if step == 1:
            loss.block_until_ready()
            began = time.perf_counter()  # when it is compiled
        if step % 20 == 0 or step == args.steps:
            print(f"step {step:4}  loss {float(loss):.3f}  right {float(right):4.0%}", flush=True)
    if args.steps > 1:
        rate = (args.steps - 1) * BATCH / (time.perf_counter() - began)
        print(f"{rate:,.0f} crops/s")


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # as other programs in front of `head`
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)  # as other programs after Ctrl-C
