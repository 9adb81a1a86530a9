"""Programs with named segments that are killed: the next program removes what they left."""

from __future__ import annotations

import os
import signal

import pytest

from conftest import RunPython, StartPython
from leftovers import wait_until

OWNER = """
import stook, sys, threading
arrays = [stook.SharedMemoryArray(1000, "u1") for _ in range(3)]
arrays[0].unlink_on_del()
print(arrays[2].metadata.name, flush=True)
threading.Event().wait()
"""
ATTACHER = """
import numpy as np, stook, sys, threading
handle = stook.SharedMemoryArrayMetadata(sys.argv[1], (1000,), np.dtype("u1"))
array = stook.SharedMemoryArray.from_metadata(handle)
if sys.argv[2] == "adopt":
    array.unlink_on_del()
print("attached", flush=True)
threading.Event().wait()
"""
NEXT = "import stook"


def files() -> set[str]:
    return {name for name in os.listdir("/dev/shm") if name.startswith("stook")}


def test_a_killed_owner(start_python: StartPython, run_python: RunPython) -> None:
    before = files()
    owner = start_python(OWNER)
    owner.wait_for_output("\n")
    run_python(NEXT).check()
    assert len(files() - before) == 4  # a living one's are not touched
    owner.send_signal(signal.SIGKILL)
    assert owner.finish().returncode == -signal.SIGKILL
    run_python(NEXT).check()
    assert files() == before


@pytest.mark.parametrize("adopt", ["adopt", "use"])
def test_an_attacher_outlives_the_owner(
    adopt: str, start_python: StartPython, run_python: RunPython
) -> None:
    before = files()
    owner = start_python(OWNER)
    owner.wait_for_output("\n")
    name = owner.stdout.strip()
    attacher = start_python(ATTACHER, name, adopt)
    attacher.wait_for_output("attached\n")
    owner.send_signal(signal.SIGKILL)
    assert owner.finish().returncode == -signal.SIGKILL
    run_python(NEXT).check()
    assert name in files()  # somebody uses it
    attacher.send_signal(signal.SIGKILL)
    assert attacher.finish().returncode == -signal.SIGKILL
    run_python(NEXT).check()
    assert files() == before


def test_a_killed_attacher_that_was_to_unlink(
    start_python: StartPython, run_python: RunPython
) -> None:
    before = files()
    make = "import stook; print(stook.SharedMemoryArray(1000, 'u1').metadata.name)"
    name = run_python(make).check().stdout.strip()
    attacher = start_python(ATTACHER, name, "adopt")
    attacher.wait_for_output("attached\n")
    run_python(NEXT).check()
    assert name in files()
    attacher.send_signal(signal.SIGKILL)
    assert attacher.finish().returncode == -signal.SIGKILL
    assert wait_until(lambda: run_python(NEXT).check() and files() == before, 30)
