"""MLflow runs, of whatever client, replayed into TensorBoard and W&B: once, or as they go on."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal

import msgspec

from opusclip_mlops import mirror_processes
from opusclip_mlops.config import TrackingConfig
from opusclip_mlops.errors import ConfigError
from opusclip_mlops.mirror_work import RunReport, Work
from opusclip_mlops.targets import Target, parse_target
from opusclip_mlops.wandb_layout import wandb_mode

Does = Literal["mirror", "plan", "verify", "follow"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Places:
    """Where runs are read, and what the mirrors need to know besides their names.

    What is left out comes from the configuration: the environment, or the project's file.

    Args:
        tracking_uri: The MLflow server or store.
        database_uri: MLflow's own database behind a server, to read points from at once.
        wandb_dir: The folder in which W&B keeps its `wandb/`.
        wandb_mode: `online` or `offline`; online where a key is configured.
    """

    tracking_uri: str | None = None
    database_uri: str | None = None
    wandb_dir: str | None = None
    wandb_mode: str | None = None


def mirror(
    runs: str | Sequence[str] = (),
    *,
    to: str | Sequence[str],
    experiments: str | Sequence[str] = (),
    plan: bool = False,
    wait_s: float = 60.0,
    places: Places | None = None,
    show: Callable[[RunReport], None] | None = None,
) -> list[RunReport]:
    """Bring the mirrors of runs up to date; returns what came of each run in each place.

    Whatever a mirror lacks is sent to it, and one that holds what MLflow does not is made anew.
    It can be interrupted anywhere and called again.

    Args:
        runs: Run ids.
        to: Places: `tensorboard:FOLDER` or `wandb:ENTITY/PROJECT`.
        experiments: Names or ids of experiments, for all their runs.
        plan: Send nothing, and report what would be sent.
        wait_s: How long to wait for another process that writes the same mirror, in seconds.
        places: Where MLflow and the mirrors are, other than the configuration says.
        show: Is called with each report as it comes.

    Raises:
        ConfigError: no runs, or no place that can be mirrored to.
        DeliveryError: MLflow can't be read at all.
    """
    does: Does = "plan" if plan else "mirror"
    works = works_of(runs, to=to, experiments=experiments, does=does, places=places)
    works = [msgspec.structs.replace(work, wait_s=wait_s) for work in works]
    return mirror_processes.do(works, show or _say_nothing)


def follow(
    runs: str | Sequence[str] = (),
    *,
    to: str | Sequence[str],
    experiments: str | Sequence[str] = (),
    poll_s: float = 5.0,
    places: Places | None = None,
    show: Callable[[RunReport], None] | None = None,
) -> None:
    """Keep the mirrors of present and future runs up to date, until interrupted.

    Outages of MLflow and of the mirrors are waited out. `poll_s` is the time between two looks at
    MLflow in seconds; see `mirror` for the other arguments and the errors.
    """
    works = works_of(runs, to=to, experiments=experiments, does="follow", places=places)
    works = [msgspec.structs.replace(work, poll_s=poll_s) for work in works]
    mirror_processes.do(works, show or _say_nothing)


def works_of(
    runs: str | Sequence[str],
    *,
    to: str | Sequence[str],
    experiments: str | Sequence[str] = (),
    does: Does,
    places: Places | None,
) -> list[Work]:
    """What each place's process is to do.

    Raises:
        ConfigError: no runs, or no place that can be mirrored to.
    """
    run_ids, names, targets = _several(runs), _several(experiments), _several(to)
    if not run_ids and not names:
        raise ConfigError("name a run, or an experiment with --experiment")
    if not targets:
        raise ConfigError("say where to: --to tensorboard:FOLDER or --to wandb:ENTITY/PROJECT")
    config, given = TrackingConfig(), places or Places()
    found = dict.fromkeys(target_of(name, config, given) for name in targets)
    return [
        Work(
            target=target,
            does=does,
            run_ids=run_ids,
            experiments=names,
            tracking_uri=given.tracking_uri or config.tracking_uri,
            registry_uri=config.registry_uri,
            database_uri=given.database_uri,
        )
        for target in found
    ]


def target_of(name: str, config: TrackingConfig, places: Places) -> Target:
    """A place by its name, its folder as an absolute path.

    Raises:
        ConfigError: it is none, or W&B is disabled.
    """
    mode = places.wandb_mode or config.wandb_mode
    folder = places.wandb_dir or config.wandb_dir
    target = parse_target(name, wandb_dir=folder, wandb_mode=mode)
    if target.kind == "wandb" and mode == "disabled":
        raise ConfigError(f"{name}: W&B is disabled by WANDB_MODE or the configuration")
    return target.resolved(wandb_mode(mode))


def _several(given: str | Sequence[str]) -> list[str]:
    return [given] if isinstance(given, str) else list(dict.fromkeys(given))


def _say_nothing(report: RunReport) -> None:
    """Nobody listens."""
