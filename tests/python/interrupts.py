"""Signal handlers at every place where Python may run one: by tracing, in the same thread."""

from __future__ import annotations

import contextlib
import dis
import gc
import sys
from collections.abc import Callable, Collection, Iterator
from types import CodeType, FrameType
from typing import Any


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
    sys._getframe().f_trace_opcodes = True  # Python 3.12 looks whether anybody has, here and now
    sys.settrace(trace)
    try:
        yield places
    finally:
        sys.settrace(previous)


class Ctrl(KeyboardInterrupt):
    """What the signal handler raises."""


class RaisesOnce:
    """In a `with`: raises at the n-th place in `files` where a handler may, if there are so many.

    Those are after each call, at the beginning of a function and at a jump back.
    """

    def __init__(self, files: Collection[str | None], n: int) -> None:
        self.left = n
        self.place = "nowhere"
        self._files = files
        self._before: dict[int, str] = {}

    def __enter__(self) -> None:
        self._previous = sys.gettrace()
        gc.disable()  # which might finalize, in here, what an earlier one has left
        sys._getframe().f_trace_opcodes = True  # as above
        sys.settrace(self._trace)

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._previous)
        gc.enable()

    def _trace(self, frame: FrameType, event: str, argument: object) -> Any:
        code = frame.f_code
        if code.co_filename not in self._files:
            return None
        frame.f_trace_opcodes = True
        if event == "call":
            self._before[id(frame)] = "RESUME"
        elif event == "opcode":
            last = self._before[id(frame)]
            self._before[id(frame)] = dis.opname[code.co_code[frame.f_lasti]]
            if last.startswith("CALL") or "BACKWARD" in last or last in ("RESUME", "JUMP_ABSOLUTE"):
                self.left -= 1
                if self.left == 0:
                    self.place = f"{code.co_name}, line {frame.f_lineno}"
                    raise Ctrl
        return self._trace


def every_place(files: Collection[str | None], run: Callable[[RaisesOnce], None]) -> None:
    """Calls `run` with the first place, the second, ... until all were tried."""
    number = 0
    while True:
        number += 1
        once = RaisesOnce(files, number)
        run(once)
        if once.left > 0:
            assert number > 3
            return
