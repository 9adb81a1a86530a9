"""Pytest collects test_harness.py alone: the other modules are run by scripts/conformance.py."""

from __future__ import annotations

from pathlib import Path

collect_ignore = [
    path.name for path in Path(__file__).parent.glob("*.py") if not path.name.startswith("test_")
]
