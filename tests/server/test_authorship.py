"""Who made a run, where MLflow's login knows it."""

from pathlib import Path

import flask
import pytest
from mlflow.entities import RunTag
from mlflow.exceptions import MlflowException

from opusclip_mlops.candidates import MADE_BY
from opusclip_mlops.server.tracking import TrackingStore
from tests.journeys import store

FORGED = RunTag(MADE_BY, "boris")


@pytest.fixture
def runs(tmp_path: Path) -> TrackingStore:
    """Runs in a database."""
    return TrackingStore(store(tmp_path), str(tmp_path / "artifacts"))


def made(runs: TrackingStore, *tags: RunTag) -> str:
    """A run of boris, by what the client says."""
    return str(runs.create_run("0", "boris", 1, list(tags), "night").info.run_id)


def test_a_run_is_tagged_with_who_is_logged_in(runs: TrackingStore) -> None:
    """Whoever the client names, by any of MLflow's calls, and for good."""
    with flask.Flask("server").test_request_context():
        flask.g.mlflow_authenticated_user = "anna"
        run_id = made(runs, FORGED)
        for call in (
            lambda: runs.set_tag(run_id, FORGED),
            lambda: runs.log_batch(run_id, [], [], [FORGED]),
            lambda: runs.delete_tag(run_id, MADE_BY),
        ):
            with pytest.raises(MlflowException, match="nobody changes it") as refused:
                call()
            assert refused.value.get_http_status_code() == 400
        runs.set_tag(run_id, RunTag("mood", "good"))
    assert runs.get_run(run_id).data.tags[MADE_BY] == "anna"


def test_without_a_login_it_is_a_tag_as_any_other(runs: TrackingStore) -> None:
    """Nobody is known then, in a request or outside."""
    with flask.Flask("server").test_request_context():
        run_id = made(runs)
        assert MADE_BY not in runs.get_run(run_id).data.tags
    runs.set_tag(run_id, FORGED)
    runs.delete_tag(run_id, MADE_BY)
    assert MADE_BY not in runs.get_run(run_id).data.tags
