"""Arguments of a loader that are wrong, or do not go together."""

from __future__ import annotations

import dataclasses
import inspect
import re
from typing import Any

import numpy as np
import pytest
from loader_cases import Repeated, double, each_number_of_workers, loader

import stook
from stook._other_names import _HERE


@pytest.mark.parametrize(
    ("settings", "error", "part"),
    [
        ({"transform": 3}, TypeError, "transform must be None, a callable, or a list or tuple"),
        ({"transform": [double, 3]}, TypeError, r"transform\[1\] must be a callable, got 3"),
        ({"options": 2}, TypeError, "options must be .*got 2.*num_workers=n"),
        ({"batch_size": 0}, ValueError, "batch_size must be an int of at least 1,.*got 0"),
        ({"batch_size": 2.0}, TypeError, r"batch_size must be .*got 2.0 \(float\)"),
        ({"batch_size": True}, TypeError, "batch_size must be .*got the bool True"),
        ({"drop_remainder": 1, "batch_size": 2}, TypeError, "drop_remainder must be True or False"),
        ({"drop_remainder": True}, ValueError, "drop_remainder is about batches"),
        ({"collate": list}, ValueError, "collate is about batches"),
        ({"collate": 3, "batch_size": 2}, TypeError, "collate must be None or a callable"),
        ({"shuffle": "yes"}, TypeError, "shuffle must be True or False, got 'yes'"),
        ({"seed": -1}, ValueError, "seed must be an int of at least 0"),
        ({"seed": 2**64}, ValueError, "seed must be .*at most 18446744073709551615"),
        ({"seed": "a"}, TypeError, "seed must be an int"),
        ({"num_epochs": 0}, ValueError, "num_epochs must be an int of at least 1,.*got 0"),
        ({"ordered": 1}, TypeError, "ordered must be True or False"),
        ({"on_error": "warn"}, ValueError, "on_error must be 'raise', 'skip', or.*got 'warn'"),
        ({"on_error": None}, TypeError, "on_error must be .*got None"),
        ({"retries": -1}, ValueError, "retries must be an int of at least 0, got -1"),
        ({"max_errors": -1}, ValueError, "max_errors must be None, an int .*got -1"),
        ({"max_errors": 1.0}, ValueError, "max_errors must be .*a float above 0 and below 1.*1.0"),
        ({"max_errors": 0.0}, ValueError, "max_errors must be .*got 0.0"),
        ({"max_errors": True}, ValueError, "max_errors must be .*got True"),
        ({"max_errors": "3"}, TypeError, "max_errors must be .*got '3'"),
        ({"progress": "bar"}, TypeError, "progress must be True or False"),
    ],
)
def test_wrong_arguments_are_named(
    settings: dict[str, Any], error: type[Exception], part: str
) -> None:
    with pytest.raises(error, match=part):
        stook.DataLoader([1, 2, 3], **settings)


def test_arguments_after_the_transform_are_keywords() -> None:
    with pytest.raises(TypeError):
        stook.DataLoader([1], None, stook.MultiprocessingOptions())  # type: ignore[misc]


@pytest.mark.parametrize(
    ("name", "value", "part"),
    [
        ("num_workers", 2, r"pass options=stook.MultiprocessingOptions\(num_workers=2\)"),
        ("worker_count", 3, r"pass options=stook.MultiprocessingOptions\(num_workers=3\)"),
        ("prefetch_factor", 4, r"MultiprocessingOptions\(per_worker_buffer_size=4\)"),
        (
            "start_method",
            "fork",
            r"pass options=.*\(start_method='fork'\)",
        ),
        ("num_threads", 2, r"pass options=stook.MultithreadingOptions\(num_threads=2\)"),
        ("collate_fn", list, "pass collate="),
        ("drop_last", True, "pass drop_remainder="),
        ("dataset", [1], "pass the source as the first argument"),
        ("persistent_workers", True, "pass nothing: workers always stay"),
    ],
)
def test_arguments_of_other_loaders_are_told_their_name_here(
    name: str, value: Any, part: str
) -> None:
    with pytest.raises(TypeError, match=f"there is no argument '{name}' here; .*{part}"):
        stook.DataLoader([1, 2, 3], **{name: value})


def test_the_names_that_are_told_exist() -> None:
    known = inspect.signature(stook.DataLoader).parameters
    assert not _HERE.keys() & known.keys()
    told = {name for text in _HERE.values() for name in re.findall(r"(?:^|\W)(\w+)=", text)}
    options = (stook.MultiprocessingOptions, stook.MultithreadingOptions)
    fields = {field.name for kind in options for field in dataclasses.fields(kind)}
    assert told <= known.keys() | fields


def test_an_argument_that_nobody_has_is_an_ordinary_error() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'nonsense'"):
        stook.DataLoader([1], nonsense=2)  # type: ignore[call-arg]


def test_numpys_numbers_and_booleans_are_taken() -> None:
    elements = stook.DataLoader(
        range(5), batch_size=np.int32(2), drop_remainder=np.True_, seed=np.uint64(2**64 - 1)
    )
    assert [batch.tolist() for batch in elements] == [[0, 1], [2, 3]]


def test_shuffling_an_iterable_is_refused() -> None:
    with pytest.raises(ValueError, match="shuffle=True needs a source with __len__"):
        stook.DataLoader(Repeated(1), shuffle=True)


@pytest.mark.parametrize("num_epochs", [2, None])
def test_an_iterator_for_several_epochs_is_refused(num_epochs: int | None) -> None:
    with pytest.raises(ValueError, match=f"is an iterator.*num_epochs={num_epochs}"):
        stook.DataLoader(iter([1]), num_epochs=num_epochs)


def test_an_endless_loop_over_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="its length is 0"):
        stook.DataLoader([], num_epochs=None)
    with pytest.raises(ValueError, match="its length is 2, batch_size=3, drop_remainder=True"):
        stook.DataLoader([1, 2], num_epochs=None, batch_size=3, drop_remainder=True)


@each_number_of_workers
def test_an_endless_loop_over_an_empty_iterable_is_an_error(workers: int) -> None:
    with loader(Repeated(), workers=workers, num_epochs=None) as elements:
        with pytest.raises(ValueError, match="gave no element in epoch 0"):
            list(elements)
