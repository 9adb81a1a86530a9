"""Pure functions of a module that can be imported."""

from __future__ import annotations

import asyncio
import functools
import os
from typing import Any

import numpy as np

import stook

counter = 0


@stook.pure(max_workers=2)
def add(left: int, right: int = 1) -> int:
    """Adds."""
    return left + right


@stook.pure(max_workers=2)
async def multiply(left: int, right: int = 2) -> int:
    await asyncio.sleep(0)
    return left * right


@stook.pure(max_workers=2)
def pid() -> int:
    return os.getpid()


@stook.pure(max_workers=2)
def echo(value: Any) -> Any:
    return value


@stook.pure(max_workers=2)
def raises(error: BaseException) -> None:
    raise error


@stook.pure(max_workers=2)
def count() -> int:
    global counter
    counter += 1
    return counter


@stook.pure(max_workers=2)
def factorial(number: int) -> tuple[int, int]:
    """Of the number, and the one process in which all of it was computed, or 0 for several."""
    if number < 2:
        return 1, os.getpid()
    below, process = factorial(number - 1)
    return number * below, process if process == os.getpid() else 0


@stook.pure(max_workers=2)
async def sum_of_products(count: int) -> int:
    return sum(await asyncio.gather(*(multiply(i, 3) for i in range(count))))


@stook.pure(max_workers=2)
def full(size: int, value: int) -> np.ndarray:
    return np.full(size, value)


@functools.lru_cache
@stook.pure(max_workers=2)
def cached(number: int) -> int:
    return number * 10


class Shape:
    """With pure methods of each kind."""

    def __init__(self, side: int) -> None:
        self.side = side

    @stook.pure(max_workers=2)
    def area(self, times: int = 1) -> int:
        self.side += 1  # of a copy
        return (self.side - 1) ** 2 * times

    @stook.pure(max_workers=2)
    async def area_async(self) -> int:
        return self.side**2

    @staticmethod
    @stook.pure(max_workers=2)
    def double(number: int) -> int:
        return 2 * number

    @classmethod
    @stook.pure(max_workers=2)
    def name(cls, suffix: str) -> str:
        return cls.__name__ + suffix
