"""Facts about `opusclip_mlops.comparing`: runs of MLflow beside each other."""

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Metric

from opusclip_mlops import comparing, layout
from opusclip_mlops.comparing import compare, laid_beside
from opusclip_mlops.errors import ConfigError, DataError, RegistryError
from opusclip_mlops.generations import generation_tag
from opusclip_mlops.metadata import CheckpointMetadata
from opusclip_mlops.passports import PASSPORTS_KEY, Passport, encoded
from tests.mlflow_runs import client

T0_MS = 1_700_000_000_000
TITLE = "kites-0123abcd"


def run(name: str, values: Mapping[str, Sequence[float]] | None = None, **tags: str) -> str:
    """A run with these values at steps 0, 1, 2 …, a second apart."""
    mlflow: MlflowClient = client()
    found = mlflow.get_experiment_by_name("films")
    experiment = found.experiment_id if found else mlflow.create_experiment("films")
    plain = {key.replace("__", "."): value for key, value in tags.items()}
    made = mlflow.create_run(experiment, start_time=T0_MS, tags=plain, run_name=name)
    points = [
        Metric(key, value, T0_MS + 1000 * step, step)
        for key, every in (values or {}).items()
        for step, value in enumerate(every)
    ]
    mlflow.log_batch(made.info.run_id, metrics=points)
    return str(made.info.run_id)


def compared(*runs: str, **options: Any) -> comparing.Comparison:
    return compare(runs, tracking_uri=client().tracking_uri, **options)


def test_runs_are_found_by_name_id_beginning_and_local_id() -> None:
    """They get letters in the order in which they are named."""
    ids = [run(name) for name in ("first", "second", "third")]
    ids.append(run("fourth", opusclip__local_id="f" * 32))
    found = compared("first", ids[1], "thi", "f" * 32)
    assert {label: one.run_id for label, one in found.runs.items()} == dict(
        zip("ABCD", ids, strict=True)
    )


@pytest.mark.parametrize(
    ("runs", "error", "said"),
    [
        (("one",), ConfigError, "two runs or more"),
        (("one", "one"), ConfigError, "'one' and 'one' are one run"),
        (("one", "none"), RegistryError, "no run in MLflow is called 'none'"),
    ],
)
def test_runs_that_cannot_be_compared(
    runs: tuple[str, ...], error: type[Exception], said: str
) -> None:
    """One alone, one twice, one that is not there."""
    run("one")
    with pytest.raises(error, match=said):
        compared(*runs)


def test_more_than_26_runs_have_two_letters() -> None:
    """As columns of a spreadsheet."""
    assert [comparing._label(at) for at in (0, 25, 26, 51, 52, 702)] == [
        "A", "Z", "AA", "AZ", "BA", "AAA"
    ]  # fmt: skip


def test_metrics_are_those_that_were_asked_for() -> None:
    """All but the machine's and the profiler's when none was; a pattern that fits none is told."""
    keys = ("val/loss", "val/fid", "system/cpu", "performance/fps", "profiling/step")
    for name in ("one", "two"):
        run(name, {key: [1.0, 2.0] for key in keys})
    assert [row.key for row in compared("one", "two").metrics] == ["val/fid", "val/loss"]
    some = compared("one", "two", metrics=["*/f*", "system/*"]).metrics
    assert [row.key for row in some] == ["performance/fps", "system/cpu", "val/fid"]
    with pytest.raises(DataError, match="no run has a metric called loss/\\*"):
        compared("one", "two", metrics=["loss/*"])


def test_what_training_went_back_behind_does_not_count() -> None:
    """Until all of it is asked for."""
    run("one", {"loss": [1.0] * 5})
    about = CheckpointMetadata(name="c", epoch=0, step=1, metrics={}, created_ms=T0_MS + 1500)
    tags = generation_tag("s", start_ms=T0_MS + 10_000, begun_from=about)
    again = run("two", {"loss": [5.0, 4.0, 0.5, 0.5]}, **tags)
    client().log_metric(again, "loss", 3.0, T0_MS + 11_000, 2)
    [row] = compared("one", "two").metrics
    mine = row.runs[1]
    assert (mine.points, mine.superseded, mine.last and mine.last.value) == (3, 2, 3.0)
    assert mine.best is not None
    assert mine.best.value == 3.0
    [row] = compared("one", "two", branch="all").metrics
    assert (row.runs[1].points, row.runs[1].superseded) == (5, 0)
    assert row.runs[1].best is not None
    assert row.runs[1].best.value == 0.5


def test_by_time_means_are_over_seconds_since_the_run_began() -> None:
    """And by steps over those."""
    for name in ("one", "two"):
        run_id = run(name, {"loss": [1.0, 3.0]})
        client().log_metric(run_id, "loss", 3.0, T0_MS + 4_000, 2)
    assert [row.span for row in compared("one", "two").metrics] == [(0.0, 2.0)]
    [row] = compared("one", "two", by="time").metrics
    assert (row.span, row.runs[0].mean) == ((0.0, 4.0), pytest.approx((2 + 9) / 4))


def test_scores_that_were_measured_unlike_are_put_apart() -> None:
    """By the passports that lie beside them in MLflow, until unlike ones are allowed."""
    for name, count in (("one", 16), ("two", 32)):
        run_id = run(name, {"val/fid": [9.0], "val/loss": [1.0]})
        passport = Passport(metric="fid", version="1", count=count, unit="frames")
        text = encoded({"val/fid": passport})
        client().log_text(run_id, text, layout.text_path(PASSPORTS_KEY, 0, T0_MS, text))
    found = [(row.key, len(row.runs), row.apart) for row in compared("one", "two").metrics]
    assert found == [("val/fid", 1, ()), ("val/fid", 1, ("count: 16 and 32",)), ("val/loss", 2, ())]
    allowed = compared("one", "two", allow_unlike=True).metrics
    assert [(row.key, len(row.runs)) for row in allowed] == [("val/fid", 2), ("val/loss", 2)]


def test_samples_of_one_panel_are_shown_side_by_side() -> None:
    """The command names the runs, the panel and the steps that both have."""
    ids = []
    for name, steps in (("one", (0, 10, 20)), ("two", (10, 20, 30)), ("three", ())):
        ids.append(run(name))
        for step in steps:
            client().log_text(ids[-1], "{}", layout.samples_path(TITLE, step, T0_MS))
    [panel] = compared("one", "two", "three").panels
    assert (panel.title, panel.common) == (TITLE, (10, 20))
    assert panel.steps == {"A": (0, 10, 20), "B": (10, 20, 30)}
    uri = client().tracking_uri
    assert shlex.split(panel.command) == [
        "opusclip", "wall", *ids[:2], "--panel", TITLE, "--steps", "10,20", "--tracking-uri", uri
    ]  # fmt: skip
    assert compared("one", "three").panels == ()


def test_a_store_of_files_that_is_away_is_a_note() -> None:
    """All that is in the database is compared, where nobody asks how values were measured."""
    mlflow = client()
    mlflow.create_experiment("films", artifact_location="odd://nowhere")
    for name in ("one", "two"):
        run(name, {"loss": [1.0]})
    with pytest.raises(RegistryError, match="--allow-unlike does without"):
        compared("one", "two")
    found = compared("one", "two", allow_unlike=True)
    assert [row.key for row in found.metrics] == ["loss"]
    assert len(found.notes) == 1
    assert found.notes[0].startswith("samples are not compared: ")


def test_code_that_was_changed_is_a_note() -> None:
    """Two runs of one commit need not have run the same code."""
    for name in ("one", "two"):
        run(name, mlflow__source__git__commit="abc", opusclip__git_dirty="true")
    found = compared("one", "two")
    assert found.differences["code"] == ()
    assert found.notes == ("files of A, B were changed since the commit: their code may differ",)


def test_too_many_points_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before they fill the memory; fewer metrics are within the limit."""
    monkeypatch.setattr(comparing, "MOST_POINTS", 5)
    for name in ("one", "two"):
        run(name, {"a": [1.0, 2.0], "b": [1.0, 2.0]})
    with pytest.raises(DataError, match="more than 5 points: give fewer metrics by --metric"):
        compared("one", "two")
    assert [row.key for row in compared("one", "two", metrics=["a"]).metrics] == ["a"]


def test_runs_and_curves_are_there_for_pages() -> None:
    """Beside the same comparison."""
    for name in ("one", "two"):
        run(name, {"loss": [2.0, 1.0]})
    found = laid_beside(("one", "two"), tracking_uri=client().tracking_uri)
    assert found.comparison == compared("one", "two")
    assert [one.info.run_name for one in found.runs.values()] == ["one", "two"]
    assert found.curves["B"]["loss"].rows["value"].tolist() == [2.0, 1.0]
