"""Classes of the script, whose instances cross both ways as what they are."""

from __future__ import annotations

import pytest

from conftest import RunPython

CODE = """
import dataclasses, enum, functools, sys
import stook

@dataclasses.dataclass(slots=True)
class Point:
    x: int = 1
    y: int = 2

@dataclasses.dataclass(slots=True, frozen=True)
class Frozen:
    x: int

class Meta(type):
    pass

class Private(metaclass=Meta):
    __slots__ = ("__secret", "open", "__weakref__")
    def __init__(self, value):
        self.__secret, self.open = value, -value
    def secret(self):
        return self.__secret

class One:
    __slots__ = "only"

class Both:
    __slots__ = ("a", "__dict__")

class Base:
    pass

class Child(Base):
    __slots__ = ("c",)

class GrandChild(Point):
    __slots__ = ()

class Color(enum.IntEnum):
    __slots__ = ()
    RED = 1

class Prop:
    def __init__(self, n):
        self.n = n
    @functools.cached_property
    def twice(self):
        "Two times."
        return 2 * self.n

class Failed(Exception):
    __slots__ = ("why",)
    def __init__(self, why, *, note):
        super().__init__(note)
        self.why = why

class Bare(Exception):
    __slots__ = ("why",)

def filled(kind, **values):
    made = kind()
    for name, value in values.items():
        setattr(made, name, value)
    return made

def all_of_them():
    return [
        Point(3, 4), Frozen(5), Private(6), filled(One, only=7), filled(Both, a=8, b=9),
        filled(Child, c=10, d=11), GrandChild(12),
    ]

def state(thing):
    slots = [
        name for kind in type(thing).__mro__ for name, member in vars(kind).items()
        if type(member).__name__ == "member_descriptor"
    ]
    return (
        type(thing).__name__, type(thing).__module__, hasattr(thing, "__weakref__"),
        getattr(thing, "__dict__", None), sorted((n, getattr(thing, n)) for n in slots),
        getattr(type(thing), "__slots__", None),
    )

def states(things):
    return list(map(state, things))

def fail():
    raise Failed("because", note="noted")

def fail_bare():
    error = Bare("text")
    error.why = 3
    raise error

def twice(thing):
    return thing.twice, type(thing).twice.__doc__, type(thing).twice.attrname

def from_slots(kind):
    try:
        kind(1, 2).z = 3
    except AttributeError:
        return True

def check(call):
    expected = states(all_of_them())
    kinds = [type(thing) for thing in all_of_them()]
    assert call(states, all_of_them()) == expected  # they are that in the worker
    for things in (call(all_of_them), call(lambda them: them, all_of_them())):
        assert states(things) == expected, states(things)
        assert [type(thing) for thing in things] == kinds
    assert call(from_slots, Point) and call(lambda: Private(3).secret()) == 3
    assert call(lambda: Point(5)) == Point(5)

    assert call(lambda color: (color, Color.RED), Color.RED) == (Color.RED,) * 2
    assert call(twice, Prop(4)) == (8, "Two times.", "twice")
    back = call(lambda: Prop(5))
    assert type(back) is Prop and back.twice == 10
    back = call(lambda thing: (thing.twice, thing)[1], Prop(6))
    assert vars(back) == {"n": 6, "twice": 12}

    for function, args, why in ((fail, ("noted",), "because"), (fail_bare, ("text",), 3)):
        try:
            call(function)
        except (Failed, Bare) as error:
            assert error.args == args and error.why == why, (error.args, error.why)
        else:
            raise AssertionError
"""


@pytest.mark.parametrize("method", ["forkserver", "fork"])
@pytest.mark.parametrize("way", ["pool", "executor", "pure"])
def test_pools(way: str, method: str, run_python: RunPython) -> None:
    code = """
options = stook.MultiprocessingOptions(1, start_method=sys.argv[2])
if sys.argv[1] == "pool":
    pool = stook.Pool(1, options=options)
    check(lambda function, *args: pool.apply(function, args))
    check(lambda function, *args: list(pool.imap(lambda _: function(*args), [0]))[0])
elif sys.argv[1] == "executor":
    executor = stook.ProcessPoolExecutor(1, options=options)
    check(lambda function, *args: executor.submit(function, *args).result())
else:
    check(lambda function, *args: stook.pure(options=options)(function)(*args))
"""
    run_python(CODE + code, way, method).check()


@pytest.mark.parametrize("method", ["forkserver", "fork"])
def test_loaders(method: str, run_python: RunPython) -> None:
    code = """
options = stook.MultiprocessingOptions(1, start_method=sys.argv[1])
def load(thing):
    return thing, state(thing)
loader = stook.DataLoader(all_of_them(), load, options=options)
for (thing, there), expected in zip(loader, all_of_them(), strict=True):
    assert type(thing) is type(expected)
    assert state(thing) == there == state(expected)
loader.close()
"""
    run_python(CODE + code, method).check()


def test_classes_that_the_caller_has_not(run_python: RunPython) -> None:
    code = """
def make():
    @dataclasses.dataclass(slots=True)
    class Local:
        a: int
    return [Local(1), Local(2)]

one, two = stook.Pool(1).apply(make)
assert type(one) is type(two) and one.a == 1 and two.a == 2
assert not hasattr(one, "__dict__") and type(one)(1) == one
"""
    run_python(CODE + code).check()
