"""`mlflow run` on a machine that has neither conda nor pyenv."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.prefix) / "bin"
MLPROJECT = """\
name: opusclip_mlops
entry_points:
  main:
    parameters:
      note: {type: string, default: "it's $HOME; and \\"more\\""}
    command: python here.py {note}
"""
HERE = """\
import os, sys
import opusclip_mlops
print("package", opusclip_mlops.__path__[0])
print("prefix", sys.prefix)
print("venv", os.environ["VIRTUAL_ENV"])
print("note", sys.argv[1])
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A small project with our environment file, so that MLflow takes the same road for it."""
    folder = tmp_path / "project"
    folder.mkdir()
    shutil.copy(ROOT / "python_env.yaml", folder)
    (folder / "MLproject").write_text(MLPROJECT)
    (folder / "here.py").write_text(HERE)
    return folder


@pytest.fixture
def bare_machine(tmp_path: Path) -> dict[str, str]:
    """The environment variables of a login without conda, pyenv or an activated environment."""
    return {
        "PATH": f"/usr/bin:/bin:{BIN}",
        "HOME": str(tmp_path),
        "MLFLOW_ENV_ROOT": str(tmp_path / "envs"),
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "LANG": "C.UTF-8",
    }


def test_a_plain_mlflow_run_uses_the_linked_environment(
    project: Path, bare_machine: dict[str, str], tmp_path: Path
) -> None:
    """After `opusclip link-env`, `mlflow run` without flags works and installs nothing."""
    answers = [
        subprocess.run(
            argv, cwd=tmp_path, env=bare_machine, capture_output=True, text=True, check=False
        )
        for argv in (
            [BIN / "opusclip", "link-env", project],
            [BIN / "mlflow", "run", project],
        )
    ]
    for answer in answers:
        assert answer.returncode == 0, answer.stderr
    printed = dict(line.split(" ", 1) for line in answers[1].stdout.splitlines())
    assert printed["package"] == str(ROOT / "opusclip_mlops")
    assert printed["venv"] == sys.prefix
    assert Path(printed["prefix"]).resolve() == Path(sys.prefix).resolve()
    assert printed["note"] == 'it\'s $HOME; and "more"'
    assert "already exists" in answers[1].stderr
    [environment] = (tmp_path / "envs").iterdir()
    assert environment.is_symlink()
