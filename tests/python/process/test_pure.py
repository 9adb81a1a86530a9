"""Pure functions: where they run, what crosses, what they raise."""

from __future__ import annotations

import asyncio
import copy
import inspect
import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cloudpickle  # type: ignore[import-untyped]
import numpy as np
import pure_module
import pytest
from pure_module import Shape, add, cached, count, echo, factorial, full, multiply, pid, raises

import stook
from stook._shared_pools import end_kept_pools


@pytest.fixture(autouse=True)
def no_pools() -> Iterator[None]:
    """Ends the workers that a test's calls have started."""
    yield
    end_kept_pools()


def pure(**settings: Any) -> Any:
    return stook.pure(**{"max_workers": 2, **settings})


# ---- where it runs -------------------------------------------------------------------------------


def test_a_call_runs_in_a_worker_and_gives_the_result() -> None:
    assert add(3, right=4) == 7
    assert pid() != os.getpid()


def test_functions_with_equal_settings_share_their_workers() -> None:
    one, other, apart = (pure(max_workers=number)(os.getpid) for number in (1, 1, 2))
    assert one() == other() == one()
    assert apart() != one()


def test_calls_from_threads_run_at_the_same_time(tmp_path: Path) -> None:
    # To open one end of a pipe waits for the other: one after the other they would never end.
    @pure()
    def open_pipe(path: str, mode: str) -> bool:
        with open(path, mode):
            return True

    path = str(tmp_path / "pipe")
    os.mkfifo(path)
    met: list[bool] = []
    threads = [
        threading.Thread(target=lambda mode=mode: met.append(open_pipe(path, mode)))
        for mode in "wr"
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert met == [True, True]


def test_sixteen_threads_call_at_will() -> None:
    wrong: list[Any] = []

    def calls(base: int) -> None:
        for number in range(base, base + 60):
            if add(number, number) != 2 * number:
                wrong.append(number)

    threads = [threading.Thread(target=calls, args=(100 * index,)) for index in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_call_within_a_worker_runs_in_place() -> None:
    value, process = factorial(10)
    assert value == 3628800
    assert process not in (0, os.getpid())


def test_a_coroutine_calls_others_in_its_worker() -> None:
    assert asyncio.run(pure_module.sum_of_products(10)) == 3 * 45


def test_a_loaders_worker_runs_it_in_place() -> None:
    options = stook.MultiprocessingOptions(num_workers=1)

    def load(index: int) -> bool:
        return pid() == os.getpid()

    with stook.DataLoader(range(2), load, options=options) as loader:
        assert list(loader) == [True, True]


def test_globals_changed_in_a_worker_stay_there() -> None:
    before = pure_module.counter
    counts = [count() for _ in range(4)]
    assert max(counts) > before
    assert pure_module.counter == before


# ---- what crosses --------------------------------------------------------------------------------


def test_arguments_are_copies_and_results_are_handed_over() -> None:
    @pure()
    def fill(array: np.ndarray) -> np.ndarray:
        array[:] = 7
        return array

    given = np.zeros(100_000)
    assert fill(given).sum() == 700_000
    assert given.sum() == 0
    assert stook.is_shared(full(100_000, 3))


def test_a_closure_is_never_stale() -> None:
    factor = 2

    @pure()
    def scale(number: int) -> int:
        return helper(number) * factor

    def helper(number: int) -> int:
        return number + offset[0]

    offset = [0]
    assert scale(5) == 10
    factor = 3
    assert scale(5) == 15
    offset[0] = 1  # the same list
    assert scale(5) == 18

    def helper(number: int) -> int:  # noqa: F811
        return -number

    assert scale(5) == -15


def test_globals_of_the_main_module_are_never_stale(run_python: Callable[..., Any]) -> None:
    done = run_python(
        """
        import stook

        FACTOR = 2
        TABLE = {"offset": 0}

        def helper(number):
            return number * FACTOR

        @stook.pure(max_workers=1)
        def scale(number):
            return helper(number) + TABLE["offset"]

        @stook.pure(max_workers=1)
        def scale_plainly(number):
            return helper(number)

        print(scale_plainly(5), scale(5))
        FACTOR = 3
        print(scale_plainly(5), scale(5))
        TABLE["offset"] = 1
        print(scale(5))
        def helper(number):
            return -number
        print(scale_plainly(5), scale(5))
        """
    ).check()
    assert done.stdout.split() == ["10", "10", "15", "15", "16", "-5", "-4"]


def test_what_does_not_change_is_sent_once() -> None:
    factor = 3

    @pure()
    def scale(number: int) -> tuple[int, int]:
        return number * factor, id(scale)

    sent = set()
    for number in range(5):
        assert scale(number)[0] == 3 * number
        sent.add(scale._sent)
    assert len(sent) == 1


def test_methods() -> None:
    shape = Shape(3)
    assert shape.area() == 9
    assert shape.area(times=2) == 18
    assert shape.side == 3
    assert asyncio.run(shape.area_async()) == 9  # type: ignore[arg-type]
    assert Shape.double(4) == 8
    assert Shape.name("!") == "Shape!"
    assert Shape.area(shape, 3) == 27


def test_methods_of_a_local_class() -> None:
    class Local:
        side = 4

        @pure()
        def area(self) -> int:
            return self.side**2

    assert Local().area() == 16


def test_below_another_decorator() -> None:
    assert [cached(2), cached(2)] == [20, 20]
    assert cached.cache_info().hits == 1


@pytest.mark.parametrize("dumps", [pickle.dumps, cloudpickle.dumps])
def test_a_pure_function_is_pickled_by_its_name(dumps: Any) -> None:
    for function in (add, multiply, Shape.area, Shape.double):
        assert pickle.loads(dumps(function)) is function
    assert copy.deepcopy(add) is add


def test_a_pure_function_is_an_argument_and_a_result() -> None:
    assert echo(add) is add
    local = pure()(lambda number: number + 5)
    back = echo(local)
    assert back(1) == 6
    assert back.__wrapped__(1) == 6


def test_a_pure_function_looks_like_the_function() -> None:
    assert add.__name__ == "add"
    assert add.__doc__ == "Adds."
    assert str(inspect.signature(add)) == "(left: 'int', right: 'int' = 1) -> 'int'"
    assert add.__wrapped__(1, 2) == 3
    assert inspect.iscoroutinefunction(multiply)
    assert not inspect.iscoroutinefunction(add)
    assert "add" in repr(add)


# ---- what it raises ------------------------------------------------------------------------------


class Odd(Exception):
    def __init__(self, number: int, word: str) -> None:
        super().__init__(number, word)
        self.number = number


@pytest.mark.parametrize("error", [KeyError("x"), Odd(3, "y"), StopIteration(4), SystemExit(3)])
def test_what_the_function_raises(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught:
        raises(error)
    assert caught.value.args == error.args
    assert "pure_module.py" in str(caught.value.__cause__)
    assert add(1) == 2


def test_what_cannot_be_sent() -> None:
    with pytest.raises(TypeError, match="pickle"):
        echo(threading.Lock())
    lock = threading.Lock()

    @pure()
    def locked() -> None:
        lock.acquire()

    with pytest.raises(stook.StookError, match="lock"):
        locked()
    assert add(1) == 2


def test_an_initializer_runs_first_in_each_worker() -> None:
    def prepare(name: str, value: str) -> None:
        os.environ[name] = value

    @pure(initializer=prepare, initargs=("STOOK_TEST_PURE", "set"))
    def look() -> str | None:
        return os.environ.get("STOOK_TEST_PURE")

    assert look() == "set"
    look.close()


def test_an_initializer_that_raises() -> None:
    def fail() -> None:
        raise LookupError("not there")

    function = pure(initializer=fail)(abs)
    for _ in range(2):  # it is tried anew
        with pytest.raises(LookupError, match="not there"):
            function(1)
    function.close()


def test_close_ends_the_workers_and_the_next_call_starts_others() -> None:
    first = pid()
    pid.close()
    assert not os.path.exists(f"/proc/{first}")
    assert pid() != first


def test_dropped_functions_take_an_initializers_workers_along() -> None:
    function = pure(initializer=abs, initargs=(1,))(os.getpid)
    process = function()
    del function
    assert not os.path.exists(f"/proc/{process}")


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: stook.pure(max_workers=0), ValueError, "max_workers"),
        (lambda: stook.pure(max_workers=1.5), TypeError, "max_workers"),  # type: ignore[call-overload]
        (lambda: stook.pure(initializer=3), TypeError, "initializer"),  # type: ignore[call-overload]
        (lambda: stook.pure(options={}), TypeError, "options"),  # type: ignore[call-overload]
        (lambda: stook.pure(8), TypeError, "max_workers=8"),  # type: ignore[call-overload]
        (lambda: stook.pure(staticmethod(abs)), TypeError, "staticmethod above"),
        (lambda: stook.pure(add), TypeError, "pure already"),
        (lambda: stook.pure(_generator), TypeError, "iterate_in_subprocess"),
    ],
)
def test_bad_settings(make: Callable[[], Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        make()


def _generator() -> Iterator[int]:
    yield 1


def test_workers_by_default() -> None:
    assert stook.pure(abs)._shared.settings.workers() == len(os.sched_getaffinity(0))
    options = stook.MultiprocessingOptions(num_workers=5)
    assert stook.pure(options=options)(abs)._shared.settings.workers() == 5


# ---- deaths and forks ----------------------------------------------------------------------------


def test_a_killed_worker_is_an_error_of_its_call_alone() -> None:
    @pure()
    def die() -> None:
        os.kill(os.getpid(), 9)

    with pytest.raises(stook.WorkerDied, match="SIGKILL"):
        die()
    assert [add(number) for number in range(4)] == [1, 2, 3, 4]


def test_a_forked_child_has_workers_of_its_own() -> None:
    ours = pid()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            theirs = pid()
            status = 0 if theirs not in (ours, os.getpid()) and add(1) == 2 else 2
            pid.close()
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert pid() != os.getpid()


def test_an_interrupted_call_that_no_worker_has_begun_is_taken_back(tmp_path: Path) -> None:
    told, gate, mark = (str(tmp_path / name) for name in ("told", "gate", "mark"))
    os.mkfifo(told)
    os.mkfifo(gate)

    def work(what: str) -> None:
        if what == "wait":
            open(told, "wb").close()
            with open(gate, "rb") as file:
                file.read()
        elif what == "mark":
            Path(mark).touch()

    run = pure(max_workers=1)(work)
    first = threading.Thread(target=run, args=("wait",))
    first.start()
    open(told, "rb").close()
    pool = run._shared.pool()

    class Stop(Exception):
        pass

    def stop(*_: object) -> None:
        raise Stop

    def interrupt() -> None:
        while not pool._waiting:  # for the thread that delivers
            os.sched_yield()
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, stop)
    interrupting = threading.Thread(target=interrupt)
    interrupting.start()
    try:
        with pytest.raises(Stop):
            run("mark")
    finally:
        interrupting.join()
        signal.signal(signal.SIGUSR1, before)
    open(gate, "wb").close()
    run("nothing")  # the one worker takes calls in their order
    first.join()
    assert not Path(mark).exists()
