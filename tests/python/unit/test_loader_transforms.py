"""Transforms and batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loader_cases import Indexed, Repeated, double, loader

TRANSFORMS: dict[str, tuple[Any, Callable[[int], Any]]] = {
    "none": (None, lambda value: value),
    "empty": ([], lambda value: value),
    "one": (double, lambda value: 2 * value),
    "list": ([double], lambda value: 2 * value),
    "two": ((double, str), lambda value: str(2 * value)),
}


def check_transforms(
    workers: int, indexed: bool, batch_size: int | None, name: str, seed: int | None
) -> None:
    source = Indexed(5, 6, 7) if indexed else Repeated(5, 6, 7)
    transform, function = TRANSFORMS[name]
    with loader(source, transform, workers=workers, batch_size=batch_size, seed=seed) as elements:
        found = [list(batch) for batch in elements] if batch_size else list(elements)
    expected = [function(value) for value in (5, 6, 7)]
    if batch_size == 1:
        assert found == [[value] for value in expected]
    elif batch_size == 2:
        assert found == [expected[:2], expected[2:]]
    else:
        assert found == expected


@pytest.mark.parametrize("indexed", [True, False])
@pytest.mark.parametrize("batch_size", [None, 1, 2])
@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("seed", [None, 3])
def test_transforms(indexed: bool, batch_size: int | None, name: str, seed: int | None) -> None:
    check_transforms(0, indexed, batch_size, name, seed)


# What a worker runs is what ran above: each value of each argument once, and the rest there.
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    ("indexed", "batch_size", "name", "seed"),
    [
        (True, None, "two", 3),
        (False, 2, "one", None),
        (True, 2, "two", None),
        (False, None, "empty", 3),
        (True, 1, "none", 3),
        (False, 1, "list", None),
    ],
)
def test_transforms_in_workers(
    workers: int, indexed: bool, batch_size: int | None, name: str, seed: int | None
) -> None:
    check_transforms(workers, indexed, batch_size, name, seed)


@given(
    workers=st.sampled_from([0, 0, 0, 1, 1, 2]),
    length=st.integers(0, 30),
    batch_size=st.none() | st.integers(1, 8),
    drop_remainder=st.booleans(),
    num_epochs=st.integers(1, 3),
    indexed=st.booleans(),
)
@settings(deadline=None, max_examples=50)
def test_batches_do_not_cross_epochs(
    workers: int,
    length: int,
    batch_size: int | None,
    drop_remainder: bool,
    num_epochs: int,
    indexed: bool,
) -> None:
    values = list(range(length))
    if batch_size is None:
        epoch: list[Any] = values
    else:
        epoch = [values[at : at + batch_size] for at in range(0, length, batch_size)]
        if drop_remainder:
            epoch = [batch for batch in epoch if len(batch) == batch_size]
    with loader(
        values if indexed else Repeated(*values),
        workers=workers,
        batch_size=batch_size,
        drop_remainder=drop_remainder and batch_size is not None,
        num_epochs=num_epochs,
        seed=None,
    ) as elements:
        found = [e if batch_size is None else e.tolist() for e in elements]
        assert found == epoch * num_epochs
        if indexed:
            assert len(elements) == len(found)
