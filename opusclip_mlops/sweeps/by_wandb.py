"""A sweep by the engine `wandb`, from its file to what came of it."""

import contextlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from opusclip_mlops.patience import patiently
from opusclip_mlops.sweeps.outcome import SweepResult, best_of
from opusclip_mlops.sweeps.results import begin_run, end_run, or_failed
from opusclip_mlops.sweeps.schema import SweepConfig
from opusclip_mlops.sweeps.telling import Say, reason_of, status_of
from opusclip_mlops.sweeps.wandb_engine import Agents, Spec, begin_at_wandb, kept_outcomes

if TYPE_CHECKING:
    from mlflow import MlflowClient

PLACE_TAG = "opusclip.sweep.wandb"
"""Which sweep at W&B a run is the run of: entity/project/id."""


def sweep_by_wandb(
    client: "MlflowClient",
    config: SweepConfig,
    *,
    name: str,
    folder: Path,
    experiment: str,
    count: int,
    workers: int,
    show: Callable[[str, int, int], object],
    say: Say,
) -> SweepResult:
    """Have W&B search, and its agents run the trials; see `sweeps.sweep`.

    Raises:
        ConfigError: W&B made no sweep.
        RegistryError: MLflow refused, or did not answer.
    """
    place = begin_at_wandb(config.document)
    run_id = begin_run(client, config, name=name, experiment=experiment)
    spec = Spec(name, run_id, config.document, str(folder.absolute()))
    written = or_failed(client, run_id, name, partial(_noted, client, spec, place))
    say(name, run_id)
    shares = [count // workers + (number < count % workers) for number in range(workers)]
    try:
        with contextlib.suppress(KeyboardInterrupt):
            for _ in Agents(place, written, tracking_uri=str(client.tracking_uri)).work(shares):
                show("by W&B", len(kept_outcomes(folder)), count)
    finally:
        result = _ended(client, config, name, run_id, folder, count)
    return result


def _noted(client: "MlflowClient", spec: Spec, place: tuple[str, ...]) -> Path:
    """Say in MLflow which sweep at W&B it is, and here what the agents are to do."""
    what, name = f"cannot describe the run of sweep {spec.name}", "/".join(place)
    patiently(what, lambda: client.set_tag(spec.parent_run_id, PLACE_TAG, name))
    return spec.write()


def _ended(
    client: "MlflowClient", config: SweepConfig, name: str, run_id: str, folder: Path, count: int
) -> SweepResult:
    trials, metric = kept_outcomes(folder), config.metric
    best = best_of(trials, metric)
    result = SweepResult(
        name=name, run_id=run_id, metric=metric.name if metric else None, trials=trials, best=best,
        importances={}, is_over=len(trials) >= count, folder=folder, may_go_on=False,
    )  # fmt: skip
    end_run(
        client, run_id, trials, metric=metric, best=best, shares={}, status=status_of(result),
        reason=reason_of(result),
    )  # fmt: skip
    return result
