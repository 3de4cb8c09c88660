"""A worker of a sweep, with a real store, a real study and real programs."""

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from optuna.exceptions import StorageInternalError
from optuna.trial import TrialState, create_trial

from opusclip_mlops.errors import RegistryError
from opusclip_mlops.layout import REASON_TAG
from opusclip_mlops.sessions import process_started_s
from opusclip_mlops.sweeps import mlflow_away, storage, trial_runs
from opusclip_mlops.sweeps import worker as worker_module
from opusclip_mlops.sweeps.board import Slot
from opusclip_mlops.sweeps.claims import Claim, Claims, this_process
from opusclip_mlops.sweeps.trial_runs import STATE_TAG, TrialRuns
from opusclip_mlops.sweeps.worker import Worker, end_left
from tests.journeys import store
from tests.sweeps.small_sweeps import LOGS, claims_of, config_of, program, runs_of, study_of

SHOWS = """
import json, os, sys
with open("seen.json", "w") as file:
    json.dump({"argv": sys.argv[1:], "env": dict(os.environ)}, file)
open(os.environ["OPUSCLIP_SWEEP_VALUES"], "a").write("0 1.5\\n")
"""
BAD = "import sys; print('begun'); sys.exit('no such film: token=abcdefgh12345678')"
WHY = "exit code 1: no such film: token=***"
SILENT = "pass"
SLEEPS = "import time; time.sleep(600)"
NANS = "import os; open(os.environ['OPUSCLIP_SWEEP_VALUES'], 'a').write('0 nan\\n')"
DROPS = """
import os, sys, time
x = float(sys.argv[1].partition("=")[2])
with open(os.environ["OPUSCLIP_SWEEP_VALUES"], "a") as file:
    for step in range(3000 if x > 2 else 2):
        print(step, x, file=file, flush=True)
        time.sleep(0.01)
"""
PLAIN_COMMAND = ["${interpreter}", "-I", "-S", "${program}", "${args}"]


@pytest.fixture
def runs(tmp_path: Path) -> TrialRuns:
    """The runs of trials, below a run of this test."""
    return runs_of(tmp_path)


def work(folder: Path, runs: TrialRuns, text: str, *, count: int = 1, **more: Any) -> Worker:
    """Have one worker do all trials."""
    config = config_of(program(folder, text), command=PLAIN_COMMAND, **more)
    study = study_of(folder, config, count=count)
    worker = Worker(claims_of(study), config, runs, folder / "trials")
    worker.work()
    return worker


def test_each_trial_is_a_run_below_the_sweeps(tmp_path: Path, runs: TrialRuns) -> None:
    """With its values as params, its number, and how it ended."""
    worker = work(tmp_path, runs, LOGS, count=2)
    client = MlflowClient(store(tmp_path))
    for slot in worker._claims.board().slots:
        run = client.get_run(slot.last.user_attrs["run_id"])
        assert run.info.status == "FINISHED"
        assert run.info.run_name == f"tune-{slot.number}"
        assert run.data.tags["mlflow.parentRunId"] == runs._parent_id
        assert run.data.tags[STATE_TAG] == "complete"
        assert float(run.data.params["x"]) == slot.last.values[0]


def test_a_program_finds_its_run_and_nobody_elses(
    tmp_path: Path, runs: TrialRuns, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run by MLFLOW_RUN_ID, W&B's group, and no word of another run or of the storage."""
    ours = ("OPUSCLIP_RUN_ID", "OPUSCLIP_EXPERIMENT_NAME", "OPUSCLIP_SWEEP_STORAGE")
    for stray in (*ours, "WANDB_RUN_ID", "WANDB_NAME"):
        monkeypatch.setenv(stray, "other")
    worker = work(tmp_path, runs, SHOWS, parameters={"a": {"parameters": {"b": {"value": 1}}}})
    seen = json.loads((tmp_path / "seen.json").read_text())
    [slot] = worker._claims.board().slots
    assert seen["argv"] == ["--a={'b': 1}"]
    assert seen["env"]["MLFLOW_RUN_ID"] == slot.last.user_attrs["run_id"]
    assert seen["env"]["WANDB_RUN_GROUP"] == runs.group
    assert seen["env"]["WANDB_NAME"] == "tune-0"
    assert not [name for name, value in seen["env"].items() if value == "other"]
    assert slot.last.values == [1.5]


def test_a_program_that_fails_is_a_trial_that_failed(tmp_path: Path, runs: TrialRuns) -> None:
    """With its exit code and last words, and not tried again: the next one has other values."""
    worker = work(tmp_path, runs, BAD, count=2)
    slots = worker._claims.board().slots
    assert [one.state for one in slots] == ["failed", "failed"]
    assert [one.last.user_attrs["reason"] for one in slots] == [WHY] * 2
    assert [len(one.attempts) for one in slots] == [1, 1]
    run = MlflowClient(store(tmp_path)).get_run(slots[0].last.user_attrs["run_id"])
    assert run.info.status == "FAILED"
    assert run.data.tags["opusclip.end_reason"] == WHY


def test_a_program_that_never_logs_the_metric_has_failed(tmp_path: Path, runs: TrialRuns) -> None:
    """The metric's name is said, and what else was logged: it may be misspelt."""
    worker = work(tmp_path, runs, SILENT)
    [slot] = worker._claims.board().slots
    assert slot.last.user_attrs["reason"] == "it logged no loss"


def test_what_was_logged_in_the_metrics_stead_is_said(tmp_path: Path, runs: TrialRuns) -> None:
    """Its own metrics, and none of the machine's."""
    client = MlflowClient(store(tmp_path))
    begin = runs.begin

    def with_others(*args: Any) -> str:
        run_id = begin(*args)
        for name in ("val/loss", "acc", "system/cpu_utilization_percentage"):
            client.log_metric(run_id, name, 0.25)
        return run_id

    runs.begin = with_others  # type: ignore[method-assign]
    worker = work(tmp_path, runs, SILENT)
    [slot] = worker._claims.board().slots
    assert slot.last.user_attrs["reason"] == "it logged no loss, but acc, val/loss"


def test_what_a_program_logs_by_mlflow_itself_counts(tmp_path: Path, runs: TrialRuns) -> None:
    """Without our tracker its value is read from its run when it has ended."""
    client = MlflowClient(store(tmp_path))
    begin = runs.begin

    def with_value(*args: Any) -> str:
        run_id = begin(*args)
        client.log_metric(run_id, "loss", 0.25)
        return run_id

    runs.begin = with_value  # type: ignore[method-assign]
    worker = work(tmp_path, runs, SILENT)
    assert worker._claims.board().slots[0].last.values == [0.25]


def test_a_value_that_is_no_number_is_none(tmp_path: Path, runs: TrialRuns) -> None:
    """A trial that only ever logged NaN has failed: nothing can be compared with it."""
    worker = work(tmp_path, runs, NANS)
    [slot] = worker._claims.board().slots
    assert (slot.state, slot.last.user_attrs["reason"]) == ("failed", "it logged no loss")


def test_a_trial_that_falls_behind_is_ended(tmp_path: Path, runs: TrialRuns) -> None:
    """Its program is stopped at the band where it is worse than the best half."""
    worker = work(
        tmp_path, runs, DROPS, count=3, method="grid",
        parameters={"x": {"values": [1.0, 1.1, 9.0]}},
        early_terminate={"type": "hyperband", "min_iter": 1, "eta": 2},
    )  # fmt: skip
    slots = worker._claims.board().slots
    assert [one.state for one in slots] == ["complete", "complete", "pruned"]
    assert slots[2].last.values == [9.0]
    run = MlflowClient(store(tmp_path)).get_run(slots[2].last.user_attrs["run_id"])
    assert (run.info.status, run.data.tags[STATE_TAG]) == ("KILLED", "pruned")


def test_a_sweep_without_a_metric_runs_all_of_its_trials(tmp_path: Path, runs: TrialRuns) -> None:
    """Nothing is compared; what counts is that they end well."""
    config = {"method": "grid", "parameters": {"x": {"values": [1, 2]}}}
    program(tmp_path, SILENT)
    study = study_of(tmp_path, config_without_metric(tmp_path, config), count=2)
    Worker(claims_of(study), study.config, runs, tmp_path / "trials").work()
    assert [one.state for one in claims_of(study).board().slots] == ["complete", "complete"]


def config_without_metric(folder: Path, more: dict[str, Any]) -> Any:
    from opusclip_mlops.sweeps.schema import sweep_of

    return sweep_of({"program": str(folder / "train.py"), "command": PLAIN_COMMAND, **more})


def stopped(
    folder: Path, runs: TrialRuns, before: Callable[[str], object] = lambda _: None
) -> Slot:
    """A trial whose worker is asked to end once it has logged; `before` has its run."""
    config = config_of(program(folder, DROPS), command=PLAIN_COMMAND, method="grid",
                       parameters={"x": {"values": [9.0]}})  # fmt: skip
    study = study_of(folder, config, count=1)
    worker = Worker(claims_of(study), config, runs, folder / "trials")
    learn = worker._learn

    def learn_and_stop(*args: Any) -> bool:
        learn(*args)
        if (folder / "trials" / "00000-1.values").exists() and not worker.is_stopping:
            before(worker._run_id)
            worker.is_stopping = True
        return False

    worker._learn = learn_and_stop  # type: ignore[method-assign]
    worker.work()
    [slot] = claims_of(study).board().slots
    return slot


def test_a_worker_that_is_stopped_leaves_its_trial_to_others(
    tmp_path: Path, runs: TrialRuns
) -> None:
    """The program is ended; the trial waits for its next attempt, with the same values."""
    slot = stopped(tmp_path, runs)
    assert (slot.state, len(slot.attempts)) == ("waiting", 2)
    run = MlflowClient(store(tmp_path)).get_run(slot.attempts[0].user_attrs["run_id"])
    assert (run.info.status, run.data.tags[STATE_TAG]) == ("KILLED", "stopped")
    assert run.data.tags[REASON_TAG] == "its worker was stopped"


def test_where_mlflow_refuses_the_trial_fails_and_says_why(tmp_path: Path, runs: TrialRuns) -> None:
    """No program is started that nobody could find again."""
    runs.experiment_id = "987654321"
    worker = work(tmp_path, runs, SHOWS)
    [slot] = worker._claims.board().slots
    assert slot.state == "failed"
    assert "cannot make the run of trial 0" in slot.last.user_attrs["reason"]
    assert not (tmp_path / "seen.json").exists()


def away(monkeypatch: pytest.MonkeyPatch, runs: TrialRuns, name: str, times: int) -> None:
    """Have MLflow be away for a call of the runs, so often."""
    real, faults = getattr(runs, name), [None] * times

    def call(*args: Any) -> Any:
        if faults:
            faults.pop()
            raise RegistryError("connection refused") from MlflowException("connection refused")
        return real(*args)

    monkeypatch.setattr(runs, name, call)


def test_mlflow_away_for_a_while_uses_up_no_trial(
    tmp_path: Path, runs: TrialRuns, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is waited for: when a run is made, read and ended."""
    monkeypatch.setattr(mlflow_away, "_PAUSE_S", 0.0)
    for name in ("begin", "latest", "end"):
        away(monkeypatch, runs, name, 3)
    worker = work(tmp_path, runs, SILENT)
    [slot] = worker._claims.board().slots
    assert len(slot.attempts) == 1
    assert slot.last.user_attrs["reason"] == "it logged no loss"
    run = MlflowClient(store(tmp_path)).get_run(slot.last.user_attrs["run_id"])
    assert run.info.status == "FAILED"


def test_mlflow_away_for_long_leaves_the_trial_to_whoever_goes_on(
    tmp_path: Path, runs: TrialRuns, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker ends with MLflow's reason; the trial waits, however often that comes."""
    monkeypatch.setattr(mlflow_away, "_PAUSE_S", 0.0)
    config = config_of(program(tmp_path, LOGS), command=PLAIN_COMMAND)
    study = study_of(tmp_path, config, count=2)
    with monkeypatch.context() as patched:
        patched.setattr(worker_module, "_TELL_WAIT_S", -1.0)
        away(patched, runs, "begin", 5)
        for _ in range(5):
            with pytest.raises(RegistryError, match="connection refused"):
                Worker(claims_of(study), config, runs, tmp_path / "trials").work()
    Worker(claims_of(study), config, runs, tmp_path / "trials").work()
    slots = claims_of(study).board().slots
    assert [one.state for one in slots] == ["complete", "complete"]
    assert [len(one.attempts) for one in slots] == [6, 1]


def test_a_storage_that_says_nothing_holds_up_no_stop(
    tmp_path: Path, runs: TrialRuns, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is connected and silent: the program of the trial is ended, and the worker ends."""
    config = config_of(program(tmp_path, SLEEPS), command=PLAIN_COMMAND)
    mine = claims_of(study_of(tmp_path, config, count=1))
    worker, silent = Worker(mine, config, runs, tmp_path / "trials"), threading.Event()
    monkeypatch.setattr(worker_module, "_BEAT_S", 0.0)
    monkeypatch.setattr(worker_module, "_LAST_WORDS_S", 0.2)

    def say_nothing(_claim: Claim) -> bool:
        silent.set()
        return threading.Event().wait()

    monkeypatch.setattr(mine, "is_still_mine", say_nothing)
    thread = threading.Thread(target=worker.work, daemon=True)
    thread.start()
    assert silent.wait(60)
    worker.is_stopping = True
    thread.join(60)
    assert not thread.is_alive()


def test_a_trial_that_was_told_complete_is_not_lost_when_its_worker_is_stopped(
    tmp_path: Path, runs: TrialRuns, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The storage took its end and answers late: the run ends with the sweep, as complete."""
    monkeypatch.setattr(worker_module, "_LAST_WORDS_S", 0.2)
    config = config_of(program(tmp_path, LOGS), command=PLAIN_COMMAND)
    mine = claims_of(study_of(tmp_path, config, count=1))
    worker, tell, answers = Worker(mine, config, runs, tmp_path / "trials"), mine.end, []

    def tell_slowly(*args: Any, **more: Any) -> bool:
        answers.append(tell(*args, **more))
        worker.is_stopping = True
        left.wait(60)
        return True

    left, leave = threading.Event(), worker._leave
    monkeypatch.setattr(worker, "_leave", lambda claim: (leave(claim), left.set()))
    monkeypatch.setattr(mine, "end", tell_slowly)
    worker.work()
    [slot] = mine.board().slots
    assert (slot.state, answers) == ("complete", [True])
    run = MlflowClient(store(tmp_path)).get_run(slot.last.user_attrs["run_id"])
    assert (run.info.status, run.data.tags.get(STATE_TAG)) == ("RUNNING", None)
    runs.settle(mine.board().ended())
    run = MlflowClient(store(tmp_path)).get_run(slot.last.user_attrs["run_id"])
    assert (run.info.status, run.data.tags[STATE_TAG]) == ("FINISHED", "complete")


def test_a_run_that_could_not_be_told_of_is_told_with_the_end(
    tmp_path: Path, runs: TrialRuns, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The storage was away when the run was made: the trial's result names it all the same."""
    config = config_of(program(tmp_path, LOGS), command=PLAIN_COMMAND)
    mine = claims_of(study_of(tmp_path, config, count=1))
    _fail_once(monkeypatch, mine, "note")
    Worker(mine, config, runs, tmp_path / "trials").work()
    [slot] = mine.board().slots
    assert slot.state == "complete"
    assert slot.last.user_attrs["run_id"] == runs.found(0, 1)


@pytest.mark.parametrize("is_delivered", [True, False])
@pytest.mark.parametrize(("status", "state"), [("FINISHED", "complete"), ("KILLED", "waiting")])
def test_a_trial_whose_run_has_finished_is_complete_when_its_worker_is_stopped(
    tmp_path: Path, runs: TrialRuns, monkeypatch: pytest.MonkeyPatch,
    status: str, state: str, is_delivered: bool,
) -> None:  # fmt: skip
    """Its tracker said so, and MLflow may not know it yet; one that was cut off is no result."""
    client = MlflowClient(store(tmp_path))

    def end_run(run_id: str) -> None:
        if is_delivered:
            client.log_metric(run_id, "loss", 9.0)
            client.set_terminated(run_id, status)
        else:
            left = SimpleNamespace(end_status=status)
            monkeypatch.setattr(trial_runs, "status", lambda _: [left])

    slot = stopped(tmp_path, runs, end_run)
    assert (slot.state, slot.last.values) == (state, [9.0] if state == "complete" else None)
    run = client.get_run(slot.attempts[0].user_attrs["run_id"])
    ended = "complete" if state == "complete" else "stopped"
    assert (run.info.status, run.data.tags[STATE_TAG]) == (status, ended)


def test_a_storage_that_is_away_for_a_moment_ends_no_worker(
    tmp_path: Path, runs: TrialRuns, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each question is asked again; a trial that was begun and not claimed is begun again."""
    monkeypatch.setattr(storage, "_PAUSE_S", 0.0)
    config = config_of(
        program(tmp_path, LOGS), command=PLAIN_COMMAND,
        early_terminate={"type": "hyperband", "min_iter": 1},
    )  # fmt: skip
    mine = claims_of(study_of(tmp_path, config, count=2))
    worker = Worker(mine, config, runs, tmp_path / "trials")
    for name in ("is_over", "next", "_values", "note", "report", "is_behind", "end"):
        _fail_once(monkeypatch, mine, name)
    worker.work()
    assert [one.state for one in mine.board().slots] == ["complete", "complete"]
    assert [len(one.attempts) for one in mine.board().slots] == [2, 1]


def _fail_once(monkeypatch: pytest.MonkeyPatch, claims: Claims, name: str) -> None:
    real, faults = getattr(claims, name), [StorageInternalError("away")]

    def call(*args: Any) -> Any:
        if faults:
            raise faults.pop()
        return real(*args)

    monkeypatch.setattr(claims, name, call)


def slot_of(attrs: dict[str, Any]) -> Slot:
    """A trial that a lost worker ran."""
    return Slot(0, (create_trial(state=TrialState.RUNNING, user_attrs=attrs),))


def test_a_run_that_its_worker_could_not_tell_of_is_ended(tmp_path: Path, runs: TrialRuns) -> None:
    """Killed between making the run and saying which it is: it is found by the attempt."""
    run_id = runs.begin(0, 1, {})
    end_left(runs, slot_of({"worker": this_process()}))
    assert MlflowClient(store(tmp_path)).get_run(run_id).info.status == "KILLED"
    end_left(runs, slot_of({"worker": this_process(), "attempt": 2}))


def test_nothing_of_another_machine_is_ended_here(tmp_path: Path, runs: TrialRuns) -> None:
    """A process here may have the number of a lost one there; its run is ended all the same."""
    with subprocess.Popen([sys.executable, "-c", SLEEPS], start_new_session=True) as process:
        group = {"pid": process.pid, "started_s": process_started_s(process.pid)}
        run_id = runs.begin(0, 1, {})
        attrs = {"worker": this_process(), "group": group, "run_id": run_id}
        far = attrs | {"worker": {**this_process(), "host": "elsewhere"}}
        end_left(runs, slot_of(far))
        assert process.poll() is None
        assert MlflowClient(store(tmp_path)).get_run(run_id).info.status == "KILLED"
        end_left(runs, slot_of(attrs))
        assert process.wait(60) == -9
