"""What came of a sweep."""

from pathlib import Path

import pytest
from optuna.trial import TrialState

from opusclip_mlops.sweeps.claims import Claims
from opusclip_mlops.sweeps.outcome import best_of, importances, outcomes
from opusclip_mlops.sweeps.schema import Metric
from tests.sweeps.small_sweeps import claims_of, config_of, end, study_of

PARAMETERS = {
    "x": {"min": 0.0, "max": 1.0},
    "noise": {"distribution": "normal"},
    "kind": {"values": ["a", ["b"]]},
    "fixed": {"value": {"deep": 1}},
}


@pytest.fixture
def claims(tmp_path: Path) -> Claims:
    """A worker of twelve trials."""
    return claims_of(study_of(tmp_path, config_of(parameters=PARAMETERS), count=12))


def test_each_trial_is_told_with_what_it_was_given(claims: Claims) -> None:
    """As the file names it, not as Optuna keeps it; and why it did not end well."""
    config = claims._config
    first, second, third = claims.next(), claims.next(), claims.next()
    assert first
    assert second
    assert third
    end(claims, first, 0.5)
    claims.end(second, TrialState.FAIL, None, "exit code 1")
    found = outcomes(claims.board(), config, 12)
    assert [one.state for one in found] == ["complete", "failed", "running"]
    assert [one.values for one in found] == [first.values, second.values, third.values]
    assert found[0].values["fixed"] == {"deep": 1}
    assert found[1].reason == "exit code 1"


def test_the_best_is_of_those_that_ended_well(claims: Claims) -> None:
    """The first of equal ones; pruned and failed ones never."""
    for value in (0.5, 0.2, 0.2):
        end(claims, claims.next(), value)
    pruned = claims.next()
    assert pruned
    claims.end(pruned, TrialState.PRUNED, 0.1, "it fell behind")
    found = outcomes(claims.board(), claims._config, 12)
    best, worst = best_of(found, Metric("loss")), best_of(found, Metric("loss", maximizes=True))
    assert best
    assert worst
    assert (best.number, worst.number) == (1, 0)
    assert best_of(found, None) is None


def test_what_made_the_difference_is_important(claims: Claims) -> None:
    """The shares add up to 1; a constant has none."""
    while claim := claims.next():
        end(claims, claim, claim.values["x"] * 10)
    shares = importances(claims.board(), claims._config, 12)
    assert set(shares) == {"x", "noise", "kind"}
    assert sum(shares.values()) == pytest.approx(1)
    assert max(shares, key=lambda name: shares[name]) == "x"


def test_of_few_or_equal_values_nothing_is_said(claims: Claims) -> None:
    """There is no variance to share out."""
    for _ in range(3):
        end(claims, claims.next(), 1.0)
    assert importances(claims.board(), claims._config, 12) == {}
    for _ in range(3):
        end(claims, claims.next(), 1.0)
    assert importances(claims.board(), claims._config, 12) == {}


@pytest.mark.parametrize("scale", [1e-9, 1e200, 1e308])
def test_tiny_and_huge_values_are_shared_out_too(claims: Claims, scale: float) -> None:
    """Neither a variance that vanishes nor one that overflows takes a sweep's result away."""
    while claim := claims.next():
        end(claims, claim, (claim.values["x"] - 0.5) * scale)
    shares = importances(claims.board(), claims._config, 12)
    assert max(shares, key=lambda name: shares[name]) == "x"


def test_values_apart_by_rounding_are_the_same(claims: Claims) -> None:
    """Nothing made a difference there."""
    while claim := claims.next():
        end(claims, claim, 1 + claim.number % 2 * 2**-52)
    assert importances(claims.board(), claims._config, 12) == {}


def test_a_grid_is_told_as_any_other(tmp_path: Path) -> None:
    """Optuna draws nothing there: the number of a trial says what it was given."""
    grid = {"a": {"values": [1, 5]}, "b": {"values": ["x", "y", "z"]}, "c": {"value": 0}}
    config = config_of(method="grid", parameters=grid)
    mine = claims_of(study_of(tmp_path, config, count=6))
    while claim := mine.next():
        end(mine, claim, float(claim.values["a"]))
    found = outcomes(mine.board(), config, 6)
    assert found[4].values == {"a": 5, "b": "y", "c": 0}
    assert importances(mine.board(), config, 6)["a"] > 0.9
