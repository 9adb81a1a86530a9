"""What is sent to the workers: what cannot be, how much it is, and that it is never stale."""

from __future__ import annotations

import functools
import io
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from process_loader import each_method, made

import stook


class Holder:
    """A source and a transform that holds something."""

    def __init__(self, held: Any) -> None:
        self.settings = {"held": [1, held]}

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> int:
        return index

    def __call__(self, index: int) -> int:
        return index

    def method(self, index: int) -> int:
        return index


class Slotted:
    __slots__ = ("held",)

    def __init__(self, held: Any) -> None:
        self.held = held

    def __call__(self, index: int) -> int:
        return index


def closure_over(held: Any) -> Any:
    def transform(index: int) -> int:
        return index if held is not None else -1

    return transform


def with_default(held: Any) -> Any:
    def transform(index: int, held: Any = held) -> int:
        return index

    return transform


def unpicklable(kind: str, path: Path) -> Any:
    if kind == "lock":
        return threading.Lock()
    if kind == "generator":
        return (x for x in ())
    if kind == "binary file":
        return open(path, "rb")
    return open(path, encoding="utf-8")


SHOWN = {
    "lock": "_thread.lock object",
    "generator": "<generator object",
    "binary file": "<_io.BufferedReader name=",
    "text file": "<_io.TextIOWrapper name=",
}


@pytest.mark.parametrize("kind", SHOWN)
def test_what_cannot_be_pickled_is_named_with_its_place(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("text")
    held = unpicklable(kind, path)
    cases: list[tuple[str, Any, Any]] = [
        ("source.settings['held'][1]", Holder(held), None),
        ("transform[0].settings['held'][1]", range(2), Holder(held)),
        ("transform[0].__self__.settings['held'][1]", range(2), Holder(held).method),
        ("transform[0].held", range(2), Slotted(held)),
        ("transform[0] (closure variable 'held')", range(2), closure_over(held)),
        ("transform[0] (default argument)", range(2), with_default(held)),
        ("transform[0].args[0]", range(2), functools.partial(max, held)),
        ("transform[1]", range(2), [abs, closure_over(held)]),
    ]
    try:
        for place, source, transform in cases:
            with made("forkserver", source, transform) as loader:
                with pytest.raises(stook.StookError) as caught:
                    iter(loader)
                text = str(caught.value)
                assert text.startswith(place), text
                assert "cannot be sent to worker processes" in text
                assert SHOWN[kind] in text
                assert "start_method='fork'" in text
                with pytest.raises(stook.StookError):  # nothing half-started is left
                    iter(loader)
        with made("forkserver", range(2), worker_init_fn=closure_over(held)) as loader:
            with pytest.raises(stook.StookError, match=r"worker_init_fn.*'held'"):
                iter(loader)
        # Forked workers inherit it.
        for _, source, transform in cases[:6]:
            with made("fork", source, transform) as loader:
                assert list(loader) == [0, 1]
    finally:
        if isinstance(held, io.IOBase):
            held.close()


def itself(item: Any) -> Any:
    return item


@each_method
def test_an_item_that_cannot_be_sent_is_an_error_of_its_element(method: str) -> None:
    with made(method, iter([1, threading.Lock(), 3]), itself) as loader:
        elements = iter(loader)
        assert next(elements) == 1
        with pytest.raises(stook.StookError, match="item 1 of the source cannot be sent") as caught:
            next(elements)
        assert caught.value.__notes__ == ["while loading element 1"]
        assert list(elements) == [3]


def test_a_large_payload_is_warned_about_at_the_users_line() -> None:
    large = np.zeros(101 << 20, np.uint8)

    def transform(index: int) -> int:
        return large.nbytes

    with made("forkserver", range(1), transform, num_workers=1) as loader:
        with pytest.warns(RuntimeWarning, match="101 MiB, most of it in transform") as caught:
            assert list(loader) == [large.nbytes]
        assert [Path(w.filename).name for w in caught] == [Path(__file__).name]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert list(loader) == [large.nbytes]  # the same workers
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with made("fork", range(1), transform, num_workers=1) as loader:
            assert list(loader) == [large.nbytes]


# ---- never stale ---------------------------------------------------------------------------------


def test_a_closure_that_changed_between_passes_is_not_stale() -> None:
    factor = 1
    table = {"a": 1}

    def transform(index: int) -> Any:
        import os

        return index * factor + table["a"], os.getpid()

    with made("forkserver", range(3), transform) as loader:
        first = list(loader)
        again = list(loader)
        assert [value for value, _ in first] == [value for value, _ in again] == [1, 2, 3]
        assert {pid for _, pid in again} <= {pid for _, pid in first + again}
        processes = {pid for _, pid in first + again}
        assert len(processes) <= 2  # the same workers, for nothing has changed
        factor = 10
        assert [value for value, _ in loader] == [1, 11, 21]
        table["a"] = 5
        changed = list(loader)
        assert [value for value, _ in changed] == [5, 15, 25]
        assert not processes & {pid for _, pid in changed}


class Scale:
    factor = 1

    def __call__(self, index: int) -> int:
        return index * self.factor


def test_an_instance_that_changed_between_passes_is_not_stale() -> None:
    scale = Scale()
    with made("forkserver", range(3), [scale, itself], collate=list, batch_size=3) as loader:
        assert list(loader) == [[0, 1, 2]]
        scale.factor = 7
        assert list(loader) == [[0, 7, 14]]


@each_method
def test_the_source_is_the_one_that_workers_were_started_with(method: str) -> None:
    source = [1, 2, 3]
    with made(method, source, itself) as loader:
        assert list(loader) == [1, 2, 3]
        source[0] = 100
        assert list(loader) == [1, 2, 3]
        loader.update(source)
        assert list(loader) == [100, 2, 3]
        loader.update([7])
        assert list(loader) == [7]
        assert loader.stats().elements == 10
