"""Grain's sources, and its iterators with their states, as sources of a loader."""

from __future__ import annotations

import json
from typing import Any

import pytest
from partner_loader import require

import stook

(grain,) = require("grain")

pytestmark = pytest.mark.leaves("Grain's threads, and JAX's", "threads", "descriptors", "mappings")


def test_a_random_access_source_is_indexed() -> None:
    source = grain.sources.RangeDataSource(0, 20, 2)
    options = stook.MultiprocessingOptions(num_workers=2)
    with stook.DataLoader(source, lambda x: x + 1, options=options, batch_size=4) as loader:
        assert [batch.tolist() for batch in loader] == [[1, 3, 5, 7], [9, 11, 13, 15], [17, 19]]
    shuffled = stook.DataLoader(source, shuffle=True)
    assert sorted(shuffled) == list(range(0, 20, 2))


@pytest.mark.parametrize("once", [False, True])
def test_the_state_of_an_iterator_is_part_of_the_loaders(once: bool) -> None:
    dataset = grain.MapDataset.range(12).map(lambda x: 3 * x).to_iter_dataset().batch(2)

    def made() -> stook.DataLoader:
        source: Any = iter(dataset) if once else dataset
        return stook.DataLoader(source, lambda batch: batch.tolist())

    elements = iter(made())
    head = [next(elements) for _ in range(4)]
    state = json.loads(json.dumps(elements.get_state()))
    assert state["source"]["state"]
    other = made()
    other.set_state(state)
    rest = list(other)
    assert head + rest == [[6 * k, 6 * k + 3] for k in range(6)]
    elements.set_state(state)
    assert list(elements) == rest
