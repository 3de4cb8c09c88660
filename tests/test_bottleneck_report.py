"""Facts about `opusclip_mlops.bottleneck_report`: real runs, read back from MLflow and judged."""

from dataclasses import dataclass
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import FileInfo
from PIL import Image

from opusclip_mlops.bottleneck_report import bottlenecks, log_report, write_picture
from opusclip_mlops.errors import DataError, RegistryError
from tests.journeys import store
from tests.timed_runs import timed_run


@dataclass
class Runs:
    """A store with runs of three kinds."""

    uri: str
    client: MlflowClient
    waiting: str
    computing: str
    empty: str


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """One waits for data most of the time, one computes, one timed nothing."""
    folder = tmp_path_factory.mktemp("timed")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        waiting = timed_run(folder, patch, name="waiting", wait_s=0.1, work_s=0.01)
        computing = timed_run(folder, patch, name="computing", wait_s=0.001, work_s=0.05)
    client = MlflowClient(store(folder))
    empty = client.create_run("0", run_name="empty").info.run_id
    return Runs(store(folder), client, waiting, computing, empty)


def test_a_loop_whose_loader_sleeps_is_limited_by_data(runs: Runs) -> None:
    """The share is what was slept of what was measured."""
    found = bottlenecks("waiting", tracking_uri=runs.uri)
    assert (found.run_id, found.called, found.report.limit) == (runs.waiting, "waiting", "data")
    figures = found.report.figures
    assert figures.shares["data"] >= 1.0 / figures.seconds
    assert 0 < figures.shares["forward"] < figures.shares["data"]
    [data] = [one for one in figures.spent if one.called == "loop/data"]
    # The loader's beginning and the end of its batches are waited for, too.
    assert data.uses == 12


def test_a_loop_that_computes_is_limited_by_that(runs: Runs) -> None:
    """Its longest operation comes first."""
    report = bottlenecks(runs.computing, tracking_uri=runs.uri).report
    assert report.limit == "compute"
    assert report.rows[0][:2] == ["loop/forward", 10]


def test_what_changed_against_another_run_is_told(runs: Runs) -> None:
    """A step in milliseconds, in this run and in that one."""
    report = bottlenecks("waiting", against="computing", tracking_uri=runs.uri).report
    assert report.against == "computing"
    changed = {one.text.partition(":")[0]: one for one in report.findings if one.kind == "changed"}
    assert report.figures.steps > 0
    assert changed["data"].figure > 0
    assert changed["forward"].figure < 0


def test_a_run_is_compared_with_its_parent(runs: Runs) -> None:
    """Without being told to; a parent in which nothing was timed is none to compare with."""
    runs.client.set_tag(runs.waiting, "mlflow.parentRunId", runs.computing)
    assert bottlenecks("waiting", tracking_uri=runs.uri).report.against == "computing"
    runs.client.set_tag(runs.waiting, "mlflow.parentRunId", runs.empty)
    assert bottlenecks("waiting", tracking_uri=runs.uri).report.against == ""
    runs.client.delete_tag(runs.waiting, "mlflow.parentRunId")


def test_else_with_the_run_in_production(runs: Runs) -> None:
    """Of the model that it made a version of; by itself it is not compared with itself."""
    runs.client.create_registered_model("kite")
    for run_id in (runs.computing, runs.waiting):
        runs.client.create_model_version("kite", source="s3://models/none", run_id=run_id)
    assert bottlenecks("waiting", tracking_uri=runs.uri).report.against == ""
    runs.client.transition_model_version_stage("kite", "1", "Production")
    assert bottlenecks("waiting", tracking_uri=runs.uri).report.against == "computing"
    assert bottlenecks("computing", tracking_uri=runs.uri).report.against == ""


def test_it_can_be_put_into_the_run(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a text, as a table that MLflow reads, and as a picture in its grid."""
    found = bottlenecks("computing", tracking_uri=runs.uri)
    before = {one.path for one in every_file(runs, runs.computing)}
    log_report(found)
    files = {one.path: one for one in every_file(runs, runs.computing) if one.path not in before}
    [text] = [path for path in files if path.startswith("text/")]
    local = runs.client.download_artifacts(runs.computing, text, str(tmp_path))
    assert Path(local).read_text() == found.report.text()
    [table] = [path for path in files if path.startswith("tables/")]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", runs.uri)
    experiment_id = runs.client.get_run(runs.computing).info.experiment_id
    read = runs.client.load_table(experiment_id, table, run_ids=[runs.computing])
    assert list(read["operation"]) == [row[0] for row in found.report.rows]
    [still] = [path for path in files if path.endswith(".png")]
    with Image.open(runs.client.download_artifacts(runs.computing, still, str(tmp_path))) as seen:
        assert seen.width > 300


def every_file(runs: Runs, run_id: str) -> list[FileInfo]:
    """All artifacts of a run."""
    found: list[FileInfo] = []
    folders = [""]
    while folders:
        listed = runs.client.list_artifacts(run_id, folders.pop())
        folders += [one.path for one in listed if one.is_dir]
        found += [one for one in listed if not one.is_dir]
    return found


def test_a_picture_is_drawn_into_a_file(runs: Runs, tmp_path: Path) -> None:
    """Its ending says which kind; one that is unknown, or a folder that is not there, is told."""
    found = bottlenecks("waiting", tracking_uri=runs.uri)
    write_picture(found, tmp_path / "a.svg")
    assert "loop/data" in (tmp_path / "a.svg").read_text()
    for path in (tmp_path / "a.xyz", tmp_path / "none" / "a.png"):
        with pytest.raises(DataError, match="cannot be written"):
            write_picture(found, path)


def test_a_run_without_figures_is_told(runs: Runs) -> None:
    """By its name and with what to do; so is one that is not there."""
    with pytest.raises(DataError, match="nothing was timed in run empty: call tracker"):
        bottlenecks("empty", tracking_uri=runs.uri)
    with pytest.raises(DataError, match="run empty"):
        bottlenecks("waiting", against="empty", tracking_uri=runs.uri)
    with pytest.raises(RegistryError, match="'nobody'"):
        bottlenecks("nobody", tracking_uri=runs.uri)


def test_of_many_ranks_the_one_in_their_midst_is_judged(runs: Runs) -> None:
    """Where the ranks' figures are merged, the report is that of the medians."""
    many = runs.client.create_run("0", run_name="many").info.run_id
    for key in runs.client.get_run(runs.waiting).data.metrics:
        for one in runs.client.get_metric_history(runs.waiting, key):
            at = {"timestamp": one.timestamp, "step": one.step}
            for name, value in (("p50", one.value), ("max", 1e9), ("slowest_rank", 3.0)):
                runs.client.log_metric(many, f"{key}/{name}", value, **at)
    found = bottlenecks(many, tracking_uri=runs.uri).report
    alone = bottlenecks(runs.waiting, tracking_uri=runs.uri).report
    assert (found.limit, found.rows) == (alone.limit, alone.rows)
