"""`prefetch_to`: a thread that is ahead of the trainer, and a state that is the trainer's."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from typing import Any

import numpy as np
import pytest

import stook
from conftest import RunPython

HERE = stook.MultiprocessingOptions()
PROCESSES = stook.MultiprocessingOptions(num_workers=2)
THREADS = stook.MultithreadingOptions(num_threads=2)

each_way = pytest.mark.parametrize(
    "options", [HERE, PROCESSES, THREADS], ids=["here", "processes", "threads"]
)


def row(index: int) -> Any:
    return np.full(3000, index)


def first(element: Any) -> int:
    return int(element[0])


def prefetch_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "stook-prefetch"]


@each_way
def test_one_thread_runs_the_function_in_order(options: Any) -> None:
    threads = set()

    def note(element: Any) -> int:
        threads.add(threading.get_ident())
        return first(element)

    with stook.DataLoader(range(100), row, options=options) as loader:
        for _ in range(2):
            threads.clear()
            assert list(loader.prefetch_to(note)) == list(range(100))
            assert len(threads) == 1
            assert threading.get_ident() not in threads
    assert prefetch_threads() == []


@each_way
def test_a_state_within_filled_batches(options: Any) -> None:
    def load(number: int) -> Any:
        return stook.SKIP if number == 1 else number

    with stook.DataLoader(
        range(10), load, batch_size=3, fill_batches=True, options=options
    ) as loader:
        ahead = loader.prefetch_to(lambda batch: batch.tolist(), depth=3)
        assert next(ahead) == [0, 2, 3]
        state = json.loads(json.dumps(ahead.get_state()))
        assert list(ahead) == [[4, 5, 6], [7, 8, 9]]
        loader.set_state(state)
        assert [batch.tolist() for batch in loader] == [[4, 5, 6], [7, 8, 9]]


@each_way
def test_a_state_within_a_source_that_workers_read(options: Any) -> None:
    with stook.DataLoader(lambda shard, count: range(shard, 9, count), options=options) as loader:
        expected = list(loader)
        ahead = loader.prefetch_to(lambda number: number)
        assert [next(ahead) for _ in range(4)] == expected[:4]
        ahead.set_state(json.loads(json.dumps(ahead.get_state())))
        assert list(ahead) == expected[4:]


@each_way
def test_the_thread_is_at_the_end_of_shards_and_the_trainer_is_not(options: Any) -> None:
    def load(number: int) -> Any:
        return stook.SKIP if number in (3, 6) else number

    def new() -> stook.DataLoader:
        return stook.DataLoader(
            lambda shard, count: range(shard, 7, count), load, num_epochs=2, options=options
        )

    with new() as loader, new() as other:
        expected = list(loader)
        assert len(expected) == 10
        for taken in range(1, 11):
            ahead = loader.prefetch_to(lambda number: number, depth=20)
            ahead.set_state({**ahead.get_state(), "epoch": 0, "first_epoch": 0})
            assert [next(ahead) for _ in range(taken)] == expected[:taken]
            for thread in prefetch_threads():
                thread.join(30)
            assert prefetch_threads() == []
            state = json.loads(json.dumps(ahead.get_state()))
            other.set_state(state)
            assert list(other) == expected[taken:]
            ahead.set_state(state)
            assert list(ahead) == expected[taken:]


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_it_is_so_far_ahead_and_no_further(depth: int) -> None:
    begun = threading.Semaphore(0)
    made: list[int] = []

    def note(number: int) -> int:
        made.append(number)
        begun.release()
        return number

    with stook.DataLoader(range(100)) as loader:
        numbers = loader.prefetch_to(note, depth)
        for taken in range(1, 20):
            assert next(numbers) == taken - 1
            while len(made) < taken + depth:
                assert begun.acquire(timeout=30)
            assert len(made) == taken + depth


@each_way
def test_states_are_those_of_what_was_taken(options: Any) -> None:
    def new() -> stook.DataLoader:
        return stook.DataLoader(range(30), row, options=options, shuffle=True, num_epochs=2)

    with new() as loader:
        want = [first(element) for element in loader]
    with new() as loader, new() as other:
        numbers = loader.prefetch_to(first)
        for count in range(61):
            state = json.dumps(numbers.get_state())
            assert json.dumps(loader.get_state()) == state
            if count % 9 == 0:
                other.set_state(json.loads(state))
                assert [first(element) for element in other] == want[count:]
            if count < 60:
                assert next(numbers) == want[count]
        numbers.set_state(json.loads(json.dumps(numbers.get_state())))
        assert list(numbers) == []


@each_way
def test_a_state_is_set_while_it_is_ahead(options: Any) -> None:
    with stook.DataLoader(range(200), row, options=options) as loader:
        numbers = loader.prefetch_to(first, depth=3)
        start = numbers.get_state()
        for count in range(1, 30):
            assert [next(numbers) for _ in range(count)] == list(range(count))
            numbers.set_state(start)
        assert list(numbers) == list(range(200))
        loader.set_state(start)
        assert list(loader.prefetch_to(first)) == list(range(200))


@each_way
def test_a_state_of_a_pass_that_was_left(options: Any) -> None:
    with stook.DataLoader(range(200), row, options=options) as loader:
        for number in loader.prefetch_to(first, depth=4):
            if number == 20:
                break
        assert prefetch_threads() == []
        assert loader.get_state()["position"] == 21


def fail(index: int) -> Any:
    if index == 1:
        raise ValueError("element one")
    return index


def fail_ahead(element: int) -> int:
    errors = {3: ValueError("function three"), 5: StopIteration(), 7: KeyboardInterrupt()}
    if element in errors:
        raise errors[element]
    return element


@each_way
def test_errors_come_in_their_place(options: Any) -> None:
    found: list[Any] = []
    with stook.DataLoader(range(10), fail, options=options) as loader:
        numbers = loader.prefetch_to(fail_ahead)
        while True:
            try:
                found.append(next(numbers))
            except StopIteration:
                break
            except Exception as error:
                found.append(str(error))
    assert found == [
        *(0, "element one", 2, "function three", 4),
        *("prefetch_to: the function raised StopIteration", 6),
        *("prefetch_to: the function raised KeyboardInterrupt", 8, 9),
    ]


@each_way
def test_it_is_an_asynchronous_iterator(options: Any) -> None:
    async def main() -> None:
        with stook.DataLoader(range(100), row, options=options) as loader:
            elements = loader.prefetch_to(first)
            assert [element async for element in elements] == list(range(100))

    asyncio.run(main())


@each_way
def test_closed_dropped_and_replaced(options: Any) -> None:
    with stook.DataLoader(range(100), row, options=options) as loader:
        numbers = loader.prefetch_to(first)
        next(numbers)
        numbers.close()
        numbers.close()
        with pytest.raises(stook.StookError, match="closed"):
            next(numbers)
        numbers = loader.prefetch_to(first)
        next(numbers)
        assert first(next(iter(loader))) >= 0
        with pytest.raises(stook.StookError, match="closed"):
            next(numbers)
        with loader.prefetch_to(first) as numbers:
            next(numbers)
        assert prefetch_threads() == []
        numbers = loader.prefetch_to(first).prefetch_to(str)
        assert next(numbers) == "0"
        assert numbers.get_state()["position"] == 1
        del numbers
        assert prefetch_threads() == []


def test_arguments_are_checked_before_the_pass_under_way_ends() -> None:
    with stook.DataLoader(range(3)) as loader:
        numbers = iter(loader)
        wrong: Any = "wrong"
        with pytest.raises(TypeError, match="'wrong'"):
            loader.prefetch_to(wrong)
        with pytest.raises(ValueError, match="depth"):
            loader.prefetch_to(str, depth=0)
        with pytest.raises(TypeError, match="depth"):
            loader.prefetch_to(str, depth=wrong)
        assert next(numbers) == 0


def test_a_forked_child_is_told() -> None:
    with stook.DataLoader(range(100)) as loader:
        numbers = loader.prefetch_to(str)
        next(numbers)
        child = os.fork()
        if child == 0:
            code = 1
            try:
                next(numbers)
            except stook.StookError as error:
                numbers.close()
                code = 0 if "forked child" in str(error) else 2
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert next(numbers) == "1"


@pytest.mark.parametrize("where", ["function", "worker", "buffer"])
def test_programs_end_while_the_thread_runs(run_python: RunPython, where: str) -> None:
    done = run_python(
        """
        import sys, threading, time
        import stook

        where = sys.argv[1]

        def slow(number):
            if where == "worker" and number == 1:
                time.sleep(1000)
            return number

        def ahead(number):
            if where == "function" and number == 1:
                time.sleep(1000)
            return number

        options = stook.MultiprocessingOptions(num_workers=1)
        numbers = stook.DataLoader(range(1000), slow, options=options).prefetch_to(ahead)
        print(next(numbers))
        """,
        where,
    ).check()
    assert done.stdout == "0\n"
    assert done.stderr == ""
