"""A sweep's file, read and checked."""

import json
from pathlib import Path
from typing import Any

import pytest

from opusclip_mlops.errors import ConfigError
from opusclip_mlops.sweeps.schema import Hyperband, Metric, read_sweep, sweep_of

PLAIN: dict[str, Any] = {"method": "random", "parameters": {"lr": {"min": 0.0, "max": 1.0}}}


def test_a_file_is_read(tmp_path: Path) -> None:
    """Metric, command, cap and nested parameters."""
    path = tmp_path / "sweep.yaml"
    path.write_text(
        "method: bayes\nname: tune\nprogram: train.py\nrun_cap: 12\n"
        "metric: {name: val/psnr, goal: maximize, target: 30}\n"
        "command: ['${env}', python, '${program}', '${args_json}', 3]\n"
        "parameters:\n  lr: {min: 0.1, max: 1.0}\n"
        "  optimizer:\n    parameters:\n      beta: {value: 0.9}\n      deep:\n"
        "        parameters: {eps: {values: [1, 2]}}\n"
    )
    found = read_sweep(path)
    assert (found.method, found.name, found.program, found.run_cap) == (
        "bayes",
        "tune",
        "train.py",
        12,
    )
    assert found.metric == Metric("val/psnr", True, 30)
    assert found.command == ("${env}", "python", "${program}", "${args_json}", "3")
    names = [one.name for one in found.parameters]
    assert names == ["lr", "optimizer.beta", "optimizer.deep.eps"]


def test_without_a_command_it_is_wandbs_own() -> None:
    """The program, with a flag for each parameter."""
    assert sweep_of(PLAIN).command == ("${env}", "${interpreter}", "${program}", "${args}")


@pytest.mark.parametrize(
    ("given", "bands"),
    [
        ({"min_iter": 3, "eta": 2}, (3, 6, 12, 24)),
        ({"min_iter": 1}, (1, 3, 9, 27)),
        ({"max_iter": 27, "s": 2}, (3, 9)),
        ({"max_iter": 9, "s": 5, "eta": 2}, (1, 2, 4)),
        ({"min_iter": 1, "eta": 2000}, (1, 2000, 2000**2, 2000**3)),
        ({"max_iter": 2000, "s": 100, "eta": 2000}, (1,)),
    ],
)
def test_the_bands_are_wandbs(given: dict[str, Any], bands: tuple[int, ...]) -> None:
    """min_iter * eta**k upwards, or max_iter / eta**k downwards, s times, never below 1."""
    more = {"metric": {"name": "loss"}, "early_terminate": {"type": "hyperband", **given}}
    found = sweep_of(PLAIN | more).hyperband
    assert isinstance(found, Hyperband)
    assert found.bands[:4] == bands


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"methode": "grid"}, "methode is no key: did you mean 'method'"),
        ({"method": "best"}, "method is 'best': choose from grid, random, bayes$"),
        ({"parameters": {}}, "parameters must hold names and values"),
        ({"parameters": {"a b": {"value": 1}}}, "parameters has 'a b'"),
        ({"parameters": {1: {"value": 1}}}, "parameters has 1"),
        ({"parameters": {"a": 3}}, "parameters.a must hold names and values, not 3"),
        ({"parameters": {"a": {"parameters": {"b": {"min": 1}}}}}, "parameters.a.parameters.b has"),
        ({"parameters": {"a": {"parameters": {"b": {"value": 1}}, "min": 1}}}, "parameters.a.min"),
        (
            {"parameters": {"a.b": {"value": 1}, "a": {"parameters": {"b": {"value": 1}}}}},
            "parameters.a.b is there twice",
        ),
        ({"metric": {"goal": "minimize"}}, "metric.name must be the name"),
        ({"metric": {"name": "x", "goal": "min"}}, "metric.goal must be"),
        ({"metric": {"name": "x", "target": "1e-3"}}, "metric.target must be .* write 0.001"),
        ({"early_terminate": {"type": "hyperband", "min_iter": 1}}, "metric is missing"),
        ({"run_cap": 0}, "run_cap must be"),
        ({"command": "python train.py"}, "command must be a list"),
        ({"command": ["a\0b"]}, "no text may have NUL"),
        ({"metric": {"name": "x", "target": 10**400}}, "metric.target must be"),
        ({"parameters": {"a": {"min": 0, "max": 10**400}}}, "parameters.a.max must be"),
        ({"parameters": {"a": {"distribution": ["uniform"]}}}, "parameters.a.distribution is"),
        ({"name": 3}, "name must be a text"),
    ],
)
def test_what_is_wrong_is_named_with_its_path(more: dict[str, Any], said: str) -> None:
    """The nearest known key too, where one is misspelt."""
    with pytest.raises(ConfigError, match=said):
        sweep_of(PLAIN | more)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"type": "median"}, "early_terminate.type must be hyperband"),
        ({}, "early_terminate.min_iter is missing"),
        ({"max_iter": 9}, "early_terminate.min_iter is missing"),
        ({"max_iter": 2, "s": 1}, "max_iter is too small"),
        ({"min_iter": 1, "eta": 1.000001}, "eta must be a number from 1.1 on"),
        ({"min_iter": 1, "eta": 1}, "eta must be a number from 1.1 on"),
        ({"max_iter": 10**400, "s": 1}, "max_iter must be a whole number"),
        ({"min_iter": 1.5}, "min_iter must be a whole number"),
        ({"min_iter": 1, "strict": "yes"}, "strict must be true or false"),
    ],
)
def test_early_ends_are_checked(given: dict[str, Any], said: str) -> None:
    """Before the first trial begins."""
    band = {"type": "hyperband", **given}
    with pytest.raises(ConfigError, match=said):
        sweep_of(PLAIN | {"metric": {"name": "x"}, "early_terminate": band})


def test_what_is_no_file_of_a_sweep_is_refused(tmp_path: Path) -> None:
    """One that is missing, no YAML, too large, or holds what JSON has not."""
    path = tmp_path / "sweep.yaml"
    with pytest.raises(ConfigError, match="No such file"):
        read_sweep(path)
    path.write_text("method: [")
    with pytest.raises(ConfigError, match="not YAML"):
        read_sweep(path)
    path.write_bytes(b"#" * (2**20 + 1))
    with pytest.raises(ConfigError, match="larger"):
        read_sweep(path)
    path.write_text("method: random\nparameters: {day: {values: [2026-01-01]}}")
    with pytest.raises(ConfigError, match="quote dates"):
        read_sweep(path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("method: grid\nmethod: random\n", "'method' is there twice"),
        ("a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
            f"{new}: &{new} [{','.join([f'*{old}'] * 10)}]\n"
            for old, new in zip("abcdef", "bcdefg", strict=True)
        ), "unfolds to more than"),
        ("a: &a [*a]\n", "unfolds to more than"),
        ("[" * 100_000, "nested too deeply"),
    ],
)  # fmt: skip
def test_what_yaml_would_hide_or_unfold_is_refused(text: str, said: str, tmp_path: Path) -> None:
    """A key given twice, and anchors of anchors, which are small only in the file."""
    (tmp_path / "s.yaml").write_text(text)
    with pytest.raises(ConfigError, match=said):
        read_sweep(tmp_path / "s.yaml")


def test_json_is_yaml(tmp_path: Path) -> None:
    """A sweep in JSON is read as well."""
    (tmp_path / "s.json").write_text(json.dumps(PLAIN))
    assert read_sweep(tmp_path / "s.json").method == "random"


def test_a_target_is_reached_from_its_own_side() -> None:
    """At or below it where small is good, at or above it otherwise."""
    assert Metric("x", target=1).is_reached_by(0.5)
    assert not Metric("x", maximizes=True, target=1).is_reached_by(0.5)
    assert not Metric("x").is_reached_by(0.5)
