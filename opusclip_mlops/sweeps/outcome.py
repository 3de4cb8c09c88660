"""How the trials of a sweep ended, the best of them, and which parameters made the difference."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import FrozenTrial, create_trial

from opusclip_mlops.sweeps import board
from opusclip_mlops.sweeps.board import Board, Slot
from opusclip_mlops.sweeps.schema import Metric, SweepConfig
from opusclip_mlops.sweeps.spaces import Grid, distribution_of, value_of

_LEAST_FOR_IMPORTANCE = 4
_LEAST_SPAN = 1e-12


@dataclass(frozen=True, kw_only=True)
class TrialOutcome:
    """How a trial stands.

    Attributes:
        number: Its number, from 0 on.
        state: complete, pruned, failed, running or waiting.
        value: The last value of the metric that it logged, None where there is none.
        values: What it was given, by the names of parameters.
        run_id: Its run in MLflow, empty before that is made.
        seconds: How long its last attempt took.
        attempts: How often it was begun.
        reason: Why it did not end well.
    """

    number: int
    state: str
    value: float | None
    values: dict[str, Any]
    run_id: str
    seconds: float | None
    attempts: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class SweepResult:
    """What came of a sweep.

    Attributes:
        name: The sweep's; `resume` takes it.
        run_id: The sweep's run in MLflow.
        metric: What was looked for, None where the file names nothing.
        trials: All that were asked for and begun.
        best: The best of those that ended well, None without a metric.
        importances: How much of the values' variance each parameter explains.
        is_over: Whether nothing is left to do.
        folder: Where the logs of the trials of this machine lie.
        may_go_on: Whether `resume` takes it.
    """

    name: str
    run_id: str
    metric: str | None
    trials: tuple[TrialOutcome, ...]
    best: TrialOutcome | None
    importances: dict[str, float]
    is_over: bool
    folder: Path
    may_go_on: bool = True


def outcomes(found: Board, config: SweepConfig, count: int) -> tuple[TrialOutcome, ...]:
    """How each of the first `count` trials stands."""
    grid = Grid(config.parameters) if config.method == "grid" else None
    slots = (one for one in found.asked_for(count) if not one.is_surplus)
    return tuple(_outcome(one, config, grid) for one in slots)


def _outcome(slot: Slot, config: SweepConfig, grid: Grid | None) -> TrialOutcome:
    last = slot.last
    attrs = last.user_attrs
    return TrialOutcome(
        number=slot.number,
        state=slot.state,
        value=last.values[0] if last.values and config.metric else None,
        values=grid.point(slot.number) if grid else _values(last, config),
        run_id=attrs.get(board.RUN_ID, ""),
        seconds=last.duration.total_seconds() if last.duration else None,
        attempts=sum(not one.user_attrs.get(board.SURPLUS) for one in slot.attempts),
        reason=attrs.get(board.REASON, ""),
    )


def _values(trial: FrozenTrial, config: SweepConfig) -> dict[str, Any]:
    drawn = [(one, trial.params.get(one.name)) for one in config.parameters]
    is_drawn = [(one, value) for one, value in drawn if value is not None or not _is_drawn(one)]
    return {one.name: value_of(one, value) for one, value in is_drawn}


def _is_drawn(parameter: Any) -> bool:
    return distribution_of(parameter) is not None


def best_of(found: Sequence[TrialOutcome], metric: Metric | None) -> TrialOutcome | None:
    """The trial that ended well with the best value; of equal ones the first."""
    ended = [one for one in found if one.state == "complete" and one.value is not None]
    if metric is None or not ended:
        return None
    choose = max if metric.maximizes else min
    return choose(ended, key=lambda one: one.value or 0.0)


def importances(found: Board, config: SweepConfig, count: int) -> dict[str, float]:
    """How much of the values' variance each parameter explains, by fANOVA; they add up to 1.

    Empty where too few trials ended well, or all with the same value but for rounding.
    """
    space = _space(config)
    grid = Grid(config.parameters) if config.method == "grid" else None
    study = _study_of(found, config, space, grid, count)
    if not space or len(study.trials) < _LEAST_FOR_IMPORTANCE:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        try:
            measured = optuna.importance.get_param_importances(study, evaluator=evaluator)
        except (RuntimeError, OverflowError, ValueError):
            return {}
    return {name: float(share) for name, share in measured.items()}


def _standardised(values: Sequence[float]) -> list[float]:
    """Values moved and scaled to 0..1, which no sum overflows; none where all are the same."""
    largest = max(map(abs, values), default=0.0)
    if not largest:
        return []
    scaled = [one / largest for one in values]
    low, span = min(scaled), max(scaled) - min(scaled)
    return [(one - low) / span for one in scaled] if span > _LEAST_SPAN else []


def _space(config: SweepConfig) -> dict[str, BaseDistribution]:
    """What differs between trials, as Optuna takes it."""
    if config.method == "grid":
        sizes = Grid(config.parameters).sizes()
        return {
            name: CategoricalDistribution(range(size)) for name, size in sizes.items() if size > 1
        }
    drawn = {one.name: distribution_of(one) for one in config.parameters}
    return {name: one for name, one in drawn.items() if one is not None and not one.single()}


def _study_of(
    found: Board,
    config: SweepConfig,
    space: dict[str, BaseDistribution],
    grid: Grid | None,
    count: int,
) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study()
    slots = [
        one
        for one in found.asked_for(count)
        if one.state == "complete" and one.last.values and config.metric
    ]
    values = _standardised([one.last.values[0] for one in slots])
    for slot, value in zip(slots, values, strict=False):
        drawn = grid.drawn(slot.number) if grid else slot.last.params
        params = {name: drawn[name] for name in space}
        study.add_trial(create_trial(params=params, distributions=space, value=value))
    return study
