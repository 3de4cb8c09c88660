"""`python -m benchmarks`: measures every part, prints one table, writes results.json."""

import argparse
import importlib
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.figures import Figure, show
from benchmarks.machine import facts
from benchmarks.processes import HERE, QUIET, end_leftovers
from benchmarks.scaling import PARTS as SCALING

_FOREIGN = ("OPUSCLIP_", "MLFLOW_", "WANDB_", "TRACKIO_")
PARTS = (
    "cost", "loop", "staging", "delivery", "memory", "freshness", "mirror_history", "mirroring",
    "scoring", "storing", "uploading", "serving", "watching_models", "profiling",
)  # fmt: skip


def main() -> int:
    """Measure; 1 when a promise is missed, else 0."""
    asked = _arguments()
    _leave_the_surroundings()
    about = facts()
    found = _measured(asked.only or PARTS, quick=asked.quick)
    show(found)
    results = {"machine": about, "quick": asked.quick, "figures": [one.as_json() for one in found]}
    asked.results.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    print(f"written: {asked.results}")
    return 1 if any(one.verdict == "MISSED" for one in found) else 0


def _measured(parts: Sequence[str], *, quick: bool) -> list[Figure]:
    found: list[Figure] = []
    for part in parts:
        print(f"measuring: {part} …", file=sys.stderr, flush=True)
        began_s = time.monotonic()
        with tempfile.TemporaryDirectory(prefix=f"bench-{part}-") as folder:
            module = importlib.import_module(f"benchmarks.{part}")
            try:
                found += module.measure(Path(folder), quick=quick)
            finally:
                end_leftovers()
        print(f"{part}: {time.monotonic() - began_s:.0f} s", file=sys.stderr, flush=True)
    return found


def _leave_the_surroundings() -> None:
    """Nobody's settings are measured, and a termination ends the workers too."""
    for name in [one for one in os.environ if one.startswith(_FOREIGN)]:
        del os.environ[name]
    os.environ.update(QUIET)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench BENCH_ARGS=…", description=__doc__)
    only = "a part; may be repeated; those of scaling by name only"
    parser.add_argument("--only", choices=(*PARTS, *SCALING), action="append", help=only)
    parser.add_argument("--quick", action="store_true", help="smaller: to see that it works")
    parser.add_argument("--results", type=Path, default=HERE / "results.json")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
