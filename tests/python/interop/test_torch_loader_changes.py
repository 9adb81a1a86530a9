"""A data set that changes between two passes of `stook.torch.DataLoader`."""

from __future__ import annotations

import multiprocessing
import os
import signal
from typing import Any

import numpy as np
import pytest
from partner_loader import require

import stook
import stook.torch

(torch,) = require("torch")
data = torch.utils.data

pytestmark = pytest.mark.leaves(
    "torch keeps the threads of its first parallel operation", "threads"
)


class Growing(data.Dataset):
    """Changes in this process; `kept` is what else it holds."""

    def __init__(self, kept: Any) -> None:
        self.items = [1, 2, 3]
        self.kept = kept

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


def test_a_changed_data_set_reaches_the_next_pass() -> None:
    dataset = Growing(None)
    loader = stook.torch.DataLoader(dataset, num_workers=1)
    assert [batch.tolist() for batch in loader] == [[1], [2], [3]]
    first = loader._crews._idle[0]
    server = first._pool._core.server_pid
    for items in ([1, 2, 3, 4], [5], [1, 2, 3]):
        dataset.items = items
        for _ in range(2):
            assert [batch.tolist() for batch in loader] == [[item] for item in items]
    assert loader._crews._idle == [first]
    assert first._pool._core.server_pid == server


@pytest.mark.parametrize("kind", ["inherited", "large"])
def test_what_is_not_sent_with_jobs_takes_another_process(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stook.torch._crew._MOST_BYTES_UPDATED", 1 << 16)
    ends = multiprocessing.Pipe()
    with ends[0], ends[1]:
        dataset = Growing(ends[0] if kind == "inherited" else np.zeros(1 << 16, np.uint8))
        loader = stook.torch.DataLoader(dataset, num_workers=1)
        assert len([*loader]) == 3
        first = loader._crews._idle[0]
        dataset.items.append(4)
        assert len([*loader]) == 4
        assert loader._crews._idle[0] is not first


def test_a_changed_collate_fn_reaches_the_next_pass_and_who_takes_a_dead_workers_place(
    tmp_path: Any,
) -> None:
    def dying_once(items: list[int]) -> Any:
        if items == [2] and not (tmp_path / "died").exists():
            (tmp_path / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return "changed", *items

    loader = stook.torch.DataLoader(
        [1, 2, 3],
        num_workers=1,
        collate_fn=list,
        options=stook.MultiprocessingOptions(on_worker_death="restart"),
    )
    assert [*loader] == [[1], [2], [3]]
    first = loader._crews._idle[0]
    loader.collate_fn = dying_once
    assert [*loader] == [("changed", 1), ("changed", 2), ("changed", 3)]
    assert loader._crews._idle[0] is first


class Unloadable(Growing):
    """Cannot be made again once there are four items."""

    def __setstate__(self, state: Any) -> None:
        if len(state["items"]) > 3:
            raise LookupError("too many")
        self.__dict__.update(state)


def test_a_changed_data_set_that_cannot_be_loaded_is_an_error() -> None:
    dataset = Unloadable(None)
    loader = stook.torch.DataLoader(dataset, num_workers=1)
    assert len([*loader]) == 3
    dataset.items.append(4)
    with pytest.raises(LookupError, match="too many"):
        list(loader)
