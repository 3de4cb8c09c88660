"""The unit in deploy/ speaks the language of the installed MLflow."""

import re
import shlex
from pathlib import Path

import mlflow.environment_variables
import pytest
from mlflow.cli import cli

ROOT = Path(__file__).resolve().parents[1]
UNIT = (ROOT / "deploy" / "mlflow-server.service").read_text()
README = (ROOT / "deploy" / "README.md").read_text()
SERVER = {name: parameter for parameter in cli.commands["server"].params for name in parameter.opts}
READ_BY_THE_COMMAND = {str(parameter.envvar) for parameter in SERVER.values()}
VARIABLES = sorted(set(re.findall(r"\bMLFLOW_[A-Z0-9_]+", UNIT + README)))


@pytest.mark.parametrize("variable", VARIABLES)
def test_mlflow_knows_the_variable(variable: str) -> None:
    """Each MLFLOW_ variable of the unit and its README is one that MLflow reads."""
    assert variable in READ_BY_THE_COMMAND or hasattr(mlflow.environment_variables, variable)


def test_mlflow_knows_the_flags() -> None:
    """Each flag of the unit's command is one of `mlflow server`."""
    [command] = re.findall(r"^ExecStart=(.*)$", UNIT, re.MULTILINE)
    program, verb, *flags = shlex.split(command)
    assert (Path(program).name, verb) == ("mlflow", "server")
    assert set(flags) <= SERVER.keys()


def test_no_secret_stands_in_the_unit() -> None:
    """Units are readable by everybody: passwords and keys belong into the environment file."""
    assert "EnvironmentFile=-/etc/opusclip/mlflow-server.env" in UNIT
    assert not re.search(r"(?i)secret|password|://\w+:\w+@", UNIT)
