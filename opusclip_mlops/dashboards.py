"""What is said of a run's params and curves, so that TensorBoard knows how to show them."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from opusclip_mlops import records
from opusclip_mlops.errors import RecordError, RecordTypeError
from opusclip_mlops.table_cells import plain

GOALS = ("minimize", "maximize")
_MARGIN = ("lower", "value", "upper")


def hparams(
    params: Mapping[str, Any], results: Mapping[str, Any], goal: Mapping[str, str]
) -> dict[str, Any]:
    """Hyperparameters, and the metrics they are judged by, in JSON values.

    Raises:
        RecordTypeError: not mappings, or a result that is no number.
        RecordError: a key MLflow would refuse, or another goal than minimize or maximize.
    """
    texts = records.to_text_values(params)
    _check_goals(results, goal)
    values = {
        key: None if one is None else records.to_float(key, one) for key, one in results.items()
    }
    return {
        "params": {name: _typed(value, texts[name]) for name, value in params.items()},
        "results": {key: plain(values.get(key)) for key in (*results, *goal)},
        "goal": dict(goal),
    }


def _check_goals(results: Any, goal: Any) -> None:
    for what, given in (("results", results), ("goal", goal)):
        if not isinstance(given, Mapping):
            kind = type(given).__name__
            raise RecordTypeError(f"{what} must be a mapping by metric key, not {kind}")
    for key in (*results, *goal):
        records.check_key(key)
        asked = goal.get(key, GOALS[0])
        if not isinstance(asked, str) or asked not in GOALS:
            raise RecordError(f"goal of {key!r} must be minimize or maximize, not {asked!r:.40}")


def _typed(value: Any, text: str) -> Any:
    """A number or bool as itself, anything else as its text."""
    if getattr(value, "shape", None) == ():
        value = value.item()
    if isinstance(value, int) and abs(value) >= 2**63:
        return text
    return plain(value) if isinstance(value, int | float) else text


def layout(
    categories: Mapping[str, Mapping[str, Any]], closed: Sequence[str] = ()
) -> dict[str, Any]:
    """Charts by category, in JSON values.

    Raises:
        RecordError: no chart, a malformed one, or an unknown category in `closed`.
    """
    if not isinstance(categories, Mapping) or not categories:
        raise RecordError("a layout is a mapping of categories to charts, one or more")
    if isinstance(closed, str) or not isinstance(closed, Iterable):
        raise RecordTypeError(f"closed must be a list of categories, not {closed!r:.40}")
    titles = list(closed)
    if unknown := [title for title in titles if title not in list(categories)]:
        raise RecordError(f"closed names {unknown[0]!r:.40}, which is no category of the layout")
    return {
        "categories": [
            {"title": str(title), "is_closed": title in titles, "charts": _charts(title, charts)}
            for title, charts in categories.items()
        ]
    }


def _charts(category: str, charts: Any) -> list[dict[str, Any]]:
    if not isinstance(charts, Mapping) or not charts:
        raise RecordError(f"category {category!r:.40} must be a mapping of titles to charts")
    return [_chart(str(title), chart) for title, chart in charts.items()]


def _chart(title: str, chart: Any) -> dict[str, Any]:
    if isinstance(chart, Mapping):
        if set(chart) != set(_MARGIN):
            raise RecordError(f"chart {title!r:.40} must name lower, value and upper")
        for key in chart.values():
            records.check_key(key)
        return {"title": title, "kind": "margin", **{name: chart[name] for name in _MARGIN}}
    if isinstance(chart, str) or not isinstance(chart, Sequence) or not chart:
        raise RecordError(f"chart {title!r:.40} must be a list of keys, not {chart!r:.40}")
    return {"title": title, "kind": "multiline", "tags": [_pattern(title, one) for one in chart]}


def _pattern(title: str, tag: Any) -> str:
    try:
        re.compile(tag)
    except (TypeError, re.error) as error:
        raise RecordError(f"chart {title!r:.40}: {tag!r:.40} is no pattern: {error}") from None
    return str(tag)
