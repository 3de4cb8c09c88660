"""Part `scaling_followers`: how many runs that go on one `opusclip mirror --follow` keeps up with.

Each run gets ten points a second, and is mirrored to TensorBoard and to W&B's offline log.
"""

from pathlib import Path

from benchmarks.figures import Figure, percentile
from benchmarks.following import Seen, follow

PART = "scaling_followers"
RUNS, QUICK_RUNS = (1, 10, 50, 200), (1, 10)
WATCHED_S, QUICK_WATCHED_S = 20.0, 5.0


def measure(folder: Path, *, quick: bool) -> list[Figure]:
    """Follow more and more runs."""
    found = []
    for runs in QUICK_RUNS if quick else RUNS:
        watched_s = QUICK_WATCHED_S if quick else WATCHED_S
        found += _figures(runs, follow(folder / str(runs), runs=runs, watched_s=watched_s))
    return found


def _figures(runs: int, seen: Seen) -> list[Figure]:
    cores, memory_mb = seen.cpu_s / seen.watched_s, max(seen.pss_mb)
    ages = [
        Figure(
            part=PART,
            what=f"{runs} runs: age of a point in {kind}, median",
            ours=percentile(ages_s, 50),
            unit="s",
            note=f"99 of 100 {percentile(ages_s, 99):.1f} s, {len(ages_s)} points seen",
        )
        for kind, ages_s in seen.ages_s.items()
    ]
    busy = Figure(
        part=PART, what=f"{runs} runs: processor", ours=cores, unit="cores",
        note=f"memory {memory_mb:.0f} MB (PSS)",
    )  # fmt: skip
    return [busy, *ages]
