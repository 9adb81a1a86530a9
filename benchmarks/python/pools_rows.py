"""What pools.py measures: each row a piece of work, done in several ways.

A way is a context manager: ``way(row, workers)`` starts its workers and gives a job, a function
that has so many results made, sees that they are the right ones, and returns. All that a worker
runs is a function of an importable module: some peers start theirs afresh.
"""

from __future__ import annotations

import asyncio
import functools
import importlib
import itertools
import multiprocessing
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from peers import ENDLESS, NotComparable
from works import array, batch, mark, small

Job = Callable[[int], None]  # with the number of results that it is to make
Way = Callable[["Row", int], AbstractContextManager[Job]]
MICROSECONDS = 200  # of Python, in one call of the row "gather"
STEPS = "STOOK_BENCHMARK_STEPS"  # environment: how many of burn's make that; measured once a run


@dataclass(frozen=True)
class Claim:
    """What Stook is to reach: the peer takes ``factor`` times Stook's time or more.

    With ``at_most`` it is the other way round: Stook takes at most ``factor`` times the peer's.
    """

    peer: str
    factor: float
    at_most: bool = False


@dataclass(frozen=True)
class Row:
    """One kind of work.

    Attributes:
        title: For tables.
        ways: Who does it.
        claims: What Stook is to reach.
        count: Results of one job; the clock is looked at between jobs.
        warm: Results made before the clock starts, at least.
        make: What a worker calls with the number of the call.
        window: Calls that are submitted and whose results have not been taken.
        chunksize: Of ``map``; ``None``: the pool's own choice.
    """

    title: str
    ways: dict[str, Way]
    claims: tuple[Claim, ...]
    count: int
    warm: int
    make: Callable[[int], Any] = array
    window: int = 18
    chunksize: int | None = None


# ---- what the workers do -------------------------------------------------------------------------


def tiny(index: int) -> int:
    return index % 251


def first_byte(argument: np.ndarray) -> int:
    return int(argument.item(0))


def burn(steps: int) -> int:
    total = 0
    for step in range(steps):
        total += step * step
    return total


async def burn_async(steps: int) -> int:
    return burn(steps)


def example(name: str) -> ModuleType:
    folder = str(Path(__file__).resolve().parents[2] / "examples")
    if folder not in sys.path:
        sys.path.append(folder)
    return importlib.import_module(name)


@functools.cache
def steps_of_burn() -> int:
    """How many make a call of 200 µs here."""
    if STEPS in os.environ:
        return int(os.environ[STEPS])
    best = float("inf")
    for _ in range(20):
        start = time.perf_counter()
        burn(10_000)
        best = min(best, time.perf_counter() - start)
    return max(1, round(10_000 * MICROSECONDS / 1e6 / best))


# ---- pools and executors, started ----------------------------------------------------------------


def stook_has(name: str) -> Any:
    try:
        stook = importlib.import_module("stook")
    except ImportError as error:
        raise NotComparable(f"stook cannot be imported: {error}") from None
    if not hasattr(stook, name):
        raise NotComparable(f"this stook has no {name}")
    return getattr(stook, name)


def standard_pool(workers: int) -> Any:
    return multiprocessing.get_context("fork").Pool(workers)


def stook_pool(workers: int) -> Any:
    return stook_has("Pool")(workers)


def standard_executor(workers: int) -> Executor:
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("fork"))


def loky_executor(workers: int) -> Executor:
    executor: Executor = loky().ProcessPoolExecutor(workers)
    return executor


def stook_executor(workers: int) -> Executor:
    executor: Executor = stook_has("ProcessPoolExecutor")(workers)
    return executor


def loky() -> ModuleType:
    """On its own, or the one that joblib carries."""
    for name in ("loky", "joblib.externals.loky"):
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    raise NotComparable("neither loky nor joblib is installed")


# ---- jobs ----------------------------------------------------------------------------------------


def look(result: Any) -> int:
    """One byte of it: what the hand-over itself costs."""
    return result if isinstance(result, int) else int(result.item(0))


def taking(results: Iterator[Any]) -> Job:
    """Takes results 0, 1, 2, ... in order, and looks at each."""
    numbers = itertools.count()

    def take(count: int) -> None:
        for index, result in zip(itertools.islice(numbers, count), results, strict=False):
            if look(result) != mark(index):
                raise SystemExit(f"result {index} starts with {look(result)}, not {mark(index)}")

    return take


@contextmanager
def one_by_one(row: Row, workers: int) -> Iterator[Job]:
    yield taking(map(row.make, itertools.count()))


def imap_with(start: Callable[[int], Any]) -> Way:
    @contextmanager
    def imap(row: Row, workers: int) -> Iterator[Job]:
        with start(workers) as pool:
            yield taking(pool.imap(row.make, itertools.count()))

    return imap


def in_window(
    submit: Callable[[int], Any], take: Callable[[Any], Any], ahead: int
) -> Iterator[Any]:
    """Results in order, at most ``ahead`` of them submitted and not yet taken."""
    waiting = deque(submit(index) for index in range(ahead))
    for index in itertools.count(ahead):
        result = take(waiting.popleft())
        waiting.append(submit(index))
        yield result


def submit_with(start: Callable[[int], Executor]) -> Way:
    @contextmanager
    def submit(row: Row, workers: int) -> Iterator[Job]:
        with start(workers) as executor:

            def make(index: int) -> Any:
                return executor.submit(row.make, index)

            yield taking(in_window(make, lambda future: future.result(), row.window))

    return submit


def arguments(row: Row) -> Callable[[int], np.ndarray]:
    """Arrays that tell the number of their call; one is used again when its result was taken."""
    made = [batch(0) for _ in range(row.window + 1)]

    def argument(index: int) -> np.ndarray:
        chosen = made[index % len(made)]
        chosen.flat[0] = mark(index)
        return chosen

    return argument


@contextmanager
def argument_alone(row: Row, workers: int) -> Iterator[Job]:
    argument = arguments(row)
    yield taking(first_byte(argument(index)) for index in itertools.count())


def argument_with(start: Callable[[int], Any]) -> Way:
    @contextmanager
    def apply(row: Row, workers: int) -> Iterator[Job]:
        argument = arguments(row)
        with start(workers) as pool:

            def submit(index: int) -> Any:
                return pool.apply_async(first_byte, (argument(index),))

            yield taking(in_window(submit, lambda result: result.get(), row.window))

    return apply


def mapping(map_all: Callable[[range], list[int]]) -> Job:
    """Checks all results of the first job, then two of each: to check all costs as much as map."""
    checked = False

    def make(count: int) -> None:
        nonlocal checked
        found = map_all(range(count))
        few = [0, count - 1] if checked else range(count)
        if len(found) != count or any(found[index] != tiny(index) for index in few):
            raise SystemExit(f"map over {count} numbers gave {len(found)} results, not all right")
        checked = True

    return make


@contextmanager
def map_alone(row: Row, workers: int) -> Iterator[Job]:
    yield mapping(lambda numbers: list(map(tiny, numbers)))


def map_with(start: Callable[[int], Any]) -> Way:
    @contextmanager
    def pool_map(row: Row, workers: int) -> Iterator[Job]:
        with start(workers) as pool:
            yield mapping(lambda numbers: pool.map(tiny, numbers, row.chunksize))

    return pool_map


def burning(burn_all: Callable[[int, int], list[int]]) -> Job:
    steps = steps_of_burn()
    expected = burn(steps)

    def make(count: int) -> None:
        found = burn_all(steps, count)
        if found != [expected] * count:
            raise SystemExit(f"{count} calls gave {len(found)} results, not all of them right")

    return make


@contextmanager
def burn_alone(row: Row, workers: int) -> Iterator[Job]:
    yield burning(lambda steps, count: [burn(steps) for _ in range(count)])


def gathered(call: Callable[[int], Any], steps: int, count: int) -> list[int]:
    async def gather() -> list[int]:
        return list(await asyncio.gather(*(call(steps) for _ in range(count))))

    return asyncio.run(gather())


@contextmanager
def burn_pure(row: Row, workers: int) -> Iterator[Job]:
    call = stook_has("pure")(max_workers=workers)(burn_async)
    yield burning(functools.partial(gathered, call))


@contextmanager
def burn_executor(row: Row, workers: int) -> Iterator[Job]:
    with standard_executor(workers) as executor:

        async def call(steps: int) -> int:
            return await asyncio.get_running_loop().run_in_executor(executor, burn, steps)

        yield burning(functools.partial(gathered, call))


def playing(
    game: ModuleType,
    play_all: Callable[[Callable[[int], np.ndarray], range], list[np.ndarray]],
) -> Job:
    last = game.play(0)[-1]

    def make(count: int) -> None:
        games = play_all(game.play, range(count))
        boards = sum(len(boards) for boards in games)
        if len(games) != count or boards < 5 * count or not np.array_equal(games[0][-1], last):
            raise SystemExit(f"{count} games gave {len(games)} results, not all of them right")

    return make


@contextmanager
def play_alone(row: Row, workers: int) -> Iterator[Job]:
    yield playing(example("self_play"), lambda play, seeds: list(map(play, seeds)))


def play_with(start: Callable[[int], Any]) -> Way:
    @contextmanager
    def play_in_pool(row: Row, workers: int) -> Iterator[Job]:
        game = example("self_play")  # first: workers find what could be imported at their start
        with start(workers) as pool:
            yield playing(game, pool.map)

    return play_in_pool


def spdl_with(start: Callable[[int], Executor]) -> Way:
    @contextmanager
    def spdl_stage(row: Row, workers: int) -> Iterator[Job]:
        try:
            from spdl.pipeline import PipelineBuilder
        except ImportError:
            raise NotComparable("spdl is not installed") from None
        with start(workers) as executor:
            pipeline = (
                PipelineBuilder()
                .add_source(range(ENDLESS))
                .pipe(row.make, executor=executor, concurrency=row.window, output_order="input")
                .add_sink(8)
                .build(num_threads=1, max_failures=0)
            )
            with pipeline.auto_stop():
                yield taking(iter(pipeline))

    return spdl_stage


# ---- the rows ------------------------------------------------------------------------------------

TITLES = {
    "one": "one process",
    "stook": "Stook",
    "pool": "multiprocessing.Pool",
    "futures": "concurrent.futures",
    "loky": "loky",
}
IMAP: dict[str, Way] = {
    "one": one_by_one,
    "pool": imap_with(standard_pool),
    "stook": imap_with(stook_pool),
}
MAP: dict[str, Way] = {
    "one": map_alone,
    "pool": map_with(standard_pool),
    "stook": map_with(stook_pool),
}
SUBMIT: dict[str, Way] = {
    "one": one_by_one,
    "futures": submit_with(standard_executor),
    "loky": submit_with(loky_executor),
    "stook": submit_with(stook_executor),
}
ROWS = {
    "imap-16": Row("`imap`, 16-byte results", IMAP, (Claim("pool", 20),), 256, 1000, small),
    "imap-150k": Row("`imap`, 150,528-byte results", IMAP, (Claim("pool", 40),), 64, 200, array),
    "imap-4.8m": Row("`imap`, 4.8 MB results", IMAP, (Claim("pool", 50),), 4, 20, batch),
    "map": Row(
        "`map`, tiny function, 100,000 ints", MAP, (Claim("pool", 1),), 100_000, 100_000, tiny
    ),
    "map-1": Row(
        "`map` with `chunksize=1`, the same",
        MAP,
        (Claim("pool", 20),),
        100_000,
        10_000,
        tiny,
        chunksize=1,
    ),
    "submit-tiny": Row(
        "`submit().result()`, tiny",
        SUBMIT,
        (Claim("futures", 5), Claim("loky", 5)),
        256,
        1000,
        tiny,
        window=64,
    ),
    "submit-150k": Row(
        "`submit().result()`, 150,528-byte results",
        SUBMIT,
        (Claim("futures", 12), Claim("loky", 15)),
        64,
        200,
        array,
    ),
    "argument-4.8m": Row(
        "4.8 MB argument, small result",
        {
            "one": argument_alone,
            "pool": argument_with(standard_pool),
            "stook": argument_with(stook_pool),
        },
        (Claim("pool", 8),),
        4,
        20,
        window=4,
    ),
    "gather": Row(
        f"`asyncio.gather` of 10,000 pure calls of {MICROSECONDS} µs",
        {"one": burn_alone, "futures": burn_executor, "stook": burn_pure},
        (Claim("one", 0.57, at_most=True),),
        10_000,
        1000,
    ),
    "self-play": Row(
        "self-play, `map` over 2,000 games of 5 to 200 boards",
        {"one": play_alone, "pool": play_with(standard_pool), "stook": play_with(stook_pool)},
        (Claim("one", 0.55, at_most=True),),
        2000,
        2000,
    ),
    "spdl": Row(
        "SPDL, one stage of 150,528-byte arrays",
        {
            "one": one_by_one,
            "futures": spdl_with(standard_executor),
            "stook": spdl_with(stook_executor),
        },
        (Claim("futures", 3),),
        64,
        200,
        array,
    ),
}
