"""How often a classifier is right and wrong at each threshold, as a precision-recall curve."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from opusclip_mlops.errors import RecordError

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[Any]]

MOST_THRESHOLDS = 10_000


def pr_curve(
    labels: "Array",
    predictions: "Array",
    *,
    thresholds: int | Sequence[float] = 127,
    weights: "Array | None" = None,
) -> dict[str, list[Any]]:
    """Counts, precision and recall at each threshold.

    A prediction is positive where it is at least the threshold. Precision is TP / (TP + FP), 0
    where nothing is predicted positive; recall is TP / (TP + FN), 0 where no label is positive
    (Davis and Goadrich, "The relationship between precision-recall and ROC curves", ICML 2006).

    Args:
        labels: 0 or 1, of any shape.
        predictions: probabilities 0..1, of the same shape.
        thresholds: how many, evenly from 0 to 1, or the thresholds themselves, ascending.
        weights: how much each prediction counts, 0 or more, of the same shape; 1 each otherwise.

    Returns:
        Lists by name, as long as there are thresholds. Counts are whole numbers without weights.

    Raises:
        RecordError: values outside their range, unlike shapes, or no predictions at all.
    """
    import numpy as np

    levels = _levels(thresholds)
    truth = _checked_labels(labels)
    scores = _checked(predictions, "predictions", labels.shape, most=1.0)
    weighed = np.ones(truth.size) if weights is None else _checked(weights, "weights", labels.shape)
    with np.errstate(over="ignore"):
        is_summed = np.isfinite(weighed.sum())
    if not is_summed:
        raise RecordError("the weights add up to more than 1.8e308: divide them all by one number")
    true_positives, positives = _at_least(levels, scores, weighed * truth)
    false_positives, negatives = _at_least(levels, scores, weighed * ~truth)
    counts = {
        "true_positives": true_positives,
        "false_positives": false_positives,
        "true_negatives": negatives - false_positives,
        "false_negatives": positives - true_positives,
    }
    kind = np.int64 if weights is None else np.float64
    return {
        "thresholds": levels.tolist(),
        **{name: count.astype(kind).tolist() for name, count in counts.items()},
        "precision": _share(true_positives, true_positives + false_positives),
        "recall": _share(true_positives, np.full(levels.size, positives)),
    }


def _levels(thresholds: int | Sequence[float]) -> "Array":
    """The thresholds as float64."""
    import numpy as np

    if isinstance(thresholds, int | np.integer):
        if not 2 <= thresholds <= MOST_THRESHOLDS:
            raise RecordError(f"thresholds must be 2 to {MOST_THRESHOLDS}, not {thresholds}")
        return np.linspace(0.0, 1.0, int(thresholds))
    try:
        levels = np.asarray(thresholds, np.float64)
    except (TypeError, ValueError, OverflowError):
        levels = np.zeros(0)
    is_row = levels.ndim == 1 and 1 <= levels.size <= MOST_THRESHOLDS
    if not is_row or not (levels[0] >= 0 and levels[-1] <= 1 and (np.diff(levels) > 0).all()):
        raise RecordError(
            f"thresholds must be a number of them or ascend from 0 to 1, not {thresholds!r:.80}"
        )
    return levels


def _checked_labels(labels: "Array") -> "Array":
    """The labels as bools in one row."""
    if not labels.size:
        raise RecordError("there are no labels: pass at least one, with its prediction")
    flat = labels.ravel()
    known = (flat == 0) | (flat == 1)
    if not known.all():
        at = int(known.argmin())
        raise RecordError(f"label {at} is {flat[at]}: a label is 0 or 1")
    return flat.astype(bool)


def _checked(
    values: "Array", what: str, shape: tuple[int, ...], *, most: float = float("inf")
) -> "Array":
    """Values as float64 in one row."""
    import numpy as np

    if values.shape != shape:
        raise RecordError(
            f"{what} have the shape {values.shape}, labels {shape}: pass one for each"
        )
    flat = values.ravel().astype(np.float64)
    legal = np.isfinite(flat) & (flat >= 0) & (flat <= most)
    if not legal.all():
        at = int(legal.argmin())
        span = f"0 to {most:g}" if np.isfinite(most) else "0 or more"
        raise RecordError(f"{what} must be {span}: number {at} is {flat[at]:g}")
    return flat


def _at_least(levels: "Array", scores: "Array", weights: "Array") -> tuple["Array", float]:
    """The weight of the scores that reach each threshold, and of all."""
    import numpy as np

    # The number of thresholds a score reaches: it counts for all of these.
    reached = np.searchsorted(levels, scores, side="right")
    by_reach = np.bincount(reached, weights=weights, minlength=levels.size + 1)
    totals = np.cumsum(by_reach[::-1])[::-1]
    return totals[1:], float(totals[0])


def _share(part: "Array", whole: "Array") -> list[float]:
    import numpy as np

    shares = np.divide(part, whole, out=np.zeros(len(part)), where=whole > 0)
    return [float(one) for one in shares]
