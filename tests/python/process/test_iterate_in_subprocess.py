"""An iterable in a process of its own: elements, order, iterating again, ending early, errors."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import stook
import stook.subprocess_iterator
from interrupts import Ctrl, RaisesOnce, every_place
from stook import iterate_in_subprocess


def pids(count: int) -> Callable[[], Iterator[int]]:
    def generate() -> Iterator[int]:
        for _ in range(count):
            yield os.getpid()

    return generate


def is_alive(pid: int) -> bool:
    return os.path.exists(f"/proc/{pid}")


# ---- elements ------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [None, "fork", "forkserver", "spawn"])
def test_elements_come_in_order_from_one_other_process(method: str | None) -> None:
    def generate() -> Iterator[tuple[int, int]]:
        for number in range(50):
            yield number, os.getpid()

    elements = list(iterate_in_subprocess(generate, mp_context=method))
    assert [number for number, _ in elements] == list(range(50))
    assert len({pid for _, pid in elements}) == 1
    assert elements[0][1] != os.getpid()


def test_mp_context_is_a_context() -> None:
    context = multiprocessing.get_context("fork")
    assert len(list(iterate_in_subprocess(pids(3), mp_context=context, daemon=True))) == 3


def test_arrays_are_moved() -> None:
    def generate() -> Iterator[dict[str, np.ndarray]]:
        for number in range(5):
            yield {"image": np.full(100_000, number)}

    for number, element in enumerate(iterate_in_subprocess(generate)):
        assert stook.is_shared(element["image"])
        assert (element["image"] == number).all()


def test_an_array_that_the_generator_keeps_is_not_changed_under_the_consumer() -> None:
    def generate() -> Iterator[np.ndarray]:
        array = np.zeros(10_000, int)
        for _ in range(6):
            array += 1
            yield array

    assert [int(array[0]) for array in list(iterate_in_subprocess(generate))] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("buffer_size", [1, 2, 5])
def test_elements_are_made_ahead_as_many_as_the_buffer_takes(
    buffer_size: int, tmp_path: Path
) -> None:
    log = tmp_path / "log"

    def generate() -> Iterator[int]:
        for number in range(100):
            with open(log, "a") as file:
                file.write("x")
            yield number

    elements = iter(iterate_in_subprocess(generate, buffer_size=buffer_size))
    assert [next(elements) for _ in range(4)] == [0, 1, 2, 3]
    assert 4 <= len(log.read_text()) <= 4 + buffer_size


def test_anything_iterable() -> None:
    assert list(iterate_in_subprocess(lambda: range(4))) == [0, 1, 2, 3]
    assert list(iterate_in_subprocess(lambda: "abc")) == ["a", "b", "c"]
    assert list(iterate_in_subprocess(list)) == []


@pytest.mark.parametrize("several", [False, True])
def test_initializers_run_before_fn(several: bool) -> None:
    def one() -> None:
        os.environ["STOOK_TEST_ITERATE"] = "1"

    def two() -> None:
        os.environ["STOOK_TEST_ITERATE"] += "2"

    def generate() -> Iterator[str]:
        yield os.environ["STOOK_TEST_ITERATE"]

    initializer: Any = [one, two] if several else one
    assert list(iterate_in_subprocess(generate, initializer=initializer)) == [
        "12" if several else "1"
    ]


# ---- several iterations --------------------------------------------------------------------------


def test_iterating_again_begins_anew_in_the_same_process() -> None:
    with iterate_in_subprocess(pids(4)) as iterable:
        first, second = list(iterable), list(iterable)
    assert len(first) == len(second) == 4
    assert set(first) == set(second)


def test_fn_is_called_once_if_its_iterable_can_be_iterated_again(tmp_path: Path) -> None:
    def make() -> list[int]:
        with open(tmp_path / "calls", "a") as file:
            file.write("x")
        return [1, 2]

    with iterate_in_subprocess(make) as iterable:
        assert [list(iterable) for _ in range(3)] == [[1, 2]] * 3
    assert (tmp_path / "calls").read_text() == "x"


def test_two_iterations_of_one_iterable_take_turns() -> None:
    with iterate_in_subprocess(lambda: range(20)) as iterable:
        assert list(zip(iterable, iterable, strict=True)) == [(i, i) for i in range(20)]


def test_several_iterables_have_a_process_each() -> None:
    with iterate_in_subprocess(pids(3)) as one, iterate_in_subprocess(pids(3)) as other:
        pairs = list(zip(one, other, strict=True))
    assert len(pairs) == 3
    assert all(mine != others for mine, others in pairs)


def test_threads_share_an_iteration() -> None:
    elements = iter(iterate_in_subprocess(lambda: range(200)))
    got: list[int] = []
    threads = [threading.Thread(target=lambda: got.extend(elements)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == list(range(200))


# ---- the end -------------------------------------------------------------------------------------


def test_after_the_end_nothing_comes() -> None:
    elements = iter(iterate_in_subprocess(lambda: range(1)))
    assert next(elements) == 0
    for _ in range(2):
        with pytest.raises(StopIteration):
            next(elements)


def endless() -> Iterator[int]:
    while True:
        yield os.getpid()


def test_leaving_the_loop_ends_the_process() -> None:
    for pid in iterate_in_subprocess(endless):  # noqa: B007
        break
    assert not is_alive(pid)


def test_closing_an_iteration_ends_the_process_if_nobody_has_the_iterable() -> None:
    elements = iter(iterate_in_subprocess(endless))
    pid = next(elements)
    elements.close()
    assert not is_alive(pid)
    assert list(elements) == []


def test_closing_an_iteration_closes_its_generator(tmp_path: Path) -> None:
    fifo = str(tmp_path / "fifo")
    os.mkfifo(fifo)

    def generate() -> Iterator[int]:
        try:
            yield from range(10_000)
        finally:
            with open(fifo, "w") as file:
                file.write("closed")

    with iterate_in_subprocess(generate) as iterable:
        elements = iter(iterable)
        assert next(elements) == 0
        elements.close()
        with open(fifo) as file:
            assert file.read() == "closed"
        assert next(iter(iterable)) == 0


def test_closing_the_iterable_ends_the_process_and_its_iterations() -> None:
    iterable = iterate_in_subprocess(pids(100))
    elements = iter(iterable)
    pid = next(elements)
    iterable.close()
    iterable.close()
    assert not is_alive(pid)
    with pytest.raises(stook.StookError, match="closed"):
        for _ in range(5):  # those that were there already still come
            next(elements)
    assert list(elements) == []
    assert len(list(iterable)) == 100
    iterable.close()


def test_arrays_outlive_their_process() -> None:
    iterable = iterate_in_subprocess(lambda: (np.full(50_000, i) for i in range(3)))
    arrays = list(iterable)
    iterable.close()
    assert [int(array.sum()) for array in arrays] == [0, 50_000, 100_000]


# ---- errors --------------------------------------------------------------------------------------


class Odd(Exception):
    def __init__(self, number: int, word: str) -> None:
        super().__init__(number, word)


def test_an_error_comes_in_its_place_with_its_type_and_traceback() -> None:
    def generate() -> Iterator[int]:
        yield 1
        yield 2
        raise Odd(3, "x")

    elements = iter(iterate_in_subprocess(generate))
    assert [next(elements), next(elements)] == [1, 2]
    with pytest.raises(Odd) as caught:
        next(elements)
    assert caught.value.args == (3, "x")
    assert "raise Odd" in str(caught.value.__cause__)
    assert list(elements) == []


def test_an_iterator_that_goes_on_after_an_error() -> None:
    class Goes:
        def __init__(self) -> None:
            self.number = 0

        def __iter__(self) -> Any:
            return self

        def __next__(self) -> int:
            self.number += 1
            if self.number == 2:
                raise KeyError(self.number)
            if self.number == 5:
                raise StopIteration
            return self.number

    elements = iter(iterate_in_subprocess(Goes))
    assert next(elements) == 1
    with pytest.raises(KeyError):
        next(elements)
    assert list(elements) == [3, 4]


def test_errors_before_the_first_element() -> None:
    def fail() -> Any:
        raise Odd(1, "y")

    with pytest.raises(Odd):
        next(iter(iterate_in_subprocess(fail)))
    with pytest.raises(Odd):
        list(iterate_in_subprocess(lambda: range(3), initializer=fail))
    with pytest.raises(TypeError, match="not iterable"):
        list(iterate_in_subprocess(lambda: 3))  # type: ignore[arg-type, return-value]


def test_an_element_that_cannot_be_sent() -> None:
    def generate() -> Iterator[Any]:
        yield 1
        yield threading.Lock()
        yield 3

    elements = iter(iterate_in_subprocess(generate))
    assert next(elements) == 1
    with pytest.raises(TypeError, match="pickle"):
        next(elements)
    assert list(elements) == [3]


def test_fn_that_cannot_be_sent() -> None:
    lock = threading.Lock()
    with pytest.raises(stook.StookError, match="lock"):
        list(iterate_in_subprocess(lambda: [lock]))


@pytest.mark.parametrize(
    ("arguments", "settings", "error", "words"),
    [
        ((3,), {}, TypeError, "fn must be"),
        (([1],), {}, TypeError, "lambda: iterable"),
        ((list,), {"buffer_size": 0}, ValueError, "buffer_size"),
        ((list,), {"buffer_size": 1.5}, TypeError, "buffer_size"),
        ((list,), {"timeout": 0}, ValueError, "timeout"),
        ((list,), {"timeout": "1"}, TypeError, "timeout"),
        ((list,), {"daemon": 1}, TypeError, "daemon"),
        ((list,), {"initializer": 3}, TypeError, "initializer"),
        ((list,), {"initializer": [3]}, TypeError, "initializer"),
        ((list,), {"mp_context": 3}, TypeError, "mp_context"),
        ((list,), {"mp_context": "thread"}, ValueError, "mp_context must be"),
    ],
)
def test_bad_arguments(
    arguments: Any, settings: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        iterate_in_subprocess(*arguments, **settings)


# ---- forks ---------------------------------------------------------------------------------------


def test_in_a_forked_child() -> None:
    iterable = iterate_in_subprocess(lambda: range(10))
    elements = iter(iterable)
    assert next(elements) == 0
    child = os.fork()
    if child == 0:
        status = 1
        try:
            try:
                next(elements)
            except stook.StookError as error:
                assert "forked child" in str(error)
                assert list(iterable) == list(range(10))
                iterable.close()
                status = 0
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert list(elements) == list(range(1, 10))


# ---- signal handlers -----------------------------------------------------------------------------


def test_a_handler_takes_from_the_iterator_that_it_interrupts(tmp_path: Path) -> None:
    gate = str(tmp_path / "gate")
    os.mkfifo(gate)

    def generate() -> Iterator[int]:
        with open(gate, "rb") as file:  # until the handler has run
            file.read()
        yield from range(10)

    taken: list[int] = []

    def handle(*_: object) -> None:
        open(gate, "wb").close()
        taken.append(next(iterator))
        taken.append(next(iterator))

    def interrupt() -> None:
        while not process.pool._queue.is_pumped:  # it waits
            os.sched_yield()
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, handle)
    try:
        with iterate_in_subprocess(generate) as iterable:
            iterator = iter(iterable)
            process: Any = iterator._process
            thread = threading.Thread(target=interrupt)
            thread.start()
            rest = list(iterator)
            thread.join()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert taken == [0, 1] and rest == list(range(2, 10))


class Uneven(Iterator[int]):
    """0 to 11, of which the odd ones are raised."""

    def __init__(self) -> None:
        self.numbers = iter(range(12))

    def __next__(self) -> int:
        number = next(self.numbers)
        if number % 2:
            raise ValueError(number)
        return number


def test_an_iterator_that_is_interrupted_anywhere_goes_on() -> None:
    with iterate_in_subprocess(Uneven) as iterable:

        def run(once: RaisesOnce) -> None:
            iterator = iter(iterable)
            taken: list[int] = []

            def take() -> None:
                try:
                    taken.append(next(iterator))
                except ValueError as error:
                    taken.append(error.args[0])

            number = once.left
            for _ in range(5):  # more often than elements are made ahead
                once.left = number
                with contextlib.suppress(Ctrl), once:
                    take()
                    take()
            with contextlib.suppress(StopIteration):
                while True:
                    take()
            # What was about to be returned is lost with its return, and nothing else.
            assert len(taken) >= 12 - 5 and taken == sorted(set(taken)), once.place

        every_place({stook.subprocess_iterator.__file__}, run)
