"""What a trial is given: values drawn by W&B's distributions, or points of a grid.

What Optuna has itself is drawn by Optuna. All else is drawn as a quantile, evenly between 0 and 1,
and becomes a value by the distribution's inverse CDF: so each value is exactly as likely as W&B's
definition says, and a search that learns works on the same scale.
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import NormalDist
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from opusclip_mlops.errors import ConfigError
from opusclip_mlops.sweeps.kinds import CATEGORICAL, CONSTANT, INT, WEIGHED, Parameter

_LEAST_QUANTILE = 1e-12
_QUANTILES = FloatDistribution(_LEAST_QUANTILE, 1 - _LEAST_QUANTILE)
_MOST_POINTS, _MOST_SAID = 100_000, 10**9
_GRID_KINDS = (CONSTANT, CATEGORICAL, INT, "q_uniform")


def distribution_of(parameter: Parameter) -> BaseDistribution | None:
    """What Optuna draws for a parameter; None where there is nothing to draw."""
    fields = parameter.fields
    match parameter.kind:
        case "constant":
            return None
        case "categorical":
            return CategoricalDistribution(range(len(fields["values"])))
        case "int_uniform":
            return IntDistribution(fields["min"], fields["max"])
        case "uniform":
            return FloatDistribution(fields["min"], fields["max"])
        case "log_uniform_values" | "inv_log_uniform_values":
            return FloatDistribution(fields["min"], fields["max"], log=True)
    return _QUANTILES


def value_of(parameter: Parameter, drawn: Any) -> Any:
    """The value that a trial gets, of what Optuna has drawn."""
    fields = parameter.fields
    match parameter.kind:
        case "constant":
            return fields["value"]
        case "categorical":
            return fields["values"][drawn]
        case "int_uniform" | "uniform" | "log_uniform_values" | "inv_log_uniform_values":
            return drawn
    return at_quantile(parameter, drawn)


def at_quantile(parameter: Parameter, quantile: float) -> Any:
    """The value below which a distribution has this part, 0..1, of what it draws.

    Of a `q_` distribution the multiple of `q` nearest to that, a whole number where `q` is one.
    """
    fields = parameter.fields
    if parameter.kind == WEIGHED:
        return _weighed(fields["values"], fields["probabilities"], quantile)
    value = _continuous(parameter.kind.removeprefix("q_"), fields, quantile)
    if "q" not in fields:
        return value
    count = round(value / fields["q"])
    return count * fields["q"]


def _continuous(kind: str, fields: Mapping[str, Any], quantile: float) -> float:
    match kind:
        case "uniform":
            return _between(fields["min"], fields["max"], quantile)
        case "log_uniform":
            return math.exp(_between(fields["min"], fields["max"], quantile))
        case "log_uniform_values":
            low, high = math.log(fields["min"]), math.log(fields["max"])
            return math.exp(_between(low, high, quantile))
        case "inv_log_uniform":
            return math.exp(-_between(fields["min"], fields["max"], 1 - quantile))
        case "normal":
            return _bell(fields, quantile)
        case "log_normal":
            return math.exp(_bell(fields, quantile))
    from scipy.special import betaincinv

    return float(betaincinv(fields["a"], fields["b"], quantile))


def _between(low: float, high: float, quantile: float) -> float:
    return low + quantile * (high - low)


def _bell(fields: Mapping[str, Any], quantile: float) -> float:
    if not fields["sigma"]:
        return float(fields["mu"])
    return NormalDist(fields["mu"], fields["sigma"]).inv_cdf(quantile)


def _weighed(values: Sequence[Any], weights: Sequence[float], quantile: float) -> Any:
    for value, reached in zip(values, itertools.accumulate(weights), strict=True):
        if quantile <= reached:
            return value
    return values[max(index for index, weight in enumerate(weights) if weight)]


class Grid:
    """All combinations of the values of parameters, in order: the last parameter changes first.

    Raises:
        ConfigError: a parameter has no list of values, or there are too many combinations.
    """

    def __init__(self, parameters: Sequence[Parameter]) -> None:
        self._values = {one.name: list(_points(one)) for one in parameters}
        count = math.prod(map(len, self._values.values()))
        if count > _MOST_POINTS:
            said = str(count) if count < _MOST_SAID else f"more than {_MOST_SAID}"
            raise ConfigError(f"method grid has {said} combinations: {_MOST_POINTS} at most")
        self._count = count

    def __len__(self) -> int:
        return self._count

    def drawn(self, number: int) -> dict[str, int]:
        """Which value of each parameter the point of this number has."""
        chosen = {}
        for name, values in reversed(self._values.items()):
            number, chosen[name] = divmod(number, len(values))
        return dict(reversed(chosen.items()))

    def point(self, number: int) -> dict[str, Any]:
        """The values of the point of this number, from 0 on."""
        return {name: self._values[name][index] for name, index in self.drawn(number).items()}

    def sizes(self) -> dict[str, int]:
        """How many values each parameter has."""
        return {name: len(values) for name, values in self._values.items()}


def _points(parameter: Parameter) -> Iterator[Any]:
    fields = parameter.fields
    match parameter.kind:
        case "constant":
            yield fields["value"]
        case "categorical":
            yield from fields["values"]
        case "int_uniform":
            _refuse_many(parameter, fields["max"] - fields["min"] + 1)
            yield from range(fields["min"], fields["max"] + 1)
        case "q_uniform":
            # As W&B has it: from `min` on in steps of `q`, without `max`.
            steps = (float(fields["max"]) - float(fields["min"])) / float(fields["q"]) - 1e-9
            _refuse_many(parameter, steps)
            count = max(1, math.ceil(steps))
            yield from (fields["min"] + index * fields["q"] for index in range(count))
        case _:
            raise ConfigError(
                f"parameters.{parameter.name} is {parameter.kind}: method grid takes "
                f"{', '.join(_GRID_KINDS)}"
            )


def _refuse_many(parameter: Parameter, count: float) -> None:
    if count > _MOST_POINTS:
        raise ConfigError(
            f"parameters.{parameter.name} has {count:.12g} values: method grid takes {_MOST_POINTS}"
        )


def check_space(parameters: Sequence[Parameter]) -> None:
    """Refuse what no number can hold.

    Raises:
        ConfigError: a distribution whose values are beyond the largest number.
    """
    for one in parameters:
        try:
            is_there = all(math.isfinite(value) for value in _ends(one))
        except OverflowError:
            is_there = False
        if not is_there:
            fields = ", ".join(f"{name} {value}" for name, value in one.fields.items())
            raise ConfigError(
                f"parameters.{one.name} ({one.kind}, {fields}) has values beyond the largest number"
            )


def _ends(parameter: Parameter) -> list[float]:
    """How far what is drawn reaches, where numbers are."""
    if parameter.kind == "uniform":
        return [float(parameter.fields["max"] - parameter.fields["min"])]
    is_quantile = distribution_of(parameter) == _QUANTILES and parameter.kind != WEIGHED
    ends = (_LEAST_QUANTILE, 1 - _LEAST_QUANTILE) if is_quantile else ()
    return [at_quantile(parameter, end) for end in ends]


def nested(values: Mapping[str, Any], parameters: Sequence[Parameter]) -> dict[str, Any]:
    """Values by the names of parameters, nested as the file nests them."""
    made: dict[str, Any] = {}
    for one in parameters:
        place = made
        for name in one.path[:-1]:
            place = place.setdefault(name, {})
        place[one.path[-1]] = values[one.name]
    return made
