"""What /proc tells of a process and of all that it started."""

from __future__ import annotations

import os
from pathlib import Path

FAULTS = ("minor faults", "major faults")
SWITCHES = ("voluntary switches", "involuntary switches")


def parents() -> dict[int, int]:
    """The parent of every process on this machine."""
    found = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                stat = (folder / "stat").read_text()
            except OSError:
                continue  # it has ended
            found[int(folder.name)] = int(stat.rpartition(")")[2].split()[1])
    return found


def family(pid: int | None = None) -> list[int]:
    """This process (or another) and all its descendants."""
    above = parents()
    found = [pid or os.getpid()]
    for member in found:  # grows while it is walked
        found += [child for child, parent in above.items() if parent == member]
    return found


def counters(pid: int) -> dict[str, int]:
    """Page faults and context switches of a process, all its threads together."""
    stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    counts = {"minor faults": int(stat[7]), "major faults": int(stat[9])}
    counts |= dict.fromkeys(SWITCHES, 0)
    for task in Path(f"/proc/{pid}/task").iterdir():
        for line in (task / "status").read_text().splitlines():
            if line.startswith(("voluntary_ctxt", "nonvoluntary_ctxt")):
                name = SWITCHES[line.startswith("non")]
                counts[name] += int(line.split()[1])
    return counts


def family_counters() -> dict[str, int]:
    total: dict[str, int] = dict.fromkeys(FAULTS + SWITCHES, 0)
    for pid in family():
        try:
            for name, count in counters(pid).items():
                total[name] += count
        except FileNotFoundError:
            continue  # it has ended
    return total


def private_bytes(pid: int) -> dict[str, int]:
    """Memory of a process, in bytes.

    Returns:
        "private": pages that no other process maps (Private_Clean and Private_Dirty) in all
        mappings but memfds; "arena": resident pages of mappings of memfds, whoever else has them.
    """
    sums = {"private": 0, "arena": 0}
    in_memfd = False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        words = line.split()
        if not words[0].endswith(
            ":"
        ):  # a mapping: address, permissions, offset, device, inode, path
            in_memfd = len(words) > 5 and words[5].startswith("/memfd:")
        elif in_memfd and words[0] == "Rss:":
            sums["arena"] += int(words[1]) * 1024
        elif not in_memfd and words[0] in ("Private_Clean:", "Private_Dirty:"):
            sums["private"] += int(words[1]) * 1024
    return sums
