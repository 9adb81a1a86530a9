"""One measurement, in a process of its own; prints one line of JSON.

    python benchmarks/python/one.py imap array --workers 2 --buffer 8 --consumer read --seconds 1

Not timed: the start, and elements until the blocks in use have been touched and the caches settled.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

from peers import PEERS, NotComparable, window
from works import CONSUMERS, WORKS, Work, mark, touch


def check_first(elements: Iterator[Any], work: Work, count: int) -> None:
    """Takes ``count`` elements and sees that they are the right ones, in order."""
    for index, element in enumerate(itertools.islice(elements, count)):
        found = touch(work.leaf(element))
        if work.marked and found != mark(index):
            raise SystemExit(f"element {index} starts with {found}, not with {mark(index)}")


def consume_for(
    elements: Iterator[Any], work: Work, consume: Callable[[Any], int], seconds: float
) -> tuple[int, float]:
    """Consumes for at least ``seconds``. Returns how many elements, and the seconds they took."""
    leaf = work.leaf
    count = 0
    start = time.perf_counter()
    while True:
        for element in itertools.islice(elements, work.per_look):
            consume(leaf(element))
        count += work.per_look
        took = time.perf_counter() - start
        if took >= seconds:
            return count, took


def measure(
    peer: str, work: Work, workers: int, buffer: int, consumer: str, seconds: float
) -> dict[str, Any]:
    with PEERS[peer].run(work, workers, buffer) as elements:
        check_first(elements, work, 2 * window(workers, buffer))
        consume_for(elements, work, CONSUMERS[consumer], seconds / 5)
        cpu = time.process_time()
        count, took = consume_for(elements, work, CONSUMERS[consumer], seconds)
        cpu = time.process_time() - cpu
    return {
        "us_per_element": took / count * 1e6,
        "parent_cpu_us_per_element": cpu / count * 1e6,
        "elements": count,
        "seconds": took,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("work", choices=WORKS)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--buffer", type=int, default=8)
    parser.add_argument("--consumer", choices=CONSUMERS, default="touch")
    parser.add_argument("--seconds", type=float, default=1.0)
    args = parser.parse_args()
    try:
        work = WORKS[args.work]
        result = measure(args.peer, work, args.workers, args.buffer, args.consumer, args.seconds)
    except NotComparable as reason:
        result = {"not_comparable": str(reason)}
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
