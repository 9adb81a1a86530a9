"""System calls and page faults per element in the steady state, parent and workers together.

    python benchmarks/python/syscalls.py                       # Stook, 150,528-byte arrays
    python benchmarks/python/syscalls.py --peer imap --buffers 8

Calls: a pass of N elements and one of 2 N are counted as wholes, start and end included; the
difference, divided by N, is what one element costs. ``perf`` counts without slowing anything down;
``strace`` says which calls they are, but stops a process at each, which changes who sleeps how
often: its figures are for reading, not for quoting. Faults and switches are read from /proc inside
one undisturbed pass of 4 N elements, over its second half.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from peers import PEERS
from processes import family_counters
from report import Run, conditions_table, last_json, table, write
from works import CONSUMERS, WORKS


def one_pass(args: argparse.Namespace) -> dict[str, float]:
    """Takes ``--child`` elements, the last half of them between two looks at /proc."""
    work = WORKS[args.work]
    consume, leaf = CONSUMERS[args.consumer], work.leaf
    half = args.child // 2
    with PEERS[args.peer].run(work, args.workers, int(args.buffers)) as elements:
        for element in itertools.islice(elements, half):
            consume(leaf(element))
        before = family_counters()
        for element in itertools.islice(elements, args.child - half):
            consume(leaf(element))
        after = family_counters()
    return {name: (after[name] - before[name]) / (args.child - half) for name in after}


def child(args: argparse.Namespace, buffer: str, count: int) -> list[str]:
    command = [sys.executable, __file__, "--child", str(count), "--buffers", buffer]
    command += ["--peer", args.peer, "--work", args.work, "--consumer", args.consumer]
    return [*command, "--workers", str(args.workers)]


def counted_by_perf(command: list[str]) -> dict[str, int] | None:
    """All system calls of a command and its descendants, or None where perf cannot count them."""
    with tempfile.NamedTemporaryFile("r", suffix=".perf") as file:
        perf = ["perf", "stat", "-x", ";", "-e", "raw_syscalls:sys_enter", "-o", file.name, "--"]
        done = subprocess.run(perf + command, capture_output=True, timeout=300, check=False)
        lines = [line for line in file.read().splitlines() if "raw_syscalls:sys_enter" in line]
    count = lines[0].split(";")[0] if lines else ""
    return {"all": int(count)} if done.returncode == 0 and count.isdigit() else None


def counted_by_strace(command: list[str]) -> dict[str, int] | None:
    """Calls by name, of a command and its descendants."""
    with tempfile.NamedTemporaryFile("r", suffix=".strace") as file:
        strace = ["strace", "-f", "-c", "-qq", "-o", file.name, "--"]
        done = subprocess.run(strace + command, capture_output=True, timeout=300, check=False)
        if done.returncode != 0:
            return None
        rows = [line.split() for line in file.read().splitlines()]
    calls = {row[-1]: int(row[3]) for row in rows if len(row) in (5, 6) and row[3].isdigit()}
    calls.pop("total", None)
    return calls


COUNTERS = {"perf": counted_by_perf, "strace": counted_by_strace}


def calls_per_element(args: argparse.Namespace, tool: str, buffer: str) -> dict[str, float] | None:
    """Calls per element by name (perf: all in one)."""
    n = args.elements
    short = COUNTERS[tool](child(args, buffer, n))
    long = COUNTERS[tool](child(args, buffer, 2 * n))
    if short is None or long is None:
        return None
    names = sorted(long, key=lambda name: short.get(name, 0) - long[name])
    return {name: (long[name] - short.get(name, 0)) / n for name in names}


def measure(args: argparse.Namespace, buffer: str, skipped: dict[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for tool in COUNTERS:
        if shutil.which(tool) is None:
            skipped[tool] = "not installed"
            continue
        rounds = [calls_per_element(args, tool, buffer) for _ in range(args.rounds)]
        good = [calls for calls in rounds if calls is not None]
        if not good:
            skipped[tool] = "it cannot count here: it needs the right to trace"
            continue
        found[tool] = {
            "all": statistics.median(sum(calls.values()) for calls in good),
            "by name": good[-1],
        }
    passes = []
    for _ in range(args.rounds):
        done = subprocess.run(
            child(args, buffer, 4 * args.elements), capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            sys.exit(f"syscalls: a pass failed: {done.stderr.strip()}")
        passes.append(last_json(done.stdout))
    found["proc"] = {name: statistics.median(p[name] for p in passes) for name in passes[0]}
    return found


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--peer", choices=PEERS, default="stook")
    parser.add_argument("--work", choices=WORKS, default="array")
    parser.add_argument("--consumer", choices=CONSUMERS, default="touch")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--buffers", default="8,64")
    parser.add_argument("--elements", type=int, default=20_000, help="N")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="write OUT.md and OUT.json")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.child:
        result = one_pass(args)
        print(json.dumps(result), flush=True)
        return
    missing = PEERS[args.peer].missing()
    if missing:
        sys.exit(f"syscalls: {missing}")

    run = Run({k: v for k, v in vars(args).items() if k not in ("out", "child")})
    skipped: dict[str, str] = {}
    found = {buffer: measure(args, buffer, skipped) for buffer in args.buffers.split(",")}
    rows = []
    for buffer, figures in found.items():
        calls = [f"{figures[t]['all']:.3f}" if t in figures else "-" for t in COUNTERS]
        rows.append([buffer, *calls, *(f"{count:.4f}" for count in figures["proc"].values())])
    proc = next(iter(found.values()))["proc"]
    head = ["buffer", "system calls (perf)", "system calls (strace)", *proc]
    named = []
    for buffer, figures in found.items():
        if "strace" in figures:
            calls = figures["strace"]["by name"]
            shown = [f"{name} {count:.3f}" for name, count in calls.items() if count >= 0.001]
            named.append(f"- buffer {buffer}: {', '.join(shown) or 'none'}")
    conditions = run.conditions()
    title = f"{PEERS[args.peer].title}, {WORKS[args.work].title}, {args.workers} workers"
    parts = [
        "# System calls and page faults per element",
        conditions_table(conditions),
        f"## {title}\n\n" + table(head, rows),
        "Which calls, under strace:\n\n" + "\n".join(named) if named else "",
        "\n".join([f"Skipped: {len(skipped)}", "", *(f"- {k}: {v}" for k, v in skipped.items())]),
    ]
    data = {"conditions": conditions, "per element": found, "skipped": skipped}
    write(args.out, "\n\n".join(part for part in parts if part), data)


if __name__ == "__main__":
    main()
