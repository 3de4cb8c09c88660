"""What the simulation says: `python -m benchmarks.scaling_forecast`.

It takes the times that were measured. First it is held against nodes that were measured, below, at
and above what a server takes; then it tells what 1,000 nodes come to. Prints tables in Markdown.
"""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.figures import number
from benchmarks.fleet import Cost, Nodes, Outcome, Simulation, Site
from benchmarks.scaling import RESULTS
from benchmarks.scaling_servers import EVERY_S, LIVE_S, NODES, PART, ROWS

CORES = 2
FLEET, WALL_S = 1000, 120.0
WORKERS, DATABASE_CORES, SYNC_S = 4, 8, 0.001
SERVERS = (1, 2, 4, 8, 16)
ASKED = ((20.0, 1.0), (100.0, 1.0), (100.0, 10.0), (500.0, 1.0))
AWAY_RATE, AWAY_S = 20.0, (20.0, 80.0)

Measured = Mapping[str, float]
"""What was measured, by its words."""


@dataclass(frozen=True)
class Live:
    """Nodes that were measured: their points a second, and how many cores others had."""

    rate: float
    others_cores: float
    points_a_second: float
    lag_p50_s: float
    lag_p99_s: float


def main() -> int:
    """Print the tables."""
    measured = measured_in(Path(sys.argv[1]) if sys.argv[1:] else RESULTS)
    site = site_of(measured)
    print(f"a request: {_cost(site.server)} server, {_cost(site.database)} database\n")
    _print(_COMPARED, compared(measured, site))
    for rate, every_s in ASKED:
        print(f"\n{FLEET} nodes, {rate:g} points/s each, sent every {every_s:g} s:\n")
        _print(_FORECAST, forecast(site, rate, every_s))
    print(f"\n{FLEET} nodes, {AWAY_RATE:g} points/s each, no server for 60 s:\n")
    _print(_OUTAGE, after_an_outage(site))
    return 0


def measured_in(path: Path) -> dict[str, float]:
    """The figures of the part about servers, by their words."""
    kept: dict[str, Any] = json.loads(path.read_text())
    return {one["what"]: one["ours"] for one in kept[PART]["figures"]}


def site_of(measured: Measured) -> Site:
    """One worker and its database, with the times that a request took."""
    return Site(
        server=cost_of(measured, "server_ms"),
        database=cost_of(measured, "database_ms"),
        client=cost_of(measured, "client_ms"),
        sync_s=measured[f"sync_ms of {ROWS[1]} rows"] / 1000,
    )


def cost_of(measured: Measured, name: str) -> Cost:
    """A line through the smallest and the largest batches."""
    least, most = (measured[f"{name} of {rows} rows"] / 1000 for rows in (ROWS[0], ROWS[-1]))
    row_s = (most - least) / (ROWS[-1] - ROWS[0])
    return Cost(least - ROWS[0] * row_s, row_s)


def lives_in(measured: Measured) -> list[Live]:
    """The nodes that were measured, the slowest first."""
    found = []
    for what, points_a_second in measured.items():
        behind = what.partition(f"{NODES} nodes x ")[2]
        if behind and ":" not in behind:
            rate = float(behind.removesuffix(" points/s"))
            names = ("others took", "lag, median", "lag, 99 of 100")
            others, p50_s, p99_s = (measured[f"{what}: {name}"] for name in names)
            found.append(Live(rate, others, points_a_second, p50_s, p99_s))
    return sorted(found, key=lambda one: one.rate)


def predicted(site: Site, live: Live, *, wall_s: float = LIVE_S) -> Outcome:
    """What the simulation says of them, on a machine that all share, others too."""
    shared = replace(
        site,
        cores=CORES,
        speed=max(0.05, (CORES - live.others_cores) / CORES),
        database_cores=CORES,
    )
    nodes = Nodes(count=NODES, points_a_second=live.rate, every_s=EVERY_S)
    return Simulation(shared, nodes).run(wall_s)


_COMPARED = ("points/s a node", "", "measured", "simulated", "error")


def compared(measured: Measured, site: Site) -> Iterable[Sequence[str]]:
    """The rows of a table: measured beside simulated."""
    for live in lives_in(measured):
        found = predicted(site, live)
        for name, was, says in (
            ("points/s", live.points_a_second, found.points_a_second),
            ("lag, median, s", live.lag_p50_s, found.lag_s(50)),
            ("lag, 99 of 100, s", live.lag_p99_s, found.lag_s(99)),
        ):
            error = f"{100 * (says / was - 1):+.0f} %"
            yield f"{live.rate:g}", name, number(was), number(says), error


_FORECAST = (
    "servers", "lag, median", "lag, 99 of 100", "backlog grows by", "rows a request",
    "sent again", "servers busy", "database busy",
)  # fmt: skip


def forecast(
    site: Site, rate: float, every_s: float, *, nodes: int = FLEET, wall_s: float = WALL_S
) -> Iterable[Sequence[str]]:
    """The rows of a table: what more servers come to."""
    for servers in SERVERS:
        all_nodes = Nodes(count=nodes, points_a_second=rate, every_s=every_s)
        found = Simulation(_apart(site, servers), all_nodes).run(wall_s)
        yield (
            str(servers),
            f"{number(found.lag_s(50))} s",
            f"{number(found.lag_s(99))} s",
            f"{number(_grew(found, nodes * rate))} points/s",
            number(found.points / max(1, found.requests)),
            str(found.repeats),
            f"{100 * found.server_busy:.0f} %",
            f"{100 * found.database_busy:.0f} %",
        )


def _grew(found: Outcome, asked: float) -> float:
    """By how many points a second the backlog grew; a hundredth of what is asked is no growth."""
    return found.growth if found.growth > asked / 100 else 0.0


_OUTAGE = ("servers", "longest wait of a batch", "sent again", "backlog two minutes later")


def after_an_outage(site: Site) -> Iterable[Sequence[str]]:
    """The rows of a table: two minutes after the servers came back."""
    for servers in SERVERS:
        nodes = Nodes(count=FLEET, points_a_second=AWAY_RATE, away_s=AWAY_S)
        found = Simulation(_apart(site, servers), nodes).run(AWAY_S[1] + WALL_S)
        backlog_s = found.backlog / (FLEET * AWAY_RATE)
        yield (
            str(servers),
            f"{max(found.took_s):.1f} s",
            str(found.repeats),
            f"{backlog_s:.1f} s of points",
        )


def _apart(site: Site, servers: int) -> Site:
    """Each worker with a core of its own, and a machine for the database."""
    return replace(
        site,
        servers=servers,
        workers=WORKERS,
        database_cores=DATABASE_CORES,
        sync_s=SYNC_S,
        client=Cost(0.0),
    )


def _cost(cost: Cost) -> str:
    return f"{1000 * cost.request_s:.1f} ms + {1e6 * cost.row_s:.0f} µs a row in the"


def _print(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    for row in (head, ["---"] * len(head), *rows):
        print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    sys.exit(main())
