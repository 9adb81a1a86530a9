"""A training loop that can be killed at any moment, and goes on exactly where it was.

Run it, kill it (`kill -9`), run it again: it goes on after the last step that it saved, and what it
has trained on at the end is what it would have without the kill.

    python examples/resume.py run.json
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np

import stook


def load(index: int) -> dict[str, Any]:
    """An example, with an augmentation drawn at random."""
    values = np.full(8, index, np.float32)
    return {"values": values + stook.rng().normal(size=8), "index": index}


def save(path: Path, checkpoint: dict[str, Any]) -> None:
    """Replaces a file as a whole: a kill leaves the old one or the new one."""
    aside = path.with_suffix(".new")
    with aside.open("w") as file:
        json.dump(checkpoint, file)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path, help="where the run is saved")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--examples", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=3)
    arguments = parser.parse_args()
    if arguments.workers < 0 or arguments.examples < 1 or arguments.epochs < 1:
        parser.error("--workers must be at least 0, --examples and --epochs at least 1")
    if not arguments.checkpoint.absolute().parent.is_dir():
        parser.error(f"{arguments.checkpoint}: there is no such folder to save to")

    loader = stook.DataLoader(
        range(arguments.examples),
        load,
        options=stook.MultiprocessingOptions(num_workers=arguments.workers),
        batch_size=10,
        shuffle=True,
        seed=7,
        num_epochs=arguments.epochs,
    )
    step, model = 0, "0"
    if arguments.checkpoint.exists():
        try:
            checkpoint = json.loads(arguments.checkpoint.read_text())
            step, model = checkpoint["step"], checkpoint["model"]
            loader.set_state(checkpoint["loader"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            sys.exit(f"resume: {arguments.checkpoint} cannot be gone on from: {error!r}")
        print(f"going on after step {step}", flush=True)
    with loader:
        for batch in loader:
            # Stands for the model: it depends on every number that it was ever trained on.
            seen = batch["values"].tobytes() + batch["index"].tobytes()
            model = hashlib.sha256(model.encode() + seen).hexdigest()
            step += 1
            save(
                arguments.checkpoint,
                {"step": step, "model": model, "loader": loader.get_state()},
            )
            print(f"step {step}", flush=True)
    print(f"done: {step} steps, model {model}")


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # as other programs in front of `head`
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)  # as other programs after Ctrl-C
