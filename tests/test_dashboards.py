"""Facts about `opusclip_mlops.dashboards`: what HParams and custom scalars are told."""

import json
import math
from typing import Any

import numpy as np
import pytest
import torch

from opusclip_mlops.dashboards import hparams, layout
from opusclip_mlops.errors import RecordError


def test_hyperparameters_keep_their_types() -> None:
    """Numbers and bools stay so, anything else is its text; NaN is one too."""
    params = {
        "lr": np.float32(0.5), "steps": torch.tensor(3), "ema": np.bool_(False), "name": "a",
        "betas": (0.9, 0.99), "none": None, "seed": 2**70, "clip": math.inf, "weights": [1, 2],
    }  # fmt: skip
    content = hparams(params, {}, {})
    assert content["params"] == {
        "lr": 0.5, "steps": 3, "ema": False, "name": "a", "betas": "(0.9, 0.99)", "none": "None",
        "seed": str(2**70), "clip": "inf", "weights": "[1, 2]",
    }  # fmt: skip
    assert type(content["params"]["steps"]) is int
    assert type(content["params"]["ema"]) is bool
    json.dumps(content, allow_nan=False)


def test_results_are_the_metrics_with_their_goals() -> None:
    """One that is still to come has no value, whether results or goals name it."""
    goal = {"val/loss": "minimize", "val/psnr": "maximize"}
    content = hparams({}, {"val/loss": np.float32(0.25), "val/fvd": None, "x": math.nan}, goal)
    assert content["results"] == {"val/loss": 0.25, "val/fvd": None, "x": "nan", "val/psnr": None}
    assert content["goal"] == goal


@pytest.mark.parametrize(
    ("results", "goal", "error", "message"),
    [
        ({"a": 1.0}, {"a": "least"}, RecordError, "goal of 'a' must be minimize or maximize"),
        ({"a": 1.0}, {"a": ["minimize"]}, RecordError, "goal of 'a' must be"),
        ({"a//": 1.0}, {}, RecordError, "key"),
        ({}, {"a//": "minimize"}, RecordError, "key"),
        ({"a": "words"}, {}, TypeError, "metric 'a' must be a number"),
    ],
)
def test_wrong_results_are_refused(
    results: Any, goal: Any, error: type[Exception], message: str
) -> None:
    """In the caller's line."""
    with pytest.raises(error, match=message):
        hparams({"lr": 1}, results, goal)


def test_a_layout_names_curves_and_margins() -> None:
    """Categories and charts stay in their order."""
    margin = {"lower": "val/low", "value": "val/psnr", "upper": "val/high"}
    content = layout(
        {"losses": {"both": ["train/loss", "val/.*"]}, "quality": {"psnr": margin}},
        closed=["quality"],
    )
    assert content["categories"] == [
        {"title": "losses", "is_closed": False, "charts": [
            {"title": "both", "kind": "multiline", "tags": ["train/loss", "val/.*"]}]},
        {"title": "quality", "is_closed": True, "charts": [
            {"title": "psnr", "kind": "margin", **margin}]},
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("categories", "closed", "message"),
    [
        ({}, (), "one or more"),
        ([], (), "one or more"),
        ({"a": {}}, (), "category 'a'"),
        ({"a": ["train/loss"]}, (), "category 'a'"),
        ({"a": {"b": []}}, (), "chart 'b' must be a list of keys"),
        ({"a": {"b": "train/loss"}}, (), "chart 'b' must be a list of keys"),
        ({"a": {"b": ["(open"]}}, (), "chart 'b': '\\(open' is no pattern"),
        ({"a": {"b": [3]}}, (), "chart 'b': 3 is no pattern"),
        ({"a": {"b": {"lower": "x", "value": "y"}}}, (), "must name lower, value and upper"),
        ({"a": {"b": {"lower": "x", "value": "y", "upper": ".."}}}, (), "key"),
        ({"a": {"b": ["x"]}}, ["c"], "closed names 'c'"),
    ],
)
def test_a_malformed_layout_is_refused(categories: Any, closed: Any, message: str) -> None:
    """The message names the chart."""
    with pytest.raises(RecordError, match=message):
        layout(categories, closed)
