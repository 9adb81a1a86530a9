"""stook.ProcessPoolExecutor: what concurrent.futures promises, and what it adds."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import fcntl
import functools
import itertools
import logging
import multiprocessing
import os
import pickle
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import stook
from leftovers import wait_until
from stook import _attendant, _futures_exit

METHODS = ("forkserver", "fork")


@contextlib.contextmanager
def executor_with(
    max_workers: int = 2, method: str = "forkserver", **settings: Any
) -> Iterator[stook.ProcessPoolExecutor]:
    context = multiprocessing.get_context(method)
    with stook.ProcessPoolExecutor(max_workers, context, **settings) as executor:
        yield executor


@pytest.fixture(params=METHODS)
def executor(request: pytest.FixtureRequest) -> Iterator[stook.ProcessPoolExecutor]:
    with executor_with(method=request.param) as made:
        yield made


class Gate:
    """Keeps workers that come to it until it is opened: a file lock, so that nobody has to look."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self._file = path.open("w")
        fcntl.flock(self._file, fcntl.LOCK_EX)

    def open(self) -> None:
        fcntl.flock(self._file, fcntl.LOCK_UN)

    def close(self) -> None:
        self.open()
        self._file.close()


@pytest.fixture
def gate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gate]:
    made = Gate(tmp_path_factory.mktemp("gate") / "gate")
    yield made
    made.close()


def pass_gate(path: str, value: Any = None) -> Any:
    with open(path) as gate:
        fcntl.flock(gate, fcntl.LOCK_SH)
    return value


def hold(executor: stook.ProcessPoolExecutor, gate: Gate) -> Any:
    """A task that a worker has begun, and that ends when the gate is opened."""
    future = executor.submit(pass_gate, gate.path, "passed")
    assert wait_until(future.running, 30)
    return future


def raise_it(error: BaseException) -> None:
    raise error


# ---- submit ----------------------------------------------------------------------------------


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


# ---- cancelling ------------------------------------------------------------------------------


def test_a_task_that_no_worker_has_can_be_cancelled(tmp_path: Path, gate: Gate) -> None:
    with executor_with(1) as executor:
        running = hold(executor, gate)
        mark = tmp_path / "ran"
        waiting = executor.submit(mark.touch)
        behind = executor.submit(abs, -3)
        assert running.running() and "running" in repr(running)
        assert not waiting.running() and not waiting.done()
        assert not running.cancel()
        assert waiting.cancel() and waiting.cancel()
        assert waiting.cancelled() and waiting.done() and not waiting.running()
        with pytest.raises(concurrent.futures.CancelledError):
            waiting.result()
        with pytest.raises(concurrent.futures.CancelledError):
            waiting.exception()
        gate.open()
        assert running.result(30) == "passed" and not running.running()
        assert behind.result(30) == 3
    assert not mark.exists()


def test_everybody_hears_of_a_cancellation(gate: Gate) -> None:
    with executor_with(1) as executor:
        running = hold(executor, gate)
        cancelled = executor.submit(abs, -1)
        heard: list[Any] = []
        cancelled.add_done_callback(lambda future: heard.append(future.cancelled()))

        def wait_for_result() -> None:
            try:
                cancelled.result(30)
            except concurrent.futures.CancelledError:
                heard.append("result")

        def wait_for_both() -> None:
            done, _ = concurrent.futures.wait(
                [running, cancelled], 30, concurrent.futures.FIRST_COMPLETED
            )
            heard.append(done == {cancelled})

        threads = [threading.Thread(target=wait_for_result), threading.Thread(target=wait_for_both)]
        for thread in threads:
            thread.start()
        pool = executor._pool
        assert pool is not None
        assert wait_until(
            lambda: pool.attendant._impatient and cancelled.__dict__.get("_waiters_"), 30
        )
        assert cancelled.cancel()
        for thread in threads:
            thread.join(30)
        gate.open()
    assert sorted(map(str, heard)) == ["True", "True", "result"]


def test_a_cancelled_task_is_not_waited_for_by_shutdown() -> None:
    with executor_with() as executor:
        futures = [executor.submit(abs, -number) for number in range(200)]
        cancelled = [future.cancel() for future in futures]
    assert all(future.done() for future in futures)
    assert [future.cancelled() for future in futures] == cancelled


# ---- being told ------------------------------------------------------------------------------


def test_callbacks_run_in_order_on_another_thread(
    executor: stook.ProcessPoolExecutor, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    future = executor.submit(pass_gate, gate.path, 3)
    told: list[Any] = []
    future.add_done_callback(lambda done: told.append((done, threading.current_thread())))
    future.add_done_callback(lambda done: raise_it(ValueError("in a callback")))
    future.add_done_callback(lambda done: told.append(done.result() * 2))
    assert wait_until(future.running, 30)
    gate.open()
    assert future.result(30) == 3
    assert wait_until(lambda: len(told) == 2, 30)
    (first, thread), second = told
    assert first is future and second == 6
    assert thread is not threading.current_thread()
    assert "exception calling callback" in caplog.text and "in a callback" in caplog.text
    caplog.clear()  # it holds frames of this test's
    future.add_done_callback(lambda done: told.append(threading.current_thread()))
    assert told[2] is threading.current_thread()


def test_a_callback_may_need_what_its_waiter_holds(executor: stook.ProcessPoolExecutor) -> None:
    lock = threading.Lock()
    called = threading.Event()

    def take_lock(_: Any) -> None:
        with lock:
            called.set()

    with lock:
        future = executor.submit(abs, -2)
        future.add_done_callback(take_lock)
        assert future.result(30) == 2
        assert executor.submit(abs, -3).result(30) == 3
    assert called.wait(30)


def test_a_callback_may_submit_and_wait(executor: stook.ProcessPoolExecutor) -> None:
    found: list[int] = []
    finished = threading.Event()

    def go_on(done: Any) -> None:
        found.append(executor.submit(abs, -done.result() - 1).result(30))
        finished.set()

    executor.submit(abs, -1).add_done_callback(go_on)
    assert finished.wait(30) and found == [2]


def test_wait_and_as_completed_know_these_futures(
    executor: stook.ProcessPoolExecutor, gate: Gate
) -> None:
    slow = executor.submit(pass_gate, gate.path, -1)
    fast = [executor.submit(abs, -number) for number in range(50)]
    failing = executor.submit(divmod, 1, 0)
    other: concurrent.futures.Future[int] = concurrent.futures.Future()
    first = concurrent.futures.wait(
        [slow, failing], 30, return_when=concurrent.futures.FIRST_EXCEPTION
    )
    assert first == ({failing}, {slow})
    assert {future.result() for future in concurrent.futures.as_completed(fast, 30)} == {*range(50)}
    with pytest.raises(concurrent.futures.TimeoutError):
        list(concurrent.futures.as_completed([slow], 0.01))
    assert concurrent.futures.wait([slow, other, *fast], 0.01).not_done == {slow, other}
    gate.open()
    other.set_result(4)
    assert concurrent.futures.wait([slow, other], 30).not_done == set()


def test_tasks_go_on_while_nobody_looks(
    executor: stook.ProcessPoolExecutor, tmp_path: Path
) -> None:
    for number in range(300):  # far more than lie at hand
        executor.submit(Path.touch, tmp_path / str(number))
    assert wait_until(lambda: len(os.listdir(tmp_path)) == 300, 30)


def test_submitting_never_waits(executor: stook.ProcessPoolExecutor, gate: Gate) -> None:
    first = [executor.submit(pass_gate, gate.path) for _ in range(2)]
    assert wait_until(lambda: all(future.running() for future in first), 30)
    futures = [executor.submit(abs, -number) for number in range(5000)]
    large = [executor.submit(len, bytes(4 << 20)) for _ in range(10)]
    assert not any(future.done() for future in [*futures, *large])
    gate.open()
    assert [future.result(30) for future in futures] == [*range(5000)]
    assert [future.result(30) for future in large] == [4 << 20] * 10


def test_a_result_that_is_late_is_a_timeout(
    executor: stook.ProcessPoolExecutor, gate: Gate
) -> None:
    future = executor.submit(pass_gate, gate.path, 1)
    for timeout in (0, -1, 0.01):
        with pytest.raises(concurrent.futures.TimeoutError):
            future.result(timeout)
        with pytest.raises(concurrent.futures.TimeoutError):
            future.exception(timeout)
    assert wait_until(future.running, 30)
    gate.open()
    assert future.result(30) == 1


def test_sixteen_threads_share_an_executor(executor: stook.ProcessPoolExecutor) -> None:
    wrong: list[Any] = []

    def work(number: int) -> None:
        for step in range(60):
            value = 1000 * number + step
            future = executor.submit(abs, -value)
            if step % 3 == 0:
                future.add_done_callback(lambda _: None)
            if step % 5 == 0:
                future.cancel()
                future = executor.submit(abs, -value)
            if future.result(30) != value or list(executor.map(abs, [-value, 1])) != [value, 1]:
                wrong.append(value)

    work(0)  # before there are threads, beside which forking is warned about
    threads = [threading.Thread(target=work, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# ---- asyncio ---------------------------------------------------------------------------------


def test_a_loop_runs_ten_thousand_calls(executor: stook.ProcessPoolExecutor) -> None:
    async def gather() -> list[int]:
        loop = asyncio.get_running_loop()
        calls = (loop.run_in_executor(executor, abs, -number) for number in range(10_000))
        return list(await asyncio.gather(*calls))

    assert asyncio.run(gather()) == [*range(10_000)]


def test_a_cancelled_await_cancels_what_was_not_begun(gate: Gate, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    with executor_with(1) as executor:

        async def cancel() -> Any:
            loop = asyncio.get_running_loop()
            begun = loop.run_in_executor(executor, pass_gate, gate.path, "passed")
            pool = executor._pool
            assert pool is not None
            (first,) = pool.futures
            while not first.running():
                await asyncio.sleep(0)
            waiting = loop.run_in_executor(executor, mark.touch)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            gate.open()
            return await begun

        assert asyncio.run(cancel()) == "passed"
    assert not mark.exists()


def test_an_error_reaches_the_loop(executor: stook.ProcessPoolExecutor) -> None:
    async def fail() -> None:
        await asyncio.wrap_future(executor.submit(divmod, 1, 0))

    with pytest.raises(ZeroDivisionError):
        asyncio.run(fail())


# ---- map -------------------------------------------------------------------------------------


def test_map_is_map(executor: stook.ProcessPoolExecutor) -> None:
    for chunksize in (1, 4, 100):
        assert list(executor.map(pow, range(10), range(12), chunksize=chunksize)) == list(
            map(pow, range(10), range(12))
        )
    assert list(executor.map(abs, [])) == []
    assert list(executor.map(abs, [], chunksize=3)) == []
    assert list(executor.map(lambda a, b: (a, b), [1, 2], [[3], [4]], chunksize=2)) == [
        (1, [3]),
        (2, [4]),
    ]


def test_map_raises_an_error_in_its_place(executor: stook.ProcessPoolExecutor) -> None:
    for chunksize in (1, 2, 10):
        results = executor.map(divmod, [1] * 6, [1, 2, 5, 0, 1, 1], chunksize=chunksize)
        assert [next(results) for _ in range(3)] == [(1, 0), (0, 1), (0, 1)]
        with pytest.raises(ZeroDivisionError):
            next(results)
        with pytest.raises(StopIteration):
            next(results)


def test_map_takes_the_chunks_of_large_results_in_order(
    executor: stook.ProcessPoolExecutor,
) -> None:
    shapes = [(1 << 20,)] * 24  # a worker comes back before the chunk's end
    results = executor.map(np.full, shapes, range(24), itertools.repeat(np.uint8), chunksize=24)
    assert [int(result[-1]) for result in results] == [*range(24)]


def test_map_draws_everything_at_once_without_a_buffersize(
    executor: stook.ProcessPoolExecutor,
) -> None:
    drawn: list[int] = []

    def draw(numbers: Any) -> Iterator[int]:
        for number in numbers:
            drawn.append(number)
            yield number

    executor.map(abs, draw(range(20)))
    assert drawn == [*range(20)]
    drawn.clear()
    results = executor.map(abs, draw(itertools.count()), buffersize=3)
    assert drawn == [0, 1, 2]
    assert [next(results) for _ in range(4)] == [0, 1, 2, 3]
    assert drawn == [*range(7)]
    drawn.clear()
    results = executor.map(abs, draw(itertools.count()), buffersize=2, chunksize=5)
    assert len(drawn) == 10
    assert list(itertools.islice(results, 12)) == [*range(12)]
    assert len(drawn) == 25


def test_map_is_late_by_its_own_clock(executor: stook.ProcessPoolExecutor, gate: Gate) -> None:
    for chunksize in (1, 2):
        results = executor.map(
            pass_gate, [gate.path] * 3, range(3), timeout=0.01, chunksize=chunksize
        )
        with pytest.raises(concurrent.futures.TimeoutError):
            next(results)
    gate.open()
    assert list(executor.map(pass_gate, [gate.path] * 3, range(3), timeout=60)) == [0, 1, 2]


def first_then_gate_then_touch(path: str, folder: Path, number: int) -> int:
    if number == 1:
        pass_gate(path)
    elif number > 1:
        (folder / str(number)).touch()
    return number


def test_a_map_that_is_given_up_cancels_what_was_not_begun(gate: Gate, tmp_path: Path) -> None:
    work = functools.partial(first_then_gate_then_touch, gate.path, tmp_path)
    with executor_with(1) as executor:
        results = executor.map(work, range(40))
        assert next(results) == 0
        pool = executor._pool
        assert pool is not None
        assert wait_until(lambda: any(future.running() for future in list(pool.futures)), 30)
        results.close()  # type: ignore[attr-defined]
        gate.open()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("how", "error"),
    [
        ({"chunksize": 0}, ValueError),
        ({"buffersize": 0}, ValueError),
        ({"buffersize": 1.5}, TypeError),
    ],
)
def test_map_refuses_what_makes_no_sense(how: dict[str, Any], error: type[Exception]) -> None:
    with executor_with() as executor, pytest.raises(error):
        executor.map(abs, [1], **how)


# ---- workers ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"max_workers": 0}, ValueError, "max_workers must be greater than 0"),
        ({"max_workers": -1}, ValueError, "max_workers must be greater than 0"),
        ({"mp_context": "fork"}, TypeError, "must be a context"),
        ({"initializer": 3}, TypeError, "initializer must be a callable"),
        ({"max_tasks_per_child": 0}, ValueError, "must be >= 1"),
        ({"max_tasks_per_child": 1.5}, TypeError, "must be an integer"),
        (
            {"max_tasks_per_child": 2, "mp_context": multiprocessing.get_context("fork")},
            ValueError,
            "incompatible with the 'fork'",
        ),
        ({"options": {"num_workers": 2}}, TypeError, "MultiprocessingOptions or None, got {"),
    ],
)
def test_arguments_are_checked(
    arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        stook.ProcessPoolExecutor(**arguments)


def test_the_number_of_workers_is_that_of_the_processors_or_the_options() -> None:
    assert stook.ProcessPoolExecutor()._max_workers == len(os.sched_getaffinity(0))
    options = stook.MultiprocessingOptions(num_workers=3, start_method="fork")
    executor = stook.ProcessPoolExecutor(options=options)
    assert executor._max_workers == 3
    assert executor._mp_context.get_start_method() == "fork"
    assert (
        stook.ProcessPoolExecutor(max_tasks_per_child=3)._mp_context.get_start_method() == "spawn"
    )


def test_workers_are_started_when_they_are_needed(gate: Gate) -> None:
    with executor_with(3) as executor:
        assert executor._processes == {}
        for _ in range(4):
            executor.submit(abs, -1).result(30)
        assert len(executor._processes) == 1
        futures = [executor.submit(pass_gate, gate.path) for _ in range(10)]
        assert len(executor._processes) == 3
        gate.open()
        assert all(future.result(30) is None for future in futures)
    with executor_with(3, "fork") as executor:
        executor.submit(abs, -1).result(30)
        assert len(executor._processes) == 3  # type: ignore[arg-type]


initialized: list[Any] = []


def initialize(*arguments: Any) -> None:
    initialized.extend([*arguments, os.getpid()])


def look() -> tuple[list[Any], int]:
    return initialized, os.getpid()


def put_through_the_queue(text: str) -> None:
    queue, lock, _ = initialized
    with lock:
        queue.put(text)


def test_the_initializer_runs_once_in_each_worker(executor: stook.ProcessPoolExecutor) -> None:
    with executor_with(2, initializer=initialize, initargs=("a", [1])) as made:
        seen = [made.submit(look).result(30) for _ in range(20)]
    assert all(state == ["a", [1], pid] for state, pid in seen)


@pytest.mark.parametrize("method", METHODS)
def test_an_initializer_gets_what_only_new_processes_are_sent(method: str) -> None:
    context = multiprocessing.get_context(method)
    queue, lock = context.Queue(), context.Lock()
    with executor_with(1, method, initializer=initialize, initargs=(queue, lock)) as executor:
        executor.submit(put_through_the_queue, "through the queue").result(30)
        assert queue.get(timeout=30) == "through the queue"
    queue.close()
    queue.join_thread()


@pytest.mark.parametrize("method", METHODS)
def test_an_initializer_that_fails_breaks_the_pool(
    method: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.CRITICAL):
        with executor_with(2, method, initializer=raise_it, initargs=(OSError(5, "no"),)) as made:
            futures = [made.submit(abs, -1) for _ in range(3)]
            for future in futures:
                with pytest.raises(BrokenProcessPool, match="no"):
                    future.result(30)
            assert made._broken
            with pytest.raises(BrokenProcessPool, match="no"):
                made.submit(abs, -1)
    assert "Exception in initializer:" in caplog.text


def test_a_worker_is_replaced_after_so_many_tasks() -> None:
    with stook.ProcessPoolExecutor(1, max_tasks_per_child=3) as executor:
        pids = [executor.submit(os.getpid).result(30) for _ in range(7)]
        assert pids[0] == pids[1] == pids[2] != pids[3] == pids[4] == pids[5] != pids[6]
        assert list(executor.map(abs, range(20))) == [*range(20)]


def test_an_executor_in_a_worker(executor: stook.ProcessPoolExecutor) -> None:
    def submit_there(number: int) -> int:
        with stook.ProcessPoolExecutor(1) as inner:
            return int(inner.submit(pow, number, 2).result())

    assert [executor.submit(submit_there, n).result(60) for n in (3, 4)] == [9, 16]


def test_a_worker_that_is_sent_an_executor_is_told_to_make_its_own(
    executor: stook.ProcessPoolExecutor,
) -> None:
    def use() -> Any:
        return executor.submit(abs, -1)

    with pytest.raises(stook.StookError, match="make"):
        executor.submit(use).result(30)
    with pytest.raises(TypeError, match="cannot be copied or pickled"):
        pickle.dumps(executor)


def in_forked_child(body: Callable[[], str]) -> str:
    """What `body` gives there; the child does not outlive it."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(writer, body().encode())
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader) as file:
        text = file.read()
    os.waitpid(pid, 0)
    return text


def test_a_forked_child_is_told_to_make_its_own(executor: stook.ProcessPoolExecutor) -> None:
    assert executor.submit(abs, -1).result(30) == 1

    def use() -> str:
        try:
            executor.submit(abs, -2)
        except stook.StookError as error:
            executor.shutdown()
            return str(error)
        return "accepted"

    assert "make a pool here" in in_forked_child(use)
    assert executor.submit(abs, -3).result(30) == 3


def test_an_unused_executor_works_in_a_forked_child() -> None:
    executor = stook.ProcessPoolExecutor(1)

    def use() -> str:
        with executor:
            return str(executor.submit(abs, -2).result(30))

    assert in_forked_child(use) == "2"


# ---- the end ---------------------------------------------------------------------------------


def test_shutdown_finishes_what_was_submitted(tmp_path: Path) -> None:
    for wait in (True, False):
        executor = stook.ProcessPoolExecutor(2)
        futures = [executor.submit(Path.touch, tmp_path / f"{wait}{n}") for n in range(100)]
        thread, processes = executor._executor_manager_thread, dict(executor._processes or {})
        executor.shutdown(wait=wait)
        with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
            executor.submit(abs, -1)
        if not wait:
            assert thread is not None
            thread.join(30)
        assert all(future.done() for future in futures)
        assert len(list(tmp_path.glob(f"{wait}*"))) == 100
        for process in processes.values():
            process.join(30)
            assert not process.is_alive()
        executor.shutdown()


def test_a_dropped_executor_finishes_what_was_submitted(gate: Gate) -> None:
    executor = stook.ProcessPoolExecutor(1)
    future = executor.submit(pass_gate, gate.path, "passed")
    behind = executor.submit(abs, -3)
    thread = executor._executor_manager_thread
    dropped = weakref.ref(executor)
    del executor
    assert dropped() is None
    gate.open()
    assert (future.result(30), behind.result(30)) == ("passed", 3)
    assert thread is not None
    thread.join(30)
    assert not thread.is_alive()


def test_shutdown_waits_for_callbacks() -> None:
    told: list[int] = []
    with executor_with() as executor:
        for number in range(50):
            future = executor.submit(abs, -number)
            future.add_done_callback(lambda done: told.append(done.result()))
    assert sorted(told) == [*range(50)]


def test_shutdown_cancels_what_no_worker_has(gate: Gate) -> None:
    with executor_with(2) as executor:
        running = [hold(executor, gate) for _ in range(2)]
        waiting = [executor.submit(abs, -1) for _ in range(500)]
        executor.shutdown(wait=False, cancel_futures=True)
        assert all(future.cancelled() for future in waiting)
        assert not any(future.done() for future in running)
        gate.open()
    assert [future.result(0) for future in running] == ["passed"] * 2


def test_shutdown_leaves_starting_workers_their_first_tasks() -> None:
    executor = stook.ProcessPoolExecutor(2)
    futures = [executor.submit(abs, -number) for number in range(100)]
    executor.shutdown(cancel_futures=True)
    assert all(future.done() for future in futures)
    assert [future.result() for future in futures[:2]] == [0, 1]
    assert any(future.cancelled() for future in futures)


def test_a_callback_may_shut_down() -> None:
    executor = stook.ProcessPoolExecutor(1)
    thread: Any = None
    future = executor.submit(abs, -1)
    thread = executor._executor_manager_thread
    future.add_done_callback(lambda _: executor.shutdown(wait=True))
    thread.join(30)
    assert not thread.is_alive()


def test_kill_workers_ends_what_is_stuck(gate: Gate) -> None:
    executor = stook.ProcessPoolExecutor(1)
    running = hold(executor, gate)
    waiting = executor.submit(abs, -1)
    processes = dict(executor._processes or {})
    executor.kill_workers()
    assert isinstance(running.exception(0), BrokenProcessPool)
    assert waiting.cancelled()
    for process in processes.values():
        process.join(30)
        assert not process.is_alive()
    with pytest.raises(RuntimeError):
        executor.submit(abs, -1)
    executor.shutdown()
    executor.kill_workers()


def test_terminate_workers_sends_them_a_signal(gate: Gate) -> None:
    executor = stook.ProcessPoolExecutor(1)
    running = hold(executor, gate)
    waiting = executor.submit(abs, -1)
    executor.terminate_workers()
    assert waiting.cancelled()
    error = running.exception(30)
    assert isinstance(error, stook.WorkerDied) and error.exit_code == -15
    executor.shutdown()


def test_an_executor_without_tasks_ends_without_workers() -> None:
    for end in ("shutdown", "kill_workers", "terminate_workers"):
        executor = stook.ProcessPoolExecutor(2)
        getattr(executor, end)()
        assert not executor._processes
        with pytest.raises(RuntimeError, match="after shutdown"):
            executor.submit(abs, -1)


def test_a_thread_that_cannot_be_started_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    executor = stook.ProcessPoolExecutor(2)
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            executor.submit(abs, -1)
    assert _futures_exit._pools == set()
    assert executor.submit(abs, -1).result(30) == 1
    executor.shutdown()


def test_a_fault_of_the_pools_thread_is_everybodys_error(
    gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", lambda fault: heard.append(fault.exc_value))
    executor = stook.ProcessPoolExecutor(1)
    running = hold(executor, gate)
    monkeypatch.setattr(_attendant.Attendant, "_call_back_all", raise_it)
    running.add_done_callback(print)
    with pytest.raises(BrokenProcessPool, match="thread of the process pool failed"):
        running.result(30)
    monkeypatch.undo()
    executor.shutdown()
    assert len(heard) == 1
