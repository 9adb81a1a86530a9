"""Signal handlers that use a pool wherever Python may run one in what takes its results in."""

from __future__ import annotations

import contextlib
import dis
import sys
from collections.abc import Callable, Iterator
from types import CodeType, FrameType, SimpleNamespace
from typing import Any

import pytest

from stook._imap import IMapFeed
from stook._streams import Job


@contextlib.contextmanager
def interrupted(code: CodeType, handler: Callable[[], None]) -> Iterator[list[str]]:
    """Runs `handler` in `code` wherever Python may: after each call and at each jump back."""
    places: list[str] = []
    before: dict[int, str] = {}

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        if frame.f_code is not code:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            last = before.get(id(frame), "")
            before[id(frame)] = dis.opname[code.co_code[frame.f_lasti]]
            if last.startswith("CALL") or "BACKWARD" in last or last == "JUMP_ABSOLUTE":
                places.append(last)
                handler()
        return trace

    previous = sys.gettrace()
    sys.settrace(trace)
    try:
        yield places
    finally:
        sys.settrace(previous)


class Sent:
    """Stands for a pool: keeps what is sent."""

    def __init__(self) -> None:
        self.jobs: list[tuple[Job, list[Any]]] = []
        self.num_workers = 2

    def submit_items(self, function: Any, items: list[Any], *, sink: Job, **how: Any) -> None:
        self.jobs.append((sink, items))

    def deliver(self, number: int) -> None:
        job, items = self.jobs[number]
        job(True, [10 * item for item in items], None)


def feed_of(sent: Any, items: range, chunksize: int = 1) -> IMapFeed:
    return IMapFeed(
        sent,
        SimpleNamespace(),  # type: ignore[arg-type]
        items,
        chunksize=chunksize,
        pace=None,
        ordered=True,
        on_done=lambda feed: None,
    )


@pytest.mark.parametrize("chunksize", [1, 3])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0), (1, 0, 2)])
def test_results_before_their_turn(order: tuple[int, ...], chunksize: int) -> None:
    sent = Sent()
    feed = feed_of(sent, range(3 * chunksize), chunksize)
    assert len(sent.jobs) == 3

    with interrupted(IMapFeed.after_delivery.__code__, feed.after_delivery) as places:
        for number in order:
            sent.deliver(number)

    assert places
    assert list(feed.ready) == [10 * item for item in range(3 * chunksize)]
    assert feed.is_over()


def test_a_handler_delivers_what_was_being_waited_for() -> None:
    sent = Sent()
    feed = feed_of(sent, range(5))
    left = [4, 3]
    sent.deliver(1)
    sent.deliver(2)

    def deliver_another() -> None:
        if left:
            sent.deliver(left.pop(0))

    with interrupted(IMapFeed.after_delivery.__code__, deliver_another):
        sent.deliver(0)
    while left:
        sent.deliver(left.pop(0))

    assert list(feed.ready) == [0, 10, 20, 30, 40]
    assert feed.is_over()
