"""What the stores of this shelf can be used with; told in one line before a table is touched."""

from __future__ import annotations

import importlib.util
import os
import sys

from opusclip_mlops.server.places import PREFIX, shown_uri, stock_uri

SUPPORTED = ">=3.17,<3.18"
"""The versions of MLflow whose tables and rules are known here."""


def refusal(uri: str) -> str | None:
    """Why a store cannot be had for a URI, and what to do about it; None where it can."""
    from mlflow.environment_variables import MLFLOW_ENABLE_WORKSPACES
    from mlflow.version import VERSION
    from packaging.specifiers import SpecifierSet

    if not SpecifierSet(SUPPORTED).contains(VERSION, prereleases=True):
        return (
            f"MLflow {VERSION} is here, and {shown_uri(uri)} needs mlflow{SUPPORTED}: install "
            "that, or start MLflow on the URI without `opusclip+`"
        )
    if MLFLOW_ENABLE_WORKSPACES.get():
        return (
            f"{shown_uri(uri)} knows no workspaces: unset MLFLOW_ENABLE_WORKSPACES and leave out "
            "--enable-workspaces, or start MLflow on the URI without `opusclip+`"
        )
    if _is_half_guarded():
        return (
            f"{shown_uri(uri)} guards runs and models together: begin both URIs with `opusclip+`, "
            "or leave --registry-store-uri out"
        )
    if stock_uri(uri).startswith("postgresql") and not importlib.util.find_spec("psycopg2"):
        return f"{shown_uri(uri)} needs psycopg2: pip install 'opusclip-mlops[server]'"
    return None


def _is_half_guarded() -> bool:
    """Whether the other part, runs or models, is stock in this server, or in one about to start."""
    import click
    from mlflow.server.constants import BACKEND_STORE_URI_ENV_VAR, REGISTRY_STORE_URI_ENV_VAR

    command = click.get_current_context(silent=True)
    told = command.params if command else {}
    known = {
        "backend_store_uri": os.environ.get(BACKEND_STORE_URI_ENV_VAR),
        "registry_store_uri": os.environ.get(REGISTRY_STORE_URI_ENV_VAR),
    }
    uris = [str(told.get(name) or uri or PREFIX) for name, uri in known.items()]
    return not all(uri.lower().startswith(PREFIX) for uri in uris)


def demand_supported(uri: str) -> None:
    """Let pass what a store can be had for.

    Raises:
        MlflowException: The line of `refusal`.
        SystemExit: The same, in a command such as `mlflow server`, which would log a traceback.
    """
    line = refusal(uri)
    if line is None:
        return
    import click
    from mlflow.exceptions import MlflowException

    if click.get_current_context(silent=True):
        sys.exit(line)
    raise MlflowException.invalid_parameter_value(line)
