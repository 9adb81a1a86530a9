"""Segments that are there, or are being made, when a process ends."""

from __future__ import annotations

import os

from conftest import RunPython
from stook import _core


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


def test_what_nobody_was_told_of_goes_at_the_end_too(run_python: RunPython) -> None:
    # A daemon thread's frame keeps the globals of the program, and so the array, beyond the end.
    code = """
        import pickle, threading, stook
        secret = stook.SharedMemoryArray(10)
        told = stook.SharedMemoryArray(10)
        print(pickle.loads(pickle.dumps(told)).metadata.name)
        threading.Thread(target=lambda: threading.Event().wait(), daemon=True).start()
    """
    before = ours()
    told = run_python(code).check().stdout.strip()
    assert ours() - before == {told}
    _core.unlink_segment(told)


def test_a_child_that_ends_keeps_what_it_told_and_nothing_else(run_python: RunPython) -> None:
    code = """
        import multiprocessing, os, stook
        from stook import _core
        def child(pipe):
            global secret, told
            secret = stook.SharedMemoryArray(10)
            told = stook.SharedMemoryArray(10)
            pipe.send((told.metadata.name.split("_")[1], told.metadata))
        context = multiprocessing.get_context("fork")
        here, there = context.Pipe()
        process = context.Process(target=child, args=(there,))
        process.start()
        token, told = here.recv()
        process.join()
        _core.sweep_leftover_segments()
        print([name == told.name for name in os.listdir("/dev/shm") if token in name])
        told.close_and_unlink_shm()
    """
    assert run_python(code).check().stdout == "[True]\n"


def test_threads_that_make_arrays_at_the_end_leave_nothing(run_python: RunPython) -> None:
    code = """
        import threading, stook
        ready = threading.Barrier(4)
        def make():
            for number in range(1 << 30):
                array = stook.SharedMemoryArray(1000)
                array.unlink_on_del()
                if number == 10:
                    ready.wait()
        for _ in range(3):
            threading.Thread(target=make, daemon=True).start()
        ready.wait()
    """
    before = ours()
    for _ in range(5):
        run_python(code).check()
    run_python("import stook").check()  # sweeps what was made after the very end
    assert ours() == before
