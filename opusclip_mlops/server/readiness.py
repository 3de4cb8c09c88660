"""What keeps a server from starting, found before anything is started."""

from __future__ import annotations

import errno
import importlib.metadata
import importlib.util
import os
import socket
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from packaging.specifiers import SpecifierSet

from opusclip_mlops import object_storage
from opusclip_mlops.errors import ConfigError
from opusclip_mlops.faults import attempted
from opusclip_mlops.server import secret_files
from opusclip_mlops.server.compatibility import SUPPORTED
from opusclip_mlops.server.settings import Wanted

_EXTRA = "pip install 'opusclip-mlops[server]'"


def check(wanted: Wanted, *, tell: Callable[[str], None]) -> None:
    """Let a server start whose libraries, port and folders are there.

    `tell` hears of what is slow, and of a bucket that takes nothing now.

    Raises:
        ConfigError: What is missing, and what to do.
    """
    _check_libraries(wanted, tell)
    _check_port(wanted.host, wanted.port)
    if wanted.sqlite_file:
        _check_writable(wanted.sqlite_file.absolute().parent, "--backend")
        _check_file(wanted.sqlite_file)
    if wanted.artifacts_folder:
        _check_writable(wanted.artifacts_folder, "--artifacts")
    if wanted.artifacts.startswith("s3://") and wanted.serves_artifacts:
        _check_s3()
        _tell_of_bucket(urlsplit(wanted.artifacts).netloc, tell)


def _check_file(path: Path) -> None:
    if path.exists() and not path.is_file():
        raise ConfigError(f"--backend: {path} is there and is no file: name another")


def _check_libraries(wanted: Wanted, tell: Callable[[str], None]) -> None:
    version = importlib.metadata.version("mlflow")
    if not SpecifierSet(SUPPORTED).contains(version, prereleases=True):
        raise ConfigError(f"MLflow {version} is here: pip install 'mlflow{SUPPORTED}'")
    needed = {"psycopg2": not wanted.sqlite_file, "flask_wtf": wanted.has_users}
    needed["prometheus_flask_exporter"] = any("prometheus" in one for one in wanted.passed)
    for module, is_needed in needed.items():
        if is_needed and not importlib.util.find_spec(module):
            raise ConfigError(f"{module} is not installed: {_EXTRA}")
    if wanted.workers > 1 and not importlib.util.find_spec("uvloop"):
        tell(f"without uvloop several workers answer each request 40 ms later: {_EXTRA}")


def _check_port(host: str, port: int) -> None:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except (OSError, OverflowError) as error:
        number = error.errno if isinstance(error, OSError) else None
        known = {
            errno.EADDRINUSE: "something listens there already: stop it, or name another --port",
            errno.EACCES: "this user may not listen there: name a --port above 1023",
        }
        why = known.get(number or 0) or str(getattr(error, "strerror", None) or error)
        raise ConfigError(f"{host}:{port}: {why}") from None


def _check_writable(folder: Path, option: str) -> None:
    try:
        secret_files.private_folder(folder)
    except OSError as error:
        raise ConfigError(f"{option}: {folder} cannot be made: {error.strerror}") from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigError(f"{option}: this user may not write in {folder}")


def _check_s3() -> None:
    if not importlib.util.find_spec("boto3"):
        raise ConfigError("boto3 is not installed: pip install boto3")
    import botocore.exceptions
    import botocore.session

    try:
        keys = botocore.session.get_session().get_credentials()
    except botocore.exceptions.BotoCoreError as error:
        raise ConfigError(f"S3 cannot be used: {type(error).__name__}") from None
    if keys is None:
        raise ConfigError(
            "--artifacts s3://… needs keys: set AWS_ACCESS_KEY_ID_FILE and "
            "AWS_SECRET_ACCESS_KEY_FILE, or a profile"
        )


def _tell_of_bucket(name: str, tell: Callable[[str], None]) -> None:
    """Say what is wrong with a bucket; runs are tracked without it too, so the server starts."""
    with object_storage.asking_briefly():
        fault = attempted(lambda: object_storage.client().head_bucket(Bucket=name))
    if fault is not None:
        why = object_storage.advice_on(fault) or type(fault).__name__
        tell(f"artifacts will not arrive in s3://{name} now: {why}; see opusclip doctor")
