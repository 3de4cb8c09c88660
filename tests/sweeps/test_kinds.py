"""What a parameter of a sweep may be."""

from typing import Any

import pytest

from opusclip_mlops.errors import ConfigError
from opusclip_mlops.sweeps.kinds import FIELDS, hint, parameter_of


def read(**given: Any) -> Any:
    return parameter_of(("lr",), given, "parameters.lr")


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        ({"value": 3}, "constant"),
        ({"values": [1, "a"]}, "categorical"),
        ({"values": [1, 2], "probabilities": [0.1, 0.9]}, "categorical_w_probabilities"),
        ({"min": 1, "max": 5}, "int_uniform"),
        ({"min": 1, "max": 5.0}, "uniform"),
        ({"min": 1, "max": 5, "distribution": "uniform"}, "uniform"),
    ],
)
def test_fields_say_which_distribution_is_meant(given: dict[str, Any], kind: str) -> None:
    """As in W&B: two whole numbers are integers, anything else real numbers."""
    assert read(**given).kind == kind


def test_what_may_be_left_out_has_wandbs_defaults() -> None:
    """A bell round 0 of width 1, in steps of 1."""
    assert read(distribution="q_normal").fields == {"mu": 0.0, "sigma": 1.0, "q": 1.0}


def test_all_distributions_of_wandb_are_known() -> None:
    """Those that W&B's own schema names, and no other."""
    assert set(FIELDS) == {
        "constant", "categorical", "categorical_w_probabilities", "int_uniform", "uniform",
        "q_uniform", "log_uniform", "log_uniform_values", "inv_log_uniform",
        "inv_log_uniform_values", "q_log_uniform", "q_log_uniform_values", "normal", "q_normal",
        "log_normal", "q_log_normal", "beta", "q_beta",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"distribution": "gauss"}, "parameters.lr.distribution is 'gauss'"),
        ({"min": 1}, "parameters.lr has no distribution"),
        ({"min": 1, "max": 2, "mu": 0}, "parameters.lr.mu is no field of int_uniform"),
        ({"min": 0.0, "distribution": "uniform"}, "parameters.lr.max is missing"),
        ({"min": "0.1", "max": 1}, "parameters.lr has no distribution|must be a number"),
        ({"min": 2.0, "max": 1.0}, "parameters.lr.min is 2.0, above"),
        ({"min": 0.0, "max": 1.0, "distribution": "log_uniform_values"}, "min must be a number ab"),
        ({"distribution": "normal", "sigma": -1}, "sigma must be a number, 0 or more"),
        ({"distribution": "q_beta", "q": 0}, "q must be a number above 0"),
        ({"distribution": "normal", "mu": True}, "mu must be a number, not True"),
        ({"distribution": "normal", "mu": float("nan")}, "mu must be a number, not nan"),
        ({"values": []}, "values must be a list of one or more"),
        ({"values": [1], "probabilities": [0.5, 0.5]}, "2 for 1 values"),
        ({"values": [1, 2], "probabilities": [0.5, 0.6]}, "must add up to 1, not 1.1"),
    ],
)
def test_what_is_wrong_is_named_with_its_key(given: dict[str, Any], said: str) -> None:
    """So that it is found in a long file."""
    with pytest.raises(ConfigError, match=said):
        read(**given)


def test_a_number_that_yaml_takes_for_a_text_is_explained() -> None:
    """YAML's numbers have a point: 1e-3 is a text."""
    with pytest.raises(ConfigError, match=r"write 0\.001$"):
        read(min="1e-3", max=1.0, distribution="uniform")
    assert hint("1e-9").endswith("write 1.0e-09")
    assert hint("2e3").endswith("write 2000.0")
    assert hint("abc") == hint("nan") == hint(None) == ""
