"""What a task may return besides an element."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import cloudpickle
import pytest

import stook
from stook._element_errors import Policy, Report, Skip
from stook._task import LoaderTask


@pytest.mark.parametrize("module", [pickle, cloudpickle])
def test_skip_is_one_object_wherever_it_comes_from(module: object) -> None:
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        assert pickle.loads(module.dumps(stook.SKIP, protocol)) is stook.SKIP  # type: ignore[attr-defined]
    assert copy.deepcopy(stook.SKIP) is copy.copy(stook.SKIP) is Skip() is stook.SKIP
    assert repr(stook.SKIP) == "stook.SKIP"


def test_a_report_has_nothing_to_say_but_what_it_was_given() -> None:
    report = Report(5)
    assert (report.element, report.failed, report.consumed) == (5, 0, None)


@pytest.mark.parametrize("collate", [None, list])
@pytest.mark.parametrize("drop_remainder", [True, False])
def test_a_batch_that_is_to_be_full_takes_further_items(collate: Any, drop_remainder: bool) -> None:
    """Of a source of 0..19, of which all that three divides fail, from any item on."""

    def fail(value: int) -> int:
        if value % 3 == 0:
            raise ValueError(value)
        return value

    policy = Policy("skip", fill=True, drop_remainder=drop_remainder)
    run = LoaderTask(range(20), (fail,), 4, collate, 0, policy).bind("here")
    for first in range(20):
        planned = range(first, min(20, first + 4))

        def further(number: int, first: int = first) -> int | None:
            return first + number if first + number < 20 else None

        made = run(0, 0, (further, *planned))
        good = [value for value in range(first, 20) if value % 3][:4]
        # To the item with which it is full, or to the end of the epoch.
        taken = good[3] + 1 - first if len(good) == 4 else 20 - first
        if type(made) is not Report:  # nothing happened
            assert (list(made), taken) == (good, len(planned))
            assert len(good) == taken and not (drop_remainder and taken < 4)
            continue
        if not good or (drop_remainder and len(good) < 4):
            assert made.element is stook.SKIP
        else:
            assert list(made.element) == good
        assert made.failed == taken - len(good)
        assert made.consumed == (None if taken == len(planned) else taken)
