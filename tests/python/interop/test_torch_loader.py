"""`stook.torch.DataLoader` gives what torch's own loader gives, draw by draw."""

from __future__ import annotations

import pickle
import random
from typing import Any

import numpy as np
import pytest
from partner_loader import require
from torch_loader_cases import Batched, Drawing, Indices, Once, Shards, passes, same

import stook
import stook.torch

(torch,) = require("torch")
data = torch.utils.data

pytestmark = [
    # Forks of this process start in milliseconds, fresh ones that import torch in seconds.
    pytest.mark.filterwarnings("ignore:start_method='fork':RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
    pytest.mark.filterwarnings("ignore:'pin_memory' argument:UserWarning"),
    pytest.mark.leaves("torch keeps the threads of its first parallel operation", "threads"),
]


def both(make_dataset: Any, *, count: int = 2, **arguments: Any) -> tuple[list[Any], list[Any]]:
    """What the two loaders give, each over a data set of its own."""
    if arguments.get("num_workers"):
        arguments.setdefault("multiprocessing_context", "fork")
    seen = []
    for kind in (stook.torch.DataLoader, data.DataLoader):
        settings = {
            name: value() if name.endswith("sampler") or name == "generator" else value
            for name, value in arguments.items()
        }
        seen.append(passes(kind(make_dataset(), **settings), count))
    return seen[0], seen[1]


def assert_both_alike(make_dataset: Any, **arguments: Any) -> list[Any]:
    got, want = both(make_dataset, **arguments)
    assert [len(part) for part in got] == [len(part) for part in want]
    assert same(got, want)
    return got


class Backwards(data.Sampler):
    def __init__(self, length: int) -> None:
        self.length = length

    def __iter__(self) -> Any:
        return iter(range(self.length - 1, -1, -1))

    def __len__(self) -> int:
        return self.length


def uneven() -> list[Any]:
    return [[0, 1], (2, 3, 4), [5], [6, 7, 8, 9, 10]]


# ---- map-style ---------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 1, 2, 3])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"batch_size": 4},
        {"batch_size": 4, "shuffle": True},
        {"batch_size": 4, "shuffle": True, "drop_last": True},
        {"batch_size": None},
        {"batch_size": None, "shuffle": True},
        {"batch_size": 2, "sampler": lambda: Backwards(11)},
        {"batch_sampler": uneven},
        {"batch_size": 3, "shuffle": True, "generator": lambda: torch.Generator().manual_seed(5)},
    ],
    ids=str,
)
def test_map_style(workers: int, settings: dict[str, Any]) -> None:
    assert_both_alike(Drawing, num_workers=workers, **settings)


@pytest.mark.parametrize("prefetch_factor", [1, 2, 5])
def test_prefetching_draws_no_more_and_no_less(prefetch_factor: int) -> None:
    # The sampler draws from the global generator, and so do the lines between two batches.
    seen = []
    for kind in (stook.torch.DataLoader, data.DataLoader):
        torch.manual_seed(1)
        weights = torch.arange(1.0, 21.0)
        sampler = data.WeightedRandomSampler(weights, 40)
        draws: list[Any] = []

        class Telling(data.Sampler):
            def __init__(self, inner: Any, told: list[Any]) -> None:
                self.inner, self.told = inner, told

            def __iter__(self) -> Any:
                for index in self.inner:
                    self.told.append(("index", index))
                    yield index

        loader = kind(
            Indices(20),
            3,
            sampler=Telling(sampler, draws),
            num_workers=2,
            prefetch_factor=prefetch_factor,
            multiprocessing_context="fork",
        )
        for batch in loader:
            draws.append(("batch", batch.tolist(), torch.rand(1).item()))
        seen.append(draws)
    assert seen[0] == seen[1]


def test_two_epochs_of_persistent_workers() -> None:
    got = assert_both_alike(
        Drawing, count=3, num_workers=2, batch_size=2, shuffle=True, persistent_workers=True
    )
    # The copies of the data set are those of the first epoch.
    assert max(batch["calls"].max().item() for batch in got[4]) > 11


def test_workers_that_are_not_persistent_have_fresh_copies() -> None:
    got = assert_both_alike(Drawing, count=3, num_workers=2, batch_size=2)
    assert max(batch["calls"].max().item() for batch in got[4]) <= 6


@pytest.mark.parametrize("persistent", [False, True])
def test_fresh_processes_give_the_same(persistent: bool) -> None:
    settings: dict[str, Any] = {"num_workers": 2, "batch_size": 2, "shuffle": True}
    settings["persistent_workers"] = persistent
    ours = passes(stook.torch.DataLoader(Drawing(), **settings), 3)
    assert same(ours, passes(data.DataLoader(Drawing(), **settings), 3))


def test_getitems_loads_a_batch_at_once() -> None:
    got = assert_both_alike(Batched, num_workers=2, batch_size=4)
    assert got[0][0][1].tolist() == [4, 4, 4, 4]


@pytest.mark.parametrize("length", [0, 1])
def test_short_data_sets(length: int) -> None:
    assert_both_alike(lambda: Drawing(length), num_workers=2, batch_size=2)
    assert_both_alike(lambda: Drawing(length), num_workers=2, batch_size=2, drop_last=True)


def test_indices_are_whatever_the_sampler_gives() -> None:
    def sampler() -> list[Any]:
        return ["a", (1, "b"), {"c": 2.5}, None, slice(2), np.int64(3), np.arange(2)]

    assert_both_alike(Indices, num_workers=2, batch_size=None, sampler=sampler)


def test_collate_fn_gets_what_torch_gives_it() -> None:
    assert_both_alike(Drawing, num_workers=2, batch_size=3, collate_fn=_kinds)
    assert_both_alike(Indices, num_workers=2, batch_size=None, collate_fn=_kinds)


def _kinds(batch: Any) -> Any:
    return type(batch).__name__, batch


def test_classes_functions_and_lambdas_of_main_cross() -> None:
    loader = stook.torch.DataLoader([1, 2], 2, num_workers=1, collate_fn=lambda batch: sum(batch))
    assert list(loader) == [3]


# ---- iterable ----------------------------------------------------------------------------------


@pytest.mark.parametrize("lengths", [(5, 5), (0, 4), (1, 9), (7, 2), (0, 0)])
@pytest.mark.parametrize("settings", [{"batch_size": 2}, {"batch_size": None}], ids=str)
def test_iterable(lengths: tuple[int, ...], settings: dict[str, Any]) -> None:
    assert_both_alike(lambda: Shards(*lengths), num_workers=2, **settings)


@pytest.mark.parametrize("prefetch_factor", [1, 2, 4])
def test_iterable_of_three(prefetch_factor: int) -> None:
    settings = {"num_workers": 3, "prefetch_factor": prefetch_factor}
    assert_both_alike(lambda: Shards(1, 12, 5), batch_size=2, **settings)
    assert_both_alike(lambda: Shards(3, 0, 10), batch_size=2, drop_last=True, **settings)


def test_iterable_with_persistent_workers() -> None:
    assert_both_alike(
        lambda: Shards(3, 8), count=3, num_workers=2, batch_size=2, persistent_workers=True
    )


def test_an_iterator_as_data_set() -> None:
    assert_both_alike(lambda: Once(5), num_workers=2, batch_size=2)


def test_more_than_the_reported_length_is_warned_of() -> None:
    class Reporting(Shards):
        def __len__(self) -> int:
            return 2

    loader = stook.torch.DataLoader(
        Reporting(3, 3), None, num_workers=2, multiprocessing_context="fork"
    )
    assert len(loader) == 2
    with pytest.warns(UserWarning, match=r"reported to be 2.*samples have been fetched"):
        assert len(list(loader)) == 6


@pytest.mark.filterwarnings("ignore:.*datapipes.*")
def test_data_pipes_are_sharded_and_shuffled() -> None:
    pipes = pytest.importorskip("torch.utils.data.datapipes.iter")

    def make() -> Any:
        return pipes.IterableWrapper(range(12)).shuffle().sharding_filter()

    assert_both_alike(make, num_workers=2, batch_size=3, shuffle=True)


# ---- out of order ------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [lambda: Indices(30), lambda: Shards(9, 2, 7)])
def test_out_of_order_gives_the_same_batches_in_any_order(make: Any) -> None:
    def content(loader: Any) -> list[str]:
        return sorted(str(batch[:2] if type(batch) is list else batch) for batch in loader)

    settings: dict[str, Any] = {
        "num_workers": 3,
        "batch_size": 2,
        "in_order": False,
        "multiprocessing_context": "fork",
    }
    ours = content(stook.torch.DataLoader(make(), **settings))
    assert ours == content(data.DataLoader(make(), **settings))


# ---- the loader as an object -------------------------------------------------------------------


def test_it_is_a_loader_of_torch_with_its_attributes() -> None:
    arguments: dict[str, Any] = {
        "batch_size": 3,
        "num_workers": 2,
        "pin_memory": False,
        "drop_last": True,
        "timeout": 9,
        "prefetch_factor": 4,
        "persistent_workers": True,
        "in_order": False,
    }
    dataset = Indices()
    ours = stook.torch.DataLoader(dataset, **arguments)
    theirs = data.DataLoader(dataset, **arguments)
    assert isinstance(ours, data.DataLoader)
    assert len(ours) == len(theirs) == 3
    assert stook.torch.DataLoader[int](dataset).dataset is dataset
    for name in vars(theirs):
        if not name.startswith("_"):
            got, want = getattr(ours, name), getattr(theirs, name)
            assert got == want or type(got) is type(want), name
    with pytest.raises(ValueError, match="batch_size attribute should not be set after"):
        ours.batch_size = 5


@pytest.mark.parametrize(
    "wrong",
    [
        {"num_workers": -1},
        {"timeout": -1},
        {"prefetch_factor": 2},
        {"num_workers": 1, "prefetch_factor": -1},
        {"persistent_workers": True},
        {"batch_size": None, "drop_last": True},
        {"batch_size": 0},
        {"shuffle": True, "sampler": range(3)},
        {"batch_size": 2, "batch_sampler": [[0]]},
        {"multiprocessing_context": "fork"},
        {"num_workers": 1, "multiprocessing_context": "thread"},
        {"num_workers": 1, "multiprocessing_context": 7},
    ],
    ids=str,
)
def test_wrong_arguments_are_refused_in_torchs_words(wrong: dict[str, Any]) -> None:
    messages = []
    for kind in (stook.torch.DataLoader, data.DataLoader):
        with pytest.raises((ValueError, TypeError)) as caught:
            kind(Indices(), **wrong)
        messages.append((type(caught.value), str(caught.value)))
    assert messages[0] == messages[1]


def test_options_of_another_type_are_refused() -> None:
    with pytest.raises(TypeError, match=r"options must be None or a stook\.Multiproc.*got 3"):
        stook.torch.DataLoader(Indices(), options=3)  # type: ignore[arg-type]


def test_a_loader_can_be_pickled() -> None:
    loader = stook.torch.DataLoader(Indices(4), 2, num_workers=1)
    assert len(list(loader)) == 2
    again = pickle.loads(pickle.dumps(loader))
    assert [batch.tolist() for batch in again] == [[0, 1], [2, 3]]


def test_an_iterator_cannot() -> None:
    loader = stook.torch.DataLoader(Indices(4), num_workers=1, multiprocessing_context="fork")
    with pytest.raises(NotImplementedError, match="cannot be pickled"):
        pickle.dumps(iter(loader))


# ---- iterators ---------------------------------------------------------------------------------


def test_several_iterators_of_one_loader() -> None:
    loader = stook.torch.DataLoader(Indices(6), 2, num_workers=2, multiprocessing_context="fork")
    pairs = [(a.tolist(), b.tolist()) for a in loader for b in loader]
    batches = [[0, 1], [2, 3], [4, 5]]
    assert pairs == [(a, b) for a in batches for b in batches]


def test_leaving_early_and_iterating_again() -> None:
    loader = stook.torch.DataLoader(Indices(8), 2, num_workers=2)
    for _ in range(5):
        for batch in loader:
            assert batch.tolist() == [0, 1]
            break
    assert [batch[0].item() for batch in loader] == [0, 2, 4, 6]


def test_leaving_early_with_persistent_workers() -> None:
    assert_left_early(persistent_workers=True)


def assert_left_early(**settings: Any) -> None:
    seen = []
    for kind in (stook.torch.DataLoader, data.DataLoader):
        torch.manual_seed(2)
        loader = kind(
            Indices(9), 2, shuffle=True, num_workers=2, multiprocessing_context="fork", **settings
        )
        batches = []
        for _ in range(4):
            for batch, _ in zip(loader, range(2), strict=False):
                batches.append(batch.tolist())
        seen.append(batches)
    assert seen[0] == seen[1]


def test_the_loader_may_go_before_its_iterator() -> None:
    batches = iter(stook.torch.DataLoader(Indices(4), 2, num_workers=1))
    assert [batch.tolist() for batch in batches] == [[0, 1], [2, 3]]
    with pytest.raises(StopIteration):
        next(batches)


# ---- what workers know -------------------------------------------------------------------------


class Knowing(Indices):
    def __getitem__(self, index: int) -> Any:
        info = data.get_worker_info()
        assert info.dataset is self
        state = random.getstate()[1][:3]
        words = np.random.get_state()[1][:3].tolist()  # type: ignore[call-overload, index]
        return info.id, info.num_workers, info.seed, torch.initial_seed(), state, words


def test_worker_info_and_seeds() -> None:
    got = assert_both_alike(lambda: Knowing(4), count=1, num_workers=2, batch_size=None)
    assert [item[0] for item in got[0]] == [0, 1, 0, 1]
    assert data.get_worker_info() is None
    assert got[0][0][2] + 1 == got[0][1][2]


def test_worker_init_fn_is_called_after_seeding() -> None:
    assert_both_alike(Drawing, num_workers=2, worker_init_fn=_reseed_by_number)


def _reseed_by_number(worker: int) -> None:
    info = data.get_worker_info()
    assert info.id == worker
    assert info.seed == torch.initial_seed()
    info.dataset.length += 1  # of the copy
    random.seed(worker)


def test_torch_runs_one_thread_in_a_worker() -> None:
    (batch,) = stook.torch.DataLoader([0], num_workers=1, collate_fn=_threads)
    assert batch == 1


def _threads(_: Any) -> int:
    count: int = torch.get_num_threads()
    return count


def test_numpy_is_seeded_as_torch_does_it() -> None:
    from stook.torch._worker_seeds import numpy_seed

    generate = data._utils.worker._generate_state
    for worker in (0, 1, 12):
        for seed in (0, 1, 1 << 31, (1 << 63) - 1, 978296274032934101):
            assert numpy_seed(seed, worker) == list(generate(seed, worker))


def test_pin_memory_without_an_accelerator_is_warned_of() -> None:
    if torch.accelerator.is_available():
        pytest.skip("there is an accelerator")
    loader = stook.torch.DataLoader(
        Indices(2), num_workers=1, pin_memory=True, multiprocessing_context="fork"
    )
    with pytest.warns(UserWarning, match="no accelerator is found"):
        assert len(list(loader)) == 2
