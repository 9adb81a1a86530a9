"""The worker processes that pure functions share: started by the first call, for the program."""

from __future__ import annotations

import asyncio
import atexit
import os
import weakref
from collections.abc import Callable
from typing import Any

from ._event_loop import LoopLink
from ._locks import renew_lock_in_child
from ._start import forget_in_children
from ._task_pool import TaskPool
from .errors import PoolBroken
from .options import MultiprocessingOptions

__all__ = ["Settings", "SharedPool", "end_kept_pools", "shared_pool"]


class Settings:
    """What a pool is started with. Functions whose settings are equal share one."""

    __slots__ = ("initargs", "initializer", "max_workers", "options")

    def __init__(
        self,
        max_workers: int | None,
        initializer: Callable[..., Any] | None,
        initargs: tuple[Any, ...],
        options: MultiprocessingOptions | None,
    ) -> None:
        self.max_workers = max_workers
        self.initializer = initializer
        self.initargs = initargs
        self.options = options

    def _all(self) -> tuple[Any, ...]:
        return self.max_workers, self.initializer, self.initargs, self.options

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Settings) and self._all() == other._all()

    def __hash__(self) -> int:
        return hash(self._all())

    def __reduce__(self) -> tuple[Any, ...]:
        return Settings, self._all()

    def workers(self) -> int:
        if self.max_workers is not None:
            return self.max_workers
        if self.options is not None and self.options.num_workers > 0:
            return self.options.num_workers
        return len(os.sched_getaffinity(0))


class SharedPool:
    """The workers of all functions with the same settings; started by the first call."""

    _lock: Any  # see _locks.py

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._pool: TaskPool | None = None
        # For the loop that called last; and for each.
        self._link: LoopLink | None = None
        self._links: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, LoopLink]
        self._links = weakref.WeakKeyDictionary()
        # What has sent functions to the workers and keeps what came of it, as `_sent`.
        self.users: weakref.WeakSet[Any] = weakref.WeakSet()
        renew_lock_in_child(self)
        forget_in_children(self)

    def pool(self) -> TaskPool:
        """A pool that is open."""
        pool = self._pool
        return pool if pool is not None and not pool.is_closed else self._start()

    def _start(self) -> TaskPool:
        with self._lock:
            if self._pool is not None and not self._pool.is_closed:
                return self._pool
            if _at_exit:
                raise PoolBroken(
                    "a pure function was called while the interpreter exits, when its workers"
                    " have been ended; call its __wrapped__ to run it here"
                )
            self._link = None
            self._links.clear()
            self._pool = TaskPool(
                self.settings.workers(),
                options=self.settings.options,
                initializer=self.settings.initializer,
                initargs=self.settings.initargs,
                name="stook-pure",
            )
            return self._pool

    def link(self, loop: asyncio.AbstractEventLoop) -> LoopLink:
        """What connects the open pool and the loop of this thread."""
        link = self._link  # another thread may put its own there
        if link is not None and link.loop is loop and not link.pool.is_closed:
            return link
        pool = self.pool()
        with self._lock:
            link = self._links.get(loop)
            if link is None or link.pool is not pool:
                for other in [other for other in self._links if other.is_closed()]:
                    del self._links[other]
                link = self._links[loop] = LoopLink(loop, pool)
            self._link = link
        return link

    def close(self) -> None:
        with self._lock:
            pool, self._pool = self._pool, None
            self._link = None
            self._links.clear()
            for user in list(self.users):
                user._sent = None
            self.users.clear()
        if pool is not None:
            pool.close()

    def _forget(self) -> None:
        """In a forked child: the next call starts workers of the child's own."""
        self._pool = self._link = None
        self._links = weakref.WeakKeyDictionary()


# A pool lives as long as the functions that use it; one without an initializer, which functions to
# come may share, for the length of the program.
_shared: weakref.WeakValueDictionary[Settings, SharedPool] = weakref.WeakValueDictionary()
_kept: dict[Settings, SharedPool] = {}
_at_exit = False


def shared_pool(settings: Settings) -> SharedPool:
    try:
        if settings.initializer is None:
            return _kept.setdefault(settings, SharedPool(settings))
        return _shared.setdefault(settings, SharedPool(settings))
    except TypeError:  # initargs that cannot be compared: a pool of its own
        return SharedPool(settings)


def end_kept_pools() -> None:
    for shared in _kept.values():
        shared.close()


@atexit.register  # after _task_pool's, so called before it
def _leave() -> None:
    global _at_exit
    _at_exit = True
