"""The unit in deploy/ speaks the language of the command, and of the installed MLflow."""

import re
import shlex
from pathlib import Path

import mlflow.environment_variables
import pytest
from mlflow.cli import cli

from opusclip_mlops.server_cli import server
from tests.deploy.programs import DEPLOY

UNIT = (DEPLOY / "mlflow-server.service").read_text()
README = (DEPLOY / "README.md").read_text()
SERVER = {name: parameter for parameter in cli.commands["server"].params for name in parameter.opts}
READ_BY_THE_COMMAND = {str(parameter.envvar) for parameter in SERVER.values()}
VARIABLES = sorted(set(re.findall(r"\bMLFLOW_[A-Z0-9_]+", UNIT + README)))


@pytest.mark.parametrize("variable", VARIABLES)
def test_mlflow_knows_the_variable(variable: str) -> None:
    """Each MLFLOW_ variable of the unit and its README is one that MLflow reads."""
    assert variable in READ_BY_THE_COMMAND or hasattr(mlflow.environment_variables, variable)


def test_the_command_knows_the_flags() -> None:
    """Each flag of the unit's command is one of `opusclip server`, and so is each variable."""
    [line] = re.findall(r"^ExecStart=(.*)$", UNIT, re.MULTILINE)
    program, verb, *flags = shlex.split(line)
    assert (Path(program).name, verb) == ("opusclip", "server")
    assert set(flags) <= {name for one in server.params for name in one.opts}
    asked = {str(one.envvar) for one in server.params} | {"MLFLOW_BACKEND_STORE_URI"}
    own = set(re.findall(r"^Environment=(\w+)=", UNIT, re.MULTILINE))
    assert own - {"MLFLOW_DISABLE_TELEMETRY"} <= asked


def test_no_secret_stands_in_the_unit() -> None:
    """Units are readable by everybody: passwords and keys belong into the environment file."""
    assert "EnvironmentFile=-/etc/opusclip/mlflow-server.env" in UNIT
    assert not re.search(r"(?i)secret|password|://\w+:\w+@", UNIT)
