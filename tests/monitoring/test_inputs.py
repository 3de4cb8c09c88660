"""Inputs: a window of the latest rows, and what they are compared with."""

import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from opusclip_mlops.drift import REFERENCE_FILE, InputReference, features
from opusclip_mlops.errors import RecordError
from opusclip_mlops.monitoring.inputs import (
    LEAST_ROWS,
    WINDOW_ROWS,
    InputWatch,
    Window,
    snapshot,
)


def rows(mean: float, count: int, seed: int = 0) -> dict[str, Any]:
    """Sizes about a mean."""
    return {"size": list(np.random.default_rng(seed).normal(mean, 1, count))}


def test_a_window_holds_the_latest_rows() -> None:
    """A column that came later, or is missing in a request, has nothing in the other rows."""
    window = Window(4)
    window.add({"a": [1.0, 2.0]})
    window.add({"b": ["x"]})
    assert window.as_lists() == {"a": [1.0, 2.0, None], "b": [None, None, "x"]}
    window.add({"a": [3.0, 4.0, 5.0]})
    assert window.as_lists() == {"a": [None, 3.0, 4.0, 5.0], "b": ["x", None, None, None]}
    assert window.rows == 4
    assert window.is_full


def test_the_reference_that_a_version_brings_is_used(tmp_path: Path) -> None:
    """Drift is told from a hundred rows on."""
    path = tmp_path / "model" / REFERENCE_FILE
    path.parent.mkdir(parents=True)
    path.write_text(InputReference.of(features(rows(0, 300))).as_json())
    watch = InputWatch(tmp_path / "model", tmp_path / "kept.json")
    assert watch.origin == "version"
    watch.add(snapshot(rows(5, 50)))
    watch.add(snapshot(rows(5, LEAST_ROWS - 51)))
    assert watch.drift() == {}
    watch.add(snapshot(rows(5, 1)))
    assert watch.drift()["size"].psi > 1


def test_the_first_rows_are_the_reference_where_there_is_none(tmp_path: Path) -> None:
    """They are kept for the next process in a file for this user only, and stay what they were."""
    kept = tmp_path / "monitoring" / "kept.json"
    watch = InputWatch(tmp_path, kept)
    assert (watch.origin, watch.reference) == ("", None)
    for _ in range(10):
        watch.add(snapshot(rows(0, 50)))
    assert watch.origin == "served"
    assert watch.reference is not None
    assert watch.reference.rows == WINDOW_ROWS
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert [one.name for one in kept.parent.iterdir()] == ["kept.json"]
    again = InputWatch(tmp_path, kept)
    assert again.reference == watch.reference
    for _ in range(10):
        again.add(snapshot(rows(4, 50)))
    assert again.drift()["size"].psi > 1


def test_two_that_learn_at_once_end_with_the_same_reference(tmp_path: Path) -> None:
    """The one that was kept first is everybody's."""
    kept = tmp_path / "kept.json"
    both = [InputWatch(tmp_path, kept) for _ in range(2)]
    for at, watch in enumerate(both):
        for _ in range(10):
            watch.add(snapshot(rows(10 * at, 50)))
    assert both[0].reference == both[1].reference


def test_a_reference_that_is_none_is_an_error(tmp_path: Path) -> None:
    """It is not taken for none: what is compared would silently be something else."""
    (tmp_path / "kept.json").write_text("{}")
    with pytest.raises(RecordError, match="no reference"):
        InputWatch(tmp_path, tmp_path / "kept.json")


@pytest.mark.parametrize(
    ("content", "columns"),
    [
        (pd.DataFrame({"a": [1, 2], 3: [True, None]}), {"a": [1.0, 2.0], "3": ["True", None]}),
        ({"a": [1], "b": np.array([2.5])}, {"a": [1.0], "b": [2.5]}),
        ([{"a": 1}, {"b": 2}], {"a": [1.0, None], "b": [None, 2.0]}),
        (["x"], {"input": ["x"], "input.characters": [1.0]}),
        (np.array([[1.0, 2.0]]), {"0": [1.0], "1": [2.0]}),
        (object(), {}),
        (None, {}),
        (pd.DataFrame(), {}),
        (np.zeros((1, 2, 3)), {}),
    ],
)
def test_any_form_of_a_request_is_read(content: Any, columns: Mapping[str, Any]) -> None:
    """What is no table of numbers, texts and truths is left out."""
    assert snapshot(content) == columns


def test_parameters_are_columns_too() -> None:
    """Each has its value in every row."""
    assert snapshot({"a": [1, 2]}, {"steps": 30})["params.steps"] == [30.0, 30.0]


def test_a_large_request_is_read_in_part() -> None:
    """A million rows cost as much as sixty-four."""
    assert len(snapshot(pd.DataFrame({"a": np.arange(1_000_000)}))["a"]) == 64
