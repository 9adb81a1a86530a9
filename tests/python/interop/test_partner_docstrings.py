"""The examples in docstrings that need a partner, which the other suites pass over."""

from __future__ import annotations

import doctest
import importlib

import pytest

JAX_STAYS = pytest.mark.leaves("JAX keeps threads", "threads", "descriptors")


@pytest.mark.parametrize(
    "name", ["torch.loader", "torch.tensors", pytest.param("jax", marks=JAX_STAYS)]
)
def test_examples_run(name: str) -> None:
    partner = name.partition(".")[0]
    pytest.importorskip(partner, reason=f"{partner} is not installed")
    module = importlib.import_module(f"stook.{name}")
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    result = doctest.testmod(module, optionflags=flags)
    assert result.attempted > 0
    assert result.failed == 0
