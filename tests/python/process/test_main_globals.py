"""The globals of `__main__`: one module in each worker, never older than the caller's."""

from __future__ import annotations

import pytest

from conftest import RunPython

each_method = pytest.mark.parametrize("method", ["forkserver", "fork"])

PROLOGUE = """
import functools, sys
from stook._task_pool import TaskPool

METHOD = sys.argv[1] if len(sys.argv) > 1 else "forkserver"

def pool_of_one(**arguments):
    return TaskPool(1, start_method=METHOD, **arguments)

def ask(pool, function, *args):
    got = []
    take = lambda ok, value: got.append((ok, value))
    pool.submit(pool.function(function), args, sink=take, background=False)
    pool.wait(lambda: got)
    ok, value = got[0]
    if not ok:
        raise value
    return value
"""


@each_method
def test_what_an_initializer_sets_is_there(method: str, run_python: RunPython) -> None:
    code = """
TABLE = None
shared = {}

def init(table):
    global TABLE, ONLY_THERE
    TABLE = table
    ONLY_THERE = len(table)
    shared["table"] = table

def work(i):
    return TABLE[i], ONLY_THERE, shared["table"][i]

def call(function, *args):
    return function(*args)

class Reader:
    def __init__(self, shift):
        self.shift = shift
    def __call__(self, i):
        return TABLE[i] + self.shift
    @classmethod
    def all(cls):
        return [cls(0)(i) for i in range(ONLY_THERE)]

pool = pool_of_one(initializer=init, initargs=([5, 6, 7],))
assert ask(pool, work, 1) == (6, 3, 6)
assert ask(pool, lambda i: work(i), 2) == (7, 3, 7)
assert ask(pool, functools.partial(work, 0)) == (5, 3, 5)
assert ask(pool, call, work, 1) == (6, 3, 6)  # as an argument
assert ask(pool, call, lambda: TABLE) == [5, 6, 7]
assert ask(pool, call, Reader(10), 1) == 16
assert ask(pool, Reader(1), 0) == 6
assert ask(pool, Reader.all) == [5, 6, 7]
assert TABLE is None and shared == {} and "ONLY_THERE" not in globals()
pool.close()
"""
    run_python(PROLOGUE + code, method).check()


@each_method
def test_what_the_worker_filled_stays(method: str, run_python: RunPython) -> None:
    code = """
_model = None
cache = {}
COUNT = 0

class Holder:
    kept = None
    @classmethod
    def get(cls):
        if cls.kept is None:
            cls.kept = object()
        return id(cls.kept)

def model():
    global _model
    if _model is None:
        _model = object()
    return id(_model)

def remember(key):
    cache[key] = True
    return list(cache)

def also_remember(key):
    return remember(key)

def count(by=[0]):
    by[0] += 1
    return by[0]

@functools.lru_cache
def fibonacci(n):
    return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)

def misses(n):
    fibonacci(n)
    return fibonacci.cache_info().misses

pool = pool_of_one()
assert ask(pool, model) == ask(pool, model) == ask(pool, lambda: model())
assert ask(pool, remember, 1) == [1]
assert ask(pool, also_remember, 2) == [1, 2]
assert ask(pool, lambda: remember(3)) == [1, 2, 3]
assert [ask(pool, count), ask(pool, count), ask(pool, lambda: count())] == [1, 2, 3]
assert ask(pool, misses, 10) == 11 and ask(pool, lambda: misses(12)) == 13
assert ask(pool, Holder.get) == ask(pool, lambda: Holder.get())
assert cache == {} and _model is None and Holder.kept is None and count() == 1
pool.close()
"""
    run_python(PROLOGUE + code, method).check()


@each_method
def test_what_the_caller_changes_comes(method: str, run_python: RunPython) -> None:
    code = """
FACTOR = 1
OPTIONS = {"a": 1}
MINE = "caller's"

def helper(i):
    return i * FACTOR

def work(i):
    return helper(i), OPTIONS["a"], sorted(OPTIONS)

def rebind():
    global MINE
    MINE = "worker's"

class Rule:
    limit = 1
    def of(self):
        return self.limit

pool = pool_of_one()
assert ask(pool, work, 3) == (3, 1, ["a"])
FACTOR = 2
assert ask(pool, work, 3) == (6, 1, ["a"])
OPTIONS = {"a": 2}
assert ask(pool, work, 3) == (6, 2, ["a"])
OPTIONS["b"] = 0
assert ask(pool, work, 3) == (6, 2, ["a", "b"])

def helper(i):  # as a cell that is changed, and run again
    return -i * FACTOR
assert ask(pool, work, 3)[0] == -6
def work(i):
    return helper(i) + 100
assert ask(pool, work, 3) == ask(pool, lambda: work(3)) == 94
FACTOR = 1
assert ask(pool, work, 3) == 97

assert ask(pool, lambda rule: rule.of(), Rule()) == 1
Rule.limit = 2
assert ask(pool, lambda: Rule().of()) == 2

# What the worker's own code has bound is the worker's.
ask(pool, rebind)
MINE = "changed"
assert ask(pool, lambda: MINE) == "worker's"
pool.close()
"""
    run_python(PROLOGUE + code, method).check()


@each_method
def test_an_older_definition_undoes_nothing(method: str, run_python: RunPython) -> None:
    """Jobs may come to a worker in another order than that in which they were submitted."""
    code = """
from stook._pickling import dump_function
SETTING = 1
TABLE = [1]

def setting():
    return SETTING, TABLE

def again():
    return SETTING

def ask_made(pool, made):
    got = []
    pool.submit(made, (), sink=lambda ok, value: got.append(value), background=False)
    pool.wait(lambda: got)
    return got[0]

pool = pool_of_one()
older = pool.function(setting)
SETTING = 2
TABLE = [1, 2]
newer = pool.function(setting)
assert ask_made(pool, newer) == (2, [1, 2])
assert ask_made(pool, older) == ask_made(pool, newer) == (2, [1, 2])

# What is the same object needs to be sent once: so it may be the same only if nothing changed.
for function in (setting, again):
    for _ in range(3):
        known = dump_function(function)
    assert dump_function(function) is known
TABLE.append(3)
assert dump_function(setting) != known
known = dump_function(again)
SETTING = 3
assert dump_function(again) != known
SETTING = 2
assert dump_function(again) != known  # a worker may have the 3
def again():
    return -SETTING
assert ask(pool, again) == -2 and ask(pool, setting) == (2, [1, 2, 3])
SETTING = 4
assert [ask(pool, again) for _ in range(4)] == [-4] * 4
pool.close()
"""
    run_python(PROLOGUE + code, method).check()


@each_method
def test_one_object_stays_one(method: str, run_python: RunPython) -> None:
    """Sentinels, registries, cycles: also where definitions came one after the other."""
    code = """
MISSING = object()
SAME = MISSING
REGISTRY = {}
LIST = []

class Node:
    pass

def default(x=MISSING):
    return x is MISSING and SAME is MISSING

def register(name, into=REGISTRY):
    into[name] = register
    return REGISTRY is into and REGISTRY[name] is register

one, two = Node(), Node()
one.other, two.other = two, one
one.registry = REGISTRY
Node.first = one
LIST.extend([LIST, one, default, Node])

def cycle():
    return (
        one.other is two and two.other is one and one.registry is REGISTRY and Node.first is one
        and LIST[0] is LIST and LIST[1] is one and LIST[2] is default and LIST[3] is Node
        and type(one) is Node
    )

pool = pool_of_one()
assert ask(pool, default)
assert ask(pool, lambda: default())
assert ask(pool, lambda: default(MISSING))
assert not ask(pool, lambda: default(None))
assert ask(pool, register, "a") and ask(pool, lambda: register("b"))
assert ask(pool, cycle)
assert ask(pool, lambda: cycle() and len(REGISTRY)) == 2
pool.close()
"""
    run_python(PROLOGUE + code, method).check()


@each_method
def test_callables_that_are_no_names_of_main_are_fresh(method: str, run_python: RunPython) -> None:
    """As with `multiprocessing`, which pickles an instance with each task."""
    code = """
class Counter:
    def __init__(self):
        self.count = 0
    def __call__(self):
        self.count += 1
        return self.count

def closure():
    count = 0
    def call():
        nonlocal count
        count += 1
        return count
    return call

pool = pool_of_one()
counter = Counter()
assert [ask(pool, counter), ask(pool, counter.__call__), ask(pool, counter)] == [1, 1, 1]
assert [ask(pool, lambda: counter()), ask(pool, lambda: counter())] == [1, 2]  # a global
made = closure()
assert [ask(pool, made), ask(pool, made)] == [1, 1] and made() == 1 and ask(pool, made) == 2
pool.close()
"""
    run_python(PROLOGUE + code, method).check()


@each_method
def test_classes_of_the_caller_stay_as_they_are(method: str, run_python: RunPython) -> None:
    code = """
STATE = "caller"

class Model:
    seen = 0
    def where(self):
        return STATE

def init():
    global STATE
    STATE = "worker"

def make():
    Model.seen += 1
    return Model()

def make_local():
    class Local:
        number = 7
    return Local()

method = Model.where
pool = pool_of_one(initializer=init)
model = ask(pool, make)
assert type(model) is Model and Model.where is method and Model.seen == 0
assert model.where() == "caller"
assert ask(pool, lambda m: m.where(), model) == "worker"
assert ask(pool, lambda: Model.seen) == 1
assert ask(pool, make_local).number == 7
assert ask(pool, Model.where, model) == "worker"
pool.close()
"""
    run_python(PROLOGUE + code, method).check()


@each_method
def test_pools_in_workers(method: str, run_python: RunPython) -> None:
    code = """
LEVEL = 0

def init(level):
    global LEVEL
    LEVEL = level

def level():
    return LEVEL

def nested():
    inner = pool_of_one(initializer=init, initargs=(LEVEL + 1,))
    found = LEVEL, ask(inner, level), ask(inner, lambda: level()), LEVEL
    inner.close()
    plain = pool_of_one()
    found += (ask(plain, level),)
    plain.close()
    return found

pool = pool_of_one(initializer=init, initargs=(1,))
assert ask(pool, nested) == (1, 2, 2, 1, 1), ask(pool, nested)
assert level() == 0
pool.close()
"""
    run_python(PROLOGUE + code, method).check()


@each_method
def test_a_loader_sees_what_its_init_function_set(method: str, run_python: RunPython) -> None:
    code = """
import stook
TABLE = None
calls = []

def init(index, count):
    global TABLE
    TABLE = [10, 11, 12]

def load(i):
    calls.append(i)
    return TABLE[i], len(calls)

options = stook.MultiprocessingOptions(1, worker_init_fn=init, start_method=METHOD)
loader = stook.DataLoader(range(3), load, options=options)
assert [value for value, _ in loader] == [10, 11, 12]
assert [calls for _, calls in loader] == [4, 5, 6]
assert TABLE is None and calls == []
loader.close()
"""
    run_python(PROLOGUE + code, method).check()


def test_a_worker_does_not_grow_with_lambdas(run_python: RunPython) -> None:
    code = """
import gc, types
TABLE = bytes(100_000)

def functions():
    gc.collect()
    return sum(type(thing) is types.FunctionType for thing in gc.get_objects())

def lambda_with(number):
    big = [number] * 10_000
    return lambda: (len(TABLE), len(big), number)

pool = pool_of_one()
for number in range(100):
    assert ask(pool, lambda_with(number)) == (100_000, 10_000, number)
first = ask(pool, functions)
for number in range(300):
    ask(pool, lambda_with(number))
assert ask(pool, functions) <= first + 5, (first, ask(pool, functions))
pool.close()
"""
    run_python(PROLOGUE + code).check()


def test_forked_workers_use_what_cannot_be_sent(run_python: RunPython) -> None:
    code = """
import multiprocessing, threading
METHOD = "fork"
lock = multiprocessing.get_context("fork").Lock()
local = threading.local()
local.value = 7

def work():
    with lock:
        return local.value

def replace():
    global local
    local = None

pool = pool_of_one()
assert ask(pool, work) == 7 and ask(pool, lambda: lock.acquire(False))
assert not lock.acquire(False)  # it is the same lock
lock.release()
other = pool_of_one()
lock = multiprocessing.get_context("fork").Lock()
try:
    ask(pool, work)
except Exception as error:
    assert "'lock' of __main__ cannot be pickled" in str(error), error
else:
    raise AssertionError
ask(other, replace)
local = threading.local()
assert ask(other, lambda: local) is None
for each in (pool, other):
    each.close()
"""
    run_python(PROLOGUE + code).check()


def test_what_cannot_be_sent_is_named(run_python: RunPython) -> None:
    code = """
import threading, stook
lock = threading.Lock()

def work():
    with lock:
        return 1

pool = pool_of_one()
try:
    pool.function(lambda: work())
except stook.StookError as error:
    assert "global 'lock'" in str(error), error
else:
    raise AssertionError
lock = None
assert ask(pool, lambda: lock) is None
pool.close()
"""
    run_python(PROLOGUE + code).check()


@each_method
def test_an_error_that_comes_back_leaves_its_class_as_it_is(
    method: str, run_python: RunPython
) -> None:
    done = run_python(f"""
        from stook._task_pool import TaskPool

        class Oops(Exception):
            seen = "here"

        def fail():
            Oops.seen = "there"
            raise Oops("so")

        pool = TaskPool(1, start_method={method!r})
        got = []
        pool.submit(pool.function(fail), sink=lambda ok, error: got.append(error))
        pool.wait(lambda: got)
        print(type(got[0]) is Oops, Oops.seen, got[0])
        pool.close()
    """)
    assert done.stdout.split() == ["True", "here", "so"]
