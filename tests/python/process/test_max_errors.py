"""Passes that end because too much has failed: the same ones, wherever the elements are made."""

from __future__ import annotations

from typing import Any

import pytest

import stook
from stook import _core, _processes
from stook._element_errors import Report
from stook._task import BoundTask, LoaderTask

OPTIONS = pytest.mark.parametrize(
    "options",
    [
        stook.MultiprocessingOptions(num_workers=0),
        stook.MultiprocessingOptions(num_workers=2, start_method="fork"),
        stook.MultiprocessingOptions(num_workers=5, start_method="fork"),
        stook.MultithreadingOptions(num_threads=2),
    ],
    ids=["inline", "two", "five", "threads"],
)


def fail_in_tens(index: int) -> int:
    if index % 10 == 0:
        raise ValueError(index)
    return index


def run(loader: stook.DataLoader) -> tuple[list[Any], stook.TooManyErrors | None]:
    """The elements and messages of a pass, up to its end or to too many errors."""
    seen: list[Any] = []
    iterator = iter(loader)
    while True:
        try:
            element = next(iterator)
        except StopIteration:
            return seen, None
        except stook.TooManyErrors as error:
            assert list(iterator) == [], "the pass is over"
            return seen, error
        except ValueError as error:
            element = str(error)
        seen.append(element if isinstance(element, (int, str)) else element.tolist())


@OPTIONS
@pytest.mark.parametrize("source", ["indexed", "iterable"])
def test_so_many_errors_are_raised_and_no_more(options: Any, source: str) -> None:
    items = range(50) if source == "indexed" else iter(range(50))
    with stook.DataLoader(items, fail_in_tens, options=options, max_errors=2) as loader:
        seen, error = run(loader)
        assert seen == ["0", *range(1, 10), "10", *range(11, 20)]
        assert error is not None
        assert (error.errors, error.items, error.allowed) == (3, 21, 2)
        assert error.last == "ValueError: 20"
        assert isinstance(error.__cause__, ValueError)
        assert loader.stats().errors == 3


@OPTIONS
def test_fewer_errors_end_nothing_and_each_pass_counts_anew(options: Any) -> None:
    with stook.DataLoader(range(50), fail_in_tens, options=options, max_errors=5) as loader:
        for _ in range(3):
            seen, error = run(loader)
            assert error is None
            assert len(seen) == 50


@OPTIONS
@pytest.mark.parametrize("source", ["indexed", "iterable"])
def test_items_left_out_of_batches_count_one_by_one(options: Any, source: str) -> None:
    items = range(50) if source == "indexed" else iter(range(50))
    with stook.DataLoader(
        items, fail_in_tens, options=options, batch_size=15, on_error="skip", max_errors=3
    ) as loader:
        seen, error = run(loader)
        # 0 and 10, then 20, then 30 and 40.
        # Of the last ones two failed; the others are good, and were delivered first.
        assert [len(batch) for batch in seen] == [13, 14, 13]
        assert error is not None
        assert (error.errors, error.items) == (5, 45)


@OPTIONS
@pytest.mark.parametrize("source", ["indexed", "iterable"])
@pytest.mark.parametrize("batch_size", [None, 7])
def test_a_rate_counts_from_the_hundredth_item_on(
    options: Any, source: str, batch_size: int | None
) -> None:
    def load(index: int) -> int:
        if index % 4 == 1 or index > 150:
            raise ValueError(index)
        return index

    items = range(300) if source == "indexed" else iter(range(300))
    with stook.DataLoader(
        items, load, options=options, batch_size=batch_size, on_error="skip", max_errors=0.3
    ) as loader:
        seen, error = run(loader)
        assert error is not None
        assert error.errors > 0.3 * error.items
        assert error.items >= 100
        taken = [number for batch in seen for number in (batch if batch_size else [batch])]
        assert taken == [n for n in range(151) if n % 4 != 1][: len(taken)]
        # Neither earlier nor later: one item, or one batch, before it was not too much.
        step = batch_size or 1
        failed = [n for n in range(error.items) if n % 4 == 1 or n > 150]
        assert len(failed) == error.errors
        before = [n for n in failed if n < error.items - step]
        assert len(before) <= 0.3 * (error.items - step)


@OPTIONS
def test_a_rate_is_patient_at_first(options: Any) -> None:
    def load(index: int) -> int:
        if index < 40:
            raise ValueError(index)
        return index

    with stook.DataLoader(range(300), load, options=options, max_errors=0.5) as loader:
        seen, error = run(loader)
        assert error is None
        assert len(seen) == 300


@OPTIONS
@pytest.mark.parametrize("source", ["indexed", "iterable"])
def test_a_state_taken_at_too_many_errors_goes_on_behind_them(options: Any, source: str) -> None:
    items = range(75) if source == "indexed" else list(range(75))
    with stook.DataLoader(
        items, fail_in_tens, options=options, batch_size=15, on_error="skip", max_errors=3
    ) as loader:
        iterator = iter(loader)
        sizes = [len(next(iterator)) for _ in range(3)]
        assert sizes == [13, 14, 13], "what is good of the last one is delivered"
        states = [iterator.get_state()]
        with pytest.raises(stook.TooManyErrors) as caught:
            next(iterator)
        assert (caught.value.errors, caught.value.items) == (5, 45)
        states.append(iterator.get_state())
        assert list(iterator) == []
        states += [iterator.get_state(), loader.get_state()]
        assert [state["position"] for state in states] == [3] * 4
        # Errors are counted on: the next one is one too many again.
        iterator.set_state(states[0])
        assert next(iterator).tolist() == [n for n in range(45, 60) if n != 50]
        # What is to be raised next is not raised elsewhere.
        iterator.set_state(states[0])
        assert next(iterator).tolist()[0] == 45
        with pytest.raises(stook.TooManyErrors):
            next(iterator)
        # Nor does it hold in another pass.
        assert len(next(iter(loader))) == 13


@OPTIONS
def test_what_is_not_there_is_not_waited_for(options: Any) -> None:
    """Where nothing of an element is good, the error comes in its place."""

    def fail_behind(index: int) -> int:
        if index >= 4:
            raise ValueError(index)
        return index

    with stook.DataLoader(
        range(20), fail_behind, options=options, batch_size=2, on_error="skip", max_errors=1
    ) as loader:
        iterator = iter(loader)
        assert [next(iterator).tolist() for _ in range(2)] == [[0, 1], [2, 3]]
        with pytest.raises(stook.TooManyErrors) as caught:
            next(iterator)
        assert (caught.value.errors, caught.value.items) == (2, 6)
        state = iterator.get_state()
        assert state["position"] == 3
        iterator.set_state({**state, "position": 1})
        assert next(iterator).tolist() == [2, 3]


@pytest.mark.parametrize("buffer_size", [1, 2])
def test_a_shorter_batch_has_fewer_items(buffer_size: int) -> None:
    """However many jobs are under way: another one is dealt before a result is looked at."""
    options = stook.MultiprocessingOptions(
        num_workers=1, start_method="fork", per_worker_buffer_size=buffer_size
    )

    def load(index: int) -> int:
        if index >= 109:
            raise ValueError(index)
        return index

    with stook.DataLoader(
        range(110),
        load,
        options=options,
        batch_size=100,
        on_error="skip",
        num_epochs=None,
        max_errors=1,
    ) as loader:
        seen, error = run(loader)
        assert error is not None
        assert [len(batch) for batch in seen] == [100, 9, 100, 9]
        assert (error.errors, error.items) == (2, 220)


class ReportingTask(LoaderTask):
    """Each element is good, and has cost what its index says."""

    def bind(self, where: str = "worker") -> BoundTask:
        return lambda epoch, position, payload: Report(payload, failed=payload)


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("jobs", ["plan", "python"])
def test_the_element_that_is_one_too_many_is_delivered(ordered: bool, jobs: str) -> None:
    def deal(indices: range) -> Any:
        if jobs == "python":
            return iter([(0, index, index) for index in indices])
        return _core.IndexPlan(indices.stop, first_position=indices.start)

    options = stook.MultiprocessingOptions(num_workers=1, start_method="fork")
    pool = _processes.start(ReportingTask(None), options)
    try:
        iterator = pool.iterate(deal(range(10)), ordered=ordered, max_errors=5)
        assert [next(iterator) for _ in range(4)] == [0, 1, 2, 3]
        assert iterator.delivered() == (4, [])
        with pytest.raises(stook.TooManyErrors, match="6"):
            next(iterator)
        assert iterator.delivered() == (4, []), "nothing else counts as delivered"
        assert list(iterator) == []
        # It can be set back, or go on behind what was delivered.
        iterator._restart(deal(range(4, 10)), ())
        assert next(iterator) == 4
        iterator._restart(deal(range(1)), ())
        assert list(iterator) == [0], "what was put off is not the next pass's"
    finally:
        pool.close()
