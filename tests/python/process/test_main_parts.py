"""Values of `__main__` that hold others: if one is newer, so is what holds it."""

from __future__ import annotations

import pytest

from conftest import RunPython

each_way = pytest.mark.parametrize("way", ["forkserver", "fork", "executor", "pure"])

PROLOGUE = """
import functools, sys
import stook

WAY = sys.argv[1] if len(sys.argv) > 1 else "forkserver"
OPTIONS = stook.MultiprocessingOptions(start_method="fork" if WAY == "fork" else "forkserver")

if WAY == "executor":
    executor = stook.ProcessPoolExecutor(1)
    def call(function):
        return executor.submit(function).result()
elif WAY == "pure":
    made = {}
    def call(function):
        return made.setdefault(function, stook.pure(max_workers=1)(function))()
else:
    pools = []
    def call(function):
        if not pools:  # what is forked has all that is there by now
            pools.append(stook.Pool(1, options=OPTIONS))
        return pools[0].apply(function)
"""


@each_way
def test_tables_of_functions_hold_the_new_ones(way: str, run_python: RunPython) -> None:
    """As when a cell of a notebook is run again."""
    code = """
def tables():
    global TABLE, LIST, PAIR, PARTIAL, NESTED, OUTER
    TABLE, LIST, PAIR, PARTIAL = {"k": h}, [h], (h, 1), functools.partial(h)
    NESTED = {"t": [PAIR], "l": LIST}
    OUTER = functools.partial(apply, NESTED)

def apply(nested):
    return nested["t"][0][0](), nested["l"][0]()

def use():
    return TABLE["k"](), LIST[0](), PAIR[0](), PARTIAL()
def use_nested():
    return OUTER() + (NESTED["l"][0] is LIST[0], NESTED["t"][0] is PAIR)

def h(): return "first"
tables()
assert call(use) == ("first",) * 4
assert call(use_nested) == ("first", "first", True, True)
def h(): return "second"
tables()
assert call(use) == ("second",) * 4, call(use)
assert call(use_nested) == ("second", "second", True, True)
def h(): return "third"
TABLE["k"] = LIST[0] = h  # in place; the others hold the second one
assert call(use) == ("third", "third", "second", "second"), call(use)
assert call(use_nested) == ("second", "third", True, True), call(use_nested)
"""
    run_python(PROLOGUE + code, way).check()


@each_way
def test_what_is_held_in_cycles_is_new_as_a_whole(way: str, run_python: RunPython) -> None:
    code = """
class Node:
    def __init__(self, number):
        self.number = number
    def get(self):
        return self.number

def build(number):
    global one, two, LOOP, METHOD
    one, two = Node(number), Node(-number)
    one.other, two.other, two.call = two, one, h
    LOOP = [one]
    LOOP.append(LOOP)
    METHOD = two.get

def use():
    return (
        one.other is two, two.other is one, LOOP[0] is one, LOOP[1] is LOOP,
        METHOD(), LOOP[0].other.number, LOOP[1][0].other.call(),
    )

def h(): return "a"
build(1)
assert call(use) == (True,) * 4 + (-1, -1, "a")
def h(): return "b"
build(1)
assert call(use) == (True,) * 4 + (-1, -1, "b"), call(use)
two.number = 5
assert call(use) == (True,) * 4 + (5, 5, "b"), call(use)
"""
    run_python(PROLOGUE + code, way).check()


@each_way
def test_only_what_holds_the_new_is_made_again(way: str, run_python: RunPython) -> None:
    """What a worker filled stays, also where a function that it calls is another one."""
    code = """
CACHE, TABLE = {}, {}

def helper(): return 1
def other(): return 1
def remember(by=CACHE):
    CACHE[len(CACHE)] = TABLE["n"] = helper()
    return len(CACHE), by is CACHE, other(), len(TABLE)
TABLE["helper"] = helper
MISSING = object()
def default(x=MISSING): return x is MISSING

assert call(remember) == (1, True, 1, 2) and call(default)
def other(): return 2
assert call(remember) == (2, True, 2, 2)
def helper(): return 3
assert call(remember) == (3, True, 2, 2)  # TABLE holds the former one, so it is another
MISSING = object()
def default(x=MISSING): return x is MISSING
assert call(default)
"""
    run_python(PROLOGUE + code, way).check()


def test_what_a_forked_worker_bound_is_no_reason_to_make_others_again(
    run_python: RunPython,
) -> None:
    code = """
def h(): return "caller's"
TABLE = {"h": h}

def init():
    global h
    h = lambda: "worker's"
    TABLE["more"] = h

def use(): return TABLE["h"](), TABLE["more"](), h()
def use_h(): return h()

for first in (use, use_h):
    pool = stook.Pool(1, init, options=stook.MultiprocessingOptions(start_method="fork"))
    assert pool.apply(first)
    for _ in range(2):
        assert pool.apply(use) == ("caller's", "worker's", "worker's"), first
"""
    run_python(PROLOGUE + code).check()


def test_what_changed_since_a_fork_is_new_where_it_is_held(run_python: RunPython) -> None:
    """Also if nothing of it was ever sent before."""
    code = """
class Holder:
    def __init__(self, value): self.value = value
    def get(self): return self.value

def build(value):
    global METHOD, MISSING, holder
    holder, MISSING = Holder(value), object()
    METHOD = holder.get

def use():
    return TABLE["h"](), METHOD(), default(), LOOP[1]["h"](), LOOP[0] is LOOP, LOOP[1] is TABLE

build(1)
def h(): return "old"
def default(x=MISSING): return x is MISSING
TABLE = {"h": h}
LOOP = []
LOOP += [LOOP, TABLE]
pool = stook.Pool(1, options=stook.MultiprocessingOptions(start_method="fork"))
assert pool.apply(abs, (-1,)) == 1  # it was forked
build(2)
def h(): return "new"
def default(x=MISSING): return x is MISSING
TABLE["h"] = h
for _ in range(2):
    assert pool.apply(use) == ("new", 2, True, "new", True, True), pool.apply(use)
"""
    run_python(PROLOGUE + code).check()


@each_way
def test_a_literal_is_not_the_global_that_is_equal(way: str, run_python: RunPython) -> None:
    """The compiler makes one object of equal literals of a module."""
    code = """
def literals(): return (1, 2), (), ((1, 2), (3, 4)), 5 in {5, 6}
PAIR, EMPTY, NESTED, _ = expected = literals()
PART = NESTED[0]
assert call(literals) == expected
PAIR = EMPTY = NESTED = PART = "changed"
assert call(literals) == expected, call(literals)
assert stook.Pool(1).apply(literals) == expected
"""
    run_python(PROLOGUE + code, way).check()


def test_definitions_stay_the_same_object_while_nothing_changed(run_python: RunPython) -> None:
    code = """
from stook._pickling import dump_function
def h(): return 1
TABLE = {"h": h}
LOOP = [TABLE]
LOOP.append(LOOP)
def use(): return LOOP[0]["h"]()
for _ in range(3):
    known = dump_function(use)
assert dump_function(use) is known
def h(): return 2
assert dump_function(use) != known
for _ in range(3):
    known = dump_function(use)
assert dump_function(use) is known
TABLE["h"] = h
assert dump_function(use) != known
"""
    run_python(PROLOGUE + code).check()


def test_what_a_pure_function_is_made_of_may_change(run_python: RunPython) -> None:
    code = """
@stook.pure(max_workers=1)
def ask(): return f(), f.n
def f(*, x=1): return x
f.n = 1
assert ask() == (1, 1)
f.n = 2
assert ask() == (1, 2)
f.__kwdefaults__ = {"x": 3}
assert ask() == (3, 2)
f.__kwdefaults__["x"] = 4
assert ask() == (4, 2)
f.__code__ = (lambda *, x: -x).__code__
assert ask() == (-4, 2)
f.__defaults__, f.__kwdefaults__ = (7,), None
f.__code__ = (lambda x: x).__code__
assert ask() == (7, 2)
"""
    run_python(PROLOGUE + code).check()
