"""SharedMemoryArrays on their way to other processes, by every channel there is."""

from __future__ import annotations

import multiprocessing
import os
import pickle
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import RunPython
from leftovers import wait_until
from stook import SharedMemoryArray

pytestmark = pytest.mark.filterwarnings(
    "ignore:This process .* is multi-threaded:DeprecationWarning"
)
each_context = pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])


def ours() -> set[str]:
    """Segments, and the marker files of processes."""
    return {name for name in os.listdir("/dev/shm") if name.startswith("stook_")}


def filled(shape: Any = (40, 50)) -> SharedMemoryArray:
    array = SharedMemoryArray(shape, "int64")
    array.unlink_on_del()
    array[...] = np.arange(array.size).reshape(shape)
    return array


def double_in_place(view: Any) -> tuple[Any, ...]:
    view *= 2
    return type(view).__name__, view.shape, view.strides, int(view.sum())


def make(size: int) -> SharedMemoryArray:
    array = SharedMemoryArray(size, "u1")
    array[...] = 9
    return array


def echo(received: Any, sent: Any) -> None:
    while (view := received.get()) is not None:
        view += 1
        sent.put(view[::-1])


@each_context
def test_arguments_and_results_of_an_executor(method: str) -> None:
    array = filled()
    view = array[::2, ::-1]
    expected = 2 * np.asarray(view)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context(method)) as pool:
        name, shape, strides, total = pool.submit(double_in_place, view).result()
        made = pool.submit(make, 1000).result()
    assert (name, shape, strides) == ("SharedMemoryArray", view.shape, view.strides)
    assert total == expected.sum()
    np.testing.assert_array_equal(view, expected)
    # The process that made it has ended in good order: it is kept until somebody unlinks it.
    assert wait_until(lambda: not multiprocessing.active_children(), 30)
    if method == "forkserver":  # the standard library's own, which would stay until the end
        from multiprocessing import forkserver

        forkserver._forkserver._stop()  # type: ignore[attr-defined]
    again = pickle.loads(pickle.dumps(made))
    assert made.sum() == again.sum() == 9000
    made.unlink_on_del()


@each_context
def test_through_queues_and_back(method: str) -> None:
    context = multiprocessing.get_context(method)
    there, back = context.Queue(), context.Queue()
    process = context.Process(target=echo, args=(there, back))
    process.start()
    array = filled()
    there.put(array[1:3])
    returned = back.get(timeout=60)
    there.put(None)
    process.join()
    for queue in (there, back):
        queue.close()
        queue.join_thread()
    if method == "forkserver":
        from multiprocessing import forkserver

        forkserver._forkserver._stop()  # type: ignore[attr-defined]
    np.testing.assert_array_equal(returned[::-1], np.arange(50, 150).reshape(2, 50) + 1)
    returned[...] = 0
    assert not array[1:3].any()
    assert process.exitcode == 0
    process.close()


def increment(connection: Any) -> None:
    with connection:
        view = connection.recv()
        view += 1
        connection.send(view.T)


def test_through_a_pipe_and_back() -> None:
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    process = context.Process(target=increment, args=(there,))
    process.start()
    there.close()
    array = filled()
    with here:
        here.send(array[::2])
        returned = here.recv()
    process.join()
    assert process.exitcode == 0
    process.close()
    np.testing.assert_array_equal(returned.T, array[::2])
    assert array[0, 0] == 1 and array[1, 0] == 50


def test_a_file_and_another_program(run_python: RunPython, tmp_path: Path) -> None:
    array = filled()
    file = tmp_path / "handle"
    file.write_bytes(pickle.dumps({"image": array.T, "name": "a"}))
    code = """
        import pickle, sys
        found = pickle.load(open(sys.argv[1], "rb"))
        image = found["image"]
        print(type(image).__name__, image.shape, image.strides, image[3].sum())
        image[3] = 7
    """
    assert (
        run_python(code, str(file), flags=("-X", "dev", "-W", "ignore")).check().stdout
        == "SharedMemoryArray (50, 40) (8, 400) 39120\n"
    )
    assert (array[:, 3] == 7).all()


def test_a_segment_outlives_its_owner_until_it_is_unlinked(run_python: RunPython) -> None:
    make = """
        import stook
        array = stook.SharedMemoryArray(1000, "u1")
        array[...] = 3
        print(array.metadata.name)
    """
    name = run_python(make).check().stdout.strip()
    use = f"""
        import numpy as np, stook
        handle = stook.SharedMemoryArrayMetadata({name!r}, (1000,), np.dtype("u1"))
        print(stook.SharedMemoryArray.from_metadata(handle).sum())
        handle.close_and_unlink_shm()
    """
    assert run_python(use).check().stdout == "3000\n"
    assert not os.path.exists(f"/dev/shm/{name}")


def test_what_is_to_go_at_the_end_goes_at_the_end(run_python: RunPython) -> None:
    code = """
        import builtins, stook
        array = stook.SharedMemoryArray(1000, "u1")
        array.unlink_on_del()
        builtins.kept_for_ever = array
        stook.SharedMemoryArray.enable_async_del(2)
        many = [stook.SharedMemoryArray(100_000) for _ in range(50)]
        for one in many:
            one.unlink_on_del()
        del many, one
    """
    before = ours()
    assert run_python(code).check().stderr == ""
    assert ours() == before


@pytest.mark.parametrize("pause", ["", "import time; time.sleep(0.01)"])
def test_no_resource_tracker_is_started(run_python: RunPython, pause: str) -> None:
    code = f"""
        import pickle, stook, sys
        array = stook.SharedMemoryArray(10)
        array.unlink_on_del()
        again = pickle.loads(pickle.dumps(array))
        {pause or "pass"}
        tracker = sys.modules.get("multiprocessing.resource_tracker")
        print(tracker is None or tracker._resource_tracker._fd is None)
    """
    assert run_python(code).check().stdout == "True\n"


def test_a_forked_child_leaves_the_parents_arrays_alone(run_python: RunPython) -> None:
    code = """
        import gc, os, pickle, stook, sys
        stook.SharedMemoryArray.enable_async_del(2)
        array = stook.SharedMemoryArray(1000, "u1")
        array.unlink_on_del()
        array[...] = 5
        dropped = [stook.SharedMemoryArray(100_000) for _ in range(40)]
        for one in dropped:
            one.unlink_on_del()
        del dropped, one  # the threads are at it while the process forks
        name = array.metadata.name
        child = os.fork()
        if child == 0:
            own = stook.SharedMemoryArray(10)
            own.unlink_on_del()
            sent = pickle.dumps(own)
            assert pickle.loads(sent).shape == (10,)
            stook.SharedMemoryArray.enable_async_del(1)
            array[0] = 6
            del array, own
            gc.collect()
            sys.exit(3)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
        print(os.path.exists("/dev/shm/" + name), array[0], array[1])
    """
    result = run_python(code, flags=("-X", "dev", "-W", "ignore::DeprecationWarning"))
    assert result.check().stdout == "True 6 5\n"
