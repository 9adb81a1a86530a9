"""SharedMemoryArrays on their way to other processes, by every channel there is."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import re
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import stook
from conftest import RunPython
from leftovers import wait_until
from stook import SharedMemoryArray

pytestmark = pytest.mark.filterwarnings(
    "ignore:This process .* is multi-threaded:DeprecationWarning"
)
each_context = pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])


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
    before = set(os.listdir("/dev/shm"))
    assert run_python(code).check().stderr == ""
    assert set(os.listdir("/dev/shm")) == before


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


# ------------------------------------------------------------------ worker processes of a loader


def options(workers: int = 2, **more: Any) -> stook.MultiprocessingOptions:
    return stook.MultiprocessingOptions(num_workers=workers, **more)


def segments() -> set[str]:
    """Without the marker files of processes: after each test none of them may be left, either."""
    return {name for name in os.listdir("/dev/shm") if re.fullmatch("stook_[^_]+_[^_]+", name)}


def named(index: int) -> Any:
    array = SharedMemoryArray((100, 10), "int64")
    array[...] = index
    return array


def named_in_a_tree(index: int) -> Any:
    array = named(index)
    return {"view": array[5:, ::2], "number": index, "list": [named(index + 100)]}


@pytest.mark.parametrize("method", ["forkserver", "fork"])
def test_a_worker_returns_one_and_it_goes_with_its_last_array(method: str) -> None:
    before = segments()
    with stook.DataLoader(range(50), named, options=options(start_method=method)) as loader:
        for index, element in enumerate(loader):
            assert type(element) is SharedMemoryArray
            assert stook.is_shared(element)
            assert (element == index).all()
        assert loader.stats().moved == 50
        name = element.metadata.name
        del element
        assert name not in segments()
    assert segments() == before


def test_views_in_a_tree_arrive_as_themselves() -> None:
    before = segments()
    with stook.DataLoader(range(20), named_in_a_tree, options=options()) as loader:
        elements = list(loader)
    for index, element in enumerate(elements):
        assert element["view"].shape == (95, 5) and element["view"].strides == (80, 16)
        assert (element["view"] == index).all() and element["number"] == index
        assert (element["list"][0] == index + 100).all()
    # They are valid beyond the loader's end, and go with the last array.
    again = pickle.loads(pickle.dumps(elements[3]["view"]))
    assert (again == 3).all()
    del elements, element, again
    assert segments() == before


def test_what_the_worker_keeps_stays_the_workers() -> None:
    kept: list[Any] = []

    def table(index: int) -> Any:
        if not kept:
            kept.append(named(7))
        kept[0][index % 100] = index
        return kept[0][index % 100]

    before = segments()
    with stook.DataLoader(range(300), table, options=options(1), seed=None) as loader:
        names = set()
        for element in loader:
            names.add(element.metadata.name)
        assert len(names) == 1
        assert (element == 299).all()
        del element
    assert segments() == before


def test_an_argument_crosses_as_its_handle() -> None:
    arrays = [filled((100, 100)) for _ in range(6)]

    def add_one(array: Any) -> tuple[str, int]:
        array += 1
        return type(array).__name__, os.getpid()

    items = iter([array[:50] for array in arrays])
    with stook.DataLoader(items, add_one, options=options()) as loader:
        results = list(loader)
    assert {name for name, _ in results} == {"SharedMemoryArray"}
    assert os.getpid() not in {pid for _, pid in results}
    expected = np.arange(10_000).reshape(100, 100)
    for array in arrays:
        np.testing.assert_array_equal(array[:50], expected[:50] + 1)
        np.testing.assert_array_equal(array[50:], expected[50:])


def test_a_source_of_shared_arrays_is_not_copied_to_the_workers() -> None:
    table = filled((100, 100))
    with stook.DataLoader(table, lambda row: row.sum(), options=options()) as loader:
        assert list(loader) == [int(row.sum()) for row in table]


def test_elements_that_nobody_takes_leave_nothing() -> None:
    before = segments()
    with stook.DataLoader(
        range(1000), named, options=options(per_worker_buffer_size=8), num_epochs=None
    ) as loader:
        for _ in range(5):
            for index, _ in enumerate(loader):  # left early, again and again
                if index == 3:
                    break
        del _
        assert wait_until(lambda: len(segments() - before) < 60, 10)
    assert segments() == before


def test_a_batch_of_shared_arrays_is_a_plain_array() -> None:
    before = segments()
    with stook.DataLoader(range(6), named, batch_size=3, options=options()) as loader:
        for batch in loader:
            assert type(batch) is np.ndarray
            assert batch.shape == (3, 100, 10)
        assert segments() == before  # while the workers live: what they copied from is gone


SHARED_WITHIN: dict[str, Any] = {
    "two views": lambda array: {"first": array[:50], "second": array[50:, ::2]},
    "the same twice": lambda array: [array, array],
    "a view and the whole": lambda array: (array[3], [array]),
    "a view of a view": lambda array: (array[3:][2:],),
}


@pytest.mark.parametrize("name", SHARED_WITHIN)
@pytest.mark.parametrize("flagged", [False, True])
def test_arrays_over_one_segment_in_one_element(name: str, flagged: bool) -> None:
    def element(index: int) -> Any:
        array = named(index)
        if flagged:
            array.unlink_on_del()
        return SHARED_WITHIN[name](array)

    before = segments()
    with stook.DataLoader(range(30), element, options=options(1), seed=None) as loader:
        for index, got in enumerate(loader):
            leaves = got.values() if isinstance(got, dict) else got
            for leaf in leaves:
                assert (np.asarray(leaf) == index).all()
        del got, leaves, leaf
        assert segments() == before  # while the worker lives
    assert segments() == before
