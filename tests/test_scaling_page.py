"""docs/scaling.md and scaling.json say the same, and the code that stands here made both."""

import json
import re
from pathlib import Path

import pytest

from benchmarks import scaling_forecast as forecast
from benchmarks import scaling_pools as pools
from benchmarks import scaling_servers as servers
from benchmarks.fleet import Nodes
from benchmarks.scaling import PARTS, RESULTS
from benchmarks.scaling_kept import Kept
from benchmarks.scaling_page import DOCUMENT, KEEPS_UP, LEVEL_S, TABLES, page, table
from benchmarks.scaling_ranks import CASES

KEPT = Kept(RESULTS)
MADE = re.compile(r"<!-- ([\w ]+): from scaling\.json -->.*?<!-- end -->", re.DOTALL)
NO_FIGURES = re.compile(r"```.*?```|`[^`]*`|\]\([^)]*\)|\b[A-Z](?:/?[A-Z])*/?\d\b", re.DOTALL)
NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")
SETTINGS = {
    # The machine, and the versions.
    24.0, 6.18, 3.11, 3.17, 2.0, 18.0,
    *servers.ROWS, *servers.CLIENTS, servers.NODES, servers.EVERY_S, *servers.LOADS,
    100 * KEEPS_UP, LEVEL_S,
    forecast.FLEET, forecast.WORKERS, forecast.DATABASE_CORES, 1000 * forecast.SYNC_S,
    forecast.REOPENINGS, forecast.DEARER, 100 * (forecast.DEARER - 1), 100 * forecast.GROWS,
    forecast.WALL_S, pools.MOST, pools.TOO_MANY, pools.SHARED,
    Nodes(count=0).timeout_s, Nodes(count=0).first_retry_s, Nodes(count=0).last_retry_s,
    # How far the times vary; the seconds are those above. Connections of a worker of MLflow's.
    0.5, 15.0,
}  # fmt: skip


def test_the_tables_are_those_of_the_data() -> None:
    """`python -m benchmarks.scaling_page` would change nothing."""
    document = DOCUMENT.read_text()
    assert page(document, KEPT) == document
    assert [one[1] for one in MADE.finditer(document)] == [*dict.fromkeys(_named(document))]
    assert set(_named(document)) == set(TABLES)


def _named(document: str) -> list[str]:
    return [one[1] for one in MADE.finditer(document)]


def test_a_figure_that_changes_changes_the_page(tmp_path: Path) -> None:
    """So the test above can fail: any figure of a measured load is in a table."""
    data = json.loads(RESULTS.read_text())
    what = f"{CASES[-1].name}: arrived"
    for one in data["scaling_ranks"]["figures"]:
        if one["what"] == what:
            one["ours"] *= 1.5
    changed = tmp_path / "scaling.json"
    changed.write_text(json.dumps(data))
    assert table("ranks", Kept(changed)) != table("ranks", KEPT)


def test_a_figure_that_was_not_measured_is_told_of(tmp_path: Path) -> None:
    """A table with a gap is not made."""
    data = json.loads(RESULTS.read_text())
    data["scaling_ranks"]["figures"] = []
    changed = tmp_path / "scaling.json"
    changed.write_text(json.dumps(data))
    with pytest.raises(KeyError):
        table("ranks", Kept(changed))


def test_what_is_written_by_hand_tells_no_figure_but_those_of_the_tables() -> None:
    """Each number outside of the tables stands in one of them, or is a setting of the code."""
    document = DOCUMENT.read_text()
    there = {_value(one) for made in MADE.finditer(document) for one in NUMBER.findall(made[0])}
    by_hand = NO_FIGURES.sub(" ", MADE.sub(" ", document))
    told = {one for one in NUMBER.findall(by_hand) if _value(one) not in there | SETTINGS}
    assert not told


def _value(written: str) -> float:
    return float(written.replace(",", "").rstrip("."))


def test_every_part_was_measured_in_full_by_what_stands_here() -> None:
    """No part is quick, unknown or missing."""
    assert set(KEPT.parts) == {*PARTS, forecast.PART}
    assert not any(KEPT.machine(part)["quick"] for part in PARTS)


def test_the_stated_errors_are_those_of_the_simulation() -> None:
    """It says the same of the measured times today; so no error is of other code or other times."""
    measured = forecast.measured_in(RESULTS)
    for figure in forecast.compared(measured):
        kept = KEPT.figure(forecast.PART, figure.what)
        assert kept["ours"] == pytest.approx(figure.ours), figure.what
        assert kept["theirs"] == pytest.approx(measured[figure.what]), figure.what


def test_the_forecast_is_that_of_the_simulation() -> None:
    """One row of it, the cheapest: 100 points/s a node, sent every ten seconds."""
    site = forecast.site_of(forecast.measured_in(RESULTS))
    nodes = Nodes(count=forecast.FLEET, points_a_second=100.0, every_s=10.0)
    for figure in forecast.foretold(site, nodes, forecast.SERVERS[0]):
        assert KEPT.value(forecast.PART, figure.what) == pytest.approx(figure.ours), figure.what
