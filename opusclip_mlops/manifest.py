"""What a run is called and where it goes, and what MLflow has answered."""

from typing import Any

import msgspec


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What a run is called and where it goes; written once, when the run's folder is made.

    `run_id` is the MLflow run to go on with, or None for a new one. URIs that hold a password are
    left out: they come from the environment. Without `declares_end` a mirror is written while the
    run goes on elsewhere. `alerts` are the rules it is watched by. `ranks` processes train together
    on `nodes` machines, of which this is number `node`; the MLflow run is made and ended from the
    one that `owns_run`.
    """

    local_id: str
    cwd: str
    sinks: list[str]
    experiment_name: str | None = None
    experiment_id: str | None = None
    run_id: str | None = None
    run_name: str | None = None
    start_time_ms: int
    tracking_uri: str | None = None
    tracking_uri_is_secret: bool = False
    registry_uri: str | None = None
    tensorboard_dir: str = "runs"
    wandb_dir: str = "."
    wandb_mode: str | None = None
    wandb_entity: str | None = None
    project_name: str = ""
    notes: str = ""
    declares_end: bool = True
    backlog_quota_bytes: int = 4 * 2**30
    system_metrics: bool = True
    system_metrics_interval_s: float = 10.0
    alerts: dict[str, Any] = {}
    ranks: int = 1
    node: int = 0
    nodes: int = 1
    owns_run: bool = True


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """What the run is in MLflow; `mirror_id` is its name in every mirror.

    `run_id`, `artifact_uri` are empty until MLflow has answered. `last_step` is the highest step
    found in a run that is gone on with, -1 in a new one; `start_time_ms` is the run's own; `family`
    names a run with its nested runs, empty where there are none; `generations` are the tags that
    those have left which the run had begun by then.
    """

    mirror_id: str
    experiment_name: str
    run_name: str = ""
    run_id: str = ""
    experiment_id: str = ""
    artifact_uri: str = ""
    last_step: int = -1
    start_time_ms: int = 0
    family: str = ""
    generations: dict[str, str] = {}
