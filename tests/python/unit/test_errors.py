from __future__ import annotations

import copy
import pickle
import signal
import threading
from concurrent.futures.process import BrokenProcessPool

import pytest

import stook
from stook import errors

MADE = [
    stook.StookError("text"),
    stook.WorkerDied(1, -9, 7, "the kernel was out of memory"),
    stook.WorkerDied(),
    stook.WorkerDied(1, 0, 7, item_index=300),
    stook.ElementError("text", 3, 1),
    stook.ElementError("text", 3, 1, 17),
    stook.ElementTimeout(3, 1.5, 1, 17),
    stook.ElementTimeout(),
    stook.TooManyErrors(3, 100, 2, "ValueError: no"),
    stook.TooManyErrors(),
    stook.SharedMemoryExhausted("text", 100, 50),
    stook.DecodeError("text"),
    stook.RemoteError("text", "ValueError"),
    stook.PoolBroken("text"),
]


@pytest.mark.parametrize("error", MADE, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_with_attributes_and_notes(error: Exception, protocol: int) -> None:
    error = copy.copy(error)
    errors.add_note(error, "a note")
    again = pickle.loads(pickle.dumps(error, protocol))
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert again.args == error.args
    assert again.__dict__ == error.__dict__
    assert again.__notes__ == ["a note"]


@pytest.mark.parametrize("error", MADE, ids=lambda error: type(error).__name__)
def test_is_a_stook_error(error: Exception) -> None:
    assert isinstance(error, stook.StookError)


@pytest.mark.parametrize(
    ("kind", "also"),
    [
        (stook.WorkerDied, BrokenProcessPool),
        (stook.WorkerDied, RuntimeError),
        (stook.SharedMemoryExhausted, MemoryError),
        (stook.DecodeError, ValueError),
        (stook.ElementTimeout, TimeoutError),
    ],
)
def test_is_also_what_others_catch(kind: type[Exception], also: type[Exception]) -> None:
    assert issubclass(kind, also)


def test_worker_died_says_how() -> None:
    assert (
        str(stook.WorkerDied(2, 0, 5))
        == "worker 2 terminated unexpectedly with exit code 0 while it worked on element 5"
    )
    assert "exit code -11 (SIGSEGV)" in str(stook.WorkerDied(2, -11))
    assert "exit code -200" in str(stook.WorkerDied(2, -200))
    assert str(stook.WorkerDied(2, 1, detail="why")).endswith("exit code 1: why")
    assert "terminated unexpectedly with exit code" in str(stook.WorkerDied())


def test_worker_died_names_the_signal_and_the_item() -> None:
    error = stook.WorkerDied(2, -9, 5, item_index=70)
    assert error.signal is signal.SIGKILL
    assert "element 5 (index 70)" in str(error)
    assert stook.WorkerDied(2, 3).signal is None
    assert stook.WorkerDied(2, -200).signal is None


def test_element_timeout_says_what_took_how_long() -> None:
    error = stook.ElementTimeout(5, 0.5, 2, 70)
    assert str(error) == (
        "element 5 (index 70) took longer than its timeout of 0.5 s; worker 2 was killed"
    )
    assert (error.index, error.seconds, error.worker, error.item_index) == (5, 0.5, 2, 70)
    assert "killed" not in str(stook.ElementTimeout(5, 0.5))


def test_too_many_errors_says_how_many_are_allowed() -> None:
    error = stook.TooManyErrors(3, 100, 2)
    assert (error.errors, error.items, error.allowed, error.last) == (3, 100, 2, "")
    assert "3 of the first 100" in str(error)
    assert "no more than 2" in str(error)
    assert "no more than 2.5 %" in str(stook.TooManyErrors(3, 100, 0.025))
    assert str(stook.TooManyErrors(3, 100, 2, "why")).endswith("the last one: why")


def test_element_error_pickles_its_cause() -> None:
    error = errors.for_consumer(StopIteration(5), 3, 17, worker=1)
    again = pickle.loads(pickle.dumps(error))
    assert (again.index, again.worker) == (3, 1)
    assert type(again.__cause__) is StopIteration
    assert again.__cause__.value == 5


def test_element_error_pickles_without_a_cause_that_does_not() -> None:
    error = errors.for_consumer(SystemExit(threading.Lock()), 3)
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == str(error)
    assert isinstance(again.__cause__, stook.RemoteError)
    assert again.__cause__.type_name == "SystemExit"


def test_a_users_exception_stays_itself_and_is_annotated() -> None:
    error = ValueError("no")
    assert errors.for_consumer(error, 7, 123) is error
    assert error.__notes__ == ["while loading element 7 (index 123)"]  # type: ignore[attr-defined]
    in_batch = ValueError("no")
    errors.annotate(in_batch, 7, 123, 3)
    assert in_batch.__notes__ == [  # type: ignore[attr-defined]
        "while loading element 7 (index 123, item 3 of the batch)"
    ]


@pytest.mark.parametrize("kind", [StopIteration, StopAsyncIteration, GeneratorExit, SystemExit])
@pytest.mark.parametrize("worker", [None, 1])
def test_control_flow_becomes_an_element_error(
    kind: type[BaseException], worker: int | None
) -> None:
    raised = kind(4)
    error = errors.for_consumer(raised, 7, 123, worker=worker)
    assert isinstance(error, stook.ElementError)
    assert error.__cause__ is raised
    assert (error.index, error.worker, error.item_index) == (7, worker, 123)
    assert kind.__name__ in str(error)
    assert "element 7 (index 123)" in str(error)


def test_a_keyboard_interrupt_is_ctrl_c_in_the_consumer_alone() -> None:
    raised = KeyboardInterrupt()
    assert errors.for_consumer(raised, 7) is raised
    assert isinstance(errors.for_consumer(raised, 7, worker=0), stook.ElementError)


def test_a_note_that_cannot_be_added_does_not_replace_the_error() -> None:
    class Closed(Exception):
        def __setattr__(self, name: str, value: object) -> None:
            raise AttributeError(name)

        def add_note(self, note: str) -> None:
            raise TypeError("no notes")

    error = Closed()
    assert errors.for_consumer(error, 1) is error


def test_notes_are_stored_where_python_310_has_no_add_note() -> None:
    class Old(Exception):
        def __getattribute__(self, name: str) -> object:
            if name == "add_note":
                raise AttributeError(name)
            return super().__getattribute__(name)

    error = Old()
    errors.add_note(error, "one")
    errors.add_note(error, "two")
    assert error.__notes__ == ["one", "two"]  # type: ignore[attr-defined]
