"""What `stook.recommend` concludes from figures, and that it sees the GIL in extreme cases."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

import stook
from stook.recommend import Recommendation, _in_one_thread, recommend


def found(
    threads: float, processes: float | None, gil_share: float = 0.0, one_thread: float = 100.0
) -> Recommendation:
    obstacle = "TypeError: cannot pickle it" if processes is None else ""
    return Recommendation("load", 4, one_thread, threads, processes, gil_share, obstacle)


@pytest.mark.parametrize(
    ("figures", "use"),
    [
        (found(390, 380, 0.01), "threads"),
        (found(350, 380, 0.05), "threads"),  # nearly as fast, and without the costs of processes
        (found(300, 380, 0.2), "processes"),
        (found(98, 390, 0.99), "processes"),
        (found(105, 110, 0.5), "one thread"),
        (found(40, 3, 1.0), "one thread"),
        (found(300, None, 0.1), "threads"),
        (found(100, None, 1.0), "one thread"),
        # Twice as fast in threads and yet the GIL held all the time: the machine was busy before.
        (found(200, 180, 1.0), "processes"),
        (found(200, None, 1.0), "one thread"),
        (found(390e6, 380e6, 0.0, 100e6), "threads"),
    ],
)
def test_what_follows_from_figures(figures: Recommendation, use: str) -> None:
    assert figures.use == use
    wanted: dict[str, Any] = {
        "threads": stook.MultithreadingOptions(4),
        "processes": stook.MultiprocessingOptions(4),
        "one thread": stook.MultiprocessingOptions(0),
    }
    assert figures.options == wanted[use]


def test_it_is_said_in_words() -> None:
    text = str(found(98, 390, 0.987))
    assert text.splitlines() == [
        "load: 10 ms a call, 99 % of it with the GIL held",
        "  one thread           100.0 calls/s    1.00x",
        "  4 threads             98.0 calls/s    0.98x",
        "  4 processes          390.0 calls/s    3.90x",
        "Use worker processes (options=stook.MultiprocessingOptions(4) or stook.Pool): each has a"
        " GIL of its own; processes are 3.9 times as fast as one thread.",
    ]
    text = str(found(350, None, 0.02, 2e6))
    assert "load: 0.5 µs a call, 2 %" in text
    assert "4 processes: not possible: TypeError: cannot pickle it" in text
    text = str(found(0.35, 0.38, 0.02, 0.1))
    assert "load: 10 s a call" in text
    assert "Use threads (options=stook.MultithreadingOptions(4) or stook.ThreadPool)" in text
    assert "Use one thread: 4 threads are 1.1 times" in str(found(105, 110))


def hash_much(data: bytes) -> None:
    hashlib.sha256(data).digest()


def sleep(_: Any) -> None:
    time.sleep(0.01)


def count(_: Any) -> None:
    sum(value * value for value in range(20_000))


@pytest.mark.parametrize(
    ("call", "given", "lowest", "highest"),
    [(sleep, 0, 0, 0.3), (hash_much, bytes(8 << 20), 0, 0.4), (count, 0, 0.7, 1)],
    ids=["sleeps", "hashes", "counts"],
)
def test_the_share_with_the_gil_held(
    call: Callable[[Any], Any], given: Any, lowest: float, highest: float
) -> None:
    rate, share = _in_one_thread(call, [given], 0.4)
    assert rate > 0
    assert lowest <= share <= highest


def test_a_sample_is_run_in_every_way(capsys: pytest.CaptureFixture[str]) -> None:
    result = recommend(sleep, iter([0, 1, 2]), num_workers=2, seconds=0.15)
    assert capsys.readouterr().out == f"{result}\n"
    assert result.name == "sleep"
    assert result.num_workers == 2
    assert result.one_thread > 0
    assert result.threads > 0
    assert result.processes is not None
    assert result.processes > 0


def test_what_cannot_be_sent_is_no_failure(capsys: pytest.CaptureFixture[str]) -> None:
    lock = threading.Lock()

    def use(_: Any) -> bool:
        with lock:
            return True

    result = recommend(use, [0], num_workers=1, seconds=0.05)
    assert result.processes is None
    assert "1 processes: not possible:" in capsys.readouterr().out
    assert "lock" in result.obstacle


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(TypeError, match="fn must be a callable that takes one input, got 3"):
        recommend(3, [1])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="sample_inputs is empty"):
        recommend(abs, [])
    with pytest.raises(ValueError, match="seconds must be more than 0, got 0"):
        recommend(abs, [1], seconds=0)
    with pytest.raises(ValueError, match="num_workers must be an int of at least 1"):
        recommend(abs, [1], num_workers=0)
    with pytest.raises(ZeroDivisionError):
        recommend(lambda value: 1 / value, [0])
