"""Who waits for the tasks of a pool, delivers, cancels or is woken."""

from __future__ import annotations

import _thread
import contextlib
import functools
import itertools
import operator
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from task_pools import Sink, made, run

import stook
from conftest import RunPython
from stook import _task_pool
from stook._task_pool import TaskPool


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


def test_many_that_wait_are_cancelled_without_a_search(run_python: RunPython) -> None:
    """Looked for one by one, each among all, these would take hours."""
    run_python(
        """
import os
from stook._task_pool import TaskPool

ours, theirs = os.pipe()
pool = TaskPool(1, start_method="fork")
busy = pool.submit(pool.function(os.read), (ours, 1), sink=print)
while not pool.is_running(busy):
    pool.wait(lambda: False, 0.001)
function = pool.function(abs)
numbers = [pool.submit(function, (-1,), sink=print, background=False) for _ in range(400_000)]
taken = 0
for number in numbers[:200_000]:
    taken += pool.cancel(number)
for number in reversed(numbers[200_000:]):
    taken += pool.cancel(number)
assert taken == 400_000 and pool.outstanding == 1, (taken, pool.outstanding)
pool.close()
""",
        flags=(),
    ).check()


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
        while not pool.wait(lambda: not pool._thread_is_awake, 0.01):
            pass
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


def test_whoever_waits_can_be_woken() -> None:
    """Of several threads one delivers, and sleeps in the pool; the others wait for that one."""
    with made() as pool:
        gate = threading.Event()
        looks = [0, 0, 0]

        def wait(number: int) -> None:
            def done() -> bool:
                looks[number] += 1
                return gate.is_set()

            pool.wait(done)

        threads = [threading.Thread(target=wait, args=(number,)) for number in range(3)]
        for thread in threads:
            thread.start()
        while not all(looks):
            os.sched_yield()
        gate.set()  # which none of them hears of
        pool.wake()
        for thread in threads:
            thread.join()


def test_being_woken_on_the_way_to_sleep_is_not_lost() -> None:
    with made() as pool:
        for _ in range(300):
            gate = threading.Event()
            waiter = threading.Thread(target=pool.wait, args=(gate.is_set,))
            waiter.start()
            gate.set()
            pool.wake()
            waiter.join()


def test_a_sink_may_wake_the_thread_that_calls_it() -> None:
    with made() as pool:
        woken: list[bool] = []

        def sink(ok: bool, value: Any) -> None:
            pool.wait(lambda: True)
            pool.wake()
            woken.append(ok)

        pool.submit(pool.function(abs), (-1,), sink=sink, background=False)
        assert pool.wait(lambda: woken, 60)


def test_waking_whoever_waits_costs_nothing_where_nobody_does() -> None:
    with made() as pool:
        pool.wake()
        pool.close()
        pool.wake()


class Interrupted(Exception):
    """Raised by a signal handler."""


@contextlib.contextmanager
def watched(pool: TaskPool) -> Iterator[None]:
    """Fails where a thread sleeps on although it could go on."""
    rescued: list[None] = []

    def rescue() -> None:
        rescued.append(None)
        pool.wake()

    watchdog = threading.Timer(20, rescue)
    watchdog.start()
    try:
        yield
    finally:
        watchdog.cancel()
        watchdog.join()
    assert not rescued, "a wake-up was lost"


def test_a_signal_handler_delivers_just_before_a_thread_sleeps() -> None:
    """It must look once more: nothing that comes later would wake it."""
    sink = Sink()

    def handler(number: int, frame: object) -> None:
        pool.submit(pool.function(abs), (-5,), sink=sink, background=False)
        assert pool.wait(lambda: sink.calls)
        pool.wait(lambda: False, 0.02)  # no bell is left to ring

    with made() as pool:
        run(pool, abs, -1)
        before = signal.signal(signal.SIGUSR1, handler)
        try:
            # Trips the handler without a signal that would end a sleep, and false; from then on,
            # true if the result is there. None of it is Python code, so the handler runs where the
            # pool itself looks for signals: before its first long sleep.
            answers = itertools.chain(
                map(_thread.interrupt_main, [signal.SIGUSR1]),
                map(operator.truth, itertools.repeat(sink.calls)),
            )
            with watched(pool):
                assert pool._queue.pump(functools.partial(next, answers), None)
        finally:
            signal.signal(signal.SIGUSR1, before)
    assert sink.value == 5


def test_a_signal_handler_that_fails_has_told_others_of_their_results(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Else the other thread may take the place of the main thread before it delivers.
    monkeypatch.setattr(_task_pool, "runs_one", lambda: False)
    came: list[int] = []
    helped: list[bool] = []
    interrupted: list[None] = []
    finished = threading.Event()

    def sink(ok: bool, value: Any) -> None:
        if not came:
            came.append(value)
            raise Interrupted  # as of another handler, just when it was called

    def wait_for_it() -> None:
        helped.append(pool.wait(lambda: bool(came)))
        finished.set()
        pool.wake()

    def handler(number: int, frame: object) -> None:
        other.start()
        while not pool._waiting:
            os.sched_yield()
        pool.submit(pool.function(abs), (-7,), sink=sink, background=False)
        with pytest.raises(Interrupted):
            pool.wait(lambda: False)

    def done() -> bool:
        if not interrupted:
            interrupted.append(None)
            signal.raise_signal(signal.SIGUSR1)
        return finished.is_set()

    other = threading.Thread(target=wait_for_it)
    with made() as pool:
        run(pool, abs, -1)
        before = signal.signal(signal.SIGUSR1, handler)
        try:
            with watched(pool):
                assert pool._queue.pump(done, None)
            other.join()
        finally:
            signal.signal(signal.SIGUSR1, before)
    assert helped == [True]


def test_a_signal_that_wakes_nobody_ends_the_wait_for_who_delivers() -> None:
    """As if it came just before the main thread's sleep: another thread gets it."""
    over = threading.Event()
    rescued: list[None] = []

    def raise_it(number: int, frame: object) -> None:
        raise Interrupted

    def rescue() -> None:
        rescued.append(None)
        over.set()
        pool.wake()

    def send() -> None:
        while not pool._waiting:
            os.sched_yield()
        os.kill(os.getpid(), signal.SIGUSR1)

    with made() as pool:
        run(pool, abs, -1)
        deliverer = threading.Thread(target=pool.wait, args=(over.is_set,))
        deliverer.start()
        while not pool._queue.is_pumped:
            os.sched_yield()
        sender = threading.Thread(target=send)
        sender.start()
        watchdog = threading.Timer(20, rescue)
        watchdog.start()
        before = signal.signal(signal.SIGUSR1, raise_it)
        unblocked = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
        try:
            with pytest.raises(Interrupted):
                pool.wait(over.is_set)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, unblocked)
            signal.signal(signal.SIGUSR1, before)
            watchdog.cancel()
            over.set()
            pool.wake()
            for thread in (sender, deliverer, watchdog):
                thread.join()
    assert not rescued
