"""Whole programs whose code keeps arrays, on either side, in any way, to the very end."""

from __future__ import annotations

import pytest

from conftest import RunPython

PROLOGUE = """
import functools, gc, os, signal, sys, threading
import numpy as np
import stook

SIZE = 5000

def make(number):
    array = np.arange(number, number + SIZE)
    return {"array": array, "number": number}

def loader_of(count, function=make, **options):
    options = {"num_workers": 2, "per_worker_buffer_size": 4, **options}
    return stook.DataLoader(
        range(count), function, options=stook.MultiprocessingOptions(**options)
    )

def right(element):
    number = element["number"]
    return bool(np.array_equal(element["array"], np.arange(number, number + SIZE)))
"""


def test_workers_that_keep_what_they_return(run_python: RunPython) -> None:
    """Each worker says with every element whether all that it keeps is as it was."""
    code = """
kept = []

@functools.lru_cache
def cached(number):
    return make(number)

def make_and_keep(number):
    intact = all(
        np.array_equal(array, np.arange(first, first + SIZE)) for first, array in kept
    ) and all(right(cached(which)) for which in range(3))
    array = np.arange(number, number + SIZE)
    if number % 3 == 0:
        kept.append((number, array))
    elif number % 3 == 1:
        kept.append((number, array[:]))
    return {"array": array, "number": number, "intact": intact, "cached": cached(number % 3)}

with loader_of(300, make_and_keep) as loader:
    for element in loader:
        assert element["intact"], element["number"]
        assert right(element) and right(element["cached"])
        element["array"][...] = -1
        element["cached"]["array"][...] = -1
    stats = loader.stats()
# A third has nobody else.
print(stats.moved, stats.copied)
"""
    assert run_python(PROLOGUE + code).check().stdout.split() == ["100", "500"]


def test_a_generator_that_keeps_its_local(run_python: RunPython) -> None:
    code = """
def generate():
    array = np.zeros(SIZE, "i8")
    while True:
        array += 1
        yield array

generator = None

def step(number):
    global generator
    if generator is None:
        generator = generate()
    return next(generator)

with loader_of(200, step, num_workers=1) as loader:
    for number, array in enumerate(loader):
        assert (array == number + 1).all()
        array[...] = -5
    print(loader.stats().moved, loader.stats().copied)
"""
    assert run_python(PROLOGUE + code).check().stdout.split() == ["0", "200"]


def test_one_array_that_is_filled_again_and_again(run_python: RunPython) -> None:
    code = """
buffer = None

def fill(number):
    global buffer
    if buffer is None:
        buffer = np.empty(SIZE, "i8")
    buffer[...] = number
    return buffer

with loader_of(500, fill) as loader:
    kept = list(loader)
print(all((array == number).all() for number, array in enumerate(kept)))
"""
    assert run_python(PROLOGUE + code).check().stdout.split() == ["True"]


def test_a_thread_of_the_worker_that_writes_into_what_it_has(run_python: RunPython) -> None:
    code = """
latest = []
started = []

def scribble():
    while True:
        for array in list(latest):
            array[0] += 1

def make_and_share(number):
    if not started:
        started.append(threading.Thread(target=scribble, daemon=True))
        started[0].start()
    array = np.full(SIZE, number)
    latest[:] = [array]
    return {"shared": array, "own": np.full(SIZE, number)}

with loader_of(200, make_and_share) as loader:
    kept = []
    for number, element in enumerate(loader):
        seen = element["shared"].copy()
        assert (seen[1:] == number).all() and (element["own"] == number).all()
        kept.append((seen, element["shared"]))
    # A copy is nobody's but ours: no thread writes into it.
    print(all(np.array_equal(*pair) for pair in kept))
    print(loader.stats().moved, loader.stats().copied)
"""
    assert run_python(PROLOGUE + code).check().stdout.split() == ["True", "200", "200"]


@pytest.mark.parametrize(
    "way",
    [
        "",  # the interpreter's own end, with the iterator half way
        "loader.close()",
        "del loader, elements",
        "sys.exit(0)",
        "threading.Thread(target=lambda: kept.clear()).start()",
        "cycle = [kept]; cycle.append(cycle); del kept, first",
        "import atexit; atexit.register(lambda: print('late', all(map(right, kept))))",
        "os._exit(0)",
    ],
)
def test_the_end_of_the_interpreter_with_arrays_in_hand(run_python: RunPython, way: str) -> None:
    code = f"""
loader = loader_of(100)
elements = iter(loader)
kept = [next(elements) for _ in range(20)]
first = kept[0]["array"][5:]

class Late:
    # Dropped in the middle of the interpreter's end.
    def __init__(self, array):
        self.array = array
    def __del__(self):
        self.array[...] = 0

sys.late = Late(next(elements)["array"])
print(all(map(right, kept)), flush=True)
{way}
"""
    stdout = run_python(PROLOGUE + code).check().stdout.split()
    assert stdout == (["True", "late", "True"] if "atexit" in way else ["True"])


def test_an_error_at_the_end_with_arrays_in_hand(run_python: RunPython) -> None:
    code = """
kept = []
for element in loader_of(100):
    kept.append(element)
    if len(kept) == 30:
        raise RuntimeError("on purpose")
"""
    ended = run_python(PROLOGUE + code)
    assert ended.returncode == 1
    assert "RuntimeError: on purpose" in ended.stderr


def test_a_forked_child_that_drops_what_the_parent_holds(run_python: RunPython) -> None:
    """The child gives nothing back: blocks that the parent sees are not used again."""
    code = """
with loader_of(400) as loader:
    elements = iter(loader)
    kept = [next(elements) for _ in range(20)]
    child = os.fork()
    if child == 0:
        # It can read them, and drops all.
        status = 0 if all(map(right, kept)) else 3
        kept.clear()
        gc.collect()
        try:
            next(elements)
            status = 4
        except stook.StookError as error:
            if "forked child" not in str(error):
                status = 5
        os._exit(status)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    for element in elements:
        assert right(element)
    print(all(map(right, kept)))
"""
    finished = run_python(PROLOGUE + code, flags=("-X", "dev")).check()
    assert finished.stdout.split() == ["0", "True"]


def test_a_forked_child_that_ends_as_an_interpreter_does(run_python: RunPython) -> None:
    code = """
loader = loader_of(300)
elements = iter(loader)
kept = [next(elements) for _ in range(20)]
sys.stdout.flush()
child = os.fork()
if child == 0:
    sys.exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
rest = [right(element) for element in elements]
print(len(rest), all(rest), all(map(right, kept)))
"""
    finished = run_python(PROLOGUE + code, flags=("-X", "dev")).check()
    assert finished.stdout.split() == ["7", "280", "True", "True"]


def test_a_child_that_a_worker_forks(run_python: RunPython) -> None:
    """Its writes into arrays of the arena, and what it frees and makes, stay its own."""
    code = """
def make_with_child(number):
    array = np.full(SIZE, number)
    dropped = np.full(SIZE, number)
    child = os.fork()
    if child == 0:
        array[...] = -1
        del dropped
        other = np.full(SIZE, -2)
        os._exit(0 if (array == -1).all() and (other == -2).all() else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert (dropped == number).all()
    return array

with loader_of(40, make_with_child) as loader:
    print(all((array == number).all() for number, array in enumerate(loader)))
    print(loader.stats().moved)
"""
    finished = run_python(PROLOGUE + code, flags=("-X", "dev")).check()
    assert finished.stdout.split() == ["True", "40"]


def test_arrays_that_wander_through_multiprocessing(run_python: RunPython) -> None:
    """A delivered array is pickled like any other."""
    code = """
import multiprocessing

def total(array):
    return int(array.sum())

if __name__ == "__main__":
    with loader_of(20) as loader:
        arrays = [element["array"] for element in loader]
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        print(pool.map(total, arrays) == [int(array.sum()) for array in arrays])
        pool.close()
        pool.join()
"""
    assert run_python(PROLOGUE + code, flags=()).check().stdout.split() == ["True"]


def test_two_loaders_that_feed_each_other(run_python: RunPython) -> None:
    code = """
def double(element):
    element["array"] *= 2
    return element

first = loader_of(200)
second = stook.DataLoader(
    iter(first), double, options=stook.MultiprocessingOptions(num_workers=2)
)
for number, element in enumerate(second):
    assert np.array_equal(element["array"], 2 * np.arange(number, number + SIZE))
print(second.stats().moved, second.stats().copied)
first.close()
second.close()
"""
    assert run_python(PROLOGUE + code).check().stdout.split() == ["200", "0"]


def test_cached_functions_of_a_script(run_python: RunPython) -> None:
    """They pickle as their name, which nobody can look up in a worker."""
    code = """
@functools.lru_cache(maxsize=50)
def fibonacci(n):
    return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)

class Numbers:
    @staticmethod
    @functools.cache
    def above(n):
        return fibonacci(n) + 1

def numbers(n):
    return fibonacci(n), Numbers.above(n), fibonacci.cache_info().maxsize

for function in (fibonacci, numbers):
    with loader_of(30, function) as loader:
        assert list(loader) == list(map(function, range(30)))
print("right")
"""
    assert run_python(PROLOGUE + code).check().stdout.split() == ["right"]
