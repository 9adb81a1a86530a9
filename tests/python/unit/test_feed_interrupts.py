"""Signal handlers wherever Python may run one in what sends a pool's items and takes its results.

Some use the pool; others raise, as Ctrl-C does.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

import stook._imap
import stook._map
import stook._streams
from interrupts import Ctrl, RaisesOnce, every_place, interrupted
from stook._imap import IMapFeed
from stook._map import MapFeed, Result
from stook._streams import Feed, Job

FILES = {module.__file__ for module in (stook._streams, stook._imap, stook._map)}


class Sent:
    """Stands for a pool: keeps what is sent."""

    def __init__(self) -> None:
        self.jobs: list[tuple[Job, list[Any]]] = []
        self.num_workers = 2

    def submission_of_items(
        self, function: Any, items: list[Any], *, sink: Job, **how: Any
    ) -> Callable[[], None]:
        return partial(self.jobs.append, (sink, items))

    def deliver_in_background(self) -> None:
        pass

    def wake(self) -> None:
        pass

    def deliver(self, number: int) -> None:
        job, items = self.jobs[number]
        results = [10 * item for item in items]
        try:
            job(True, results, None)
        except Ctrl:  # a sink that is interrupted is called again
            job(True, results, None)
            raise

    def deliver_all(self) -> None:
        """Those that are sent meanwhile, too; each once, whoever interrupts."""
        while self.delivered < len(self.jobs):
            self.delivered += 1
            self.deliver(self.delivered - 1)

    delivered = 0


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


def check_sent(sent: Sent, count: int) -> None:
    assert [item for _, items in sent.jobs for item in items] == list(range(count))


@pytest.mark.parametrize(("items", "chunksize"), [(20, 1), (20, 3)])
def test_an_imap_that_is_interrupted_anywhere_loses_and_repeats_nothing(
    items: int, chunksize: int
) -> None:
    def run(once: RaisesOnce) -> None:
        sent = Sent()
        feed = feed_of(sent, range(items), chunksize)
        taken: list[int] = []
        with contextlib.suppress(Ctrl), once:
            for _ in range(4):
                sent.deliver_all()
                feed.more()
        for _ in range(items):
            taken += feed.ready
            feed.ready.clear()
            feed.more()
            sent.deliver_all()
        taken += feed.ready
        assert taken == [10 * item for item in range(items)]
        assert feed.is_over()
        check_sent(sent, items)

    every_place(FILES, run)


def test_a_map_that_is_interrupted_anywhere_loses_and_repeats_nothing() -> None:
    def run(once: RaisesOnce) -> None:
        sent: Any = Sent()
        function: Any = SimpleNamespace()
        feed = MapFeed(sent, function, list(range(20)), chunksize=3, jobs_ahead=2)
        result = Result(SimpleNamespace(wait=lambda done, timeout: None))  # type: ignore[arg-type]
        with contextlib.suppress(Ctrl), once:
            feed.start(result, 20)
            sent.deliver_all()
        if not sent.jobs:  # no result was given out
            return
        feed.after_delivery()
        sent.deliver_all()
        assert result.get() == [10 * item for item in range(20)]
        check_sent(sent, 20)

    every_place(FILES, run)


def test_items_of_a_thread_that_draws_are_neither_lost_nor_repeated() -> None:
    def run(once: RaisesOnce) -> None:
        gate = threading.Event()

        def source() -> Iterator[int]:
            gate.wait()
            yield from ()

        sent = Sent()
        feed = feed_of(sent, source(), 2)  # type: ignore[arg-type]
        feed._buffer.extend(range(11))  # as that thread does
        with contextlib.suppress(Ctrl), once:
            feed._send_buffered()
            sent.deliver_all()
        gate.set()
        for thread in threading.enumerate():
            if thread.name == "stook-pool-source":
                thread.join()
        feed._send_buffered()
        sent.deliver_all()
        assert list(feed.ready) == [10 * item for item in range(11)]
        assert feed.is_over()
        check_sent(sent, 11)

    every_place(FILES, run)


def test_the_rest_of_a_job_whose_worker_died_is_sent_once() -> None:
    def run(once: RaisesOnce) -> None:
        sent = Sent()
        feed = feed_of(sent, range(6), 1)
        job = Job(feed, feed._jobs, feed.sent, [6, 7, 8])
        feed._jobs += 1
        feed.sent += 3
        died: Any = [None] * 3, dict.fromkeys(range(3), stook.WorkerDied(0, -9, None))
        try:
            with once:
                job(True, *died)
        except Ctrl:
            job(True, *died)
        sent.deliver_all()
        assert list(feed.ready) == [10 * item for item in range(9)]
        assert feed.is_over()
        check_sent(sent, 9)

    every_place(FILES, run)


@pytest.mark.parametrize("place", [Feed.send_more, Feed._draw_job, Feed._send_made])
def test_a_handler_sends_what_was_being_sent(place: Any) -> None:
    sent = Sent()
    feed = feed_of(sent, range(50))
    with interrupted(place.__code__, feed.more) as places:
        while not feed.is_over():
            feed.ready.clear()
            feed.more()
            sent.deliver_all()

    assert places
    check_sent(sent, 50)
