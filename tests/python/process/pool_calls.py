"""What the tests of stook.Pool have called in workers."""

from __future__ import annotations

import multiprocessing.util
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import stook

DEADLINE = 60


def square(x: int) -> int:
    return x * x


def add(one: int, other: int = 0) -> int:
    return one + other


def same(x: Any) -> Any:
    return x


def pid_of(_: Any = None) -> int:
    return os.getpid()


def fail_at_three(x: int) -> int:
    if x == 3:
        raise KeyError(x)
    return x


def raise_error(error: BaseException) -> None:
    raise error


def wait_for(fifo: str, result: Any = None) -> Any:
    """Returns when the test has written to the fifo, or closed it."""
    with open(fifo, "rb") as file:
        file.read()
    return result


def tell_and_wait(told: str, fifo: str) -> int:
    """Tells that it has begun, and then waits."""
    with open(told, "wb") as file:
        file.write(b"begun")
    wait_for(fifo)
    return os.getpid()


def fifo(folder: Path, name: str) -> str:
    path = folder / name
    os.mkfifo(path)
    return str(path)


def die(_: Any = None) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_at_three(x: int) -> int:
    if x == 3:
        die()
    return x


def make_array(count: int) -> np.ndarray:
    return np.full(count, count % 251, np.uint8)


def pool_in_worker(count: int) -> list[int]:
    with stook.Pool(2) as pool:
        return pool.map(square, range(count))


class Unpicklable:
    def __reduce__(self) -> Any:
        raise RuntimeError("not to be pickled")


class DiesWhenUnpickled:
    def __reduce__(self) -> Any:
        return die, ()


class DiesWhenPickled:
    """In a worker: `die_pickling` makes it there."""

    def __reduce__(self) -> Any:
        die()


def die_pickling(x: int = 3) -> Any:
    return DiesWhenPickled() if x == 3 else x


class RaisesWhenUnpickled:
    def __reduce__(self) -> Any:
        return raise_error, (OSError("cannot be read"),)


def make_unpicklable(_: Any = None) -> Any:
    return [Unpicklable()]


def counting(drawn: list[int], count: int | None = None) -> Iterator[int]:
    """0, 1, 2, ...; keeps what was drawn."""
    number = 0
    while count is None or number < count:
        drawn.append(number)
        yield number
        number += 1


def in_threads(count: int, run: Callable[[int], Any]) -> list[Any]:
    """What `run(0)`, ... returned or raised, each called in a thread of its own at one time."""
    results: list[Any] = [None] * count
    start = threading.Barrier(count)

    def call(index: int) -> None:
        start.wait(DEADLINE)
        try:
            results[index] = run(index)
        except BaseException as error:
            results[index] = error

    threads = [threading.Thread(target=call, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
        assert not thread.is_alive()
    return results


def call(call: tuple[Any, ...]) -> Any:
    return call[0](*call[1:])


def touch(where: tuple[str, int]) -> None:
    folder, number = where
    Path(folder, str(number)).touch()


def touch_or_fail(where: tuple[str, int]) -> None:
    if where[1] in (5, 15):
        raise ValueError(where[1])
    touch(where)


def touch_own(folder: str) -> None:
    Path(folder, str(os.getpid())).touch()


def raise_unpickling(x: int = 3) -> Any:
    return RaisesWhenUnpickled() if x == 3 else x


def die_at_the_end() -> None:
    multiprocessing.util.Finalize(None, die, exitpriority=10)


def touch_at_the_end(folder: str) -> None:
    multiprocessing.util.Finalize(None, touch_own, (folder,), exitpriority=10)
