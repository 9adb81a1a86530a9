"""torch's `IterableDataset` in a loader: shards see themselves as torch's workers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from partner_loader import require

import stook

torch, data = require("torch", "torch.utils.data")

pytestmark = pytest.mark.leaves("torch keeps threads", "threads", "descriptors", "mappings")


def dataset_of(items: int) -> Any:
    class Dataset(data.IterableDataset):  # type: ignore[misc, name-defined]
        def __iter__(self) -> Iterator[tuple[int, int, int, bool]]:
            info = data.get_worker_info()
            # An attribute of its own, as torch's examples set them.
            self.first = info.id
            for item in range(self.first, items, info.num_workers):
                yield item, info.id, info.num_workers, info.dataset is self

    return Dataset()


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_shards_are_torchs_workers(workers: int) -> None:
    options = stook.MultiprocessingOptions(num_workers=2)
    with stook.DataLoader(dataset_of(5), options=options) as loader:
        state = loader.get_state()
    options = stook.MultiprocessingOptions(num_workers=workers)
    with stook.DataLoader(dataset_of(5), options=options) as loader:
        loader.set_state(state)
        assert list(loader) == [(item, item % 2, 2, True) for item in range(5)]
    assert data.get_worker_info() is None


def test_threads_see_the_shard_of_their_own() -> None:
    options = stook.MultithreadingOptions(num_threads=3)
    with stook.DataLoader(dataset_of(30), options=options) as loader:
        assert list(loader) == [(item, item % 3, 3, True) for item in range(30)]


def test_batches_are_made_within_a_shard() -> None:
    options = stook.MultiprocessingOptions(num_workers=2)
    loader = stook.DataLoader(dataset_of(7), lambda item: item[0], options=options, batch_size=2)
    with loader:
        assert [batch.tolist() for batch in loader] == [[0, 2], [1, 3], [4, 6], [5]]
