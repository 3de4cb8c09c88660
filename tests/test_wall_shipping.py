"""The wall of a run while it is delivered: it is there at the end, whatever failed on the way."""

from pathlib import Path

import pytest

from opusclip_mlops import layout, wall_shipping
from opusclip_mlops.delivery import deliver
from opusclip_mlops.folder import RunFolder
from opusclip_mlops.panels import Panel
from opusclip_mlops.records import Batch, Metrics, RunEnded
from opusclip_mlops.sinks import open_sink
from tests.journeys import append, deliver_and_die, end, make_run
from tests.panelled import PANEL, T0_MS, panelled_run, run_of, samples
from tests.test_wall_page import content

ONE = Panel(name="one", prompts=("a",))


def wall_of(folder: RunFolder, panel: Panel = ONE) -> Path:
    """Where the wall of a run is, or would be."""
    return Path(run_of(folder).info.artifact_uri, layout.wall_path(panel.title))


def steps_on(wall: Path) -> list[int]:
    """The steps that a wall shows with a clip for each."""
    columns = content(wall.read_text())["columns"]
    return [one["step"] for one in columns if all("film" in cell for cell in one["cells"])]


def test_a_run_that_ended_has_a_wall_for_each_panel(tmp_path: Path) -> None:
    """With all steps; where it was made is tidied up."""
    folder = make_run(tmp_path)
    for step in (0, 10, 20):
        append(folder, samples(folder, step, panel=ONE) + samples(folder, step, panel=PANEL))
    end(folder)
    deliver(folder, "mlflow")
    assert steps_on(wall_of(folder)) == steps_on(wall_of(folder, PANEL)) == [0, 10, 20]
    assert list((folder.path / "walls").iterdir()) == []
    assert "run a-run" not in content(wall_of(folder).read_text())["notes"]


def test_the_wall_grows_with_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is there once the first samples are; then it waits a while; the end brings the rest."""
    monkeypatch.setattr(wall_shipping, "PAUSE_TIMES", 1e6)
    folder = make_run(tmp_path)
    sink = open_sink("mlflow", folder)
    sink.open({})
    first = sink.write(Batch(records=tuple(samples(folder, 0, panel=ONE))))
    assert first.state["walls"] == []
    assert steps_on(wall_of(folder)) == [0]
    then = sink.write(Batch(records=tuple(samples(folder, 1, panel=ONE))))
    assert then.state["walls"] == [ONE.title]
    assert steps_on(wall_of(folder)) == [0]
    sink.close(None)
    assert steps_on(wall_of(folder)) == [0, 1]


def test_a_wall_that_cannot_be_made_holds_up_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What else was logged arrives, the run ends, it is told once; the next opening makes it."""
    folder, run = panelled_run(tmp_path, [0], panel=ONE)
    wall = wall_of(folder)
    wall.unlink()
    wall.mkdir()
    append(folder, [*samples(folder, 1, panel=ONE), Metrics(T0_MS, 1, {"loss": 1.0})])
    capsys.readouterr()
    deliver(folder, "mlflow")
    run = run_of(folder)
    assert (run.info.status, run.data.metrics["loss"]) == ("FINISHED", 1.0)
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("wall ")]
    assert len(told) == 1
    assert told[0].startswith(f"wall {ONE.title}: IsADirectoryError: ")
    assert folder.progress("mlflow").rejected == 0
    assert folder.progress("mlflow").state["walls"] == [ONE.title]
    wall.rmdir()
    append(folder, [Metrics(T0_MS, 2, {"loss": 1.0})])
    deliver(folder, "mlflow")
    assert steps_on(wall) == [0, 1]


def test_a_wall_that_takes_long_goes_on_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What else was logged does not wait for it, nor does the run's end."""
    monkeypatch.setattr(wall_shipping, "MOST_S", 0)
    folder = make_run(tmp_path)
    sink = open_sink("mlflow", folder)
    sink.open({})
    given = samples(folder, 0, panel=ONE) + samples(folder, 0, panel=PANEL)
    written = sink.write(Batch(records=tuple(given)))
    assert sorted(written.state["walls"]) == sorted([ONE.title, PANEL.title])
    assert (
        f"wall {ONE.title}: DeliveryError: making it: the time is over" in capsys.readouterr().out
    )
    with monkeypatch.context() as patch:
        patch.setattr(wall_shipping, "MOST_AT_END_S", 0)
        sink.close(RunEnded("s1", "FINISHED", T0_MS + 100_000))
    assert run_of(folder).info.status == "FINISHED"
    assert not wall_of(folder).exists()
    sink.close(None)
    assert steps_on(wall_of(folder)) == steps_on(wall_of(folder, PANEL)) == [0]


def test_a_shipper_that_is_killed_loses_no_wall(tmp_path: Path) -> None:
    """Whatever was not acknowledged is given again, and the wall is due again with it."""
    folder = make_run(tmp_path)
    append(folder, samples(folder, 0, panel=ONE))
    end(folder)
    deliver_and_die(folder, "mlflow")
    wall = wall_of(folder)
    wall.unlink(missing_ok=True)
    deliver(folder, "mlflow")
    assert steps_on(wall) == [0]


def test_earlier_parts_of_a_run_are_on_the_wall_too(tmp_path: Path) -> None:
    """Who goes on with a run has its earlier clips in MLflow only."""
    _, run = panelled_run(tmp_path, [0, 5], panel=ONE)
    again = make_run(tmp_path, name="another", run_id=run.info.run_id)
    append(again, samples(again, 10, panel=ONE))
    end(again)
    deliver(again, "mlflow")
    assert steps_on(wall_of(again)) == [0, 5, 10]


def test_a_run_that_is_gone_needs_no_wall(tmp_path: Path) -> None:
    """Samples for a run that MLflow does not know are refused, as all else is."""
    folder = make_run(tmp_path, run_id="f" * 32)
    append(folder, samples(folder, 0, panel=ONE))
    end(folder)
    deliver(folder, "mlflow")
    assert folder.progress("mlflow").rejected == 2
