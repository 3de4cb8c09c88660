"""Facts about `opusclip_mlops.confusion_counts`: the counts that scikit-learn has."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix, precision_score, recall_score
from torchmetrics.functional.classification import binary_precision_recall_curve

from opusclip_mlops.confusion_counts import pr_curve
from opusclip_mlops.errors import RecordError

LABELS = np.array([0, 1, 1, 0, 1, 0])
SCORES = np.array([0.1, 0.9, 0.4, 0.4, 1.0, 0.0])


def counted(curve: dict[str, list[Any]], at: int) -> tuple[Any, ...]:
    names = ("true_negatives", "false_positives", "false_negatives", "true_positives")
    return tuple(curve[name][at] for name in names)


def test_a_curve_worked_out_by_hand() -> None:
    """A prediction that equals the threshold is positive; nothing predicted gives precision 0."""
    curve = pr_curve(LABELS, SCORES, thresholds=[0.0, 0.4, 0.95, 1.0])
    assert curve["true_positives"] == [3, 3, 1, 1]
    assert curve["false_positives"] == [3, 1, 0, 0]
    assert curve["true_negatives"] == [0, 2, 3, 3]
    assert curve["false_negatives"] == [0, 0, 2, 2]
    assert curve["precision"] == [0.5, 0.75, 1.0, 1.0]
    assert curve["recall"] == pytest.approx([1.0, 1.0, 1 / 3, 1 / 3])
    assert pr_curve(LABELS[:1], SCORES[:1], thresholds=[0.5])["precision"] == [0.0]
    assert pr_curve(LABELS[:1], SCORES[:1], thresholds=[0.5])["recall"] == [0.0]


@settings(max_examples=12, deadline=None)
@given(st.integers(1, 60), st.integers(2, 9), st.integers(0, 2**32 - 1), st.booleans())
def test_counts_are_scikit_learns(size: int, levels: int, seed: int, weighted: bool) -> None:
    """At every threshold, with and without weights, also where scores lie on a threshold."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 2, size)
    scores = random.choice(np.linspace(0, 1, 2 * levels - 1), size)
    weights = random.random(size) if weighted else None
    curve = pr_curve(labels, scores, thresholds=levels, weights=weights)
    for at, threshold in enumerate(curve["thresholds"]):
        said = scores >= threshold
        expected = confusion_matrix(labels, said, labels=[0, 1], sample_weight=weights).ravel()
        assert counted(curve, at) == pytest.approx(tuple(expected), abs=1e-9)
        options = {"zero_division": 0.0, "sample_weight": weights}
        assert curve["precision"][at] == pytest.approx(precision_score(labels, said, **options))
        assert curve["recall"][at] == pytest.approx(recall_score(labels, said, **options))


def test_the_curve_is_torchmetrics() -> None:
    """But for NaN where nothing is predicted positive, and the point (1, 0) that it adds."""
    random = np.random.default_rng(3)
    labels, scores = random.integers(0, 2, 500), random.random(500)
    curve = pr_curve(labels, scores, thresholds=127)
    theirs = binary_precision_recall_curve(
        torch.tensor(scores), torch.tensor(labels), thresholds=127
    )
    assert curve["precision"] == pytest.approx(theirs[0][:-1].nan_to_num(0.0).tolist())
    assert curve["recall"] == pytest.approx(theirs[1][:-1].tolist())
    assert curve["thresholds"] == pytest.approx(theirs[2].tolist())


def test_shapes_and_types_do_not_matter() -> None:
    """Bools, floats of 0 and 1 and any shape that both have give the same curve."""
    flat = pr_curve(LABELS, SCORES)
    for labels in (LABELS.astype(bool), LABELS.astype(np.float32)):
        assert pr_curve(labels.reshape(2, 3), SCORES.reshape(2, 3)) == flat
    assert len(flat["recall"]) == 127
    assert all(type(one) is int for one in flat["true_positives"])


def test_a_million_weighted_predictions_keep_whole_sums() -> None:
    """No count is negative, and at each threshold they add up to all weights."""
    random = np.random.default_rng(5)
    labels, scores = random.integers(0, 2, 10**6), random.random(10**6).astype(np.float32)
    weights = random.random(10**6)
    curve = pr_curve(labels, scores, weights=weights)
    for at in range(127):
        assert min(counted(curve, at)) >= 0
        assert sum(counted(curve, at)) == pytest.approx(weights.sum())


@pytest.mark.parametrize(
    ("labels", "scores", "options", "message"),
    [
        ([], [], {}, "no labels"),
        ([0, 2], [0.1, 0.2], {}, "label 1 is 2"),
        ([0.0, np.nan], [0.1, 0.2], {}, "label 1 is nan"),
        ([0, 1], [0.1, 1.5], {}, "number 1 is 1.5"),
        ([0, 1], [np.nan, 0.5], {}, "number 0 is nan"),
        ([0, 1], [0.5], {}, "predictions have the shape"),
        ([0, 1], [0.5, 0.5], {"weights": np.array([1.0])}, "weights have the shape"),
        ([0, 1], [0.5, 0.5], {"weights": np.array([1.0, -1.0])}, "0 or more: number 1 is -1"),
        ([0, 1], [0.5, 0.5], {"thresholds": 1}, "2 to 10000"),
        ([0, 1], [0.5, 0.5], {"thresholds": [0.5, 0.5]}, "ascend"),
        ([0, 1], [0.5, 0.5], {"thresholds": [0.5, 1.5]}, "ascend"),
        ([0, 1], [0.5, 0.5], {"thresholds": [np.nan]}, "ascend"),
        ([0, 1], [0.5, 0.5], {"thresholds": []}, "ascend"),
    ],
)
def test_what_is_no_prediction_is_refused(
    labels: list[float], scores: list[float], options: dict[str, Any], message: str
) -> None:
    """The message says which number it is."""
    with pytest.raises(RecordError, match=message):
        pr_curve(np.array(labels), np.array(scores), **options)
