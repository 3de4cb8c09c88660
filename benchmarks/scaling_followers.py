"""Part `scaling_followers`: how many runs that go on one `opusclip mirror --follow` keeps up with.

Each run gets ten points a second, and is mirrored to TensorBoard and to W&B's offline log. First
every run has one step, and nothing goes on until all mirrors of all runs have it; what is watched
begins then, so that a point that comes late is one that the command could not keep up with. Told is
how old the newest point in a mirror was in the last third of the time: of every mirror that is
read, also where nothing came.
"""

from collections.abc import Iterator
from pathlib import Path

from benchmarks.figures import Figure, percentile
from benchmarks.following import Seen, follow

PART = "scaling_followers"
RUNS, QUICK_RUNS = (1, 50, 100, 200), (1, 10)
READ = 10
WATCHED_S, QUICK_WATCHED_S = 21.0, 6.0


def measure(folder: Path, *, quick: bool) -> list[Figure]:
    """Follow more and more runs."""
    found: list[Figure] = []
    for runs in QUICK_RUNS if quick else RUNS:
        watched_s = QUICK_WATCHED_S if quick else WATCHED_S
        seen = follow(folder / str(runs), runs=runs, watched_s=watched_s, read=READ, is_level=True)
        found += _figures(runs, seen)
    return found


def _figures(runs: int, seen: Seen) -> Iterator[Figure]:
    values = {
        "processor": (seen.cpu_s / seen.watched_s, "cores"),
        "memory": (max(seen.pss_mb), "MB"),
    }
    for kind, looks in seen.behind_s.items():
        made = seen.steps * len(looks[0])
        # What it comes to, not how it begins.
        late_s = [one for look in looks[-len(looks) // 3 :] for one in look]
        values[f"{kind}, came of what was made"] = (len(seen.ages_s[kind]) / made, "")
        values[f"{kind}, age of the newest, median"] = (percentile(late_s, 50), "s")
        values[f"{kind}, age of the newest, most"] = (max(late_s), "s")
    for name, (value, unit) in values.items():
        yield Figure(part=PART, what=f"{runs} runs: {name}", ours=value, unit=unit)
