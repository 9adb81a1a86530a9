"""One sentence of advice, from the figures of a profile alone."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .profile import CopyProfile, LoaderProfile

__all__ = ["advice"]

# Shares from which something is worth a word.
_MEMORY = 0.2
_ORDER = 0.3
_JOBS = 0.3
_IDLE = 0.4
_KEEPS_UP = 0.1  # the trainer waits less than that
_STAGE = 0.4
_COPIES = 0.25  # of the bytes
_STARTING = 0.5
_PREFETCH = 0.5  # of the pass


def advice(profile: LoaderProfile) -> str:
    """What to do, and the figures that say so."""
    if profile.elements == 0:
        return "nothing was delivered yet"
    waiting = profile.consumer_waiting
    prefetch = profile.prefetch
    if prefetch is not None and waiting >= _KEEPS_UP and prefetch.share >= _PREFETCH:
        return (
            f"the trainer waits for elements {_percent(waiting)} of the time: the thread of"
            f" `{prefetch.name}` is in that function {_percent(prefetch.share)} of it: what can be"
            " done in workers belongs into `transform`"
        )
    if profile.kind == "inline":
        return _advice_inline(profile)
    if profile.share("memory") >= _MEMORY:
        return (
            f"workers wait for memory {_percent(profile.share('memory'))} of the time, as elements"
            f" that were handed over hold {profile.bytes_live / 1e6:.0f} MB: let go of elements"
            " earlier, or raise memory_limit"
        )
    if waiting < _KEEPS_UP:
        idle = profile.share("trainer")
        if idle >= _IDLE and profile.workers > 1:
            enough = max(1, math.ceil(profile.workers * (1 - idle)))
            return (
                f"workers wait for the trainer {_percent(idle)} of the time: fewer workers will do"
                f" ({enough} instead of {profile.workers})"
            )
        return (
            f"the trainer waits for elements {_percent(waiting)} of the time: the"
            f" {profile.units} keep up"
        )
    return f"the trainer waits for elements {_percent(waiting)} of the time: " + _cause(profile)


def _advice_inline(profile: LoaderProfile) -> str:
    waiting = profile.consumer_waiting
    if waiting < _KEEPS_UP:
        return (
            f"making elements takes {_percent(waiting)} of the time: worker processes would save"
            " little"
        )
    stage = _longest(profile)
    where = "" if stage is None else f", most of all `{stage[0]}` ({_percent(stage[1])} of it)"
    return (
        f"making elements takes {_percent(waiting)} of the time, in this process{where}:"
        " num_workers=1 or more would do it beside the trainer"
    )


def _cause(profile: LoaderProfile) -> str:
    if profile.starting >= _STARTING:
        return (
            f"the workers were started in {_percent(profile.starting)} of it; that is paid once, so"
            " look at a longer pass, or at the second one"
        )
    if profile.source_in_parent and profile.share("jobs") >= _JOBS:
        return (
            f"workers wait for jobs {_percent(profile.share('jobs'))} of the time, for the source"
            " is iterated in this process: make it faster, or one that can be indexed"
        )
    if profile.share("order") >= _ORDER:
        return (
            f"workers wait {_percent(profile.share('order'))} of the time until a slower element"
            " before theirs is done: ordered=False, or a larger buffer per worker, lets them go on"
        )
    copy = _worst_copy(profile)
    stage = _longest(profile)
    if copy is not None and (stage is None or stage[0] == "encode"):
        return _about(copy, profile)
    if stage is not None and stage[1] >= _STAGE:
        return (
            f"`{stage[0]}` takes {_percent(stage[1])} of the work of {profile.workers}"
            f" {profile.units}: make it faster, or take more of them"
        )
    if copy is not None:
        return _about(copy, profile)
    return f"more than {profile.workers} {profile.units} would help, where there are processors"


def _about(copy: CopyProfile, profile: LoaderProfile) -> str:
    return (
        f"the leaf {copy.path or 'that is the element'} is copied, {copy.leaves} times and"
        f" {_percent(copy.bytes / max(1, profile.bytes_encoded))} of all bytes, because:"
        f" {copy.reason}"
    )


def _worst_copy(profile: LoaderProfile) -> CopyProfile | None:
    """What costs most bytes, if they are many."""
    worst = max(profile.copies, key=lambda copy: copy.bytes, default=None)
    if worst is None or worst.bytes < _COPIES * max(1, profile.bytes_encoded):
        return None
    return worst


def _longest(profile: LoaderProfile) -> tuple[str, float] | None:
    """The stage that takes longest, and its share of the work."""
    work = sum(stage.seconds for stage in profile.stages)
    longest = max(profile.stages, key=lambda stage: stage.seconds, default=None)
    if longest is None or work <= 0:
        return None
    return longest.name, longest.seconds / work


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
