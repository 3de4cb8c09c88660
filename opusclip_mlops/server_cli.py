"""The verb that starts a server."""

import os
from pathlib import Path
from typing import Any

import click

from opusclip_mlops.errors import ConfigError

_PATH = click.Path(dir_okay=False, path_type=Path)


@click.command(context_settings={"ignore_unknown_options": True})
@click.option(
    "--backend",
    "--backend-store-uri",
    help="The database: sqlite:///FILE or postgresql://USER:PASSWORD@HOST/DATABASE; "
    "sqlite:///mlflow.db otherwise. A password is better put into --backend-file.",
)
@click.option(
    "--backend-file",
    type=_PATH,
    help="A file that holds the database's URI; OPUSCLIP_BACKEND_FILE otherwise.",
)
@click.option(
    "--read-replica-backend-store-uri",
    "read_replica",
    envvar="MLFLOW_READ_REPLICA_BACKEND_STORE_URI",
    help="A copy of the database, kept by PostgreSQL, that runs are read from.",
)
@click.option(
    "--artifacts",
    "--artifacts-destination",
    envvar="MLFLOW_ARTIFACTS_DESTINATION",
    default="./mlartifacts",
    show_default=True,
    metavar="DIR|s3://BUCKET/PREFIX",
    help="Where artifacts are kept.",
)
@click.option(
    "--serve-artifacts/--no-serve-artifacts",
    "serves_artifacts",
    envvar="MLFLOW_SERVE_ARTIFACTS",
    default=True,
    show_default=True,
    help="Artifacts pass through the server; or clients reach --artifacts themselves.",
)
@click.option(
    "--default-artifact-root",
    envvar="MLFLOW_DEFAULT_ARTIFACT_ROOT",
    metavar="URI",
    help="Where clients put artifacts of new experiments, when not as above.",
)
@click.option(
    "--host",
    "-h",
    envvar="MLFLOW_HOST",
    default="127.0.0.1",
    show_default=True,
    help="The address it listens on; 0.0.0.0 for all of this machine's.",
)
@click.option(
    "--port",
    "-p",
    envvar="MLFLOW_PORT",
    type=click.IntRange(1, 65535),
    default=5000,
    show_default=True,
    help="The port it listens on.",
)
@click.option(
    "--workers",
    "-w",
    envvar="MLFLOW_WORKERS",
    type=click.IntRange(1, 64),
    help="Processes that answer, of 250 MB each; one for each processor otherwise, 4 at most.",
)
@click.option(
    "--allowed-hosts",
    envvar="MLFLOW_SERVER_ALLOWED_HOSTS",
    default="",
    metavar="NAME,…",
    help="Names it is called by, besides localhost and private addresses.",
)
@click.option(
    "--app-name",
    type=click.Choice(["basic-auth"]),
    help="basic-auth asks everybody for a password.",
)
@click.option("--smoke-tests", is_flag=True, help="Let the guard run a policy's smoke tests.")
@click.option("--webhooks", type=_PATH, help="The file that says who is told of decisions.")
@click.option(
    "--max-request-mb",
    envvar="OPUSCLIP_SERVER_MAX_REQUEST_MB",
    type=float,
    default=32,
    show_default=True,
    help="The largest request that is answered; artifacts may be larger.",
)
@click.option(
    "--state",
    envvar="OPUSCLIP_SERVER_STATE",
    type=click.Path(file_okay=False, path_type=Path),
    help="The folder of its keys; .opusclip/server beside the database's file otherwise.",
)
@click.argument("passed", metavar="[FLAG OF MLFLOW SERVER]...", nargs=-1, type=click.UNPROCESSED)
def server(backend: str | None, backend_file: Path | None, **options: Any) -> None:
    """Run MLflow's server with fast writes, and with the guard before Staging and Production.

    All other flags go to mlflow server as they are, such as --expose-prometheus DIR,
    --static-prefix, --cors-allowed-origins. A database that is empty gets its tables.

    \b
    A secret is read from a file when NAME_FILE names one, for the NAMEs
      OPUSCLIP_BACKEND, MLFLOW_READ_REPLICA_BACKEND_STORE_URI,
      PGPASSWORD, MLFLOW_AUTH_ADMIN_PASSWORD,
      MLFLOW_FLASK_SERVER_SECRET_KEY, MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY,
      AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN.
    """
    from opusclip_mlops.server import command, secret_files
    from opusclip_mlops.server.settings import Wanted

    env = secret_files.read(os.environ)
    workers = options.pop("workers") or min(4, os.cpu_count() or 1)
    hosts = [one.strip() for one in options.pop("allowed_hosts").split(",")]
    webhooks = options.pop("webhooks") or env.get("OPUSCLIP_WEBHOOKS")
    wanted = Wanted(
        backend=_backend(backend, backend_file, env),
        workers=workers,
        allowed_hosts=tuple(filter(None, hosts)),
        webhooks=Path(webhooks) if webhooks else None,
        **options,
    )
    command.run(wanted, env, tell=_tell)


def _backend(told: str | None, file: Path | None, env: dict[str, str]) -> str:
    """The database's URI, from where it was said."""
    from opusclip_mlops.server import secret_files

    if told is not None and not told.strip():
        raise ConfigError("--backend is empty: name a database, or leave it out for mlflow.db here")
    if told and file:
        raise ConfigError("--backend and --backend-file exclude each other")
    if file:
        return secret_files.content(file, said_by="--backend-file")
    said = env.get("OPUSCLIP_BACKEND") or env.get("MLFLOW_BACKEND_STORE_URI")
    return told or said or "sqlite:///mlflow.db"


def _tell(line: str) -> None:
    click.echo(f"opusclip server: {line}", err=True)


VERBS = (server,)
"""All of them, for the command."""
