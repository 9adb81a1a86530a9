"""`stook.ThreadPool`: multiprocessing's interface, and what the original gets wrong."""

from __future__ import annotations

import gc
import itertools
import multiprocessing
import pickle
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import stook
from conftest import RunPython
from leftovers import wait_until

DEADLINE = 60


@pytest.fixture
def pool() -> Iterator[stook.ThreadPool]:
    pool = stook.ThreadPool(3)
    yield pool
    pool.terminate()
    pool.join()


@pytest.fixture(autouse=True)
def no_waking_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wake-up that does not come must not be made up for within a second."""
    monkeypatch.setattr("stook._threads_calls.LONGEST_SLEEP", 1000.0)


class Gate:
    """A function that blocks until it is opened, and tells how many are in it."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.inside = threading.Semaphore(0)

    def __call__(self, value: Any = None) -> Any:
        self.inside.release()
        assert self.open.wait(DEADLINE)
        return value

    def wait_for(self, count: int) -> None:
        for _ in range(count):
            assert self.inside.acquire(timeout=DEADLINE)


def divide(one: int, other: int) -> float:
    return one / other


def fail_at(bad: int) -> Callable[[int], int]:
    def call(value: int) -> int:
        if value == bad:
            raise LookupError(value)
        return value * 2

    return call


# ---- calls ---------------------------------------------------------------------------------------


def test_calls_give_what_multiprocessing_gives(pool: stook.ThreadPool) -> None:
    assert pool.apply(int, ("17",), {"base": 8}) == 15
    assert pool.apply_async(divide, (1, 2)).get(DEADLINE) == 0.5
    assert pool.map(abs, range(-50, 0)) == list(range(50, 0, -1))
    assert pool.map_async(abs, iter([-1])).get(DEADLINE) == [1]
    assert pool.starmap(divide, [(1, 2), (3, 4)]) == [0.5, 0.75]
    assert pool.starmap_async(divide, [(4, 2)]).get(DEADLINE) == [2]
    assert list(pool.imap(abs, range(-50, 0))) == list(range(50, 0, -1))
    assert sorted(pool.imap_unordered(abs, range(-50, 0))) == list(range(1, 51))


@pytest.mark.parametrize("length", [0, 1, 2, 7, 12, 25])
@pytest.mark.parametrize("chunksize", [1, 3, 100])
def test_chunks_change_no_result(pool: stook.ThreadPool, length: int, chunksize: int) -> None:
    expected = [value * 3 for value in range(length)]
    for found in (
        pool.map((3).__mul__, range(length), chunksize),
        list(pool.imap((3).__mul__, range(length), chunksize)),
        sorted(pool.imap_unordered((3).__mul__, range(length), chunksize)),
    ):
        assert found == expected


def test_calls_run_in_so_many_threads_at_once(pool: stook.ThreadPool) -> None:
    gate = Gate()
    result = pool.map_async(gate, range(5), chunksize=1)
    gate.wait_for(3)
    assert not gate.inside.acquire(blocking=False)
    assert not result.ready()
    with pytest.raises(ValueError, match="not ready"):
        result.successful()
    gate.open.set()
    assert result.get(DEADLINE) == list(range(5))
    assert result.ready()
    assert result.successful()


def test_ordered_results_wait_for_their_turn(pool: stook.ThreadPool) -> None:
    others = threading.Semaphore(0)

    def call(value: int) -> int:
        if value == 0:  # is done last
            for _ in range(2):
                assert others.acquire(timeout=DEADLINE)
        else:
            others.release()
        return value

    assert list(pool.imap(call, range(3))) == [0, 1, 2]


def test_unordered_results_come_as_they_are_done(pool: stook.ThreadPool) -> None:
    first = threading.Event()

    def call(value: int) -> int:
        if value == 0:
            assert first.wait(DEADLINE)
        return value

    results = pool.imap_unordered(call, range(3))
    assert sorted([results.next(DEADLINE), results.next(DEADLINE)]) == [1, 2]
    first.set()
    assert list(results) == [0]


def test_the_initializer_runs_in_each_thread() -> None:
    local = threading.local()
    started = []

    def start(value: str) -> None:
        local.value = value
        started.append(threading.get_ident())

    with stook.ThreadPool(2, start, ("there",)) as pool:
        assert pool.map(lambda _: local.value, range(8), chunksize=1) == ["there"] * 8
        assert wait_until(lambda: len(set(started)) == 2, DEADLINE)


def test_a_timeout_is_multiprocessings(pool: stook.ThreadPool) -> None:
    gate = Gate()
    result = pool.apply_async(gate)
    results = pool.imap(gate, [1])
    result.wait(0)
    with pytest.raises(multiprocessing.TimeoutError):
        result.get(timeout=0)
    with pytest.raises(multiprocessing.TimeoutError):
        results.next(timeout=0)
    gate.open.set()
    assert result.get(DEADLINE) is None
    assert results.next(timeout=DEADLINE) == 1


def test_tasks_may_submit_tasks(pool: stook.ThreadPool) -> None:
    inner = pool.apply(lambda: pool.apply_async(abs, (-4,)))
    assert inner.get(DEADLINE) == 4


def test_many_threads_share_a_pool(pool: stook.ThreadPool) -> None:
    found: list[list[int]] = []

    def use(number: int) -> None:
        found.append(pool.map((number).__mul__, range(40), chunksize=3))

    threads = [threading.Thread(target=use, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
    assert sorted(found) == sorted([[number * i for i in range(40)] for number in range(16)])


# ---- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [LookupError, SystemExit, KeyboardInterrupt])
def test_errors_arrive_as_themselves(pool: stook.ThreadPool, error: type[BaseException]) -> None:
    def call(_: Any = None) -> None:
        raise error("why")

    for attempt in (
        lambda: pool.apply(call),
        lambda: pool.map(call, [1, 2]),
        lambda: next(pool.imap(call, [1])),
    ):
        with pytest.raises(error, match="why") as caught:
            attempt()
        assert caught.traceback[-1].name == "call"
    assert pool.apply(abs, (-1,)) == 1


def test_stop_iteration_cuts_nothing_short(pool: stook.ThreadPool) -> None:
    def call(value: int) -> int:
        if value == 1:
            raise StopIteration
        return value

    for attempt in (
        lambda: pool.apply(call, (1,)),
        lambda: pool.map(call, range(3), 3),
        lambda: pool.starmap(call, [(0,), (1,), (2,)], 3),
    ):
        with pytest.raises(StopIteration):
            attempt()
    results = pool.imap(call, range(3), 3)
    assert next(results) == 0
    with pytest.raises(RuntimeError, match="raised StopIteration"):
        next(results)
    assert list(results) == [2]


def test_a_map_ends_when_all_its_chunks_have(pool: stook.ThreadPool) -> None:
    gate = Gate()

    def call(value: int) -> None:
        if value == 0:
            raise LookupError
        gate()

    result = pool.map_async(call, range(2), chunksize=1)
    gate.wait_for(1)
    assert not result.ready()
    gate.open.set()
    with pytest.raises(LookupError):
        result.get(DEADLINE)
    assert not result.successful()


@pytest.mark.parametrize("chunksize", [1, 3])
def test_imap_goes_on_after_an_error(pool: stook.ThreadPool, chunksize: int) -> None:
    results = pool.imap(fail_at(4), range(7), chunksize)
    assert [next(results) for _ in range(4)] == [0, 2, 4, 6]
    with pytest.raises(LookupError):
        next(results)
    assert list(results) == [10, 12]


@pytest.mark.parametrize("ordered", [True, False])
def test_an_error_of_the_iterable_ends_imap(pool: stook.ThreadPool, ordered: bool) -> None:
    def source() -> Iterator[int]:
        yield from range(5)
        raise OSError("the disk is gone")

    results = (pool.imap if ordered else pool.imap_unordered)(abs, source())
    found = []
    with pytest.raises(OSError, match="the disk is gone"):
        while True:
            found.append(next(results))
    if ordered:
        assert found == [0, 1, 2, 3, 4]
    found += results
    assert sorted(found) == [0, 1, 2, 3, 4]
    with pytest.raises(StopIteration):
        next(results)


def test_wrong_arguments_are_refused(pool: stook.ThreadPool) -> None:
    with pytest.raises(ValueError, match="processes must be an int of at least 1, got 0"):
        stook.ThreadPool(0)
    with pytest.raises(TypeError, match="initializer must be a callable or None, got 3"):
        stook.ThreadPool(1, 3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"Chunksize must be 1\+, not 0"):
        pool.imap(abs, [1], 0)
    with pytest.raises(TypeError, match="not iterable"):
        pool.map(abs, 3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="not callable"):
        pool.apply(3)  # type: ignore[arg-type]
    with pytest.raises(NotImplementedError):
        pickle.dumps(pool)


def test_an_initializer_that_fails_is_the_error_of_every_call() -> None:
    def start() -> None:
        raise LookupError("no table")

    with stook.ThreadPool(2, start) as pool:
        for attempt in (
            lambda: pool.apply(abs, (1,)),
            lambda: pool.map(abs, [1, 2]),
            lambda: list(pool.imap(abs, [1, 2])),
        ):
            with pytest.raises(stook.PoolBroken, match="no table") as caught:
                attempt()
            assert isinstance(caught.value.__cause__, LookupError)


# ---- callbacks -----------------------------------------------------------------------------------


def test_callbacks_come_before_the_result_and_one_at_a_time(pool: stook.ThreadPool) -> None:
    seen: list[Any] = []
    inside = threading.Lock()

    def note(value: Any) -> None:
        assert inside.acquire(blocking=False)
        time.sleep(0.0005)  # lets another one in, if it may
        seen.append(value)
        inside.release()

    results = [pool.apply_async(abs, (-n,), callback=note) for n in range(100)]
    assert [result.get(DEADLINE) for result in results] == list(range(100))
    assert sorted(seen) == list(range(100))
    pool.map_async(abs, [-1, -2], callback=note).wait(DEADLINE)
    assert seen[-1] == [1, 2]
    failed = pool.apply_async(divide, (1, 0), callback=note, error_callback=note)
    failed.wait(DEADLINE)
    assert isinstance(seen[-1], ZeroDivisionError)


def test_a_callback_that_raises_is_told_and_hurts_nothing(
    pool: stook.ThreadPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", lambda args: told.append(args.exc_value))
    result = pool.apply_async(abs, (-5,), callback=lambda value: 1 / 0)
    assert result.get(DEADLINE) == 5
    assert [type(error) for error in told] == [ZeroDivisionError]
    assert pool.map(abs, [-1] * 9) == [1] * 9


# ---- laziness ------------------------------------------------------------------------------------


def test_a_signal_handler_takes_results_where_others_are_being_taken() -> None:
    gate = threading.Event()
    with stook.ThreadPool(1) as pool:
        results = pool.imap(lambda _: gate.wait(), [1])
        with results._lock:  # where a handler interrupts next()
            gate.set()
            assert pool.imap(abs, [-1]).next(20) == 1
        assert list(results) == [True]


def test_imap_over_an_endless_iterable_is_bounded(pool: stook.ThreadPool) -> None:
    drawn: list[int] = []
    source = (drawn.append(value) or value for value in itertools.count())
    results = pool.imap(abs, source)
    for taken in range(500):
        assert next(results) == taken
        assert len(drawn) <= taken + 1 + 4 * 3


def test_a_blocked_iterable_holds_up_nothing_else(pool: stook.ThreadPool) -> None:
    gate = Gate()

    def source() -> Iterator[int]:
        yield 1
        gate()
        yield 2

    results = pool.imap(abs, source())
    gate.wait_for(1)
    assert results.next(DEADLINE) == 1
    assert pool.map(abs, [-3, -4]) == [3, 4]
    gate.open.set()
    assert list(results) == [2]


def test_join_draws_the_rest() -> None:
    pool = stook.ThreadPool(2)
    results = pool.imap(abs, range(-100, 0))
    seen: list[int] = []
    pool.imap_unordered(seen.append, range(100))  # nobody looks at what it gives
    pool.close()
    pool.join()
    assert sorted(seen) == list(range(100))
    assert list(results) == list(range(100, 0, -1))


def test_results_may_be_taken_after_close() -> None:
    pool = stook.ThreadPool(2)
    results = pool.imap(abs, range(100))
    pool.close()
    assert list(results) == list(range(100))
    pool.join()


def test_a_dropped_iterator_draws_no_more() -> None:
    pool = stook.ThreadPool(2)
    results = pool.imap(abs, itertools.count())
    assert next(results) == 0
    del results
    pool.close()
    pool.join()


# ---- the end -------------------------------------------------------------------------------------


def test_a_closed_pool_takes_no_calls_and_finishes_what_it_has(pool: stook.ThreadPool) -> None:
    gate = Gate()
    result = pool.map_async(gate, range(10), chunksize=1)
    with pytest.raises(ValueError, match="Pool is still running"):
        pool.join()
    pool.close()
    for call in (pool.apply, pool.map, pool.imap, pool.imap_unordered, pool.starmap):
        with pytest.raises(ValueError, match="Pool not running"):
            call(abs, ())
    gate.open.set()
    pool.join()
    assert result.get(0) == list(range(10))
    assert "state=CLOSE pool_size=3" in repr(pool)


def test_terminate_gives_up_what_waits(pool: stook.ThreadPool) -> None:
    gate = Gate()
    mapped = pool.map_async(gate, range(100), chunksize=1)
    results = pool.imap(abs, range(100))
    gate.wait_for(3)
    pool.terminate()
    with pytest.raises(stook.StookError, match="terminated"):
        mapped.get(DEADLINE)
    with pytest.raises(stook.StookError, match="terminated"):
        results.next(DEADLINE)
    with pytest.raises(StopIteration):
        results.next(DEADLINE)
    gate.open.set()
    pool.join()
    assert not gate.inside.acquire(blocking=False)  # nothing else was begun


def test_terminate_wakes_who_waits(pool: stook.ThreadPool) -> None:
    gate = Gate()
    result = pool.apply_async(gate)
    gate.wait_for(1)
    ended = threading.Thread(target=pool.terminate)
    with pytest.raises(stook.StookError, match="terminated"):
        ended.start()
        result.get(DEADLINE)
    gate.open.set()
    ended.join(DEADLINE)


def test_join_does_not_wait_for_what_is_stuck(pool: stook.ThreadPool) -> None:
    gate = Gate()
    pool.apply_async(gate)
    gate.wait_for(1)
    pool.terminate()
    pool.join()  # else it would wait for the gate, which nobody has opened
    gate.open.set()


def test_a_thread_of_the_pool_cannot_join_it(pool: stook.ThreadPool) -> None:
    def call() -> None:
        pool.close()
        pool.join()

    with pytest.raises(RuntimeError, match="cannot join its own pool"):
        pool.apply(call)


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_a_dropped_pool_ends_its_threads() -> None:
    pool = stook.ThreadPool(2)
    assert pool.map(abs, [-1]) == [1]
    threads = pool._pool
    dropped = weakref.ref(pool)
    del pool
    assert dropped() is None
    for thread in threads:
        thread.join(DEADLINE)
        assert not thread.is_alive()


def test_a_dropped_pool_warns_unless_it_was_ended() -> None:
    pool = stook.ThreadPool(1)
    with pytest.warns(ResourceWarning, match=r"unclosed running multiprocessing pool .*ThreadPool"):
        del pool
    for end in ("close", "terminate"):
        pool = stook.ThreadPool(1)
        getattr(pool, end)()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            del pool


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_a_result_keeps_its_pool_until_it_is_there() -> None:
    assert stook.ThreadPool(1).apply_async(abs, (-3,)).get(DEADLINE) == 3
    assert list(stook.ThreadPool(1).imap(abs, [-3])) == [3]


def test_arguments_and_results_are_let_go(pool: stook.ThreadPool) -> None:
    class Thing:
        pass

    thing = Thing()
    gone = weakref.ref(thing)
    assert pool.apply(lambda it: it, (thing,)) is thing
    assert pool.map(lambda it: it, [thing])[0] is thing
    assert next(pool.imap(lambda it: it, [thing])) is thing
    del thing

    def is_gone() -> bool:
        gc.collect()
        return gone() is None

    assert wait_until(is_gone, DEADLINE)


@pytest.mark.parametrize("ending", ["", "pool.close()", "del pool", "sys.exit(3)", "1 / 0"])
def test_the_interpreter_ends_with_calls_under_way(run_python: RunPython, ending: str) -> None:
    code = f"""
        import stook, sys, threading
        started = threading.Event()
        def stuck(_):
            started.set()
            threading.Event().wait()
        pool = stook.ThreadPool(2)
        result = pool.map_async(stuck, range(5), chunksize=1)
        results = pool.imap(abs, iter(int, 1))
        started.wait()
        {ending}
    """
    done = run_python(code, deadline=DEADLINE)
    assert done.returncode == {"sys.exit(3)": 3, "1 / 0": 1}.get(ending, 0)


def test_a_forked_child_is_told(run_python: RunPython) -> None:
    code = """
        import os, stook
        pool = stook.ThreadPool(1)
        if os.fork() == 0:
            for call in (lambda: pool.apply(abs, (1,)), pool.join):
                try:
                    call()
                except stook.StookError as error:
                    print("told:", "forked child" in str(error), flush=True)
            pool.terminate()
            os._exit(0)
        os.wait()
        print(pool.map(abs, [-1]))
    """
    done = run_python(code, deadline=DEADLINE, flags=("-X", "dev")).check()
    assert done.stdout.split("\n")[:3] == ["told: True", "told: True", "[1]"]


def test_a_child_forked_in_a_task_does_not_go_on_as_a_thread(run_python: RunPython) -> None:
    code = """
        import os, stook
        def call(value):
            return os.fork()
        with stook.ThreadPool(2) as pool:
            child = pool.apply(call, (1,))
            print("status", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """
    done = run_python(code, deadline=DEADLINE, flags=("-X", "dev")).check()
    assert done.stdout == "status 1\n"
    assert "returned from user code; it ends here" in done.stderr


def test_ctrl_c_ends_a_wait(run_python: RunPython) -> None:
    code = """
        import signal, stook, threading
        pool = stook.ThreadPool(2)
        waits = threading.Event()
        def interrupt(_=None):
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            waits.wait()
        for wait in (lambda: pool.apply(interrupt), lambda: next(pool.imap(interrupt, [1]))):
            try:
                wait()
            except KeyboardInterrupt:
                print("interrupted")
        waits.set()
        print(pool.apply(abs, (-1,)))
    """
    done = run_python(code, deadline=DEADLINE).check()
    assert done.stdout == "interrupted\ninterrupted\n1\n"
