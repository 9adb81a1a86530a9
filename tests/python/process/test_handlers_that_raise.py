"""What a signal handler raises is the program's, and no task's error."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from handlers import WhenPickled, WhenUnpickled, handled_by, same_of
from task_pools import Sink, made, run

import stook
from stook._task_pool import TaskPool

PATIENCE = 30


class Stop(Exception):
    """As a handler of SIGALRM raises."""


each_error = pytest.mark.parametrize("kind", [Stop, TimeoutError, SystemExit, KeyboardInterrupt])


@contextlib.contextmanager
def handler_raises(kind: type[BaseException], times: int = 1) -> Iterator[list[BaseException]]:
    raised: list[BaseException] = []

    def handle() -> None:
        if len(raised) < times:
            raised.append(kind("of the handler"))
            raise raised[-1]

    with handled_by(handle):
        yield raised


@pytest.fixture(autouse=True)
def ignore_later_ones() -> Iterator[None]:
    """An argument whose pickling was interrupted is pickled again, after the test at the latest."""
    with handled_by(lambda: None):
        yield


@pytest.fixture(scope="module")
def executor() -> Iterator[stook.ProcessPoolExecutor]:
    with stook.ProcessPoolExecutor(1) as executor:
        assert executor.submit(abs, -1).result() == 1
        assert executor._pool is not None
        assert len(executor._pool.tasks.workers()) == 1
        yield executor


@pytest.fixture(scope="module")
def tasks() -> Iterator[TaskPool]:
    with made(1) as pool:
        assert run(pool, abs, -1) == 1
        assert len(pool.workers()) == 1
        yield pool


@pytest.fixture(scope="module")
def pool() -> Iterator[stook.Pool]:
    with stook.Pool(1) as pool:
        assert pool.apply(abs, (-1,)) == 1
        assert len(pool._tasks.workers()) == 1
        yield pool


@each_error
def test_while_an_argument_is_pickled(
    executor: stook.ProcessPoolExecutor, kind: type[BaseException]
) -> None:
    with handler_raises(kind) as raised, pytest.raises(kind) as caught:
        executor.submit(same_of, WhenPickled(), 7)
    assert caught.value is raised[0]
    assert executor.submit(abs, -2).result(PATIENCE) == 2


@each_error
def test_while_a_function_is_pickled(
    executor: stook.ProcessPoolExecutor, kind: type[BaseException]
) -> None:
    sends = WhenPickled()
    with handler_raises(kind) as raised, pytest.raises(kind) as caught:
        executor.submit(lambda: sends)
    assert caught.value is raised[0]
    assert executor.submit(abs, -2).result(PATIENCE) == 2


def begin(pool: TaskPool, function: Callable[..., Any], *args: Any) -> Sink:
    """A task that no other thread delivers."""
    sink = Sink()
    pool.submit(pool.function(function), args, sink=sink, background=False)
    return sink


@each_error
def test_while_a_result_is_unpickled(tasks: TaskPool, kind: type[BaseException]) -> None:
    sink = begin(tasks, same_of, WhenUnpickled(), 7)
    with handler_raises(kind) as raised, pytest.raises(kind) as caught:
        tasks.wait(lambda: sink.calls)
    assert caught.value is raised[0]
    assert sink.value[1] == 7  # the result is not lost


@each_error
def test_while_an_error_is_unpickled(tasks: TaskPool, kind: type[BaseException]) -> None:
    sink = begin(tasks, _raise, WhenUnpickled())
    with handler_raises(kind) as raised, pytest.raises(kind) as caught:
        tasks.wait(lambda: sink.calls)
    assert caught.value is raised[0]
    with pytest.raises(LookupError):
        _ = sink.value


def _raise(value: Any) -> None:
    raise LookupError(value)


@each_error
@pytest.mark.parametrize("method", ["map", "imap", "imap_unordered"])
def test_while_items_are_unpickled(
    pool: stook.Pool, method: str, kind: type[BaseException]
) -> None:
    with handler_raises(kind) as raised, pytest.raises(kind) as caught:
        list(getattr(pool, method)(_nothing, [WhenUnpickled()] * 3, 1))
    assert caught.value is raised[0]
    assert pool.map(abs, [-1, -2]) == [1, 2]


def _nothing(value: Any) -> Any:
    return value


def test_a_handler_that_raises_each_time_does_so_in_the_call(tasks: TaskPool) -> None:
    sink = begin(tasks, same_of, WhenUnpickled(), 7)
    with handler_raises(Stop, times=2) as raised:
        with pytest.raises(Stop) as caught:
            tasks.wait(lambda: sink.calls)
        assert caught.value is raised[0]
    with pytest.raises(Stop):
        _ = sink.value


def test_what_pickling_itself_raises_is_the_tasks_error(
    executor: stook.ProcessPoolExecutor,
) -> None:
    future = executor.submit(abs, _Refuses())
    with pytest.raises(SystemExit):
        future.result(PATIENCE)


class _Refuses:
    def __reduce__(self) -> Any:
        raise SystemExit("not a handler's")
