"""All the figures of docs/performance.md, measured here, one script after the other.

python benchmarks/python/run.py             # about an hour; writes benchmarks/results/
python benchmarks/python/run.py --quick     # minutes; does everything run? Writes nothing.
"""

from __future__ import annotations

import argparse
import datetime
import sys

import compare
import jpeg
import memory
import npy
import passes
import pools
import segments
import start
import syscalls
from report import RESULTS

SCRIPTS = {
    "compare": (compare.main, ["--quick"]),
    "pools": (pools.main, ["--quick"]),
    "segments": (segments.main, ["--rounds", "1", "--seconds", "0.05"]),
    "start": (start.main, ["--rounds", "1"]),
    "passes": (passes.main, ["--rounds", "1"]),
    "memory": (memory.main, ["--elements", "500"]),
    "jpeg": (jpeg.main, ["--rounds", "1", "--photographs", "4", "--batches", "2"]),
    "npy": (npy.main, ["--rounds", "1", "--seconds", "0.05"]),
    "syscalls": (syscalls.main, ["--rounds", "1", "--elements", "2000"]),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    today = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d")
    failed = []
    for name, (script, quick) in SCRIPTS.items():
        print(f"== {name}", file=sys.stderr)
        try:
            script(quick if args.quick else ["--out", str(RESULTS / f"{today}-{name}")])
        except SystemExit as end:
            if end.code:
                failed.append(f"{name}: {end.code}")
    if failed:
        sys.exit("\n".join(failed))


if __name__ == "__main__":
    main()
