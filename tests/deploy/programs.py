"""Debian's nginx and Prometheus: tests that run them are skipped where there are none.

With CI=true they fail there, so that a check which has run nothing is never green.
"""

import importlib.util
import os
import re
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
CONFIG = DEPLOY / "config"


def program(name: str) -> str:
    """Where a program is; the test is skipped or fails without it."""
    path = shutil.which(name)
    if path is None:
        missing = f"no {name} on PATH (`make deployed` installs it)"
        if os.environ.get("CI") == "true":
            pytest.fail(missing, pytrace=False)
        pytest.skip(missing)
    return path


def filled_in(template: str, values: Mapping[str, str]) -> str:
    """What envsubst makes of a template, with the filter of compose.yaml: no name is left over."""
    return re.sub(r"\$\{(OPUSCLIP_\w+)\}", lambda found: values[found[1]], template)


def door_values(folder: Path, **others: str) -> dict[str, str]:
    """What the template of nginx needs, on this machine."""
    return {
        "OPUSCLIP_NGINX_DIR": str(folder),
        "OPUSCLIP_TLS_DIR": str(folder),
        "OPUSCLIP_TLS_LISTEN": "127.0.0.1:8443",
        "OPUSCLIP_HTTP_LISTEN": "127.0.0.1:8080",
        "OPUSCLIP_PUBLIC_PORT": "",
        "OPUSCLIP_RESOLVER": "",
        "OPUSCLIP_SERVERS": "server 127.0.0.1:5000;",
        "OPUSCLIP_TENSORBOARD": "server 127.0.0.1:6006;",
        "OPUSCLIP_GRAFANA": "server 127.0.0.1:3000;",
        **others,
    }


def script(name: str) -> Any:
    """One of the programs of deploy/, loaded as a module."""
    spec = importlib.util.spec_from_file_location(name, DEPLOY / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    # Where dataclasses look for the module of a class.
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
