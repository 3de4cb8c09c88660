"""Facts about `opusclip_mlops.reports.choosing`: which runs a report is of, and where it is put."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient

from opusclip_mlops import reports
from opusclip_mlops.errors import ConfigError, DataError
from opusclip_mlops.reports import choosing, report
from tests.journeys import store
from tests.panelled import T0_MS

Bare = Callable[..., str]


def test_of_an_experiment_the_newest_runs_are_reported(
    bare: Bare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How many were left is said, and it is put where the next one takes its place."""
    monkeypatch.setattr(reports, "MOST_RUNS", 2)
    ids = [
        bare(name, {"loss": [1.0]}, experiment="kites", start_ms=T0_MS + place)
        for place, name in enumerate(("one", "two", "three"))
    ]
    made = report(experiment="kites", tracking_uri=store(tmp_path))
    assert made.run_ids == (ids[2], ids[1])
    # The oldest is the same run tomorrow, when there are newer ones.
    assert [one.partition("/")[0] for one in made.logged] == [ids[0], ids[0]]
    assert "The newest 2 runs of the experiment; it has more." in made.file.read_text()
    assert "The newest 2 runs" in made.markdown
    assert "\nopusclip report --experiment kites --tracking-uri " in made.markdown
    with pytest.raises(ConfigError, match="3 runs are too many for a report: give 2 or fewer"):
        report(ids, tracking_uri=store(tmp_path))


def test_an_experiment_without_runs_has_no_report(tmp_path: Path) -> None:
    """That is said, by its name."""
    MlflowClient(store(tmp_path)).create_experiment("empty")
    with pytest.raises(DataError, match="experiment 'empty' has no runs"):
        report(experiment="empty", tracking_uri=store(tmp_path))


def test_an_id_that_a_server_gave_names_no_place() -> None:
    """A report's file stays in this folder, and has a name that tells it from others."""
    assert choosing.mark_of("0123456789abcdef") == "01234567"
    for nasty in ("/tmp/x/outside", "../../..", "a b"):
        assert re.fullmatch("[0-9a-f]{8}", choosing.mark_of(nasty))


def test_the_runs_of_an_experiment_are_compared_with_one_that_is_like_them(
    bare: Bare, tmp_path: Path
) -> None:
    """The oldest that has most metrics in common with others, and not the newest of all."""
    for place, keys in enumerate((("odd",), ("a", "b"), ("a", "b"), ("other",))):
        values = {key: [1.0, 2.0] for key in keys}
        bare(f"run-{place}", values, experiment="kites", start_ms=T0_MS + place)
    made = report(experiment="kites", logs=False, tracking_uri=store(tmp_path))
    assert made.notes == ("All are compared with run-1.",)
    assert "| A | run-1 |" in made.markdown
    [line] = [one for one in made.markdown.splitlines() if one.startswith("| a | C |")]
    assert "(+0 %)" in line
