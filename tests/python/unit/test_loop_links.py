"""The links between a pool and the event loops that wait for it, while loops come and go."""

from __future__ import annotations

import asyncio
import sys
import threading
from types import FrameType, SimpleNamespace
from typing import Any

from stook._event_loop import LoopLink, LoopLinks


def links_of_a_pool() -> LoopLinks:
    pool: Any = SimpleNamespace(num_workers=1)
    return LoopLinks(pool)


def current_of_a_new_loop(links: LoopLinks, close: bool = True) -> LoopLink:
    """What a loop that runs in a thread of its own gets."""
    got: list[LoopLink | None] = []
    loop = asyncio.new_event_loop()

    async def main() -> None:
        got.append(links.current())

    thread = threading.Thread(target=lambda: loop.run_until_complete(main()))
    thread.start()
    thread.join()
    if close:
        loop.close()
    assert got[0] is not None
    return got[0]


def test_loops_come_and_go_at_any_moment_of_a_look_at_them() -> None:
    links = links_of_a_pool()
    came = [current_of_a_new_loop(links, close=False) for _ in range(3)]

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        if event == "line" and len(came) < 20:
            came[len(came) // 2].loop.close()
            came.append(current_of_a_new_loop(links, close=False))
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        awaited = links.is_awaited()
    finally:
        sys.settrace(before)
    for link in came:
        link.loop.close()
    assert not awaited
    assert len(came) > 3


def test_a_loop_keeps_its_link_while_others_come() -> None:
    links = links_of_a_pool()

    async def main() -> None:
        mine = links.current()
        assert mine is not None
        assert mine.loop is asyncio.get_running_loop()
        assert current_of_a_new_loop(links) is not mine
        assert links.current() is mine
        assert links.current() is mine

    asyncio.run(main())


def test_no_loop_no_link() -> None:
    assert links_of_a_pool().current() is None


def test_closed_loops_are_let_go() -> None:
    links = links_of_a_pool()
    for _ in range(10):
        current_of_a_new_loop(links)
    assert len(links._links) == 1
