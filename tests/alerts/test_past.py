"""Rules tried on runs that stand in MLflow."""

import math
from pathlib import Path

import pytest
from mlflow import MlflowClient

from opusclip_mlops.alerts.events import KEY, Event
from opusclip_mlops.alerts.past import alerts_in, tried_on
from opusclip_mlops.alerts.reading import alerts_of
from opusclip_mlops.delivery import deliver
from opusclip_mlops.errors import RegistryError
from opusclip_mlops.folder import CONTROL
from opusclip_mlops.layout import folder_of_key
from opusclip_mlops.records import Metrics, RunEnded
from tests.journeys import append, make_run, store

T0_MS = 1_700_000_000_000
MINUTE_MS = 60_000


def test_rules_are_tried_on_a_run_in_mlflow(tmp_path: Path) -> None:
    """By its points and their times; what no point tells is named, and nobody is told."""
    folder = make_run(tmp_path)
    values = [1.0, 1.1, 0.9, 1.0, 1.0, 21.0, 1.0, 1.0, 1.0]
    points = [
        Metrics(T0_MS + MINUTE_MS * at, at, {"loss": value}) for at, value in enumerate(values)
    ]
    late = Metrics(T0_MS + 60 * MINUTE_MS, 9, {"loss": math.nan})
    append(folder, [*points, late])
    over = RunEnded("s1", "FINISHED", T0_MS + 65 * MINUTE_MS)
    append(folder, [over], journal="s1" + CONTROL)
    deliver(folder, "mlflow")
    rules = {
        "nan": {"kind": "not_finite", "keys": "*"},
        "far": {"kind": "divergence", "keys": "loss"},
        "stuck": {"kind": "no_progress", "minutes": 10},
        "late": {"kind": "mirror_lag"},
        "worse": {"kind": "worse_than_production", "keys": "loss", "model": "nobody"},
    }
    trial = tried_on(alerts_of({"rules": rules}), "a-run", tracking_uri=store(tmp_path))
    assert [(one.alert, one.state, one.step) for one in trial.events] == [
        ("far", "raised", 5),
        ("far", "recovered", 6),
        ("stuck", "raised", 8),
        ("nan", "raised", 9),
        ("stuck", "recovered", 9),
    ]
    assert trial.points == 10
    assert trial.not_judged == ("late", "worse")
    assert alerts_in("a-run", tracking_uri=store(tmp_path)) == []


def test_what_is_no_utf8_is_no_alert(tmp_path: Path) -> None:
    """Whoever wrote it there: the others are read, whatever the machine's own encoding is."""
    folder = make_run(tmp_path)
    raised = Event(alert="nan", state="raised", number=1, message="größer", timestamp_ms=T0_MS)
    append(folder, raised.records())
    append(folder, [RunEnded("s1", "FINISHED", T0_MS)], journal="s1" + CONTROL)
    deliver(folder, "mlflow")
    client = MlflowClient(store(tmp_path))
    (run,) = client.search_runs(["1"])
    path = tmp_path / f"step_00000001-{T0_MS}-{'a' * 12}.txt"
    path.write_bytes(b"\xff\xfe{")
    client.log_artifact(run.info.run_id, str(path), f"text/{folder_of_key(KEY)}")
    (found,) = alerts_in("a-run", tracking_uri=store(tmp_path))
    assert found.message == "größer"


def test_a_run_that_is_not_there_is_named(tmp_path: Path) -> None:
    """In one line."""
    with pytest.raises(RegistryError, match="no run in MLflow is called 'nobody'"):
        alerts_in("nobody", tracking_uri=store(tmp_path))
