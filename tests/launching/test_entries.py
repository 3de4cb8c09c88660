"""An entry point as `mlflow run` finds it: its parameters unquoted, its store by its whole path."""

import subprocess
from pathlib import Path

import pytest

from opusclip_mlops.errors import ConfigError
from opusclip_mlops.launching.entries import Entry, entry_of
from tests.launching.made import MLPROJECT, config, project

NASTY = 'a b\'; touch bad; $(x) "z"'


def found(folder: Path, name: str = "main", uri: str = "sqlite:///mlflow.db") -> Entry:
    """The entry point of a small project."""
    params = {"note": NASTY, "extra": ""} if name == "main" else {}
    return entry_of(str(folder), name, params, None, tracking_uri=uri, experiment_id="0")


def test_parameters_are_words_and_defaults_are_filled_in(tmp_path: Path) -> None:
    """What MLflow quotes for a shell is unquoted; what is not declared comes behind."""
    program = found(project(tmp_path)).program(inputs=None)
    assert program == [
        "tiny.py", "--note", NASTY, "--deed", "nothing", "--extra", "",
    ]  # fmt: skip


def test_what_is_missing_or_no_python_is_an_error_of_one_line(tmp_path: Path) -> None:
    """An entry point that needs a shell, none of that name, no project, a missing parameter."""
    folder = project(tmp_path)
    with pytest.raises(ConfigError, match="torchrun starts"):
        found(folder, "shell").program(inputs=None)
    with pytest.raises(ConfigError, match="Could not find nope"):
        found(folder, "nope")
    (folder / "MLproject").write_text(MLPROJECT.replace(", default: nothing", ""))
    with pytest.raises(ConfigError, match="missing parameters: 'deed'"):
        found(folder)
    with pytest.raises(ConfigError, match=r"no project in .*none, and no Git address"):
        found(tmp_path / "none")


def test_a_store_on_this_disk_is_named_by_its_whole_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ranks run in the project's folder, and the store lies where `mlflow run` was called."""
    folder = project(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert found(folder).tracking_uri == f"sqlite:///{tmp_path}/mlflow.db"
    assert found(folder, uri="mlruns").tracking_uri == f"{tmp_path}/mlruns"
    assert found(folder, uri="https://host").tracking_uri == "https://host"


def test_a_password_stands_in_no_plan(tmp_path: Path) -> None:
    """It goes from environment to environment."""
    uri = "https://user:hidden@host"
    entry = found(project(tmp_path), uri=uri)
    assert entry.secrets == {"MLFLOW_TRACKING_URI": uri}
    assert entry.plan(config(), "r", []).tracking_uri is None
    assert found(Path(entry.cwd), uri="https://host").secrets == {}


def test_a_project_that_was_cloned_is_known_for_one(tmp_path: Path) -> None:
    """Its folder is this machine's own."""
    folder = project(tmp_path)
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "x"]):
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", *who, *words], cwd=folder, check=True)
    assert not found(folder).is_fetched
    uri = f"file://{folder}"
    assert entry_of(uri, "main", {}, None, tracking_uri="x", experiment_id="0").is_fetched
