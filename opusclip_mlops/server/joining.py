"""Joins MLflow's server process: our routes are there when it looks up its first request's.

MLflow opens its stores when it first needs them, which is too late to add routes.
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

from opusclip_mlops.server.places import PREFIX

if TYPE_CHECKING:
    from flask import Flask

_REGISTRY, _BACKEND = "_MLFLOW_SERVER_REGISTRY_STORE", "_MLFLOW_SERVER_FILE_STORE"
_SERVER = "mlflow.server"
_lock = threading.Lock()


def is_guarding() -> bool:
    """Whether this process answers for a server on a guarded database."""
    uri = os.environ.get(_REGISTRY) or os.environ.get(_BACKEND) or ""
    return uri.startswith(PREFIX)


def if_guarding() -> None:
    """Wait for MLflow's server to answer, in a process of one on a guarded database."""
    if is_guarding():
        await_requests()


def await_requests() -> None:
    """Add the routes when MLflow's server begins to answer; any number of times."""
    from flask import appcontext_pushed

    appcontext_pushed.connect(_join)


def _join(app: Flask, **_: object) -> None:
    """Add the routes to MLflow's application, once, before it has looked up any request's."""
    if app.import_name != _SERVER or not is_guarding():
        return
    with _lock:
        from flask import appcontext_pushed

        from opusclip_mlops.server import decision_routes

        decision_routes.add_to(app)
        appcontext_pushed.disconnect(_join)
