"""What the simulation says: `python -m benchmarks.scaling_forecast [scaling.json]`.

It takes the times that were measured, and adds its figures to the same file. First it is held
against what was measured of one server and its clients, and of nodes below, at and above what a
server takes: everything on the two cores. Then it tells what 1,000 nodes come to, and what if every
request were a quarter dearer.
"""

import json
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.figures import Figure
from benchmarks.fleet import Cost, Nodes, Outcome, Simulation, Site
from benchmarks.scaling import RESULTS, keep
from benchmarks.scaling_servers import EVERY_S, LIVE_S, LIVE_WARM_S, NODES, ROWS, WARM_S
from benchmarks.scaling_servers import PART as MEASURED_PART

PART = "scaling_forecast"
CORES = 2
PRESSED_S = 20.0
FLEET, WALL_S = 1000, 240.0
WORKERS, DATABASE_CORES, SYNC_S = 4, 8, 0.001
SERVERS = (1, 2, 4, 8)
ASKED = ((20.0, 1.0), (100.0, 1.0), (100.0, 10.0), (500.0, 1.0))
AWAY_RATE, AWAY_S, AFTER_S, REOPENINGS = 20.0, (20.0, 80.0), 120.0, 5
DEARER = 1.25
GROWS = 0.01
"""Of what is asked: a backlog that grows by less in the second half of the time does not grow."""

Measured = Mapping[str, float]
"""What was measured, by its words."""

_PRESSED = re.compile(r"(?:1 worker|(\d+) servers x (\d+) workers), (\d+) clients x (\d+) rows")
_LIVE = re.compile(rf"1 worker, {NODES} nodes x (\d+) points/s")


@dataclass(frozen=True)
class Checked:
    """A measured load that the simulation is held against: its words, the site and the nodes."""

    what: str
    site: Site
    nodes: Nodes

    @property
    def simulated(self) -> Outcome:
        """What the simulation says, once it has swung in."""
        simulation = Simulation(self.site, self.nodes)
        if self.nodes.rows:
            return simulation.run(PRESSED_S, warm_s=WARM_S)
        return simulation.run(LIVE_WARM_S + LIVE_S, warm_s=LIVE_WARM_S)


def main() -> int:
    """Simulate and keep."""
    path = Path(sys.argv[1]) if sys.argv[1:] else RESULTS
    measured = measured_in(path)
    found = [*compared(measured), *forecast(site_of(measured)), *after_an_outage(measured)]
    keep(path, PART, found, {"fleet": FLEET, "wall_s": WALL_S})
    return 0


def measured_in(path: Path) -> dict[str, float]:
    """The figures of the part about servers, by their words."""
    kept = json.loads(path.read_text())
    return {one["what"]: one["ours"] for one in kept[MEASURED_PART]["figures"]}


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


def checks(measured: Measured) -> Iterator[Checked]:
    """Everything measured that the simulation can be held against, on cores that all share."""
    shared = replace(site_of(measured), cores=CORES, database_cores=CORES)
    for what in measured:
        if found := _PRESSED.fullmatch(what):
            servers, workers, count, rows = (int(one or 1) for one in found.groups())
            site = replace(shared, servers=servers, workers=workers)
            yield Checked(what, site, Nodes(count=count, rows=rows))
        elif found := _LIVE.fullmatch(what):
            nodes = Nodes(count=NODES, points_a_second=float(found[1]), every_s=EVERY_S)
            yield Checked(what, shared, nodes)


def compared(measured: Measured) -> Iterator[Figure]:
    """Simulated beside measured; the ratio less one is the error."""
    for check in checks(measured):
        found = check.simulated
        says = {check.what: (found.points_a_second, "points/s")}
        if not check.nodes.rows:
            says[f"{check.what}: lag, median"] = (found.lag_s(50), "s")
            says[f"{check.what}: lag, 99 of 100"] = (found.lag_s(99), "s")
        for what, (value, unit) in says.items():
            yield Figure(
                part=PART, what=what, ours=value, unit=unit, peer="measured", theirs=measured[what]
            )


def forecast(site: Site) -> Iterator[Figure]:
    """What the fleet comes to, by its points and by its servers."""
    for rate, every_s in ASKED:
        nodes = Nodes(count=FLEET, points_a_second=rate, every_s=every_s)
        for servers in SERVERS:
            yield from foretold(site, nodes, servers)


def foretold(site: Site, nodes: Nodes, servers: int, *, wall_s: float = WALL_S) -> Iterator[Figure]:
    """One row: as measured, and with every request a quarter dearer."""
    what = f"{nodes.count} nodes x {nodes.points_a_second:g} points/s, every {nodes.every_s:g} s"
    apart = _apart(site, servers)
    for how, one in (("", apart), (", dearer", replace(apart, speed=1 / DEARER))):
        found = Simulation(one, nodes).run(wall_s)
        asked = nodes.count * nodes.points_a_second
        values = {
            "lag, median": (found.lag_s(50), "s"),
            "lag, 99 of 100": (found.lag_s(99), "s"),
            "backlog grows by": (_grew(found, asked), "points/s"),
            "rows a request": (found.points / max(1, found.requests), ""),
            "sent again": (float(found.repeats), ""),
            "servers busy": (found.server_busy, ""),
            "database busy": (found.database_busy, ""),
        }
        for name, (value, unit) in values.items():
            yield Figure(
                part=PART, what=f"{what}, {servers} servers{how}: {name}", ours=value, unit=unit
            )


def _grew(found: Outcome, asked: float) -> float:
    return found.growth if found.growth > asked * GROWS else 0.0


def after_an_outage(measured: Measured) -> Iterator[Figure]:
    """A minute without servers, and two minutes later."""
    site = site_of(measured)
    for servers in SERVERS:
        nodes = Nodes(count=FLEET, points_a_second=AWAY_RATE, away_s=AWAY_S, reopenings=REOPENINGS)
        found = Simulation(_apart(site, servers), nodes).run(AWAY_S[1] + AFTER_S)
        what = f"{FLEET} nodes x {AWAY_RATE:g} points/s, away {AWAY_S[1] - AWAY_S[0]:g} s"
        values = {
            "longest wait": (max(found.took_s), "s"),
            "sent again": (float(found.repeats), ""),
            "backlog": (found.backlog / (FLEET * AWAY_RATE), "s of points"),
        }
        for name, (value, unit) in values.items():
            yield Figure(
                part=PART, what=f"{what}, {servers} servers: {name}", ours=value, unit=unit
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


if __name__ == "__main__":
    sys.exit(main())
