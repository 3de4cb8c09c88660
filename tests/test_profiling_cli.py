"""The verb that says where a run's time went, run as the command runs it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.journeys import store
from tests.timed_runs import timed_run

Said = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A store with a run that waits for its data."""
    folder = tmp_path_factory.mktemp("timed")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        timed_run(folder, patch, name="kite", wait_s=0.1, work_s=0.01)
    return store(folder)


def test_it_says_what_limits_a_run(said: Said, uri: str) -> None:
    """The run first, then the limit, the findings, and the operations."""
    code, text = said("bottlenecks", "kite", "--tracking-uri", uri)
    lines = text.splitlines()
    assert code == 0
    assert lines[0].startswith("run kite (")
    assert lines[1] == "limit: data"
    assert "the loop waits for data (from 20 %)" in lines[2]
    assert any(line.split()[:1] == ["loop/data"] for line in lines)


def test_for_scripts_it_is_json(said: Said, uri: str) -> None:
    """With a picture in a file beside it; nothing is written into the run."""
    code, text = said("bottlenecks", "kite", "--tracking-uri", uri, "--json", "--picture", "a.png")
    content = json.loads(text)
    assert (code, content["run_name"], content["limit"]) == (0, "kite", "data")
    assert content["operations"][0]["name"] == "data"
    assert Path("a.png").stat().st_size > 1000
    assert MlflowClient(uri).list_artifacts(content["run_id"], "images") == []


def test_the_report_is_logged_when_asked(said: Said, uri: str) -> None:
    """It is printed all the same."""
    code, text = said("bottlenecks", "kite", "--tracking-uri", uri, "--log")
    assert (code, text.splitlines()[1]) == (0, "limit: data")
    client = MlflowClient(uri)
    [run] = client.search_runs([client.get_experiment_by_name("timed").experiment_id])
    assert len(client.list_artifacts(run.info.run_id, "images")) == 2


def test_what_is_wrong_is_one_line(said: Said, uri: str) -> None:
    """And exit code 2."""
    code, text = said("bottlenecks", "nobody", "--tracking-uri", uri)
    assert (code, text.count("\n")) == (2, 1)
    assert "no run in MLflow is called 'nobody'" in text
