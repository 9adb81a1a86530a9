"""What `stook.torch.DataLoader` raises: torch's types and words, and never a hang."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from partner_loader import require
from torch_loader_cases import Failing, Indices, loader, raises, results

import stook
import stook.torch

(torch,) = require("torch")
data = torch.utils.data

pytestmark = [
    pytest.mark.filterwarnings("ignore:start_method='fork':RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
    pytest.mark.leaves("torch keeps the threads of its first parallel operation", "threads"),
]


class TwoArgumentsError(Exception):
    def __init__(self, code: int, where: str) -> None:
        super().__init__(code, where)
        self.code = code


@pytest.mark.parametrize(
    "error",
    [
        ValueError("bad"),
        KeyError("key"),
        OSError(2, "gone"),
        UnicodeDecodeError("a", b"", 0, 1, "r"),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("batch_size", [None, 3])
def test_errors_are_torchs(error: Exception, batch_size: int | None) -> None:
    if isinstance(error, UnicodeDecodeError):
        # torch cannot make it anew from a text, and raises a RuntimeError; here it is itself.
        (found,) = [r for r in results(iter(loader(Failing(raises(error), 2)))) if type(r) is tuple]
        assert found[0] is UnicodeDecodeError
        return
    seen = [
        results(iter(loader(Failing(raises(error), 2, 5), kind, batch_size=batch_size)))
        for kind in (stook.torch.DataLoader, data.DataLoader)
    ]
    assert str(seen[0]) == str(seen[1])
    assert [type(result) for result in seen[0]].count(tuple) == 2


def test_an_error_shows_the_workers_lines_and_has_the_original_as_its_cause() -> None:
    error = OSError(2, "gone", "photo.jpg")
    with pytest.raises(FileNotFoundError) as caught:
        list(loader(Failing(raises(error), 1)))
    text = str(caught.value)
    assert text.startswith("Caught FileNotFoundError in DataLoader worker process 1.\nOriginal Tr")
    assert "raise error" in text
    cause = caught.value.__cause__
    assert isinstance(cause, FileNotFoundError)
    assert cause.filename == "photo.jpg"


def test_an_error_of_ones_own_arguments_arrives_as_itself() -> None:
    with pytest.raises(TwoArgumentsError) as caught:
        list(loader(Failing(raises(TwoArgumentsError(7, "here")), 1)))
    assert caught.value.code == 7
    assert "raise error" in str(caught.value.__cause__)


def test_an_error_that_cannot_be_pickled_arrives_as_its_class_and_text() -> None:
    error = ValueError("bad", threading.Lock())
    with pytest.raises(ValueError, match=r"Caught ValueError.*\n(.*\n)*.*'bad', <unlocked"):
        list(loader(Failing(raises(error), 1)))


def test_stop_iteration_of_a_data_set_does_not_end_the_loop_in_silence() -> None:
    batches = iter(loader(Failing(raises(StopIteration(3)), 2)))
    assert [next(batches), next(batches)] == [0, 1]
    with pytest.raises(stook.ElementError, match="Caught StopIteration in DataLoader worker"):
        next(batches)
    assert list(batches) == [3, 4, 5, 6, 7]


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()], ids=repr)
def test_what_would_end_a_worker_is_an_error_of_the_loader(error: BaseException) -> None:
    batches = iter(loader(Failing(raises(error), 2)))
    assert [next(batches), next(batches)] == [0, 1]
    with pytest.raises(RuntimeError, match=r"worker \(pid\(s\) \d+\) exited unexpectedly.*raised"):
        next(batches)
    assert list(batches) == [3, 4, 5, 6, 7]


@pytest.mark.parametrize("kind", [stook.torch.DataLoader, data.DataLoader])
def test_errors_of_worker_init_fn(kind: Any) -> None:
    with pytest.raises(RuntimeError, match="Caught RuntimeError in DataLoader worker process 0"):
        list(loader(Indices(), kind, worker_init_fn=_refuse))


def _refuse(worker: int) -> None:
    raise RuntimeError(f"worker {worker} refuses")


def test_an_error_of_every_job_has_one_text() -> None:
    for dataset, init in ((Indices(), _refuse), (RefusingToIterate(), None)):
        batches = iter(loader(dataset, worker_init_fn=init, num_workers=1))
        texts = []
        for _ in range(4):
            with pytest.raises(RuntimeError) as caught:
                next(batches)
            texts.append(str(caught.value))
        assert len(set(texts)) == 1


class RefusingToIterate(data.IterableDataset):
    def __iter__(self) -> Any:
        raise RuntimeError("Error in __iter__")


def test_errors_of_iter() -> None:
    with pytest.raises(RuntimeError, match="Error in __iter__"):
        list(loader(RefusingToIterate()))


def test_errors_of_collate_fn() -> None:
    with pytest.raises(RuntimeError, match="each element in list of batch should be of equal size"):
        list(loader([[1], [1, 2]], batch_size=2))


def test_errors_of_a_sampler_come_where_torchs_do() -> None:
    def sampler() -> Iterator[int]:
        yield from range(6)
        raise LookupError("no more")

    seen = []
    for kind in (stook.torch.DataLoader, data.DataLoader):
        seen.append(results(iter(loader(Indices(), kind, sampler=_Iterating(sampler)))))
    assert seen[0] == seen[1]
    assert (LookupError, "no more") in seen[0]

    def failing() -> Iterator[int]:
        raise LookupError("not even one")
        yield 0

    with pytest.raises(LookupError, match="not even one"):
        iter(loader(Indices(), sampler=_Iterating(failing)))


class _Iterating:
    def __init__(self, make: Any) -> None:
        self._make = make

    def __iter__(self) -> Any:
        return self._make()


class _StumblingSampler:
    """Fails once, and goes on."""

    def __init__(self, at: int, length: int) -> None:
        self.at = at
        self.length = length
        self.count = -1

    def __iter__(self) -> _StumblingSampler:
        return self

    def __next__(self) -> int:
        self.count += 1
        if self.count == self.at:
            raise LookupError("once")
        if self.count >= self.length:
            raise StopIteration
        return self.count


def test_the_pass_goes_on_after_an_error_of_a_sampler_that_goes_on() -> None:
    seen = [
        results(iter(loader(Indices(), kind, sampler=_StumblingSampler(7, 20))))
        for kind in (stook.torch.DataLoader, data.DataLoader)
    ]
    assert seen[0] == seen[1]
    assert seen[0][-1] == 19


def refuse_to_arrive() -> Any:
    raise LookupError("not here")


class Unwelcome:
    """Can be sent, and not received."""

    def __reduce__(self) -> Any:
        return refuse_to_arrive, ()


@pytest.mark.parametrize("in_order", [True, False])
@pytest.mark.parametrize("persistent", [True, False])
def test_the_pass_goes_on_after_batches_that_cannot_be_received(
    in_order: bool, persistent: bool
) -> None:
    failing = Failing(lambda _: Unwelcome(), 2, 3, 9, length=20)
    batches = loader(failing, in_order=in_order, persistent_workers=persistent)
    want = [(LookupError, "not here") if index in failing.at else index for index in range(20)]
    for _ in range(2):
        iterator = iter(batches)
        seen = results(iterator)
        assert seen == want if in_order else sorted(map(str, seen)) == sorted(map(str, want))
        assert iterator._under_way == [0, 0]


def test_a_data_set_that_cannot_be_sent_says_what_of_it() -> None:
    dataset = Failing(threading.Lock())
    with pytest.raises(stook.StookError, match=r"lock.*cannot be pickled"):
        iter(loader(dataset, multiprocessing_context=None))
