"""The progress bar of `DataLoader(..., progress=True)`."""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Callable, Mapping
from typing import Any

from ._iterator import LoaderIterator
from ._state import Place
from ._through import ThroughIterator
from .profile import LoaderProfile

__all__ = ["ProgressIterator", "import_tqdm"]

# How often the bar's figures are renewed. In between an element costs two clock readings.
_SECONDS_BETWEEN_FIGURES = 0.25


def import_tqdm() -> Any:
    """Returns the class of the bar: for a terminal, or in a notebook the one it can show.

    Raises:
      ImportError: tqdm is not installed; the message says how to.
    """
    try:
        from tqdm.auto import tqdm
    except ImportError as error:
        raise ImportError(
            "DataLoader(progress=True) needs tqdm: install it with `pip install tqdm`, or pass"
            " progress=False"
        ) from error
    return tqdm


class ProgressIterator(ThroughIterator):
    """An iterator that shows how far another one is.

    The bar shows elements, megabytes (10^6 bytes) of arrays a second, and `waiting`: the share of
    the time that the consumer spent waiting for elements. At 0 % the workers keep up; at 100 % the
    consumer has nothing else to do.

    The bar is closed when the iterator ends, is closed or is dropped, and when an element is an
    error, so that a traceback does not run into it; if the consumer goes on, so does a new bar.
    """

    def __init__(self, inner: LoaderIterator, total: int | None, bar: Any) -> None:
        self._inner = inner
        self._total = total
        self._bar_class = bar
        self._count = _elements_before(inner)
        self._waited = 0.0
        self._started = time.perf_counter()
        self._next_figures = 0.0
        self._bar: Any = None
        self._close_bar: Any = None
        inner._before_report(weakref.WeakMethod(self._end_bar))
        self._open_bar()

    def _open_bar(self) -> None:
        self._bar = self._bar_class(
            total=self._total, initial=self._count, unit="element", dynamic_ncols=True
        )
        # Not __del__: a bar must also be closed when the interpreter exits in the middle.
        self._close_bar = weakref.finalize(self, self._bar.close)

    def __next__(self) -> Any:
        before = time.perf_counter()
        try:
            element = next(self._inner)
        except BaseException:
            self._waited += time.perf_counter() - before
            self._end_bar()
            raise
        self._show(before)
        return element

    async def __anext__(self) -> Any:
        before = time.perf_counter()
        try:
            element = await self._inner.__anext__()
        except BaseException:
            self._waited += time.perf_counter() - before
            self._end_bar()
            raise
        self._show(before)
        return element

    def _show(self, before: float) -> None:
        now = time.perf_counter()
        self._waited += now - before
        if self._bar is None:
            self._open_bar()
        self._count += 1
        if now >= self._next_figures:
            self._show_figures(now)
        self._bar.update(1)

    def _show_figures(self, now: float) -> None:
        self._next_figures = now + _SECONDS_BETWEEN_FIGURES
        seconds = max(now - self._started, 1e-9)
        self._bar.set_postfix_str(
            f"{self._inner.stats().bytes / 1e6 / seconds:.1f} MB/s,"
            f" waiting {100 * self._waited / seconds:.0f} %",
            refresh=False,
        )

    def _end_bar(self) -> None:
        if self._bar is not None:
            self._show_figures(time.perf_counter())
            self._close_bar()
            self._bar = None

    def _prefetch_to(self, function: Callable[[Any], Any], depth: int) -> LoaderIterator:
        # The bar shows what the trainer takes.
        self._end_bar()
        inner = self._inner._prefetch_to(function, depth)
        iterator = ProgressIterator(inner, self._total, self._bar_class)
        inner._loader._take_place(self, iterator)
        return iterator

    def close(self) -> None:
        """Closes the bar and the iterator under it."""
        self._end_bar()
        self._inner.close()

    def get_state(self) -> dict[str, Any]:
        """That of the iterator under it."""
        return self._inner.get_state()

    def set_state(self, state: Mapping[str, Any], *, reshard: bool = False) -> None:
        """That of the iterator under it."""
        self._inner.set_state(state, reshard=reshard)
        self._begin_again()

    def _go_to(self, place: Place, *, by_loader: bool = False) -> None:
        self._inner._go_to(place, by_loader=by_loader)
        self._begin_again()

    def _begin_again(self) -> None:
        self._end_bar()  # the next element opens another
        self._count = _elements_before(self._inner)

    def profile(self, trace: str | os.PathLike[str] | None = None) -> LoaderProfile:
        """That of the iterator under it."""
        return self._inner.profile(trace)


def _elements_before(iterator: LoaderIterator) -> int:
    """Elements of the pass that a state had behind it, from which the iterator went on."""
    return 0 if iterator._pass is None else iterator._pass.elements_before()
