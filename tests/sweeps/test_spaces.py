"""What trials are given: compared with W&B's definitions of its distributions."""

from collections.abc import Callable
from typing import Any

import numpy as np
import optuna
import pytest
from scipy import stats

from opusclip_mlops.errors import ConfigError
from opusclip_mlops.sweeps.kinds import Parameter, parameter_of
from opusclip_mlops.sweeps.spaces import (
    Grid,
    at_quantile,
    check_space,
    distribution_of,
    nested,
    value_of,
)

Quantiles = Callable[[Any], Any]
_DRAWS = 2000


def of(kind: str, name: str = "x", **fields: Any) -> Parameter:
    return parameter_of((name,), {"distribution": kind, **fields}, name)


def rounded(inverse: Quantiles, q: float) -> Quantiles:
    """W&B's `q_`: the nearest multiple of q."""
    return lambda u: np.round(inverse(u) / q) * q


def uniform(low: float, high: float) -> Quantiles:
    return stats.uniform(low, high - low).ppf


def log_uniform(low: float, high: float) -> Quantiles:
    return stats.loguniform(low, high).ppf


# By W&B's documentation of each; `log_uniform` and `inv_log_uniform` are given exponents.
DEFINITIONS: list[tuple[Parameter, Quantiles]] = [
    (of("uniform", min=-1, max=3.0), uniform(-1, 3)),
    (of("q_uniform", min=0, max=10, q=2), rounded(uniform(0, 10), 2)),
    (of("q_uniform", min=0.0, max=1.0, q=0.1), rounded(uniform(0, 1), 0.1)),
    (of("log_uniform", min=-3, max=1), log_uniform(np.exp(-3), np.exp(1))),
    (of("log_uniform_values", min=1e-4, max=1.0), log_uniform(1e-4, 1)),
    (of("inv_log_uniform", min=-1, max=3), log_uniform(np.exp(-3), np.exp(1))),
    (of("inv_log_uniform_values", min=0.01, max=10.0), log_uniform(0.01, 10)),
    (of("q_log_uniform", min=0, max=5, q=3), rounded(log_uniform(1, np.exp(5)), 3)),
    (of("q_log_uniform_values", min=1, max=100, q=10), rounded(log_uniform(1, 100), 10)),
    (of("normal", mu=2, sigma=0.5), stats.norm(2, 0.5).ppf),
    (of("q_normal", mu=0, sigma=10, q=1), rounded(stats.norm(0, 10).ppf, 1)),
    (of("log_normal", mu=1, sigma=0.3), stats.lognorm(0.3, scale=np.exp(1)).ppf),
    (of("q_log_normal", mu=3, sigma=1, q=5), rounded(stats.lognorm(1, scale=np.exp(3)).ppf, 5)),
    (of("beta", a=2, b=5), stats.beta(2, 5).ppf),
    (of("q_beta", a=2, b=2, q=0.25), rounded(stats.beta(2, 2).ppf, 0.25)),
    (of("int_uniform", min=3, max=7), lambda u: stats.randint.ppf(u, 3, 8)),
]


def draw(parameters: list[Parameter], count: int) -> dict[str, list[Any]]:
    """What trials would be given, by the sampler of `method: random`."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    sampler = optuna.samplers.RandomSampler(seed=5)
    generator = {one.name: distribution_of(one) for one in parameters}
    study = optuna.create_study(sampler=sampler)
    trial = study.ask()
    drawn: dict[str, list[Any]] = {one.name: [] for one in parameters}
    for _ in range(count):
        for one in parameters:
            kind = generator[one.name]
            assert kind is not None
            made = sampler.sample_independent(study, trial._get_latest_trial(), one.name, kind)
            drawn[one.name].append(value_of(one, made))
    return drawn


@pytest.mark.parametrize(
    ("parameter", "inverse"), DEFINITIONS, ids=[one.kind for one, _ in DEFINITIONS]
)
def test_values_are_drawn_as_wandb_defines(parameter: Parameter, inverse: Quantiles) -> None:
    """The draws lie along W&B's distribution: no part of it has more or less than its share."""
    found = np.sort(draw([parameter], _DRAWS)["x"])
    # Of a definition with steps, the share at or below each value.
    fine = np.asarray(inverse((np.arange(200_000) + 0.5) / 200_000), dtype=float)
    at = (
        np.unique(fine) if len(np.unique(fine)) < 1000 else np.quantile(fine, np.linspace(0, 1, 99))
    )
    meant = np.searchsorted(np.sort(fine), at + 1e-9, side="right") / len(fine)
    seen = np.searchsorted(found, at + 1e-9, side="right") / len(found)
    # Two thousand draws are this far off once in ten million times (Dvoretzky, Massart).
    assert np.abs(meant - seen).max() < np.sqrt(np.log(2e7) / (2 * _DRAWS))


@pytest.mark.parametrize(
    ("parameter", "inverse"),
    [pair for pair in DEFINITIONS if pair[0].kind not in ("int_uniform", "inv_log_uniform_values")],
    ids=[
        one.kind
        for one, _ in DEFINITIONS
        if one.kind not in ("int_uniform", "inv_log_uniform_values")
    ],
)
def test_quantiles_are_exact(parameter: Parameter, inverse: Quantiles) -> None:
    """Not only likely: each quantile is W&B's, to rounding."""
    for quantile in (0.001, 0.137, 0.5, 0.83, 0.999):
        assert at_quantile(parameter, quantile) == pytest.approx(float(inverse(quantile)), rel=1e-9)


def test_steps_of_a_whole_number_are_whole_numbers() -> None:
    """As W&B gives them: a count is no 4.0."""
    assert isinstance(at_quantile(of("q_normal", sigma=9, q=2), 0.7), int)
    assert isinstance(at_quantile(of("q_normal", sigma=9, q=0.5), 0.7), float)


def test_weights_are_kept() -> None:
    """A value of weight 0 is never drawn, the others as often as they weigh."""
    weighed = of("categorical_w_probabilities", values=["a", [1], "c"], probabilities=[0.2, 0, 0.8])
    found = draw([weighed], _DRAWS)["x"]
    assert {str(one) for one in found} == {"a", "c"}
    assert found.count("a") / _DRAWS == pytest.approx(0.2, abs=0.05)
    assert at_quantile(weighed, 1.0) == "c"


def test_lists_mappings_and_truth_values_come_as_they_are() -> None:
    """A value of the file is the value of a trial, whatever it is; 1 and true are two."""
    values = [1, True, None, [1, 2], {"deep": 3}, "x"]
    chosen = of("categorical", values=values)
    found = draw([chosen], 200)["x"]
    assert {repr(one) for one in found} == {repr(one) for one in values}


def test_a_constant_is_not_drawn() -> None:
    """It is what the file says."""
    assert distribution_of(of("constant", value=[1])) is None
    assert value_of(of("constant", value=[1]), None) == [1]


def test_a_grid_has_each_combination_once() -> None:
    """In order, the last parameter first; constants, whole numbers and steps are lists too."""
    grid = Grid(
        [
            of("categorical", "a", values=["x", "y"]),
            of("constant", "b", value=9),
            of("int_uniform", "c", min=1, max=3),
            of("q_uniform", "d", min=0.0, max=0.3, q=0.1),
        ]
    )
    points = [grid.point(number) for number in range(len(grid))]
    assert len(grid) == 2 * 3 * 3
    assert len({str(one) for one in points}) == len(points)
    assert points[0] == {"a": "x", "b": 9, "c": 1, "d": 0.0}
    assert points[1]["d"] == pytest.approx(0.1)
    assert points[-1] == pytest.approx({"a": "y", "b": 9, "c": 3, "d": 0.2}, abs=1e-9) or (
        points[-1]["a"] == "y" and points[-1]["c"] == 3
    )


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ([of("uniform", min=0.0, max=1.0)], "parameters.x is uniform: method grid takes"),
        ([of("int_uniform", min=0, max=10**9)], "parameters.x has 1000000001 values"),
        ([of("int_uniform", f"p{n}", min=0, max=999) for n in range(2)], "1000000 combinations"),
        ([of("categorical", f"p{n}", values=[0] * 10) for n in range(20)], "than 1000000000 comb"),
        ([of("q_uniform", min=-1e308, max=1e308, q=1)], "parameters.x has inf values"),
    ],
)
def test_what_no_grid_can_hold_is_refused(parameters: list[Parameter], said: str) -> None:
    """By the parameter's key."""
    with pytest.raises(ConfigError, match=said):
        Grid(parameters)


def test_values_beyond_the_largest_number_are_refused() -> None:
    """`log_uniform` takes exponents: who gives it 1000 means something else."""
    with pytest.raises(ConfigError, match=r"parameters.x \(log_uniform, min 0, max 1000\)"):
        check_space([of("log_uniform", min=0, max=1000)])
    with pytest.raises(ConfigError, match="beyond"):
        check_space([of("uniform", min=-1.7e308, max=1.7e308)])
    check_space([one for one, _ in DEFINITIONS])


def test_values_are_nested_as_in_the_file() -> None:
    """The program is given the tree."""
    tree = {"a": {"value": 1}, "b": {"value": 2}}
    parameters = [
        parameter_of(("opt", "a"), tree["a"], ""),
        parameter_of(("opt", "deep", "b"), tree["b"], ""),
        parameter_of(("c.d",), {"value": 3}, ""),
    ]
    values = {"opt.a": 1, "opt.deep.b": 2, "c.d": 3}
    assert nested(values, parameters) == {"opt": {"a": 1, "deep": {"b": 2}}, "c.d": 3}


def test_what_optuna_has_is_what_wandbs_own_translation_makes() -> None:
    """W&B's client 0.31 knows Optuna too: where it translates, both draw from the same."""
    from wandb.sdk.sweeps.scheduler.optuna import sweep_parameter_to_distribution

    for one in (
        of("uniform", min=0.0, max=2.0), of("int_uniform", min=1, max=9),
        of("log_uniform_values", min=0.1, max=1.0),
    ):  # fmt: skip
        theirs = sweep_parameter_to_distribution({"distribution": one.kind, **one.fields})
        assert distribution_of(one) == theirs
