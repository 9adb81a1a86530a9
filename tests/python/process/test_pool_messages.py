"""What pools, executors and their kin say of wrong arguments: the name, the value, what to do."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import threading
from collections.abc import Callable, Iterator
from multiprocessing.pool import MaybeEncodingError
from typing import Any

import pytest

import stook

LIMITED = stook.MultiprocessingOptions(timeout=5)
INITARGS = r"initargs must be the initializer's arguments, as in \(3,\), got 3"

REFUSED: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "Pool(0)": (lambda: stook.Pool(0), ValueError, "Number of processes .* at least 1, got 0"),
    "Pool(2000)": (lambda: stook.Pool(2000), ValueError, "processes must be at most 1024, got"),
    "Pool(1.5)": (lambda: stook.Pool(1.5), TypeError, "processes must be an integer, got 1.5"),
    "Pool initargs": (lambda: stook.Pool(1, abs, 3), TypeError, INITARGS),
    "Pool initializer": (lambda: stook.Pool(1, 3), TypeError, "initializer must be .*, got 3"),
    "Pool context": (
        lambda: stook.Pool(1, None, (), None, "thread"),
        ValueError,
        "context must be 'fork', 'forkserver' or 'spawn', got 'thread'",
    ),
    "Pool context and method": (
        lambda: stook.Pool(1, context="fork", start_method="spawn"),
        TypeError,
        "context and start_method='spawn' say the same",
    ),
    "Pool timeout": (lambda: stook.Pool(1, options=LIMITED), ValueError, "options: timeout=5 is"),
    "executor 0": (
        lambda: stook.ProcessPoolExecutor(0),
        ValueError,
        "max_workers must be greater than 0, got 0",
    ),
    "executor 1.5": (
        lambda: stook.ProcessPoolExecutor(1.5),
        TypeError,
        "max_workers must be an integer, got 1.5",
    ),
    "executor 10**9": (
        lambda: stook.ProcessPoolExecutor(10**9),
        ValueError,
        "max_workers must be at most 1024, got 1000000000",
    ),
    "executor initargs": (
        lambda: stook.ProcessPoolExecutor(1, None, abs, 3),
        TypeError,
        INITARGS,
    ),
    "executor tasks": (
        lambda: stook.ProcessPoolExecutor(1, max_tasks_per_child="a"),
        TypeError,
        "max_tasks_per_child must be an integer, got 'a'",
    ),
    "executor timeout": (
        lambda: stook.ProcessPoolExecutor(1, options=LIMITED),
        ValueError,
        "options: timeout=5 is a limit for the items of a loader",
    ),
    "executor map chunksize": (
        lambda: stook.ProcessPoolExecutor(1).map(abs, [1], chunksize="a"),
        TypeError,
        "chunksize must be an integer, got 'a'",
    ),
    "executor map buffersize": (
        lambda: stook.ProcessPoolExecutor(1).map(abs, [1], buffersize=0),
        ValueError,
        "buffersize must be None or > 0, got 0",
    ),
    "executor map timeout": (
        lambda: stook.ProcessPoolExecutor(1).map(abs, [1], timeout="a"),
        TypeError,
        "timeout must be a number of seconds or None, got 'a'",
    ),
    "ThreadPool initargs": (lambda: stook.ThreadPool(1, abs, 3), TypeError, INITARGS),
    "pure initargs": (
        lambda: stook.pure(initializer=abs, initargs=3)(len),
        TypeError,
        INITARGS,
    ),
    "pure timeout": (lambda: stook.pure(options=LIMITED)(len), ValueError, "options: timeout=5"),
    "pure without a loop": (
        lambda: stook.pure(len).call_async([]),
        RuntimeError,
        r"no running event loop: .* call len\(\) itself",
    ),
    "iterate mp_context": (
        lambda: stook.iterate_in_subprocess(list, mp_context="x"),
        ValueError,
        "iterate_in_subprocess: mp_context must be 'fork', 'forkserver' or 'spawn', got 'x'",
    ),
    "iterate fn": (
        lambda: iter(stook.iterate_in_subprocess(lambda: [lock])),
        stook.StookError,
        r"^fn .*cannot be sent",
    ),
    "recommend inputs": (
        lambda: stook.recommend(abs, 3),
        TypeError,
        "recommend: sample_inputs must be an iterable of inputs for fn, got 3",
    ),
    "recommend seconds": (
        lambda: stook.recommend(abs, [1], seconds="a"),
        TypeError,
        "recommend: seconds must be a number, got 'a'",
    ),
}

lock = threading.Lock()


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name: str) -> None:
    call, error, text = REFUSED[name]
    with pytest.raises(error, match=text):
        call()


@pytest.fixture(params=["processes", "threads"])
def pool(request: pytest.FixtureRequest) -> Iterator[Any]:
    kind: Any = stook.Pool if request.param == "processes" else stook.ThreadPool
    made = kind(1)
    yield made
    made.terminate()
    made.join()
    vars(made).clear()  # pytest holds the pool, which holds descriptors of its workers


@pytest.mark.parametrize("chunksize", ["a", 2.5, None])
def test_chunk_sizes(pool: Any, chunksize: Any) -> None:
    methods = [pool.imap, pool.imap_unordered]
    if chunksize is not None:
        methods += [pool.map, pool.map_async, pool.starmap]
    for method in methods:
        with pytest.raises(TypeError, match=f"chunksize must be an integer, got {chunksize!r}"):
            method(abs, [1], chunksize)


def test_callbacks(pool: Any) -> None:
    for how in ({"callback": 3}, {"error_callback": 3}):
        (name,) = how
        for call in (
            lambda how=how: pool.apply_async(abs, (1,), **how),
            lambda how=how: pool.map_async(abs, [1], **how),
        ):
            with pytest.raises(TypeError, match=f"^{name} must be a callable or None, got 3"):
                call()


def test_timeouts(pool: Any) -> None:
    text = "timeout must be a number of seconds or None, got 'a'"
    result = pool.apply_async(abs, (-1,))
    for call in (result.get, result.wait, pool.imap(abs, [1]).next):
        with pytest.raises(TypeError, match=text):
            call("a")
    assert result.get(30) == 1


def test_a_map_of_nothing_calls_nobody_back(pool: Any) -> None:
    called: list[Any] = []
    assert pool.map_async(abs, [], callback=called.append).get(30) == []
    assert not called


def test_a_context_is_a_start_method() -> None:
    inherited = threading.Lock()  # only a fork has it
    with stook.Pool(1, context=multiprocessing.get_context("fork"), initializer=inherited.locked):
        pass
    with stook.Pool(1, inherited.locked, (), None, "fork"):
        pass
    with pytest.raises(stook.StookError, match=r"initializer.* cannot be sent"):
        stook.Pool(1, inherited.locked)


def fail() -> None:
    raise ZeroDivisionError("of the initializer")


def test_an_initializers_error_says_whose_it_is() -> None:
    with stook.Pool(1, fail) as pool, pytest.raises(ZeroDivisionError) as caught:
        pool.map(abs, [1])
    notes = getattr(caught.value, "__notes__", [])
    assert any("by the initializer of a pool" in note for note in notes)


def test_results_and_arguments_that_cannot_be_pickled() -> None:
    with stook.Pool(1) as pool:
        with pytest.raises(MaybeEncodingError, match=r"<unlocked _thread\.lock object at"):
            pool.apply(lambda: [1, __import__("threading").Lock()])
        with open(__file__) as file, pytest.raises(TypeError, match="send its path and open it"):
            pool.apply(len, (file,))


def test_a_pool_in_its_own_worker() -> None:
    with stook.Pool(1) as pool:
        with pytest.raises(stook.StookError, match="make another one here"):
            pool.apply(lambda: pool.map(abs, [1]))


def test_an_event_loops_call() -> None:
    async def main() -> int:
        with contextlib.closing(stook.pure(max_workers=1)(abs)) as function:
            return int(await function.call_async(-3))

    assert asyncio.run(main()) == 3
