"""The verbs about registered models, from the command line."""

import json
from collections.abc import Callable
from pathlib import Path

import mlflow
import pandas as pd
import pytest
import torch
from mlflow import MlflowClient

from opusclip_mlops import checkpoints, promotion
from opusclip_mlops.checkpoints import CheckpointMetadata, checkpoint_name
from opusclip_mlops.cli import main
from opusclip_mlops.drift import REFERENCE_FILE, InputReference
from tests.journeys import store
from tests.promoters import NAME as MODEL
from tests.promoters import make_model
from tests.test_registry import SCALER

NAME = checkpoint_name(1, 20)
OWN = ("--model-file", "scaler.py", "--input-example", "example.json")


@pytest.fixture
def run_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A run with the checkpoint of a layer that multiplies by 3, and what serves it."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store(tmp_path))
    client = MlflowClient()
    experiment = client.create_experiment("scales", (tmp_path / "artifacts").as_uri())
    found = str(client.create_run(experiment).info.run_id)
    layer = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(layer.weight, 3.0)
    about = CheckpointMetadata(name=NAME, step=20, epoch=1, run_id=found, model={"class": "Scaler"})
    checkpoints.seal(checkpoints.write_checkpoint(tmp_path / "kept" / NAME, layer, metadata=about))
    client.log_artifacts(found, str(tmp_path / "kept" / NAME), f"checkpoints/{NAME}")
    (tmp_path / "scaler.py").write_text(SCALER)
    (tmp_path / "example.json").write_text('[{"x": 2.0}]')
    (tmp_path / "requirements.txt").write_text("torch\nmlflow\n")
    return found


def test_a_model_of_ones_own_is_registered_and_passes_a_smoke_test(
    run_id: str, tmp_path: Path, said: Callable[..., tuple[int, str]]
) -> None:
    """With its model file, example and requirements it is served, and its gate can try it."""
    usual = [{"x": value / 10} for value in range(200)]
    (tmp_path / "usual.json").write_text(json.dumps(usual))
    line = ("register", run_id, "--checkpoint", NAME, "--as", "scaler", *OWN)
    files = ("--requirements", "requirements.txt", "--input-reference", "usual.json")
    code, text = said(*line, *files, "--json")
    assert (code, json.loads(text)["version"]) == (0, 1)
    kept = mlflow.artifacts.load_text(f"models:/scaler/1/{REFERENCE_FILE}")
    assert list(InputReference.from_json(kept).columns) == ["x"]
    model = mlflow.pyfunc.load_model("models:/scaler/1")
    assert model.metadata.signature.inputs.input_names() == ["x"]
    assert model.predict(pd.DataFrame({"x": [2.0]})) == [6.0]
    rules = "stages: {Staging: {smoke_test: {timeout_s: 120}, signature: present}}\n"
    (tmp_path / "gates.yaml").write_text(rules)
    assert said("gates", "set", "scaler", "gates.yaml")[0] == 0
    code, text = said("gates", "check", "scaler", "1", "--to", "Staging")
    assert (code, "FAILED" in text, "smoke test" in text) == (0, False, True)
    client = MlflowClient()
    client.create_model_version("scaler", client.get_model_version("scaler", "1").source)
    for version in ("1", "2"):
        assert said("promote", "scaler", version, "--to", "Production")[0] == 0
    code, text = said("rollback", "scaler", "--reason", "2 is odd", "--json")
    verdict = json.loads(text)["verdict"]
    assert (code, verdict["passed"]) == (0, True)
    assert [one["name"] for one in verdict["conditions"]] == ["smoke test"]


def test_the_files_of_a_model_of_ones_own_go_together(
    run_id: str, said: Callable[..., tuple[int, str]]
) -> None:
    """One without the others is refused before anything is registered."""
    code, text = said("register", run_id, "--as", "scaler", "--model-file", "scaler.py")
    assert (code, "go together" in text) == (2, True)
    code, text = said("register", run_id, "--as", "scaler", *OWN, "--requirements", "lost.txt")
    assert (code, text) == (2, "error: cannot read lost.txt: No such file or directory\n")
    assert list(MlflowClient().search_registered_models()) == []


def test_a_model_of_ones_own_is_not_taken_for_a_clip_generator(
    run_id: str, said: Callable[..., tuple[int, str]]
) -> None:
    """Without its files it could not be served: one line, and no version."""
    code, text = said("register", run_id, "--checkpoint", NAME, "--as", "scaler")
    assert (code, "is of a Scaler" in text, text.count("\n")) == (2, True, 1)
    assert list(MlflowClient().search_registered_models()) == []


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A registered model with one version, which is in Production."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store(tmp_path))
    client = MlflowClient()
    make_model(client, versions=1)
    promotion.promote(MODEL, 1, to="Production", judge=None, client=client)
    return MODEL


def test_a_history_that_is_not_whole_says_so_on_stderr(
    model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """In one line, with the history on stdout as ever; nothing of it where all is well."""
    for names, expected in (((), ""), (("000002",), f"the history of {model!r} is not whole, 1 ")):
        client = MlflowClient()
        for name in names:
            run_id = client.get_registered_model(model).tags["opusclip.history"]
            client.log_param(run_id, name, "rubbish")
        with pytest.raises(SystemExit) as ended:
            main(("history", model, "--json"))
        printed = capsys.readouterr()
        assert not ended.value.code
        assert json.loads(printed.out)["holders"]["Production"] == 1
        assert printed.err.startswith(expected)
        assert printed.err.count("\n") == bool(expected)


def test_a_history_is_verified_as_a_whole(model: str, said: Callable[..., tuple[int, str]]) -> None:
    """Not up to some time: a change after it would not be told."""
    code, text = said("history", model, "--verify", "--at", "2026-11-01T12:00")
    assert (code, "leave out --at" in text, text.count("\n")) == (2, True, 1)


def test_a_look_that_found_no_model_fails(model: str, said: Callable[..., tuple[int, str]]) -> None:
    """One look is for scripts: they see by the exit code whether it was one."""
    assert said("watch", model, "--once")[0] == 0
    code, text = said("watch", "nosuch", "--once")
    assert (code, text.startswith("nosuch: ")) == (1, True)


def test_a_place_that_mlflow_does_not_know_is_one_line(
    said: Callable[..., tuple[int, str]],
) -> None:
    """Whatever the verb."""
    for line in (
        ("history", "clips"),
        ("gates", "show", "clips"),
        ("gates", "check", "clips", "1", "--to", "Staging"),
        ("promote", "clips", "1", "--to", "Staging"),
        ("rollback", "clips", "--reason", "odd"),
        ("watch", "--once"),
    ):
        code, text = said(*line, "--tracking-uri", "bogus://x")
        assert (code, text.startswith("error: cannot reach MLflow: ")) == (2, True), text
        assert text.count("\n") == 1
