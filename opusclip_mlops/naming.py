"""What a run is called and where it goes, out of the configuration and this process."""

import os
import re
import stat
import sys
import time
import uuid
from pathlib import Path
from urllib.parse import unquote, urlsplit

from opusclip_mlops.config import TrackingConfig
from opusclip_mlops.errors import ConfigError
from opusclip_mlops.folder import Identity, Manifest
from opusclip_mlops.redaction import one_line

_SECRET_IN_QUERY = re.compile(r"(?i)(passw|pwd|token|secret|key)\w*\s*=")


def checked_config(config: object) -> TrackingConfig:
    """The configuration that was given, or the default one.

    Raises:
        TypeError: it is anything else.
        ConfigError: the current folder is gone, or its name is no UTF-8.
    """
    if not isinstance(config, TrackingConfig | None):
        raise TypeError(f"config must be a TrackingConfig, not {config!r:.60}")
    try:
        os.getcwd().encode()
    except FileNotFoundError:
        raise ConfigError("the current folder was removed: change to one that is there") from None
    except UnicodeEncodeError:
        named = repr(os.fsencode(os.getcwd()))
        raise ConfigError(f"the current folder {named} has no name in UTF-8: rename it") from None
    return config or TrackingConfig()


def known_run(config: TrackingConfig) -> tuple[str | None, bool]:
    """The run to go on with, None for a new one; and whether its end is ours to declare."""
    active = _fluent_run()
    if active and config.run_id in (None, active):
        return active, False
    return config.run_id, True


def _fluent_run() -> str | None:
    """The id of the active fluent run, where this process uses MLflow itself."""
    active_run = getattr(sys.modules.get("mlflow"), "active_run", None)
    run = active_run() if active_run else None
    return str(run.info.run_id) if run else None


def _tracking_uri(config: TrackingConfig) -> str | None:
    """What MLflow would use in this process; None leaves the answer to MLflow in the shipper."""
    ask = getattr(sys.modules.get("mlflow"), "get_tracking_uri", None)
    return config.tracking_uri or (str(ask()) if ask else None)


def manifest_of(config: TrackingConfig, run_id: str | None) -> Manifest:
    """What a run's folder is to remember of the configuration."""
    mirrors = {"tensorboard": config.use_tensorboard, "wandb": _mirrors_to_wandb(config)}
    tracking_uri = _tracking_uri(config)
    by_id = None if config.experiment_name else os.environ.get("MLFLOW_EXPERIMENT_ID")
    local_id = run_id or uuid.uuid4().hex
    return Manifest(
        local_id=local_id,
        cwd=os.getcwd(),
        sinks=["mlflow", *(name for name, wanted in mirrors.items() if wanted)],
        experiment_name=config.experiment_name or (None if by_id else "Default"),
        experiment_id=by_id,
        run_id=run_id,
        run_name=config.run_name or time.strftime(f"%Y%m%d-%H%M%S-{local_id[:4]}"),
        start_time_ms=int(time.time() * 1000),
        tracking_uri=_unless_secret(tracking_uri),
        tracking_uri_is_secret=tracking_uri is not None and not _unless_secret(tracking_uri),
        registry_uri=_unless_secret(config.registry_uri),
        tensorboard_dir=config.tensorboard_dir,
        wandb_dir=config.wandb_dir,
        wandb_mode=config.wandb_mode,
        wandb_entity=config.wandb_entity,
        project_name=config.project_name,
        notes=config.notes,
        backlog_quota_bytes=config.backlog_quota_bytes,
        system_metrics=config.system_metrics,
        system_metrics_interval_s=config.system_metrics_interval_s,
    )


def _mirrors_to_wandb(config: TrackingConfig) -> bool:
    return config.use_wandb and config.wandb_mode != "disabled"


def unwritable(manifest: Manifest) -> str:
    """Why TensorBoard's files cannot be written, and what to do; empty where they can."""
    if "tensorboard" not in manifest.sinks:
        return ""
    why = _fault_of_folder(Path(manifest.cwd, manifest.tensorboard_dir))
    return why and (
        f"tensorboard_dir {one_line(manifest.tensorboard_dir)} cannot be made or written: {why}; "
        "training goes on, and TensorBoard gets the run once it can be"
    )


def _fault_of_folder(folder: Path) -> str:
    """Why nobody can write into a folder that may still have to be made; empty where one can."""
    for place in (folder, *folder.parents):
        try:
            if not stat.S_ISDIR(place.stat().st_mode):
                return f"{one_line(str(place))} is no folder"
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (OSError, ValueError) as error:
            return getattr(error, "strerror", None) or "it is no path"
        is_writable = os.access(place, os.W_OK | os.X_OK)
        return "" if is_writable else f"{one_line(str(place))} may not be written"
    return ""


def own_identity(manifest: Manifest) -> Identity:
    """The name by which the mirrors can begin before MLflow has answered."""
    return Identity(
        mirror_id=manifest.local_id,
        experiment_name=manifest.experiment_name or "Default",
        run_name=manifest.run_name or "",
    )


def secrets_of(config: TrackingConfig) -> dict[str, str]:
    """URIs for the shipper's environment: they may hold a password and are never written down."""
    uris = {
        "MLFLOW_TRACKING_URI": _tracking_uri(config),
        "MLFLOW_REGISTRY_URI": config.registry_uri,
    }
    return {name: uri for name, uri in uris.items() if uri}


def _unless_secret(uri: str | None) -> str | None:
    if uri is None:
        return None
    parts = urlsplit(uri)
    is_token = parts.scheme.startswith("http") and parts.username
    in_query = _SECRET_IN_QUERY.search(unquote(parts.query))
    is_secret = parts.password is not None or is_token or in_query
    return None if is_secret else uri
