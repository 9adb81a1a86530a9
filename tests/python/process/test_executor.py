"""stook.ProcessPoolExecutor: calls, their arguments, results and errors."""

from __future__ import annotations

import concurrent.futures
import os
import threading
import weakref
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import executor_calls
import numpy as np
import pytest
from executor_calls import Gate, pass_gate, raise_it

import stook
from leftovers import wait_until

# Fixtures, which are looked for here.
executor = executor_calls.executor
gate = executor_calls.gate


def test_it_is_a_standard_executor_with_standard_futures(
    executor: stook.ProcessPoolExecutor,
) -> None:
    assert isinstance(executor, concurrent.futures.ProcessPoolExecutor)
    future = executor.submit(divmod, 17, 5)
    assert isinstance(future, concurrent.futures.Future)
    assert future.result(30) == (3, 2)
    assert future.exception() is None
    assert future.done() and not future.running() and not future.cancelled()
    assert not future.cancel()
    assert "finished" in repr(future)


def test_keywords_of_the_function_are_its_own(executor: stook.ProcessPoolExecutor) -> None:
    def keywords(**given: Any) -> dict[str, Any]:
        return given

    assert executor.submit(keywords, self=1, fn=2).result(30) == {"self": 1, "fn": 2}
    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        executor.submit()  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        executor.submit(fn=abs)  # type: ignore[call-arg]


def test_a_closure_is_what_it_was_when_it_was_submitted(
    executor: stook.ProcessPoolExecutor,
) -> None:
    factor = 1

    def scale(value: int) -> int:
        return factor * value

    futures = []
    for factor in range(1, 5):  # noqa: B007 - the closure sees it
        futures.append(executor.submit(scale, 10))
    assert [future.result(30) for future in futures] == [10, 20, 30, 40]


def test_an_importable_function_is_not_pickled_again(
    executor: stook.ProcessPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert executor.submit(os.path.basename, "a/b").result(30) == "b"
    monkeypatch.setattr("stook._task_pool.dump_function", raise_it)
    assert executor.submit(os.path.basename, "a/c").result(30) == "c"


def test_an_error_has_its_type_and_the_workers_traceback(
    executor: stook.ProcessPoolExecutor,
) -> None:
    error = executor.submit(raise_it, KeyError("lost")).exception(30)
    assert isinstance(error, KeyError) and error.args == ("lost",)
    cause = error.__cause__
    assert type(cause) is concurrent.futures.process._RemoteTraceback  # type: ignore[attr-defined]
    assert "in raise_it" in cause.tb and "raise error" in cause.tb
    assert executor.submit(abs, -1).result(30) == 1


def test_what_ends_a_program_ends_no_worker(executor: stook.ProcessPoolExecutor) -> None:
    before = executor.submit(os.getpid).result(30)
    for error in (SystemExit(3), KeyboardInterrupt("user's"), GeneratorExit()):
        assert type(executor.submit(raise_it, error).exception(30)) is type(error)
    assert executor.submit(abs, -1).result(30) == 1
    assert before in executor._processes  # type: ignore[operator]


def test_arrays_cross_both_ways(executor: stook.ProcessPoolExecutor) -> None:
    array = np.arange(300_000, dtype=np.int32).reshape(300, -1)

    def negate(given: np.ndarray) -> tuple[np.ndarray, bool]:
        negated = -given
        given[:] = 0  # the worker's own
        return negated, given.flags.writeable

    negated, was_writable = executor.submit(negate, array).result(30)
    assert was_writable and array[0, 1] == 1
    assert stook.is_shared(negated)
    np.testing.assert_array_equal(negated, -array)
    shared = stook.SharedMemoryArray((100_000,), np.uint8)
    shared.unlink_on_del()
    executor.submit(np.ndarray.fill, shared, 7).result(30)
    assert (np.asarray(shared) == 7).all()


class DiesInReduce:
    def __reduce__(self) -> Any:
        raise OSError("in __reduce__")


class DiesInSetState:
    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __setstate__(self, state: dict[str, Any]) -> None:
        raise state["error"]


def make(kind: Any, *arguments: Any) -> Any:
    return kind(*arguments)


def test_what_cannot_be_sent_is_the_futures_error(executor: stook.ProcessPoolExecutor) -> None:
    lock = threading.Lock()
    assert "cannot pickle" in str(executor.submit(len, lock).exception(30))
    assert "cannot be sent" in str(executor.submit(lock.acquire).exception(30))
    assert type(executor.submit(len, DiesInReduce()).exception(30)) is OSError
    assert type(executor.submit(make, DiesInReduce).exception(30)) is OSError
    assert executor.submit(threading.Lock).exception(30) is not None
    assert executor.submit(abs, -1).result(30) == 1


@pytest.mark.parametrize("error", [ValueError("in it"), SystemExit("in it")])
def test_what_cannot_be_unpickled_is_a_broken_pool_for_that_task_alone(
    executor: stook.ProcessPoolExecutor, error: BaseException
) -> None:
    as_argument = executor.submit(id, DiesInSetState(error)).exception(30)
    as_result = executor.submit(make, DiesInSetState, error).exception(30)
    for found, what in ((as_argument, "arguments"), (as_result, "result")):
        assert type(found) is BrokenProcessPool
        assert f"the {what} of the task" in str(found)
        assert type(found.__cause__) is type(error)
    assert executor.submit(abs, -1).result(30) == 1


def test_arguments_are_let_go_of(executor: stook.ProcessPoolExecutor, gate: Gate) -> None:
    class Argument:
        pass

    argument = Argument()
    gone = weakref.ref(argument)
    future = executor.submit(pass_gate, gate.path, argument)
    assert wait_until(future.running, 30)
    del argument
    assert wait_until(lambda: gone() is None, 10)
    gate.open()
    future.result(30)


def test_results_are_let_go_of(executor: stook.ProcessPoolExecutor) -> None:
    for chunksize in (1, 3):
        for result in executor.map(np.full, [(2, 2)] * 7, range(7), chunksize=chunksize):
            gone = weakref.ref(result)
            del result
            assert gone() is None
