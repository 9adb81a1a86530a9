"""One of each kind of leaf and tree that an element may be, made alike wherever it is asked for."""

from __future__ import annotations

import collections
import dataclasses
import datetime
import decimal
import enum
import fractions
import pathlib
import re
import uuid
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

LARGE = 3000  # items: more than min_shared_bytes for all but the smallest


class Color(enum.Enum):
    RED = 1
    BLUE = 2


class Flag(enum.IntFlag):
    A = 1
    B = 2


class Point(NamedTuple):
    x: Any
    y: Any


@dataclasses.dataclass
class Sample:
    image: Any
    label: Any = 3


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    image: Any


class Custom:
    def __init__(self, **values: Any) -> None:
        self.__dict__.update(values)


class Dict(dict):  # type: ignore[type-arg]
    pass


class List(list):  # type: ignore[type-arg]
    pass


class Int(int):
    pass


class Array(np.ndarray):  # type: ignore[type-arg]
    pass


class Reduced:
    """Pickled by a function of its own."""

    def __init__(self, array: Any) -> None:
        self.array = array

    def __reduce__(self) -> Any:
        return Reduced, (self.array,)


def _count(dtype: Any, shape: Any = LARGE) -> Any:
    size = int(np.prod(shape))
    return (np.arange(size) % 100).astype(dtype).reshape(shape)


_STRUCTURED = np.dtype([("a", ">i2"), ("b", "f8", (2,)), ("c", [("d", "S3"), ("e", "M8[us]")])])
_ALIGNED = np.dtype([("a", "u1"), ("b", "f8"), ("c", "u1")], align=True)
_TITLED = np.dtype([(("Title", "a"), "i4"), ("b", "U2")])
_OVERLAPPING = np.dtype({"names": ["a", "b"], "formats": ["i4", "i2"], "offsets": [0, 2]})
_PADDED = np.dtype({"names": ["a"], "formats": ["i4"], "offsets": [4], "itemsize": 24})


def _filled(dtype: np.dtype[Any], shape: Any = LARGE) -> Any:
    size = int(np.prod(shape)) * dtype.itemsize
    return np.frombuffer((bytes(range(60)) * (size // 60 + 1))[:size], dtype).reshape(shape).copy()


def _read_only(array: Any) -> Any:
    array.flags.writeable = False
    return array


def _masked() -> Any:
    values = np.ma.masked_array(_count("f4"), mask=_count("i4") % 7 == 0)
    values.fill_value = 5
    return values


def _matrix() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PendingDeprecationWarning)
        return np.asmatrix(_count("f8", (60, 50)))


def _self_referring_list() -> Any:
    found: list[Any] = [1, _count("i4")]
    found.append(found)
    return found


def _self_referring_dict() -> Any:
    found: dict[str, Any] = {"array": _count("i4")}
    found["self"] = (found, [found])
    return found


def _self_referring_tuple() -> Any:
    inside: list[Any] = []
    found = (inside, _count("u1", 5000))
    inside.append(found)
    return found


def _one_array_in_many_places() -> Any:
    array, small = _count("i8"), np.arange(3)
    return {"a": array, "b": [array, (array, small)], "c": small}


def _shared_containers() -> Any:
    inner: list[Any] = [_count("i8"), 1]
    pair = (inner, {"x": inner})
    return [inner, pair, pair, {"again": pair}]


def _shared_with_object() -> Any:
    array, inner = _count("f8"), [1, 2]
    return {"object": Custom(array=array, inner=inner), "array": array, "inner": inner}


def _array_shared_with_object() -> Any:
    array = _count("f8")
    return {"object": Custom(array=array), "array": array}


def _container_shared_with_object() -> Any:
    inner = [1, 2]
    return [Custom(inner=inner), inner]


def _shared_within_objects() -> Any:
    array = _count("f8")
    shared = Custom(array=array)
    return [Sample(shared), Point(shared, array), {Color.RED: shared}]


def _object_array_that_shares() -> Any:
    inner: list[Any] = [1]
    found = np.empty(3, object)
    found[:] = [inner, None, "text"]
    return (found, inner, found)


def _views_of_one_base() -> Any:
    base = _count("i4", (60, 50))
    return {"base": base, "row": base[1], "part": base[::2, 1:], "back": base[::-1]}


def _deep(depth: int) -> Any:
    found: Any = np.arange(3)
    for level in range(depth):
        found = [found] if level % 2 else {"x": found}
    return found


def _many_dtypes() -> Any:
    found = [np.zeros(2, np.dtype(f"M8[{count}s]")) for count in range(1, 400)]
    return [*found, *(np.zeros(700, np.dtype([(f"f{count}", "f8")])) for count in range(300))]


def _bfloat_like_void() -> Any:
    return np.void(b"abc"), np.zeros(LARGE, "V5")


ARRAYS: dict[str, Callable[[], Any]] = {
    **{
        f"{code}-{order}": lambda code=code, order=order: _count(f"{order}{code}")
        for code in ["i1", "u2", "i4", "u8", "f2", "f4", "f8", "c8", "c16", "M8[ns]", "m8[3D]"]
        for order in "<>"
    },
    "bool": lambda: _count(bool),
    "longdouble": lambda: _count("g") / 3,
    "clongdouble": lambda: _count("G", (2, LARGE)) / 3,
    "long-long": lambda: _count("q"),
    "generic-datetime": lambda: np.full(LARGE, "NaT", "M8"),
    "bytes": lambda: _count("S7"),
    "text": lambda: _count("U5"),
    "text-swapped": lambda: _count(">U5"),
    "void": lambda: _filled(np.dtype("V6")),
    "structured": lambda: _filled(_STRUCTURED),
    "structured-small": lambda: _filled(_STRUCTURED, 3),
    "structured-aligned": lambda: _filled(_ALIGNED),
    "structured-titled": lambda: np.zeros(LARGE, _TITLED),
    "structured-overlapping": lambda: _filled(_OVERLAPPING),
    "structured-padded": lambda: _filled(_PADDED),
    "structured-strided": lambda: _filled(_STRUCTURED, (40, 90))[::2, ::-3],
    "structured-field": lambda: _filled(_STRUCTURED)["c"],
    "structured-fields": lambda: _filled(_STRUCTURED)[["a", "c"]],
    "structured-with-objects": lambda: np.array([(1, "x"), (2, [3])], [("a", "i4"), ("b", "O")]),
    "metadata": lambda: np.zeros(LARGE, np.dtype("i4", metadata={"unit": "m"})),
    "objects": lambda: np.array([None, 1, "x", [2], {"y": 3}], object),
    "0-d": lambda: np.array(3.5),
    "0-d-structured": lambda: np.zeros((), _STRUCTURED),
    "0-d-datetime": lambda: np.array("2020-01-02", "M8[D]"),
    "empty": lambda: np.zeros((0,)),
    "empty-axes": lambda: np.zeros((3, 0, 2), "i4", order="F"),
    "no-bytes-void": lambda: np.zeros(3, "V0"),
    "no-bytes-text": lambda: np.zeros(3, [("a", "S0"), ("b", "i4")])["a"],
    "no-fields": lambda: np.zeros(4, np.dtype([])),
    "size-1-axes": lambda: _count("i4", (1, LARGE, 1)),
    "many-axes": lambda: _count("i2", (2,) * 13),
    "32-axes": lambda: _count("i2", (2,) * 11 + (1,) * 21),
    "big": lambda: _count("u1", (1500, 2000)),
    "fortran": lambda: np.asfortranarray(_count("i4", (50, 60))),
    "fortran-small": lambda: np.asfortranarray(_count("i4", (5, 6))),
    "permuted": lambda: _count("i4", (20, 30, 40)).transpose(1, 0, 2),
    "permuted-small": lambda: _count("i4", (2, 3, 4)).transpose(1, 0, 2),
    "permuted-size-1": lambda: _count("i4", (20, 1, 30, 40)).transpose(2, 1, 0, 3),
    "transposed-part": lambda: _count("i4", (60, 50)).T[3:, ::2],
    "negative": lambda: _count("i4")[::-1],
    "negative-small": lambda: np.arange(9)[::-2],
    "negative-2d": lambda: _count("f8", (60, 50))[::-1, ::-1],
    "strided-longdouble": lambda: _count("G", (6, 6))[::2, ::-3],
    "offset": lambda: _count("u1", 9000)[1234:],
    "unaligned": lambda: _filled(np.dtype([("a", "u1"), ("b", "f8")]))["b"],
    "unaligned-view": lambda: _count("u1", 8 * LARGE + 1)[1:].view("f8"),
    "broadcast": lambda: np.broadcast_to(np.arange(50), (100, 50)),
    "broadcast-scalar": lambda: np.broadcast_to(np.float32(3), (100, 50)),
    "sliding": lambda: np.lib.stride_tricks.sliding_window_view(np.arange(5000), 3),
    "as-strided": lambda: np.lib.stride_tricks.as_strided(_count("i8"), (90, 90), (8, 16)),
    "read-only": lambda: _read_only(_count("i4")),
    "read-only-small": lambda: _read_only(np.arange(4)),
    "frombuffer": lambda: np.frombuffer(bytes(range(250)) * 40, "i4"),
    "real-part": lambda: _count("c16").real,
    "imaginary-part": lambda: _count("c16").imag,
}
if np.lib.NumpyVersion(np.__version__) >= "2.0.0":
    ARRAYS["string-dtype"] = lambda: np.array(
        ["a", "b" * 100, "\u00e9"] * 900, np.dtypes.StringDType()
    )
    ARRAYS["string-dtype-missing"] = lambda: np.array(
        ["a", None], np.dtypes.StringDType(na_object=None)
    )

SUBCLASSES: dict[str, Callable[[], Any]] = {
    "masked": _masked,
    "masked-small": lambda: np.ma.masked_array([1, 2, 3], [True, False, True]),
    "matrix": _matrix,
    "record-array": lambda: _filled(_STRUCTURED).view(np.recarray),
    "char-array": lambda: np.char.array(["a", "bc"]),
    "own-subclass": lambda: _count("i4").view(Array),
}

SCALARS: dict[str, Callable[[], Any]] = {
    **{
        kind.__name__: lambda kind=kind: kind(3)
        for kind in [
            np.int8,
            np.uint16,
            np.int32,
            np.uint64,
            np.float16,
            np.float32,
            np.float64,
            np.longdouble,
            np.complex64,
            np.complex128,
            np.clongdouble,
            np.bool_,
        ]
    },
    "bytes_": lambda: np.bytes_(b"abc"),
    "str_": lambda: np.str_("text"),
    "datetime64": lambda: np.datetime64("2021-02-03T04", "h"),
    "timedelta64": lambda: np.timedelta64(7, "ms"),
    "not-a-time": lambda: np.datetime64("NaT"),
    "void": _bfloat_like_void,
    "record": lambda: _filled(_STRUCTURED, 3)[1],
    "numpy-nan": lambda: np.float32("nan"),
    "masked-constant": lambda: [np.ma.masked],
}

OBJECTS: dict[str, Callable[[], Any]] = {
    "none": lambda: None,
    "bools": lambda: [True, False],
    "ints": lambda: [0, -1, 2**62, 2**63 - 1, -(2**63), 2**63, -(2**63) - 1, 10**400, 256, 257],
    "floats": lambda: [0.0, -0.0, float("inf"), float("-inf"), float("nan"), 5e-324, 1.1],
    "complex": lambda: [1j, complex(-0.0, float("nan"))],
    "text": lambda: ["", "abc", "\u00e9", "\u0416" * 3, "\U0001f600x", "\x00", "a" * 9000],
    "text-surrogates": lambda: ["\ud800", "x\udcff", "\ud83d\ude00"],
    "text-large": lambda: "\u0416" * 100_000,
    "bytes": lambda: [b"", b"\x00\xff", bytes(range(256)) * 40],
    "bytes-large": lambda: bytes(range(256)) * 5000,
    "bytearray": lambda: [bytearray(b"abc"), bytearray(20_000), bytearray()],
    "ellipsis": lambda: [..., NotImplemented, int, range(3), slice(1, None, 2)],
    "empty-containers": lambda: [(), [], {}, set(), frozenset()],
    "sets": lambda: [{1, "a", (2,)}, frozenset({3})],
    "other-containers": lambda: [
        collections.OrderedDict([("b", 1), ("a", np.arange(2000))]),
        collections.defaultdict(list, {1: [2]}),
        collections.deque([1, np.arange(2000)], maxlen=5),
        collections.Counter("abca"),
        Dict(a=np.arange(2000)),
        List([np.arange(2000)]),
    ],
    "keys": lambda: {
        1: "int",
        "1": "text",
        1.5: "float",
        None: 0,
        (1, "a"): [1],
        frozenset({1}): 2,
        Color.BLUE: 3,
        np.int64(7): 4,
        b"x": 5,
        True + 1: 6,
        2**70: 7,
    },
    "order": lambda: {key: ord(key) for key in "the quick brown fox"[::-1]},
    "enums": lambda: [Color.RED, Flag.A | Flag.B, Color.RED],
    "int-subclass": lambda: [Int(5), Int(2**80)],
    "namedtuple": lambda: Point(_count("i4"), Point("a", np.arange(2))),
    "dataclass": lambda: Sample(_count("f4"), Sample(np.arange(4))),
    "dataclass-frozen": lambda: Frozen(_count("f4")),
    "custom-class": lambda: Custom(array=_count("f4"), child=Custom(x=[1, 2])),
    "reduce": lambda: Reduced(_count("f4", (5, 6))).array,
    "standard-library": lambda: [
        datetime.datetime(2020, 1, 2, tzinfo=datetime.timezone.utc),
        datetime.timedelta(3),
        decimal.Decimal("1.10"),
        fractions.Fraction(1, 3),
        pathlib.PurePosixPath("/a/b"),
        uuid.UUID(int=5),
        re.compile("a+"),
    ],
    "mixed": lambda: {"image": _count("u1", (64, 64, 3)), "meta": Sample(Color.RED), "n": 3},
    "objects-and-arrays": lambda: [Custom(a=_count("i4")), _count("i4"), _count("f8"), {1, 2}],
    "many-leaves": lambda: {f"key {number}": _count("i8", number) for number in range(0, 900, 7)},
    "many-dtypes": _many_dtypes,
    "deep": lambda: _deep(150),
    "deeper": lambda: _deep(205),
    "wide": lambda: list(range(20_000)),
}

SHARED: dict[str, Callable[[], Any]] = {
    "self-referring-list": _self_referring_list,
    "self-referring-dict": _self_referring_dict,
    "self-referring-tuple": _self_referring_tuple,
    "one-array-in-many-places": _one_array_in_many_places,
    "one-array-twice": lambda: (lambda array: (array, array))(_count("i4")),
    "shared-containers": _shared_containers,
    "shared-with-object": _shared_with_object,
    "array-shared-with-object": _array_shared_with_object,
    "container-shared-with-object": _container_shared_with_object,
    "shared-within-objects": _shared_within_objects,
    "object-array-that-shares": _object_array_that_shares,
    "views-of-one-base": _views_of_one_base,
    "equal-but-not-shared": lambda: [[1], [1], _count("i4"), _count("i4")],
    "shared-empty-list": lambda: (lambda empty: [empty, empty, []])([]),
    "shared-bytearray": lambda: (lambda data: [data, (data,), bytearray(9000)])(bytearray(9000)),
}

CASES: dict[str, Callable[[], Any]] = {
    **{f"array-{name}": case for name, case in ARRAYS.items()},
    **{f"subclass-{name}": case for name, case in SUBCLASSES.items()},
    **{f"scalar-{name}": case for name, case in SCALARS.items()},
    **{f"object-{name}": case for name, case in OBJECTS.items()},
    **{f"shared-{name}": case for name, case in SHARED.items()},
}


def make(name: str) -> Any:
    return CASES[name]()


def echo(value: Any) -> Any:
    return value


def arrays_in(tree: Any) -> list[Any]:
    """The arrays of a tree of containers and samples, in its order."""
    if isinstance(tree, np.ndarray):
        return [tree]
    if isinstance(tree, Sample):
        return arrays_in(tree.image)
    if isinstance(tree, dict):
        tree = tree.values()
    elif not isinstance(tree, (list, tuple)):
        return []
    return [array for item in tree for array in arrays_in(item)]
