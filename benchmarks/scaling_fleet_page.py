"""The tables of docs/scaling.md about the simulation."""

from collections.abc import Callable, Iterator, Mapping, Sequence

from benchmarks.figures import number
from benchmarks.scaling_forecast import (
    ASKED,
    AWAY_RATE,
    AWAY_S,
    FLEET,
    PART,
    SERVERS,
    site_of,
)
from benchmarks.scaling_kept import NONE, Kept, Row, error, seconds, share
from benchmarks.scaling_servers import CLIENTS, NODES, ROWS
from benchmarks.scaling_tables import SIZES

FEW = 2
"""Clients of a worker that wait for each other little."""


def errors(kept: Kept) -> dict[str, tuple[float, float]]:
    """Simulated and measured, for each figure that the simulation was held against."""
    figures = [kept.figure(PART, what) for what in kept.words(PART)]
    return {one["what"]: (one["ours"], one["theirs"]) for one in figures if one["peer"]}


def _costs(kept: Kept) -> Iterator[Row]:
    yield "a request takes", "ms", "and µs a row"
    measured = {what: kept.value("scaling_servers", what) for what in kept.words("scaling_servers")}
    site = site_of(measured)
    for name, cost in (("of the server", site.server), ("of the database", site.database)):
        yield name, f"{1000 * cost.request_s:.1f}", f"{1e6 * cost.row_s:.0f}"


def _checked(kept: Kept) -> Iterator[Row]:
    yield "", "measured", "simulated", "error", "cores others had"
    for what, (simulated, measured) in errors(kept).items():
        others = kept.value("scaling_servers", f"{what.partition(': ')[0]}: others_cores")
        unit = "" if ":" in what else ", points/s"
        unit += ", s" if ": lag" in what else ""
        yield (
            f"{what}{unit}",
            number(measured),
            number(simulated),
            error(simulated, measured),
            f"{others:.1f}",
        )


def _groups(kept: Kept) -> Mapping[str, Sequence[tuple[float, float]]]:
    """What the simulation was held against, in kinds."""
    found = errors(kept)
    few = {f"1 worker, {n} clients x {rows} rows" for n in CLIENTS if n <= FEW for rows in ROWS}
    live = {what for what in found if f"{NODES} nodes" in what}
    kinds = {
        f"one worker, up to {FEW} clients, points/s": few,
        "one worker, more clients, points/s": {
            what for what in found if what.startswith(("1 worker", "1 servers x 1 "))
        }
        - few
        - live,
        "more workers or servers, points/s": {
            what for what in found if " servers x " in what and "1 servers x 1 " not in what
        },
        f"{NODES} nodes, points/s": {what for what in live if ": " not in what},
        f"{NODES} nodes, lags": {what for what in live if ": lag" in what},
    }
    return {kind: [found[what] for what in sorted(names)] for kind, names in kinds.items()}


def _errors(kept: Kept) -> Iterator[Row]:
    yield "simulated beside measured", "figures", "least", "median", "most"
    for kind, pairs in _groups(kept).items():
        ordered = sorted(pairs, key=lambda pair: pair[0] / pair[1])
        three = (ordered[0], ordered[len(ordered) // 2], ordered[-1])
        yield kind, str(len(pairs)), *(error(*pair) for pair in three)


def _fleet(kept: Kept) -> Iterator[Row]:
    yield (
        "points/s a node", "every", "servers", "lag, median", "99 of 100", "backlog grows by",
        "rows a request", "servers busy", "database busy", "25 % dearer: lag, median",
        "backlog grows by",
    )  # fmt: skip
    for rate, every_s in ASKED:
        for servers in SERVERS:
            what = f"{FLEET} nodes x {rate:g} points/s, every {every_s:g} s, {servers} servers"
            lags, busy = _lags(kept, what), _busy(kept, what)
            dearer = _lags(kept, f"{what}, dearer")
            yield f"{rate:g}", f"{every_s:g} s", str(servers), *lags, *busy, dearer[0], dearer[2]


def _lags(kept: Kept, what: str) -> Row:
    """Where a backlog grows, a lag is only as long as it was watched."""
    grows = kept.value(PART, f"{what}: backlog grows by")
    if grows:
        return NONE, NONE, f"{number(grows)} points/s"
    lags = (kept.value(PART, f"{what}: lag, {name}") for name in ("median", "99 of 100"))
    return *map(seconds, lags), "0"


def _busy(kept: Kept, what: str) -> Iterator[str]:
    yield f"{kept.value(PART, f'{what}: rows a request'):.0f}"
    for name in ("servers busy", "database busy"):
        yield share(kept.value(PART, f"{what}: {name}"))


def _outage(kept: Kept) -> Iterator[Row]:
    yield "servers", "longest wait of a batch", "sent again", "backlog two minutes later"
    away = f"{FLEET} nodes x {AWAY_RATE:g} points/s, away {AWAY_S[1] - AWAY_S[0]:g} s"
    for servers in SERVERS:
        names = ("longest wait", "sent again", "backlog")
        wait_s, again, backlog_s = (
            kept.value(PART, f"{away}, {servers} servers: {name}") for name in names
        )
        yield str(servers), seconds(wait_s), number(again), f"{seconds(backlog_s)} of points"


_DAY_S = 86_400


def _sizing(kept: Kept) -> Iterator[Row]:
    """What a fleet needs, by what a batch of the most rows took and a point in a table weighs."""
    yield (
        "points/s a node", f"of {FLEET} nodes, points/s", "points a day", "disk a day", "workers",
        "database cores", "workers, with the largest error above",
    )  # fmt: skip
    rows = ROWS[-1]
    most = max(
        kept.value("scaling_servers", f"1 worker, {n} clients x {rows} rows") for n in CLIENTS
    )
    database_s = kept.value("scaling_servers", f"database_ms of {rows} rows") / 1000 / rows
    worst = max(simulated / seen for simulated, seen in errors(kept).values())
    for rate in dict.fromkeys(rate for rate, _ in ASKED):
        points = FLEET * rate
        yield (
            f"{rate:g}", number(points), f"{points * _DAY_S / 1e9:.1f} G",
            f"{points * _DAY_S * point_bytes(kept) / 1e9:,.0f} GB", f"{points / most:.1f}",
            f"{points * database_s:.1f}", f"{worst * points / most:.1f}",
        )  # fmt: skip


def point_bytes(kept: Kept) -> float:
    """What a point takes in MLflow's table and its indexes: by how much they grew."""
    least, most = SIZES[0], SIZES[-1]
    before, behind = (
        sum(kept.value("scaling_tables", f"{size} M points there: {part}") for part in _PARTS)
        for size in (least, most)
    )
    return (behind - before) / (most - least)


_PARTS = ("table", "indexes")

FLEET_TABLES: dict[str, Callable[[Kept], Iterator[Row]]] = {
    "costs": _costs,
    "checked": _checked,
    "errors": _errors,
    "fleet": _fleet,
    "outage": _outage,
    "sizing": _sizing,
}
