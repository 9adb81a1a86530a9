"""The thread of a pool of futures: delivers what nobody else delivers, and runs callbacks.

Who delivers is whoever waits for a result (`Future.result` runs the pool itself, so that no thread
has to be woken for it), or an event loop whose coroutines do (`_event_loop.py`); else this thread:
at once if somebody counts on being told (a callback, `concurrent.futures.wait`, a shutdown), after
some milliseconds if nobody does. With nothing to deliver it sleeps in the pool, without a limit, to
hear of workers that die.

It does not look at a clock while it sleeps in the pool: whoever changes what it looks at rings.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ._signal_handlers import main_thread

if TYPE_CHECKING:  # asyncio is imported by who uses it
    from ._event_loop import LoopLink, LoopLinks
    from ._futures import FuturePool
    from ._task_future import TaskFuture

__all__ = ["Attendant"]

# For how long results may lie there while nobody asked to be told. Within it, threads that call
# `result()` again and again deliver for themselves, and this thread stays out of their way.
_GRACE = 0.004
_LINGER = 12  # graces without anything new, then it goes to sleep
_TAKE_OVER = 0.05  # for how long an event loop that waits for results may leave them there
# The same for the main thread, which a signal handler may keep from them: it waits for some in ways
# that nobody is told of.
_MAIN_TAKE_OVER = 0.1
_INSTANT = 0.001
_PATIENCE = 10  # instants
# For how long a future's lock is waited for, if none was found taken for good; and the pause
# between two looks at those that were.
_LOCK_PATIENCE = 0.25
_LOCK_LOOK = 0.05


class Attendant:
    """The thread, and what others tell it.

    Any thread may call any method, also in a finalizer that interrupts another one.

    Attributes:
      thread: Ends with the pool.
      is_awake: False while it may sleep through a submit, unless `wake_up` is called after it.
      visits: Changes with each visit of a thread that submits or waits; written by any of them.
    """

    def __init__(self, pool: FuturePool, name: str) -> None:
        self._pool = pool
        self._tasks = pool.tasks
        # Whoever takes what is in it looks at everything after that.
        self._bell: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._to_call: deque[TaskFuture] = deque()
        self._late: deque[TaskFuture] = deque()
        # Hints about who should deliver: written by any thread, read by this one.
        self.is_awake = True
        self.visits = 0
        self._is_watched = False
        self._impatient: set[object] = set()
        self._main = main_thread()
        self._impatient_mains: set[object] = set()  # those of them that are the main thread
        self._loops: LoopLinks | None = None
        # Where it sleeps: written by this thread, read by those who may have to ring.
        self._is_inside = False  # in the pool
        self._steps_aside = False  # there, until somebody else waits
        self._is_resting = False  # until those who wait have gone
        self._has_ended = False
        self.thread = threading.Thread(target=self._run, name=name, daemon=True)

    # ---- what others tell it ---------------------------------------------------------------------

    def ring(self) -> None:
        """Has it look at everything."""
        if self._bell.empty():
            self._bell.put(None)
        if self._is_inside:
            self._tasks.wake()

    def wake_up(self) -> None:
        """Something was submitted while it may have been asleep."""
        self.is_awake = True
        self.ring()

    def watch(self) -> None:
        """From now on somebody counts on being told."""
        if not self._is_watched:
            self._is_watched = True
            self.ring()

    def come(self, visitor: object) -> None:
        """The calling thread waits for a result, and so may deliver; `go` has to follow."""
        self.visits -= 1  # submit() counts the other way: it changes, whatever happens
        self._impatient.add(visitor)
        if threading.get_ident() == self._main:
            self._impatient_mains.add(visitor)
            if self._is_resting:
                self.ring()
        self.step_aside()

    def go(self, visitor: object) -> None:
        """It does so no more."""
        self._impatient.discard(visitor)
        self._impatient_mains.discard(visitor)
        if self._is_resting:
            self.ring()

    def step_aside(self) -> None:
        """Lets somebody else deliver, if it does so for want of anybody else."""
        if self._steps_aside:
            self._tasks.wake()

    def call_back(self, future: TaskFuture) -> None:
        """Has the callbacks of a future called, soon."""
        self._to_call.append(future)
        if self._has_ended:  # which interrupted a thread that was about to tell it
            self._call_back_all()
        else:
            self.ring()

    def let_call_back(self, callbacks: deque[Any]) -> None:
        """Gives callbacks the time to run, as they nearly always have in the original.

        A progress bar that is updated by them would end short of its end. They may need what this
        thread holds, so it does not wait for them.
        """
        if threading.current_thread() is self.thread:
            return
        for _ in range(_PATIENCE):
            if not callbacks:
                return
            time.sleep(_INSTANT)

    def loop_link(self) -> LoopLink | None:
        """What has the event loop of this thread deliver; `None` if no loop runs in it."""
        loops = self._loops
        if loops is None:
            from ._event_loop import LoopLinks

            loops = self.__dict__.setdefault("_made_loops", LoopLinks(self._tasks))
            self._loops = loops
        return loops.current()

    def lock_patience(self) -> float:
        """Seconds for which a future's lock is to be waited for."""
        return 0.0 if self._late else _LOCK_PATIENCE

    def publish_later(self, future: TaskFuture) -> None:
        """Tells those who wait for a future of its result when its lock is free."""
        self._late.append(future)
        self.ring()
        self._tasks.wake()  # those who can do without the lock

    # ---- the thread ------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._deliver_until_the_end()
        except BaseException as error:  # a fault of this file: nobody may wait for ever
            self._pool.fail(error)
            raise
        finally:
            self._has_ended = True  # before the last look at who is to be called back
            self._pool.leave()
            self._publish_late()
            self._call_back_all()

    def _deliver_until_the_end(self) -> None:
        tasks = self._tasks
        idle = graces = visits = 0
        while not tasks.is_closed:
            self._publish_late()
            self._call_back_all()
            if not tasks.outstanding:
                self._is_watched = False
                if tasks.outstanding:
                    self._is_watched = True
                elif self._pool.refuses:
                    if not self._to_call:
                        tasks.close()
                elif idle < _LINGER:
                    idle += 1
                    self._sleep(_GRACE)
                else:
                    idle = 0
                    self.is_awake = False
                    # Who submits from here on wakes it; who did before is seen.
                    self._deliver(self._is_called)
                    self.is_awake = True
                continue
            idle = 0
            if self._is_watched or self._pool.refuses:
                self._deliver(self._has_news)
            elif self._loops is not None and self._loops.is_awaited():
                # The loops deliver, unless something keeps them from running.
                outstanding, visits = tasks.outstanding, self.visits
                self._sleep(_TAKE_OVER)
                if tasks.outstanding == outstanding and visits == self.visits:
                    tasks.pass_handlers()
                    tasks.deliver()
            elif self._impatient or visits != self.visits:
                graces = graces + 1 if visits == self.visits else 0
                visits = self.visits
                if graces < _LINGER:
                    self._sleep(_GRACE)
                else:
                    # Who goes from here on rings, and the main thread if it comes; who did before
                    # is seen.
                    self._is_resting = True
                    if self._impatient:
                        self._sleep(_MAIN_TAKE_OVER if self._impatient_mains else None)
                    self._is_resting = False
                    if self._impatient_mains:
                        tasks.pass_handlers()
                        tasks.deliver()  # nothing, unless it was kept from it
            else:
                self._steps_aside = True
                self._deliver(self._is_not_needed)
                self._steps_aside = False

    def _deliver(self, until: Callable[[], bool]) -> None:
        self._is_inside = True
        self._tasks.wait(until, _LOCK_LOOK if self._late else None)
        self._is_inside = False

    # Each looks at what is changed before this thread is rung for.

    def _is_called(self) -> bool:
        return bool(self._to_call or self._late or self._pool.refuses or self._tasks.outstanding)

    def _has_news(self) -> bool:
        return bool(self._to_call) or not self._tasks.outstanding

    def _is_not_needed(self) -> bool:
        if self._impatient or self._has_news() or self._is_watched:
            return True
        return self._loops is not None and self._loops.is_awaited()

    def _sleep(self, seconds: float | None) -> None:
        with contextlib.suppress(queue.Empty):
            self._bell.get(timeout=seconds)

    def _call_back_all(self) -> None:
        with contextlib.suppress(IndexError):  # another thread has called the last one
            while self._to_call:
                self._to_call.popleft()._invoke_callbacks()

    def _publish_late(self) -> None:
        for _ in range(len(self._late)):
            future = self._late.popleft()
            if future._is_late and not future._publish_under_lock(0.0):
                self._late.append(future)
