"""Facts about `opusclip_mlops.passport_files`: a value's passport is found by its step and time."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from mlflow import MlflowClient
from requests import HTTPError

from opusclip_mlops import ExperimentTracker, TrackingConfig
from opusclip_mlops.errors import PassportError, RecordError
from opusclip_mlops.layout import text_path
from opusclip_mlops.passport_files import PassportFiles
from opusclip_mlops.passports import PASSPORTS_KEY, Passport, Score, encoded
from tests.journeys import store


def passport(count: int) -> Passport:
    return Passport(metric="psnr", version="1", count=count, unit="frames")


@pytest.fixture
def client(tmp_path: Path) -> MlflowClient:
    return MlflowClient(store(tmp_path))


def logged(tmp_path: Path) -> str:
    """A run with scores at two steps, and values that have no passport."""
    config = TrackingConfig(
        tracking_uri=store(tmp_path), use_wandb=False, use_tensorboard=False, system_metrics=False
    )
    with ExperimentTracker(config) as tracker:
        tracker.log_metrics({"val/psnr": Score(20.5, passport(10)), "val/loss": 0.5}, 1)
        tracker.log_video_metrics(psnr=Score(21.5, passport(20)), step=2)
        tracker.log_metrics({"val/psnr": 22.5}, 2)
        return tracker.run_id


def test_each_logged_score_has_its_passport_in_mlflow(tmp_path: Path, client: MlflowClient) -> None:
    """By whatever call it was logged; a plain number has none, and the value is a plain float."""
    run_id = logged(tmp_path)
    files = PassportFiles(client, run_id)
    found = {}
    for key in ("val/psnr", "val/loss", "video/psnr"):
        for point in client.get_metric_history(run_id, key):
            found[key, point.value] = files.of(key, step=point.step, timestamp_ms=point.timestamp)
    assert found == {
        ("val/psnr", 20.5): passport(10),
        ("val/psnr", 22.5): None,
        ("val/loss", 0.5): None,
        ("video/psnr", 21.5): passport(20),
    }


def test_only_what_is_logged_has_a_passport(tmp_path: Path, client: MlflowClient) -> None:
    """Points left out by an interval leave none behind, and nobody else writes there."""
    config = TrackingConfig(
        tracking_uri=store(tmp_path), use_wandb=False, use_tensorboard=False, system_metrics=False,
        log_intervals={"medium": 10},
    )  # fmt: skip
    with ExperimentTracker(config) as tracker:
        for step in range(20):
            tracker.log_metrics({"odd/fid": Score(1.0, passport(1)), "val/loss": 0.5}, step)
        with pytest.raises(RecordError, match=r"opusclip/passports.*tracker's own"):
            tracker.log_text("{}", "opusclip/passports")
        run_id = tracker.run_id
    kept = client.list_artifacts(run_id, "text/opusclip/passports")
    assert [Path(one.path).name.split("-")[0] for one in kept] == ["step_00000000", "step_00000010"]


def test_a_passport_that_was_made_rubbish_is_an_error(tmp_path: Path, client: MlflowClient) -> None:
    """It names the file and the run."""
    run_id = logged(tmp_path)
    [point] = client.get_metric_history(run_id, "video/psnr")
    folder = Path(client.get_run(run_id).info.artifact_uri.removeprefix("file://"))
    for path in (folder / "text/opusclip/passports").iterdir():
        path.write_text("[]")
    files = PassportFiles(client, run_id)
    with pytest.raises(PassportError, match=f"step_00000002.* of run {run_id}: .*no passport"):
        files.of("video/psnr", step=point.step, timestamp_ms=point.timestamp)


def test_two_values_of_one_moment_that_were_measured_otherwise_cannot_be_told_apart(
    client: MlflowClient,
) -> None:
    """That is an error, not a value without a passport: such a one is compared with its like."""
    run_id = client.create_run("0").info.run_id
    for one in (passport(1), passport(2)):
        text = encoded({"fid": one, "psnr": passport(3)})
        client.log_text(run_id, text, text_path(PASSPORTS_KEY, 5, 1_000, text))
    files = PassportFiles(client, run_id)
    with pytest.raises(PassportError, match=r"fid at step 5 .*count: \d and \d"):
        files.of("fid", step=5, timestamp_ms=1_000)
    assert files.of("psnr", step=5, timestamp_ms=1_000) == passport(3)


def test_a_passport_is_read_whatever_lies_beside_it(client: MlflowClient) -> None:
    """Such as one of a later release, logged in the same call."""
    run_id = client.create_run("0").info.run_id
    later = {**passport(1).to_dict(), "viewed": "from afar"}
    text = json.dumps({"fid": later, "psnr": passport(3).to_dict()})
    client.log_text(run_id, text, text_path(PASSPORTS_KEY, 5, 1_000, text))
    files = PassportFiles(client, run_id)
    assert files.of("psnr", step=5, timestamp_ms=1_000) == passport(3)
    with pytest.raises(PassportError, match="viewed"):
        files.of("fid", step=5, timestamp_ms=1_000)


class _Refuses(BaseHTTPRequestHandler):
    """A store of artifacts that lists nothing for anybody."""

    def do_GET(self) -> None:
        body = b'{"error_code": "BAD_REQUEST"}'
        self.send_response(400)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def test_passports_that_nobody_may_see_are_not_taken_for_none(client: MlflowClient) -> None:
    """Two values without passports are compared: a store that refuses must not make them so."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Refuses) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        place = f"http://127.0.0.1:{server.server_port}/api/2.0/mlflow-artifacts/artifacts/shut"
        experiment = client.create_experiment("shut", artifact_location=place)
        files = PassportFiles(client, client.create_run(experiment).info.run_id)
        with pytest.raises(HTTPError, match="400"):
            files.of("fid", step=0, timestamp_ms=1)
        server.shutdown()


def test_a_run_without_passports_has_none(client: MlflowClient) -> None:
    """That its artifacts have no such folder is no error."""
    run = client.create_run("0")
    files = PassportFiles(client, run.info.run_id)
    assert files.of("loss", step=0, timestamp_ms=1) is None
