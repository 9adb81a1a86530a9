"""Values of `__main__` that hold one another: as new in a worker as in the caller."""

from __future__ import annotations

import pytest

from conftest import RunPython

each_method = pytest.mark.parametrize("method", ["forkserver", "fork"])

PROLOGUE = """
import dataclasses, functools, sys
import stook

pool = None

def call(function, *args):
    global pool
    if pool is None:
        pool = stook.Pool(1, start_method=sys.argv[1])
    return pool.apply(function, args)
"""


@each_method
def test_what_holds_a_function_that_was_defined_anew_is_new(
    method: str, run_python: RunPython
) -> None:
    """As a registry is, in the cells of a notebook: it looks the same, and holds another one."""
    code = """
def make():
    global LIST, DICT, TUPLE, PARTIAL, NESTED
    LIST, DICT, TUPLE, PARTIAL = [kept], {"key": kept}, (kept,), functools.partial(kept)
    NESTED = [DICT, TUPLE]

def use():
    return LIST[0](), DICT["key"](), TUPLE[0](), PARTIAL(), NESTED[0]["key"](), NESTED[1][0]()

def kept():
    return "old"

make()
assert call(use) == ("old",) * 6, call(use)

def kept():
    return "new"

make()
assert call(use) == ("new",) * 6, call(use)
assert call(use) == ("new",) * 6
"""
    run_python(PROLOGUE + code, method).check()


@each_method
def test_a_bound_method_is_of_the_object_as_it_is(method: str, run_python: RunPython) -> None:
    code = """
class Counter:
    count = 1

    def read(self):
        return self.count

counter = Counter()
read = counter.read

def use():
    return read()

assert call(use) == 1
counter.count = 2
assert call(use) == 2
"""
    run_python(PROLOGUE + code, method).check()


@each_method
def test_values_that_hold_each_other_keep_what_workers_did(
    method: str, run_python: RunPython
) -> None:
    code = """
one, other = {}, {}
one["other"], other["one"] = other, one

def count():
    other["count"] = other.get("count", 0) + 1
    return one["other"]["count"]

assert [call(count) for _ in range(3)] == [1, 2, 3]
"""
    run_python(PROLOGUE + code, method).check()


@each_method
def test_instances_of_classes_with_slots_cross(method: str, run_python: RunPython) -> None:
    code = """
@dataclasses.dataclass(slots=True)
class Point:
    x: int = 1

class Named:
    __slots__ = "name"

class Both(Named):
    __slots__ = ("value", "__dict__")

def make(kind, **values):
    made = kind()
    for name, value in values.items():
        setattr(made, name, value)
    return made

assert call(make, Point).x == 1
assert call(lambda point: point, Point(3)) == Point(3)
assert call(make, Named).__class__ is Named
assert call(hasattr, Named(), "__dict__") is False
both = call(make, Both)
both = call(lambda: make(Both, name="n", value=2, more=3))
assert (both.name, both.value, vars(both)) == ("n", 2, {"more": 3})
"""
    run_python(PROLOGUE + code, method).check()


@each_method
def test_a_class_with_a_cached_property_crosses(method: str, run_python: RunPython) -> None:
    code = """
class Lazy:
    @functools.cached_property
    def value(self):
        "Of which it is said:"
        return 7

assert call(lambda lazy: lazy.value, Lazy()) == 7
assert call(lambda: Lazy.value.__doc__) == "Of which it is said:"
assert call(Lazy).value == 7
"""
    run_python(PROLOGUE + code, method).check()


@each_method
def test_hints_and_defaults_are_as_they_are_now(method: str, run_python: RunPython) -> None:
    code = """
def tell(number: int, more: "str" = 1, *, last: dict[str, float] | None = None) -> list[int]:
    values = (*tell.__defaults__, *tell.__kwdefaults__.values())
    return [(type(value), value) for value in values], dict(tell.__annotations__)

def check():
    assert call(tell, 0) == tell(0), (call(tell, 0), tell(0))

check()
tell.__defaults__ = (True,)  # equal to what it was
check()
tell.__defaults__ = (1.0,)
check()
tell.__kwdefaults__["last"] = 3
check()
tell.__annotations__["number"] = float
check()
tell.__annotations__["number"] = list[float]
check()
del tell.__annotations__["return"]
check()
tell.__kwdefaults__["last"] = [1]
check()
tell.__kwdefaults__["last"].append(2)  # in place
check()
"""
    run_python(PROLOGUE + code, method).check()


def test_a_function_with_hints_and_defaults_is_pickled_once(run_python: RunPython) -> None:
    code = """
from typing import Any, Optional
from stook import _main_values

made = 0

class Counting(_main_values.SendingPickler):
    def __init__(self, *args, **kwargs):
        global made
        made += 1
        super().__init__(*args, **kwargs)

_main_values.SendingPickler = Counting

def tell(
    number: int, more: Optional[list[int]] = None, *, last: "Any" = 0.5, any: Any = ""
) -> int | None:
    return number

assert [call(tell, number) for number in range(10)] == list(range(10))
print(made)
"""
    found = run_python(PROLOGUE + code, "forkserver").check()
    assert int(found.stdout.split()[-1]) <= 3, found
