"""Where MLflow's basic-auth keeps its users: the backend's own database, or beside its file."""

from __future__ import annotations

import configparser
import io
from collections.abc import Mapping
from pathlib import Path

from opusclip_mlops.errors import ConfigError
from opusclip_mlops.server import secret_files
from opusclip_mlops.server.settings import Wanted

CONFIG = "MLFLOW_AUTH_CONFIG_PATH"
CACHE_S = 10
"""How long a worker trusts a password it has checked: to check one takes it 50 ms or more."""


def environment(wanted: Wanted, env: Mapping[str, str]) -> dict[str, str]:
    """The variables, with MLflow's own configuration of users among them.

    A configuration that `env` names is left as it is.

    Raises:
        ConfigError: The folder for it cannot be written, or the one named cannot be read.
    """
    if env.get(CONFIG):
        database_uri(env)
        return dict(env)
    file = wanted.state_folder / "basic_auth.ini"
    try:
        secret_files.write_whole(file, _configuration(wanted))
    except OSError as error:
        raise ConfigError(f"{file} cannot be written: {error.strerror}") from None
    return {**env, CONFIG: str(file)}


def database_uri(env: Mapping[str, str]) -> str:
    """The database of the users, as the configuration says that `env` names.

    Raises:
        ConfigError: There is no such configuration, or it names no database.
    """
    config = configparser.ConfigParser()
    try:
        config.read_string(Path(env[CONFIG]).read_text())
        return config.get("mlflow", "database_uri")
    except (OSError, UnicodeDecodeError, configparser.Error) as error:
        # Of a line that cannot be read the error says all, a password too.
        why = error.strerror if isinstance(error, OSError) else type(error).__name__
        raise ConfigError(f"{CONFIG}: {env[CONFIG]} cannot be used: {why}") from None


def _configuration(wanted: Wanted) -> str:
    config = configparser.ConfigParser()
    config["mlflow"] = {
        "default_permission": "READ",
        # A percent sign begins something in such files.
        "database_uri": _database(wanted).replace("%", "%%"),
        "admin_username": "admin",
        "authorization_function": "mlflow.server.auth:authenticate_request_basic_auth",
        "auth_cache_ttl_seconds": str(CACHE_S),
    }
    text = io.StringIO()
    config.write(text)
    return text.getvalue()


def _database(wanted: Wanted) -> str:
    if file := wanted.sqlite_file:
        return f"sqlite:///{file.absolute().with_name('basic_auth.db')}"
    return wanted.stock_backend
