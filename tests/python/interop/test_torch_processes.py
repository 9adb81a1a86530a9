"""torch within worker processes: threads, both start methods, data sets, modules."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
from partner_loader import DEADLINE, PARTNER_FLAGS, loader, require
from tensor_cases import assert_same_tensor, numbers

from conftest import RunPython

(torch,) = require("torch")

pytestmark = pytest.mark.leaves("torch keeps the threads of its first operation", "threads")


def test_stook_does_not_import_torch(run_python: RunPython) -> None:
    code = """
        import sys
        import numpy as np, stook

        def element(index):
            return {"image": np.zeros(5000), "object": {index}, "partner": "torch" in sys.modules}

        options = stook.MultiprocessingOptions(num_workers=1)
        with stook.DataLoader(range(2), element, options=options, batch_size=2) as loader:
            (batch,) = loader
        print(batch["partner"], "torch" in sys.modules)
    """
    assert run_python(code).check().stdout == "[False False] False\n"


def test_forked_workers_run_torch_after_its_threads_ran_here(run_python: RunPython) -> None:
    # Without a limit on their threads they wait for ever for threads that were not forked.
    code = """
        import warnings
        import torch, stook

        torch.set_num_threads(4)

        def work():
            product = torch.ones(400, 400) @ torch.ones(400, 400)
            pictures = torch.nn.functional.conv2d(torch.ones(8, 3, 64, 64), torch.ones(8, 3, 3, 3))
            ordered = torch.sort(torch.arange(1_000_000).flip(0)).values
            return product.sum() + pictures.sum() + ordered[7]

        def element(index):
            return {"result": work(), "index": torch.full((100, 100), index)}

        want = work()
        options = stook.MultiprocessingOptions(num_workers=2, start_method="fork")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            with stook.DataLoader(range(6), element, options=options) as loader:
                for index, element in enumerate(loader):
                    assert element["result"] == want, element
                    assert (element["index"] == index).all()
        told = [str(entry.message) for entry in caught if entry.category is RuntimeWarning]
        assert any("threads of torch" in text and "forkserver" in text for text in told), told
        print("done")
    """
    done = run_python(code, deadline=DEADLINE, flags=PARTNER_FLAGS).check()
    assert done.stdout == "done\n"


@pytest.mark.parametrize("threads", [1, 2])
def test_the_threads_of_torch_are_limited(threads: int) -> None:
    options = {"threads_per_worker": threads}
    with loader(range(2), _number_of_threads, num_workers=2, options=options) as counts:
        assert list(counts) == [threads, threads]


def _number_of_threads(index: int) -> int:
    return int(torch.get_num_threads())


def test_an_operation_of_torch_in_fresh_workers() -> None:
    with loader(range(4), _product, num_workers=2) as products:
        for index, product in enumerate(products):
            assert_same_tensor(product, torch.full((300, 300), 300.0 * index))


def _product(index: int) -> Any:
    return torch.full((300, 300), float(index)) @ torch.ones(300, 300)


# ---- sources -----------------------------------------------------------------------------------


class Pictures(torch.utils.data.Dataset):
    """A map-style data set."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        if index >= self.count:
            raise IndexError(index)
        return torch.full((3, 40, 40), index), index


def test_a_data_set_of_torch_is_a_source() -> None:
    with loader(Pictures(5), batch_size=2, num_workers=2) as batches:
        assert len(batches) == 3
        pictures, labels = zip(*batches, strict=True)
    assert [label.tolist() for label in labels] == [[0, 1], [2, 3], [4]]
    assert [batch[:, 0, 0, 0].tolist() for batch in pictures] == [[0, 1], [2, 3], [4]]
    assert {type(batch) for batch in pictures} == {torch.Tensor}


def test_a_subset_and_a_tensor_data_set_are_sources() -> None:
    rows = torch.utils.data.TensorDataset(numbers(), torch.arange(60))
    with loader(torch.utils.data.Subset(rows, [5, 50])) as elements:
        for (row, label), index in zip(elements, (5, 50), strict=True):
            assert_same_tensor(row, numbers()[index])
            assert label.item() == index


class Counting(torch.utils.data.IterableDataset):
    def __iter__(self) -> Any:
        return iter([numbers() + step for step in range(3)])


def test_an_iterable_data_set_is_a_source() -> None:
    with loader(Counting()) as elements:
        for step, element in enumerate(elements):
            assert_same_tensor(element, numbers() + step)
    assert step == 2


def test_a_list_of_tensors_is_a_source() -> None:
    with loader([numbers(), numbers().bfloat16(), torch.tensor(3)]) as elements:
        got = list(elements)
    for tensor, want in zip(got, [numbers(), numbers().bfloat16(), torch.tensor(3)], strict=True):
        assert_same_tensor(tensor, want)


def test_a_tensor_is_a_source_of_its_rows() -> None:
    source = torch.arange(20_000).reshape(4, 5000)
    with loader(source, shuffle=True) as elements:
        got = list(elements)
    assert sorted(row[0].item() for row in got) == [0, 5000, 10_000, 15_000]
    for row in got:
        assert_same_tensor(row, torch.arange(5000) + row[0])


# ---- modules and closures ----------------------------------------------------------------------


def _network() -> Any:
    torch.manual_seed(3)
    layers = [
        torch.nn.Conv2d(3, 8, 3),
        torch.nn.BatchNorm2d(8),
        torch.nn.Dropout(),
        torch.nn.ReLU(),
    ]
    return torch.nn.Sequential(*layers).eval()


def _input(index: int) -> Any:
    return torch.linspace(-1, index, 3 * 30 * 30).reshape(1, 3, 30, 30)


def test_a_module_is_a_transform() -> None:
    network = _network()
    with loader(range(3), [_input, network], num_workers=2) as elements:
        for index, got in enumerate(elements):
            want = network(_input(index))
            assert got.requires_grad  # as where it was made, and as torch pickles it
            torch.testing.assert_close(got, want.detach().requires_grad_())


def test_a_module_in_a_closure_without_gradients() -> None:
    network = _network()

    @torch.no_grad()
    def predict(index: int) -> Any:
        return network(_input(index)), network.training

    with loader(range(3), predict, num_workers=2) as elements:
        for index, (got, training) in enumerate(elements):
            assert (training, got.requires_grad) == (False, False)
            torch.testing.assert_close(got, network(_input(index)).detach())


def test_a_module_of_a_script(run_python: RunPython) -> None:
    code = """
        import torch, stook

        class Double(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.factor = torch.nn.Parameter(torch.tensor(2.0), requires_grad=False)
            def forward(self, index):
                return torch.full((2000,), float(index)) * self.factor

        model = Double().eval()
        options = stook.MultiprocessingOptions(num_workers=2)
        steps = [model, lambda row: row + model(1)]
        with stook.DataLoader(range(4), steps, options=options) as loader:
            print([row[0].item() for row in loader])
    """
    done = run_python(code, deadline=DEADLINE, flags=PARTNER_FLAGS).check()
    assert done.stdout == "[2.0, 4.0, 6.0, 8.0]\n"


def test_unchanged_weights_keep_the_workers_and_changed_ones_arrive() -> None:
    weights = torch.ones(5000)
    factors = np.ones(5000)

    def look(index: int) -> Any:
        return os.getpid(), weights.sum().item(), factors.sum()

    with loader(range(2), look) as elements:
        first, second = set(elements), set(elements)
        weights *= 2
        factors *= 3
        (third,) = set(elements)
    assert first == second
    assert third[0] not in {pid for pid, _, _ in first}
    assert third[1:] == (10_000.0, 15_000.0)


@pytest.mark.parametrize("seed", [None, 0])
def test_workers_draw_different_numbers_from_torch(seed: int | None) -> None:
    def draw(index: int) -> float:
        return float(torch.rand(1, dtype=torch.float64))

    with loader(range(200), draw, num_workers=2, seed=seed) as elements:
        drawn = list(elements)
    assert len(set(drawn)) == len(drawn)


@pytest.mark.parametrize("method", ["forkserver", "fork"])
@pytest.mark.filterwarnings("ignore:start_method='fork':RuntimeWarning")
def test_torch_draws_by_seed_epoch_and_position(method: str) -> None:
    def drawn(workers: int, seed: int | None) -> list[list[float]]:
        options = {"start_method": method}
        with loader(
            range(20), _draw_from_torch, num_workers=workers, seed=seed, options=options
        ) as elements:
            return [list(elements) for _ in range(2)]

    first, second = drawn(2, 7)
    assert drawn(1, 7) == drawn(0, 7) == [first, second]
    assert len({*first, *second}) == 40  # each element of each epoch draws its own
    assert drawn(2, 8)[0] != first


def _draw_from_torch(index: int) -> Any:
    return torch.rand(3).sum().item() + index


def test_the_consumers_draws_from_torch_are_not_disturbed() -> None:
    torch.manual_seed(5)
    expected = torch.rand(4).tolist()
    torch.manual_seed(5)
    with loader(range(3), _draw_from_torch, num_workers=0) as elements:
        list(elements)
    assert torch.rand(4).tolist() == expected
