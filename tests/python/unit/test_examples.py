"""The examples run as they stand, and what they are made of does what it says."""

from __future__ import annotations

import base64
import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

EXAMPLES = Path(__file__).parents[3] / "examples"
TINY = ["--workers", "2", "--steps", "2", "--rounds", "1", "--table-steps", "1"]

# A JPEG of 128 x 112 pixels: two gradients and a rectangle.
PICTURE = base64.b64decode(
    """
/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAEMuMjoyKkM6NjpLR0NPZKZsZFxcZMySmnmm8dT++u3U6eX//////////+Xp
////////////////////////////2wBDAUdLS2RXZMRsbMT//+n/////////////////////////////////////////
////////////////////////////wAARCABwAIADASIAAhEBAxEB/8QAGAABAQEBAQAAAAAAAAAAAAAAAQACBAP/xAAb
EAEAAQUBAAAAAAAAAAAAAAAAAQIREjJhQf/EABgBAQEBAQEAAAAAAAAAAAAAAAEAAwIE/8QAHREBAQEBAAIDAQAAAAAA
AAAAABEBAgMSEyFRYf/aAAwDAQACEQMRAD8A8Ukzj20kIQUkJRUkIQUkFQUoEQUoERUoFQVzEJtHdLURebMtUbQNc9bO
d1rDqx60md14/l7/AFnHqmLNM1eHN+3Xj8nW9TdSBdR6aUCIKUkoKSEIq5iC3julqjaGCNxz195HsniWfo8/w/16s1eM
o5xHXPj9dtJCMa0kJQUkIQUkFRVzIFtHdKSUFJCEFJCEFJCUVJBEFKBUFKBEFcxCbxpSQhBSQRBUQVBSgRFSgVBSgRBS
khBXMQW8aVEEQUoFQUoEQUpJRUkIQUkIQUkJQVzoFtHdKBUVKSEFJCUFJCEFJCEVJBUFKBEFf//Z
    """
)


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, EXAMPLES / "train_photos.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)


def example_module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_train_photos_trains_and_compares_four_ways(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(PICTURE)
    (tmp_path / "deeper").mkdir()
    (tmp_path / "deeper" / "b.JPEG").write_bytes(PICTURE)
    (tmp_path / "broken.jpg").write_bytes(PICTURE[:200])
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "notes.txt").write_text("not a photograph")

    done = run("--photos", tmp_path, *TINY)

    assert done.returncode == 0, done.stderr
    assert "2 photographs, 2 worker processes" in done.stdout
    assert "step    2  loss" in done.stdout
    table = done.stdout[done.stdout.index("the same job") :].splitlines()[2:]
    ways = [line[:22].strip() for line in table]
    assert ways == ["one process", "threads", "multiprocessing.Pool", "Stook"]
    left_out = [line for line in done.stderr.splitlines() if line.startswith("left out:")]
    assert [Path(line.split(": ")[1]).name for line in left_out] == ["broken.jpg", "empty.jpg"]
    # Read through a pipe, the progress is lines: nothing moves a cursor.
    assert not {"\r", "\x1b"} & set(done.stdout + done.stderr)


def test_train_photos_can_leave_the_table_out(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(PICTURE)
    done = run("--photos", tmp_path, *TINY, "--rounds", "0")
    assert done.returncode == 0, done.stderr
    assert "1 photographs" in done.stdout
    assert "the same job" not in done.stdout


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (None, "there is no such folder"),
        ({}, "no .jpg or .jpeg file in it"),
        ({"a.jpg": b"text"}, "none of the 1 photographs found can be used"),
    ],
    ids=["no folder", "no photograph", "none usable"],
)
def test_train_photos_says_why_there_is_nothing_to_train_on(
    tmp_path: Path, files: dict[str, bytes] | None, message: str
) -> None:
    folder = tmp_path / "pictures"
    if files is not None:
        folder.mkdir()
        for name, content in files.items():
            (folder / name).write_bytes(content)
    done = run("--photos", folder, *TINY)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_photographs_of_installed_packages_are_named_when_none_is_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    photos = example_module("photos")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(photos.NoPhotographs, match="pip install scikit-learn scikit-image matplot"):
        photos.find_photographs(None)


def test_photographs_of_installed_packages_are_found() -> None:
    photos = example_module("photos")
    installed = {m for m, _, _ in photos.CARRIED if importlib.util.find_spec(m)}
    if not installed:
        pytest.skip("none of scikit-learn, scikit-image and matplotlib is installed")
    found = photos.find_photographs("")
    assert len(found) == sum(module in installed for module, _, _ in photos.CARRIED)
    assert all(Path(path).read_bytes().startswith(b"\xff\xd8") for path in found)


@pytest.mark.leaves("BLAS keeps the threads of its first product", "threads")
def test_network_learns_a_batch_by_heart() -> None:
    network = example_module("network").Network()
    draw = np.random.default_rng(1)
    turns = draw.integers(0, 4, 16)
    batch = {"image": draw.integers(0, 256, (16, 96, 96, 3), np.uint8), "turns": turns}
    first, _ = network.train(batch)
    for _ in range(30):
        last, right = network.train(batch)
    assert first > 1
    assert last < 0.1 * first
    assert right == 1


def test_network_slopes_are_those_of_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    network = example_module("network").Network()
    slopes: list[np.ndarray] = []
    monkeypatch.setattr(network, "update", lambda found: slopes.__setitem__(slice(None), found))
    draw = np.random.default_rng(2)
    batch = {
        "image": draw.integers(0, 256, (4, 96, 96, 3), np.uint8),
        "turns": np.array([0, 1, 2, 3]),
    }
    network.train(batch)
    expected = [slope.copy() for slope in slopes]
    for parameter, slope in zip(network.weights + network.biases, expected, strict=True):
        # Along the slope itself, so that float32 resolves the difference.
        step = slope * (0.01 / float(np.sqrt((slope * slope).sum())))
        parameter += step
        above, _ = network.train(batch)
        parameter -= 2 * step
        below, _ = network.train(batch)
        parameter += step
        assert (above - below) / 2 == pytest.approx(float((slope * step).sum()), rel=0.05)
