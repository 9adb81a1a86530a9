"""What a test may leave behind: processes, threads, descriptors, mappings, segments.

Everything is read from /proc, because what leaks is by nature unknown to the objects that should
have ended it.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

# A mark that processes started from here inherit in their environment, so that one whose parent
# died (and which is nobody's descendant any more) is still found. scripts/test.py sets it before
# pytest starts: then it is in the forked processes' /proc/*/environ as well.
RUN_MARK = "STOOK_TEST_RUN"

KINDS = ("processes", "threads", "descriptors", "mappings", "segments")


@dataclass(frozen=True)
class Process:
    """A process as /proc shows it; start tells it from a later one with the same number."""

    pid: int
    parent: int
    session: int
    state: str
    start: int
    name: str

    def __str__(self) -> str:
        command = _read(f"/proc/{self.pid}/cmdline").replace(b"\0", b" ").decode(errors="replace")
        zombie = " (zombie: its parent has not waited for it)" if self.state == "Z" else ""
        text = command.strip() or self.name
        return f"process {self.pid}, parent {self.parent}{zombie}: {text[:200]}"


# Without pathlib and io: this is read for each process of the machine, twice a test.
def _read(path: str) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return b""
    parts = []
    try:
        while part := os.read(descriptor, 1 << 16):
            parts.append(part)
    except OSError:
        return b""
    finally:
        os.close(descriptor)
    return b"".join(parts)


def _process(pid: int) -> Process | None:
    stat = _read(f"/proc/{pid}/stat").decode(errors="replace")
    if not stat:
        return None
    # The name stands in parentheses and may itself hold spaces and parentheses.
    name, _, rest = stat.partition("(")[2].rpartition(") ")
    fields = rest.split(maxsplit=20)
    return Process(pid, int(fields[1]), int(fields[3]), fields[0], int(fields[19]), name)


def all_processes() -> list[Process]:
    """Every process that this one can see."""
    found = (_process(int(entry)) for entry in os.listdir("/proc") if entry.isdigit())
    return [process for process in found if process is not None]


def _start_of_this() -> int:
    this = _process(os.getpid())
    return 0 if this is None else this.start


# What carries a mark was started by this process, so it is not older; most of a machine's
# processes are, and reading an environment costs the most.
_STARTED = _start_of_this()


def process_tree(
    root: int, *, mark: str | None = None, session: int | None = None
) -> list[Process]:
    """Descendants of root, and processes that carry the mark or belong to the session; not root."""
    return _tree_among(all_processes(), root, mark, session)


def _tree_among(
    processes: list[Process], root: int, mark: str | None, session: int | None
) -> list[Process]:
    members = {root}
    while True:
        more = {p.pid for p in processes if p.parent in members} - members
        if not more:
            break
        members |= more
    if mark is not None:
        encoded = mark.encode()
        members |= {
            p.pid
            for p in processes
            if p.start >= _STARTED and encoded in _read(f"/proc/{p.pid}/environ").split(b"\0")
        }
    if session is not None:
        members |= {p.pid for p in processes if p.session == session}
    return [p for p in processes if p.pid in members and p.pid not in (root, os.getpid())]


def _ancestors(processes: list[Process]) -> set[int]:
    parents = {p.pid: p.parent for p in processes}
    found, pid = set(), os.getpid()
    while pid in parents and pid not in found:
        found.add(pid)
        pid = parents[pid]
    return found


def _processes() -> dict[object, str]:
    run = os.environ.get(RUN_MARK)
    mark = None if run is None else f"{RUN_MARK}={run}"
    processes = all_processes()
    outside = _ancestors(processes)
    found: dict[object, str] = {}
    for process in _tree_among(processes, os.getpid(), mark, None):
        # The standard library's own helper lives as long as the interpreter.
        if b"multiprocessing.resource_tracker" in _read(f"/proc/{process.pid}/cmdline"):
            continue
        if process.pid not in outside:
            found[process.pid, process.start] = str(process)
    return found


def _threads() -> dict[object, str]:
    python = {thread.native_id: thread for thread in threading.enumerate()}
    found: dict[object, str] = {}
    for task in os.listdir("/proc/self/task"):
        thread = python.get(int(task))
        # tqdm keeps one monitor thread for all bars of the process.
        if thread is not None and type(thread).__name__ == "TMonitor":
            continue
        name = _read(f"/proc/self/task/{task}/comm").decode(errors="replace").strip()
        found[int(task)] = f"thread {task}, {thread if thread is not None else f'native: {name}'}"
    return found


def _descriptors() -> dict[object, str]:
    tracker = sys.modules.get("multiprocessing.resource_tracker")
    lasting = getattr(getattr(tracker, "_resource_tracker", None), "_fd", None)
    found: dict[object, str] = {}
    for entry in os.listdir("/proc/self/fd"):
        # The descriptor of this very listing is gone when its link is read.
        with contextlib.suppress(OSError):
            target = os.readlink(f"/proc/self/fd/{entry}")
            if int(entry) != lasting:
                found[int(entry), target] = f"descriptor {entry}: {target}"
    return found


def _mappings() -> dict[object, str]:
    found: dict[object, str] = {}
    for line in _read("/proc/self/maps").decode(errors="replace").splitlines():
        span, rights, _, device, inode, *path = line.split(maxsplit=5)
        if path and path[0].startswith(("/memfd:stook", "/dev/shm/")):
            found[device, inode] = f"mapping {span} {rights} {path[0]}"
    return found


def _segments() -> dict[object, str]:
    names = os.listdir("/dev/shm") if Path("/dev/shm").is_dir() else []
    return {name: f"segment /dev/shm/{name}" for name in names if name.startswith("stook")}


READERS: dict[str, Callable[[], dict[object, str]]] = {
    "processes": _processes,
    "threads": _threads,
    "descriptors": _descriptors,
    "mappings": _mappings,
    "segments": _segments,
}


@dataclass
class Snapshot:
    """What there is at one moment, by kind."""

    found: dict[str, dict[object, str]] = field(default_factory=dict)

    @classmethod
    def take(cls, kinds: Iterable[str] = KINDS) -> Snapshot:
        """Reads /proc."""
        return cls({kind: READERS[kind]() for kind in kinds})

    def since(self, before: Snapshot) -> list[str]:
        """What is here and was not there before, one line each."""
        return [
            text
            for kind, entries in self.found.items()
            for key, text in entries.items()
            if key not in before.found.get(kind, {})
        ]

    def new_processes(self, before: Snapshot) -> list[int]:
        """The numbers of the processes that were not there before."""
        entries = self.found.get("processes", {})
        return [
            key[0]
            for key in entries
            if isinstance(key, tuple) and key not in before.found.get("processes", {})
        ]


def wait_until(condition: Callable[[], object], deadline: float) -> bool:
    """Asks until the answer is true or the seconds are over; returns the last answer."""
    end = time.monotonic() + deadline
    pause = 0.001
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(pause)
        pause = min(2 * pause, 0.05)
    return True


def left_since(before: Snapshot, kinds: Iterable[str] = KINDS, deadline: float = 8.0) -> list[str]:
    """What stays beyond the deadline although it was not there before. Ends the processes of it."""
    kinds = tuple(kinds)
    # A failed test's frames live on here, and with them all it had in hand.
    for name in ("last_exc", "last_type", "last_value", "last_traceback"):
        if hasattr(sys, name):
            delattr(sys, name)
    now = Snapshot.take(kinds)
    if not now.since(before):
        return []
    gc.collect()

    def nothing_left() -> bool:
        nonlocal now
        now = Snapshot.take(kinds)
        return not now.since(before)

    if wait_until(nothing_left, deadline):
        return []
    left = now.since(before)
    for pid in now.new_processes(before):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return left
