"""`stook.recommend`: threads or processes, measured on a sample."""

from __future__ import annotations

import contextlib
import itertools
import numbers
import os
import random
import threading
import time
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from typing import Any

from .loader import DataLoader
from .options import MultiprocessingOptions, MultithreadingOptions, _shown, check_int

__all__ = ["Recommendation", "recommend"]

_OWNER = "recommend"

# Less than this is not worth threads or processes, which have costs that a sample does not show.
_WORTH_WORKERS = 1.15
# Threads that are this near to processes are better: nothing is pickled, started or kept twice.
_NEARLY = 0.9

# Seconds between two looks at the GIL, in the mean; less where there is less time.
_PAUSE = 0.004
_LOOKS = 25


@dataclass(frozen=True, slots=True)
class Recommendation:
    """What `recommend` measured, and what follows from it; `str()` says it in words.

    Attributes:
      name: Of the function.
      num_workers: Threads, and worker processes, that were tried.
      one_thread: Calls a second in this thread.
      threads: Calls a second in `num_workers` threads.
      processes: Calls a second in as many worker processes, or `None` if `obstacle` was in the way.
      gil_share: Share of the time of a call in which it holds the GIL, 0 to 1.
      obstacle: Why the function cannot run in worker processes, or "".
    """

    name: str
    num_workers: int
    one_thread: float
    threads: float
    processes: float | None
    gil_share: float
    obstacle: str = ""

    @property
    def use(self) -> str:
        """`"one thread"`, `"threads"` or `"processes"`."""
        # While one call holds the GIL no other can, so threads reach no more than this; that they
        # seemed to says that the machine was busy. A tenth for what the share is off.
        bound = 1.1 * self.one_thread / max(self.gil_share, 0.01)
        threads = min(self.threads, bound)
        processes = self.processes or 0.0
        if max(threads, processes) < _WORTH_WORKERS * self.one_thread:
            return "one thread"
        return "threads" if threads >= _NEARLY * processes else "processes"

    @property
    def options(self) -> MultiprocessingOptions | MultithreadingOptions:
        """What to pass as `DataLoader(..., options=...)`."""
        if self.use == "threads":
            return MultithreadingOptions(self.num_workers)
        return MultiprocessingOptions(self.num_workers if self.use == "processes" else 0)

    def __str__(self) -> str:
        held = f"{100 * self.gil_share:.0f} %"
        lines = [
            f"{self.name}: {_time_of(1 / self.one_thread)} a call, {held} of it with the GIL held",
            _line("one thread", self.one_thread, self.one_thread),
            _line(f"{self.num_workers} threads", self.threads, self.one_thread),
        ]
        if self.processes is None:
            lines.append(f"  {self.num_workers} processes: not possible: {self.obstacle}")
        else:
            lines.append(_line(f"{self.num_workers} processes", self.processes, self.one_thread))
        lines.append(f"Use {self._advice()}.")
        return "\n".join(lines)

    def _advice(self) -> str:
        by_threads = f"{self.threads / self.one_thread:.1f} times as fast as one thread"
        if self.processes is None:
            other = "it cannot run in processes"
        else:
            other = f"processes are {self.processes / self.one_thread:.1f} times as fast"
        if self.use == "threads":
            return (
                f"threads (options=stook.MultithreadingOptions({self.num_workers}) or"
                f" stook.ThreadPool): they are {by_threads}, {other}"
            )
        if self.use == "processes":
            return (
                f"worker processes (options=stook.MultiprocessingOptions({self.num_workers}) or"
                f" stook.Pool): each has a GIL of its own; {other} as one thread"
            )
        return (
            f"one thread: {self.num_workers} threads are {by_threads}, and {other}. The call is too"
            " short, or the processors are busy"
        )


def recommend(
    fn: Callable[[Any], Any],
    sample_inputs: Iterable[Any],
    *,
    num_workers: int | None = None,
    seconds: float = 1.0,
) -> Recommendation:
    """Runs `fn` on sample inputs in one thread, in threads and in processes, and says what to use.

    The share of the time in which `fn` holds the GIL is measured by a thread that asks for the GIL
    at random moments and notes whether it had to wait. Of stretches with the GIL that are shorter
    than about 0.2 ms it sees too few.

    It measures this machine as it is now: other programs that run at the same time count too, and
    the processes are measured when they are up, without their start.

    Args:
      fn: Called with one input. It is called several times with each.
      sample_inputs: Inputs as they come in the program, at least one; taken into a list.
      num_workers: Threads, and processes, to try; `None`: as many as this process may use
        processors.
      seconds: How long to measure, in all. Each way makes at least one call for each worker.

    Returns:
      The figures and what follows from them. It is printed as well.

    Raises:
      ValueError: There are no inputs, or `seconds` is not positive.
      TypeError: `fn` is not callable.
      Exception: What `fn` raises for one of the inputs.

    Example:
      >>> import stook
      >>> found = stook.recommend(sum, [range(1000)], num_workers=1, seconds=0.05)
      sum: ... a call, ... % of it with the GIL held
        one thread ... calls/s    1.00x
        1 threads ... calls/s ...
        1 processes ... calls/s ...
      Use ...
      >>> found.use in ("one thread", "threads", "processes")
      True
    """
    if not callable(fn):
        raise TypeError(f"{_OWNER}: fn must be a callable that takes one input, got {_shown(fn)}")
    if num_workers is None:
        num_workers = len(os.sched_getaffinity(0))
    num_workers = check_int(_OWNER, "num_workers", num_workers, 1)
    if not isinstance(seconds, numbers.Real):
        raise TypeError(f"{_OWNER}: seconds must be a number, got {_shown(seconds)}")
    if not seconds > 0:
        raise ValueError(f"{_OWNER}: seconds must be more than 0, got {_shown(seconds)}")
    try:
        inputs = list(sample_inputs)
    except TypeError:
        raise TypeError(
            f"{_OWNER}: sample_inputs must be an iterable of inputs for fn, got"
            f" {_shown(sample_inputs)}"
        ) from None
    if not inputs:
        raise ValueError(f"{_OWNER}: sample_inputs is empty; pass inputs as they really come")
    fn(inputs[0])  # compiles, fills caches
    one_thread, gil_share = _in_one_thread(fn, inputs, seconds / 3)
    threads = _in_loader(fn, inputs, MultithreadingOptions(num_workers), seconds / 3)
    processes: float | None = None
    obstacle = ""
    try:
        processes = _in_loader(fn, inputs, MultiprocessingOptions(num_workers), seconds / 3)
    except Exception as error:  # of fn's there was none here, so it is the way there or back
        obstacle = f"{type(error).__name__}: {error}".split("\n")[0]
    name = getattr(fn, "__qualname__", None) or type(fn).__name__
    found = Recommendation(name, num_workers, one_thread, threads, processes, gil_share, obstacle)
    print(found)
    return found


def _in_one_thread(
    fn: Callable[[Any], Any], inputs: list[Any], seconds: float
) -> tuple[float, float]:
    """Calls a second, and the share of the time that the GIL is held."""
    watch = _GilWatch(min(_PAUSE, seconds / _LOOKS))
    calls = 0
    with watch:
        start = time.perf_counter()
        for item in itertools.cycle(inputs):
            fn(item)
            calls += 1
            elapsed = time.perf_counter() - start
            if elapsed >= seconds:
                break
    return calls / elapsed, watch.share


def _in_loader(
    fn: Callable[[Any], Any],
    inputs: list[Any],
    options: MultiprocessingOptions | MultithreadingOptions,
    seconds: float,
) -> float:
    """Calls a second by so many workers."""
    if isinstance(options, MultithreadingOptions):
        workers = options.num_threads
    else:
        workers = options.num_workers
    # Enough indices that passes do not end: what is sent is the inputs, once.
    source = _Repeated(inputs)
    with DataLoader(source, fn, options=options, seed=None, ordered=False) as loader:
        elements = iter(loader)
        for _ in range(workers):  # all are up, and have compiled what they need
            next(elements)
        start = time.perf_counter()
        calls = 0
        while True:
            next(elements)
            calls += 1
            elapsed = time.perf_counter() - start
            if elapsed >= seconds and calls >= workers:
                return calls / elapsed


class _Repeated:
    """The inputs, again and again."""

    def __init__(self, inputs: list[Any]) -> None:
        self._inputs = inputs

    def __len__(self) -> int:
        return 1 << 40

    def __getitem__(self, index: int) -> Any:
        return self._inputs[index % len(self._inputs)]


class _GilWatch:
    """Finds the share of the time in which other threads hold the GIL, while it is entered.

    A thread sleeps, which it does without the GIL, and then needs the GIL to go on. If it comes
    later than a sleep does when nothing else runs, which is found out first, the GIL was held.

    It sleeps for random times: with equal ones, of which each begins when the GIL is let go, it
    would always look at the same stretch of a function that is called again and again. Each look
    stands for the time that it took, or long waits, which make looks rare, would count too little.
    """

    def __init__(self, mean_pause: float) -> None:
        self._mean_pause = mean_pause
        looks = _looks(0.001)
        usual = sorted(late for _, late in itertools.islice(looks, 30))
        looks.close()
        # Nine in ten of the undisturbed looks are below this, and then some.
        self._limit = usual[len(usual) * 9 // 10] + 1e-4
        self._held = self._total = 0.0
        self._stop = False
        self._thread = threading.Thread(target=self._run, name="stook-gil-watch", daemon=True)

    def _run(self) -> None:
        looks = _looks(self._mean_pause)
        for took, late in looks:
            if self._stop:
                break
            self._total += took
            if late > self._limit:
                self._held += took
        looks.close()

    @property
    def share(self) -> float:
        """Between 0 and 1; 0 if there was no time for a look."""
        return self._held / self._total if self._total > 0 else 0.0

    def __enter__(self) -> _GilWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop = True
        self._thread.join()


def _looks(mean_pause: float) -> Generator[tuple[float, float], None, None]:
    """For each look: the seconds that it took, and how late it came.

    What this thread waited for a processor is no waiting for the GIL; the kernel tells it apart.
    """
    draw = random.Random(0).expovariate  # not the program's own generator
    with contextlib.ExitStack() as stack:
        schedule: int | None = None
        with contextlib.suppress(OSError):  # a kernel that keeps no such figures
            file = stack.enter_context(open("/proc/thread-self/schedstat", "rb", buffering=0))
            schedule = file.fileno()
        while True:
            pause = draw(1 / mean_pause)
            queued = _seconds_queued(schedule)
            before = time.perf_counter()
            time.sleep(pause)
            took = time.perf_counter() - before
            yield took, took - pause - (_seconds_queued(schedule) - queued)


def _seconds_queued(schedule: int | None) -> float:
    """How long the thread whose `schedstat` this is was ready to run, and did not."""
    return 0.0 if schedule is None else int(os.pread(schedule, 100, 0).split()[1]) * 1e-9


def _line(way: str, rate: float, one_thread: float) -> str:
    return f"  {way:<14}{rate:>12,.1f} calls/s{rate / one_thread:>8.2f}x"


def _time_of(seconds: float) -> str:
    for unit, name in ((1.0, "s"), (1e-3, "ms")):
        if seconds >= unit:
            return f"{seconds / unit:.3g} {name}"
    return f"{seconds * 1e6:.3g} µs"
