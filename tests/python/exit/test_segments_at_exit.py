"""Segments that are made when the library has seen to those of the process already."""

from __future__ import annotations

import os

from conftest import RunPython


def ours() -> set[str]:
    """Segments, and the marker files of processes."""
    return {name for name in os.listdir("/dev/shm") if name.startswith("stook_")}


def test_what_is_made_after_the_library_has_left(run_python: RunPython) -> None:
    code = """
        import atexit, builtins
        def late():
            kept = stook.SharedMemoryArray(100, "u1")
            kept[...] = 3
            print(kept.metadata.name)
            builtins.to_go = stook.SharedMemoryArray(100, "u1")
            builtins.to_go.unlink_on_del()
            print(builtins.to_go.metadata.name)
        atexit.register(late)  # before stook's, so that it runs after that
        import stook
    """
    before = ours()
    kept, gone = run_python(code).check().stdout.split()
    assert gone not in ours()
    assert ours() - before == {kept}  # and no marker of a process that seems to be killed
    use = f"""
        import numpy as np, stook
        handle = stook.SharedMemoryArrayMetadata({kept!r}, (100,), np.dtype("u1"))
        print(stook.SharedMemoryArray.from_metadata(handle).sum())
        handle.close_and_unlink_shm()
    """
    assert run_python(use).check().stdout == "300\n"
