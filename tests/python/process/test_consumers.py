"""What a consumer may do with a loader: leave early, share it, fork, drop it, go on for long."""

from __future__ import annotations

import contextlib
import gc
import os
import threading
import traceback
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from process_loader import each_method, made

import stook
from leftovers import wait_until


def with_pid(index: int) -> tuple[np.ndarray, int]:
    return np.full(5_000, index), os.getpid()


def alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    return False


def in_child(what: Callable[[], Any]) -> str:
    """Runs it in a forked child; returns what it returned or raised, as text."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            try:
                text = str(what())
            except BaseException as error:
                text = f"{type(error).__name__}: {error}"
            os.write(write, text.encode())
        finally:
            os._exit(0)
    os.close(write)
    with open(read, "rb") as file:
        text = file.read().decode()
    os.waitpid(child, 0)
    return text


# ---- leaving early -------------------------------------------------------------------------------


@each_method
@pytest.mark.parametrize("ordered", [True, False])
def test_breaking_early_and_going_on(method: str, ordered: bool) -> None:
    with made(method, range(100), with_pid, ordered=ordered) as loader:
        pids = set()
        kept = []
        for _ in range(5):
            for number, (array, pid) in enumerate(loader):
                pids.add(pid)
                kept.append((array, int(array[0])))
                if number == 3:
                    break
        found = [int(array[0]) for array, _ in loader]
        assert sorted(found) == list(range(100))
        assert not ordered or found == sorted(found)
        assert len(pids) <= 2
    assert all((array == value).all() for array, value in kept)


@each_method
def test_an_iterator_that_was_overtaken_says_so(method: str) -> None:
    with made(method, range(50), with_pid) as loader:
        first = iter(loader)
        next(first)
        second = iter(loader)
        with pytest.raises(stook.StookError, match="this iterator is closed"):
            next(first)
        first.close()
        del first
        assert [int(array[0]) for array, _ in second] == list(range(50))
        assert list(second) == []


# ---- threads -------------------------------------------------------------------------------------


@each_method
def test_iterating_in_a_thread(method: str) -> None:
    found: list[int] = []
    with made(method, range(50), with_pid) as loader:
        elements = iter(loader)  # made here, used there

        def consume() -> None:
            found.extend(int(array[0]) for array, _ in elements)

        thread = threading.Thread(target=consume)
        thread.start()
        thread.join()
    assert found == list(range(50))


def test_threads_that_share_an_iterator_get_every_element_once() -> None:
    with made("forkserver", range(400), with_pid) as loader:
        elements = iter(loader)
        found: list[list[int]] = [[] for _ in range(4)]

        def consume(mine: list[int]) -> None:
            mine.extend(int(array[0]) for array, _ in elements)

        threads = [threading.Thread(target=consume, args=(mine,)) for mine in found]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(number for mine in found for number in mine) == list(range(400))
    assert all(mine == sorted(mine) for mine in found)


def test_two_loaders_at_once() -> None:
    with made("forkserver", range(60), with_pid) as first, made("fork", range(60), with_pid) as two:
        for (a, pid), (b, other) in zip(first, two, strict=True):
            assert int(a[0]) == int(b[0])
            assert pid != other
        assert [int(a[0]) for a, _ in first] == list(range(60))


# ---- stuck workers, and who closes ---------------------------------------------------------------


def sleeps(path: str) -> Any:
    if not path:
        return None
    with open(path, "a") as file:
        file.write("here\n")
    threading.Event().wait()


@contextlib.contextmanager
def stuck(method: str, folder: Path) -> Iterator[tuple[stook.DataLoader, Any]]:
    """A loader whose workers are in user code for ever, and an iterator of it."""
    path = folder / "arrived"
    with made(method, ["", *[str(path)] * 8], sleeps) as loader:
        elements = iter(loader)
        assert next(elements) is None
        assert wait_until(lambda: path.exists() and path.read_text().count("\n") >= 2, 30)
        yield loader, elements


class Waiting:
    """A thread in next()."""

    def __init__(self, elements: Any) -> None:
        self.error: BaseException | None = None
        self._elements = elements
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        task = f"/proc/self/task/{self._thread.native_id}"
        # Asleep in epoll_pwait2, system call 441.
        assert wait_until(lambda: Path(f"{task}/syscall").read_text().startswith("441 "), 30)

    def _run(self) -> None:
        try:
            next(self._elements)
        except BaseException as error:
            self.error = error

    def join(self) -> BaseException | None:
        self._thread.join(30)
        assert not self._thread.is_alive()
        return self.error


@each_method
@pytest.mark.parametrize("how", ["loader.close", "iterator.close", "iterate", "update", "with"])
def test_a_thread_that_waits_for_ever_is_woken(method: str, how: str, tmp_path: Path) -> None:
    with stuck(method, tmp_path) as (loader, elements):
        waiting = Waiting(elements)
        if how == "loader.close":
            loader.close()
        elif how == "iterator.close":
            elements.close()
        elif how == "iterate":
            iter(loader)
        elif how == "update":
            loader.update([])
            assert list(loader) == []
        else:
            loader.__exit__(None, None, None)
        error = waiting.join()
        assert isinstance(error, stook.StookError)
        assert "this iterator is closed" in str(error)


@each_method
def test_closing_while_workers_are_stuck(method: str, tmp_path: Path) -> None:
    with stuck(method, tmp_path) as (loader, elements):
        loader.close()
        loader.close()
        with pytest.raises(stook.StookError, match="iterator is closed"):
            next(elements)
        with pytest.raises(stook.StookError, match="iterating after close"):
            iter(loader)
        with pytest.raises(stook.StookError, match=r"update\(\) after close"):
            loader.update([1])
        elements.close()
        assert loader.stats().elements == 1


def test_threads_that_close_at_once(tmp_path: Path) -> None:
    for _ in range(5):
        with made("fork", range(1000), with_pid) as loader:
            elements = iter(loader)
            next(elements)
            barrier = threading.Barrier(4)
            unexpected: list[BaseException] = []

            def work(
                what: Callable[[], Any], barrier: Any = barrier, log: Any = unexpected
            ) -> None:
                barrier.wait()
                try:
                    what()
                except stook.StookError:
                    pass
                except BaseException as error:
                    log.append(error)

            tasks: list[Callable[[], Any]] = [loader.close, elements.close, loader.stats]
            tasks.append(lambda elements=elements: [None for _ in elements])
            threads = [threading.Thread(target=work, args=(task,)) for task in tasks]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(30)
                assert not thread.is_alive()
            assert unexpected == [], "".join(traceback.format_exception(unexpected[0]))


# ---- dropping ------------------------------------------------------------------------------------


@each_method
def test_a_dropped_loader_ends_its_workers(method: str) -> None:
    options = stook.MultiprocessingOptions(num_workers=2, start_method=method)
    loader = stook.DataLoader(range(50), with_pid, options=options)
    array, pid = next(iter(loader))
    assert alive(pid)
    del loader
    gc.collect()
    assert not alive(pid)
    assert (array == 0).all()  # and stays


@each_method
def test_an_iterator_keeps_its_loader(method: str) -> None:
    options = stook.MultiprocessingOptions(num_workers=2, start_method=method)
    elements = iter(stook.DataLoader(range(50), with_pid, options=options))
    array, pid = next(elements)
    gc.collect()
    assert alive(pid)
    assert sum(1 for _ in elements) == 49
    del elements
    gc.collect()
    assert not alive(pid)
    assert (array == 0).all()


def test_a_loader_in_a_cycle() -> None:
    options = stook.MultiprocessingOptions(num_workers=1, start_method="fork")

    class Trainer:
        def __init__(self) -> None:
            self.loader = stook.DataLoader(range(50), with_pid, options=options)
            self.elements = iter(self.loader)
            self.me = self

    trainer = Trainer()
    gone = weakref.ref(trainer)
    _, pid = next(trainer.elements)
    del trainer
    gc.collect()
    assert gone() is None
    assert not alive(pid)


# ---- forks ---------------------------------------------------------------------------------------


@each_method
def test_a_forked_child_cannot_iterate(method: str) -> None:
    with made(method, range(100), with_pid) as loader:
        elements = iter(loader)
        kept = [next(elements) for _ in range(3)]
        for what in (lambda: next(elements), lambda: iter(loader), lambda: list(loader)):
            assert in_child(what).startswith("StookError: this loader belongs to the process")
        # What it holds it may read.
        assert in_child(lambda: [int(array.sum()) for array, _ in kept]) == "[0, 5000, 10000]"
        assert in_child(lambda: (elements.close(), loader.close(), "closed")[-1]) == "closed"
        # It drops arrays and loader without taking anything from the parent.
        assert in_child(lambda: (kept.clear(), gc.collect(), "dropped")[-1]) == "dropped"
        assert [int(array[0]) for array, _ in elements] == list(range(3, 100))
        assert [int(array[0]) for array, _ in kept] == [0, 1, 2]
        assert [int(array[0]) for array, _ in loader] == list(range(100))


@each_method
def test_a_forked_child_makes_its_own_loader(method: str) -> None:
    options = stook.MultiprocessingOptions(num_workers=1, start_method=method)
    with made(method, range(20), with_pid) as loader:
        elements = iter(loader)
        next(elements)

        def own() -> Any:
            with stook.DataLoader([3, -4], abs, options=options) as other:
                return list(other)

        assert in_child(own) == "[3, 4]"
        assert sum(1 for _ in elements) == 19


def test_a_child_forked_while_a_thread_waits(tmp_path: Path) -> None:
    with stuck("forkserver", tmp_path) as (loader, elements):
        waiting = Waiting(elements)
        # The thread that holds the locks is not there.
        assert in_child(lambda: (loader.close(), "closed")[-1]) == "closed"
        assert in_child(lambda: next(elements)).startswith("StookError: this loader belongs")
        loader.close()
        assert isinstance(waiting.join(), stook.StookError)


# ---- many passes ---------------------------------------------------------------------------------


def own_numbers() -> tuple[int, int, int]:
    maps = [line for line in Path("/proc/self/maps").read_text().splitlines() if "stook" in line]
    return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task")), len(maps)


def resident(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    sizes = dict(line.split(":", 1) for line in lines)
    return int(sizes["RssAnon"].split()[0]) + int(sizes["RssShmem"].split()[0])


@each_method
@pytest.mark.parametrize("leave", [False, True], ids=["to the end", "left early"])
def test_200_passes_are_steady(method: str, leave: bool) -> None:
    with made(method, range(12), with_pid) as loader:
        pids: set[int] = set()

        def go_through(times: int) -> None:
            for _ in range(times):
                for number, (array, pid) in enumerate(loader):
                    assert int(array[0]) == int(array[-1]) == number
                    pids.add(pid)
                    if leave and number == 6:
                        break

        go_through(20)
        while len(loader._pool._core.worker_pids) < 2:  # not both have announced themselves
            go_through(1)
        gc.collect()
        before, memory = own_numbers(), {pid: resident(pid) for pid in (*pids, os.getpid())}
        go_through(180)
        gc.collect()
        assert own_numbers() == before
        assert len(pids) <= 2
        for pid, kilobytes in memory.items():
            assert resident(pid) < kilobytes + 2_000, (pid, os.getpid())
        assert loader.stats().restarts == 0


def test_loaders_one_after_the_other_are_steady() -> None:
    def run() -> None:
        with made("fork", range(4), with_pid) as loader:
            assert [int(array[0]) for array, _ in loader] == [0, 1, 2, 3]

    for _ in range(3):
        run()
    gc.collect()
    before = own_numbers()
    memory = resident(os.getpid())
    for _ in range(25):
        run()
    gc.collect()
    assert own_numbers() == before
    assert resident(os.getpid()) < memory + 3_000
