"""The tables of docs/scaling.md: `python -m benchmarks.scaling_page` makes them from scaling.json.

In the document each stands between a comment with its name and one that says `end`. What stands
outside of them is written by hand; tests/test_scaling_page.py holds its figures to the tables.
"""

import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from benchmarks.figures import number
from benchmarks.processes import HERE
from benchmarks.scaling import PARTS, RESULTS
from benchmarks.scaling_fleet_page import FLEET_TABLES
from benchmarks.scaling_followers import RUNS
from benchmarks.scaling_kept import NONE, Kept, Row, cell, seconds, share, times
from benchmarks.scaling_ranks import CASES, Case
from benchmarks.scaling_servers import (
    ARRANGEMENTS,
    CLIENTS,
    ROWS,
    STOCK,
    STOCK_CLIENTS,
    TURN_CLIENTS,
)
from benchmarks.scaling_studies import IN_DATABASE, SIZES, WORKERS

DOCUMENT = HERE.parent / "docs" / "scaling.md"
KEEPS_UP, LEVEL_S = 0.95, 10.0
"""So much of what is logged arrives where a shipper keeps up; so old is what a follower has."""

_PLACE = re.compile(r"(<!-- ([\w ]+): from scaling\.json -->\n).*?(<!-- end -->)", re.DOTALL)


def main() -> int:
    """Put the tables into the document."""
    path = Path(sys.argv[1]) if sys.argv[1:] else RESULTS
    DOCUMENT.write_text(page(DOCUMENT.read_text(), Kept(path)))
    return 0


def page(document: str, kept: Kept) -> str:
    """The document with its tables made anew."""

    def made(place: re.Match[str]) -> str:
        return f"{place[1]}\n{table(place[2], kept)}\n{place[3]}"

    return _PLACE.sub(made, document)


def table(name: str, kept: Kept) -> str:
    """A table in Markdown, the first row its head."""
    head, *rows = TABLES[name](kept)
    return "".join(f"| {' | '.join(row)} |\n" for row in (head, ["---"] * len(head), *rows))


def _machines(kept: Kept) -> Iterator[Row]:
    yield "part", "measured, 2026", "took", "load before and after"
    for part in PARTS:
        about = kept.machine(part)
        load = f"{about['load_1min']:.1f}, {about['load_1min_after']:.1f}"
        yield part, about["date"][5:16].replace("T", " "), f"{about['took_s']} s", load


def _bends(kept: Kept) -> Iterator[Row]:
    yield "part", "bends at", "short is", "next"
    rates = [f"{number(most_of(kept, rows)[0])} with {rows} rows" for rows in (ROWS[0], ROWS[-1])]
    yield (
        "server, one worker",
        f"points/s: {', '.join(rates)} a batch",
        "Python in the worker",
        "larger batches, then workers",
    )
    yield "shipper", _shipper_bend(kept), "Python in the shipper", "merge ranks (`reduce`)"
    yield (
        "follower",
        _follower_bend(kept),
        "one process for all of W&B's logs",
        "a follower an experiment",
    )
    for place, next_step in (("file", "fewer trials a study"), ("PostgreSQL", "longer trials")):
        workers, rate = _best_workers(kept, place)
        bend = f"{workers} workers: {number(rate)} trials/s"
        yield f"study, {place}", bend, "each claim reads the study", next_step


def most_of(kept: Kept, rows: int) -> tuple[float, int]:
    """The most points a second of one worker in such batches, and by how many clients."""
    return max((kept.value("scaling_servers", _pressed(n, rows)), n) for n in CLIENTS)


def _pressed(clients: int, rows: int) -> str:
    return f"1 worker, {clients} clients x {rows} rows"


def keeps_up(kept: Kept, case: Case) -> bool:
    """Whether what was logged arrived."""
    return _arrived_share(kept, case) >= KEEPS_UP


def _arrived_share(kept: Kept, case: Case) -> float:
    of = [kept.value("scaling_ranks", f"{case.name}: {name}") for name in ("arrived", "logged")]
    return of[0] / of[1]


def _shipper_bend(kept: Kept) -> str:
    """For each number of ranks that was tried at more than one rate, beside nothing else."""
    cases = [one for one in CASES if not one.reduce and not one.is_busy]
    told = []
    for ranks in sorted({one.ranks for one in cases}):
        rates = {one.offered: keeps_up(kept, one) for one in cases if one.ranks == ranks}
        told.append(f"{ranks} rank{'s' * (ranks > 1)}: {_bend(rates, 'points/s')}")
    return "; ".join(told)


def _bend(kept_up: Mapping[int, bool], unit: str) -> str:
    """Between the most before the first that was too much, and that one."""
    least = min((one for one, is_kept in kept_up.items() if not is_kept), default=0)
    most = max((one for one in kept_up if not least or one < least), default=0)
    return f"between {most:,} and {least:,} {unit}" if least else f"not up to {most:,} {unit}"


def _follower_bend(kept: Kept) -> str:
    return _bend({runs: is_level(kept, runs) for runs in RUNS}, "runs")


def is_level(kept: Kept, runs: int) -> bool:
    """Whether points came in time to both places."""
    return all(
        kept.value("scaling_followers", f"{runs} runs: {kind}, {_NEWEST}, median") <= LEVEL_S
        for kind in _KINDS
    )


_KINDS, _NEWEST = ("TensorBoard", "W&B"), "age of the newest"


def _best_workers(kept: Kept, place: str) -> tuple[int, float]:
    rates = {n: kept.value("scaling_studies", f"{place}, {n} workers") for n in WORKERS}
    best = max(WORKERS, key=lambda n: rates[n])
    return best, rates[best]


def _one_worker(kept: Kept) -> Iterator[Row]:
    yield (
        "rows a batch", "clients", "points/s", "p50", "processor ms a batch: server",
        "database", "client", "worker busy", "MLflow's own, points/s", "cores others had",
    )  # fmt: skip
    for rows in ROWS:
        for clients in CLIENTS:
            yield str(rows), str(clients), *_pressed_cells(kept, clients, rows)


def _pressed_cells(kept: Kept, clients: int, rows: int) -> Iterator[str]:
    what = _pressed(clients, rows)
    rate = kept.value("scaling_servers", what)
    names = ("p50_ms", "server_ms", "database_ms", "client_ms", "others_cores")
    of = {name: kept.value("scaling_servers", f"{what}: {name}") for name in names}
    stock = f"{STOCK}, {clients} clients x {rows} rows"
    yield number(rate)
    yield cell(of["p50_ms"], "ms")
    yield from (times(of[name]) for name in names[1:4])
    yield share(of["server_ms"] / 1000 * rate / rows)
    yield number(kept.value("scaling_servers", stock)) if clients in STOCK_CLIENTS else ""
    yield f"{of['others_cores']:.1f}"


def _batches(kept: Kept) -> Iterator[Row]:
    yield (
        "rows a batch", "server", "database", "a write of its log to the disk",
        "both for 1,000 points", "beside batches of 1000", "most points/s of a worker",
        "beside batches of 10", "beside MLflow's own, 8 clients",
    )  # fmt: skip
    last, first = _spent(kept, ROWS[-1]), most_of(kept, ROWS[0])[0]
    for rows in ROWS:
        most, spent = most_of(kept, rows)[0], _spent(kept, rows)
        of = [kept.value("scaling_servers", f"{name} of {rows} rows") for name in _TIMES]
        beside = [
            kept.value("scaling_servers", what.format(STOCK_CLIENTS[0], rows))
            for what in ("1 worker, {} clients x {} rows", STOCK + ", {} clients x {} rows")
        ]
        yield (
            str(rows), *(f"{one:.1f} ms" for one in of), f"{spent:.0f} ms", times(spent / last),
            number(most), f"{most / first:.1f}", f"{beside[0] / beside[1]:.1f}",
        )  # fmt: skip


_TIMES = ("server_ms", "database_ms", "sync_ms")


def _spent(kept: Kept, rows: int) -> float:
    """Milliseconds of the server's and of the database's processor for 1,000 points."""
    spent = sum(kept.value("scaling_servers", f"{name} of {rows} rows") for name in _TIMES[:2])
    return spent * 1000 / rows


def _arrangements(kept: Kept) -> Iterator[Row]:
    yield "servers x workers", *(f"{rows} rows, points/s" for rows in ROWS), "cores others had"
    for way in ARRANGEMENTS:
        what = [_arranged(*way, rows) for rows in ROWS]
        rates = [kept.value("scaling_servers", one) for one in what]
        alone = [kept.value("scaling_servers", _arranged(1, 1, rows)) for rows in ROWS]
        others = [kept.value("scaling_servers", f"{one}: others_cores") for one in what]
        yield (
            f"{way[0]} x {way[1]}",
            *(f"{number(a)} ({a / b:.1f})" for a, b in zip(rates, alone, strict=True)),
            f"{min(others):.1f} to {max(others):.1f}",
        )


def _arranged(servers: int, workers: int, rows: int) -> str:
    return f"{servers} servers x {workers} workers, {TURN_CLIENTS} clients x {rows} rows"


def _ranks(kept: Kept) -> Iterator[Row]:
    yield (
        "ranks", "how", "logged, points/s", "arrived, points/s", "of it", "age, median", "most",
        "shipper, cores", "memory", "cores others had",
    )  # fmt: skip
    for case in CASES:
        of = {
            name: kept.value("scaling_ranks", f"{case.name}: {name}")
            for name in ("logged", "arrived", "shipper", "memory", "others took")
        }
        how = f"`{case.reduce}`" if case.reduce else "all cores busy" if case.is_busy else ""
        yield (
            str(case.ranks), how, number(of["logged"]), number(of["arrived"]),
            share(of["arrived"] / of["logged"]), *_ages(kept, case), times(of["shipper"]),
            f"{of['memory']:.0f} MB", f"{of['others took']:.1f}",
        )  # fmt: skip


def _ages(kept: Kept, case: Case) -> Iterator[str]:
    for name in ("median", "most"):
        what = f"{case.name}: age, {name}"
        has_arrived = kept.has("scaling_ranks", what)
        yield seconds(kept.value("scaling_ranks", what)) if has_arrived else NONE


def _followers(kept: Kept) -> Iterator[Row]:
    kinds = [f"{kind}: {name}" for kind in _KINDS for name in ("came of what was made", "age")]
    yield "runs", *kinds, "cores", "memory"
    for runs in RUNS:
        of = [kept.value("scaling_followers", f"{runs} runs: {name}") for name in _TAKEN]
        cells = [one for kind in _KINDS for one in _came(kept, runs, kind)]
        yield str(runs), *cells, times(of[0]), f"{of[1]:.0f} MB"


_TAKEN = ("processor", "memory")


def _came(kept: Kept, runs: int, kind: str) -> Iterator[str]:
    what = f"{runs} runs: {kind}"
    yield share(kept.value("scaling_followers", f"{what}, came of what was made"))
    names = [f"{what}, {_NEWEST}, {one}" for one in ("median", "most")]
    of = [seconds(kept.value("scaling_followers", name)) for name in names]
    yield f"{of[0]} ({of[1]})"


_COLUMNS = tuple((place, by) for place in ("file", "PostgreSQL") for by in ("random", "bayes"))


def _trials(kept: Kept) -> Iterator[Row]:
    yield "trials there", *(f"{place}, {by}" for place, by in _COLUMNS)
    for size in SIZES:
        cells = []
        for place, by in _COLUMNS:
            if place != "file" and size > IN_DATABASE:
                cells.append("")
                continue
            one = kept.figure("scaling_studies", f"{place}, {by}, a trial after {size}")
            cells.append(f"{one['ours']:.0f} ms ({one['theirs']:.0f})")
        yield f"{size:,}", *cells


def _workers(kept: Kept) -> Iterator[Row]:
    yield "workers", "file, trials/s", "PostgreSQL, trials/s"
    for n in WORKERS:
        rates = [kept.value("scaling_studies", f"{place}, {n} workers") for place in _PLACES]
        yield str(n), *map(number, rates)


_PLACES = ("file", "PostgreSQL")


def _uploads(kept: Kept) -> Iterator[Row]:
    yield "files of 16 MB", "MB/s", "points/s", "of those without", "server ms a batch", "more"
    for n, how in enumerate(("directly", "through the server")):
        rate, spent = (
            kept.figure("scaling_uploads", f"{what} while files go {how}")
            for what in ("points", "the server's processor for 100 points")
        )
        if not n:
            yield "none", "", number(rate["theirs"]), "", times(spent["theirs"]), ""
        uploaded = number(kept.value("scaling_uploads", f"uploaded {how}"))
        more = f"{100 * (spent['ratio'] - 1):+.0f} %"
        yield how, uploaded, number(rate["ours"]), times(rate["ratio"]), times(spent["ours"]), more


def _beside(part: str) -> Callable[[Kept], Iterator[Row]]:
    """A table of all of a part's figures that have a peer, and their ratio."""

    def rows(kept: Kept) -> Iterator[Row]:
        figures = [kept.figure(part, what) for what in kept.words(part)]
        yield "", "with it", figures[0]["peer"], "ratio"
        for one in figures:
            theirs = [cell(one["theirs"], one["unit"]), _ratio(one)] if one["peer"] else ["", ""]
            yield one["what"], cell(one["ours"], one["unit"]), *theirs

    return rows


def _ratio(one: dict[str, object]) -> str:
    around = one["interval"]
    told = f"{one['ratio']:.2f}"
    return f"{told} ({around[0]:.2f} to {around[1]:.2f})" if isinstance(around, list) else told


TABLES: dict[str, Callable[[Kept], Iterator[Row]]] = {
    "when": _machines,
    "bends": _bends,
    "one worker": _one_worker,
    "batches": _batches,
    "arrangements": _arrangements,
    "ranks": _ranks,
    "followers": _followers,
    "trials": _trials,
    "workers": _workers,
    "uploads": _uploads,
    "pools": _beside("scaling_pools"),
    "partitions": _beside("scaling_tables"),
    **FLEET_TABLES,
}

if __name__ == "__main__":
    sys.exit(main())
