"""`prefetch_to`: a thread that runs a function on elements ahead of whoever takes them."""

from __future__ import annotations

import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ._async_iteration import ABSENT, Waiters
from ._deliveries import CLOSED
from ._handing import HandingIterator
from ._iterator import LoaderIterator
from ._threads_crew import GRACE_SECONDS, LONGEST_SLEEP, end_if_forked
from .errors import StookError
from .stats import LoaderStats

__all__ = ["PrefetchIterator"]

_FORKED = (
    "this iterator belongs to the process that made it, and this is a forked child of it; make a"
    " loader here"
)

# Where a pass stands: what an iterator's delivered() gives, whether it has ended, and next_item()
# where it is needed.
_Where = tuple[int, list[int], bool, "tuple[int, int, int] | None"]


def _where(iterator: LoaderIterator) -> _Where:
    next_item = iterator.next_item() if iterator._pass.jobs.fills else None
    return (*iterator.delivered(), iterator._has_ended(), next_item)


class _Work:
    """What the thread and its consumer share. The thread holds this, and not the iterator.

    `changed` guards what is below it. The thread alone appends to `ready`; the consumer takes from
    it, and clears it while the thread is parked.
    """

    def __init__(self, inner: LoaderIterator, function: Callable[[Any], Any], depth: int) -> None:
        self.inner = inner
        self.function = function
        self.depth = depth
        self.pid = os.getpid()
        self.waiters = Waiters()
        # On a reentrant lock: a finalizer may close the iterator in the middle of it.
        self.changed = threading.Condition()
        self.ready: deque[tuple[bool, Any, _Where]] = deque()
        self.fetching = iter(self.ready.popleft, None)
        self.thread: threading.Thread | None = None
        self.is_parked = True  # neither in the iterator under it nor in the function
        self.pauses = 0
        self.over = False  # closed or dropped

    def run(self) -> None:
        """In the thread: until the pass ends, or nobody wants more."""
        while self._begin():
            success, value = self._make()
            end_if_forked(self.pid, None if success else value)
            inner = self.inner
            where = _where(inner)
            ended = not success and type(value) is StopIteration
            with self.changed:
                self.is_parked = True
                if ended:
                    self.thread = None
                if not self.over:
                    self.ready.append((success, value, where))
                del value
                self.changed.notify_all()
                self.waiters.tell()
            if ended:
                return

    def _begin(self) -> bool:
        """Waits until another result is wanted; `False`: none will be."""
        with self.changed:
            while not self.over and (self.pauses or len(self.ready) >= self.depth):
                self.changed.wait()
            if self.over:
                self.thread = None
                return False
            self.is_parked = False
            return True

    def _make(self) -> tuple[bool, Any]:
        try:
            element = next(self.inner)
        except BaseException as error:  # StopIteration: its end
            return False, error
        try:
            return True, self.function(element)
        except (StopIteration, StopAsyncIteration, KeyboardInterrupt) as error:
            # Raised in a loop they would end it without a word, or look like Ctrl-C.
            wrapped = RuntimeError(f"prefetch_to: the function raised {type(error).__name__}")
            wrapped.__cause__ = error
            return False, wrapped
        except BaseException as error:
            return False, error

    def end(self) -> None:
        """Ends the thread, after what it does now, and the iterator under it. Any thread."""
        if os.getpid() != self.pid:
            return
        with self.changed:
            self.over = True
            thread = self.thread
            self.ready.clear()
            self.changed.notify_all()
            self.waiters.tell()
        self.inner.close()
        if thread is not None and thread is not threading.current_thread():
            thread.join(GRACE_SECONDS)


class PrefetchIterator(HandingIterator):
    """A pass whose elements another iterator gives, after a function was run on them."""

    def __init__(self, inner: LoaderIterator, function: Callable[[Any], Any], depth: int) -> None:
        work = self._work = _Work(inner, function, depth)
        self._begin_at(_where(inner))
        self._loader = inner._loader
        self._pass = inner._pass
        self._pass.hand_over(self)
        inner._is_handed_over = True
        # Not __del__: also when the interpreter exits.
        self._end = weakref.finalize(self, work.end)

    def _prepare(self) -> None:
        self._check_process()
        work = self._work
        with work.changed:
            while not self._fetch():
                work.changed.notify_all()  # Ctrl-C may have come before that was done
                work.changed.wait(LONGEST_SLEEP)

    def _prepare_at_once(self) -> Any:
        # Nobody else is told: all that there is to hear of is told when it becomes ready.
        self._check_process()
        with self._work.changed:
            return None if self._fetch() else ABSENT

    def _fetch(self) -> bool:
        """Under the lock: has what is ready in hand; starts the thread if there is none."""
        work = self._work
        if self._hand:
            return True
        if work.ready:
            for outcome in work.fetching:  # not popleft(): behind a call it could be lost
                self._hand.append(outcome)
                break
            work.changed.notify_all()
            return True
        if self._where[2]:
            raise StopIteration
        if work.over:
            raise StookError(CLOSED)
        if work.thread is None:
            self._start()
        return False

    def _start(self) -> None:
        work = self._work
        thread = threading.Thread(target=work.run, name="stook-prefetch", daemon=True)
        work.thread = thread  # first: Ctrl-C in start() comes when it runs already
        try:
            thread.start()
        except BaseException:
            if thread.ident is None:
                work.thread = None
            raise

    def _check_process(self) -> None:
        # Before a lock is taken: in the child, the thread may hold it, and is not there.
        if os.getpid() != self._work.pid:
            raise StookError(_FORKED)

    def close(self) -> None:
        """Ends the pass and the thread; waits a moment for what it does now."""
        # A pass that came to its end has no thread any more, and may be set back.
        if not self._where[2]:
            self._end()
            self._hand.clear()

    def stats(self) -> LoaderStats:
        """The counts of the iterator under it: of what was taken ahead, too."""
        return self._work.inner.stats()

    def delivered(self) -> tuple[int, list[int]]:
        found: tuple[int, list[int]] = self._where[:2]
        return found

    def next_item(self) -> tuple[int, int, int]:
        next_item: tuple[int, int, int] = self._where[3]
        return next_item

    def _is_closed(self) -> bool:
        return self._work.over

    def _has_ended(self) -> bool:
        ended: bool = self._where[2]
        return ended

    def _waiters(self) -> Waiters:
        return self._work.waiters

    def _at_standstill(self, call: Callable[[], None]) -> None:
        self._check_process()
        work = self._work
        if work.thread is threading.current_thread():
            raise StookError("set_state() was called by the function that prefetch_to() runs")
        paused = False
        try:
            with work.changed:
                work.pauses += 1
                paused = True
                while not work.is_parked and not work.over:
                    work.changed.wait(LONGEST_SLEEP)
            if work.over:  # close() does not wait for who is in user code, nor does this
                raise StookError(CLOSED)
            work.inner._at_standstill(call)
        finally:
            if paused:
                work.pauses -= 1  # before anything that Ctrl-C could come in
                with work.changed:
                    work.changed.notify_all()

    def _restart(self, jobs: Iterator[Any], skip: Sequence[int]) -> None:
        work = self._work
        with work.changed:
            if work.over:
                raise StookError(CLOSED)
            inner = work.inner
            inner._restart(jobs, skip)
            work.ready.clear()
            self._begin_at(_where(inner))
