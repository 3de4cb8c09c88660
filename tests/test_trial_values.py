"""What a trial logs of the metric that is looked for."""

import math
from pathlib import Path

import pytest

from opusclip_mlops import ExperimentTracker, TrackingConfig
from opusclip_mlops.trial_values import (
    FILE_VARIABLE,
    METRIC_VARIABLE,
    TrialValues,
    ValuesReader,
    values_for_a_worker,
)
from tests.journeys import store


def test_what_a_tracker_logs_is_told_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before any server has it, whatever the interval leaves out of the run, and no other key."""
    monkeypatch.setenv(FILE_VARIABLE, str(tmp_path / "values"))
    monkeypatch.setenv(METRIC_VARIABLE, "video/psnr")
    config = TrackingConfig(
        use_wandb=False, use_tensorboard=False, system_metrics=False,
        tracking_uri=store(tmp_path), log_intervals={"medium": 100},
    )  # fmt: skip
    with ExperimentTracker(config) as tracker:
        tracker.log_metrics({"loss": 9.0, "video/psnr": 20.5}, 0)
        tracker.log_metrics({"loss": 8.0}, 1)
        tracker.log_video_metrics(psnr=21.25, step=2)
        found = list(ValuesReader(tmp_path / "values").new())
    assert found == [(0, 20.5), (2, 21.25)]
    assert oct((tmp_path / "values").stat().st_mode & 0o777) == "0o600"


def test_who_is_no_trial_tells_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor one whose worker's folder is gone: it trains on."""
    assert values_for_a_worker() is None
    monkeypatch.setenv(METRIC_VARIABLE, "loss")
    monkeypatch.setenv(FILE_VARIABLE, str(tmp_path / "gone" / "values"))
    assert values_for_a_worker() is None


def test_of_many_ranks_the_first_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each logs the same: it would count twice."""
    monkeypatch.setenv(METRIC_VARIABLE, "loss")
    monkeypatch.setenv(FILE_VARIABLE, str(tmp_path / "values"))
    monkeypatch.setenv("RANK", "1")
    assert values_for_a_worker() is None
    monkeypatch.setenv("RANK", "0")
    assert values_for_a_worker()


def test_values_are_read_as_they_come(tmp_path: Path) -> None:
    """Each once, NaN too; a line that is half written comes when it is whole."""
    file = tmp_path / "values"
    reader = ValuesReader(file)
    assert list(reader.new()) == []
    values = TrialValues(str(file), "loss")
    values.note({"loss": math.inf, "other": 1.0}, 1)
    values.note({"other": 1.0}, 2)
    with file.open("a") as half:
        half.write("3 0.1")
    assert list(reader.new()) == [(1, math.inf)]
    with file.open("a") as rest:
        rest.write("25\nno line\n4 nan\n")
    [three, four] = reader.new()
    assert three == (3, 0.125)
    assert math.isnan(four[1])
    assert list(reader.new()) == []
