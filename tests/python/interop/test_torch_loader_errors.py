"""What `stook.torch.DataLoader` raises: torch's types and words, and never a hang."""

from __future__ import annotations

import os
import re
import signal
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from partner_loader import DEADLINE, PARTNER_FLAGS, require
from torch_loader_cases import Indices

import stook
import stook.torch
from conftest import RunPython
from leftovers import wait_until

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


class Failing(Indices):
    """Runs a function instead of giving the items that `at` names."""

    def __init__(self, function: Any, *at: int, length: int = 8) -> None:
        super().__init__(length)
        self.function = function
        self.at = at

    def __getitem__(self, index: int) -> Any:
        if index in self.at:
            return self.function(index)
        return index


def raises(error: BaseException) -> Any:
    def function(_: int) -> Any:
        raise error

    return function


def loader(dataset: Any, kind: Any = stook.torch.DataLoader, **settings: Any) -> Any:
    settings = {"batch_size": None, "num_workers": 2, "multiprocessing_context": "fork", **settings}
    return kind(dataset, **settings)


def results(batches: Iterator[Any]) -> list[Any]:
    """Batches, and in the places of errors their types and first lines."""
    seen: list[Any] = []
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return seen
        except Exception as error:
            seen.append((type(error), str(error).splitlines()[0]))
        else:
            seen.append(batch)


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


def test_a_data_set_that_cannot_be_sent_says_what_of_it() -> None:
    dataset = Failing(threading.Lock())
    with pytest.raises(stook.StookError, match=r"lock.*cannot be pickled"):
        iter(loader(dataset, multiprocessing_context=None))


# ---- workers that end --------------------------------------------------------------------------


def kill(_: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_is_an_error_in_torchs_words_and_more() -> None:
    batches = iter(loader(Failing(kill, 2)))
    assert [next(batches), next(batches)] == [0, 1]
    with pytest.raises(RuntimeError) as caught:
        next(batches)
    text = str(caught.value)
    assert re.match(r"DataLoader worker \(pid \d+\) is killed by signal: Killed\. ", text)
    match = r"DataLoader worker \(pid\(s\) \d+\) exited unexpectedly: worker 0 .*-9 \(SIGKILL\)"
    assert re.search(match, text)
    assert str(type(caught.value)(text)) == text
    assert isinstance(caught.value, stook.WorkerDied)
    # The others' batches are not lost, nor is what the dead one's successor can make.
    assert list(batches) == [3, 4, 5, 6, 7]


def test_a_worker_that_leaves_with_a_status() -> None:
    batches = iter(loader(Failing(lambda _: os._exit(5), 0, length=1)))
    with pytest.raises(RuntimeError, match=r"exited unexpectedly: .*exit code 5"):
        next(batches)


def test_on_worker_death_restart_makes_the_batch_again(tmp_path: Any) -> None:
    def kill_once(index: int) -> int:
        try:
            (tmp_path / "killed").touch(exist_ok=False)
        except FileExistsError:
            return index
        kill(index)
        raise AssertionError

    options = stook.MultiprocessingOptions(on_worker_death="restart")
    assert list(loader(Failing(kill_once, 2), options=options)) == list(range(8))


def test_leaving_early_is_no_death_that_counts() -> None:
    options = stook.MultiprocessingOptions(on_worker_death="restart", max_restarts=0)
    batches = stook.torch.DataLoader(Indices(4), None, num_workers=2, options=options)
    for _ in range(2):
        for batch in batches:  # the other worker may not have given anything
            assert batch == 0
            break
    assert list(batches) == [0, 1, 2, 3]


class Numbers(data.IterableDataset):
    """Worker w gives w, w + 10, ...; worker 1 dies when it is to give its third."""

    def __init__(self, path: Any = None) -> None:
        self.path = path

    def __iter__(self) -> Any:
        worker = data.get_worker_info().id
        for number in range(6):
            if self.path is None and worker == 1 and number == 2:
                kill(0)
            yield 10 * number + worker


def test_a_dead_worker_of_an_iterable_data_set_ends_the_pass() -> None:
    # A successor would begin at the beginning, and give what was given.
    batches = iter(loader(Numbers()))
    assert [next(batches) for _ in range(5)] == [0, 1, 10, 11, 20]
    with pytest.raises(RuntimeError, match="exited unexpectedly"):
        next(batches)
    assert list(batches) == []


def test_persistent_workers_that_were_lost_are_new_in_the_next_pass(tmp_path: Any) -> None:
    batches = loader(Numbers(), persistent_workers=True)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="exited unexpectedly"):
            list(batches)


def test_a_forked_child_iterates_with_workers_of_its_own(run_python: RunPython) -> None:
    done = run_python(
        """
        import os, torch
        from stook.torch import DataLoader

        for persistent in (False, True):
            loader = DataLoader(torch.arange(4), 2, num_workers=1, persistent_workers=persistent)
            print([batch.tolist() for batch in loader], flush=True)
            child = os.fork()
            if child == 0:
                print([batch.tolist() for batch in loader], flush=True)
                del loader
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0
            print([batch.tolist() for batch in loader], flush=True)
        """,
        flags=("-W", "ignore"),
        deadline=DEADLINE,
    )
    assert done.stdout == "[[0, 1], [2, 3]]\n" * 6, done.stderr


def test_a_worker_that_dies_between_its_jobs_gives_nothing_twice() -> None:
    batches = iter(loader(Numbers("no path"), prefetch_factor=1))
    assert [next(batches), next(batches)] == [0, 1]
    pid = batches._workers[0].pid
    assert batches._workers[0].is_alive()
    # Its next job is done or under way, or not: it is lost, or what comes after it is.
    os.kill(pid, signal.SIGKILL)
    batches._workers[0].join(30)
    assert not batches._workers[0].is_alive()
    seen = []
    with pytest.raises(RuntimeError, match="exited unexpectedly"):
        seen.extend(batches)
    assert set(seen) <= {10, 11}


def test_timeout_is_an_error_in_torchs_words(tmp_path: Any) -> None:
    def wait(_: int) -> None:
        (tmp_path / "waits").touch()
        threading.Event().wait()

    batches = iter(loader(Failing(wait, 2), timeout=1.5, num_workers=1))
    assert [next(batches), next(batches)] == [0, 1]
    assert wait_until((tmp_path / "waits").exists, 30)
    with pytest.raises(RuntimeError, match=r"DataLoader timed out after 1\.5 seconds"):
        next(batches)
    assert list(batches) == []


def test_a_timeout_that_does_not_come_changes_nothing() -> None:
    assert list(loader(Indices(40), timeout=100)) == list(range(40))


# ---- the end -----------------------------------------------------------------------------------


def test_workers_end_with_their_iterator() -> None:
    for persistent in (False, True):
        batches = loader(Indices(), persistent_workers=persistent)
        iterator = iter(batches)
        list(iterator)
        workers = iterator._workers
        assert all(worker.is_alive() == persistent for worker in workers)
        del batches, iterator
        for worker in workers:
            worker.join(30)
            assert not worker.is_alive()


def test_leaving_early_ends_the_workers(tmp_path: Any) -> None:
    iterator = iter(loader(Indices(100), multiprocessing_context=None))
    next(iterator), next(iterator)
    workers = iterator._workers
    del iterator
    for worker in workers:
        worker.join(30)
        assert not worker.is_alive()


@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("end", ["pass", "raise RuntimeError('end of the program')"])
def test_programs_end(run_python: RunPython, persistent: bool, end: str) -> None:
    done = run_python(
        f"""
        import torch
        from stook.torch import DataLoader

        loader = DataLoader(torch.arange(20), 2, num_workers=2, persistent_workers={persistent})
        iterator = iter(loader)
        print(next(iterator), flush=True)
        {end}
        """,
        flags=PARTNER_FLAGS,
        deadline=DEADLINE,
    )
    assert done.stdout == "tensor([0, 1])\n"
    assert done.returncode == (0 if end == "pass" else 1), done.stderr
    assert ("end of the program" in done.stderr) == (end != "pass")


def test_ctrl_c_ends_the_wait(run_python: RunPython) -> None:
    done = run_python(
        """
        import _thread, os, sys, threading, torch
        from stook.torch import DataLoader

        class Slow(torch.utils.data.Dataset):
            def __len__(self):
                return 4
            def __getitem__(self, index):
                if index == 1:
                    os.write(writer, b"x")
                    threading.Event().wait()
                return index

        def interrupt():
            os.read(reader, 1)
            _thread.interrupt_main()

        reader, writer = os.pipe()
        iterator = iter(DataLoader(Slow(), num_workers=1, multiprocessing_context="fork"))
        try:
            threading.Thread(target=interrupt).start()
            next(iterator)
            next(iterator)
        except KeyboardInterrupt:
            print("interrupted")
        """,
        flags=PARTNER_FLAGS,
        deadline=DEADLINE,
    )
    assert done.stdout == "interrupted\n", done.stderr
    assert done.returncode == 0


def test_a_killed_program_leaves_nothing(run_python: RunPython) -> None:
    done = run_python(
        """
        import os, signal, torch
        from stook.torch import DataLoader

        for batch in DataLoader(torch.arange(20), 2, num_workers=2):
            os.kill(os.getpid(), signal.SIGKILL)
        """,
        flags=PARTNER_FLAGS,
        deadline=DEADLINE,
    )
    assert done.returncode == -signal.SIGKILL


def test_without_torch_it_says_what_to_install(run_python: RunPython) -> None:
    done = run_python(
        """
        import sys
        sys.modules["torch"] = None
        import stook.torch
        for use in (lambda: stook.torch.DataLoader, lambda: stook.torch.as_tensors([])):
            try:
                use()
            except ImportError as error:
                print(error)
        """
    )
    assert done.stdout == "stook.torch needs PyTorch: pip install torch\n" * 2
    assert done.returncode == 0


def test_torch_is_imported_when_it_is_needed(run_python: RunPython) -> None:
    done = run_python("import sys, stook.torch; print('torch' in sys.modules)")
    assert done.stdout == "False\n"


def test_a_name_that_is_not_there() -> None:
    with pytest.raises(AttributeError, match=r"stook\.torch.*no attribute 'Dataloader'"):
        _ = stook.torch.Dataloader


def test_a_loader_in_a_worker_of_a_loader() -> None:
    def inner(batch: Any) -> list[int]:
        within = stook.torch.DataLoader(
            list(range(batch, batch + 3)), None, num_workers=1, multiprocessing_context="fork"
        )
        return list(within)

    assert list(loader(Indices(2), num_workers=1, collate_fn=inner)) == [[0, 1, 2], [1, 2, 3]]
