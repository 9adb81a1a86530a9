"""The examples in the docstrings of `stook.torch`, which the other suites pass over."""

from __future__ import annotations

import doctest
import importlib

import pytest

pytest.importorskip("torch", reason="torch is not installed")


@pytest.mark.parametrize("name", ["loader", "tensors"])
def test_examples_run(name: str) -> None:
    module = importlib.import_module(f"stook.torch.{name}")
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    result = doctest.testmod(module, optionflags=flags)
    assert result.attempted > 0
    assert result.failed == 0
