"""Functions whose calls run in worker processes that the program shares."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import functools
import inspect
import os
import sys
import types
import weakref
from collections.abc import Callable, Coroutine
from typing import Any, Generic, ParamSpec, TypeVar, overload

import cloudpickle  # type: ignore[import-untyped]

from ._event_loop import LoopLink, PureCoroutine, PureFuture
from ._locks import renew_lock_in_child
from ._server import load_state
from ._start import crosses_by_name, forget_in_children
from ._task_pool import Function, TaskPool
from .errors import PoolBroken, StookError
from .options import MultiprocessingOptions, check_int
from .worker_info import _state

__all__ = ["PureAsyncFunction", "PureFunction", "pure"]

P = ParamSpec("P")
R = TypeVar("R")
F = TypeVar("F", bound="PureFunction[Any, Any]")

_get_running_loop = asyncio._get_running_loop


# ---- the pools -----------------------------------------------------------------------------------


class _Settings:
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
        return isinstance(other, _Settings) and self._all() == other._all()

    def __hash__(self) -> int:
        return hash(self._all())

    def __reduce__(self) -> tuple[Any, ...]:
        return _Settings, self._all()

    def workers(self) -> int:
        if self.max_workers is not None:
            return self.max_workers
        if self.options is not None and self.options.num_workers > 0:
            return self.options.num_workers
        return len(os.sched_getaffinity(0))


class _SharedPool:
    """The workers of all functions with the same settings; started by the first call."""

    _lock: Any  # see _locks.py

    def __init__(self, settings: _Settings) -> None:
        self.settings = settings
        self._pool: TaskPool | None = None
        # For the loop that called last; and for each.
        self._link: LoopLink | None = None
        self._links: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, LoopLink]
        self._links = weakref.WeakKeyDictionary()
        self._users: weakref.WeakSet[PureFunction[Any, Any]] = weakref.WeakSet()
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
            for user in list(self._users):
                user._sent = None
            self._users.clear()
        if pool is not None:
            pool.close()

    def _forget(self) -> None:
        """In a forked child: the next call starts workers of the child's own."""
        self._pool = self._link = None
        self._links = weakref.WeakKeyDictionary()


# A pool lives as long as the functions that use it; one without an initializer, which functions to
# come may share, for the length of the program.
_shared: weakref.WeakValueDictionary[_Settings, _SharedPool] = weakref.WeakValueDictionary()
_kept: dict[_Settings, _SharedPool] = {}
_at_exit = False


def _shared_pool(settings: _Settings) -> _SharedPool:
    try:
        if settings.initializer is None:
            return _kept.setdefault(settings, _SharedPool(settings))
        return _shared.setdefault(settings, _SharedPool(settings))
    except TypeError:  # initargs that cannot be compared: a pool of its own
        return _SharedPool(settings)


def _end_kept_pools() -> None:
    for shared in _kept.values():
        shared.close()


@atexit.register  # after _task_pool's, so called before it
def _leave() -> None:
    global _at_exit
    _at_exit = True


# ---- what crosses --------------------------------------------------------------------------------


class _Body:
    """Crosses in place of a pure function; in the worker it is what the function runs there.

    By its name a worker would find the decorated function, and by value it would be one more that
    is called on the way.
    """

    def __init__(self, function: PureFunction[Any, Any]) -> None:
        self._function = function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._function._run_here()(*args, **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        return _body, (self._function,)


def _body(function: PureFunction[Any, Any]) -> Callable[..., Any]:
    return function._run_here()


def _find(module: str, name: str) -> PureFunction[Any, Any] | None:
    """The pure function that is `name` in a module; decorators may lie above it."""
    found: Any = sys.modules.get(module)
    for step in name.split("."):
        if found is None:
            return None
        try:
            found = inspect.getattr_static(found, step)
        except AttributeError:
            return None
    while not isinstance(found, PureFunction):
        found = getattr(found, "__wrapped__", None)
        if found is None:
            return None
    return found


def _by_name(module: str, name: str) -> PureFunction[Any, Any]:
    __import__(module)
    found = _find(module, name)
    if found is None:
        raise StookError(f"{module}.{name} is no pure function in this process")
    return found


def _by_value(
    kind: type[PureFunction[Any, Any]], function: Callable[..., Any], settings: _Settings
) -> PureFunction[Any, Any]:
    return kind(function, settings)


def _reduce_for_cloudpickle(function: PureFunction[Any, Any]) -> tuple[Any, ...]:
    if function._crosses_by_name():
        return _by_name, (function.__module__, function.__qualname__)
    return _by_value, (type(function), function.__wrapped__, function._shared.settings)


class _Sent:
    """A function as a pool's workers know it, and what it looked at when it was sent.

    A function that can be imported is sent once. Of others what they refer to is sent along: global
    variables and those of closures, of the functions they call as well. They are sent again if one
    of these is another object now, and at each call if one can change without becoming another.
    """

    __slots__ = ("_cells", "_names", "function", "is_constant", "pool")

    def __init__(self, pool: TaskPool, pure_function: PureFunction[Any, Any]) -> None:
        self.pool = pool
        self._names: list[tuple[dict[str, Any], str, Any]] = []
        self._cells: list[tuple[Any, Any]] = []
        self.is_constant = True
        if not pure_function._crosses_by_name():
            self._look_at(pure_function.__wrapped__, set())
        self.function: Function = pool.function(_Body(pure_function))

    def is_fresh(self) -> bool:
        if not self.is_constant:
            return False
        for variables, name, value in self._names:
            if variables.get(name, _Sent) is not value:
                return False
        return all(_contents(cell) is value for cell, value in self._cells)

    def _look_at(self, value: Any, seen: set[int]) -> None:
        if id(value) in seen or isinstance(value, _CONSTANT) or crosses_by_name(value):
            return
        seen.add(id(value))
        if isinstance(value, PureFunction):
            if not value._crosses_by_name():
                self._look_at(value.__wrapped__, seen)
        elif isinstance(value, (tuple, frozenset)):
            for item in value:
                self._look_at(item, seen)
        elif isinstance(value, types.FunctionType):
            variables = value.__globals__
            for name in _names_in(value.__code__):
                found = variables.get(name, _Sent)
                self._names.append((variables, name, found))
                self._look_at(found, seen)
            for cell in value.__closure__ or ():
                found = _contents(cell)
                self._cells.append((cell, found))
                self._look_at(found, seen)
            self._look_at(value.__defaults__ or (), seen)
            self._look_at(tuple((value.__kwdefaults__ or {}).values()), seen)
            if value.__dict__:
                self._look_at(tuple(value.__dict__.values()), seen)
        else:
            self.is_constant = False


# What does not change, or is compared by identity: a class is redefined rather than changed.
_CONSTANT = (
    bool, int, float, complex, str, bytes, range, type, types.NoneType, types.EllipsisType,
    types.ModuleType, types.BuiltinFunctionType, types.CodeType,
)  # fmt: skip


def _names_in(code: types.CodeType) -> set[str]:
    """Names that the code of a function, and of those defined in it, may look up globally."""
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= _names_in(constant)
    return names


def _contents(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # an empty one
        return _Sent


# ---- in a worker ---------------------------------------------------------------------------------


class _WorkerLoop:
    """The event loop in which a worker runs coroutines, one after the other."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None

    def run(self, coroutine: Coroutine[Any, Any, R]) -> R:
        loop = self._loop
        if loop is None or loop.is_closed():
            loop = self._loop = asyncio.new_event_loop()
            asyncio.set_event_loop(loop)
        try:
            return loop.run_until_complete(coroutine)
        finally:
            left = asyncio.all_tasks(loop)
            if left:
                _end_tasks(loop, left)


def _end_tasks(loop: asyncio.AbstractEventLoop, tasks: set[asyncio.Task[Any]]) -> None:
    """Ends tasks that a call left behind, as asyncio.run() does."""
    for task in tasks:
        task.cancel()
    loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
    for task in tasks:
        error = None if task.cancelled() else task.exception()
        if error is not None:
            loop.call_exception_handler(
                {"message": "a task that a pure call left behind", "exception": error, "task": task}
            )


_worker_loop = _WorkerLoop()


def _run_coroutine(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return _worker_loop.run(function(*args, **kwargs))


# ---- in the caller -------------------------------------------------------------------------------


class _Call:
    """A call that a thread waits for, and its task's sink."""

    __slots__ = ("ok", "value")

    def __init__(self) -> None:
        self.ok: bool | None = None
        self.value: Any = None

    def __call__(self, ok: bool, value: Any) -> None:
        self.value = value
        self.ok = ok

    def is_done(self) -> bool:
        return self.ok is not None


class PureFunction(Generic[P, R]):
    """A function that runs in worker processes; what `stook.pure` makes of a `def`.

    Attributes:
      __wrapped__: The function itself; calling it runs it here.
    """

    __wrapped__: Callable[P, R]
    __name__: str
    __qualname__: str

    def __init__(self, function: Callable[..., Any], settings: _Settings) -> None:
        functools.update_wrapper(self, function)
        # inspect takes what has these for a function: signature(), iscoroutinefunction().
        for name in ("__code__", "__defaults__", "__kwdefaults__"):
            if hasattr(function, name):
                setattr(self, name, getattr(function, name))
        self._shared = _shared_pool(settings)
        self._sent: _Sent | None = None
        self._is_found: bool | None = None

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Runs the function in a worker and waits for its result, without the GIL."""
        if _state.worker is not None or load_state["loading"]:
            return self.__wrapped__(*args, **kwargs)
        pool = self._shared.pool()
        call = _Call()
        number = pool.submit(self._function(pool), args, kwargs, sink=call, background=False)
        if pool._queue.is_pumped:
            # The thread that delivers is asleep already, so it has not told the workers of this.
            pool.arm()
        try:
            pool.wait(call.is_done)
        except BaseException:  # a signal handler's
            if not call.is_done() and not pool.is_closed:
                pool.cancel(number)
            raise
        if call.ok:
            return call.value  # type: ignore[no-any-return]
        if call.ok is None:
            raise PoolBroken("the workers of this pure function were ended before it was done")
        try:
            raise call.value
        finally:
            del call  # its error would hold this frame, and this frame the error

    def call_async(self, /, *args: P.args, **kwargs: P.kwargs) -> asyncio.Future[R]:
        """Begins a call whose result is a future of the running event loop.

        Raises:
          RuntimeError: This thread runs no event loop.
        """
        loop = asyncio.get_running_loop()
        if _state.worker is not None or load_state["loading"]:
            future = loop.create_future()
            try:
                future.set_result(self.__wrapped__(*args, **kwargs))
            except Exception as error:
                future.set_exception(error)
            return future
        link = self._shared.link(loop)
        return link.call(PureFuture, self._function(link.pool), args, kwargs)

    def close(self) -> None:
        """Ends the workers, which it has in common with functions of the same settings.

        Calls under way fail with `PoolBroken`; the next one starts workers again.
        """
        self._shared.close()

    @overload
    def __get__(self: F, instance: None, owner: Any = None) -> F: ...
    @overload
    def __get__(self, instance: object, owner: Any = None) -> Callable[..., R]: ...
    def __get__(self, instance: object, owner: Any = None) -> Any:
        return self if instance is None else types.MethodType(self, instance)

    def __repr__(self) -> str:
        return f"<pure {self.__wrapped__!r}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return _by_name, (self.__module__, self.__qualname__)

    def __copy__(self: F) -> F:
        return self

    def __deepcopy__(self: F, memo: Any) -> F:
        return self

    def _crosses_by_name(self) -> bool:
        found = self._is_found
        if found is None:
            module, name = getattr(self, "__module__", None), getattr(self, "__qualname__", None)
            found = (
                isinstance(module, str)
                and isinstance(name, str)
                and module != "__main__"
                and _find(module, name) is self
            )
            # Not before its module is there: it may be called while that is imported.
            if found:
                self._is_found = True
        return found

    def _function(self, pool: TaskPool) -> Function:
        sent = self._sent
        if sent is None or sent.pool is not pool or not sent.is_fresh():
            sent = self._sent = _Sent(pool, self)
            self._shared._users.add(self)
        return sent.function

    def _run_here(self) -> Callable[..., Any]:
        return self.__wrapped__


class PureAsyncFunction(PureFunction[P, Any], Generic[P, R]):
    """What `stook.pure` makes of an `async def`: its calls are futures of the running loop."""

    def __init__(self, function: Callable[..., Any], settings: _Settings) -> None:
        super().__init__(function, settings)
        with contextlib.suppress(AttributeError):  # from Python 3.12 on; before, __code__ tells
            inspect.markcoroutinefunction(self)  # type: ignore[attr-defined, unused-ignore]
        # What asyncio.iscoroutinefunction looks for.
        self._is_coroutine = getattr(asyncio.coroutines, "_is_coroutine", None)

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> asyncio.Future[R]:
        """Begins a call; returns the future of its result."""
        if _state.worker is not None or load_state["loading"]:
            return self.__wrapped__(*args, **kwargs)  # type: ignore[no-any-return]
        loop = _get_running_loop()
        if loop is None:
            return self._later(*args, **kwargs)
        link = self._shared.link(loop)
        return link.call(PureCoroutine, self._function(link.pool), args, kwargs)

    def call_async(self, /, *args: P.args, **kwargs: P.kwargs) -> asyncio.Future[R]:
        """The same as calling it."""
        return self(*args, **kwargs)

    def _later(self, /, *args: Any, **kwargs: Any) -> Any:
        """For asyncio.run(), which makes its loop when it has the coroutine."""

        async def call() -> Any:
            return await self(*args, **kwargs)

        return call()

    def _run_here(self) -> Callable[..., Any]:
        return functools.partial(_run_coroutine, self.__wrapped__)


for _kind in (PureFunction, PureAsyncFunction):
    cloudpickle.Pickler.dispatch_table[_kind] = _reduce_for_cloudpickle


@overload
def pure(function: Callable[P, Coroutine[Any, Any, R]], /) -> PureAsyncFunction[P, R]: ...
@overload
def pure(function: Callable[P, R], /) -> PureFunction[P, R]: ...
@overload
def pure(
    *,
    max_workers: int | None = None,
    initializer: Callable[..., Any] | None = None,
    initargs: tuple[Any, ...] = (),
    options: MultiprocessingOptions | None = None,
) -> _Decorator: ...
def pure(
    function: Callable[..., Any] | None = None,
    /,
    *,
    max_workers: int | None = None,
    initializer: Callable[..., Any] | None = None,
    initargs: tuple[Any, ...] = (),
    options: MultiprocessingOptions | None = None,
) -> Any:
    """Has each call of a function run in a worker process, so that calls run in parallel.

    The caller waits without the GIL: calls from several threads run at the same time. A call of an
    `async def` is a future of the running event loop, so `asyncio.gather` runs them at the same
    time. Called in a worker, the function runs there and then, as if it were not decorated.

    *Pure* is a promise: the result depends on the arguments, and nothing but the result matters.
    Arguments arrive as copies; what the function changes in them, or in global variables, stays in
    the worker. NumPy arrays cross through shared memory, both ways; results are handed over without
    a copy where the worker does not keep them.

    The workers are started by the first call, and end with the program. Functions whose settings
    are equal share them.

    Args:
      function: A `def` or an `async def`; not a generator.
      max_workers: How many processes. `None`: `options.num_workers` if that is not 0, else as many
        as there are CPUs that this process may use.
      initializer: Called with `initargs` in each worker before its first call.
      initargs: See there.
      options: Everything else about the workers.

    Returns:
      A `PureFunction`, or a `PureAsyncFunction` of an `async def`. `__wrapped__` is the function
      itself; `call_async` of a plain one gives a future of the running loop; `close` ends the
      workers before the program does.

    Raises:
      TypeError: `function` is no function of a kind that can be called in a worker, or a setting
        has the wrong type.
      ValueError: `max_workers` is out of range.

    A call raises what the function raised, with the worker's traceback as its cause; `WorkerDied`
    if the worker was killed meanwhile; `StookError` if the function cannot be sent; `PoolBroken`
    if the workers could not be started or the interpreter exits.

    Example:
      >>> import asyncio, stook
      >>> @stook.pure(max_workers=2)
      ... def square(number):
      ...     return number * number
      >>> square(3)
      9
      >>> @stook.pure(max_workers=2)
      ... async def cube(number):
      ...     return number ** 3
      >>> async def main():
      ...     return await asyncio.gather(cube(2), cube(3), square.call_async(4))
      >>> asyncio.run(main())
      [8, 27, 16]
    """
    settings = _checked(max_workers, initializer, initargs, options)
    if function is None:
        return _Decorator(settings)
    return _Decorator(settings)(function)


class _Decorator:
    """`pure` with its settings."""

    def __init__(self, settings: _Settings) -> None:
        self._settings = settings

    @overload
    def __call__(
        self, function: Callable[P, Coroutine[Any, Any, R]], /
    ) -> PureAsyncFunction[P, R]: ...
    @overload
    def __call__(self, function: Callable[P, R], /) -> PureFunction[P, R]: ...
    def __call__(self, function: Callable[..., Any], /) -> Any:
        if isinstance(function, (staticmethod, classmethod)):
            raise TypeError(f"put @{type(function).__name__} above @stook.pure, not below it")
        if isinstance(function, PureFunction):
            raise TypeError(f"{function.__qualname__} is pure already")
        if not callable(function):
            raise TypeError(
                "stook.pure takes a function, and its settings by name, as in"
                f" @stook.pure(max_workers=8); got {function!r}"
            )
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise TypeError(
                f"{function.__qualname__} is a generator, which lives where it was made; return a"
                " list, or see stook.iterate_in_subprocess"
            )
        if inspect.iscoroutinefunction(function):
            return PureAsyncFunction(function, self._settings)
        return PureFunction(function, self._settings)


def _checked(
    max_workers: int | None,
    initializer: Callable[..., Any] | None,
    initargs: tuple[Any, ...],
    options: MultiprocessingOptions | None,
) -> _Settings:
    if max_workers is not None:
        max_workers = check_int("stook.pure", "max_workers", max_workers, 1, 1024)
    if initializer is not None and not callable(initializer):
        raise TypeError(f"stook.pure: initializer must be callable or None, got {initializer!r}")
    if options is not None and not isinstance(options, MultiprocessingOptions):
        raise TypeError(
            f"stook.pure: options must be MultiprocessingOptions or None, got {options!r}"
        )
    return _Settings(max_workers, initializer, tuple(initargs), options)
