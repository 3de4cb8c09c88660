"""What `opusclip server` is asked for, and what that means to MLflow's server: pure values."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from opusclip_mlops.errors import ConfigError
from opusclip_mlops.server.places import PREFIX, stock_uri

PASSED = {
    "--cors-allowed-origins": "VALUE",
    "--dev": "",
    "--disable-security-middleware": "",
    "--disable-workspaces": "",
    "--expose-prometheus": "VALUE",
    "--secrets-cache-max-size": "VALUE",
    "--secrets-cache-ttl": "VALUE",
    "--static-prefix": "VALUE",
    "--trace-archival-config": "VALUE",
    "--uvicorn-opts": "VALUE",
    "--x-frame-options": "VALUE",
}
"""Flags that go to `mlflow server` as they are, and whether a value follows."""

REFUSED = {
    "--artifacts-only": "there is nothing to guard without a database; run mlflow server itself",
    "--enable-workspaces": "the guard knows no workspaces; run one server for each",
    "--gunicorn-opts": "the host check and the limit of a request's size need uvicorn",
    "--jobs": "MLflow's job runner takes no store but its own; run mlflow server itself for jobs",
    "--registry-store-uri": "a model and the runs behind it are one transaction, in --backend",
    "--waitress-opts": "the host check and the limit of a request's size need uvicorn",
    "--workspace-store-uri": "the guard knows no workspaces; run one server for each",
}
"""Flags of `mlflow server` that cannot be had here, and why not."""

REFUSED_VARIABLES = {
    "MLFLOW_ARTIFACTS_ONLY": "--artifacts-only",
    "MLFLOW_ENABLE_WORKSPACES": "--enable-workspaces",
    "MLFLOW_GUNICORN_OPTS": "--gunicorn-opts",
    "MLFLOW_REGISTRY_STORE_URI": "--registry-store-uri",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "--jobs",
    "MLFLOW_WORKSPACE_STORE_URI": "--workspace-store-uri",
}
"""The same, said by variables."""

BODY_LIMIT = "OPUSCLIP_SERVER_MAX_REQUEST_MB"
READ_REPLICA = "MLFLOW_READ_REPLICA_BACKEND_STORE_URI"
SERVER_PID = "OPUSCLIP_SERVER_PID"
PROXIED = "mlflow-artifacts:/"
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_LOCAL_HOSTS = ("localhost", "127.0.0.1", "[[]::1]", "0.0.0.0")
_PRIVATE_HOSTS = (
    "10.*", "192.168.*", *(f"172.{part}.*" for part in range(16, 32)), "fc00:*", "fd00:*",
)  # fmt: skip
_SQLITE = "sqlite:///"


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """A server as its user wants it; `passed` goes to `mlflow server` as it is.

    Artifacts pass through the server when it `serves_artifacts`; clients go to their place directly
    otherwise. `state` is the folder for its keys, beside the database when None.
    """

    backend: str
    read_replica: str | None = None
    artifacts: str = "./mlartifacts"
    serves_artifacts: bool = True
    default_artifact_root: str | None = None
    host: str = "127.0.0.1"
    port: int = 5000
    workers: int = 1
    allowed_hosts: tuple[str, ...] = ()
    app_name: str | None = None
    smoke_tests: bool = False
    webhooks: Path | None = None
    max_request_mb: float = 32
    state: Path | None = None
    passed: tuple[str, ...] = ()

    @property
    def stock_backend(self) -> str:
        """The database as MLflow's own stores and SQLAlchemy take it."""
        return stock_uri(self.backend)

    @property
    def sqlite_file(self) -> Path | None:
        """The file of the database; None for a database server."""
        stock, _, _ = self.stock_backend.partition("?")
        return Path(stock.removeprefix(_SQLITE)) if stock.startswith(_SQLITE) else None

    @property
    def state_folder(self) -> Path:
        """Where what the server makes for itself is kept, absolute."""
        file = self.sqlite_file
        beside = file.parent if file else Path()
        return (self.state or beside / ".opusclip" / "server").absolute()

    @property
    def has_users(self) -> bool:
        """Whether it asks who comes, by MLflow's basic-auth."""
        return self.app_name == "basic-auth"

    @property
    def is_open(self) -> bool:
        """Whether machines other than this one can reach it."""
        return self.host not in _LOOPBACK

    @property
    def artifacts_folder(self) -> Path | None:
        """The folder of the artifacts, absolute; None where they lie elsewhere."""
        parts = urlsplit(self.artifacts)
        if parts.scheme == "file":
            return Path(parts.path)
        return None if parts.scheme else Path(self.artifacts).absolute()

    @property
    def artifact_root(self) -> str:
        """Where artifacts of new experiments go, as clients are told."""
        by_default = PROXIED if self.serves_artifacts else self.artifacts_uri
        return self.default_artifact_root or by_default

    @property
    def artifacts_uri(self) -> str:
        """Where artifacts lie, as the server itself takes it."""
        return str(self.artifacts_folder or self.artifacts)


def check(wanted: Wanted, env: Mapping[str, str]) -> None:
    """Let settings pass that fit each other and this server.

    Raises:
        ConfigError: A setting that cannot be had, with the reason.
    """
    _check_database("--backend", wanted.backend)
    if wanted.read_replica:
        _check_database("--read-replica-backend-store-uri", wanted.read_replica)
    _check_artifacts(wanted.artifacts)
    _check_passed(wanted.passed)
    for name, flag in REFUSED_VARIABLES.items():
        if env.get(name, "").lower() not in ("", "0", "false"):
            raise ConfigError(f"unset {name}: {REFUSED[flag]}")
    if not (math.isfinite(wanted.max_request_mb) and wanted.max_request_mb > 0):
        raise ConfigError("--max-request-mb must be a number above 0")
    if wanted.webhooks and not wanted.webhooks.is_file():
        raise ConfigError(f"--webhooks {wanted.webhooks} is no file")


def _check_database(option: str, uri: str) -> None:
    scheme, found, rest = uri.removeprefix(PREFIX).partition("://")
    if not found or stock_uri(f"{scheme}://").partition(":")[0] not in _DATABASES:
        # The rest may hold a password.
        raise ConfigError(
            f"{option} {scheme if found else '…'}:… is none of: sqlite:///FILE, "
            "postgresql://USER@HOST/DATABASE"
        )
    if scheme == "sqlite" and (not rest.startswith("/") or rest.strip("/") in ("", ":memory:")):
        raise ConfigError(f"{option} sqlite needs a file: sqlite:///mlflow.db, sqlite:////srv/m.db")


_DATABASES = ("sqlite", "postgresql+psycopg2")


def _check_artifacts(artifacts: str) -> None:
    parts = urlsplit(artifacts)
    if not artifacts or (parts.scheme == "s3" and not parts.netloc):
        raise ConfigError(f"--artifacts {artifacts!r} is no place: a folder, or s3://BUCKET/PREFIX")
    if parts.scheme in ("http", "https", "mlflow-artifacts"):
        raise ConfigError(
            f"--artifacts {parts.scheme}: is another server's; name a folder or s3://"
        )


def _check_passed(passed: Sequence[str]) -> None:
    rest = iter(passed)
    for one in rest:
        name, has_value, _ = one.partition("=")
        if reason := REFUSED.get(name):
            raise ConfigError(f"{name} cannot be had: {reason}")
        if name not in PASSED:
            raise ConfigError(f"no such option: {name}; see opusclip server --help")
        if PASSED[name] and not has_value and next(rest, None) is None:
            raise ConfigError(f"{name} needs a value")


def arguments(wanted: Wanted) -> list[str]:
    """The command that becomes the server; nothing in it is secret."""
    # Not from the folder it is called in: a file mlflow.py there would be taken for MLflow.
    argv = [sys.executable, "-P", "-m", "mlflow", "server", "--host", wanted.host]
    argv += ["--port", str(wanted.port), "--workers", str(wanted.workers)]
    argv += ["--artifacts-destination", wanted.artifacts_uri]
    argv += ["--default-artifact-root", wanted.artifact_root]
    argv += ["--serve-artifacts" if wanted.serves_artifacts else "--no-serve-artifacts"]
    if wanted.app_name:
        argv += ["--app-name", wanted.app_name]
    return [*argv, *wanted.passed]


def environment(wanted: Wanted, env: Mapping[str, str]) -> dict[str, str]:
    """The variables the server runs with: `env`, and what was asked for.

    The database's URI is among them and not in the command, where others would see its password.
    """
    made = {
        **env,
        "MLFLOW_BACKEND_STORE_URI": PREFIX + wanted.stock_backend,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_SERVER_ALLOWED_HOSTS": ",".join(allowed_hosts(wanted.allowed_hosts)),
        "UVICORN_HTTP": "opusclip_mlops.server.worker:Protocol",
        BODY_LIMIT: f"{wanted.max_request_mb:g}",
        SERVER_PID: str(os.getpid()),
    }
    made.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    if wanted.read_replica:
        made[READ_REPLICA] = stock_uri(wanted.read_replica)
    if wanted.smoke_tests:
        made["OPUSCLIP_SERVER_SMOKE_TESTS"] = "true"
    if wanted.webhooks:
        made["OPUSCLIP_WEBHOOKS"] = str(wanted.webhooks.absolute())
    return made


def allowed_hosts(named: Sequence[str]) -> list[str]:
    """Patterns of Host headers that are answered: this machine, private addresses and `named`.

    A name without a port stands for all its ports.
    """
    if "*" in named:
        return ["*"]
    wanted = [*_LOCAL_HOSTS, *named]
    with_ports = [f"{one}:*" for one in wanted if ":" not in one.replace("[[]::1]", "")]
    # MLflow compares what has no star in it as it is.
    return [*(one.replace("[[]", "[") for one in wanted), *with_ports, *_PRIVATE_HOSTS]


def advice(wanted: Wanted) -> list[str]:
    """Lines that someone who starts such a server should read."""
    lines = []
    if wanted.is_open and not wanted.allowed_hosts:
        lines.append(
            "answers to localhost and private addresses only; by a name: --allowed-hosts NAME,…"
        )
    if wanted.is_open and not wanted.app_name:
        lines.append(
            f"on {wanted.host} anyone who reaches it may read and write: --app-name basic-auth"
        )
    return lines
