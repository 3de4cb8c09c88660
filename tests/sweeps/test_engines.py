"""What the engine can't do is refused by its key."""

from typing import Any

import pytest

from opusclip_mlops.errors import ConfigError
from opusclip_mlops.sweeps.engines import check_for_optuna, trial_count
from tests.sweeps.small_sweeps import config_of

METRICS = [{"name": "a"}, {"name": "b"}]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"method": "custom"}, "method: engine optuna can't do custom"),
        ({"scheduler": {"engine": "ax"}}, "scheduler: engine optuna can't"),
        ({"metrics": METRICS}, "metrics: engine optuna can't: it looks for one metric"),
        ({"job": "a/b/c"}, "job: engine optuna can't"),
        ({"image_uri": "a"}, "image_uri: engine optuna can't"),
        ({"controller": {"type": "cloud"}}, "controller: engine optuna can't"),
        ({"method": "bayes", "metric": {"name": "x", "impute": "best"}}, "metric.impute: engine"),
        (
            {"method": "bayes", "metric": {"name": "x", "impute_while_running": "latest"}},
            "metric.impute_while_running: engine",
        ),
        ({"method": "grid"}, "parameters.x is uniform: method grid takes"),
        ({"command": ["${argz}"]}, "command has"),
        ({"program": "", "metric": {"name": "x"}}, "program is missing"),
        (
            {"parameters": {"x": {"distribution": "log_uniform", "min": 0, "max": 1e6}}},
            "parameters.x .* beyond the largest number",
        ),
    ],
)
def test_what_it_would_do_otherwise_is_refused(more: dict[str, Any], said: str) -> None:
    """Rather than done in another way than W&B's."""
    with pytest.raises(ConfigError, match=said):
        check_for_optuna(config_of(**{"program": "t.py", **more}))


def test_bayes_needs_a_metric() -> None:
    """It has nothing to learn from otherwise."""
    config = config_of(method="bayes")
    object.__setattr__(config, "metric", None)
    with pytest.raises(ConfigError, match="metric is missing: method bayes needs it"):
        check_for_optuna(config)


def test_imputing_is_no_matter_where_nothing_is_learned() -> None:
    """W&B does not look at it either in a random search or a grid."""
    check_for_optuna(
        config_of(metric={"name": "x", "impute": "best"}, controller={"type": "local"})
    )
    check_for_optuna(
        config_of(method="bayes", metric={"name": "x", "impute_while_running": "false"})
    )


def test_the_smallest_limit_holds() -> None:
    """What is asked for, the cap, and the size of a grid."""
    grid = {"method": "grid", "parameters": {"x": {"values": [1, 2, 3]}}}
    assert trial_count(config_of(run_cap=7), 9) == 7
    assert trial_count(config_of(run_cap=7), 3) == 3
    assert trial_count(config_of(**grid), None) == 3
    assert trial_count(config_of(**grid, run_cap=2), 9) == 2
    with pytest.raises(ConfigError, match="method random has no end: give --count"):
        trial_count(config_of(), None)
