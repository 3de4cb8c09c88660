"""A version that `mlflow models serve` serves is watched, and tells what it was asked."""

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient

from tests.served import NAME, Served, eventually, registered, serving, usual

PLAIN = {"prompt": "plain", "size": 100.0}


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A database with the answerer, registered with rows as they are usual."""
    return registered(tmp_path_factory.mktemp("store"), reference=usual())


@pytest.fixture(scope="module")
def served(uri: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The answerer, served and watched."""
    with serving(uri, tmp_path_factory.mktemp("served")) as found:
        yield found


def test_numbers_equal_what_was_sent(served: Served) -> None:
    """Answers, refusals before the model and by it, faults: each is counted once, by its kind."""
    before = served.settled()
    assert [served.ask(PLAIN, PLAIN)[0] for _ in range(3)] == [200] * 3
    sent = {
        'errors_total{kind="ZeroDivisionError"}': served.ask({**PLAIN, "prompt": "fault"}),
        'errors_total{kind="invalid_input"}': served.ask({**PLAIN, "prompt": "refused"}),
        'errors_total{kind="unsendable_answer"}': served.ask({**PLAIN, "prompt": "unsendable"}),
        'errors_total{kind="refused_by_mlflow"}': served.ask(body="no JSON"),
    }
    assert served.ask({"size": 1.0})[0] == 400
    now = served.settled()
    change = {name: value - before.get(name, 0) for name, value in now.items()}
    assert {kind: change[kind] for kind in sent} == {
        kind: 1.0 + (kind == 'errors_total{kind="refused_by_mlflow"}') for kind in sent
    }
    assert change['requests_total{code="200"}'] == 3
    by_code = [change[one] for one in change if one.startswith("requests_total")]
    assert sum(by_code) == change["request_seconds_count"] == 8
    assert change["predict_seconds_count"] == 4
    assert change["rows_total"] == 7
    assert now["requests_in_flight"] == now["requests_waiting"] == 0


def test_requests_at_once_are_in_flight_and_waiting(served: Served, tmp_path: Path) -> None:
    """Those that the server has no thread for are waiting; in the end all are answered."""
    before = served.settled()['requests_total{code="200"}']
    go_on, count = tmp_path / "go", 40
    held = {"prompt": f"hold {go_on}", "size": 100.0}

    def look() -> bool:
        numbers = served.numbers()
        return numbers["requests_in_flight"] == count and numbers["requests_waiting"] > 0

    with ThreadPoolExecutor(1) as pool:
        statuses = pool.submit(served.ask_at_once, count, held)
        try:
            eventually(look, "requests in flight")
        finally:
            go_on.touch()
        assert statuses.result() == [200] * count
    assert served.settled()['requests_total{code="200"}'] == before + count


def test_a_black_clip_is_flagged(served: Served) -> None:
    """And one of noise is not black; frames are counted for both."""
    before = served.numbers()
    flag = 'clips_flagged_total{check="black"}'
    served.ask({**PLAIN, "prompt": "noise"})
    eventually(lambda: served.numbers()["clips_checked_total"] == 1, "a clip was looked at")
    assert served.numbers()[flag] == 0

    def flagged() -> bool:
        served.ask({**PLAIN, "prompt": "black"})
        return served.numbers()[flag] >= 1

    eventually(flagged, "a black clip was flagged")
    assert served.numbers()["frames_total"] - before["frames_total"] >= 24
    eventually(lambda: served.numbers().get("clip_black_frames", 0) > 0, "black frames are told")


def test_inputs_that_moved_are_told(served: Served) -> None:
    """Sizes far from the usual ones have an index far above that of sizes as they were."""
    usual_rows = usual(320).to_dict("records")
    for at in range(0, 320, 64):
        assert served.ask(*usual_rows[at : at + 64])[0] == 200
    size = 'input_psi{column="size"}'
    eventually(lambda: size in served.numbers(), "drift is told")
    calm = served.numbers()
    assert calm['reference_rows{origin="version"}'] == 400
    moved = [{"prompt": "other", "size": 500.0}] * 64
    for _ in range(8):
        assert served.ask(*moved)[0] == 200
    eventually(lambda: served.numbers()[size] > 1, "sizes moved")
    eventually(lambda: served.numbers()['input_psi{column="prompt"}'] > 1, "prompts moved")
    assert calm[size] < served.numbers()[size]
    assert served.numbers()['input_ks{column="size"}'] > 0.9


def test_the_run_in_mlflow_tells_the_same(served: Served) -> None:
    """It runs in the model's own experiment, tagged with the version, and its sums agree."""
    run = served.run()
    tags = run.data.tags
    assert run.info.status == "RUNNING"
    assert tags["opusclip.kind"] == "monitoring"
    assert (tags["opusclip.serving.model"], tags["opusclip.serving.version"]) == (NAME, "1")
    served.ask(PLAIN)
    asked = served.settled()["request_seconds_count"]
    eventually(lambda: served.sum_of(run, "serving/requests") == asked, "all requests")
    run = served.run()
    errors = [value for key, value in served.numbers().items() if key.startswith("errors_total")]
    assert served.sum_of(run, "serving/errors") == sum(errors)
    assert {"serving/latency_p50_ms", "serving/latency_p99_ms"} <= run.data.metrics.keys()
    eventually(lambda: served.runs()[0].data.tags.get("opusclip.serving.stage") == "None", "stage")


def test_a_server_that_is_stopped_has_told_everything(uri: str, tmp_path: Path) -> None:
    """The interval that was not over is told too, and the run is FINISHED."""
    with serving(uri, tmp_path, OPUSCLIP_MONITOR_INTERVAL_S="3600") as served:
        earlier = {run.info.run_id for run in served.runs()}
        served.ask(PLAIN)
        assert served.settled()['requests_total{code="200"}'] == 1
        for one in psutil.Process(served.process.pid).children(recursive=True):
            if "uvicorn" in " ".join(one.cmdline()):
                one.send_signal(signal.SIGTERM)
        run = served.run(after=earlier)
        client = MlflowClient(uri, uri)
        eventually(
            lambda: client.get_run(run.info.run_id).info.status == "FINISHED", "the run is over"
        )
        assert served.sum_of(run, "serving/requests") == 1


def test_a_server_that_is_killed_leaves_no_run_open(uri: str, tmp_path: Path) -> None:
    """The last whole interval is delivered, and the run says that its process was killed."""
    with serving(uri, tmp_path) as served:
        earlier = {run.info.run_id for run in served.runs()}
        run = served.run(after=earlier)
        served.ask(PLAIN)
        eventually(lambda: served.sum_of(run, "serving/requests") == 1, "the request is told")
        os.kill(int(run.data.tags["opusclip.serving.pid"]), signal.SIGKILL)
        client = MlflowClient(uri, uri)
        eventually(
            lambda: client.get_run(run.info.run_id).info.status != "RUNNING", "the run is over"
        )
        assert client.get_run(run.info.run_id).info.status in ("KILLED", "FAILED")
        assert served.sum_of(run, "serving/requests") == 1
