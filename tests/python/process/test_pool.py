"""`stook.Pool`: the methods of multiprocessing.Pool, their errors and results."""

from __future__ import annotations

import functools
import multiprocessing
import pickle
import threading
from collections.abc import Iterator
from multiprocessing.pool import MaybeEncodingError, RemoteTraceback
from pathlib import Path
from typing import Any

import numpy as np
import pool_calls as calls
import pytest
from pool_calls import DEADLINE

import stook

METHODS = ["forkserver", "fork"]


@pytest.fixture
def pool() -> Iterator[stook.Pool]:
    pool = stook.Pool(2)
    yield pool
    pool.terminate()
    pool.join()
    vars(pool).clear()  # pytest holds the pool, which holds descriptors of its workers


@pytest.mark.parametrize("method", METHODS)
def test_all_methods_give_the_originals_results(method: str) -> None:
    numbers = list(range(100))
    squares = [number**2 for number in numbers]
    pairs = list(zip(numbers, squares, strict=True))
    sums = [one + other for one, other in pairs]
    with stook.Pool(2, start_method=method) as pool:
        assert pool.apply(calls.add, (1,), {"other": 2}) == 3
        assert pool.apply_async(calls.add, [1], {"other": 2}).get() == 3
        for chunksize in (None, 1, 7, 1000):
            assert pool.map(calls.square, numbers, chunksize) == squares
            assert pool.map_async(calls.square, iter(numbers), chunksize).get() == squares
            assert pool.starmap(calls.add, pairs, chunksize) == sums
            assert pool.starmap_async(calls.add, iter(pairs), chunksize).get() == sums
        for chunksize in (1, 7, 1000):
            for source in (numbers, range(100), tuple(numbers), iter(numbers), np.arange(100)):
                assert list(pool.imap(calls.square, source, chunksize)) == squares
            found = pool.imap_unordered(calls.square, (n for n in numbers), chunksize)
            assert sorted(found) == squares


def test_nothing_to_do_is_done(pool: stook.Pool) -> None:
    told: list[Any] = []
    assert pool.map(calls.square, []) == []
    assert pool.starmap(calls.add, iter(())) == []
    assert pool.map_async(calls.square, [], 1, told.append).get(DEADLINE) == []
    assert told == []  # as in the original
    for source in ([], iter(()), (n for n in ())):
        assert list(pool.imap(calls.square, source)) == []
        assert list(pool.imap_unordered(calls.square, source, 5)) == []


def test_functions_that_have_no_name_are_called(pool: stook.Pool) -> None:
    offset = 5
    assert pool.map(lambda n: n + offset, range(3)) == [5, 6, 7]
    offset = 7  # not stale
    assert pool.apply(lambda: offset) == 7
    assert list(pool.imap(functools.partial(calls.add, other=1), range(3))) == [1, 2, 3]


def test_arrays_cross_both_ways_without_being_pickled(pool: stook.Pool) -> None:
    array = np.arange(1_000_000)
    back = pool.apply(calls.same, (array,))
    assert np.array_equal(back, array) and stook.is_shared(back)
    for index, made in enumerate(pool.imap(calls.make_array, [10_000 + i for i in range(50)])):
        assert stook.is_shared(made)
        assert made.shape == (10_000 + index,) and (made == (10_000 + index) % 251).all()
    kept = pool.map(calls.make_array, [20_000] * 10)
    assert all(stook.is_shared(made) and made.size == 20_000 for made in kept)


def test_results_keep_their_order_when_the_first_takes_long(
    pool: stook.Pool, tmp_path: Path
) -> None:
    gates = [calls.fifo(tmp_path, name) for name in ("first", "second")]

    def work(gate: str) -> list[Any]:
        return [(calls.wait_for, gate, 0), *((calls.same, n) for n in (1, 2))]

    ordered = pool.imap(calls.call, work(gates[0]))
    unordered = pool.imap_unordered(calls.call, work(gates[1]))
    # Both workers may be waiting.
    with pytest.raises(multiprocessing.TimeoutError):
        ordered.next(timeout=0.01)
    Path(gates[0]).write_bytes(b"go")
    assert ordered.next(timeout=DEADLINE) == 0
    Path(gates[1]).write_bytes(b"go")
    assert sorted(unordered) == [0, 1, 2]
    assert list(ordered) == [1, 2]


def test_an_error_is_the_users_own_with_the_traceback_of_the_worker(pool: stook.Pool) -> None:
    with pytest.raises(KeyError) as caught:
        pool.apply(calls.fail_at_three, (3,))
    assert caught.value.args == (3,)
    cause = caught.value.__cause__
    assert type(cause) is RemoteTraceback
    assert "raise KeyError(x)" in cause.tb


@pytest.mark.parametrize("chunksize", [None, 1, 4])
def test_map_raises_the_first_error_when_all_is_done(
    pool: stook.Pool, tmp_path: Path, chunksize: int | None
) -> None:
    items = [(str(tmp_path), n) for n in range(20)]
    with pytest.raises(ValueError, match=r"^5$"):
        pool.map(calls.touch_or_fail, items, chunksize)
    done = {int(path.name) for path in tmp_path.iterdir()}
    assert done == set(range(20)) - {5, 15}


def test_an_argument_that_cannot_be_pickled_is_an_error_of_its_own_call(pool: stook.Pool) -> None:
    with pytest.raises(RuntimeError, match="not to be pickled"):
        pool.apply(calls.same, (calls.Unpicklable(),))
    # Many small calls travel together; the others are made all the same.
    items: list[Any] = list(range(2000))
    bad = {3, 700, 1999}
    for index in bad:
        items[index] = calls.Unpicklable()
    results = pool.imap(calls.same, items)
    for index in range(2000):
        if index in bad:
            with pytest.raises(RuntimeError, match="not to be pickled"):
                next(results)
        else:
            assert next(results) == index
    with pytest.raises(RuntimeError, match="not to be pickled"):
        pool.map(calls.same, items, 1)


def test_a_result_that_cannot_be_pickled_is_an_error_as_in_the_original(pool: stook.Pool) -> None:
    for made in (calls.make_unpicklable, lambda: (lambda: 3)):
        with pytest.raises(MaybeEncodingError) as caught:
            pool.apply(made)
        assert caught.value.exc is not None and " at 0x" in caught.value.value
    with pytest.raises(MaybeEncodingError, match="not to be pickled"):
        pool.map(calls.make_unpicklable, range(3))
    with pytest.raises((pickle.PicklingError, AttributeError)) as raised:  # by the call itself
        pool.apply(pickle.dumps, (lambda: 3,))
    assert not isinstance(raised.value, MaybeEncodingError)
    assert pool.apply(calls.square, (3,)) == 9


@pytest.mark.parametrize("chunksize", [1, 4])
def test_what_raises_as_it_is_unpickled_is_an_error_in_its_place(
    pool: stook.Pool, chunksize: int
) -> None:
    with pytest.raises(OSError, match="cannot be read"):  # in the worker
        pool.apply(calls.same, (calls.RaisesWhenUnpickled(),))
    with pytest.raises(OSError, match="cannot be read"):  # here
        pool.apply(calls.raise_unpickling)
    arguments = [0] * 20 + [calls.RaisesWhenUnpickled()] + [0] * 20
    numbers = [0] * 20 + [3] + [0] * 20
    for results, lost in (
        # Arguments of a chunk are unpickled together.
        (pool.imap(calls.same, arguments, chunksize), [*range(20, 20 + chunksize)]),
        (pool.imap(calls.raise_unpickling, numbers, chunksize), [20]),
    ):
        failed = []
        for index in range(41):
            try:
                assert next(results) == 0
            except OSError:
                failed.append(index)
        assert failed == lost
    with pytest.raises(OSError, match="cannot be read"):
        pool.map(calls.same, arguments, chunksize)
    with pytest.raises(OSError, match="cannot be read"):
        pool.map(calls.raise_unpickling, range(10), chunksize)


def test_a_function_that_cannot_be_sent_is_an_error_of_the_call(pool: stook.Pool) -> None:
    lock = threading.Lock()
    result = pool.apply_async(lambda: lock)
    with pytest.raises(stook.StookError, match="lock"):
        result.get()
    with pytest.raises(TypeError, match="not callable"):
        pool.apply(5)  # type: ignore[arg-type]


def test_an_initializer_that_fails_is_the_error_of_every_call() -> None:
    with stook.Pool(2, calls.raise_error, (ValueError("no database"),)) as pool:
        for _ in range(2):
            with pytest.raises((ValueError, stook.PoolBroken)) as caught:
                pool.apply(calls.square, (3,))
            error: BaseException | None = caught.value
            while error is not None and "no database" not in str(error):
                error = error.__cause__
            assert error is not None


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"processes": 0}, ValueError, "Number of processes must be at least 1"),
        ({"processes": -1}, ValueError, "Number of processes must be at least 1"),
        ({"processes": "2"}, TypeError, "processes must be an integer, got '2'"),
        ({"initializer": 3}, TypeError, "initializer must be a callable"),
        ({"maxtasksperchild": 0}, ValueError, "maxtasksperchild must be a positive int or None"),
        ({"maxtasksperchild": "12"}, ValueError, "maxtasksperchild must be a positive int"),
        ({"maxtasksperchild": 0.5}, ValueError, "maxtasksperchild must be a positive int"),
        ({"options": 3}, TypeError, "options must be a stook.MultiprocessingOptions"),
        ({"start_method": "threads"}, ValueError, "start_method"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        stook.Pool(**{"processes": 1, **arguments})


def test_bad_chunk_sizes(pool: stook.Pool) -> None:
    for method in (pool.map, pool.map_async, pool.imap, pool.imap_unordered, pool.starmap):
        with pytest.raises(ValueError, match=r"Chunksize must be 1\+, not 0"):
            method(calls.square, [1], 0)


def test_a_result_tells_whether_it_is_there(pool: stook.Pool, tmp_path: Path) -> None:
    fifo = calls.fifo(tmp_path, "gate")
    result = pool.apply_async(calls.wait_for, (fifo, 3))
    assert not result.ready()
    with pytest.raises(ValueError, match="not ready"):
        result.successful()
    with pytest.raises(multiprocessing.TimeoutError):
        result.get(timeout=0.01)
    result.wait(0.01)
    assert not result.ready()
    Path(fifo).write_bytes(b"go")
    assert result.get(DEADLINE) == 3
    assert result.ready() and result.successful()
    failed = pool.apply_async(calls.fail_at_three, (3,))
    failed.wait()
    assert not failed.successful()


def test_callbacks_run_before_the_result_is_there(pool: stook.Pool) -> None:
    told: list[Any] = []
    failed: list[BaseException] = []
    pool.map_async(
        calls.square, range(5), callback=told.append, error_callback=failed.append
    ).wait()
    assert told == [[0, 1, 4, 9, 16]] and failed == []
    result = pool.apply_async(
        calls.fail_at_three, (3,), callback=told.append, error_callback=failed.append
    )
    with pytest.raises(KeyError):
        result.get()
    assert len(told) == 1 and [type(error) for error in failed] == [KeyError]


def test_a_callback_comes_without_anybody_waiting(pool: stook.Pool) -> None:
    told = threading.Event()
    pool.apply_async(calls.square, (3,), callback=lambda _: told.set())
    assert told.wait(DEADLINE)


def test_a_callback_that_raises_is_reported_and_the_pool_goes_on(
    pool: stook.Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    reported: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", lambda args: reported.append(args.exc_value))

    def callback(value: int) -> None:
        raise SystemExit(value) if value == 1 else ValueError(value)

    results = [pool.apply_async(calls.square, (n,), callback=callback) for n in (1, 2)]
    # A thread of the pool calls them here.
    for result in results:
        while not result.ready():
            pass
    assert [result.get() for result in results] == [1, 4]
    assert {type(error) for error in reported} == {SystemExit, ValueError}
    assert pool.apply(calls.square, (3,)) == 9


def test_a_callback_may_use_the_pool(pool: stook.Pool) -> None:
    found: list[Any] = []

    def callback(value: int) -> None:
        found.append(pool.apply(calls.square, (value,)))
        found.append(pool.map(calls.square, range(value)))
        found.append(list(pool.imap(calls.square, iter(range(value)))))

    pool.apply_async(calls.square, (2,), callback=callback).get(DEADLINE)
    squares = [0, 1, 4, 9]
    assert found == [16, squares, squares]
