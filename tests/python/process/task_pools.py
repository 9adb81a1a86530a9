"""A TaskPool for a test, and what its tasks come to."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from stook._task_pool import TaskPool


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
