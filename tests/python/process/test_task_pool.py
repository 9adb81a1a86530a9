"""What the pools are made of: tasks to workers, and their results to sinks."""

from __future__ import annotations

import gc
import importlib
import multiprocessing
import operator
import os
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from process_loader import each_method
from task_pools import Sink, made, run, run_items

import stook
from stook._error_payload import is_undecodable


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


def test_a_module_that_a_worker_cannot_import_is_an_error_of_the_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "module_of_the_parent.py"
    path.write_text("def increment(x):\n    return x + 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    increment = importlib.import_module("module_of_the_parent").increment
    path.unlink()
    with made(1) as pool:
        for _ in range(2):
            with pytest.raises(ModuleNotFoundError, match="module_of_the_parent"):
                run(pool, increment, 1)
        errors = run_items(pool, increment, [1, 2]).errors
        assert [type(errors[place]) for place in (0, 1)] == [ModuleNotFoundError] * 2
        assert run(pool, abs, -1) == 1


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


def test_plain_results_among_others_keep_their_places() -> None:
    """Those that are nothing but their value travel together."""
    plain = [0, -1, 2**63 - 1, -(2**63), 0.5, float("inf"), True, False, None, 1 - 2j]
    plain += ["", "text", "\xe9", "\u20ac", "\U0001f680", "long" * 5000, b"", b"\0bytes"]
    others = [2**63, -(2**70), (1, "pair"), [None], {"key": b"value"}, np.arange(3), {1, 2}]

    class Text(str):
        pass

    def make(place: int) -> Any:
        if place % 9 == 8:
            raise LookupError(place)
        if place % 9 == 7:
            return Text("a class of its own")
        values = plain + others
        return values[place % len(values)]

    count = 900  # more than once through all neighbours
    with made() as pool:
        sink = run_items(pool, make, list(range(count)))
        nothing_but_plain = run_items(pool, abs, list(range(-1000, 0))).results
    assert nothing_but_plain == list(range(1000, 0, -1))
    assert sorted(sink.errors) == list(range(8, count, 9))
    for place, result in enumerate(sink.results):
        if place in sink.errors:
            assert result is None and sink.errors[place].args == (place,)
        else:
            expected = make(place)
            same = np.array_equal if isinstance(expected, np.ndarray) else operator.eq
            assert same(result, expected), (place, result, expected)
            assert type(result).__name__ == type(expected).__name__


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
