"""An exception of a signal handler, anywhere in `next()`: every element still comes, once.

CPython runs handlers behind calls, at a function's beginning and where a loop turns. A tracer
raises at each such place of Stook's own code, one after the other.
"""

from __future__ import annotations

import contextlib
import dis
import itertools
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest
import tqdm.auto

import stook

PACKAGE = str(Path(stook.__file__).parent)
CALLS = {"CALL", "CALL_KW", "CALL_FUNCTION", "CALL_FUNCTION_KW", "CALL_METHOD", "CALL_FUNCTION_EX"}
JUMPS = {"JUMP_BACKWARD", "JUMP_ABSOLUTE"}
MOST_PLACES = 2000


@cache
def places(code: CodeType) -> frozenset[int]:
    """Offsets before which CPython looks for signals."""
    found = set()
    before = "RESUME" if sys.version_info < (3, 11) else ""  # which Python 3.10 has not
    for instruction in dis.get_instructions(code):
        if before in CALLS or before == "RESUME":
            found.add(instruction.offset)
        if instruction.opname in JUMPS:
            found.add(instruction.argval)
        before = instruction.opname
    return frozenset(found)


class Interrupt:
    """Raises at a place of this thread's Stook code, and knows whether it came to it."""

    def __init__(self, place: int) -> None:
        self._left = place
        self.place: tuple[str, int] | None = None
        # Held: CPython 3.11 has only borrowed them while they run.
        self._tracers = self._begin, self._step

    def _begin(self, frame: FrameType, event: str, _: Any) -> Any:
        if self.place is not None or not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return self._tracers[1]

    def _step(self, frame: FrameType, event: str, _: Any) -> Any:
        if event == "opcode" and self.place is None and frame.f_lasti in places(frame.f_code):
            if not self._left:
                self.place = frame.f_code.co_name, frame.f_lineno
                raise KeyboardInterrupt
            self._left -= 1
        return self._tracers[1]

    def __enter__(self) -> Interrupt:
        self._before = sys.gettrace()
        sys.settrace(self._tracers[0])
        return self

    def __exit__(self, *_: Any) -> None:
        sys.settrace(self._before)


class Iterable:
    def __iter__(self) -> Iterator[int]:
        return iter(range(4))


class Bar:
    def __init__(self, **settings: Any) -> None:
        pass

    def update(self, count: int) -> None:
        pass

    def set_postfix_str(self, text: str, refresh: bool) -> None:
        pass

    def close(self) -> None:
        pass


def load(number: int) -> Any:
    if number == 1:
        raise ValueError(number)
    return stook.SKIP if number == 2 else number


SOURCES: dict[str, Callable[[], dict[str, Any]]] = {
    "indexed": lambda: {"source": range(4)},
    "iterable": lambda: {"source": Iterable()},
    "sampler": lambda: {"source": range(9), "sampler": [3, 1, 2, 0]},
    "shards": lambda: {"source": lambda shard, count: iter(range(shard, 4, count))},
    "filled": lambda: {
        "source": range(4),
        "batch_size": 2,
        "fill_batches": True,
        "on_error": "skip",
        "collate": list,
    },
    "too many errors": lambda: {"source": range(4), "max_errors": 0},
}
HERE, THREADS = stook.MultithreadingOptions(0), stook.MultithreadingOptions(1)
WAYS: dict[str, dict[str, Any]] = {
    "here": {"options": HERE},
    "threads": {"options": THREADS},
    "unordered": {"options": THREADS, "ordered": False},
    "prefetch_to": {"options": HERE},
    "progress": {"options": HERE, "progress": True},
    "profiling": {"options": stook.MultithreadingOptions(0, enable_profiling=True)},
}


CASES = [
    *((source, way) for source in SOURCES for way in ("here", "threads")),
    ("indexed", "unordered"),
    ("indexed", "prefetch_to"),
    ("shards", "prefetch_to"),
    ("indexed", "progress"),
    ("shards", "progress"),
    ("indexed", "profiling"),
    ("iterable", "profiling"),
]


def outcome(elements: Iterator[Any]) -> str:
    """Of `next()`, as a text that can be compared."""
    try:
        return str(next(elements))
    except StopIteration:
        return "END"
    except (ValueError, stook.TooManyErrors) as error:
        return type(error).__name__


def to_the_end(elements: Any, found: list[str]) -> list[str]:
    found = found.copy()
    while found[-1:] != ["END"]:
        try:
            found.append(outcome(elements))
        except stook.StookError as error:
            assert "broken off" in str(error), error
            elements.set_state(elements.get_state())
    return found


@pytest.mark.parametrize(("source", "way"), CASES)
def test_every_element_comes_once_and_states_agree(
    source: str, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tqdm.auto, "tqdm", Bar)
    monkeypatch.setattr(sys, "stderr", None)  # where profiles are printed
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)  # it may come within __del__

    def begun(loader: stook.DataLoader) -> Any:
        elements = iter(loader)
        return elements.prefetch_to(lambda element: element) if way == "prefetch_to" else elements

    with (
        stook.DataLoader(transform=load, **SOURCES[source](), **WAYS[way]) as loader,
        stook.DataLoader(transform=load, **SOURCES[source]()) as other,
    ):
        expected = to_the_end(begun(loader), [])
        reader = iter(other)
        for before in range(len(expected)):
            for place in itertools.count():
                assert place < MOST_PLACES
                elements = begun(loader)
                found = [outcome(elements) for _ in range(before)]
                with Interrupt(place) as interrupt:
                    with contextlib.suppress(KeyboardInterrupt):
                        found.append(outcome(elements))
                if interrupt.place is None:
                    break
                state = elements.get_state()
                assert to_the_end(elements, found) == expected, (before, interrupt.place)
                if source != "too many errors":  # what has failed is no part of a state
                    reader.set_state(state)
                    going_on = to_the_end(reader, found)
                    if way == "progress" and going_on != expected:
                        # The error came, and was kept for the next call while the bar was closed.
                        going_on.insert(len(found), "ValueError")
                    assert going_on == expected, (before, interrupt.place)
