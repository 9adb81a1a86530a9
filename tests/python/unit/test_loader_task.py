"""What makes an element, whichever process runs it."""

from __future__ import annotations

import operator
import sys
from typing import Any

import cloudpickle
import numpy as np
import pytest
from loader_cases import Indexed, double

import stook
from stook._task import LoaderTask
from stook.worker_info import _state


@pytest.mark.parametrize("transforms", [(), (double,), (double, double)])
@pytest.mark.parametrize("batch_size", [None, 2])
@pytest.mark.parametrize("seed", [None, 1])
def test_what_a_task_returns_has_no_other_holder(
    transforms: Any, batch_size: int | None, seed: int | None
) -> None:
    class Fresh(Indexed):
        def __getitem__(self, index: int) -> Any:
            return np.full(3, index)

    run = LoaderTask(Fresh(0, 1), transforms, batch_size, None, seed).bind()
    element = run(0, 0, 1 if batch_size is None else (0, 1))
    assert sys.getrefcount(element) == 2  # getrefcount's own argument is the second
    assert element.base is None


def test_a_task_can_be_pickled_and_does_the_same() -> None:
    step = 3
    task = LoaderTask([1, 2, 3], (lambda value: value + step,), 2, None, 5)
    again = cloudpickle.loads(cloudpickle.dumps(task))
    assert again(0, 0, (0, 2)).tolist() == task(0, 0, (0, 2)).tolist() == [4, 6]


def test_the_common_path_adds_one_frame() -> None:
    depth: list[int] = []

    def frames(_: int) -> None:
        frame, count = sys._getframe(), 0
        while frame is not here:
            frame, count = frame.f_back, count + 1  # type: ignore[assignment]
        depth.append(count)

    here = sys._getframe()
    LoaderTask([1], (frames,)).bind()(0, 0, 0)
    LoaderTask([1], (frames,), seed=0).bind()(0, 0, 0)
    assert depth == [2, 2]


def test_the_error_of_a_task_keeps_the_frames_of_user_code() -> None:
    def fails(_: int) -> None:
        operator.truediv(1, 0)

    with pytest.raises(ZeroDivisionError) as caught:
        LoaderTask([1], (fails,)).bind()(0, 0, 0)
    assert "fails" in [entry.name for entry in caught.traceback]


@pytest.mark.parametrize("batch_size", [None, 1])
@pytest.mark.parametrize("transforms", [(), (double,)])
@pytest.mark.parametrize("seed", [None, 1])
def test_a_task_tells_worker_info_its_epoch(
    monkeypatch: pytest.MonkeyPatch, batch_size: int | None, transforms: Any, seed: int | None
) -> None:
    class Source(Indexed):
        def __getitem__(self, index: int) -> Any:
            infos.append(stook.worker_info())
            return index

    infos: list[Any] = []
    monkeypatch.setattr(_state, "worker", (1, 2, 1234, 5))
    monkeypatch.setattr(_state, "epoch", 0)
    run = LoaderTask(Source(0), transforms, batch_size, None, seed).bind()
    run(7, 0, 0 if batch_size is None else (0,))
    assert infos == [stook.WorkerInfo(index=1, count=2, pid=1234, incarnation=5, epoch=7)]


def test_an_error_in_a_worker_names_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(_state, "worker", (1, 2, 1234, 5))
    with pytest.raises(stook.ElementError) as caught:
        LoaderTask([0], (load,)).bind()(0, 3, 0)
    assert (caught.value.index, caught.value.worker) == (3, 1)
