"""What no point says, read from a run's folder."""

from pathlib import Path

import pytest

from opusclip_mlops.accounting import Account
from opusclip_mlops.alerts.rules import (
    Alerts,
    AnyRule,
    DiskFilling,
    DroppedPoints,
    MirrorLag,
    NotFinite,
)
from opusclip_mlops.alerts.surroundings import Surroundings
from opusclip_mlops.alerts.watcher import Facts
from opusclip_mlops.folder import Progress, RunFolder
from opusclip_mlops.records import Metrics
from tests.journeys import append, make_run


def surroundings(folder: RunFolder, *rules: AnyRule) -> Surroundings:
    return Surroundings(folder, Alerts(rules={f"r{at}": one for at, one in enumerate(rules)}))


def test_only_what_is_asked_for_is_looked_at(tmp_path: Path) -> None:
    """And not more often than every five seconds."""
    folder = make_run(tmp_path, ["mlflow", "alerts"])
    assert surroundings(folder, NotFinite(keys=("*",))).facts(now_ms=0) == Facts()
    looks = surroundings(folder, DroppedPoints(), DiskFilling())
    facts = looks.facts(now_ms=0)
    assert facts.dropped == 0
    assert facts.disk_percent is not None
    assert 0 < facts.disk_percent <= 100
    assert looks.facts(now_ms=4999) == Facts()
    assert looks.facts(now_ms=5000).dropped == 0


def test_points_that_were_shed_and_records_that_were_lost_are_counted(tmp_path: Path) -> None:
    """Those that an interval skipped are not: that was wanted."""
    folder = make_run(tmp_path)
    account = Account(folder.path, "s1")
    account.count("shed", ["a", "b"])
    account.count("skipped", ["a"])
    account.count_lost(3)
    account.close()
    assert surroundings(folder, DroppedPoints()).facts(now_ms=0).dropped == 5


def test_a_sink_lags_from_when_it_lacked_what_was_there(tmp_path: Path) -> None:
    """However much is logged meanwhile; the sink of alerts itself is not looked at."""
    folder = make_run(tmp_path, ["mlflow", "wandb", "alerts"])
    append(folder, [Metrics(1, 1, {"a": 1.0})])
    looks = surroundings(folder, MirrorLag())
    sizes = folder.size_bytes()
    assert looks.facts(now_ms=0).lag_ms == {"mlflow": 0, "wandb": 0}
    append(folder, [Metrics(2, 2, {"a": 2.0})])
    folder.write_progress("wandb", Progress(number=1, position=sizes))
    assert looks.facts(now_ms=10_000).lag_ms == {"mlflow": 10_000, "wandb": 0}
    assert looks.facts(now_ms=20_000).lag_ms == {"mlflow": 20_000, "wandb": 10_000}


def test_what_cannot_be_read_is_no_fact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that does not answer raises no alert."""

    def refuse(_: object) -> None:
        raise OSError(5, "no answer")

    monkeypatch.setattr("opusclip_mlops.alerts.surroundings.shutil.disk_usage", refuse)
    assert surroundings(make_run(tmp_path), DiskFilling()).facts(now_ms=0).disk_percent is None
