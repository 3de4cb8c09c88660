"""Facts about `opusclip_mlops.smoke_worker`: what counts as an answer."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from opusclip_mlops.smoke_worker import is_empty, without_secrets

EMPTY: list[Any] = [
    None, [], {}, (), "", b"", np.zeros((0, 3)), pd.DataFrame({"x": []}), pd.Series([]),
    iter([]), torch.zeros(0), pd.DataFrame(),
]  # fmt: skip
ANSWERS: list[Any] = [
    0, False, 0.0, "a", [None], {"x": []}, np.float64(0), np.zeros(()), np.zeros((1, 3)), object(),
    pd.DataFrame({"x": [1]}), iter([1]), torch.zeros(()), torch.zeros(1),
]  # fmt: skip


@pytest.mark.parametrize("answer", EMPTY, ids=lambda one: type(one).__name__)
def test_nothing_and_what_has_no_elements_is_empty(answer: Any) -> None:
    """Whatever kind of collection a model answers with."""
    assert is_empty(answer)


@pytest.mark.parametrize("answer", ANSWERS, ids=lambda one: type(one).__name__)
def test_anything_else_is_an_answer(answer: Any) -> None:
    """A zero and a false too."""
    assert not is_empty(answer)


def test_what_names_a_secret_or_holds_a_password_does_not_go_to_the_model() -> None:
    """By a variable's name, and by what a URI holds; all else does."""
    kept = {
        "PATH": "/bin", "TMPDIR": "/tmp", "AWS_PROFILE": "team", "TOKENIZERS_PARALLELISM": "false",
        "MLFLOW_S3_ENDPOINT_URL": "http://store:9000", "KEYBOARD": "us", "PWD": "/", "OLDPWD": "/",
    }  # fmt: skip
    secret = dict.fromkeys(
        [
            "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "AWS_SECRET_ACCESS_KEY",
            "AWS_ACCESS_KEY_ID", "AWS_SESSION_TOKEN", "GOOGLE_APPLICATION_CREDENTIALS",
            "AZURE_STORAGE_CONNECTION_STRING", "WANDB_API_KEY", "wandb_apikey", "PGPASSWORD",
            "MYSQL_PWD", "AWS_WEB_IDENTITY_TOKEN_FILE",
        ],
        "x",
    )  # fmt: skip
    database = {"MLFLOW_TRACKING_URI": "postgresql://anna:pw1234@db/mlflow"}
    assert without_secrets({**kept, **secret, **database}) == kept


def test_a_watcher_that_nobody_listens_to_ends_what_it_started(tmp_path: Path) -> None:
    """Its stdin was closed right behind the task: the model is not waited for."""
    folder = tmp_path / "folder"
    folder.mkdir()
    task = {"uri": "models:/kite/1", "timeout_s": 1_000, "tracking_uri": None}
    done = subprocess.run(
        [sys.executable, "-m", "opusclip_mlops.smoke_worker"],
        input=json.dumps({**task, "registry_uri": None, "folder": str(folder)}) + "\n",
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    assert json.loads(done.stdout)["passed"] is False
    assert not folder.exists()
