"""The verbs about registered models, from the command line."""

import json
from collections.abc import Callable
from pathlib import Path

import mlflow
import pandas as pd
import pytest
import torch
from mlflow import MlflowClient

from opusclip_mlops import checkpoints
from opusclip_mlops.checkpoints import CheckpointMetadata, checkpoint_name
from opusclip_mlops.cli import main
from tests.journeys import store
from tests.test_registry import SCALER

NAME = checkpoint_name(1, 20)
OWN = ("--model-file", "scaler.py", "--input-example", "example.json")


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """The command's exit code, and what it printed, on stderr where it printed nothing else."""

    def run(*line: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as ended:
            main(line)
        printed = capsys.readouterr()
        return int(ended.value.code or 0), printed.out or printed.err

    return run


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
    line = ("register", run_id, "--checkpoint", NAME, "--as", "scaler", *OWN)
    code, text = said(*line, "--requirements", "requirements.txt", "--json")
    assert (code, json.loads(text)["version"]) == (0, 1)
    model = mlflow.pyfunc.load_model("models:/scaler/1")
    assert model.metadata.signature.inputs.input_names() == ["x"]
    assert model.predict(pd.DataFrame({"x": [2.0]})) == [6.0]
    rules = "stages: {Staging: {smoke_test: {timeout_s: 120}, signature: present}}\n"
    (tmp_path / "gates.yaml").write_text(rules)
    assert said("gates", "set", "scaler", "gates.yaml")[0] == 0
    code, text = said("gates", "check", "scaler", "1", "--to", "Staging")
    assert (code, "FAILED" in text, "smoke test" in text) == (0, False, True)


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
