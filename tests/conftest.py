import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest_plugins = ["tests.browser"]

_DRAWING = Path(tempfile.gettempdir()) / f"matplotlib-of-tests-{os.geteuid()}"
_OURS = ("MLFLOW_", "WANDB_", "OPUSCLIP_")


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test works in a folder of its own, with nobody's settings or keys."""
    for name in list(os.environ):
        if name.startswith(_OURS):
            monkeypatch.delenv(name)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    # Made anew it takes seconds of every process that draws or scores.
    monkeypatch.setenv("MPLCONFIGDIR", str(_DRAWING))
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module", autouse=True)
def _no_client_of_another_file() -> Iterator[None]:
    """The W&B client keeps the server and the key of its first run for as long as it lives."""
    yield
    if "wandb" in sys.modules:
        sys.modules["wandb"].teardown()
