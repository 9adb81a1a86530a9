from __future__ import annotations

import gc
import io
import re
import sys
from typing import Any

import numpy as np
import pytest
import tqdm.auto
from loader_cases import each_number_of_workers, loader

import stook


class Bar:
    """Stands in for tqdm's bar, and remembers."""

    made: list[Bar]

    def __init__(self, **settings: Any) -> None:
        self.settings = settings
        self.count = settings["initial"]
        self.closed = 0
        self.figures: list[str] = []
        Bar.made.append(self)

    def update(self, count: int) -> None:
        assert not self.closed
        self.count += count

    def set_postfix_str(self, text: str, refresh: bool) -> None:
        self.figures.append(text)

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def bars(monkeypatch: pytest.MonkeyPatch) -> list[Bar]:
    Bar.made = []
    monkeypatch.setattr(tqdm.auto, "tqdm", Bar)
    return Bar.made


@each_number_of_workers
def test_counts_elements_up_to_the_length_of_the_pass(bars: list[Bar], workers: int) -> None:
    with loader(range(5), workers=workers, batch_size=2, num_epochs=2, progress=True) as batches:
        assert len(list(batches)) == 6
    assert [(bar.settings["total"], bar.count, bar.closed) for bar in bars] == [(6, 6, 1)]


def test_elements_and_errors_are_those_without_a_bar(bars: list[Bar]) -> None:
    def load(value: int) -> int:
        if value == 1:
            raise ValueError("no")
        return value

    elements = iter(loader(range(3), load, workers=0, progress=True))
    assert next(elements) == 0
    with pytest.raises(ValueError):
        next(elements)
    assert (bars[0].count, bars[0].closed) == (1, 1), "closed before the traceback is printed"
    assert next(elements) == 2
    assert list(elements) == []
    assert (bars[1].settings["initial"], bars[1].count) == (1, 2)
    assert [bar.closed for bar in bars] == [1, 1]


def test_is_closed_when_the_loop_is_left(bars: list[Bar]) -> None:
    for _ in loader(range(3), workers=0, progress=True):
        break
    gc.collect()
    assert [bar.closed for bar in bars] == [1]


def test_is_closed_with_the_iterator_and_with_the_loader(bars: list[Bar]) -> None:
    elements = loader(range(3), workers=0, progress=True)
    with iter(elements) as first:
        next(first)
    assert [bar.closed for bar in bars] == [1]
    with pytest.raises(stook.StookError, match="closed"):
        next(first)
    second = iter(elements)
    next(second)
    elements.close()
    assert [bar.closed for bar in bars] == [1, 1]
    assert (second.stats().elements, bars[1].count) == (1, 1)


def test_has_no_total_where_there_is_none(bars: list[Bar]) -> None:
    list(loader(iter(range(3)), workers=0, progress=True))
    assert bars[0].settings["total"] is None


def test_shows_throughput_and_waiting(bars: list[Bar]) -> None:
    list(loader(range(3), lambda _: np.zeros(10**6, np.uint8), workers=0, progress=True))
    assert re.fullmatch(r"\d+\.\d MB/s, waiting \d+ %", bars[0].figures[-1])
    assert float(bars[0].figures[-1].split()[0]) > 0


@pytest.mark.leaves("tqdm makes a lock between processes once and keeps it", "mappings")
def test_works_with_tqdms_own_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    # Its thread, which renews bars that have stopped, outlives them.
    monkeypatch.setattr(tqdm.auto.tqdm, "monitor_interval", 0)
    terminal = io.StringIO()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert len(list(loader(range(3), workers=0, progress=True))) == 3
    assert "3/3" in terminal.getvalue()
    assert terminal.getvalue().endswith("\n")


def test_tqdm_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    with pytest.raises(ImportError, match="pip install tqdm"):
        loader(range(3), workers=0, progress=True)
    assert len(list(loader(range(3), workers=0))) == 3
