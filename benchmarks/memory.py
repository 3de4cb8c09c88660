"""Part `memory`: what the shipper's processes hold while they deliver ten million scalars.

A backlog of a million log calls is delivered by the real shipper. Once every sink is at work, the
supervisor, the sinks and W&B's own service are looked at each second: RSS counts memory they share
with each other once for each, PSS shares it out. MLflow takes longer for all of it than a benchmark
may last, so the part ends after eighty seconds and says how far each sink came.
"""

import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.backlog import SCALARS, SINKS, make_run, shipping, write_points
from benchmarks.figures import Figure, quarters
from opusclip_mlops.folder import RunFolder

PART = "memory"
COUNT, QUICK_COUNT = 1_000_000, 100_000
WATCHED_S, QUICK_WATCHED_S = 80.0, 15.0
LOOK_EVERY_S = 1.0
SUPERVISOR_MB, TOGETHER_MB = 40.0, 450.0
FLAT = 1.1


@dataclass(frozen=True)
class Look:
    """Megabytes held at one moment: by each process in turn, the supervisor first."""

    rss_mb: dict[str, float]
    pss_mb: float

    @property
    def together_mb(self) -> float:
        """All processes' RSS."""
        return sum(self.rss_mb.values())


def measure(folder: Path, *, quick: bool) -> list[Figure]:
    """Deliver and watch."""
    run = make_run(folder / "memory", SINKS)
    write_points(run, range(QUICK_COUNT if quick else COUNT))
    with shipping(run) as supervisor:
        looks = _watched(run, supervisor, QUICK_WATCHED_S if quick else WATCHED_S)
    delivered = ", ".join(
        f"{sink} {SCALARS * run.progress(sink).records / 1e6:.2f} M" for sink in SINKS
    )
    return _figures(looks, delivered)


def _watched(run: RunFolder, supervisor: int, watched_s: float) -> list[Look]:
    while not all(run.progress(sink).records for sink in SINKS):
        time.sleep(0.2)
    looks, end_s = [], time.monotonic() + watched_s
    while time.monotonic() < end_s:
        looks.append(look(supervisor))
        time.sleep(LOOK_EVERY_S)
    return looks


def look(supervisor: int) -> Look:
    """What the supervisor and all it has started hold now."""
    top = psutil.Process(supervisor)
    rss_mb, pss_mb = {}, 0.0
    for process in (top, *top.children(recursive=True)):
        try:
            found = held_mb(process.pid)
        except (FileNotFoundError, ProcessLookupError):
            continue
        rss_mb[f"{_role(process)} {process.pid}"] = found["Rss"]
        pss_mb += found["Pss"]
    return Look(rss_mb, pss_mb)


def _role(process: psutil.Process) -> str:
    words = process.cmdline()
    if "--sink" in words:
        return words[words.index("--sink") + 1]
    return "supervisor" if "opusclip_mlops.shipper" in words else "W&B's service"


def held_mb(pid: int) -> dict[str, float]:
    """A process's `Rss` and `Pss` in megabytes."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    fields = dict(line.split(":") for line in lines)
    return {name: int(fields[name].split()[0]) * 1024 / 1e6 for name in ("Rss", "Pss")}


def _figures(looks: list[Look], delivered: str) -> list[Figure]:
    supervisor = [mb for one in looks for role, mb in one.rss_mb.items() if "superv" in role]
    first, last = quarters([one.together_mb for one in looks])
    biggest = max(looks, key=lambda one: one.together_mb)
    parts = ", ".join(f"{role.rpartition(' ')[0]} {mb:.0f}" for role, mb in biggest.rss_mb.items())
    return [
        _figure("supervisor, most RSS", max(supervisor), at_most=SUPERVISOR_MB),
        _figure("together, most RSS", biggest.together_mb, at_most=TOGETHER_MB, note=parts),
        _figure("together, most PSS", max(one.pss_mb for one in looks)),
        Figure(part=PART, what="together, last quarter of the time", ours=last, unit="MB",
               peer="first quarter", theirs=first, at_most=FLAT, note=f"scalars: {delivered}"),
    ]  # fmt: skip


def _figure(what: str, ours: float, *, at_most: float | None = None, note: str = "") -> Figure:
    return Figure(part=PART, what=what, ours=ours, unit="MB", at_most=at_most, note=note)
