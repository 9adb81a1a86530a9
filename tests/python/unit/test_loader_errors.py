"""Errors of user code: where they come, and what they name."""

from __future__ import annotations

import pytest
from loader_cases import Indexed, Repeated, each_number_of_workers, loader, outcomes

import stook


@each_number_of_workers
@pytest.mark.parametrize("indexed", [True, False])
def test_the_iterator_goes_on_after_an_error(workers: int, indexed: bool) -> None:
    def load(value: int) -> int:
        if value == 11:
            raise KeyError("no such thing")
        return value

    source = Indexed(10, 11, 12) if indexed else Repeated(10, 11, 12)
    with loader(source, load, workers=workers) as elements:
        iterator = iter(elements)
        assert outcomes(iterator) == [
            10,
            (KeyError, ["while loading element 1 (index 1)"]),
            12,
        ]
        assert list(iterator) == []
        assert elements.stats().errors == 1
        assert elements.stats().elements == 2


@each_number_of_workers
def test_an_error_in_a_batch_names_its_index(workers: int) -> None:
    with loader([3, 2, 1, 0, 1], lambda x: 1 / x, workers=workers, batch_size=2) as elements:
        found = outcomes(iter(elements))
    assert found[1] == (
        ZeroDivisionError,
        ["while loading element 1 (index 3, item 1 of the batch)"],
    )
    assert len(found) == 3


@each_number_of_workers
def test_an_error_in_collate_names_its_element(workers: int) -> None:
    def collate(items: list[int]) -> int:
        return 1 // items[0]

    with loader([0, 1], workers=workers, batch_size=1, collate=collate) as elements:
        assert outcomes(iter(elements)) == [
            (ZeroDivisionError, ["while loading element 0"]),
            1,
        ]


@each_number_of_workers
def test_an_index_error_does_not_end_the_loop(workers: int) -> None:
    class Lying(Indexed):
        def __len__(self) -> int:
            return 3

    with loader(Lying(1), workers=workers) as elements:
        assert [found if found == 1 else found[0] for found in outcomes(iter(elements))] == [
            1,
            IndexError,
            IndexError,
        ]


@each_number_of_workers
@pytest.mark.parametrize("kind", [StopIteration, StopAsyncIteration, GeneratorExit, SystemExit])
@pytest.mark.parametrize("batch_size", [None, 1])
def test_user_code_cannot_end_the_loop_or_the_program(
    workers: int, kind: type[BaseException], batch_size: int | None
) -> None:
    def load(value: int) -> int:
        if value == 1:
            raise kind(5)
        return value

    with loader(range(3), load, workers=workers, batch_size=batch_size) as elements:
        iterator = iter(elements)
        next(iterator)
        with pytest.raises(stook.ElementError, match=kind.__name__) as caught:
            next(iterator)
        assert type(caught.value.__cause__) is kind
        assert caught.value.index == 1
        assert next(iterator) == 2
        assert list(iterator) == []


def test_ctrl_c_reaches_the_consumer_and_costs_no_element() -> None:
    interrupts = [KeyboardInterrupt()]

    def load(value: int) -> int:
        if value == 1 and interrupts:
            raise interrupts.pop()
        return value

    iterator = iter(loader(range(3), load, workers=0))
    assert next(iterator) == 0
    with pytest.raises(KeyboardInterrupt):
        next(iterator)
    assert list(iterator) == [1, 2]
