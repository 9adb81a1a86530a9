"""What torch's documentation promises of its loader, tried with `stook.torch.DataLoader`."""

from __future__ import annotations

import math
import types
from collections.abc import Iterator
from typing import Any

import pytest
from partner_loader import require
from torch_loader_cases import Drawing, Indices, passes, same

import stook
import stook.torch

(torch,) = require("torch")
data = torch.utils.data

KINDS = (stook.torch.DataLoader, data.DataLoader)

pytestmark = [
    pytest.mark.filterwarnings("ignore:start_method='fork':RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
    pytest.mark.leaves("torch keeps the threads of its first parallel operation", "threads"),
]


def loader(kind: Any, dataset: Any, batch_size: Any = None, **settings: Any) -> Any:
    if batch_size is not None:
        settings["batch_size"] = batch_size
    return kind(dataset, num_workers=2, multiprocessing_context="fork", **settings)


def generator() -> Any:
    return torch.Generator().manual_seed(3)


@pytest.mark.parametrize(
    "make",
    [
        lambda _: data.WeightedRandomSampler([0.1, 0.9, 0.5] * 4, 10, generator=generator()),
        lambda items: data.RandomSampler(items, True, 13, generator()),
        lambda _: data.SubsetRandomSampler([3, 1, 5], generator()),
        lambda items: data.DistributedSampler(items, 3, 1, shuffle=True),
        lambda items: data.BatchSampler(data.RandomSampler(items, generator=generator()), 5, True),
    ],
    ids=["weighted", "replacing", "subset", "distributed", "batches"],
)
def test_samplers(make: Any) -> None:
    seen = []
    for kind in KINDS:
        dataset = Drawing(12)
        sampler = make(dataset)
        name = "batch_sampler" if isinstance(sampler, data.BatchSampler) else "sampler"
        size = {} if name == "batch_sampler" else {"batch_size": 4}
        seen.append(passes(loader(kind, dataset, **size, **{name: sampler})))
    assert same(*seen)


def test_a_generator_is_drawn_from_as_torch_does_it() -> None:
    seen = []
    for kind in KINDS:
        drawn = generator()
        seen.append(passes(loader(kind, Drawing(12), 4, shuffle=True, generator=drawn)))
        seen[-1].append(drawn.get_state())
    assert same(*seen)


@pytest.mark.parametrize(
    "make",
    [
        lambda: data.Subset(Drawing(), [1, 3, 5]),
        lambda: data.ConcatDataset([Drawing(5), Drawing(4)]),
        lambda: data.StackDataset(a=Drawing(5), b=Indices(5)),
        lambda: data.TensorDataset(torch.arange(10.0), torch.arange(10)),
        lambda: data.random_split(Indices(10), [7, 3], generator())[0],
        lambda: data.ChainDataset([Range(0, 3), Range(5, 8)]),
    ],
    ids=["subset", "concatenated", "stacked", "tensors", "split", "chained"],
)
def test_data_sets_of_torchs(make: Any) -> None:
    assert same(*(passes(loader(kind, make(), 4)) for kind in KINDS))


class Range(data.IterableDataset):
    def __init__(self, start: int, end: int) -> None:
        self.start = start
        self.end = end

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.start, self.end))


def take_a_share(worker: int) -> None:
    info = data.get_worker_info()
    start, end = info.dataset.start, info.dataset.end
    share = math.ceil((end - start) / info.num_workers)
    info.dataset.start = start + worker * share
    info.dataset.end = min(info.dataset.start + share, end)


@pytest.mark.parametrize("persistent", [False, True])
def test_worker_init_fn_may_change_the_copy_of_the_data_set(persistent: bool) -> None:
    settings: dict[str, Any] = {
        "worker_init_fn": take_a_share,
        "persistent_workers": persistent,
    }
    seen = [passes(loader(kind, Range(3, 10), **settings)) for kind in KINDS]
    assert same(*seen)
    assert [int(batch) for batch in seen[0][0]] == [3, 7, 4, 8, 5, 9, 6]


# ---- pinning, with doubles for the accelerator and what it does ----------------------------------


class Own:
    """A batch of a custom type that can be pinned."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items
        self.is_pinned = False

    def pin_memory(self) -> Own:
        self.is_pinned = True
        return self


@pytest.fixture
def pinned(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    made: list[Any] = []

    def pin(tensor: Any) -> Any:
        if tensor.dtype == torch.bool:
            raise RuntimeError("cannot pin")
        made.append(tensor.clone())
        return made[-1]

    accelerator = torch.accelerator
    monkeypatch.setattr(accelerator, "is_available", lambda: True)
    monkeypatch.setattr(
        accelerator, "current_accelerator", lambda: types.SimpleNamespace(type="cuda")
    )
    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    return made


def test_every_tensor_of_a_batch_is_pinned(pinned: list[Any]) -> None:
    items = [(torch.full((30, 50), i), {"label": i}) for i in range(4)]
    (images, labels), *_ = loader(stook.torch.DataLoader, items, 4, pin_memory=True)
    assert [images is pinned[0], labels["label"] is pinned[1]] == [True, True]
    assert images[:, 0, 0].tolist() == labels["label"].tolist() == [0, 1, 2, 3]


def test_a_custom_type_pins_itself(pinned: list[Any]) -> None:
    (batch,) = loader(stook.torch.DataLoader, Indices(3), 3, pin_memory=True, collate_fn=Own)
    assert batch.is_pinned
    assert batch.items == [0, 1, 2]
    assert pinned == []


def test_what_pinning_raises_is_an_error_of_its_batch(pinned: list[Any]) -> None:
    items = [torch.tensor(i) if i != 1 else torch.tensor(True) for i in range(8)]
    batches = iter(loader(stook.torch.DataLoader, items, pin_memory=True))
    assert next(batches).item() == 0
    with pytest.raises(RuntimeError, match="cannot pin"):
        next(batches)
    assert [batch.item() for batch in batches] == [2, 3, 4, 5, 6, 7]
    assert len(pinned) == 7
