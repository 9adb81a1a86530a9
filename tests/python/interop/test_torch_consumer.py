"""What a training loop does with delivered arrays: tensors over the same memory, and back."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from partner_loader import Courier, loader, require, settled

import stook

(torch,) = require("torch")

pytestmark = pytest.mark.leaves("torch keeps the threads of its first operation", "threads")


def image(index: int) -> Any:
    return np.full((64, 64), index, np.float32)


def use_blocks_again(courier: Courier) -> None:
    """Elements that take every block that is free."""
    for array in courier.each(image, [(step,) for step in range(100)]):
        del array


@pytest.fixture(scope="module")
def courier() -> Iterator[Courier]:
    with settled() as courier:
        yield courier


def test_from_numpy_copies_nothing(courier: Courier) -> None:
    array = courier.call(image, 7)
    tensor = torch.from_numpy(array)
    assert tensor.data_ptr() == array.ctypes.data
    tensor[0, 0] = 3
    assert array[0, 0] == 3
    assert stook.is_shared(array)


def test_a_tensor_holds_the_block(courier: Courier) -> None:
    tensor = torch.from_numpy(courier.call(image, 7))
    assert courier.loader.stats().bytes_live >= tensor.nbytes
    use_blocks_again(courier)
    assert torch.equal(tensor, torch.full((64, 64), 7.0))
    del tensor
    assert courier.loader.stats().bytes_live == 0


def test_a_view_of_a_tensor_holds_the_block(courier: Courier) -> None:
    row = torch.from_numpy(courier.call(image, 7))[5]
    use_blocks_again(courier)
    assert row.tolist() == [7.0] * 64


def test_a_tensor_outlives_array_and_loader() -> None:
    with loader(range(3), image) as images:
        tensors = [torch.from_numpy(array) for array in images]
    del images
    gc.collect()
    for index, tensor in enumerate(tensors):
        assert torch.equal(tensor, torch.full((64, 64), float(index)))
        tensor += 1
    assert [tensor.sum().item() for tensor in tensors] == [4096.0, 8192.0, 12288.0]


def test_dlpack_to_torch(courier: Courier) -> None:
    array = courier.call(image, 7)
    address = array.ctypes.data
    tensor = torch.from_dlpack(array)
    del array
    assert tensor.data_ptr() == address
    use_blocks_again(courier)
    assert torch.equal(tensor, torch.full((64, 64), 7.0))
    del tensor
    assert courier.loader.stats().bytes_live == 0


def test_dlpack_from_torch(courier: Courier) -> None:
    tensor = courier.call(_tensor)
    address = tensor.data_ptr()
    array = np.from_dlpack(tensor)
    del tensor
    assert array.ctypes.data == address
    assert array.tolist() == list(range(5000))
    del array
    assert courier.loader.stats().bytes_live == 0


def test_dlpack_in_the_worker(courier: Courier) -> None:
    assert courier.call(_through_dlpack).tolist() == list(range(5000))


def _tensor() -> Any:
    return torch.arange(5000)


def _through_dlpack() -> Any:
    # Over torch's memory: a leaf that is no memory of ours.
    return np.from_dlpack(torch.arange(5000))


def test_an_array_over_a_tensor_is_copied(courier: Courier) -> None:
    got = courier.call(_numpy_of_tensor)
    assert got.tolist() == list(range(5000))
    assert (courier.stats.moved, courier.stats.copied) == (0, 1)


def _numpy_of_tensor() -> Any:
    return torch.arange(5000).numpy()


def test_default_convert_takes_delivered_arrays(courier: Courier) -> None:
    element = courier.call(_element, 1)
    addresses = [element["image"].ctypes.data, element["pair"][0].ctypes.data]
    converted = torch.utils.data.default_convert(element)
    assert [converted["image"].data_ptr(), converted["pair"][0].data_ptr()] == addresses
    assert converted["name"] == "1"
    assert converted["small"].tolist() == [1, 2]


def test_default_collate_takes_delivered_arrays(courier: Courier) -> None:
    batch = torch.utils.data.default_collate(courier.map(_element, [(1,), (2,)]))
    assert batch["image"].shape == (2, 64, 64)
    assert batch["image"][:, 0, 0].tolist() == [1.0, 2.0]
    assert batch["label"].tolist() == [1, 2]
    assert batch["name"] == ["1", "2"]


def _element(index: int) -> Any:
    return {
        "image": image(index),
        "pair": (image(-index), 1.5),
        "label": index,
        "small": np.array([1, 2]),
        "name": str(index),
    }


def test_default_collate_runs_in_a_worker() -> None:
    with loader(range(4), _element, batch_size=2, collate=torch.utils.data.default_collate) as two:
        batches = list(two)
    assert [batch["label"].tolist() for batch in batches] == [[0, 1], [2, 3]]
    assert [batch["image"][1, 5, 5].item() for batch in batches] == [1.0, 3.0]


def test_a_training_step_takes_delivered_arrays() -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(4096, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-5)
    losses = []
    with loader(range(8), image, batch_size=4, num_epochs=10) as batches:
        for batch in batches:
            inputs = torch.from_numpy(batch).flatten(1) / 8
            loss = (model(inputs).squeeze(1) - inputs[:, 0]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert losses[-1] < losses[1]
