"""Functions that are sent by value: lambdas and closures over arrays, and what they import."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
from partner_loader import DEADLINE, PARTNER_FLAGS, loader

from conftest import RunPython


def test_a_lambda_over_an_array() -> None:
    table = np.arange(30_000.0).reshape(3, 10_000)
    with loader(range(3), lambda index: table[index] * 2, num_workers=2) as elements:
        for row, element in zip(table, elements, strict=True):
            assert np.array_equal(element, row * 2)
        assert elements.stats().moved == 3


def test_what_a_closure_holds_is_copied_and_stays() -> None:
    table = np.arange(10_000.0)
    with loader(range(3), lambda index: table) as elements:
        for element in elements:
            assert np.array_equal(element, table)
            element[:] = -1
        assert (elements.stats().moved, elements.stats().copied) == (0, 3)


def test_views_within_a_closure() -> None:
    table = np.arange(20_000).reshape(100, 200)
    views = [table.T, table[::2, ::-1], np.broadcast_to(table[0], (50, 200))]

    def view(index: int) -> Any:
        return views[index]

    with loader(range(3), view) as elements:
        for want, got in zip(views, elements, strict=True):
            assert np.array_equal(got, want)


def test_a_decorated_and_a_partial_function() -> None:
    def scaled(factor: float) -> Any:
        def decorate(function: Any) -> Any:
            @functools.wraps(function)
            def call(index: int) -> Any:
                return function(index) * factor

            return call

        return decorate

    @scaled(3.0)
    def row(index: int) -> Any:
        return np.full(5000, index)

    def shifted(offset: int, index: int) -> Any:
        return row(index) + offset

    with loader(range(3), functools.partial(shifted, 10), num_workers=2) as elements:
        assert [element[0] for element in elements] == [10.0, 13.0, 16.0]


def test_a_class_of_a_function() -> None:
    class Source:
        def __init__(self, rows: Any) -> None:
            self.rows = rows

        def __len__(self) -> int:
            return len(self.rows)

        def __getitem__(self, index: int) -> Any:
            return self.rows[index]

    with loader(Source(np.arange(20_000).reshape(4, 5000)), lambda row: row - row[0]) as elements:
        assert [element.tolist() for element in elements] == [list(range(5000))] * 4


INNER = {
    "the function itself": "return xml.dom.minidom.parseString(text).documentElement.tagName",
    "a comprehension": "return [xml.dom.minidom.parseString(t).documentElement.tagName"
    " for t in [text]][0]",
    "a lambda": "return (lambda: xml.dom.minidom.parseString(text).documentElement.tagName)()",
    "a lambda in a lambda": "return (lambda: (lambda:"
    " xml.dom.minidom.parseString(text).documentElement.tagName)())()",
}


@pytest.mark.parametrize("where", INNER)
def test_a_submodule_that_an_inner_function_names(run_python: RunPython, where: str) -> None:
    code = f"""
        import sys
        import xml.dom.minidom
        import stook

        def tag(text):
            {INNER[where]}

        options = stook.MultiprocessingOptions(num_workers=1)
        with stook.DataLoader(["<a/>", "<b></b>"], tag, options=options) as loader:
            print(*loader)
        # It is there because it was sent for, and nothing else brings it along.
        with stook.DataLoader(
            ["xml.dom.minidom"], lambda name: name in sys.modules, options=options
        ) as loader:
            print(*loader)
    """
    done = run_python(code, deadline=DEADLINE, flags=PARTNER_FLAGS).check()
    assert done.stdout == "a b\nFalse\n"


def test_a_submodule_in_a_closure(run_python: RunPython) -> None:
    code = """
        import stook

        def make():
            import xml.dom.minidom
            def tags(texts):
                return sorted(xml.dom.minidom.parseString(text).nodeName for text in texts)
            return tags

        options = stook.MultiprocessingOptions(num_workers=1)
        with stook.DataLoader([["<a/>"]], make(), options=options) as loader:
            print(*loader)
    """
    done = run_python(code, deadline=DEADLINE, flags=PARTNER_FLAGS).check()
    assert done.stdout == "['#document']\n"
