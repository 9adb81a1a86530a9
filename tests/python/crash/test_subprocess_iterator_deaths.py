"""The process of iterate_in_subprocess, killed or stuck: heard of at once, and nothing is left."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import stook
from conftest import StartPython
from stook import iterate_in_subprocess


def stuck_after(count: int) -> Any:
    def generate() -> Iterator[int]:
        for _ in range(count):
            yield os.getpid()
        threading.Event().wait()

    return generate


def endless() -> Iterator[int]:
    while True:
        yield os.getpid()


def test_killed_while_it_makes_an_element() -> None:
    elements = iter(iterate_in_subprocess(stuck_after(2)))
    pid = next(elements)
    killer = threading.Timer(0, os.kill, (pid, signal.SIGKILL))
    assert next(elements) == pid
    killer.start()
    with pytest.raises(stook.WorkerDied) as caught:
        next(elements)
    killer.join()
    assert caught.value.exit_code == -signal.SIGKILL
    assert list(elements) == []


def test_killed_while_its_buffer_is_full() -> None:
    iterable = iterate_in_subprocess(endless, buffer_size=2)
    elements = iter(iterable)
    pid = next(elements)
    ended = os.pidfd_open(pid)
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(stook.WorkerDied, match="SIGKILL"):
        for _ in range(10):  # what was made comes first
            assert next(elements) == pid
    os.close(ended)
    assert list(elements) == []
    again = next(iter(iterable))
    assert again != pid


@pytest.mark.parametrize("way", ["exit", "abort"])
def test_ended_by_user_code(way: str) -> None:
    def generate() -> Iterator[int]:
        yield 1
        if way == "exit":
            os._exit(7)
        os.kill(os.getpid(), signal.SIGABRT)
        yield 2

    elements = iter(iterate_in_subprocess(generate))
    assert next(elements) == 1
    with pytest.raises(stook.WorkerDied) as caught:
        next(elements)
    assert caught.value.exit_code == (7 if way == "exit" else -signal.SIGABRT)


def test_all_iterations_of_a_killed_process_end() -> None:
    with iterate_in_subprocess(stuck_after(3), buffer_size=1) as iterable:
        one, other = iter(iterable), iter(iterable)
        pid = next(one)
        assert next(other) == pid
        os.kill(pid, signal.SIGKILL)
        for elements in (one, other):
            with pytest.raises(stook.WorkerDied):
                for _ in range(3):
                    next(elements)


def test_an_element_that_takes_too_long() -> None:
    iterable = iterate_in_subprocess(stuck_after(1), timeout=5)
    elements = iter(iterable)
    pid = next(elements)
    iterable._timeout = elements._timeout = 0.05
    with pytest.raises(TimeoutError, match=r"0\.05 seconds"):
        next(elements)
    assert not os.path.exists(f"/proc/{pid}")
    assert list(elements) == []


def test_close_while_the_process_is_stuck() -> None:
    iterable = iterate_in_subprocess(stuck_after(1))
    pid = next(iter(iterable))
    iterable.close()
    assert not os.path.exists(f"/proc/{pid}")


def test_close_by_another_thread_ends_the_wait() -> None:
    iterable = iterate_in_subprocess(stuck_after(1))
    elements = iter(iterable)
    next(elements)
    closer = threading.Timer(0.05, iterable.close)
    closer.start()
    with pytest.raises(stook.StookError, match="closed"):
        next(elements)
    closer.join()


PROGRAM = """
import os, sys, threading, stook

def generate():
    yield os.getpid()
    print("stuck", flush=True)
    threading.Event().wait()

elements = iter(stook.iterate_in_subprocess(generate))
print(next(elements), flush=True)
"""


def test_the_program_is_killed(start_python: StartPython) -> None:
    process = start_python(PROGRAM + "next(elements)\n")
    process.wait_for_output("stuck")
    process.send_signal(signal.SIGKILL)
    assert process.finish().returncode == -signal.SIGKILL


def test_ctrl_c_while_it_waits(start_python: StartPython) -> None:
    process = start_python(
        PROGRAM
        + """
try:
    next(elements)
except KeyboardInterrupt:
    print("interrupted")
"""
    )
    process.wait_for_output("stuck")
    process.send_signal(signal.SIGINT)
    done = process.finish().check()
    assert "interrupted" in done.stdout


@pytest.mark.parametrize("ending", ["", "sys.exit(0)", "elements.me = elements", "del elements"])
def test_the_program_ends_in_the_middle(
    ending: str, start_python: StartPython, tmp_path: Path
) -> None:
    done = start_python(PROGRAM + ending + "\n").finish().check()
    assert done.stderr == ""
