"""Stook's pools beside those of the standard library and loky, interleaved in one run.

    python benchmarks/python/pools.py                                  # every row, five rounds
    python benchmarks/python/pools.py --rows imap-16,submit-tiny --ways futures,stook --rounds 9
    python benchmarks/python/pools.py --quick                          # does it work at all?

Each measurement is a process of its own (pools_one.py). A round runs every way of every row once;
what is compared is what was measured in the same round. With --out the results are written
after every row of every round, so that a run that is ended early leaves them. See
benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import statistics
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peers import NotComparable
from pools_rows import ROWS, STEPS, TITLES, Claim, loky, steps_of_burn
from report import HERE, Run, conditions_table, last_json, run_group, spread, table, write

FAILURE_LINES = 20  # of what a failed measurement printed


@dataclass
class Results:
    """Microseconds per result, by row and way, one figure per round: NaN where it failed."""

    times: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)  # what -> why
    failed: dict[str, list[str]] = field(default_factory=dict)  # what -> each reason

    def measured(self, row: str, way: str) -> list[float]:
        return [time for time in self.times.get((row, way), []) if time == time]

    def ratios(self, row: str, way: str) -> list[float]:
        """How many times Stook's time this way took, in each round that has both."""
        mine = self.times.get((row, "stook"), [])
        theirs = self.times.get((row, way), [])
        return [t / m for t, m in zip(theirs, mine, strict=False) if t == t and m == m]


def measure(results: Results, row: str, way: str, args: argparse.Namespace) -> None:
    what = f"{TITLES[way]}: {ROWS[row].title}"
    if what in results.skipped:
        return
    command = [sys.executable, str(HERE / "pools_one.py"), row, way]
    command += ["--workers", str(args.workers), "--seconds", str(args.seconds)]
    status, out, err = run_group(command, 120 + 20 * args.seconds)
    figure = float("nan")
    if status == 0 and out.strip():
        answer = last_json(out)
        if "not_comparable" in answer:
            results.skipped[what] = answer["not_comparable"]
            return
        figure = answer["us_per_result"]
    else:
        reason = "\n".join(err.strip().splitlines()[-FAILURE_LINES:]) or "no message"
        results.failed.setdefault(what, []).append(f"status {status}: {reason}")
    results.times.setdefault((row, way), []).append(figure)


def run_all(args: argparse.Namespace, results: Results, run: Run) -> None:
    """Measures round by round into ``results``."""
    for round_ in range(args.rounds):
        for at, row in enumerate(args.rows):
            progress = f"round {round_ + 1} of {args.rounds}, {at + 1} of {len(args.rows)}"
            print(f"{progress}: {ROWS[row].title}", file=sys.stderr)
            ways = [way for way in ROWS[row].ways if way in args.ways]
            # Another order every round, so that none always runs after the same one.
            turn = round_ % max(1, len(ways))
            for way in ways[turn:] + ways[:turn]:
                measure(results, row, way, args)
            if args.out is not None:
                conditions = {**conditions_of(run), "state": f"{progress} is done, the rest is not"}
                save(args.out, results, conditions, args)


def wanted(claim: Claim, row: str) -> str:
    return f"{TITLES[claim.peer]}, at {'most' if claim.at_most else 'least'} {claim.factor:g}x"


def claims_table(results: Results, rows: list[str]) -> str:
    lines = []
    for row in rows:
        for claim in ROWS[row].claims:
            ratios = results.ratios(row, claim.peer)
            found, verdict = "-", "not measured"
            if ratios:
                if claim.at_most:
                    ratios = [1 / ratio for ratio in ratios]
                median = statistics.median(ratios)
                met = median <= claim.factor if claim.at_most else median >= claim.factor
                found, verdict = f"{spread(ratios, 2)}x", "yes" if met else "**no**"
            lines.append([ROWS[row].title, wanted(claim, row), found, verdict])
    head = ["work", "wanted: against", "ratio per round: median (range)", "met"]
    return "## Claims\n\n" + table(head, lines)


def row_table(results: Results, row: str) -> str:
    lines = []
    for way in ROWS[row].ways:
        times, ratios = results.measured(row, way), results.ratios(row, way)
        if times:
            digits = 1 if statistics.median(times) >= 10 else 2
            ratio = spread(ratios, 2) if ratios else "-"
            lines.append([TITLES[way], spread(times, digits), ratio])
    head = ["", "µs per result: median (range)", "x Stook, per round: median (range)"]
    return f"### {ROWS[row].title}\n\n" + table(head, lines)


def markdown(results: Results, conditions: dict[str, Any], args: argparse.Namespace) -> str:
    parts = ["# Pools", conditions_table(conditions), claims_table(results, args.rows), "## Times"]
    measured = {row for row, _ in results.times}
    parts += [row_table(results, row) for row in args.rows if row in measured]
    skipped = [f"- {what}: {why}" for what, why in results.skipped.items()]
    failed = [
        f"- {what}, {len(why)} times; the last time:\n\n```\n{why[-1]}\n```"
        for what, why in results.failed.items()
    ]
    parts.append("\n".join([f"## Skipped: {len(skipped)}\n", *skipped]))
    parts.append("\n".join([f"## Failed: {len(failed)}\n", *failed]))
    return "\n\n".join(parts)


def as_data(results: Results, conditions: dict[str, Any]) -> dict[str, Any]:
    return {
        "conditions": conditions,
        "times_us": [
            {
                "row": row,
                "way": way,
                "rounds": [value if value == value else None for value in values],
            }
            for (row, way), values in results.times.items()
        ],
        "skipped": results.skipped,
        "failed": results.failed,
    }


def conditions_of(run: Run) -> dict[str, Any]:
    conditions = run.conditions()
    with contextlib.suppress(NotComparable):
        conditions["loky"] = f"{loky().__version__} ({loky().__name__})"
    conditions["a call of the row gather"] = f"{steps_of_burn()} steps"
    return conditions


def save(
    path: Path, results: Results, conditions: dict[str, Any], args: argparse.Namespace
) -> None:
    """Writes path.md and path.json, without a moment in which one of them is half written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    texts = {
        ".md": markdown(results, conditions, args),
        ".json": json.dumps(as_data(results, conditions), indent=1),
    }
    for suffix, text in texts.items():
        part = path.with_suffix(f"{suffix}.part")
        part.write_text(text + "\n")
        part.replace(path.with_suffix(suffix))


def names(text: str, allowed: list[str]) -> list[str]:
    found = text.split(",")
    for name in found:
        if name not in allowed:
            raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(allowed)}")
    return found


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of one measurement, at least")
    parser.add_argument("--workers", type=int, default=2)
    for what, allowed in (("rows", list(ROWS)), ("ways", list(TITLES))):
        parser.add_argument(
            f"--{what}",
            type=lambda text, allowed=allowed: names(text, allowed),  # type: ignore[misc]
            default=allowed,
            help=",".join(allowed),
        )
    parser.add_argument("--quick", action="store_true", help="one round of a tenth of a second")
    parser.add_argument("--out", type=Path, help="write OUT.md and OUT.json")
    args = parser.parse_args(argv)
    if args.quick:
        args.rounds, args.seconds = 1, 0.1
    if args.rounds < 1 or args.workers < 1:
        parser.error("--rounds and --workers must be at least 1")
    return args


def main(argv: list[str] | None = None) -> None:
    args = arguments(argv)
    run = Run(
        {
            "rounds": args.rounds,
            "seconds": args.seconds,
            "workers": args.workers,
            "rows": ",".join(args.rows),
            "ways": ",".join(args.ways),
        }
    )
    os.environ[STEPS] = str(steps_of_burn())
    results = Results()
    # Ended early by Ctrl-C or SIGTERM, it still says what it found.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    ended_early = False
    try:
        run_all(args, results, run)
    except KeyboardInterrupt:
        ended_early = True
    conditions = conditions_of(run)
    if ended_early:
        conditions["state"] = "ended early: not all rounds are complete"
    write(args.out, markdown(results, conditions, args), as_data(results, conditions))
    if ended_early:
        sys.exit("pools: ended early; what is above was measured until then")
    if results.failed:
        sys.exit(f"pools: {len(results.failed)} failed: {json.dumps(results.failed)}")


if __name__ == "__main__":
    main()
