"""The trace of a profile, in the JSON that Perfetto and Chrome's tracing show.

https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU: complete events,
times in microseconds. All are of one clock, CLOCK_MONOTONIC, so workers and consumer fit together.
"""

from __future__ import annotations

import json
import os
from typing import Any

from ._profile_memory import (
    CONSUMER,
    ELEMENT,
    ENCODE,
    HAND_OVER,
    PREFETCH,
    WAIT_CONSUMER,
    WAIT_EVENT,
    WAIT_JOBS,
    WAIT_MEMORY,
    WAIT_ORDER,
    Recorder,
)

__all__ = ["write_trace"]

_NAMES = {
    ELEMENT: "element",
    ENCODE: "encode",
    HAND_OVER: "hand over",
    CONSUMER: "next()",
    WAIT_EVENT + WAIT_MEMORY: "wait: memory",
    WAIT_EVENT + WAIT_JOBS: "wait: jobs",
    WAIT_EVENT + WAIT_ORDER: "wait: order",
    WAIT_EVENT + WAIT_CONSUMER: "wait: trainer",
}


def write_trace(
    path: str | os.PathLike[str], recorder: Recorder, names: dict[int, str], begin: int, end: int
) -> None:
    """Writes what happened between two times, as far as it is still known.

    Args:
      path: Of the file, which is replaced.
      recorder: What holds the last events of each worker.
      names: Of the user's stages, by number.
      begin: In nanoseconds.
      end: In nanoseconds.
    """
    texts = {**_NAMES, **names}
    of_consumer = {**texts, PREFETCH: "prefetch_to"}
    events: list[dict[str, Any]] = []
    labels: dict[tuple[int, int], tuple[str, str]] = {}
    for cell in range(recorder.workers + 1):
        is_consumer = cell == recorder.workers
        for code, thread, start, time, epoch, position in recorder.core.events(cell):
            if start < begin or start > end:
                continue
            # The thread of a worker that runs jobs has the number of its process.
            process = os.getpid() if is_consumer or recorder.here else thread
            if is_consumer:
                labels[process, thread] = "stook: this process", "trainer"
            elif recorder.here:
                labels.setdefault((process, thread), ("stook: this process", f"thread {thread}"))
            else:
                labels[process, thread] = f"stook: worker {cell}", f"worker {cell}"
            event: dict[str, Any] = {
                "name": (of_consumer if is_consumer else texts).get(code, f"stage {code}"),
                "cat": "wait" if code >= WAIT_EVENT or code == CONSUMER else "work",
                "ph": "X",
                "ts": start / 1000,
                "dur": time / 1000,
                "pid": process,
                "tid": thread,
            }
            if event["cat"] == "work" and not is_consumer:
                event["args"] = {"epoch": epoch, "position": position}
            events.append(event)
    events.sort(key=lambda event: (event["ts"], -event["dur"]))
    heads = []
    for (process, thread), (process_name, thread_name) in labels.items():
        for kind, name in (("process_name", process_name), ("thread_name", thread_name)):
            head = {"name": kind, "ph": "M", "ts": 0, "pid": process, "tid": thread}
            heads.append({**head, "args": {"name": name}})
    with open(path, "w", encoding="utf-8") as file:
        json.dump({"traceEvents": heads + events, "displayTimeUnit": "ms"}, file)
