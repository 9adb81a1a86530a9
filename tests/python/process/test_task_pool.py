"""What the pools are made of: tasks to workers, and their results to sinks."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import operator
import os
import signal
import sys
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from process_loader import each_method

import stook
from conftest import RunPython
from stook._error_payload import is_undecodable
from stook._task_pool import Death, TaskPool


@contextlib.contextmanager
def made(num_workers: int = 2, **settings: Any) -> Iterator[TaskPool]:
    pool = TaskPool(num_workers, **settings)
    try:
        yield pool
    finally:
        pool.close()


class Sink:
    """Keeps what it is called with."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def __call__(self, *call: Any) -> None:
        self.calls.append(call)

    @property
    def value(self) -> Any:
        ((ok, value),) = self.calls
        if not ok:
            raise value
        return value

    @property
    def results(self) -> list[Any]:
        return [result for _, results, _ in self.calls for result in results]

    @property
    def errors(self) -> dict[int, BaseException]:
        found = {}
        place = 0
        for _, results, errors in self.calls:
            for index, error in (errors or {}).items():
                found[place + index] = error
            place += len(results)
        return found


def run(pool: TaskPool, function: Any, *args: Any, **kwargs: Any) -> Any:
    sink = Sink()
    pool.submit(pool.function(function), args, kwargs, sink=sink, background=False)
    assert pool.wait(lambda: sink.calls)
    return sink.value


def run_items(pool: TaskPool, function: Any, items: list[Any], **how: Any) -> Sink:
    sink = Sink()
    pool.submit_items(pool.function(function), items, sink=sink, background=False, **how)
    assert pool.wait(lambda: pool.outstanding == 0)
    return sink


# ---- calls ---------------------------------------------------------------------------------------


@each_method
def test_calls_come_back(method: str) -> None:
    offset = 5
    with made(start_method=method) as pool:
        assert run(pool, pow, 2, 10) == 1024
        assert run(pool, sorted, [1, 3, 2], reverse=True) == [3, 2, 1]
        assert run(pool, lambda x: x + offset, 1) == 6
        assert run(pool, operator.itemgetter(1), "abc") == "b"


def test_arguments_are_copies_that_may_be_written_to() -> None:
    def double(array: Any) -> Any:
        array *= 2
        return array

    given = np.arange(100_000)
    with made() as pool:
        doubled = run(pool, double, given)
        assert stook.is_shared(doubled)
    np.testing.assert_array_equal(doubled, given * 2)
    assert given[1] == 1


def test_a_closure_is_as_it_was_when_it_was_made_a_function() -> None:
    state = [1]
    with made() as pool:
        first = pool.function(lambda: state[0])
        state[0] = 2
        second = pool.function(lambda: state[0])
        sinks = Sink(), Sink()
        for function, sink in zip((first, second), sinks, strict=True):
            pool.submit(function, sink=sink)
        pool.wait(lambda: pool.outstanding == 0)
        assert [sink.value for sink in sinks] == [1, 2]


def test_an_importable_function_crosses_once() -> None:
    with made() as pool:
        assert pool.function(operator.neg) is pool.function(operator.neg)
        function = lambda: None  # noqa: E731
        assert pool.function(function) is not pool.function(function)


def test_more_functions_than_a_worker_keeps_are_loaded_again() -> None:
    with made(1) as pool:
        functions = [pool.function(lambda i=i: i) for i in range(100)]
        for _ in range(2):
            sinks = [Sink() for _ in functions]
            for function, sink in zip(functions, sinks, strict=True):
                pool.submit(function, sink=sink)
            pool.wait(lambda: pool.outstanding == 0)
            assert [sink.value for sink in sinks] == list(range(100))


def test_a_function_that_cannot_be_pickled_is_named() -> None:
    lock = threading.Lock()
    with made() as pool, pytest.raises(stook.StookError, match=r"function.*lock"):
        pool.function(lambda: lock)


def test_a_functions_memory_comes_back() -> None:
    data = bytes(1 << 20)
    with made(1) as pool:
        for _ in range(3000):  # three times what the machine might have is no matter: one at a time
            function = pool.function(lambda: len(data))
            del function
        assert run(pool, lambda: len(data)) == 1 << 20


@pytest.mark.parametrize("place", ["argument", "result"])
def test_what_cannot_be_sent_is_an_error_of_its_task(place: str) -> None:
    def give(lock: Any) -> Any:
        return threading.Lock()

    argument = threading.Lock() if place == "argument" else None
    with made() as pool:
        with pytest.raises(TypeError, match="lock"):
            run(pool, give, argument)
        assert run(pool, abs, -1) == 1


def test_an_error_comes_with_the_workers_traceback() -> None:
    def fail() -> None:
        raise KeyError("this")

    with made() as pool, pytest.raises(KeyError, match="this") as caught:
        run(pool, fail)
    assert "in fail" in str(caught.value.__cause__)
    assert not getattr(caught.value, "__notes__", [])


# ---- items ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("may_split", [False, True])
def test_each_item_keeps_its_own_result_or_error(may_split: bool) -> None:
    def halve(number: int) -> Any:
        if number % 2:
            raise ValueError(number)
        return threading.Lock() if number == 6 else number // 2

    with made() as pool:
        sink = run_items(pool, halve, list(range(8)), may_split=may_split)
    assert sink.results == [0, None, 1, None, 2, None, None, None]
    assert {index: type(error) for index, error in sink.errors.items()} == {
        1: ValueError,
        3: ValueError,
        5: ValueError,
        6: TypeError,
        7: ValueError,
    }
    assert "in halve" in str(sink.errors[1].__cause__)


def test_what_is_in_an_item_becomes_arguments_with_star() -> None:
    with made() as pool:
        assert run_items(pool, pow, [(2, 3), [3, 2]], star=True).results == [8, 9]
        assert isinstance(run_items(pool, pow, [5], star=True).errors[0], TypeError)


def test_results_of_items_share_nothing() -> None:
    def give(_: int) -> Any:
        if not kept:
            kept.append(({"list": []}, np.zeros(10_000), Bag()))
        return kept[0]

    kept: list[Any] = []
    with made(1) as pool:
        first, second = run_items(pool, give, [0, 1]).results
    assert first[0] is not second[0] and first[0]["list"] is not second[0]["list"]
    assert first[1] is not second[1] and not np.shares_memory(first[1], second[1])
    assert first[2].content is not second[2].content


class Bag:
    """Something that only pickle can send."""

    def __init__(self) -> None:
        self.content: list[int] = []


def test_arrays_of_items_are_moved_and_stay_whole() -> None:
    def make(i: int) -> Any:
        return np.full(50_000, i)

    with made() as pool:
        arrays = run_items(pool, make, list(range(40))).results
        _, _, moved, copied, *_ = pool._core.totals()
        assert (moved, copied) == (40, 0)
        run_items(pool, make, list(range(40)))  # memory that is held is not used again
    assert [(array[0], array[-1]) for array in arrays] == [(i, i) for i in range(40)]


def test_a_worker_comes_back_early_with_large_results() -> None:
    with made(1) as pool:
        sink = run_items(pool, np.ones, [1_000_000] * 5)  # 8 MB each
        assert len(sink.calls) > 1
        assert [len(array) for array in sink.results] == [1_000_000] * 5


def test_a_worker_comes_back_early_from_slow_items_if_it_may() -> None:
    def wait(i: int) -> int:
        end = time.perf_counter() + 0.002
        while time.perf_counter() < end:
            pass
        return i

    import time

    with made(1) as pool:
        assert len(run_items(pool, wait, list(range(4)), may_split=True).calls) == 4
        assert len(run_items(pool, wait, list(range(4))).calls) == 1


def test_segments_of_items_arrive() -> None:
    def make(i: int) -> Any:
        array = stook.SharedMemoryArray((100,), int)
        array[:] = i
        array.unlink_on_del()
        return array

    with made() as pool:
        arrays = run_items(pool, make, list(range(5))).results
        assert [int(array[0]) for array in arrays] == list(range(5))
        assert all(isinstance(array, stook.SharedMemoryArray) for array in arrays)
        del arrays
        gc.collect()


def test_a_death_costs_the_items_that_were_begun() -> None:
    def die_at_three(i: int) -> int:
        if i == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return i

    with made() as pool:
        sink = run_items(pool, die_at_three, list(range(8)))
    assert sink.results == [None] * 4 + [4, 5, 6, 7]
    assert sorted(sink.errors) == [0, 1, 2, 3]
    assert all(isinstance(error, stook.WorkerDied) for error in sink.errors.values())
    assert sink.errors[3].exit_code == -signal.SIGKILL  # type: ignore[attr-defined]


def test_a_death_while_items_are_unpickled_costs_them_all() -> None:
    with made(1) as pool:
        run_items(pool, abs, list(range(50)))  # a count that belongs to another job
        sink = run_items(pool, str, [1, DiesWhenLoaded(), 2])
        assert sorted(sink.errors) == [0, 1, 2]
        assert run(pool, abs, -1) == 1


class DiesWhenLoaded:
    def __reduce__(self) -> Any:
        return _end, (os.getpid(),)


def _end(parent: int) -> None:
    if os.getpid() != parent:
        os._exit(3)


# ---- deaths --------------------------------------------------------------------------------------


def test_a_death_costs_one_task_and_the_pool_goes_on() -> None:
    deaths: list[Death] = []
    with made(on_death=deaths.append) as pool:
        with pytest.raises(stook.WorkerDied, match="exit code 7") as caught:
            run(pool, os._exit, 7)
        assert caught.value.index is None
        assert [death.exit_code for death in deaths] == [7]
        assert run(pool, abs, -1) == 1
        assert len(pool.workers()) == 2


def test_the_death_of_an_idle_worker_is_told() -> None:
    deaths: list[Death] = []
    with made(on_death=deaths.append) as pool:
        worker = pool.workers()[0]
        assert worker.is_alive() and worker.exitcode is None
        worker.kill()
        worker.join()
        assert pool.wait(lambda: deaths)
        assert (deaths[0].pid, worker.exitcode, worker.is_alive()) == (worker.pid, -9, False)


def test_an_initializer_that_raises_ends_the_pool() -> None:
    def fail() -> None:
        raise ValueError("not today")

    with made(initializer=fail) as pool:
        with pytest.raises(ValueError, match="not today"):
            run(pool, abs, -1)
        assert pool.is_closed
        with pytest.raises(stook.PoolBroken):
            pool.function(abs)


def test_a_server_that_dies_ends_the_pool() -> None:
    with made() as pool:
        run(pool, abs, -1)
        sink = Sink()
        pool.submit(pool.function(signal.pause), sink=sink)
        os.kill(pool._core.server_pid, signal.SIGKILL)
        assert pool.wait(lambda: sink.calls)
        with pytest.raises(stook.PoolBroken):
            _ = sink.value


def test_a_worker_is_replaced_after_its_jobs() -> None:
    deaths: list[Death] = []
    with made(1, most_jobs=3, on_death=deaths.append) as pool:
        pids = [run(pool, os.getpid) for _ in range(9)]
    assert len(set(pids)) == 3 and len(set(pids[:3])) == 1
    assert deaths == []
    assert pool._core.totals()[4] == 0, "a planned end is no restart"


def test_workers_are_started_on_demand() -> None:
    with made(5, start_on_demand=True) as pool:
        assert pool.workers() == []
        for _ in range(3):
            assert run(pool, abs, -1) == 1
        assert len(pool.workers()) == 1
        for _ in range(20):
            pool.submit(pool.function(abs), (-1,), sink=Sink())
        assert len(pool.workers()) == 5
        assert pool.finish(60)


def test_none_is_started_only_to_be_ended(tmp_path: Any) -> None:
    def leave_note() -> None:
        (tmp_path / str(os.getpid())).touch()

    with made(5, start_on_demand=True, initializer=leave_note) as pool:
        assert run(pool, abs, -1) == 1
        assert pool.finish(60)
    assert len(list(tmp_path.iterdir())) == 1


@each_method
def test_what_multiprocessing_sends_to_new_processes_alone_crosses(method: str) -> None:
    context = multiprocessing.get_context("fork" if method == "fork" else "spawn")
    queue, lock = context.SimpleQueue(), context.Lock()
    ours, theirs = context.Pipe()

    def keep(*things: Any) -> None:
        sys.kept = things  # type: ignore[attr-defined]

    def use() -> Any:
        queue, lock, pipe = sys.kept  # type: ignore[attr-defined]
        with lock:
            queue.put("queued")
        pipe.send("sent")
        return multiprocessing.current_process().authkey == key

    key = bytes(multiprocessing.current_process().authkey)
    with made(1, start_method=method, initializer=keep, initargs=(queue, lock, theirs)) as pool:
        assert run(pool, use)
        assert (queue.get(), ours.recv()) == ("queued", "sent")
    queue.close()
    ours.close()
    theirs.close()


@pytest.mark.parametrize("side", ["arguments", "result"])
def test_what_cannot_be_unpickled_says_so(side: str) -> None:
    def give(given: Any) -> Any:
        return RaisesWhenLoaded(os.getppid() if side == "result" else 0)

    with made() as pool:
        argument = RaisesWhenLoaded(os.getpid()) if side == "arguments" else None
        with pytest.raises(EOFError, match="half") as caught:
            run(pool, give, argument)
        assert is_undecodable(caught.value)
        (error,) = run_items(pool, give, [argument]).errors.values()
        assert is_undecodable(error)
        with pytest.raises(EOFError) as caught:
            run(pool, _raise_half)
        assert not is_undecodable(caught.value)


class RaisesWhenLoaded:
    def __init__(self, pid: int) -> None:
        self.pid = pid

    def __reduce__(self) -> Any:
        return _raise_half, (self.pid,)


def _raise_half(pid: int = 0) -> None:
    raise EOFError("half of it")


# ---- cancelling ----------------------------------------------------------------------------------


def test_what_was_not_begun_can_be_cancelled() -> None:
    with made(1) as pool:
        function = pool.function(_wait_for_file)
        ours, theirs = os.pipe()
        os.set_inheritable(ours, True)
        sinks = [Sink() for _ in range(200)]  # more than the ring holds
        path = f"/proc/{os.getpid()}/fd/{ours}"
        numbers = [pool.submit(function, (path,), sink=sinks[0])]
        numbers += [pool.submit(pool.function(abs), (-1,), sink=sink) for sink in sinks[1:]]
        while not pool.is_running(numbers[0]):  # nothing is delivered when that comes true
            pool.wait(lambda: False, 0.001)
        assert not pool.cancel(numbers[0])
        assert not pool.is_running(numbers[1])
        assert pool.cancel(numbers[1]) and not pool.cancel(numbers[1])
        assert pool.cancel(numbers[199])
        os.write(theirs, b"x")
        pool.wait(lambda: pool.outstanding == 0)
        os.close(ours)
        os.close(theirs)
        assert [len(sink.calls) for sink in sinks] == [1, 0] + [1] * 197 + [0]
        assert not pool.cancel(numbers[0]), "it is over"


def _wait_for_file(path: str) -> bytes:
    with open(path, "rb", buffering=0) as file:
        return file.read(1)


def test_many_threads_cancel_while_others_deliver() -> None:
    with made() as pool:
        function = pool.function(abs)
        sinks: list[Sink] = []
        cancelled: list[Sink] = []

        def work() -> None:
            for _ in range(300):
                sink = Sink()
                number = pool.submit(function, (-1,), sink=sink)
                sinks.append(sink)
                pool.is_running(number)
                if pool.cancel(number):
                    cancelled.append(sink)

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert pool.wait(lambda: pool.outstanding == 0, 60)
        assert all(not sink.calls for sink in cancelled)
        assert sum(len(sink.calls) for sink in sinks) == len(sinks) - len(cancelled)


# ---- threads, sinks, signals ---------------------------------------------------------------------


def test_many_threads_submit_and_wait() -> None:
    with made() as pool:
        function = pool.function(operator.neg)
        wrong: list[Any] = []

        def work(thread: int) -> None:
            for i in range(100):
                sink = Sink()
                pool.submit(function, (thread * 1000 + i,), sink=sink, background=i % 2 == 0)
                pool.wait(lambda sink=sink: sink.calls)
                if sink.value != -(thread * 1000 + i):
                    wrong.append((thread, i))

        threads = [threading.Thread(target=work, args=(number,)) for number in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []


def test_background_tasks_are_delivered_though_nobody_waits() -> None:
    with made() as pool:
        arrived = threading.Event()
        pool.submit(pool.function(abs), (-1,), sink=lambda ok, value: arrived.set())
        assert arrived.wait(60)
        # Again, after the thread has gone to sleep.
        assert pool.wait(lambda: not pool._thread_is_awake)
        arrived.clear()
        pool.submit(pool.function(abs), (-1,), sink=lambda ok, value: arrived.set())
        assert arrived.wait(60)


def test_a_sink_may_submit_and_wait() -> None:
    with made() as pool:
        inner = Sink()
        outer = Sink()

        def sink(ok: bool, value: Any) -> None:
            pool.submit(pool.function(abs), (value,), sink=inner)
            pool.wait(lambda: inner.calls)
            outer(ok, value)

        pool.submit(pool.function(operator.neg), (5,), sink=sink)
        assert pool.wait(lambda: outer.calls, 60)
        assert (inner.value, outer.value) == (5, -5)


def test_a_sink_may_close_the_pool() -> None:
    with made() as pool:
        rest = Sink()

        def sink(ok: bool, value: Any) -> None:
            pool.close()

        pool.submit(pool.function(abs), (-1,), sink=sink)
        pool.submit(pool.function(signal.pause), sink=rest)
        assert pool.wait(lambda: rest.calls, 60)
        with pytest.raises(stook.PoolBroken):
            _ = rest.value


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_sink_that_raises_hurts_nobody() -> None:
    def sink(ok: bool, value: Any) -> None:
        raise RuntimeError("a bug")

    with made() as pool:
        pool.submit(pool.function(abs), (-1,), sink=sink)
        assert pool.wait(lambda: pool.outstanding == 0, 60)
        assert run(pool, abs, -2) == 2


def test_a_pickle_that_submits_is_sent() -> None:
    with made() as pool:
        inner = Sink()

        class Submits:
            def __reduce__(self) -> Any:
                pool.submit(pool.function(abs), (-7,), sink=inner)
                return str, ("sent",)

        assert run(pool, str.upper, Submits()) == "SENT"
        assert pool.wait(lambda: inner.calls)
        assert inner.value == 7


def test_a_wait_has_an_end() -> None:
    with made() as pool:
        pool.submit(pool.function(signal.pause), sink=Sink(), background=False)
        assert not pool.wait(lambda: False, 0.05)


def test_an_event_loop_may_deliver() -> None:
    import select

    with made() as pool:
        sinks = [Sink() for _ in range(50)]
        for sink in sinks:
            pool.submit(pool.function(abs), (-3,), sink=sink, background=False)
        ready = select.poll()
        ready.register(pool.fileno(), select.POLLIN)
        while not all(sink.calls for sink in sinks):
            pool.deliver()
            if pool.arm() and not all(sink.calls for sink in sinks):
                assert ready.poll(60_000)
        assert {sink.value for sink in sinks} == {3}


# ---- the end -------------------------------------------------------------------------------------


def test_finish_runs_what_was_submitted_and_the_workers_finalizers(tmp_path: Any) -> None:
    def leave_note() -> None:
        import multiprocessing.util

        path = tmp_path / str(os.getpid())
        multiprocessing.util.Finalize(None, path.touch, exitpriority=1)

    with made(initializer=leave_note) as pool:
        sinks = [Sink() for _ in range(20)]
        for sink in sinks:
            pool.submit(pool.function(abs), (-1,), sink=sink)
        assert pool.finish(60)
        assert [sink.value for sink in sinks] == [1] * 20
    assert len(list(tmp_path.iterdir())) == 2


def test_finish_gives_up_on_a_task_that_does_not_end() -> None:
    with made() as pool:
        sink = Sink()
        pool.submit(pool.function(signal.pause), sink=sink)
        assert not pool.finish(0.1)
        assert not pool.is_closed
    with pytest.raises(stook.PoolBroken):
        _ = sink.value


def test_a_dropped_pool_ends() -> None:
    pool = TaskPool(1)
    assert run(pool, abs, -1) == 1
    reference = weakref.ref(pool)
    del pool
    gc.collect()
    assert reference() is None


def test_arrays_outlive_the_pool() -> None:
    with made() as pool:
        array = run(pool, np.arange, 100_000)
    assert array[-1] == 99_999


def test_a_forked_child_is_refused() -> None:
    with made() as pool:
        run(pool, abs, -1)
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                pool.function(abs)
                pool.submit(pool.function(abs), (-1,), sink=Sink())
            except stook.StookError as error:
                status = 0 if "forked child" in str(error) or "closed" in str(error) else 2
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert run(pool, abs, -1) == 1


def test_ctrl_c_ends_a_wait_and_loses_nothing(run_python: RunPython) -> None:
    done = run_python("""
        import signal
        from stook._task_pool import TaskPool

        def interrupt(number, frame):
            raise KeyboardInterrupt

        signal.signal(signal.SIGALRM, interrupt)
        pool = TaskPool(2)
        got = []
        function = pool.function(abs)
        count = 3000
        for i in range(count):
            pool.submit(function, (-i,), sink=lambda ok, value, i=i: got.append((i, value)),
                        background=False)
        interrupts = 0
        while pool.outstanding:
            try:
                if interrupts < 20:
                    signal.setitimer(signal.ITIMER_REAL, 0.0005)
                pool.wait(lambda: pool.outstanding == 0)
                signal.setitimer(signal.ITIMER_REAL, 0)
            except KeyboardInterrupt:
                interrupts += 1
        assert {i for i, _ in got} == set(range(count)), len(got)
        assert all(i == value for i, value in got)
        pool.close()
        print("whole")
    """)
    assert "whole" in done.stdout


def test_finish_ends_workers_that_are_replaced_meanwhile() -> None:
    with made(3, most_jobs=1) as pool:
        sinks = [Sink() for _ in range(6)]
        for sink in sinks:
            pool.submit(pool.function(abs), (-1,), sink=sink)
        assert pool.finish(60)
        assert [sink.value for sink in sinks] == [1] * 6


def test_finish_runs_what_a_worker_gave_back() -> None:
    with made(2) as pool:
        sink = Sink()
        pool.submit_items(pool.function(np.ones), [1_000_000] * 7, sink=sink)  # 8 MB each
        assert pool.finish(60)
        assert len(sink.results) == 7 and not sink.errors


def test_whoever_waits_while_the_pool_is_closed_sees_its_task_failed() -> None:
    def wait(pool: TaskPool, sink: Sink, answers: list[bool]) -> None:
        answers.append(pool.wait(lambda: sink.calls))

    for _ in range(20):
        with made(1) as pool:
            sink = Sink()
            pool.submit(pool.function(signal.pause), sink=sink)
            answers: list[bool] = []
            thread = threading.Thread(target=wait, args=(pool, sink, answers))
            thread.start()
            pool.close()
            thread.join()
            assert answers == [True]


def test_ctrl_c_while_an_argument_is_pickled_is_the_programs() -> None:
    class Interrupts:
        pickled = 0

        def __reduce__(self) -> Any:
            Interrupts.pickled += 1
            if Interrupts.pickled == 1:
                raise KeyboardInterrupt
            return int, (5,)

    with made(1) as pool:
        sink = Sink()
        with pytest.raises(KeyboardInterrupt):
            pool.submit(pool.function(abs), (Interrupts(),), sink=sink)
        assert pool.wait(lambda: sink.calls)
        assert sink.value == 5


def test_a_pool_that_cannot_start_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> int:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "posix_spawn", refuse)
    with pytest.raises(BlockingIOError):
        TaskPool(5)
    gc.collect()
