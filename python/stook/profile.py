"""Where the time of a loader goes: what `enable_profiling` prints and `profile()` returns."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from ._profile_advice import advice

__all__ = ["CopyProfile", "LoaderProfile", "StageProfile"]

_WAITS = {
    "memory": "elements handed over hold memory_limit",
    "jobs": "there is nothing to do: slow source, or end of the pass",
    "order": "a slower element comes first",
    "trainer": "all is made that may be, and the trainer does not ask",
    "idle": "threads without work, for whatever reason",
}


@dataclass(frozen=True, slots=True)
class StageProfile:
    """One stage of making elements, over all workers.

    Attributes:
      name: `"source"`, the name of a transform, `"assemble"` or the collate function, `"encode"`
        (writing the element down, copies included), `"hand over"`, or `"rest"`: what of an
        element's time is in none of them.
      calls: How often it was called.
      seconds: Time in it, of all workers together.
      share: The same as a share of the time that the workers were there.
      bytes: Bytes of the arrays and byte strings that it returned.
    """

    name: str
    calls: int
    seconds: float
    share: float
    bytes: int


@dataclass(frozen=True, slots=True)
class CopyProfile:
    """Leaves that were copied for one reason.

    Attributes:
      reason: Why, as of the first one.
      leaves: How many.
      bytes: Their bytes.
      path: Where the first one was in its element, such as `"['image']"`.
    """

    reason: str
    leaves: int
    bytes: int
    path: str


@dataclass(frozen=True, slots=True)
class LoaderProfile:
    """Where the time of one pass of a loader went, up to now or to its end.

    `str()` gives the table that is printed at the end of a pass.

    Attributes:
      kind: `"processes"`, `"threads"` or `"inline"`: who makes elements.
      workers: How many of them.
      seconds: Of the pass.
      elements: Delivered.
      bytes: Of the arrays in them.
      stages: In the order in which they are run.
      waits: Seconds that workers waited, of all workers together: for `"memory"`, for `"jobs"`, for
        the `"order"` and for the `"trainer"`; of threads only `"idle"`.
      worker_seconds: Seconds that workers were there, of all together.
      starting: Share of the pass in which workers were not there yet.
      consumer_seconds: Seconds that the trainer waited in `next()`.
      moved: Arrays that were handed over without a copy.
      copied: Arrays that were copied into shared memory, or pickled.
      copies: Why, most bytes first.
      bytes_encoded: Bytes of the arrays in all elements that were made.
      bytes_live: Bytes of shared memory that delivered arrays hold.
      source_in_parent: The source is iterated in this process.
      prefetch: The function that `prefetch_to` runs in a thread of this process, if there is one;
        its share is that of the pass.

    Example:
      >>> import stook
      >>> from stook.profile import StageProfile
      >>> stages = (StageProfile("resize", 100, 7.2, 0.9, 0),)
      >>> print(stook.LoaderProfile("processes", 2, 4.0, 100, stages=stages, consumer_seconds=3.0,
      ...     worker_seconds=8.0).advice)
      the trainer waits for elements 75 % of the time: `resize` takes 100 % of the work of
      2 workers: make it faster, or take more of them
    """

    kind: str
    workers: int
    seconds: float
    elements: int
    bytes: int = 0
    stages: tuple[StageProfile, ...] = ()
    waits: dict[str, float] = dataclasses.field(default_factory=dict)
    worker_seconds: float = 0.0
    starting: float = 0.0
    consumer_seconds: float = 0.0
    moved: int = 0
    copied: int = 0
    copies: tuple[CopyProfile, ...] = ()
    bytes_encoded: int = 0
    bytes_live: int = 0
    source_in_parent: bool = False
    prefetch: StageProfile | None = None

    @property
    def advice(self) -> str:
        """One sentence, with the figures it rests on."""
        return advice(self)

    @property
    def consumer_waiting(self) -> float:
        """Share of the pass that the trainer waited for elements."""
        return self.consumer_seconds / self.seconds if self.seconds > 0 else 0.0

    @property
    def units(self) -> str:
        """What the workers are called."""
        return "threads" if self.kind == "threads" else "workers"

    def share(self, wait: str) -> float:
        """Share of the workers' time that they waited for something; see `waits`."""
        if self.worker_seconds <= 0:
            return 0.0
        return self.waits.get(wait, 0.0) / self.worker_seconds

    def to_dict(self) -> dict[str, Any]:
        """Everything, the advice as well, as `json.dumps` takes it."""
        return {**dataclasses.asdict(self), "advice": self.advice}

    def __str__(self) -> str:
        return "\n".join(_table(self))


def _table(profile: LoaderProfile) -> list[str]:
    rate = profile.elements / profile.seconds if profile.seconds > 0 else 0.0
    who = "in this process" if profile.kind == "inline" else f"{profile.workers} {profile.units}"
    lines = [
        f"stook: {profile.elements} elements, {profile.bytes / 1e6:.1f} MB in"
        f" {profile.seconds:.2f} s ({rate:.1f} elements/s), {who}",
        f"  {'stage':<32}{'calls':>9}{'seconds':>10}{'share':>8}{'ms each':>10}{'MB out':>10}",
    ]
    prefetch = () if profile.prefetch is None else (profile.prefetch,)
    for stage in (*profile.stages, *prefetch):
        each = 1e3 * stage.seconds / stage.calls if stage.calls else 0.0
        lines.append(
            f"  {stage.name[:31]:<32}{stage.calls:>9}{stage.seconds:>10.3f}"
            f"{100 * stage.share:>6.1f} %{each:>10.3f}{stage.bytes / 1e6:>10.1f}"
        )
    for wait, seconds in profile.waits.items():
        lines.append(
            f"  {'wait: ' + wait:<32}{'':>9}{seconds:>10.3f}{100 * profile.share(wait):>6.1f} %"
            f"  ({_WAITS[wait]})"
        )
    lines.append(
        f"  the trainer waited {profile.consumer_seconds:.3f} s,"
        f" {100 * profile.consumer_waiting:.1f} % of the pass"
    )
    if profile.kind == "processes":
        lines.append(f"  arrays: {profile.moved} moved, {profile.copied} copied")
        lines.extend(
            f"    {copy.leaves} x {copy.path or '(the element)'}, {copy.bytes / 1e6:.1f} MB:"
            f" {copy.reason}"
            for copy in profile.copies
        )
    lines.append(f"  {profile.advice}")
    return lines
