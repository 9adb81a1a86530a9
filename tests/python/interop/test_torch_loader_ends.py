"""Workers of `stook.torch.DataLoader` that end, on their own or with their iterator."""

from __future__ import annotations

import os
import re
import signal
import threading
from typing import Any

import pytest
from partner_loader import DEADLINE, PARTNER_FLAGS, require
from torch_loader_cases import Failing, Indices, loader

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


def test_closing_while_a_batch_is_dealt_ends_the_pass() -> None:
    def indices() -> Any:
        for index in range(20):
            if index == 6:
                iterator._shutdown_workers()  # as another thread may
            yield index

    class Sampler:
        def __iter__(self) -> Any:
            return indices()

    iterator = iter(loader(Indices(20), sampler=Sampler()))
    assert list(iterator) == [0, 1, 2]


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
