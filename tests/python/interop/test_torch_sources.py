"""torch's map-style datasets and samplers, as they are, in a loader."""

from __future__ import annotations

from typing import Any

import pytest
from partner_loader import require

import stook

torch, data = require("torch", "torch.utils.data")

pytestmark = pytest.mark.leaves("torch keeps threads", "threads", "descriptors", "mappings")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_subset_is_asked_for_a_batch_at_once(workers: int) -> None:
    source = data.Subset(list(range(100)), range(10, 21))
    options = stook.MultiprocessingOptions(num_workers=workers)
    with stook.DataLoader(source, options=options, batch_size=4) as loader:
        assert [batch.tolist() for batch in loader] == [
            [10, 11, 12, 13],
            [14, 15, 16, 17],
            [18, 19, 20],
        ]


def test_torchs_samplers_go_on_from_a_state() -> None:
    source = data.TensorDataset(torch.arange(12))

    def made() -> Any:
        sampler = data.DistributedSampler(source, num_replicas=2, rank=1, seed=3)
        return iter(
            stook.DataLoader(source, lambda row: int(row[0]), sampler=sampler, num_epochs=2)
        )

    elements = made()
    head = [next(elements) for _ in range(8)]
    other = made()
    other.set_state(elements.get_state())
    rest = list(elements)
    assert list(other) == rest
    assert len(head + rest) == 12
    assert head[:6] != (head + rest)[6:], "it is told the epoch"
