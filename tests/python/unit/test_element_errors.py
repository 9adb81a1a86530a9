"""What a task may return besides an element."""

from __future__ import annotations

import copy
import pickle

import cloudpickle
import pytest

import stook
from stook._element_errors import Report, Skip


@pytest.mark.parametrize("module", [pickle, cloudpickle])
def test_skip_is_one_object_wherever_it_comes_from(module: object) -> None:
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        assert pickle.loads(module.dumps(stook.SKIP, protocol)) is stook.SKIP  # type: ignore[attr-defined]
    assert copy.deepcopy(stook.SKIP) is copy.copy(stook.SKIP) is Skip() is stook.SKIP
    assert repr(stook.SKIP) == "stook.SKIP"


def test_a_report_has_nothing_to_say_but_what_it_was_given() -> None:
    report = Report(5)
    assert (report.element, report.failed, report.consumed) == (5, 0, None)
