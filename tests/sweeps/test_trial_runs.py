"""The runs of trials in MLflow."""

from pathlib import Path

import pytest
from mlflow import MlflowClient

from opusclip_mlops.errors import RegistryError
from opusclip_mlops.layout import MIRROR_OF_TAG
from opusclip_mlops.sweeps.trial_runs import STATE_TAG, TrialRuns
from tests.journeys import store
from tests.sweeps.small_sweeps import runs_of


def test_an_attempt_has_one_run_however_often_it_is_made(tmp_path: Path) -> None:
    """An answer that was lost makes no second one; a further attempt has its own."""
    runs = runs_of(tmp_path)
    first = runs.begin(3, 1, {"x": 1})
    assert runs.begin(3, 1, {"x": 1}) == first
    assert runs.begin(3, 2, {"x": 1}) != first


def test_a_trackers_run_is_left_to_its_shipper(tmp_path: Path) -> None:
    """It knows the end better: the trial's state is said all the same."""
    runs, client = runs_of(tmp_path), MlflowClient(store(tmp_path))
    run_id = runs.begin(0, 1, {})
    client.set_tag(run_id, MIRROR_OF_TAG, run_id)
    runs.end(run_id, "complete")
    run = client.get_run(run_id)
    assert (run.info.status, run.data.tags[STATE_TAG]) == ("RUNNING", "complete")


def test_a_run_that_nobody_could_end_is_ended_later(tmp_path: Path) -> None:
    """As its attempt ended: MLflow was away then. Who still runs is left alone."""
    runs, client = runs_of(tmp_path), MlflowClient(store(tmp_path))
    well, lost, running = (runs.begin(*one, {}) for one in ((0, 1), (1, 1), (1, 2)))
    assert runs.found(1, 1) == lost
    assert runs.found(7, 1) == ""
    for _ in range(2):
        runs.settle({(0, 1): ("complete", ""), (1, 1): ("lost", "its worker was lost")})
    read = [client.get_run(one) for one in (well, lost, running)]
    assert [one.info.status for one in read] == ["FINISHED", "KILLED", "RUNNING"]
    assert [one.data.tags.get(STATE_TAG) for one in read] == ["complete", "lost", None]
    assert read[1].data.tags["opusclip.end_reason"] == "its worker was lost"


def test_the_group_is_what_a_mirror_calls_the_family(tmp_path: Path) -> None:
    """So that what a program logs to W&B itself stands beside what is mirrored."""
    from opusclip_mlops.contents import identity_of

    runs, client = runs_of(tmp_path), MlflowClient(store(tmp_path))
    run = client.get_run(runs.begin(0, 1, {}))
    assert identity_of(client, run).family == runs.group


def test_a_value_that_is_not_there_is_none(tmp_path: Path) -> None:
    """A run without the metric; one without a run is an error of one line."""
    runs = runs_of(tmp_path)
    assert runs.latest(runs.begin(0, 1, {}), "loss") is None
    runs.forget_broken("0" * 32)
    with pytest.raises(RegistryError, match="cannot read run"):
        runs.latest("0" * 32, "loss")
    with pytest.raises(RegistryError, match="cannot read run 0000"):
        TrialRuns(MlflowClient(store(tmp_path)), "0" * 32, "s")
