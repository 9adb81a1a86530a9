"""The standard library's own pools, to check the harness: everything must pass with them."""

from __future__ import annotations

import multiprocessing
from concurrent.futures.process import ProcessPoolExecutor
from multiprocessing.pool import ThreadPool
from typing import Any

from standins import ORIGINAL_POOL

__all__ = ["Pool", "ProcessPoolExecutor", "ThreadPool"]


def Pool(*arguments: Any, start_method: str | None = None, context: Any = None) -> Any:
    if context is None:
        context = multiprocessing.get_context(start_method)
    return ORIGINAL_POOL(*arguments, context=context)
