"""A Grain dataset whose elements come from Stook's workers.

Importing this imports Grain. Where it is missing the classes are of no use: `grain.py` says so.
"""

from __future__ import annotations

import contextlib
import importlib
import pickle
import threading
import weakref
from collections.abc import Callable, Mapping
from typing import Any

from ._error_payload import decode_error
from ._grain_worker import FRESH, LOST, PipelineTask, debug_flags, import_internals
from ._processes import ProcessIterator, ProcessPool, start
from .errors import ElementTimeout, WorkerDied
from .options import MultiprocessingOptions
from .stats import LoaderStats

__all__ = ["WorkersIterDataset", "WorkersIterator"]

_NONE = object()  # in place of a result

_IterDataset: Any = object
_DatasetIterator: Any = object
with contextlib.suppress(ModuleNotFoundError):
    _IterDataset = importlib.import_module("grain").IterDataset
    _DatasetIterator = importlib.import_module("grain").DatasetIterator


class WorkersIterDataset(_IterDataset):  # type: ignore[misc]
    """The elements of a dataset, each `num_workers`-th of which one worker makes.

    `options` are Stook's; `restarts` is how many deaths of a worker over one element are borne.
    """

    def __init__(
        self,
        parent: Any,
        options: MultiprocessingOptions,
        worker_init_fn: Callable[[int, int], Any] | None,
        sequential_slice: bool,
        restarts: int,
    ) -> None:
        super().__init__(parent)
        self._options = options
        self._worker_init_fn = worker_init_fn
        self._sequential_slice = sequential_slice
        self._restarts = restarts

    def __iter__(self) -> WorkersIterator:
        return WorkersIterator(
            self._parent,
            self._options,
            self._worker_init_fn,
            self._sequential_slice,
            self._restarts,
        )

    def __str__(self) -> str:
        return f"WorkersIterDataset(num_workers={self._options.num_workers})"

    @property
    def _element_spec(self) -> Any:
        return import_internals().dataset.get_element_spec(self._parent)


class _Jobs:
    """Deals the workers their turns, without end until each has said that it has no more.

    The iterator over it holds it, so it does not hold that.
    """

    def __init__(
        self,
        generation: int,
        first: int,
        cursor: int,
        starts: list[bytes | None],
        ended: list[bool],
    ) -> None:
        self.first = first
        self._ended = ended
        self._generation = generation
        self._cursor = cursor
        self._starts = starts
        self._number = first

    def __iter__(self) -> _Jobs:
        return self

    def __next__(self) -> tuple[int, int, bytes | None, int]:
        count = len(self._ended)
        worker = self._cursor
        for _ in range(count):
            if not self._ended[worker]:
                break
            worker = (worker + 1) % count
        else:
            raise StopIteration
        # Nothing is called from here on, so that Ctrl-C leaves a job dealt or not dealt.
        job = self._generation, self._number, self._starts[worker], worker
        self._starts[worker] = None
        self._cursor = (worker + 1) % count
        self._number += 1
        return job


class _First(threading.Thread):
    """Takes the first result, so that jobs are dealt before anybody asks for an element.

    It ends when there is one, or when the iterator over the results is closed. Ctrl-C may come
    while it is started, so that nobody knows whether it runs: whoever asks first takes the result.
    """

    def __init__(self, elements: ProcessIterator) -> None:
        super().__init__(name="stook-grain-first", daemon=True)
        self.result: Any = None
        self.error: BaseException | None = None
        self._elements: ProcessIterator | None = elements
        self._taker: dict[str, str] = {}  # written once: setdefault() is one step

    def is_taken_by(self, name: str) -> bool:
        """Whether it is `name` who takes the result: the first who asked."""
        return self._taker.setdefault("", name) == name

    def run(self) -> None:
        elements, self._elements = self._elements, None
        assert elements is not None
        if not self.is_taken_by("thread"):
            return
        try:
            self.result = next(elements)
        except BaseException as error:
            self.error = error


class WorkersIterator(_DatasetIterator):  # type: ignore[misc]
    """One pass. States are those of Grain's own `mp_prefetch`.

    Each element brings its worker and the state of that one's slice behind it, so that elements
    made ahead are not lost when a state is taken, nor when a worker dies: then all slices go back
    to what was delivered.

    Ctrl-C costs no element. CPython looks for signals where a function begins, after calls and
    where loops go back. So a result is kept as soon as it is there, by a `for`, and what changes
    with its delivery changes in assignments without a call among them.
    """

    # Also of one whose __init__ was not reached: __del__ closes it.
    _closed = True
    _pool: ProcessPool | None = None
    _elements: ProcessIterator | None = None
    _first: _First | None = None

    def __init__(
        self,
        parent: Any,
        options: MultiprocessingOptions,
        worker_init_fn: Callable[[int, int], Any] | None,
        sequential_slice: bool,
        restarts: int,
    ) -> None:
        super().__init__()
        self._pipeline = parent
        self._worker_options = options
        self._worker_init_fn = worker_init_fn
        self._sequential_slice = sequential_slice
        self._restarts = restarts
        self._ctx.dataset_options = import_internals().prefetch.get_dataset_options(parent)

        count = options.num_workers
        self._count = count
        self._cursor = 0
        self._states = [FRESH] * count  # pickled: behind what was delivered of each slice
        self._ended = [False] * count
        self._first_state: bytes | None = None
        self._generation = -1
        self._deaths = 0  # over the element that comes next
        self._jobs: _Jobs = _Jobs(0, 0, 0, [], [])
        self._number = 0  # of the job whose result comes next
        self._result: Any = _NONE  # one that was taken, and is not delivered
        self._is_unsettled = False  # an error came in the place of a result, or of none
        self._finalizer: Callable[[], Any] = lambda: None

    # ---- elements --------------------------------------------------------------------------------

    def __next__(self) -> Any:
        while True:
            self._take_result()
            result = self._result
            if type(result) is tuple:
                element, state, worker = result
                self._states[worker] = state
                self._cursor = 0 if worker + 1 == self._count else worker + 1
                self._number += 1
                self._deaths = 0
                self._result = _NONE
                return element
            if type(result) is list:
                payload, state, worker = result
                error = decode_error(payload)
                if state is None:
                    self._elements = None  # it begins again when asked again
                else:
                    self._states[worker] = state
                    self._cursor = 0 if worker + 1 == self._count else worker + 1
                    self._number += 1
                    self._deaths = 0
                self._result = _NONE
                raise error
            if result == LOST:
                self._go_back()
                continue
            worker = result
            if not self._ended[worker]:
                self._ended[worker] = True
                self._cursor = 0 if worker + 1 == self._count else worker + 1
                self._deaths = 0
            self._number += 1
            self._result = _NONE

    def _take_result(self) -> None:
        """Waits until there is a result to deliver, or raises what came in its place."""
        while self._result is _NONE:
            try:
                if self._first is not None:
                    self._take_first(self._first)
                    continue
                self._settle()
                elements = self._elements
                if elements is None:
                    elements = self._begin()
                for self._result in elements:
                    return
                if False not in self._ended:
                    raise StopIteration
                self._elements = None  # Ctrl-C where jobs are dealt: there were no more then
            except StopIteration:
                raise
            except (WorkerDied, ElementTimeout) as error:
                self._elements = None  # it begins again when asked again
                self._deaths += 1
                if self._deaths > self._restarts or not isinstance(error, WorkerDied):
                    self._deaths = 0
                    raise
            except BaseException:
                self._is_unsettled = True
                raise

    def _take_first(self, first: _First) -> None:
        if first.is_taken_by("consumer"):
            self._first = None
            return
        first.join()
        if first.error is None:
            self._result = first.result
        self._first = None
        if first.error is not None:
            raise first.error

    def _settle(self) -> None:
        """After an error that no result brought: goes on behind the element that it was of, if any.

        The elements come in turn, so it is that of the next worker that has some.
        """
        if not self._is_unsettled or self._first is not None or self._result is not _NONE:
            return
        delivered = 0 if self._elements is None else self._elements.delivered()[0]
        if delivered > self._number - self._jobs.first:
            worker = self._cursor
            for _ in range(self._count):
                if not self._ended[worker]:
                    break
                worker = (worker + 1) % self._count
            self._cursor = (worker + 1) % self._count
            self._number += 1
            self._deaths = 0
        self._is_unsettled = False

    # ---- where the pass is -----------------------------------------------------------------------

    def _begin(self) -> ProcessIterator:
        self._assert_not_closed()
        self._start_processes()
        return self._go_back()

    def _go_back(self) -> ProcessIterator:
        """Sends the workers to behind what was delivered; those that live stay as they are."""
        assert self._pool is not None
        self._generation += 1
        starts: list[bytes | None] = [*self._states]
        # The list is shared: a slice that has ended gets no more jobs.
        jobs = _Jobs(self._generation, self._number, self._cursor, starts, self._ended)
        elements = self._pool.iterate(jobs, ordered=True)
        self._jobs = jobs
        self._elements = elements
        self._result = _NONE
        return elements

    def get_state(self) -> dict[str, Any]:
        """As of Grain's `mp_prefetch` with as many workers, and to be set there as well."""
        self._settle()
        return {
            "next_index_in_cycle": self._cursor,
            "next_index_in_datasets": self._count,
            "iterators_in_use_indices": list(range(self._count)),
            "iterators_in_use_states": [
                pickle.loads(self._state_at_first() if state == FRESH else state)
                for state in self._states
            ],
            "exhausted": [int(ended) for ended in self._ended],
            "future_states": {},
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes on where a state was taken, here or by Grain; the processes stay as they are.

        Raises:
          ValueError: The state is one of another number of workers, or of something else.
        """
        self._assert_not_closed()
        self._restart(*self._read_state(state))

    def _restart(self, cursor: int, states: list[bytes], ended: list[bool]) -> None:
        elements = self._elements
        self._cursor = cursor
        self._states = states
        self._ended = ended
        self._deaths = 0
        self._first = None
        self._result = _NONE
        self._elements = None
        if elements is not None:
            # What is under way is given up now, and the next job is dealt when it is asked for.
            elements.close()

    def _read_state(self, state: Mapping[str, Any]) -> tuple[int, list[bytes], list[bool]]:
        try:
            cursor = int(state["next_index_in_cycle"])
            begun = int(state["next_index_in_datasets"])
            indices = [int(index) for index in state["iterators_in_use_indices"]]
            states: list[Any] = list(state["iterators_in_use_states"])
            exhausted = [bool(ended) for ended in state["exhausted"]]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                "set_state: this is not a state of an iterator of mp_prefetch:"
                f" {type(error).__name__}: {error}"
            ) from None
        if not len(indices) == len(states) == len(exhausted) == self._count:
            raise ValueError(
                f"set_state: the state is of num_workers={len(states)}, and this dataset has"
                f" num_workers={self._count}; use as many"
            )
        if indices != list(range(self._count)) or not 0 <= cursor < self._count:
            raise ValueError(
                f"set_state: the state has slices {indices} and the next one at {cursor}, and the"
                f" slices of this dataset are 0 to {self._count - 1}, in order"
            )
        return (
            cursor,
            [FRESH if each is None else pickle.dumps(each, protocol=5) for each in states],
            # One that Grain has not begun has no state yet; another one without has ended.
            [
                ended or (each is None and index < begun)
                for index, (ended, each) in enumerate(zip(exhausted, states, strict=True))
            ],
        )

    def _state_at_first(self) -> bytes:
        if self._first_state is None:
            iterator = iter(self._pipeline)
            self._first_state = pickle.dumps(iterator.get_state(), protocol=5)
        return self._first_state

    def _get_next_index(self) -> int:
        self._check_one_worker("get_next_index")
        iterator = iter(self._pipeline)
        if self._states[0] != FRESH:
            iterator.set_state(pickle.loads(self._states[0]))
        index: int = import_internals().dataset.get_next_index(iterator)
        return index

    def _set_next_index(self, index: int) -> None:
        self._check_one_worker("set_next_index")
        self._assert_not_closed()
        iterator = iter(self._pipeline)
        import_internals().dataset.set_next_index(iterator, index)
        self._restart(0, [pickle.dumps(iterator.get_state(), protocol=5)], [False])

    def _check_one_worker(self, what: str) -> None:
        if self._count != 1:
            raise NotImplementedError(
                f"{what} needs num_workers=1, and this dataset has num_workers={self._count}"
            )

    # ---- processes -------------------------------------------------------------------------------

    def start_prefetch(self) -> None:
        """Starts the worker processes, and has them make the first elements.

        Raises:
          ValueError: The iterator is closed.
        """
        if self._closed:
            raise ValueError("Attempting to use a closed iterator.")
        if self._elements is None:
            self._start_processes()
            first = _First(self._go_back())
            self._first = first
            first.start()

    def _start_processes(self) -> None:
        if self._pool is not None:
            return
        task = PipelineTask(
            import_internals().process_prefetch._serialize_dataset(self._pipeline),
            self._worker_init_fn,
            self._sequential_slice,
            self._ctx.dataset_options,
            debug_flags(),
        )
        self._pool = start(task, self._worker_options)  # type: ignore[arg-type]
        # Not __del__ alone: also when the interpreter exits.
        self._finalizer = weakref.finalize(self, self._pool.close)

    def stats(self) -> LoaderStats:
        """Counts over the life of the iterator: elements, moved and copied arrays, and others."""
        if self._pool is None:
            return LoaderStats()
        return self._pool.stats()

    def close(self) -> None:
        """Ends the worker processes at once, also one that is stuck in user code.

        Arrays that were delivered stay valid. Closing again does nothing; `next()` raises a
        `ValueError`.
        """
        self._closed = True
        self._first = None
        self._result = _NONE
        if self._elements is not None:
            self._elements.close()
            self._elements = None
        if self._pool is not None:
            self._finalizer()

    def __str__(self) -> str:
        return f"WorkersIterator(num_workers={self._count})"
