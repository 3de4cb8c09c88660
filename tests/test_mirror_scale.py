"""Mirrors of very long runs and of very many runs; in full with OPUSCLIP_SOAK=1."""

from pathlib import Path

import pytest

from benchmarks.histories import copy_run, make_run
from opusclip_mlops import mirror, verify
from tests.faults.site import SOAK
from tests.mirrored import Place

POINTS = 1_000_000 if SOAK else 30_000
RUNS = 2_500 if SOAK else 50


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """A store and a place for mirrors, in the current folder."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    return Place(tmp_path)


@pytest.mark.parametrize("to", ["tensorboard:runs", "wandb:clips"])
def test_a_very_long_run_is_mirrored(place: Place, to: str) -> None:
    """A million points of a hundred keys: the destination's own count says that all are there."""
    run_id = make_run(place.path / "mlflow.db", place.experiment(), keys=100, points=POINTS)
    [report] = mirror(run_id, to=to)
    assert (report.outcome, report.points) == ("mirrored", POINTS)
    [report] = verify(run_id, to=to)
    assert (report.outcome, report.held_points) == ("equal", POINTS)
    assert [one.outcome for one in mirror(run_id, to=to)] == ["equal"]


def test_very_many_runs_are_mirrored(place: Place) -> None:
    """2,500 runs, many pages of an experiment: each gets its mirror, and gets it once."""
    first = make_run(place.path / "mlflow.db", place.experiment(), keys=2, points=10)
    copy_run(place.path / "mlflow.db", first, RUNS - 1)
    reports = mirror(experiments="films", to="tensorboard:runs")
    assert len({one.run_id for one in reports}) == RUNS
    assert {(one.outcome, one.points) for one in reports} == {("mirrored", 10)}
    folders = {path.name for path in (place.path / "runs" / "films").iterdir()}
    assert folders == {one.run_id for one in reports}
    again = mirror(experiments="films", to="tensorboard:runs")
    assert [one.outcome for one in again] == ["equal"] * RUNS
