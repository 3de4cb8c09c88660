"""One trial of W&B's, without W&B."""

import os
import signal
import threading
from pathlib import Path

from mlflow import MlflowClient

from opusclip_mlops.layout import MIRROR_ID_TAG
from opusclip_mlops.sweeps.wandb_engine import Spec, kept_outcomes
from opusclip_mlops.sweeps.wandb_trial import WandbTrial, flattened, judged
from tests.journeys import store, wait_until
from tests.sweeps.small_sweeps import LOGS, config_of, program, runs_of

COMMAND = ["${interpreter}", "-I", "-S", "${program}", "${args}"]
SLEEPS = "import time; time.sleep(600)"


def trial_of(folder: Path, text: str, tree: dict[str, object]) -> WandbTrial:
    config = config_of(program(folder, text), command=COMMAND)
    runs = runs_of(folder)
    spec = Spec("s", runs._parent_id, config.document, str(folder / "sweep"))
    assert Spec.read(str(spec.write())) == spec
    return WandbTrial(spec, runs, "w1", tree)


def test_its_run_is_mirrored_to_the_run_that_wandb_waits_for(tmp_path: Path) -> None:
    """By the name that every mirror of the run has."""
    assert trial_of(tmp_path, LOGS, {"x": 0.5}).run() == 0
    [found] = kept_outcomes(tmp_path / "sweep")
    assert (found.state, found.value, found.values) == ("complete", 0.5, {"x": 0.5})
    run = MlflowClient(store(tmp_path)).get_run(found.run_id)
    assert run.data.tags[MIRROR_ID_TAG] == "w1"
    assert run.data.params == {"x": "0.5"}


def test_a_trial_that_wandb_stops_is_pruned(tmp_path: Path) -> None:
    """Its program ends with it."""
    trial = trial_of(tmp_path, SLEEPS, {"x": 0.5})
    log = tmp_path / "sweep" / "trials" / "w1.log"

    def stop() -> None:
        wait_until(log.exists)
        wait_until(lambda: signal.getsignal(signal.SIGTERM) not in (signal.SIG_DFL, before))
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=stop)
    thread.start()
    try:
        assert trial.run() == -15
    finally:
        signal.signal(signal.SIGTERM, before)
        thread.join()
    [found] = kept_outcomes(tmp_path / "sweep")
    assert (found.state, found.reason) == ("pruned", "W&B stopped it")


def test_where_it_cannot_begin_the_reason_is_kept(tmp_path: Path) -> None:
    """Rather than lost in an agent's log."""
    trial = trial_of(tmp_path, LOGS, {"x": 0.5})
    trial._runs.experiment_id = "987654321"
    assert trial.run() == 2
    [found] = kept_outcomes(tmp_path / "sweep")
    assert found.state == "failed"
    assert "cannot make the run of trial w1" in found.reason


def test_values_are_named_by_their_paths() -> None:
    """As the trials of the other engine are."""
    nested = {"a": {"parameters": {"b": {"value": 1}, "c": {"value": 2}}}, "d": {"value": 3}}
    config = config_of(parameters=nested)
    assert flattened({"a": {"b": 7}, "d": 3}, config) == {"a.b": 7, "d": 3}


def test_how_it_ended_is_judged_as_by_the_other_engine() -> None:
    """An exit code is a failure, and so is no value."""
    config = config_of()
    assert judged(config, 1, 0.5, is_pruned=False) == ("failed", "exit code 1")
    assert judged(config, 0, None, is_pruned=False) == ("failed", "it logged no loss")
    assert judged(config, 0, float("nan"), is_pruned=False)[0] == "failed"
    assert judged(config, 0, 0.5, is_pruned=False) == ("complete", "")
