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
        self._bar = _Bar(bar, total, _elements_before(inner))
        # Not __del__: a bar must also be closed when the interpreter exits in the middle.
        self._close_bar = weakref.finalize(self, self._bar.close)
        self._waited = 0.0
        self._asked = self._came = self._started = time.perf_counter()
        self._clock = iter(time.perf_counter, None)
        self._next_figures = 0.0
        self._error: BaseException | None = None  # to be raised: Ctrl-C came before
        inner._before_report(weakref.WeakMethod(self._end_bar))
        self._bar.open()

    def __next__(self) -> Any:
        self._begin_waiting()
        try:
            for element in self._inner:
                # Without a call, behind which Ctrl-C could come: it is shown when the next one is
                # asked for, or the bar is closed.
                for now in self._clock:
                    self._came = now
                    self._bar.taken += 1
                    return element
        except KeyboardInterrupt:
            self._end_waiting()
            raise
        except BaseException as error:
            self._error = error
            self._fail()
        self._end_waiting()
        raise StopIteration

    async def __anext__(self) -> Any:
        self._begin_waiting()
        try:
            element = await self._inner.__anext__()
        except BaseException:
            self._end_waiting()
            raise
        for now in self._clock:
            self._came = now
            self._bar.taken += 1
            break
        return element

    def _begin_waiting(self) -> None:
        if self._error is not None:
            self._raise_again()
        self._waited += self._came - self._asked
        now = self._asked = self._came = time.perf_counter()
        if self._bar.shown < self._bar.taken:
            self._bar.open()
            if now >= self._next_figures:
                self._show_figures(now)
            self._bar.show()

    def _end_waiting(self) -> None:
        self._came = time.perf_counter()
        self._end_bar()

    def _fail(self) -> None:
        self._end_waiting()
        self._raise_again()

    def _raise_again(self) -> None:
        error, self._error = self._error, None
        try:
            assert error is not None
            raise error
        finally:
            del self, error  # which a traceback would hold

    def _show_figures(self, now: float) -> None:
        self._next_figures = now + _SECONDS_BETWEEN_FIGURES
        waited = self._waited + self._came - self._asked
        seconds = max(now - self._started, 1e-9)
        self._bar.bar.set_postfix_str(
            f"{self._inner.stats().bytes / 1e6 / seconds:.1f} MB/s,"
            f" waiting {100 * waited / seconds:.0f} %",
            refresh=False,
        )

    def _end_bar(self) -> None:
        if self._bar.bar is None and self._bar.shown < self._bar.taken:
            self._bar.open()
        if self._bar.bar is not None:
            self._show_figures(time.perf_counter())
            self._bar.close()

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
        self._error = None
        self._bar.taken = self._bar.shown = _elements_before(self._inner)

    def profile(self, trace: str | os.PathLike[str] | None = None) -> LoaderProfile:
        """That of the iterator under it."""
        return self._inner.profile(trace)


class _Bar:
    """A bar that is opened, closed and opened again. It is held by who closes it at the end, too.

    Attributes:
      bar: What the user sees, while it is open.
      taken: Elements that there are to show.
      shown: Those that are shown.
    """

    def __init__(self, kind: Any, total: int | None, count: int) -> None:
        self._kind = kind
        self._total = total
        self.bar: Any = None
        self.taken = self.shown = count

    def open(self) -> None:
        if self.bar is None:
            self.bar = self._kind(
                total=self._total, initial=self.shown, unit="element", dynamic_ncols=True
            )

    def show(self) -> None:
        count, self.shown = self.taken - self.shown, self.taken
        if count:
            self.bar.update(count)

    def close(self) -> None:
        if self.bar is not None:
            self.show()
            bar, self.bar = self.bar, None
            bar.close()


def _elements_before(iterator: LoaderIterator) -> int:
    """Elements of the pass that a state had behind it, from which the iterator went on."""
    return 0 if iterator._pass is None else iterator._pass.elements_before()
