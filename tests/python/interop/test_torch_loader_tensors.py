"""What workers of `stook.torch.DataLoader` hand over: every tensor, and where it lies."""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
from partner_loader import require
from tensor_cases import CASES, DENSE, UNPICKLED_BY_TORCH, make
from torch_loader_cases import Indices, Pair, same

import stook
import stook.torch

(torch,) = require("torch")

pytestmark = [
    pytest.mark.filterwarnings("ignore:start_method='fork':RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:ComplexHalf support:UserWarning"),
    pytest.mark.filterwarnings("ignore:Sparse CSR:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.jagged:UserWarning"),
    pytest.mark.leaves("torch keeps the threads of its first parallel operation", "threads"),
]


def loader(dataset: Any, batch_size: Any = 2, **settings: Any) -> Any:
    settings.setdefault("multiprocessing_context", "fork")
    return stook.torch.DataLoader(dataset, batch_size, num_workers=1, **settings)


class Making(Indices):
    """Items that a function makes of their numbers, in the worker."""

    def __init__(self, function: Any, length: int = 4) -> None:
        super().__init__(length)
        self.function = function

    def __getitem__(self, index: int) -> Any:
        with warnings.catch_warnings():  # of torch's about what it has in beta
            warnings.simplefilter("ignore")
            return self.function(index)


def counted(batches: Any) -> tuple[list[Any], int, int]:
    """What came, and how many of its leaves were moved and copied."""
    iterator = iter(batches)
    seen = list(iterator)
    stats = iterator._results.stats()
    return seen, stats.moved, stats.copied


NUMBERS = [*DENSE, *UNPICKLED_BY_TORCH]
# With a gradient, torch refuses to stack into memory it is given.
STACKED = [name for name in NUMBERS if name != "parameter"]


@pytest.mark.parametrize("name", STACKED)
def test_default_collate_stacks_into_shared_memory(name: str) -> None:
    seen, moved, copied = counted(loader(Making(lambda _: make(name).detach())))
    want = torch.stack([make(name).detach()] * 2)
    assert len(seen) == 2
    for batch in seen:
        assert batch.is_contiguous()
        assert batch.dtype == want.dtype
        assert same(batch.view(torch.uint8), want.contiguous().view(torch.uint8))
    assert (moved, copied) == (2, 0)


@pytest.mark.parametrize("name", NUMBERS)
def test_a_tensor_of_ones_own_is_copied_once(name: str) -> None:
    seen, moved, copied = counted(loader(Making(lambda _: make(name)), None))
    for got in seen:
        want = make(name)
        assert got.stride() == want.stride()
        assert got.requires_grad == want.requires_grad
        got, want = got.detach().contiguous(), want.detach().contiguous()
        assert same(got.view(torch.uint8), want.view(torch.uint8))
    assert (moved, copied) == (0, 4)


@pytest.mark.parametrize("name", [name for name in CASES if name not in NUMBERS])
def test_every_other_tensor_arrives_as_torch_pickles_it(name: str) -> None:
    for got in loader(Making(lambda _: make(name), 2), None):
        want = make(name)
        assert type(got) is type(want)
        assert got.dtype == want.dtype
        assert str(got.device) == str(want.device)
        if want.is_nested or want.device.type == "meta":
            continue
        assert got.shape == want.shape
        assert torch.equal(got.to_dense(), want.to_dense())


def test_an_array_of_the_data_set_is_moved_and_becomes_a_tensor() -> None:
    seen, moved, copied = counted(
        loader(Making(lambda i: {"image": np.full((200, 100), i), "label": i}), None)
    )
    for number, element in enumerate(seen):
        assert same(element["image"], torch.full((200, 100), number))
        assert element["label"] == number
        assert type(element["label"]) is int
    assert (moved, copied) == (4, 0)


def test_an_array_that_the_data_set_keeps_is_copied() -> None:
    kept = np.arange(5000)
    seen, moved, copied = counted(loader(Making(lambda _: kept), None))
    seen[0].zero_()
    assert same(seen[1], torch.arange(5000))
    assert (moved, copied) == (0, 4)


def test_a_batch_that_the_collate_fn_keeps_is_copied() -> None:
    kept: list[Any] = []

    def collate(batch: Any) -> Any:
        kept.append(torch.utils.data.default_collate(batch))
        return kept[0]

    seen, moved, copied = counted(
        loader(Making(lambda i: torch.full((2000,), i)), 2, collate_fn=collate)
    )
    seen[0].zero_()
    assert same(seen[1], torch.tensor([0, 1])[:, None].expand(2, 2000).contiguous())
    assert (moved, copied) == (0, 2)


def test_default_collate_in_ones_own_collate_fn() -> None:
    def collate(batch: Any) -> Any:
        return {"batch": torch.utils.data.default_collate(batch), "size": len(batch)}

    seen, moved, copied = counted(
        loader(Making(lambda i: torch.full((3000,), i)), 2, collate_fn=collate)
    )
    assert [element["size"] for element in seen] == [2, 2]
    assert (moved, copied) == (2, 0)


def test_a_collate_function_of_the_programs_own_is_taken_along() -> None:
    table = torch.utils.data._utils.collate.default_collate_fn_map

    def collate_pairs(batch: Any, *, collate_fn_map: Any = None) -> Any:
        return "pairs", len(batch)

    table[Pair] = collate_pairs
    try:
        seen = list(loader(Making(lambda i: Pair(i, i)), 4, multiprocessing_context=None))
    finally:
        del table[Pair]
    assert seen == [("pairs", 4)]


@dataclasses.dataclass
class Record:
    tensor: Any
    name: str


def nested(index: int) -> Any:
    rows = torch.full((1500,), float(index))
    return {
        "list": [rows, [rows + 1, "text"]],
        "tuple": (rows + 2, 3),
        "pair": Pair(rows + 3, b"bytes"),
        "ordered": OrderedDict(b=rows + 4, a=None),
        "array": np.arange(2000) + index,
        "none": None,
        "scalar": torch.tensor(index),
        "empty": torch.empty(0, 3),
    }


def test_trees_of_tensors_keep_their_form() -> None:
    seen, *_ = counted(loader(Making(nested), None, collate_fn=_itself))
    for index, got in enumerate(seen):
        assert same(got, nested(index))


def _itself(batch: Any) -> Any:
    return batch


def test_custom_classes_arrive() -> None:
    def record(index: int) -> Any:
        packed = torch.nn.utils.rnn.pack_sequence([torch.arange(2000.0), torch.arange(100.0)])
        return Record(torch.full((2000,), index), "r"), packed

    seen = list(loader(Making(record), None, collate_fn=_itself))
    for index, got in enumerate(seen):
        want = record(index)
        assert type(got) is tuple
        assert same(got[0].tensor, want[0].tensor)
        assert same(got[1], want[1])


def test_one_tensor_in_two_places_stays_one() -> None:
    def twice(index: int) -> Any:
        tensor = torch.full((2000,), index)
        return [tensor, {"again": tensor}]

    for first, second in loader(Making(twice), None, collate_fn=_itself):
        assert first is second["again"]


def test_a_batch_that_holds_itself_arrives() -> None:
    def looped(index: int) -> Any:
        batch: list[Any] = [torch.full((3,), index)]
        batch.append(batch)
        return batch

    for got in loader(Making(looped), None, collate_fn=_itself):
        assert got[1] is got


def test_delivered_tensors_are_writable_and_outlive_the_loader() -> None:
    batches = list(loader(Making(lambda i: torch.full((5000,), i)), 2))
    for batch in batches:
        batch += 1
    assert [batch[:, 0].tolist() for batch in batches] == [[1, 2], [3, 4]]


def test_memory_goes_back_when_the_last_tensor_goes() -> None:
    batches = loader(Making(lambda i: torch.full((5000,), i), 6), 2, persistent_workers=True)
    kept = [batch[0] for batch in batches]  # views
    pool = batches._iterator._crew._pool
    assert pool.stats().bytes_live >= 3 * 2 * 5000 * 8
    kept.clear()
    assert pool.stats().bytes_live == 0


def test_no_descriptor_per_tensor() -> None:
    def many(index: int) -> Any:
        return [torch.full((2000,), index) for _ in range(20)]

    batches = loader(Making(many, 41), None)
    iterator = iter(batches)
    kept = [next(iterator)]
    before = len(os.listdir("/proc/self/fd"))
    kept.extend(iterator)
    assert len(kept) == 41
    assert len(os.listdir("/proc/self/fd")) <= before


def test_sizes_that_differ_are_refused_in_torchs_words() -> None:
    message = "stack expects each tensor to be equal size"
    with pytest.raises(RuntimeError, match=message):
        list(loader(Making(torch.zeros), 2))


@pytest.mark.parametrize("name", ["nested", "sparse-coo"])
def test_what_cannot_be_stacked_is_refused_in_torchs_words(name: str) -> None:
    with pytest.raises(RuntimeError, match="not currently supported by the default collate_fn"):
        list(loader(Making(lambda _: make(name)), 2))


# ---- as_tensors --------------------------------------------------------------------------------


def test_as_tensors_shows_the_same_memory() -> None:
    image = np.zeros((4, 5), np.uint8)
    batch = {"image": image, "pair": Pair([image[1:3, ::2]], "text"), "more": (1, None)}
    tensors = stook.torch.as_tensors(batch)
    image[2] = 7
    assert tensors["image"][2].tolist() == [7] * 5
    assert tensors["pair"].left[0].tolist() == [[0] * 3, [7] * 3]
    assert tensors["pair"].right == "text"
    assert tensors["more"] == (1, None)


def test_as_tensors_goes_through_dataclasses_and_dicts_of_every_kind() -> None:
    tree = OrderedDict(a=Record(np.arange(3), "x"), b=np.float32(2))
    tensors = stook.torch.as_tensors(tree)
    assert type(tensors) is OrderedDict
    assert same(tensors["a"].tensor, torch.arange(3))
    assert same(tensors["b"], torch.tensor(2.0))
    assert isinstance(tree["a"].tensor, np.ndarray)


@pytest.mark.parametrize(
    "array",
    [np.array(["a"]), np.array([None]), np.zeros(2, "M8[s]"), np.zeros(2, "i4,f4"), np.array(b"x")],
    ids=lambda array: str(array.dtype),
)
def test_as_tensors_leaves_what_torch_has_no_dtype_for(array: np.ndarray) -> None:
    assert stook.torch.as_tensors([array])[0] is array


def test_as_tensors_copies_what_torch_cannot_show() -> None:
    frozen = np.arange(3)
    frozen.flags.writeable = False
    for array in (frozen, np.arange(3)[::-1], np.arange(3, dtype=">i4"), np.zeros((0, 3))):
        (tensor,) = stook.torch.as_tensors([array])
        assert tensor.tolist() == array.tolist()
        tensor.fill_(9)
        assert 9 not in array


def test_as_tensors_knows_the_small_floats_of_jax() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed")
    for name in ("bfloat16", "float8_e4m3fn"):
        array = np.array([0.5, -2], getattr(ml_dtypes, name))
        (tensor,) = stook.torch.as_tensors([array])
        assert tensor.dtype == getattr(torch, name)
        assert tensor.float().tolist() == [0.5, -2]


def test_as_tensors_takes_elements_of_a_loader_as_they_lie() -> None:
    options = stook.MultiprocessingOptions(num_workers=1)
    source = stook.DataLoader([1, 2], lambda i: np.full(3000, i), options=options)
    for number, element in enumerate(source, 1):
        (tensor,) = stook.torch.as_tensors([element])
        assert tensor.data_ptr() == element.ctypes.data
        del element
        assert tensor.tolist() == [number] * 3000
    del tensor
    source.close()
