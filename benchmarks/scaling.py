"""How far it goes: `python -m benchmarks.scaling [PART …]` measures, and writes scaling.json.

A part that is measured replaces what the file had of it, with the machine and its load at that
time: parts may be measured apart. `scaling_page` makes the tables of docs/scaling.md from that
file, and the simulation of `scaling_forecast` takes its times from it.
"""

import argparse
import importlib
import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.figures import Figure, show
from benchmarks.machine import facts
from benchmarks.processes import HERE, QUIET, end_leftovers

PARTS = (
    "scaling_servers", "scaling_ranks", "scaling_followers", "scaling_studies", "scaling_uploads",
    "scaling_pools", "scaling_tables",
)  # fmt: skip
RESULTS = HERE / "scaling.json"


def main() -> int:
    """Measure what is asked, and keep it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__)
    parser.add_argument("parts", nargs="*", help=f"some of: {', '.join(PARTS)}")
    parser.add_argument("--quick", action="store_true", help="smaller: to see that it works")
    parser.add_argument("--results", type=Path, default=RESULTS)
    asked = parser.parse_args()
    if unknown := set(asked.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    os.environ.update(QUIET)
    # A termination ends what was started too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    for part in asked.parts or PARTS:
        found, about = _measured(part, quick=asked.quick)
        show(found)
        keep(asked.results, part, found, about)
    return 0


def _measured(part: str, *, quick: bool) -> tuple[list[Figure], dict[str, Any]]:
    print(f"measuring: {part} …", file=sys.stderr, flush=True)
    about, began_s = {**facts(), "quick": quick}, time.monotonic()
    with tempfile.TemporaryDirectory(prefix=f"bench-{part}-") as folder:
        module = importlib.import_module(f"benchmarks.{part}")
        try:
            found = module.measure(Path(folder), quick=quick)
        finally:
            end_leftovers()
    about |= {"took_s": round(time.monotonic() - began_s), "load_1min_after": os.getloadavg()[0]}
    return found, about


def keep(path: Path, part: str, found: list[Figure], about: dict[str, Any]) -> None:
    """Put a part's figures in the place of those that the file had."""
    kept = json.loads(path.read_text()) if path.exists() else {}
    kept[part] = {"machine": about, "figures": [one.as_json() for one in found]}
    path.write_text(json.dumps(kept, indent=1, ensure_ascii=False, sort_keys=True) + "\n")
    print(f"written: {path}")


if __name__ == "__main__":
    sys.exit(main())
