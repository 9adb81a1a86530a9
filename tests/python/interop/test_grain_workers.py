"""`stook.grain` gives what Grain's own `mp_prefetch` gives: elements, order, states, errors."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from partner_loader import require

import stook
import stook.grain
from conftest import RunPython
from leftovers import wait_until

(grain,) = require("grain")

pytestmark = pytest.mark.leaves("Grain's threads, and JAX's", "threads", "descriptors", "mappings")

HERE = grain.ReadOptions(0, 0)  # no threads
THREADS = grain.ReadOptions(3, 5)


@pytest.fixture(autouse=True)
def _flags_are_parsed() -> None:
    from absl import flags

    flags.FLAGS.mark_as_parsed()  # which else absl.app.run would have done


class Doubled(grain.experimental.FlatMapTransform):  # type: ignore[misc]
    max_fan_out = 2

    def flat_map(self, element: Any) -> list[Any]:
        return [element, -element]


def noisy(element: int, rng: np.random.Generator) -> float:
    return element + rng.random()


def image(number: int) -> dict[str, Any]:
    return {"image": np.full((16, 16, 3), number, np.float32), "number": number}


def mapped(read: Any) -> Any:
    return grain.MapDataset.range(17).shuffle(seed=3).map(image).to_iter_dataset(read)


def random(read: Any) -> Any:
    data = grain.MapDataset.range(7).seed(5).shuffle().random_map(noisy).repeat(2)
    return data.to_iter_dataset(read)


def filtered(read: Any) -> Any:
    data = grain.MapDataset.range(23).to_iter_dataset(read)
    return data.filter(lambda x: x % 3 != 1).map(lambda x: np.int64(x)).batch(2)


def flattened(read: Any) -> Any:
    data = grain.MapDataset.range(9).filter(lambda x: x != 4).to_iter_dataset(read)
    return grain.experimental.FlatMapIterDataset(data, Doubled())


def mixed(read: Any) -> Any:
    parts = [grain.MapDataset.range(n).map(lambda x, n=n: (n, x)) for n in (4, 8)]
    return grain.IterDataset.mix([part.to_iter_dataset(read) for part in parts], [1, 2])


def empty(read: Any) -> Any:
    return grain.MapDataset.range(0).to_iter_dataset(read)


PIPELINES = [mapped, random, filtered, flattened, mixed, empty]


def plain(element: Any) -> Any:
    """With lists in the place of arrays, to be compared."""
    if isinstance(element, dict):
        return {name: plain(value) for name, value in element.items()}
    return element.tolist() if isinstance(element, np.ndarray) else element


def run(elements: Any, states: bool = True) -> list[Any]:
    """Each element with the state behind it."""
    ran = [("before", json.dumps(elements.get_state()))] if states else []
    ran += [
        (plain(element), json.dumps(elements.get_state()) if states else "") for element in elements
    ]
    return [*ran, ("end", json.dumps(elements.get_state()) if states else "")]


def threaded(data: Any, workers: int, sequential: bool = False) -> Any:
    """Grain's own slicing and interleaving, over threads: it starts no processes."""
    from grain._src.python.dataset.transformations import prefetch

    return prefetch.multithread_prefetch(data, workers, 1, sequential)


def ours(data: Any, workers: int, buffer: int = 1, **more: Any) -> Any:
    return stook.grain.mp_prefetch(data, grain.MultiprocessingOptions(workers, buffer), **more)


@pytest.mark.parametrize("read", [HERE, THREADS], ids=["here", "threads"])
@pytest.mark.parametrize("pipeline", PIPELINES)
def test_elements_order_and_states_are_grains(pipeline: Callable[[Any], Any], read: Any) -> None:
    for workers, buffer in [(2, 2), (3, 1)]:
        with closing(iter(ours(pipeline(read), workers, buffer))) as elements:
            found = run(elements)
        assert found == run(iter(threaded(pipeline(read), workers)))


def test_sequential_slices_are_grains() -> None:
    data = grain.MapDataset.range(10)
    with closing(iter(ours(data.to_iter_dataset(HERE), 3, sequential_slice=True))) as elements:
        assert list(elements) == [0, 4, 7, 1, 5, 8, 2, 6, 9, 3]


def test_processes_of_grain_give_the_same_and_take_the_same_states() -> None:
    options = grain.MultiprocessingOptions(2, 1)
    theirs = filtered(HERE).mp_prefetch(options)
    with closing(iter(theirs)) as elements:
        expected = run(elements)
        with closing(iter(ours(filtered(HERE), 2))) as own:
            assert run(own) == expected
            # Each goes on from the other's state.
            state = json.loads(expected[3][1])
            rest = [element for element, _ in expected[4:-1]]
            own.set_state(state)
            assert [plain(element) for element in own] == rest
            own.set_state(state)
            next(own)
            elements.set_state(own.get_state())
            assert [plain(element) for element in elements] == rest[1:]


@pytest.mark.parametrize("pipeline", [mapped, random, filtered, mixed])
def test_every_state_goes_on_exactly_in_the_same_processes(
    pipeline: Callable[[Any], Any],
) -> None:
    with closing(iter(ours(pipeline(THREADS), 2))) as elements:
        ran = run(elements)
        processes = elements._pool._core.worker_pids
        for number, (_, state) in enumerate(ran[:-1]):
            elements.set_state(json.loads(state))
            assert elements.get_state() == json.loads(state)
            assert run(elements)[1:] == ran[number + 1 :]
        assert elements._pool._core.worker_pids == processes


def test_it_is_a_dataset_to_go_on_with() -> None:
    data = ours(mapped(HERE), 2).map(lambda element: element["number"]).batch(4)
    assert isinstance(data, grain.IterDataset)
    assert np.concatenate(list(data)).tolist() == [element["number"] for element in mapped(HERE)]
    data = ours(grain.MapDataset.range(3).to_iter_dataset(HERE), 2)
    repeated = grain.experimental.RepeatIterDataset(data, num_epochs=3)
    with closing(iter(repeated)) as elements:
        elements.start_prefetch()
        assert list(elements) == [0, 1, 2] * 3
    elements = iter(data)
    assert next(elements) == 0
    elements.close()
    elements.close()
    for use in (elements.__next__, elements.start_prefetch):
        with pytest.raises(ValueError, match="closed iterator"):
            use()


def test_arrays_are_moved_and_stay() -> None:
    data = grain.MapDataset.range(12).map(lambda x: np.full((64, 64), x, np.float32))
    with closing(iter(ours(data.to_iter_dataset(HERE).batch(3), 2))) as elements:
        batches = list(elements)
        stats = elements.stats()
    assert (stats.moved, stats.copied) == (4, 0)
    for batch in batches:
        assert type(batch) is np.ndarray
        assert stook.is_shared(batch)
        batch += 1  # writable
    assert [batch[0, 0, 0] for batch in batches] == [1, 2, 7, 8]


def test_start_prefetch_makes_elements_before_one_is_asked_for(tmp_path: Path) -> None:
    def mark(number: int) -> int:
        (tmp_path / str(number)).touch()
        return number

    data = grain.MapDataset.range(6).map(mark).to_iter_dataset(HERE)
    with closing(iter(ours(data, 2))) as elements:
        elements.start_prefetch()
        elements.start_prefetch()
        assert wait_until(lambda: (tmp_path / "1").exists(), 30)
        state = elements.get_state()
        assert state["iterators_in_use_states"] == [{"next_index": 0}] * 2
        assert list(elements) == list(range(6))
        elements.set_state(state)
        elements.start_prefetch()
        elements.set_state(state)
        assert list(elements) == list(range(6))
    abandoned = iter(ours(data, 2))
    abandoned.start_prefetch()
    abandoned.close()


def test_no_workers_is_no_change_and_bad_arguments_are_refused() -> None:
    data = mapped(HERE)
    assert ours(data, 0) is data
    with pytest.raises(ValueError, match="`buffer_size` must be greater than 0, got 0"):
        ours(data, 2, 0)
    with pytest.raises(TypeError, match="to_iter_dataset"):
        ours(grain.MapDataset.range(3), 2)
    with pytest.raises(TypeError, match="options must be None"):
        stook.grain.mp_prefetch(data, 4)


class Numbers(grain.IterDataset):  # type: ignore[misc]
    """A source that cannot be sliced."""

    def __iter__(self) -> Any:
        return iter(grain.MapDataset.range(4).to_iter_dataset(HERE))


def test_a_source_that_cannot_be_sliced_is_for_one_worker() -> None:
    with closing(iter(ours(Numbers(), 1))) as elements:
        assert list(elements) == [0, 1, 2, 3]
    with closing(iter(ours(Numbers(), 2))) as elements:
        for _ in range(3):
            with pytest.raises(ValueError, match="Cannot slice `IterDataset` source"):
                next(elements)


def test_grain_is_imported_by_calls_alone(run_python: RunPython) -> None:
    done = run_python(
        """
        import sys
        import stook.grain

        assert "grain" not in sys.modules
        sys.modules["grain"] = None
        for call in (lambda: stook.grain.mp_prefetch([]), stook.grain.install):
            try:
                call()
            except ImportError as error:
                print(error)
        """
    )
    done.check()
    assert done.stdout.count("pip install grain") == 2


class Odd(Exception):
    def __init__(self, number: int, why: str) -> None:
        super().__init__(f"{number}: {why}")


def picky(number: int) -> int:
    if number in (3, 4, 8):
        check(number)
    return number


def check(number: int) -> None:
    raise Odd(number, "not today")


@pytest.mark.parametrize("read", [HERE, THREADS], ids=["here", "threads"])
@pytest.mark.parametrize("before", [True, False])
def test_an_error_costs_its_element_alone(read: Any, before: bool) -> None:
    data = grain.MapDataset.range(9)
    made = (
        data.map(picky).to_iter_dataset(read) if before else (data.to_iter_dataset(read).map(picky))
    )
    with closing(iter(ours(made, 2))) as elements:
        found: list[Any] = []
        states = []
        for _ in range(9):
            try:
                found.append(next(elements))
            except Odd as error:
                assert "picky" in str(error.__cause__)  # the worker's traceback
                found.append(str(error))
            states.append(elements.get_state())
        with pytest.raises(StopIteration):
            next(elements)
        wrong = {n: f"{n}: not today" for n in (3, 4, 8)}
        assert found == [wrong.get(n, n) for n in range(9)]
        elements.set_state(states[4])
        assert next(elements) == 5


def test_an_error_about_too_many_left_out_loses_nothing() -> None:
    # Grain looks at the share of every 1000 items: of 1000 first, then of 1001.
    data = grain.MapDataset.range(1003).filter(lambda x: x >= 1000).to_iter_dataset(HERE)
    options = grain.experimental.DatasetOptions(filter_raise_threshold_ratio=0.9995)
    data = grain.experimental.WithOptionsIterDataset(data, options)
    with closing(iter(ours(data, 1))) as elements:
        with pytest.raises(ValueError, match=r"skipped 100\.00 %"):
            next(elements)
        assert list(elements) == [1000, 1001, 1002]


def kill_once(number: int, mark: str) -> int:
    if number == 5 and not Path(mark).exists():
        Path(mark).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number


@pytest.fixture
def deadly(tmp_path: Path) -> Iterator[Any]:
    mark = str(tmp_path / "mark")
    yield grain.MapDataset.range(12).map(lambda x: kill_once(x, mark)).to_iter_dataset(HERE)


def test_a_death_is_an_error_and_nothing_is_lost(deadly: Any) -> None:
    with closing(iter(ours(deadly, 2, 3))) as elements:
        found = [next(elements) for _ in range(5)]
        with pytest.raises(RuntimeError, match="terminated unexpectedly with exit code -9"):
            next(elements)
        assert found + list(elements) == list(range(12))


def test_a_death_can_be_borne(deadly: Any) -> None:
    data = stook.grain.mp_prefetch(deadly, stook.MultiprocessingOptions(num_workers=2))
    with closing(iter(data)) as elements:
        assert list(elements) == list(range(12))


def remember(index: int, count: int) -> None:
    os.environ["GRAIN_WORKER"] = f"{index} of {count}"


def test_worker_init_fn_runs_first_in_each_worker() -> None:
    data = grain.MapDataset.range(4).map(lambda _: os.environ["GRAIN_WORKER"])
    with closing(iter(ours(data.to_iter_dataset(HERE), 2, worker_init_fn=remember))) as elements:
        assert list(elements) == ["0 of 2", "1 of 2"] * 2


def test_a_state_of_another_dataset_is_refused() -> None:
    two, three = iter(ours(mapped(HERE), 2)), iter(ours(mapped(HERE), 3))
    with pytest.raises(ValueError, match="num_workers=3, and this dataset has num_workers=2"):
        two.set_state(three.get_state())
    with pytest.raises(ValueError, match="not a state"):
        two.set_state({"next_index": 3})


def test_the_next_index_of_one_worker() -> None:
    from grain._src.python.dataset import dataset

    with closing(iter(ours(grain.MapDataset.range(6).to_iter_dataset(HERE), 1))) as elements:
        dataset.set_next_index(elements, 4)
        assert dataset.get_next_index(elements) == 4
        assert list(elements) == [4, 5]
    with pytest.raises(NotImplementedError):
        dataset.get_next_index(iter(ours(mapped(HERE), 2)))


def test_batches_take_the_dtype_that_all_items_need() -> None:
    data = grain.MapDataset.source([np.int32(1), np.int64(1 << 40)] * 2).to_iter_dataset(HERE)
    data = data.batch(2)
    data.enable_shared_memory_output()  # as Grain's own mp_prefetch leaves it behind
    with closing(iter(ours(data, 1))) as elements:
        assert [batch.tolist() for batch in elements] == [[1, 1 << 40]] * 2


def in_a_segment(number: int) -> dict[str, Any]:
    array = grain.multiprocessing.SharedMemoryArray((64, 64), np.float32)
    array[:] = number
    return {"array": array, "segment": array.shm.name}


def test_segments_of_grains_are_not_left_behind() -> None:
    data = grain.MapDataset.range(3).map(in_a_segment).to_iter_dataset(HERE)
    with closing(iter(ours(data, 1))) as elements:
        found = list(elements)
        for number, element in enumerate(found):
            assert type(element["array"]) is np.ndarray
            assert (element["array"] == number).all()
            segment = Path("/dev/shm", element["segment"])
            assert wait_until(lambda segment=segment: not segment.exists(), 30)


def unsendable(number: int) -> Any:
    return threading.Lock() if number == 2 else number


def test_an_element_that_cannot_be_pickled_is_an_error() -> None:
    data = grain.MapDataset.range(5).map(unsendable).to_iter_dataset(HERE)
    with closing(iter(ours(data, 2))) as elements:
        assert [next(elements), next(elements)] == [0, 1]
        with pytest.raises(TypeError, match="cannot pickle"):
            next(elements)
        assert list(elements) == [3, 4]


def slow(number: int) -> int:
    if number == 3:
        threading.Event().wait(600)
    return number


def test_a_timeout_ends_an_element_that_takes_too_long() -> None:
    data = grain.MapDataset.range(5).map(slow).to_iter_dataset(HERE)
    options = stook.MultiprocessingOptions(num_workers=2, timeout=2)
    with closing(iter(stook.grain.mp_prefetch(data, options))) as elements:
        assert [next(elements) for _ in range(3)] == [0, 1, 2]
        for _ in range(2):
            with pytest.raises(stook.ElementTimeout, match="element 3 took longer"):
                next(elements)


# ---- under unchanged programs --------------------------------------------------------------------


def loader(workers: int) -> Any:
    return grain.DataLoader(
        data_source=grain.sources.RangeDataSource(0, 22, 1),
        sampler=grain.samplers.IndexSampler(
            22, grain.sharding.NoSharding(), shuffle=True, num_epochs=1, seed=2
        ),
        operations=[grain.transforms.Batch(2)],
        worker_count=workers,
        read_options=HERE,
    )


def test_install_puts_workers_under_a_data_loader() -> None:
    theirs = iter(loader(2))
    expected = [(batch.tolist(), theirs.get_state()) for batch in theirs]
    with stook.grain.install():
        stook.grain.install()  # changes nothing
        elements = iter(loader(2))
        found = [(batch.tolist(), elements.get_state()) for batch in elements]
        assert found == expected
        elements.set_state(expected[2][1])
        batch = next(elements)
        assert batch.tolist() == expected[3][0]
        assert type(batch) is np.ndarray
    assert "Workers" not in str(mapped(HERE).mp_prefetch(grain.MultiprocessingOptions(2))._parent)


def test_install_reaches_mp_prefetch_and_can_be_taken_back() -> None:
    options = grain.MultiprocessingOptions(2)
    stook.grain.install()
    try:
        data = mapped(HERE).mp_prefetch(options)
        assert "Workers" in str(data._parent)
    finally:
        stook.grain.uninstall()
        stook.grain.uninstall()
    assert "Workers" not in str(mapped(HERE).mp_prefetch(options)._parent)
    with closing(iter(data)) as elements:
        assert [each["number"] for each in elements] == [each["number"] for each in mapped(HERE)]


def test_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.metadata

    monkeypatch.setattr(importlib.metadata, "version", lambda _: "9.9")
    with pytest.raises(stook.StookError, match=r"tried with 0\.2\.18; this is 9\.9"):
        stook.grain.install()
