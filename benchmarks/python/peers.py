"""Every way of running a function in workers, behind one signature.

Each peer is a context manager: ``peer(work, workers, buffer)`` gives an iterator over elements
0, 1, 2, ... in order, which never ends. ``buffer`` is what one worker may have made ahead, beside
the element in its hand; a peer with one number for all workers gets ``workers * (buffer + 1)``.
"""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import multiprocessing
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from typing import Any

from works import BATCH, Work

ENDLESS = 10**7  # elements in a source that must have a length
Elements = Iterator[Any]


class NotComparable(Exception):  # noqa: N818 - it is no error
    """This peer cannot do what is asked; the message says why. It is skipped, by name."""


def window(workers: int, buffer: int) -> int:
    return workers * (buffer + 1)


@contextmanager
def one_process(work: Work, workers: int, buffer: int) -> Iterator[Elements]:
    yield map(work.make, itertools.count())


def submitted(executor: Executor, work: Work, ahead: int) -> Elements:
    """Results in order, at most ``ahead`` of them submitted and not yet taken."""
    futures = deque(executor.submit(work.make, index) for index in range(ahead))
    for index in itertools.count(ahead):
        result = futures.popleft().result()
        futures.append(executor.submit(work.make, index))
        yield result


@contextmanager
def threads(work: Work, workers: int, buffer: int) -> Iterator[Elements]:
    with ThreadPoolExecutor(workers) as executor:
        yield submitted(executor, work, window(workers, buffer))
        executor.shutdown(wait=True, cancel_futures=True)


@contextmanager
def process_executor(work: Work, workers: int, buffer: int) -> Iterator[Elements]:
    fork = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(workers, mp_context=fork) as executor:
        yield submitted(executor, work, window(workers, buffer))
        executor.shutdown(wait=True, cancel_futures=True)


@contextmanager
def pool_imap(work: Work, workers: int, buffer: int) -> Iterator[Elements]:
    # imap has no bound on what it makes ahead, other than what its task pipe holds.
    with multiprocessing.get_context("fork").Pool(workers) as pool:
        yield pool.imap(work.make, itertools.count())


@contextmanager
def joblib_generator(work: Work, workers: int, buffer: int) -> Iterator[Elements]:
    from joblib import Parallel, delayed

    run = Parallel(workers, return_as="generator", pre_dispatch=window(workers, buffer))
    with closing(run(delayed(work.make)(index) for index in itertools.count())) as results:
        yield results


def torch_with(module: str, method: str) -> Callable[..., AbstractContextManager[Elements]]:
    @contextmanager
    def torch_loader(work: Work, workers: int, buffer: int) -> Iterator[Elements]:
        from torch.utils.data import Dataset

        loader_class = importlib.import_module(module).DataLoader
        make = work.element or work.make

        class Made(Dataset):  # type: ignore[type-arg]
            def __len__(self) -> int:
                return ENDLESS

            def __getitem__(self, index: int) -> Any:
                return make(index)

        yield iter(
            loader_class(
                Made(),
                batch_size=BATCH if work.element else None,
                num_workers=workers,
                prefetch_factor=buffer,
                multiprocessing_context=method,
            )
        )

    return torch_loader


def grain_with(
    read_options: dict[str, int], ours: bool = False
) -> Callable[..., AbstractContextManager[Elements]]:
    @contextmanager
    def grain_prefetch(work: Work, workers: int, buffer: int) -> Iterator[Elements]:
        import grain
        from absl import flags

        # Grain's workers look at absl's flags, which only absl.app.run would have parsed.
        flags.FLAGS.mark_as_parsed()
        data = grain.MapDataset.range(ENDLESS).map(work.element or work.make)
        data = data.to_iter_dataset(grain.ReadOptions(**read_options))
        if work.element:
            data = data.batch(BATCH)
        options = grain.MultiprocessingOptions(workers, buffer)
        if ours:
            import stook.grain

            data = stook.grain.mp_prefetch(data, options)
        else:
            data = data.mp_prefetch(options)
        with closing(iter(data)) as elements:
            yield elements

    return grain_prefetch


@contextmanager
def spdl_executor(work: Work, workers: int, buffer: int) -> Iterator[Elements]:
    from spdl.pipeline import PipelineBuilder

    fork = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(workers, mp_context=fork) as executor:
        pipeline = (
            PipelineBuilder()
            .add_source(range(ENDLESS))
            .pipe(
                work.make,
                executor=executor,
                concurrency=window(workers, buffer),
                output_order="input",
            )
            .add_sink(buffer)
            .build(num_threads=1)
        )
        with pipeline.auto_stop():
            yield iter(pipeline)


@dataclass
class Made:
    """An iterable that pickles by name: SPDL's subprocess iterates it there."""

    work: Work

    def __iter__(self) -> Elements:
        return map(self.work.make, itertools.count())


@contextmanager
def spdl_arena(work: Work, workers: int, buffer: int) -> Iterator[Elements]:
    from spdl.pipeline import SharedMemorySegmentPool, iterate_in_subprocess

    if workers != 1:
        raise NotComparable("SPDL's arena serves one worker only")
    segments = SharedMemorySegmentPool(work.nbytes + 4096, buffer + 3)
    made = iterate_in_subprocess(
        lambda: Made(work),
        buffer_size=buffer,
        mp_context="fork",
        arena=segments,
    )
    yield iter(made)


def stook_with(seed: int | None) -> Callable[..., AbstractContextManager[Elements]]:
    @contextmanager
    def stook_loader(work: Work, workers: int, buffer: int) -> Iterator[Elements]:
        import stook

        options = stook.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=buffer)
        with stook.DataLoader(
            range(ENDLESS),
            work.element or work.make,
            batch_size=BATCH if work.element else None,
            seed=seed,
            options=options,
        ) as loader:
            yield iter(loader)

    return stook_loader


@dataclass(frozen=True)
class Peer:
    title: str
    run: Callable[[Work, int, int], AbstractContextManager[Elements]]
    needs: str | None = None  # the module to import

    def missing(self) -> str | None:
        """Why this peer cannot run here, or None."""
        if self.needs and importlib.util.find_spec(self.needs) is None:
            return f"{self.needs} is not installed"
        return None


PEERS = {
    "one": Peer("one process", one_process),
    "threads": Peer("ThreadPoolExecutor", threads),
    "stook": Peer("Stook", stook_with(None), "stook"),
    "stook-seed": Peer("Stook, default seed", stook_with(0), "stook"),
    "imap": Peer("multiprocessing.Pool.imap", pool_imap),
    "executor": Peer("ProcessPoolExecutor", process_executor),
    "torch": Peer("torch DataLoader", torch_with("torch.utils.data", "fork"), "torch"),
    "stook-torch": Peer("stook.torch DataLoader", torch_with("stook.torch", "fork"), "torch"),
    # One thread per worker, as for all others.
    "grain": Peer(
        "Grain mp_prefetch",
        grain_with({"num_threads": 0, "prefetch_buffer_size": 0}),
        "grain",
    ),
    "stook-grain": Peer(
        "stook.grain mp_prefetch",
        grain_with({"num_threads": 0, "prefetch_buffer_size": 0}, ours=True),
        "grain",
    ),
    "spdl": Peer("SPDL, executor stage", spdl_executor, "spdl"),
    "spdl-arena": Peer("SPDL arena", spdl_arena, "spdl"),
    "joblib": Peer("joblib", joblib_generator, "joblib"),
    # On request: as it comes, with 16 threads per worker and up to 500 elements made ahead.
    "grain-threads": Peer("Grain mp_prefetch, default ReadOptions", grain_with({}), "grain"),
}
