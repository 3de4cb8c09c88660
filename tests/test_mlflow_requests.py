"""Facts about `opusclip_mlops.mlflow_requests`: log calls as requests that MLflow takes."""

from opusclip_mlops.mlflow_requests import entities, merged, parts
from opusclip_mlops.records import Metrics, Record, Text


def call(step: int, keys: int) -> Metrics:
    return Metrics(step, step, {f"k{n}": float(n) for n in range(keys)})


def test_log_calls_share_requests_of_a_thousand_points() -> None:
    """As many calls as fit, in their order; one that has more than that is by itself."""
    calls: list[Record] = [call(1, 600), call(2, 400), call(3, 1), call(4, 1500), call(5, 1)]
    found = [one for one in merged(calls) if isinstance(one, list)]
    assert [[one.step for one in request] for request in found] == [[1, 2], [3], [4], [5]]


def test_no_log_call_overtakes_another_record() -> None:
    """A text between two calls stays between them."""
    text = Text(1, 1, "k", "words")
    assert list(merged([call(1, 1), text, call(2, 1)])) == [[call(1, 1)], text, [call(2, 1)]]
    assert list(merged([])) == []


def test_a_point_is_mlflow_s_own() -> None:
    """Key, value, time and step."""
    [one] = entities(Metrics(7, 3, {"loss": 0.5}))
    assert (one.key, one.value, one.timestamp, one.step) == ("loss", 0.5, 7, 3)


def test_values_go_so_many_at_a_time() -> None:
    """All of them, in their order."""
    assert list(parts({"a": "1", "b": "2", "c": "3"}, 2)) == [
        [("a", "1"), ("b", "2")],
        [("c", "3")],
    ]
    assert list(parts({}, 2)) == []
