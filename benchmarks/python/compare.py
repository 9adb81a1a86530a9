"""Stook beside its peers and beside the limit, interleaved in one run.

    python benchmarks/python/compare.py                          # everything, five rounds
    python benchmarks/python/compare.py --works array,batch --peers stook,imap,limit --rounds 9
    python benchmarks/python/compare.py --quick                  # does it work at all?

Each measurement is a process of its own (one.py, or the C++ program). A round runs every peer once
for each setting; what is compared is what was measured in the same round. See benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peers import PEERS
from report import HERE, ROOT, Run, conditions_table, last_json, run_group, spread, table, write
from works import PHOTOS, WORKS

LIMIT = "limit"
FAILURE_LINES = 20  # of what a failed measurement printed
TITLES = {LIMIT: "the limit: C++ threads", **{name: peer.title for name, peer in PEERS.items()}}
DEFAULT_PEERS = [LIMIT, *(name for name in PEERS if name != "grain-threads")]


@dataclass(frozen=True)
class Setting:
    work: str
    workers: int
    buffer: int

    def title(self) -> str:
        plural = "" if self.workers == 1 else "s"
        return f"{WORKS[self.work].title}; {self.workers} worker{plural}, buffer {self.buffer}"


# Few peers are worth the time of the settings that only show how a figure moves.
FEW = [LIMIT, "threads", "stook", "imap", "torch", "grain", "stook-grain", "spdl-arena"]
SETTINGS: dict[Setting, list[str]] = {
    Setting("array", 2, 8): DEFAULT_PEERS,
    Setting("dict", 2, 8): DEFAULT_PEERS,
    Setting("batch", 2, 8): DEFAULT_PEERS,
    Setting("large", 2, 8): FEW,
    Setting("small", 2, 64): DEFAULT_PEERS,
    Setting("small", 2, 8): DEFAULT_PEERS,
    Setting("photo", 2, 8): DEFAULT_PEERS,
    Setting("photo-batch", 2, 8): DEFAULT_PEERS,
    Setting("array", 1, 8): FEW,
    Setting("array", 2, 1): FEW,
    Setting("array", 2, 64): FEW,
    Setting("batch", 1, 8): FEW,
    Setting("batch", 2, 1): FEW,
}


@dataclass(frozen=True)
class Claim:
    """What Stook is to reach: the peer takes ``factor`` times Stook's time or more.

    With ``at_most`` it is the other way round: Stook takes at most ``factor`` times the peer's.
    ``ours`` is the peer that stands for Stook.
    """

    setting: Setting
    peer: str
    factor: float
    at_most: bool = False
    ours: str = "stook"


CLAIMS = [
    Claim(Setting("array", 2, 8), "imap", 45),
    Claim(Setting("array", 2, 8), "threads", 3),
    Claim(Setting("array", 2, 8), "torch", 60),
    Claim(Setting("array", 2, 8), "grain", 100),
    Claim(Setting("array", 2, 8), LIMIT, 1.75, at_most=True),
    Claim(Setting("dict", 2, 8), "imap", 30),
    Claim(Setting("batch", 2, 8), "imap", 50),
    Claim(Setting("batch", 2, 8), "torch", 15),
    Claim(Setting("batch", 2, 8), "grain", 15),
    Claim(Setting("batch", 2, 8), LIMIT, 1.25, at_most=True),
    Claim(Setting("large", 2, 8), "grain", 20),
    Claim(Setting("array", 2, 8), "grain", 20, ours="stook-grain"),
    Claim(Setting("batch", 2, 8), "grain", 15, ours="stook-grain"),
    Claim(Setting("small", 2, 64), "imap", 25),
    Claim(Setting("small", 2, 8), "imap", 10),
    Claim(Setting("photo", 2, 8), "threads", 1.05, at_most=True),
    Claim(Setting("photo-batch", 2, 8), "threads", 1.03, at_most=True),
]


@dataclass
class Results:
    """Microseconds per element, by setting, consumer and peer, one figure per round."""

    times: dict[tuple[Setting, str, str], list[float]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)  # what -> why
    failed: dict[str, list[str]] = field(default_factory=dict)  # what -> each reason

    def ratios(
        self, setting: Setting, consumer: str, peer: str, ours: str = "stook"
    ) -> list[float]:
        """How many times Stook's time the peer took, in each round that has both."""
        mine = self.times.get((setting, consumer, ours), [])
        theirs = self.times.get((setting, consumer, peer), [])
        return [t / m for t, m in zip(theirs, mine, strict=False) if t == t and m == m]


def find_limit(given: Path | None) -> Path | None:
    """The C++ program: as given, or built by CMake."""
    if given is not None:
        if not os.access(given, os.X_OK):
            sys.exit(f"compare: --limit {given}: there is no such program")
        return given
    built = [path for path in ROOT.glob("build/release/**/bench_limit") if os.access(path, os.X_OK)]
    return built[0] if built else None


def command_for(
    peer: str, setting: Setting, consumer: str, seconds: float, limit: Path | None
) -> list[str]:
    options = ["--buffer", str(setting.buffer), "--consumer", consumer, "--seconds", str(seconds)]
    workers = str(setting.workers)
    if peer == LIMIT:
        size = str(WORKS[setting.work].nbytes)
        return [str(limit), "--size", size, "--producers", workers, *options]
    return [
        sys.executable,
        str(HERE / "one.py"),
        peer,
        setting.work,
        "--workers",
        workers,
        *options,
    ]


def measure(
    results: Results, peer: str, setting: Setting, consumer: str, args: argparse.Namespace
) -> None:
    what = f"{TITLES[peer]}: {setting.title()}, {consumer}"
    if what in results.skipped:
        return
    command = command_for(peer, setting, consumer, args.seconds, args.limit)
    status, out, err = run_group(command, 60 + 20 * args.seconds)
    figure = float("nan")
    if status == 0 and out.strip():
        answer = last_json(out)
        if "not_comparable" in answer:
            results.skipped[what] = answer["not_comparable"]
            return
        figure = answer["us_per_element"]
    else:
        # What some peers print at the end is about the traceback above it: keep the lot.
        reason = "\n".join(err.strip().splitlines()[-FAILURE_LINES:]) or "no message"
        results.failed.setdefault(what, []).append(f"status {status}: {reason}")
    results.times.setdefault((setting, consumer, peer), []).append(figure)


def skip_what_is_missing(args: argparse.Namespace, results: Results) -> list[str]:
    present = []
    for peer in args.peers:
        reason = None if peer == LIMIT else PEERS[peer].missing()
        if peer == LIMIT and args.limit is None:
            reason = (
                "bench_limit is not built: cmake --preset release && cmake --build "
                "--preset release --target bench_limit"
            )
        if reason:
            results.skipped[TITLES[peer]] = reason
        else:
            present.append(peer)
    return present


def consumers_of(work: str) -> list[str]:
    # 16 bytes are read when they are touched; beside decoding a photograph, reading it is nothing.
    return ["touch", "read"] if work in ("array", "dict", "batch", "large") else ["touch"]


def run_all(args: argparse.Namespace, results: Results) -> None:
    """Measures round by round into ``results``, so that a run that is ended early leaves them."""
    present = skip_what_is_missing(args, results)
    plan = [
        (setting, consumer, [p for p in peers if p in present])
        for setting, peers in SETTINGS.items()
        if setting.work in args.works
        for consumer in consumers_of(setting.work)
    ]
    for round_ in range(args.rounds):
        for at, (setting, consumer, peers) in enumerate(plan):
            progress = f"round {round_ + 1} of {args.rounds}, {at + 1} of {len(plan)}"
            print(f"{progress}: {setting.title()}, {consumer}", file=sys.stderr)
            # Another order every round, so that none always runs after the same one.
            turn = round_ % max(1, len(peers))
            for peer in peers[turn:] + peers[:turn]:
                if peer == LIMIT and WORKS[setting.work].element is not None:
                    continue
                if peer == LIMIT and not WORKS[setting.work].marked:
                    continue
                measure(results, peer, setting, consumer, args)


def measured(values: list[float]) -> list[float]:
    return [value for value in values if value == value]  # a failed round is a NaN


def setting_table(results: Results, setting: Setting, peers: list[str]) -> str:
    consumers = consumers_of(setting.work)
    head = ["µs per element: median (range)"]
    for consumer in consumers:
        head += [consumer, "x Stook"]
    rows = []
    for peer in peers:
        row = [TITLES[peer]]
        for consumer in consumers:
            times = measured(results.times.get((setting, consumer, peer), []))
            ratios = results.ratios(setting, consumer, peer)
            digits = 1 if times and statistics.median(times) >= 10 else 2
            row.append(spread(times, digits) if times else "-")
            row.append(f"{statistics.median(ratios):,.2f}" if ratios else "-")
        if row[1:] != ["-"] * (len(row) - 1):
            rows.append(row)
    return f"### {setting.title()}\n\n" + table(head, rows)


def claims_table(results: Results) -> str:
    rows = []
    for claim in CLAIMS:
        for consumer in consumers_of(claim.setting.work):
            ratios = results.ratios(claim.setting, consumer, claim.peer, claim.ours)
            wanted = f"at {'most' if claim.at_most else 'least'} {claim.factor:g}x"
            if ratios:
                ratio = statistics.median(ratios)
                ratio = 1 / ratio if claim.at_most else ratio
                met = ratio <= claim.factor if claim.at_most else ratio >= claim.factor
                found, verdict = f"{ratio:,.2f}x", "yes" if met else "**no**"
            else:
                found, verdict = "-", "not measured"
            title = f"{claim.setting.title()}: {TITLES[claim.peer]}"
            if claim.ours != "stook":
                title += f" (by {TITLES[claim.ours]})"
            rows.append([title, consumer, wanted, found, verdict])
    head = ["Stook against", "consumer", "wanted", "median of the rounds", "met"]
    return "## Claims\n\n" + table(head, rows)


def markdown(results: Results, conditions: dict[str, Any], args: argparse.Namespace) -> str:
    parts = ["# Stook and its peers", conditions_table(conditions), "## Times"]
    parts += [
        setting_table(results, setting, args.peers)
        for setting in SETTINGS
        if any(key[0] == setting for key in results.times)
    ]
    if "stook" in args.peers and "Stook" not in results.skipped:
        parts.append(claims_table(results))
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
                "work": setting.work,
                "workers": setting.workers,
                "buffer": setting.buffer,
                "consumer": consumer,
                "peer": peer,
                "rounds": [value if value == value else None for value in values],
            }
            for (setting, consumer, peer), values in results.times.items()
        ],
        "skipped": results.skipped,
        "failed": results.failed,
    }


def names(text: str, allowed: list[str]) -> list[str]:
    found = text.split(",")
    for name in found:
        if name not in allowed:
            raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(allowed)}")
    return found


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of one measurement")
    parser.add_argument(
        "--works", type=lambda t: names(t, list(WORKS)), default=list(WORKS), help=",".join(WORKS)
    )
    parser.add_argument(
        "--peers",
        type=lambda t: names(t, list(TITLES)),
        default=DEFAULT_PEERS,
        help=",".join(TITLES),
    )
    parser.add_argument("--photos", help="a folder of photographs, instead of installed ones")
    parser.add_argument("--limit", type=Path, help="the C++ program, if not in build/release")
    parser.add_argument("--quick", action="store_true", help="one round of a tenth of a second")
    parser.add_argument("--out", type=Path, help="write OUT.md and OUT.json")
    args = parser.parse_args(argv)
    if args.quick:
        args.rounds, args.seconds = 1, 0.1
    if args.photos:
        os.environ[PHOTOS] = args.photos
    args.limit = find_limit(args.limit)
    return args


def main(argv: list[str] | None = None) -> None:
    args = arguments(argv)
    run = Run(
        {
            "rounds": args.rounds,
            "seconds": args.seconds,
            "works": ",".join(args.works),
            "peers": ",".join(args.peers),
            "photos": args.photos,
        }
    )
    results = Results()
    # Ended early by Ctrl-C or SIGTERM, it still says what it found.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    ended_early = False
    try:
        run_all(args, results)
    except KeyboardInterrupt:
        ended_early = True
    conditions = run.conditions()
    if ended_early:
        conditions["ended early"] = "not all rounds are complete"
    write(args.out, markdown(results, conditions, args), as_data(results, conditions))
    if ended_early:
        sys.exit("compare: ended early; what is above was measured until then")
    if results.failed:
        sys.exit(f"compare: {len(results.failed)} failed: {json.dumps(results.failed)}")


if __name__ == "__main__":
    main()
