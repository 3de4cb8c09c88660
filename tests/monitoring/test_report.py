"""Reports: what changed since the last one, under keys that MLflow takes."""

import pytest

from opusclip_mlops import records
from opusclip_mlops.drift import Drift
from opusclip_mlops.monitoring.counts import Asked, Counts
from opusclip_mlops.monitoring.report import Reporter, Seen, key_of, quantile


def test_an_interval_tells_what_happened_in_it() -> None:
    """The next one begins anew, and an interval in which nothing was asked says so."""
    counts = Counts()
    reporter = Reporter(counts, 100.0)
    for number in range(1, 101):
        one = Asked(kind="KeyError" if number > 90 else "")
        counts.arrived()
        counts.begun(one)
        if not one.kind:
            counts.predicted(0.01, rows=2, frames=30)
        counts.answered(one, status=400 if one.kind else 200, seconds=number / 1000)
    counts.spent("request", 0.1)
    told = reporter.report(Seen({}, {}), 110.0)
    assert told["serving/requests"] == 100
    assert told["serving/requests_per_s"] == pytest.approx(10)
    assert told["serving/errors"] == told["serving/errors/KeyError"] == 10
    assert told["serving/error_share"] == pytest.approx(0.1)
    assert told["serving/frames_per_s"] == pytest.approx(270)
    assert told["serving/frames_per_predict_s"] == pytest.approx(3000)
    times = {name: told[f"serving/latency_{name}_ms"] for name in ("p50", "p95", "p99", "max")}
    assert times == pytest.approx({"p50": 50, "p95": 95, "p99": 99, "max": 100})
    assert told["serving/monitor_percent"] == pytest.approx(1)
    empty = reporter.report(Seen({}, {}), 120.0)
    assert empty["serving/requests"] == empty["serving/errors/KeyError"] == 0
    assert "serving/latency_p50_ms" not in empty


def test_drift_and_clips_are_told() -> None:
    """How clips looked only where one was looked at."""
    counts = Counts()
    reporter = Reporter(counts, 0.0)
    counts.checked({"black": True, "flicker": False})
    seen = Seen({"a": Drift(0.3, 0.2, 0.01), "b": Drift(0.5)}, {"flicker": 3.0})
    told = reporter.report(seen, 1.0)
    assert told["serving/inputs/psi_max"] == told["serving/inputs/b/psi"] == 0.5
    assert told["serving/inputs/a/p_value"] == 0.01
    assert "serving/inputs/b/ks" not in told
    assert told["serving/clips/flagged_black"] == told["serving/clips/checked"] == 1
    assert told["serving/clips/flagged_flicker"] == 0
    assert told["serving/clips/flicker"] == 3
    assert "serving/clips/flicker" not in reporter.report(seen, 2.0)


@pytest.mark.parametrize("column", ["größe", "a/b", "..", "", "x" * 500, "a:b\nc", "prompt.chars"])
def test_any_column_has_a_legal_key(column: str) -> None:
    """Whatever it is called, and no key is a path that goes up."""
    key = f"serving/inputs/{key_of(column)}/psi"
    records.check_key(key)
    assert key.count("/") == 3


@pytest.mark.parametrize(("percent", "value"), [(0, 1), (50, 2), (75, 3), (76, 4), (100, 4)])
def test_a_quantile_is_a_value_that_was_measured(percent: float, value: float) -> None:
    """The smallest that so many percent do not exceed."""
    assert quantile([1.0, 2.0, 3.0, 4.0], percent) == value
