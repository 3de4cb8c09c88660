"""What the engine can't do of W&B's schema: an error that names the key, before all else."""

from collections.abc import Mapping
from typing import Any

from opusclip_mlops.errors import ConfigError
from opusclip_mlops.sweeps.commands import check_command
from opusclip_mlops.sweeps.schema import SweepConfig
from opusclip_mlops.sweeps.spaces import Grid, check_space

_ONLY_WANDB = {
    "scheduler": "it starts optimizers of W&B's own",
    "metrics": "it looks for one metric",
    "job": "it starts programs, no launch jobs",
    "image_uri": "it starts programs, no images",
}


def check_for_optuna(config: SweepConfig) -> None:
    """Refuse what the engine `optuna` would do otherwise than W&B, or not at all.

    Raises:
        ConfigError: such a key, by its path and with the reason.
    """
    for key, why in _ONLY_WANDB.items():
        if key in config.document:
            raise ConfigError(f"{key}: engine optuna can't: {why}; leave it out")
    if config.document.get("controller", {"type": "local"}) != {"type": "local"}:
        raise ConfigError("controller: engine optuna can't: it searches here; leave it out")
    if config.method == "custom":
        raise ConfigError("method: engine optuna can't do custom: choose grid, random or bayes")
    if config.method == "bayes" and config.metric is None:
        raise ConfigError("metric is missing: method bayes needs it")
    _check_imputing(config.document.get("metric") or {}, config.method)
    check_space(config.parameters)
    if config.method == "grid":
        Grid(config.parameters)
    check_command(config.command, config.program)


def _check_imputing(metric: Mapping[str, Any], method: str) -> None:
    for key, usual in (("impute", None), ("impute_while_running", "false")):
        if method == "bayes" and key in metric and metric[key] not in (usual, False):
            raise ConfigError(
                f"metric.{key}: engine optuna can't: its search learns from trials with a "
                "value; leave it out"
            )


def check_for_wandb(config: SweepConfig) -> None:
    """Refuse what `wandb.sweep` and `wandb.agent` can't run.

    Raises:
        ConfigError: such a key, by its path and with the reason.
    """
    for key in ("scheduler", "metrics", "job", "image_uri"):
        if key in config.document:
            raise ConfigError(f"{key}: engine wandb can't: it starts W&B's agents; leave it out")
    if config.document.get("controller", {"type": "cloud"}) != {"type": "cloud"}:
        raise ConfigError("controller: engine wandb can't: W&B searches; leave it out")
    if config.method == "custom":
        raise ConfigError("method: engine wandb can't do custom: choose grid, random or bayes")
    if not config.program:
        raise ConfigError("program is missing: W&B's agents need it")
    check_command(config.command, config.program)


def trial_count(config: SweepConfig, asked: int | None) -> int:
    """How many trials a sweep has: as asked for, at most `run_cap`, no more than a grid.

    W&B's agents go by both limits, too.

    Raises:
        ConfigError: nobody says how many.
    """
    limits = [one for one in (asked, config.run_cap) if one is not None]
    if config.method == "grid":
        limits.append(len(Grid(config.parameters)))
    if not limits:
        raise ConfigError(
            f"method {config.method} has no end: give --count, or run_cap in the file"
        )
    return min(limits)
