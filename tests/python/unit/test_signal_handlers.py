"""Whether a signal handler runs, and whether an exception is one's."""

from __future__ import annotations

import contextlib
import functools
import inspect
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

from stook._signal_handlers import raised_by_one, runs_one

SIGNAL = signal.SIGUSR1


class Stop(Exception):
    pass


def fail() -> None:
    raise Stop


def plain(number: int, frame: Any) -> None:
    fail()


def more(*arguments: Any) -> None:
    fail()


def bound_before(first: int, number: int, frame: Any) -> None:
    fail()


class Handlers:
    def method(self, number: int, frame: Any) -> None:
        fail()

    def __call__(self, number: int, frame: Any) -> None:
        fail()


def captured(number: int, frame: Any) -> None:
    def inside() -> Any:
        return number, frame

    inside()
    fail()


def resets_itself(number: int, frame: Any) -> None:
    signal.signal(SIGNAL, signal.SIG_IGN)
    fail()


HANDLERS: dict[str, Callable[..., Any]] = {
    "function": plain,
    "any arguments": more,
    "lambda": lambda *_: fail(),
    "method": Handlers().method,
    "instance": Handlers(),
    "partial": functools.partial(bound_before, 5),
    "arguments in cells": captured,
    "one that is no handler any more": resets_itself,
}


def caught(call: Callable[[], Any]) -> BaseException:
    try:
        call()
    except BaseException as error:
        return error
    raise AssertionError("nothing was raised")


@contextlib.contextmanager
def handled_by(handler: Callable[..., Any]) -> Any:
    before = signal.signal(SIGNAL, handler)
    try:
        yield
    finally:
        signal.signal(SIGNAL, before)


@pytest.mark.parametrize("kind", HANDLERS)
def test_what_a_handler_raises(kind: str) -> None:
    def interrupted() -> None:
        signal.raise_signal(SIGNAL)

    with handled_by(HANDLERS[kind]):
        error = caught(interrupted)
    assert type(error) is Stop
    assert raised_by_one(error)


def test_ctrl_c_needs_no_handler_of_the_programs() -> None:
    def interrupted() -> None:
        signal.raise_signal(signal.SIGINT)

    assert raised_by_one(caught(interrupted))


def test_what_nobody_interrupted_raises() -> None:
    assert not raised_by_one(caught(fail))
    assert not raised_by_one(caught(lambda: sys.exit(3)))


def with_a_frame(number: str, frame: Any) -> None:
    fail()


def test_who_is_given_its_callers_frame_is_no_handler() -> None:
    def trace() -> None:
        with_a_frame("call", inspect.currentframe())

    assert not raised_by_one(caught(trace))


def test_what_is_caught_within_a_handler_is_not_its_own() -> None:
    answers: list[bool] = []

    def handler(number: int, frame: Any) -> None:
        answers.append(raised_by_one(caught(fail)))

    with handled_by(handler):
        signal.raise_signal(SIGNAL)
    assert answers == [False]


def test_other_threads_have_no_handlers() -> None:
    answers: list[bool] = []
    thread = threading.Thread(target=lambda: answers.append(raised_by_one(KeyboardInterrupt())))
    thread.start()
    thread.join()
    assert answers == [False]


def test_whether_one_runs_is_seen_from_anywhere() -> None:
    answers: list[bool] = []

    def ask() -> None:
        answers.append(runs_one())

    def handler(number: int, frame: Any) -> None:
        ask()
        thread = threading.Thread(target=ask)
        thread.start()
        thread.join()

    assert not runs_one()
    with handled_by(handler):
        signal.raise_signal(SIGNAL)
    assert answers == [True, True]
    assert not runs_one()
