"""A launch that another process began, found by its run."""

import json
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from mlflow import MlflowClient

from opusclip_mlops.errors import ConfigError, RegistryError
from opusclip_mlops.launching.asking_after import config_in, launched
from opusclip_mlops.launching.outcomes import Ending
from opusclip_mlops.launching.workplace import PLACE_TAG, Submitted
from tests.launching.made import end_of, launch, without_database
from tests.launching.programs import only_on_path, program


def test_a_launch_is_found_by_its_run_and_its_end_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slurm knows that a job reached its time limit, and nobody had told MLflow."""
    place, plan = launch(tmp_path, kind="slurm")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", str(plan.tracking_uri))
    monkeypatch.setenv("OPUSCLIP_JOURNAL_DIR", str(tmp_path / "journal"))
    with pytest.raises(ConfigError, match="was not launched by -b torchrun"):
        launched(plan.run_id)
    MlflowClient(plan.tracking_uri).set_tag(plan.run_id, PLACE_TAG, str(place.path))
    place.write_submitted(Submitted(jobs=["12"]))
    place.begin_attempt("12")
    answers = only_on_path(tmp_path, monkeypatch)
    program(answers, "scontrol", "JobId=12 JobState=RUNNING Reason=None")
    running = launched(plan.run_id[:8])
    assert (running.status, running.jobs, running.exit_code) == ("RUNNING", ["12"], 0)
    program(answers, "scontrol", "JobId=12 JobState=TIMEOUT Reason=TimeLimit")
    ended = launched(plan.run_id)
    reason = "Slurm's job 12 reached its time limit"
    assert (ended.status, ended.reason, ended.exit_code) == ("KILLED", reason, 1)
    assert end_of(plan) == ("KILLED", reason)
    assert place.ending() == Ending(status="KILLED", reason=reason, exit_code=1)
    MlflowClient(plan.tracking_uri).set_terminated(plan.run_id, "FINISHED")
    assert launched(plan.run_id).status == "KILLED"
    assert end_of(plan)[0] == "FINISHED", "MLflow was told before, and somebody changed it since"


def test_a_database_that_cannot_be_opened_is_an_error_of_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is known of the launch, and nobody reads a traceback."""
    away = without_database(launch(tmp_path)[1], monkeypatch)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", str(away.tracking_uri))
    with pytest.raises(RegistryError, match="cannot reach MLflow"):
        launched(away.run_id)


class _Away(BaseHTTPRequestHandler):
    """What stands before an MLflow that is down."""

    asked = 0

    def do_GET(self) -> None:
        type(self).asked += 1
        self.send_response(503)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_POST = do_GET

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def test_an_mlflow_that_is_down_is_told_soon_with_the_end_that_is_known_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own seven retries take minutes; what ends later is told with them all the same."""
    place, plan = launch(tmp_path)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", raising=False)
    monkeypatch.chdir(plan.cwd)
    with ThreadingHTTPServer(("127.0.0.1", 0), _Away) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.server_port}")
        with pytest.raises(RegistryError, match="503") as without_end:
            launched(plan.run_id)
        assert _Away.asked == 2
        place.end(Ending(status="FAILED", reason="rank 1 on vm: exit code 7", exit_code=7))
        with pytest.raises(RegistryError, match="503") as known:
            launched(plan.run_id)
        with pytest.raises(RegistryError, match="cannot find run") as elsewhere:
            launched(f"../launches/{plan.run_id}")
        server.shutdown()
    folder = f".opusclip/launches/{plan.run_id}"
    assert str(known.value).endswith(f"; {folder} says FAILED: rank 1 on vm: exit code 7")
    assert ".opusclip" not in str(without_end.value) + str(elsewhere.value)
    assert "MLFLOW_HTTP_REQUEST_MAX_RETRIES" not in os.environ


def test_a_configuration_is_a_json_object(tmp_path: Path) -> None:
    """Anything else is an error that names the file; --dry-run is put into it."""
    file = tmp_path / "b.json"
    for text, words in (("[1]", "holds no JSON object"), ("{", "cannot be read")):
        file.write_text(text)
        with pytest.raises(ConfigError, match=f"b.json {words}"):
            config_in(file, dry_run=False)
    file.write_text(json.dumps({"nodes": 2}))
    assert config_in(file, dry_run=False) == {"nodes": 2}
    assert config_in(file, dry_run=True) == {"nodes": 2, "dry_run": True}
