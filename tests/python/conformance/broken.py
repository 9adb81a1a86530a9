"""Pools with faults planted in them, to check the harness: it must report every one.

A wrong result, a hang, a process left behind, a crash of the process that runs the suite.
"""

from __future__ import annotations

import concurrent.futures.process
import faulthandler
import multiprocessing
import subprocess
import sys
import threading
from multiprocessing.pool import ThreadPool
from typing import Any

from standins import ORIGINAL_POOL

__all__ = ["Pool", "ProcessPoolExecutor", "ThreadPool"]


class _BrokenPool(ORIGINAL_POOL):
    def map(self, *arguments: Any, **keywords: Any) -> Any:
        return [*super().map(*arguments, **keywords), "one too many"]

    def starmap(self, *arguments: Any, **keywords: Any) -> Any:
        threading.Event().wait()

    def starmap_async(self, *arguments: Any, **keywords: Any) -> Any:
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
        return super().starmap_async(*arguments, **keywords)

    def imap_unordered(self, *arguments: Any, **keywords: Any) -> Any:
        faulthandler._sigsegv()  # type: ignore[attr-defined]


def Pool(*arguments: Any, start_method: str | None = None, context: Any = None) -> Any:
    if context is None:
        context = multiprocessing.get_context(start_method)
    return _BrokenPool(*arguments, context=context)


class ProcessPoolExecutor(concurrent.futures.process.ProcessPoolExecutor):
    def submit(self, fn: Any, /, *arguments: Any, **keywords: Any) -> Any:
        return super().submit(fn, *arguments)  # forgets the keyword arguments
