"""A sweep from its file to what came of it, with workers in processes of their own."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from opusclip_mlops import open_sweeps, sweep_cli, sweeps
from opusclip_mlops.errors import ConfigError, OpusclipError
from opusclip_mlops.layout import REASON_TAG
from opusclip_mlops.sessions import process_started_s
from opusclip_mlops.sweeps.board import losses_of
from opusclip_mlops.sweeps.claims import Claim, is_process_gone, this_process
from opusclip_mlops.sweeps.crew import Crew
from opusclip_mlops.sweeps.results import BEST_TAG
from opusclip_mlops.sweeps.schema import read_sweep
from opusclip_mlops.sweeps.studies import Study, open_study
from opusclip_mlops.sweeps.trial_runs import STATE_TAG, TrialRuns
from tests.journeys import store, wait_until
from tests.sweeps.small_sweeps import LOGS, claims_of, program, python

Said = Callable[..., tuple[int, str]]

SLOW = (
    LOGS
    + """
    while not os.path.exists("go"):
        time.sleep(0.05)
"""
)


def sweep_file(folder: Path, text: str = LOGS) -> Path:
    program(folder, text)
    path = folder / "sweep.yaml"
    path.write_text(
        "method: grid\nname: tune\nmetric: {name: loss, goal: maximize}\n"
        "command: ['${interpreter}', '-I', '-S', '${program}', '${args}']\n"
        f"program: {folder}/train.py\n"
        "parameters:\n  x: {values: [1.0, 5.0, 3.0, 4.0]}\n  steps: {value: 2}\n"
    )
    return path


def test_a_sweep_is_one_run_with_all_that_came_of_it(tmp_path: Path) -> None:
    """Two workers; the best is a tag, the pictures are artifacts, the values are points."""
    seen: list[int] = []
    begun: list[tuple[str, str, int]] = []
    found = sweeps.sweep(
        sweep_file(tmp_path), workers=2, tracking_uri=store(tmp_path),
        show=lambda _, done, _of: seen.append(done),
        say=lambda name, run_id: begun.append((name, run_id, len(seen))),
    )  # fmt: skip
    assert begun == [(found.name, found.run_id, 0)], "named once, before anything is under way"
    assert [one.state for one in found.trials] == ["complete"] * 4
    assert found.best
    assert (found.best.number, found.best.value, found.best.values["x"]) == (1, 2.5, 5.0)
    assert found.importances == {"x": 1.0}
    assert seen[-1] == 4
    client = MlflowClient(store(tmp_path))
    parent = client.get_run(found.run_id)
    assert (parent.info.status, parent.info.run_name) == ("FINISHED", "tune")
    assert parent.data.tags[BEST_TAG] == found.best.run_id
    assert {one.path for one in client.list_artifacts(found.run_id, "sweep")} == {
        f"sweep/{name}"
        for name in ("best.json", "history.png", "importance.json", "importance.png",
                     "sweep.yaml", "trials.json")
    }  # fmt: skip
    points = client.get_metric_history(found.run_id, "sweep/best")
    assert [(one.step, one.value) for one in points] == [(0, 0.5), (1, 2.5), (2, 2.5), (3, 2.5)]
    children = client.search_runs(["1"], f"tags.`mlflow.parentRunId` = '{found.run_id}'")
    assert {one.info.status for one in children} == {"FINISHED"}
    assert sorted(float(one.data.params["x"]) for one in children) == [1.0, 3.0, 4.0, 5.0]
    _goes_on_with_more(found, tmp_path)


def _goes_on_with_more(found: sweeps.SweepResult, folder: Path) -> None:
    """A sweep that is over is over, whoever goes on with it: nothing is run again."""
    MlflowClient(store(folder)).update_run(found.trials[0].run_id, status="RUNNING")
    again = sweeps.sweep(resume=found.name, tracking_uri=store(folder))
    assert [one.run_id for one in again.trials] == [one.run_id for one in found.trials]
    client = MlflowClient(store(folder))
    # MLflow may have been away when this one's end was told.
    assert client.get_run(found.trials[0].run_id).info.status == "FINISHED"
    assert client.get_run(found.run_id).info.status == "FINISHED"
    assert len(client.get_metric_history(found.run_id, "sweep/best")) == 4


def begun(folder: Path) -> "tuple[subprocess.Popen[bytes], str]":
    """A sweep with two trials under way, in a process of its own; and its name."""
    code = (
        "from pathlib import Path; from opusclip_mlops import sweeps;"
        f"sweeps.sweep(Path({str(sweep_file(folder, SLOW))!r}), workers=2,"
        f" tracking_uri={store(folder)!r})"
    )
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=folder, env=environment, stderr=subprocess.DEVNULL
    )
    wait_until(lambda: len(list(folder.glob(".opusclip/sweeps/*/trials/*.values"))) == 2)
    [place] = folder.glob(".opusclip/sweeps/*")
    return process, place.name


def _is_named_and_ended(said: Said, name: str, folder: Path) -> None:
    """`status` names the sweep, and `recover --all` ends its run and those of its trials."""
    [left] = open_sweeps.cut_off()
    client = MlflowClient(store(folder))
    assert client.get_run(left.run_id).info.status == "RUNNING"
    # Nothing else is on its way from here: then both would name it on stderr alone.
    sweep_cli.tell_cut_off()
    assert said("recover", "--all")[0] == 0
    run = client.get_run(left.run_id)
    assert (run.info.status, open_sweeps.cut_off()) == ("KILLED", [])
    assert run.data.tags[REASON_TAG].endswith(f"go on: opusclip sweep --resume {name}")
    trials = client.search_runs(["1"], f"tags.`mlflow.parentRunId` = '{left.run_id}'")
    assert {one.info.status for one in trials} == {"KILLED"}


def test_killed_workers_and_a_killed_sweep_lose_nothing(said: Said, tmp_path: Path) -> None:
    """A worker by -9, then the sweep itself by -9: each trial is there once when it has gone on."""
    process, name = begun(tmp_path)
    study = open_study(str(tmp_path / f".opusclip/sweeps/{name}/study.journal"), name)
    mine = claims_of(study)
    worker = mine.board().slots[0].last.user_attrs["worker"]
    os.kill(worker["pid"], signal.SIGKILL)
    wait_until(lambda: len(mine.board().slots[0].attempts) == 2)
    wait_until(lambda: mine.board().slots[0].last.user_attrs.get("group") is not None)
    assert open_sweeps.cut_off() == [], "its command lives"
    process.kill()
    process.wait()
    running = [one.last.user_attrs for one in mine.board().slots]
    wait_until(lambda: all(is_process_gone(one["worker"]) for one in running if "worker" in one))
    _is_named_and_ended(said, name, tmp_path)
    (tmp_path / "go").touch()
    found = sweeps.sweep(resume=name, workers=2, tracking_uri=store(tmp_path))
    assert [one.state for one in found.trials] == ["complete"] * 4
    assert found.is_over
    assert [one.values["x"] for one in found.trials] == [1.0, 5.0, 3.0, 4.0]
    assert found.trials[0].attempts >= 3
    client = MlflowClient(store(tmp_path))
    children = client.search_runs(["1"], f"tags.`mlflow.parentRunId` = '{found.run_id}'")
    statuses = [one.info.status for one in children]
    assert statuses.count("FINISHED") == 4
    assert statuses.count("KILLED") == len(statuses) - 4
    assert len(list((tmp_path / f".opusclip/sweeps/{name}/trials").glob("*.log"))) == len(statuses)


def left(folder: Path, worker: dict[str, Any], place: str | None = None) -> tuple[Study, str, str]:
    """A sweep whose command was killed, where it is, and the run of its trial, of a worker."""
    client = MlflowClient(store(folder))
    config = read_sweep(sweep_file(folder))
    study, place = sweeps._begun(client, config, 1, place, "sweeps")
    sweeps._marked(client, study, place).close()
    mine = claims_of(study)
    mine._me = worker
    claim = mine.next()
    assert claim
    runs = TrialRuns(client, study.parent_run_id, study.name)
    return study, place, runs.begin(claim.number, claim.attempt, claim.values)


def statuses(folder: Path, *run_ids: str) -> list[str]:
    client = MlflowClient(store(folder))
    return [client.get_run(one).info.status for one in run_ids]


EARLIER = {**this_process(), "host": f"{socket.gethostname()} earlier pid:[1]"}
DEAD = {**this_process(), "started_s": 1.0}


@pytest.mark.parametrize(("worker", "place"), [(EARLIER, None), (DEAD, "there/s.journal")])
def test_a_sweep_that_was_cut_off_is_ended(
    tmp_path: Path, worker: dict[str, Any], place: str | None
) -> None:
    """When the machine was begun anew, too; and when the user has named a file for its study."""
    study, _, run_id = left(tmp_path, worker, place)
    assert [one["is_ended"] for one in sweep_cli.settle_cut_off()] == [True]
    assert statuses(tmp_path, study.parent_run_id, run_id) == ["KILLED", "KILLED"]
    assert open_sweeps.cut_off() == []
    found = claims_of(open_study(sweeps._place_of(study.name, None), study.name)).board()
    assert [one.state for one in found.slots] == ["waiting"]


def test_a_sweep_is_found_where_its_study_was_last(tmp_path: Path) -> None:
    """The user has moved its file; one that lies in the sweep's own folder is never replaced."""
    own = tmp_path / ".opusclip/sweeps/s/study.journal"
    own.parent.mkdir(parents=True)
    for name in ("a", "b"):
        (tmp_path / name).touch()
        sweeps._link("s", Path(name))
        assert sweeps._place_of("s", None) == str(tmp_path / name)
    sweeps._link("s", own)
    assert own.readlink() == tmp_path / "b"
    own.unlink()
    own.write_text("own")
    sweeps._link("s", Path("a"))
    assert own.read_text() == "own"


def stop(*_: object, **__: object) -> None:
    """What a user does at once."""
    raise KeyboardInterrupt


def test_who_is_stopped_before_it_has_workers_ends_the_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As its study is read, which may take long: nobody is left who would."""
    study, place, _ = left(tmp_path, DEAD)
    monkeypatch.setattr(Crew, "__init__", stop)
    sweeps._worked(MlflowClient(store(tmp_path)), study, place, 1, lambda *_: None)
    assert statuses(tmp_path, study.parent_run_id) == ["KILLED"]


def test_who_is_stopped_before_it_knows_of_the_dead_leaves_the_sweep_to_be_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its run goes on as long as another machine may work at it, and `recover` finds it."""
    study, place, _ = left(tmp_path, EARLIER)
    monkeypatch.setattr(Crew, "work", stop)
    sweeps._worked(MlflowClient(store(tmp_path)), study, place, 1, lambda *_: None)
    assert statuses(tmp_path, study.parent_run_id) == ["RUNNING"]
    assert [one["is_ended"] for one in sweep_cli.settle_cut_off()] == [True]
    assert statuses(tmp_path, study.parent_run_id) == ["KILLED"]
    assert open_sweeps.cut_off() == []


@pytest.mark.parametrize(
    ("worker", "status"), [(DEAD, "KILLED"), (this_process(), "RUNNING")], ids=["alone", "others"]
)
def test_a_sweep_that_has_no_room_here_is_as_others_leave_it(
    tmp_path: Path, worker: dict[str, Any], status: str
) -> None:
    """Nobody would find it without a mark, so it ends unless others work at it."""
    study, place, _ = left(tmp_path, worker, "there/s.journal")
    folder = tmp_path / ".opusclip/sweeps" / study.name
    folder.rename(tmp_path / "away")
    folder.touch()
    with pytest.raises(OpusclipError, match=r"cannot begin: .*exists"):
        sweeps._worked(MlflowClient(store(tmp_path)), study, place, 1, lambda *_: None)
    assert statuses(tmp_path, study.parent_run_id) == [status]


def test_what_workers_that_were_ended_by_force_had_is_left_to_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not run on behind a sweep that was stopped, and neither does its program."""
    study, place, run_id = left(tmp_path, DEAD)
    monkeypatch.setattr(Crew, "work", stop)
    with subprocess.Popen(python("-c", "input()"), stdin=subprocess.PIPE, process_group=0) as left_:
        group = {"pid": left_.pid, "started_s": process_started_s(left_.pid)}
        claims_of(study).note(Claim(0, 1, 0, {}), "group", group)
        found = sweeps._worked(MlflowClient(store(tmp_path)), study, place, 1, lambda *_: None)
        assert left_.wait(60) == -signal.SIGKILL
    assert [one.state for one in found.trials] == ["waiting"]
    # Who was stopped was not lost: however often, its trial is tried again.
    assert [losses_of(one.last) for one in claims_of(study).board().slots] == [0]
    assert statuses(tmp_path, study.parent_run_id, run_id) == ["KILLED", "KILLED"]
    assert how_it_ended(tmp_path, run_id) == ("stopped", "its worker was stopped")


def how_it_ended(folder: Path, run_id: str) -> tuple[str, str]:
    tags = MlflowClient(store(folder)).get_run(run_id).data.tags
    return tags[STATE_TAG], tags[REASON_TAG]


def fall(*_: object) -> None:
    """What comes of workers that are struck again and again."""
    raise OpusclipError("the workers could not go on")


def test_a_worker_that_nobody_stopped_was_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was the last one, and the sweep ends with it: its trial has lost a worker all the same."""
    study, place, run_id = left(tmp_path, DEAD)
    monkeypatch.setattr(Crew, "work", fall)
    with pytest.raises(OpusclipError, match="could not go on"):
        sweeps._worked(MlflowClient(store(tmp_path)), study, place, 1, lambda *_: None)
    assert [losses_of(one.last) for one in claims_of(study).board().slots] == [1]
    assert how_it_ended(tmp_path, run_id) == ("lost", "its worker was lost")


def test_a_count_above_the_files_cap_is_told_to_be_in_vain(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the beginning, and when the sweep goes on: `run_cap` holds, as it does at W&B."""
    begun: list[Study] = []
    monkeypatch.setattr(sweeps, "_worked", lambda _, study, *__: begun.append(study))
    path, uri = sweep_file(tmp_path), store(tmp_path)
    path.write_text(f"run_cap: 3\n{path.read_text()}")
    sweeps.sweep(path, count=2, tracking_uri=uri)
    [name] = (one.name for one in begun)
    assert capsys.readouterr() == ("", "")
    sweeps.sweep(resume=name, count=5, tracking_uri=uri)
    sweeps.sweep(path, count=4, tracking_uri=uri)
    said = "count {} is more than the file's run_cap: 3 trials at most\n"
    assert capsys.readouterr() == ("", said.format(5) + said.format(4))
    assert [one.count for one in begun] == [2, 3, 3]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "one of both"),
        ({"file": Path("x"), "resume": "y"}, "one of both"),
        ({"resume": "../x"}, "is no name of a sweep"),
        ({"resume": "../x", "storage": "grpc://h:1"}, "is no name of a sweep"),
        ({"resume": "other"}, "no sweep other in .opusclip/sweeps"),
        ({"file": Path("x"), "workers": 0}, "workers must be from 1"),
        ({"file": Path("x"), "count": 0}, "count must be 1"),
    ],
)
def test_wrong_use_is_refused(given: dict[str, object], said: str, tmp_path: Path) -> None:
    """Before MLflow is asked for anything."""
    with pytest.raises(ConfigError, match=said):
        sweeps.sweep(**given, tracking_uri=store(tmp_path))  # type: ignore[arg-type]


def test_what_the_engine_cannot_do_is_refused_before_anything_starts(tmp_path: Path) -> None:
    """No run is made, and no folder."""
    path = tmp_path / "sweep.yaml"
    path.write_text(json.dumps({"method": "custom", "parameters": {"x": {"value": 1}}}))
    with pytest.raises(ConfigError, match="method: engine optuna can't do custom"):
        sweeps.sweep(path, tracking_uri=store(tmp_path))
    assert MlflowClient(store(tmp_path)).get_experiment_by_name("sweeps") is None
    assert not (tmp_path / ".opusclip").exists()


def test_a_program_that_is_not_there_is_refused_before_anything_starts(tmp_path: Path) -> None:
    """A misspelt file is one line, and not a trial that fails over and over."""
    path = sweep_file(tmp_path)
    path.write_text(path.read_text().replace("train.py", "trian.py"))
    with pytest.raises(ConfigError, match=r"program: there is no trian\.py in .*: train\.py\?"):
        sweeps.sweep(path, tracking_uri=store(tmp_path))
    assert MlflowClient(store(tmp_path)).get_experiment_by_name("sweeps") is None
