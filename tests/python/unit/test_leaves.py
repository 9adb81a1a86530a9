"""Each kind of leaf and tree arrives as pickling would have given it, in both directions."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from courier import Courier
from leaf_cases import CASES, LARGE, echo, make
from same import assert_same

from stook import DataLoader, MultiprocessingOptions

# Kinds of leaves that NumPy is about to give up, and that some release still has.
pytestmark = [
    pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The chararray class is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The 'generic' unit for NumPy:DeprecationWarning"),
]


@pytest.fixture(scope="module")
def courier() -> Iterator[Courier]:
    with Courier() as courier:
        yield courier


def pickled(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value, 5))


@pytest.mark.parametrize("name", CASES)
def test_what_a_worker_makes(courier: Courier, name: str) -> None:
    original = make(name)
    assert_same(courier.call(make, name), pickled(original), original=original)


@pytest.mark.parametrize("name", CASES)
def test_what_goes_to_a_worker_and_back(courier: Courier, name: str) -> None:
    original = make(name)
    want = pickled(original)
    assert_same(courier.call(echo, original), want, original=original)
    assert_same(original, make(name))  # sending changes nothing


@pytest.mark.parametrize("name", CASES)
def test_what_is_copied_out_of_shared_memory(name: str, copying: Courier) -> None:
    original = make(name)
    kept, got = copying.map(make, [(name,), (name,)])
    assert_same(got, pickled(original), original=original)
    assert_same(kept, pickled(original), original=original)


@pytest.fixture(scope="module")
def copying() -> Iterator[Courier]:
    """With a limit so low that what is delivered while something is held is copied out."""
    with Courier(memory_limit=1) as courier:
        yield courier


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("array-")])
def test_delivered_arrays_are_plain_and_writable(courier: Courier, name: str) -> None:
    array = courier.call(make, name)
    assert type(array) is np.ndarray
    # An array of references is unpickled as it is; all others are new memory of the consumer's.
    assert array.flags.writeable
    array[...] = array.copy()


def test_a_dtype_whose_names_were_exchanged(courier: Courier) -> None:
    for names in ("a", "b"), ("c", "d"), ("a", "b"):
        array = courier.call(_structured_with_names, names)
        assert array.dtype.names == names


_own_dtype = np.dtype([("a", "i4"), ("b", "f8")])
_own_nested = np.dtype([("outer", _own_dtype)])


def _structured_with_names(names: tuple[str, ...]) -> Any:
    _own_dtype.names = names
    return np.zeros(LARGE, _own_dtype)


def test_exchanging_the_names_in_a_dtype_that_arrived(courier: Courier) -> None:
    first = courier.call(_structured)
    first.dtype.names = ("x", "y")
    first.dtype["x"].names = ("inner",)
    again = courier.call(_structured)
    assert again.dtype.names == ("p", "q")
    assert again.dtype["p"].names == ("r",)


_nested = np.dtype([("p", [("r", "i2")]), ("q", "f8")])


def _structured() -> Any:
    return np.zeros(LARGE, _nested)


def _nested_with_names(names: tuple[str, ...]) -> Any:
    _nested_of_worker["outer"].names = names
    return np.zeros(LARGE, _nested_of_worker)


_nested_of_worker = np.dtype([("outer", [("a", "i4"), ("b", "f8")])])


def test_a_dtype_within_a_dtype_whose_names_were_exchanged(courier: Courier) -> None:
    for names in ("a", "b"), ("c", "d"):
        assert courier.call(_nested_with_names, names).dtype["outer"].names == names


def test_what_cannot_be_pickled_is_an_error_of_its_element_alone(courier: Courier) -> None:
    with pytest.raises(TypeError, match=r"cannot pickle .*lock"):
        courier.call(_lock)
    with pytest.raises((RecursionError, pickle.PicklingError), match="recursion"):
        courier.call(_bottomless)
    assert courier.call(int) == 0


def _lock() -> Any:
    import threading

    return {"array": np.zeros(LARGE), "lock": threading.Lock()}


def _bottomless() -> Any:
    found: list[Any] = []
    for _ in range(100_000):
        found = [found]
    return found


def test_pickling_that_changes_the_element(courier: Courier) -> None:
    got = courier.call(_changes_itself)
    want = pickled(_changes_itself())
    assert [type(item) for item in got["items"]] == [type(item) for item in want["items"]]


class Changing:
    """Grows the element while it is pickled."""

    def __init__(self, element: dict[str, Any]) -> None:
        self.element = element

    def __reduce__(self) -> Any:
        if len(self.element["items"]) == 1:
            self.element["items"].append(5)
        return Changing, ({"items": ()},)


def _changes_itself() -> Any:
    element: dict[str, Any] = {"items": []}
    element["items"].append(Changing(element))
    return element


def test_an_item_that_is_its_own_result_is_moved() -> None:
    items = [np.arange(LARGE), {"a": [np.arange(LARGE) + 1]}]
    with DataLoader(iter(items), options=MultiprocessingOptions(num_workers=1)) as loader:
        first, second = loader
        assert (loader.stats().moved, loader.stats().copied) == (2, 0)
    assert_same([first, second], items)


@pytest.mark.parametrize("limit", [1, 64, 4096, 1 << 40])
def test_min_shared_bytes_changes_no_value(limit: int) -> None:
    with Courier(min_shared_bytes=limit) as courier:
        for size in (0, 1, 100, 4095, 4096, 4097, 100_000):
            got = courier.call(np.full, size, 7, "u1")
            assert got.tobytes() == bytes([7]) * size
            assert courier.stats.moved == (1 if size >= limit else 0), size


def test_tensors(courier: Courier) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    for want in [
        torch.arange(5000),
        torch.arange(5000, dtype=torch.bfloat16),
        torch.zeros(70, 80).t(),
        torch.tensor(3.5),
        torch.zeros(0),
        torch.ones(5000, requires_grad=True),
        torch.zeros(5000, dtype=torch.complex64).conj(),
    ]:
        got = courier.call(echo, {"tensor": want})["tensor"]
        assert type(got) is torch.Tensor
        assert (got.dtype, got.shape, got.requires_grad) == (
            want.dtype,
            want.shape,
            want.requires_grad,
        )
        assert torch.equal(got.detach(), want.detach())
