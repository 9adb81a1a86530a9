from __future__ import annotations

import dataclasses
import functools
import inspect
import pickle
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from stook import MultiprocessingOptions, MultithreadingOptions

INTEGERS = {
    "num_workers": 0,
    "per_worker_buffer_size": 1,
    "memory_limit": 1,
    "min_shared_bytes": 1,
    "max_restarts": 0,
    "threads_per_worker": 1,
}


def test_defaults() -> None:
    assert dataclasses.asdict(MultiprocessingOptions()) == {
        "num_workers": 0,
        "per_worker_buffer_size": 1,
        "enable_profiling": False,
        "start_method": "forkserver",
        "memory_limit": None,
        "min_shared_bytes": 4096,
        "on_worker_death": "restart",
        "max_restarts": 2,
        "worker_init_fn": None,
        "threads_per_worker": 1,
        "timeout": None,
    }


@pytest.mark.parametrize(
    "kind", [MultiprocessingOptions, functools.partial(MultithreadingOptions, 1)]
)
def test_timeout_is_a_positive_number_of_seconds(kind: Any) -> None:
    assert kind().timeout is None
    for value in (1, 0.5, np.float32(2), np.int64(3), Fraction(1, 2)):
        assert kind(timeout=value).timeout == float(value)
        assert type(kind(timeout=value).timeout) is float
    for wrong in (0, -1, float("inf"), float("nan")):
        with pytest.raises(ValueError, match=rf"timeout must be None or a positive.*got {wrong}"):
            kind(timeout=wrong)
    for wrong in (True, np.True_, "1", [1]):
        with pytest.raises(TypeError, match=r"timeout must be None or a positive, finite number"):
            kind(timeout=wrong)


def test_only_the_first_three_are_positional() -> None:
    options = MultiprocessingOptions(3, 8, True)
    assert (options.num_workers, options.per_worker_buffer_size) == (3, 8)
    assert options.enable_profiling is True
    kinds = [p.kind for p in inspect.signature(MultiprocessingOptions).parameters.values()]
    assert kinds[:3] == [inspect.Parameter.POSITIONAL_OR_KEYWORD] * 3
    assert set(kinds[3:]) == {inspect.Parameter.KEYWORD_ONLY}


@pytest.mark.parametrize(
    "kind", [MultiprocessingOptions, functools.partial(MultithreadingOptions, 1)]
)
def test_profiling_is_on_or_off(kind: Any) -> None:
    assert kind().enable_profiling is False
    assert kind(enable_profiling=np.True_).enable_profiling is True
    for wrong in (1, "yes", None):
        with pytest.raises(TypeError, match=r"enable_profiling must be True or False"):
            kind(enable_profiling=wrong)


def test_cannot_be_changed() -> None:
    options = MultiprocessingOptions()
    with pytest.raises(dataclasses.FrozenInstanceError):
        options.num_workers = 2  # type: ignore[misc]
    assert not hasattr(options, "__dict__")
    assert dataclasses.replace(options, num_workers=2) == MultiprocessingOptions(2)


def test_pickles() -> None:
    options = MultiprocessingOptions(2, 4, start_method="fork", worker_init_fn=print)
    assert pickle.loads(pickle.dumps(options)) == options


@pytest.mark.parametrize(("name", "lowest"), INTEGERS.items())
def test_integers_have_a_lowest_value(name: str, lowest: int) -> None:
    assert getattr(MultiprocessingOptions(**{name: lowest}), name) == lowest
    with pytest.raises(
        ValueError, match=f"{name} must be an int of at least {lowest}.*{lowest - 1}"
    ):
        MultiprocessingOptions(**{name: lowest - 1})


@pytest.mark.parametrize(
    ("name", "highest"), [("num_workers", 1024), ("per_worker_buffer_size", 65536)]
)
def test_some_integers_have_a_highest_value(name: str, highest: int) -> None:
    assert getattr(MultiprocessingOptions(**{name: highest}), name) == highest
    with pytest.raises(ValueError, match=f"{name} must be .* at most {highest}, got {highest + 1}"):
        MultiprocessingOptions(**{name: highest + 1})


@pytest.mark.parametrize("name", INTEGERS)
@pytest.mark.parametrize("value", [True, np.True_, 2.0, "2", np.float64(2), [2], np.array([2, 3])])
def test_integers_are_integers(name: str, value: object) -> None:
    with pytest.raises(TypeError, match=f"MultiprocessingOptions: {name} must be an int"):
        MultiprocessingOptions(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", INTEGERS)
def test_numpy_integers_become_plain(name: str) -> None:
    stored = getattr(MultiprocessingOptions(**{name: np.uint16(7)}), name)
    assert stored == 7
    assert type(stored) is int


@pytest.mark.parametrize("name", ["num_workers", "threads_per_worker", "max_restarts"])
def test_only_memory_limit_may_be_none(name: str) -> None:
    with pytest.raises(TypeError, match=f"{name} must be .*None"):
        MultiprocessingOptions(**{name: None})


@pytest.mark.parametrize("method", ["forkserver", "spawn", "fork"])
def test_start_methods(method: str) -> None:
    assert MultiprocessingOptions(start_method=method).start_method == method


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("start_method", "thread", ValueError),
        ("start_method", None, TypeError),
        ("on_worker_death", "ignore", ValueError),
        ("on_worker_death", True, TypeError),
    ],
)
def test_choices_name_what_is_allowed(name: str, value: object, error: type[Exception]) -> None:
    allowed = {
        "start_method": "'forkserver', 'spawn' or 'fork'",
        "on_worker_death": "'restart' or 'raise'",
    }
    with pytest.raises(error, match=f"{name} must be {allowed[name]}, got {value!r}"):
        MultiprocessingOptions(**{name: value})  # type: ignore[arg-type]


def test_worker_init_fn_is_callable() -> None:
    assert MultiprocessingOptions(worker_init_fn=print).worker_init_fn is print
    with pytest.raises(TypeError, match=r"worker_init_fn must be None or a callable .*got 3"):
        MultiprocessingOptions(worker_init_fn=3)  # type: ignore[arg-type]


def test_a_long_value_is_shortened_in_the_message() -> None:
    with pytest.raises(TypeError) as caught:
        MultiprocessingOptions(worker_init_fn="x" * 10_000)  # type: ignore[arg-type]
    assert len(str(caught.value)) < 300
