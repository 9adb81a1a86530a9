"""Functions whose calls run in worker processes that the program shares."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import sys
import types
from collections.abc import Callable, Coroutine
from typing import Any, Generic, ParamSpec, TypeVar, overload

import cloudpickle  # type: ignore[import-untyped]

from ._event_loop import PureCoroutine, PureFuture
from ._pool_arguments import check_initargs, check_options
from ._references import Decorated, References
from ._server import load_state
from ._shared_pools import Settings, shared_pool
from ._task_pool import Function, TaskPool
from ._worker_loop import never_waits, run_at_once, run_coroutine
from .errors import PoolBroken, StookError
from .options import MultiprocessingOptions, check_int
from .worker_info import _state

__all__ = ["PureAsyncFunction", "PureFunction", "pure"]

P = ParamSpec("P")
R = TypeVar("R")
F = TypeVar("F", bound="PureFunction[Any, Any]")

_get_running_loop = asyncio._get_running_loop


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
    kind: type[PureFunction[Any, Any]], function: Callable[..., Any], settings: Settings
) -> PureFunction[Any, Any]:
    return kind(function, settings)


def _reduce_for_cloudpickle(function: PureFunction[Any, Any]) -> tuple[Any, ...]:
    if function._crosses_by_name():
        return _by_name, (function.__module__, function.__qualname__)
    return _by_value, (type(function), function.__wrapped__, function._shared.settings)


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


class PureFunction(Decorated, Generic[P, R]):
    """A function that runs in worker processes; what `stook.pure` makes of a `def`.

    Attributes:
      __wrapped__: The function itself; calling it runs it here.
    """

    __wrapped__: Callable[P, R]
    __name__: str
    __qualname__: str

    def __init__(self, function: Callable[..., Any], settings: Settings) -> None:
        functools.update_wrapper(self, function)
        # inspect takes what has these for a function: signature(), iscoroutinefunction().
        for name in ("__code__", "__defaults__", "__kwdefaults__"):
            if hasattr(function, name):
                setattr(self, name, getattr(function, name))
        self._shared = shared_pool(settings)
        # What the workers of a pool know it as, and what it referred to then.
        self._sent: tuple[TaskPool, Function, References | None] | None = None
        self._is_found: bool | None = None

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Runs the function in a worker and waits for its result, without the GIL."""
        if _state.worker is not None or load_state["loading"]:
            return self.__wrapped__(*args, **kwargs)
        pool = self._shared.pool()
        call = _Call()
        number = pool.submit(self._function(pool), args, kwargs, sink=call, background=False)
        if pool._queue.is_pumped:
            # Who delivers is asleep, and would tell idle workers milliseconds later.
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
        loop = _get_running_loop()
        if loop is None:
            raise RuntimeError(
                "no running event loop: call_async() gives a future of the loop that runs; call"
                f" {self.__qualname__}() itself, or this in a coroutine"
            )
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
        """What `pool`'s workers know it as; sent again only if it may be stale."""
        sent = self._sent
        if sent is not None and sent[0] is pool and (sent[2] is None or sent[2].are_fresh()):
            return sent[1]
        # Looked at first: what changes meanwhile is found stale by the next call.
        references = None if self._crosses_by_name() else References(self.__wrapped__)
        function = pool.function(_Body(self))
        self._sent = pool, function, references
        self._shared.users.add(self)
        return function

    def _run_here(self) -> Callable[..., Any]:
        return self.__wrapped__


class PureAsyncFunction(PureFunction[P, Any], Generic[P, R]):
    """What `stook.pure` makes of an `async def`: its calls are futures of the running loop."""

    def __init__(self, function: Callable[..., Any], settings: Settings) -> None:
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
        run = run_at_once if never_waits(self.__wrapped__) else run_coroutine
        return functools.partial(run, self.__wrapped__)


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

    def __init__(self, settings: Settings) -> None:
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
) -> Settings:
    if max_workers is not None:
        max_workers = check_int("stook.pure", "max_workers", max_workers, 1, 1024)
    if initializer is not None and not callable(initializer):
        raise TypeError(f"stook.pure: initializer must be callable or None, got {initializer!r}")
    check_options(options)
    return Settings(max_workers, initializer, check_initargs(initargs), options)
