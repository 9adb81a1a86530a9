"""Tensors that worker processes make arrive as pickling would have given them, copied once."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from partner_loader import Courier, loader, settled
from tensor_cases import (
    CASES,
    DENSE,
    OTHERS,
    UNPICKLED_BY_TORCH,
    assert_same_tensor,
    make,
    numbers,
    torch,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:torch"),
    pytest.mark.filterwarnings("ignore:(Sparse CSR tensor|ComplexHalf) support:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.jagged:UserWarning"),
    pytest.mark.leaves("torch keeps the threads of its first parallel operation", "threads"),
]


@pytest.fixture(scope="module")
def courier() -> Iterator[Courier]:
    with settled() as courier:
        yield courier


@pytest.mark.parametrize("name", [*DENSE, *OTHERS])
def test_a_tensor_arrives_as_torch_pickles_it(courier: Courier, name: str) -> None:
    want = pickle.loads(pickle.dumps(make(name), 5))
    assert_same_tensor(courier.call(make, name), want)


@pytest.mark.parametrize("name", UNPICKLED_BY_TORCH)
def test_a_dtype_that_torch_does_not_pickle_arrives(courier: Courier, name: str) -> None:
    assert_same_tensor(courier.call(make, name), make(name))


@pytest.mark.parametrize("name", [*DENSE, *UNPICKLED_BY_TORCH])
def test_a_dense_tensor_is_copied_once(courier: Courier, name: str) -> None:
    got = courier.call(make, name)
    assert (courier.stats.moved, courier.stats.copied) == (0, 1)
    # It lies where the worker copied it to, and the last reference gives that back.
    assert courier.loader.stats().bytes_live >= got.nbytes
    del got
    assert courier.loader.stats().bytes_live == 0


def _kept_sparse_tensors(_: Any) -> int:
    return len(torch._utils._sparse_tensors_to_validate)


def test_sparse_tensors_are_not_kept(courier: Courier) -> None:
    assert courier.call(_kept_sparse_tensors, torch.eye(3).to_sparse()) == 0
    assert courier.call(make, "sparse-coo").is_sparse
    assert _kept_sparse_tensors(None) == 0


@pytest.mark.parametrize("name", CASES)
def test_a_tensor_goes_to_a_worker(courier: Courier, name: str) -> None:
    assert courier.call(_form, make(name)) == _form(make(name))


def _form(tensor: Any) -> tuple[str, str, list[int], bool]:
    shape = [] if tensor.is_nested else list(tensor.shape)
    return str(tensor.dtype), str(tensor.layout), shape, tensor.requires_grad


@pytest.mark.parametrize("name", ["float32", "bfloat16", "bool", "scalar", "transposed"])
def test_a_delivered_tensor_can_be_written(courier: Courier, name: str) -> None:
    got = courier.call(make, name)
    got.zero_()
    assert not got.bool().any()
    assert_same_tensor(courier.call(make, name), make(name))


def test_a_tensor_in_a_dict(courier: Courier) -> None:
    got = courier.call(_in_dict)
    assert list(got) == ["tensor", "label"]
    assert got["label"] == 3
    assert_same_tensor(got["tensor"], numbers())


def _in_dict() -> Any:
    return {"tensor": numbers(), "label": 3}


def test_tensors_beside_arrays(courier: Courier) -> None:
    got = courier.call(_mixed)
    assert list(got) == ["image", "tensor", "pair", "label"]
    assert np.array_equal(got["image"], np.arange(5000))
    assert_same_tensor(got["tensor"], numbers())
    assert type(got["pair"]) is list
    assert_same_tensor(got["pair"][0], numbers() + 1)
    assert_same_tensor(got["pair"][1], torch.tensor(7))
    assert got["label"] == "cat"
    # The array is moved as it would be alone.
    assert (courier.stats.moved, courier.stats.copied) == (1, 2)


def _mixed() -> Any:
    pair = [numbers() + 1, torch.tensor(7)]
    return {"image": np.arange(5000), "tensor": numbers(), "pair": pair, "label": "cat"}


def test_a_list_of_tensors(courier: Courier) -> None:
    got = courier.call(_tensors, 5)
    assert type(got) is list
    for step, tensor in enumerate(got):
        assert_same_tensor(tensor, numbers() + step)
    assert courier.stats.copied == 5


def _tensors(count: int) -> Any:
    return [numbers() + step for step in range(count)]


def test_one_tensor_twice_stays_one(courier: Courier) -> None:
    first, second = courier.call(_twice)
    assert first is second
    assert courier.stats.copied == 1


def _twice() -> Any:
    tensor = numbers()
    return tensor, tensor


def test_a_tensor_that_the_worker_keeps_does_not_change(courier: Courier) -> None:
    first = courier.call(_kept)
    first.zero_()
    assert_same_tensor(courier.call(_kept), numbers())


_cache: list[Any] = []


def _kept() -> Any:
    if not _cache:
        _cache.append(numbers())
    return _cache[0]


def test_a_state_dict(courier: Courier) -> None:
    got = courier.call(_state)
    want = _state()
    assert list(got) == list(want)
    for name, tensor in want.items():
        assert_same_tensor(got[name], tensor)


def _state() -> Any:
    torch.manual_seed(1)
    return torch.nn.Sequential(torch.nn.Linear(90, 80), torch.nn.BatchNorm1d(80)).state_dict()


# ---- batches -----------------------------------------------------------------------------------


ASSEMBLED = ["float32", "bfloat16", "bool", "complex64", "float8", "channels-first", "scalar"]


def _many(index: int) -> Any:
    return {"label": index, **{name: make(name) for name in ASSEMBLED}}


@pytest.mark.parametrize("workers", [0, 1])
def test_tensors_are_assembled(workers: int) -> None:
    with loader(range(5), _many, num_workers=workers, batch_size=3) as batches:
        elements = list(batches)
        stats = batches.stats()
    assert [element["label"].tolist() for element in elements] == [[0, 1, 2], [3, 4]]
    for element in elements:
        for name in ASSEMBLED:
            tensor = element[name]
            assert type(tensor) is torch.Tensor
            assert len(tensor) == len(element["label"])
            assert tensor.is_contiguous()
            for row in tensor:
                assert_same_tensor(row, make(name).contiguous())
    if workers:  # all but the numbers, which are small
        assert (stats.moved, stats.copied) == (0, 2 * (len(ASSEMBLED) - 1))


def test_tensors_that_differ_are_refused_by_name() -> None:
    with loader([3, 4], torch.zeros, num_workers=0, batch_size=2) as batches:
        with pytest.raises(ValueError, match=r"tensor of shape \(4,\) on cpu in item 1"):
            next(iter(batches))


def test_rows_that_require_grad_are_assembled_as_values() -> None:
    with loader(["requires-grad"] * 2, make, num_workers=0, batch_size=2) as batches:
        (batch,) = batches
    assert_same_tensor(batch, torch.stack([numbers(), numbers()]))
