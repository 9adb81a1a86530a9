"""Workers are killed, stopped, or lose their server: every element arrives exactly once."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import stook
from leftovers import wait_until

each_method = pytest.mark.parametrize("method", ["forkserver", "fork"])


def element(index: int) -> dict[str, Any]:
    """Depends on nothing but the index and the job's seed, which a lost job keeps."""
    rng = np.random.default_rng(index)
    return {
        "array": rng.integers(0, 255, 6_000 + 1_000 * (index % 7), np.uint8),
        "drawn": (random.random(), float(np.random.random())),
        "small": np.arange(index % 5),
        "index": index,
    }


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return (
        one["index"] == other["index"]
        and one["drawn"] == other["drawn"]
        and np.array_equal(one["array"], other["array"])
        and np.array_equal(one["small"], other["small"])
    )


def kill(loader: stook.DataLoader, pid: int, number: int = signal.SIGKILL) -> bool:
    """Signals a worker; False if the process of that number is not one (any more)."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
        parent = int(status[status.rindex(")") + 2 :].split()[1])
        if parent != loader._pool._core.server_pid:
            return False
        signal.pidfd_send_signal(pidfd, number)
        return True
    except OSError:
        return False
    finally:
        os.close(pidfd)


class Killer:
    """A thread that kills workers at random moments."""

    def __init__(self, loader: stook.DataLoader, kills: int, seed: int) -> None:
        self.kills = 0
        self._killed: set[int] = set()
        self._loader = loader
        self._wanted = kills
        self._random = random.Random(seed)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def done(self) -> bool:
        return self.kills >= self._wanted

    def __enter__(self) -> Killer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self.done() and not self._stop.wait(self._random.expovariate(150)):
            pids = set(self._loader._pool._core.worker_pids) - self._killed
            pid = self._random.choice([*pids, 0])
            if pid and kill(self._loader, pid):
                self._killed.add(pid)
                self.kills += 1


def go_through_kills(method: str, ordered: bool, kills: int, keep: bool) -> None:
    length = 60
    inline = stook.DataLoader(range(length), element, shuffle=True)
    options = stook.MultiprocessingOptions(
        num_workers=3, per_worker_buffer_size=4, start_method=method, max_restarts=10_000
    )
    kept: list[tuple[dict[str, Any], dict[str, Any]]] = []
    with stook.DataLoader(
        range(length), element, shuffle=True, ordered=ordered, options=options
    ) as loader:
        elements = iter(loader)
        expected = list(inline)
        passes = 0
        next(elements)
        with Killer(loader, kills, seed=kills) as killer:
            while not killer.done() or passes == 0:
                elements = iter(loader)
                expected = list(inline)
                found = list(elements)
                assert len(found) == length
                if not ordered:
                    place = {e["index"]: n for n, e in enumerate(expected)}
                    found.sort(key=lambda e: place[e["index"]])
                assert all(same(a, b) for a, b in zip(found, expected, strict=True))
                passes += 1
                if keep:
                    kept.extend(zip(found[:3], expected[:3], strict=True))
        assert killer.kills == kills
        # A kill after the last element is noticed by the next pass.
        assert kills - 3 <= loader.stats().restarts <= kills
    assert all(same(a, b) for a, b in kept)


@pytest.mark.parametrize("ordered", [True, False], ids=["ordered", "unordered"])
@each_method
def test_workers_killed_at_random_moments(method: str, ordered: bool) -> None:
    go_through_kills(method, ordered, kills=20, keep=True)


@pytest.mark.long
@pytest.mark.parametrize("ordered", [True, False], ids=["ordered", "unordered"])
@each_method
def test_workers_killed_300_times(method: str, ordered: bool) -> None:
    go_through_kills(method, ordered, kills=300, keep=True)


# ---- in jobs with arguments ----------------------------------------------------------------------


def doubled(array: np.ndarray) -> np.ndarray:
    array *= 2  # its copy: a job that is run again sees the original
    if stook.worker_info().incarnation == 0:  # type: ignore[union-attr]
        os.kill(os.getpid(), signal.SIGKILL)
    return array


@each_method
def test_a_job_that_is_run_again_sees_its_arguments_as_they_were(method: str) -> None:
    source = [np.full(3_000 * k, k) for k in range(1, 12)]
    options = stook.MultiprocessingOptions(num_workers=2, start_method=method)
    with stook.DataLoader(iter(source), doubled, options=options) as loader:
        for original, found in zip(source, loader, strict=True):
            assert np.array_equal(found, 2 * original)
        assert 1 <= loader.stats().restarts <= 2


# ---- stopped -------------------------------------------------------------------------------------


@contextlib.contextmanager
def running(method: str, epochs: int | None = 1) -> Iterator[tuple[stook.DataLoader, Any]]:
    options = stook.MultiprocessingOptions(
        num_workers=2, start_method=method, per_worker_buffer_size=2
    )
    with stook.DataLoader(range(200), element, options=options, num_epochs=epochs) as loader:
        elements = iter(loader)
        assert next(elements)["index"] == 0
        yield loader, elements


@each_method
def test_closing_with_stopped_workers(method: str) -> None:
    with running(method) as (loader, _):
        for pid in loader._pool._core.worker_pids:
            assert kill(loader, pid, signal.SIGSTOP)
        loader.close()


@each_method
def test_a_stopped_worker_that_goes_on(method: str) -> None:
    with running(method) as (loader, elements):
        pid = loader._pool._core.worker_pids[0]
        assert kill(loader, pid, signal.SIGSTOP)
        found: list[int] = []
        thread = threading.Thread(target=lambda: found.extend(e["index"] for e in elements))
        thread.start()
        task = Path(f"/proc/self/task/{thread.native_id}/syscall")
        # It waits for the element that the stopped worker has (epoll_pwait2, system call 441), or
        # that one had none, and it comes to the end.
        with contextlib.suppress(OSError):
            assert wait_until(lambda: task.read_text().startswith("441 "), 60)
        assert kill(loader, pid, signal.SIGCONT)
        thread.join()
        assert found == list(range(1, 200))
        assert loader.stats().restarts == 0


# ---- the fork server -----------------------------------------------------------------------------


def alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    return False


@each_method
def test_the_fork_server_is_killed(method: str) -> None:
    with running(method, epochs=None) as (loader, elements):
        kept = [next(elements) for _ in range(3)]
        for _ in range(5):
            core = loader._pool._core
            workers = core.worker_pids
            os.kill(core.server_pid, signal.SIGKILL)
            with pytest.raises(stook.PoolBroken, match="the fork server"):
                for e in elements:
                    kept[3:] = [e]
            assert wait_until(lambda: not any(alive(pid) for pid in workers), 30)  # noqa: B023
            assert list(elements) == []
            elements = iter(loader)  # anew
            assert [next(elements)["index"] for _ in range(3)] == [0, 1, 2]
        assert [next(elements)["index"] for _ in range(300)] == [n % 200 for n in range(3, 303)]
    assert all(np.array_equal(e["array"], element(e["index"])["array"]) for e in kept)


@each_method
def test_the_fork_server_is_killed_between_two_passes(method: str) -> None:
    with running(method) as (loader, elements):
        for _ in elements:
            pass
        os.kill(loader._pool._core.server_pid, signal.SIGKILL)
        assert wait_until(lambda: not alive(loader._pool._core.server_pid), 30)
        # Nothing was under way that could be lost: the next pass starts another.
        assert [e["index"] for e in loader] == list(range(200))


def test_a_worker_may_die_of_an_element_that_was_given_up() -> None:
    begun, begin = os.pipe()
    released, release = os.pipe()

    def deadly(index: int) -> int:
        info = stook.worker_info()
        if info is not None and info.epoch == 0:
            if index == 0:  # so that another worker takes 1, and publishes nothing before
                os.read(begun, 1)
            elif index == 1:
                os.write(begin, b"1")
                os.read(released, 1)
                os.kill(os.getpid(), signal.SIGKILL)
        return index

    options = stook.MultiprocessingOptions(2, start_method="fork", max_restarts=0)
    try:
        with stook.DataLoader(range(20), deadly, options=options) as loader:
            assert next(iter(loader)) == 0
            elements = iter(loader)
            os.write(release, b"1")
            assert list(elements) == list(range(20))
            assert wait_until(
                lambda: list(loader) == list(range(20)) and loader.stats().restarts == 1, 30
            )
    finally:
        for descriptor in (begun, begin, released, release):
            os.close(descriptor)


@pytest.mark.long  # the loader gives it five seconds
@each_method
def test_closing_with_a_stopped_fork_server(method: str) -> None:
    with running(method) as (loader, _):
        os.kill(loader._pool._core.server_pid, signal.SIGSTOP)
        loader.close()
