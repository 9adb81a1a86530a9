"""A profile, from what the memory of figures said at the beginning of a pass and at its end."""

from __future__ import annotations

from ._profile_memory import (
    CONSUMER,
    ELEMENT,
    ENCODE,
    HAND_OVER,
    PREFETCH,
    SOURCE,
    TRANSFORMS,
    WAIT_CONSUMER,
    WAIT_JOBS,
    WAIT_MEMORY,
    WAIT_ORDER,
    CellFigures,
    Snapshot,
)
from ._profile_reasons import NOT_COPIED, text_of
from .profile import CopyProfile, LoaderProfile, StageProfile
from .stats import LoaderStats

__all__ = ["profile_between"]

_WAITS = {
    "memory": WAIT_MEMORY,
    "jobs": WAIT_JOBS,
    "order": WAIT_ORDER,
    "trainer": WAIT_CONSUMER,
}


def profile_between(
    begin: Snapshot,
    end: Snapshot,
    stats: LoaderStats,
    *,
    kind: str,
    workers: int,
    names: dict[int, str],
    min_shared_bytes: int,
    source_in_parent: bool,
    prefetch: str | None = None,
) -> LoaderProfile:
    """What happened between two looks.

    Args:
      begin: The first look, at the beginning of the pass.
      end: The second one.
      stats: What was delivered between them.
      kind: See `LoaderProfile`.
      workers: Processes or threads.
      names: Of the user's stages, by number.
      min_shared_bytes: Of the options.
      source_in_parent: The source is iterated in the consumer's process.
      prefetch: Name of the function of `prefetch_to`, if there is one.
    """
    elapsed = end.time - begin.time
    cells = list(zip(begin.cells[:-1], end.cells[:-1], strict=True))
    consumer = begin.cells[-1], end.cells[-1]
    there = [_time_there(begin, end, cell) for _, cell in cells]
    if kind != "processes":
        there = [elapsed] * workers
    available = sum(there)
    waits = {
        name: sum(
            max(0, last.waited(what, end.time) - first.waited(what, begin.time))
            for first, last in cells
        )
        for name, what in _WAITS.items()
    }
    totals = {stage: _stage(cells, stage) for stage in (*names, ELEMENT, ENCODE, HAND_OVER)}
    if source_in_parent:
        totals[SOURCE] = _stage([consumer], SOURCE)
    if kind != "processes":
        waits = {"idle": max(0, available - totals[ELEMENT][1])} if kind == "threads" else {}

    named = sum(totals[stage][1] for stage in names if stage != SOURCE or not source_in_parent)
    rest = (totals[ELEMENT][0], max(0, totals[ELEMENT][1] - named), 0)
    order = sorted(names, key=lambda stage: (stage != SOURCE, stage < TRANSFORMS, stage))
    rows = [(names[stage], totals[stage]) for stage in order]
    rows.append(("rest", rest))
    if kind == "processes":
        rows += [("encode", totals[ENCODE]), ("hand over", totals[HAND_OVER])]
    return LoaderProfile(
        kind,
        workers,
        elapsed / 1e9,
        stats.elements,
        stats.bytes,
        tuple(
            StageProfile(name, calls, time / 1e9, time / available if available else 0.0, size)
            for name, (calls, time, size) in rows
        ),
        {name: time / 1e9 for name, time in waits.items()},
        available / 1e9,
        1 - available / (elapsed * workers) if elapsed else 0.0,
        _stage([consumer], CONSUMER)[1] / 1e9,
        stats.moved,
        stats.copied,
        _copies(cells, min_shared_bytes),
        totals[ENCODE][2],
        stats.bytes_live,
        source_in_parent,
        None if prefetch is None else _prefetch(consumer, prefetch, elapsed),
    )


def _prefetch(consumer: tuple[CellFigures, CellFigures], name: str, elapsed: int) -> StageProfile:
    calls, time, _ = _stage([consumer], PREFETCH)
    share = time / elapsed if elapsed else 0.0
    return StageProfile(f"prefetch_to {name}", calls, time / 1e9, share, 0)


def _time_there(begin: Snapshot, end: Snapshot, cell: CellFigures) -> int:
    """Nanoseconds between two looks in which a worker was ready."""
    if cell.pid == 0:
        return 0
    return max(0, end.time - max(begin.time, cell.started))


def _stage(cells: list[tuple[CellFigures, CellFigures]], stage: int) -> tuple[int, int, int]:
    """(calls, nanoseconds, bytes) of a stage, of all cells."""
    calls = time = size = 0
    for first, last in cells:
        before, after = first.stages[stage], last.stages[stage]
        calls += after[0] - before[0]
        time += after[1] - before[1]
        size += after[2] - before[2]
    return calls, time, size


def _copies(
    cells: list[tuple[CellFigures, CellFigures]], min_shared_bytes: int
) -> tuple[CopyProfile, ...]:
    found = []
    for reason in range(len(cells[0][1].reasons)):
        if reason in NOT_COPIED:
            continue
        leaves = sum(last.reasons[reason][0] - first.reasons[reason][0] for first, last in cells)
        size = sum(last.reasons[reason][1] - first.reasons[reason][1] for first, last in cells)
        if leaves == 0:
            continue
        # The first that any worker met, if its text is there already.
        examples = [last.reasons[reason][2:] for _, last in cells]
        references, path, kind = next((one for one in examples if any(one)), (0, "", ""))
        text = text_of(reason, references, kind, min_shared_bytes)
        found.append(CopyProfile(text, leaves, size, path))
    return tuple(sorted(found, key=lambda copy: (-copy.bytes, -copy.leaves)))
