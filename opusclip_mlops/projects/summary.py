"""What a training run says: a line an epoch, and at its end what came of it and what comes next."""

import os
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import mlflow

from opusclip_mlops import wandb_log
from opusclip_mlops.config import TrackingConfig
from opusclip_mlops.metadata import BestValue
from opusclip_mlops.redaction import redacted
from opusclip_mlops.registry import RegisteredVersion

if TYPE_CHECKING:
    from opusclip_mlops.projects.train import Epoch

SERVE_PORT = 5001

_DEFAULT_STORE = "sqlite:///mlflow.db"


def epoch_line(epoch: "Epoch", *, of: int) -> str:
    """An epoch in a line: the loss, how good the model is, and how long it took."""
    scores = epoch.scores
    return (
        f"epoch {epoch.number:>{len(str(of))}}/{of}  train loss {epoch.train_loss:.4f}  "
        f"val psnr {scores.psnr:.2f} dB (baseline {scores.baseline_psnr:.2f})  "
        f"ssim {scores.ssim:.3f}  {epoch.seconds:.1f} s"
    )


def closing(
    best: BestValue | None,
    version: RegisteredVersion | None,
    *,
    run_id: str | None,
    local_id: str,
    config: TrackingConfig,
) -> str:
    """What came of a run, and the commands that show, serve and upload it.

    Args:
        best: The best checkpoint, by its psnr.
        version: What was registered, if anything.
        run_id: The MLflow run, None where MLflow has not answered.
        local_id: The tracker's.
        config: Where the run went.
    """
    facts = {
        "run": run_id or f"{local_id} (not in MLflow yet)",
        "best": f"{best.checkpoint}, val psnr {best.value:.2f} dB" if best else "none",
        "registered": f"{version.name} version {version.version}" if version else "no",
    }
    todo = commands(version, local_id=local_id, config=config)
    return f"\n{_rows(facts)}\n\nnext, in {Path.cwd()}:\n{_rows(todo)}"


def commands(
    version: RegisteredVersion | None, *, local_id: str, config: TrackingConfig
) -> dict[str, str]:
    """The next commands, to be typed in the folder the run was started in."""
    uri = _store(config)
    found = {**_activation(), "look": _look(uri)}
    if config.use_tensorboard:
        found["curves"] = f"tensorboard --logdir {shlex.quote(config.tensorboard_dir)}"
    if version:
        # `mlflow models serve` takes the store from the environment.
        store = "" if uri == _DEFAULT_STORE else f"MLFLOW_TRACKING_URI={shlex.quote(uri)} "
        model = shlex.quote(version.uri)
        found["serve"] = (
            f"{store}mlflow models serve -m {model} --env-manager local -p {SERVE_PORT}"
        )
    if folders := _offline_runs(Path(config.wandb_dir), local_id):
        found["upload"] = f"wandb sync {shlex.join(folders)}"
    return found


def _activation() -> dict[str, str]:
    """How the shell finds the commands below, where this process runs in a virtual environment."""
    if sys.prefix == sys.base_prefix:
        return {}
    environment = Path(os.environ.get("VIRTUAL_ENV", sys.prefix))
    if environment.is_relative_to(Path.cwd()):
        environment = environment.relative_to(Path.cwd())
    return {"first": f"source {shlex.quote(str(environment / 'bin' / 'activate'))}"}


def _store(config: TrackingConfig) -> str:
    """The tracking URI in use, as it is typed in this folder."""
    uri = config.tracking_uri or mlflow.get_tracking_uri()
    is_default = uri == f"sqlite:///{Path.cwd() / 'mlflow.db'}"
    return _DEFAULT_STORE if is_default else redacted(uri)


def _look(uri: str) -> str:
    if uri.startswith(("http://", "https://")):
        return uri
    return f"mlflow ui --backend-store-uri {shlex.quote(uri)}"


def _offline_runs(wandb_dir: Path, local_id: str) -> list[str]:
    """The folders of a run that W&B keeps on this machine until they are uploaded."""
    folders = [log.parent for log in wandb_log.logs_of(wandb_dir, local_id)]
    return [str(folder) for folder in folders if folder.name.startswith("offline-")]


def _rows(rows: Mapping[str, str]) -> str:
    return "\n".join(f"{name:<12}{value}" for name, value in rows.items())
