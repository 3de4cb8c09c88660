"""The numbers as Prometheus reads them, over HTTP, on a port of their own."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Protocol

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from opusclip_mlops.errors import ConfigError
from opusclip_mlops.monitoring.counts import BUCKETS_S, Counts, Tally
from opusclip_mlops.monitoring.report import Seen
from opusclip_mlops.monitoring.served import ServedVersion
from opusclip_mlops.monitoring.settings import PORTS

_P = "opusclip_serving"
_DRIFT = {
    "psi": "Population stability index of a column.",
    "ks": "Kolmogorov-Smirnov statistic of a column of numbers.",
    "p_value": "How likely such a statistic is where nothing moved.",
}


class Watching(Protocol):
    """What the numbers are read from."""

    @property
    def counts(self) -> Counts:
        """What was counted."""

    @property
    def seen(self) -> Seen:
        """What was last found out."""

    @property
    def served(self) -> ServedVersion:
        """What is served."""


def serve(watching: Watching, *, host: str, first_port: int) -> str:
    """Serve the numbers on the first of 16 ports that is free; gives the URL.

    Raises:
        ConfigError: None of them is.
        OSError: The host is not one of this machine.
    """
    registry = CollectorRegistry()
    registry.register(Numbers(watching))
    for port in range(first_port, min(first_port + PORTS, 65536)):
        try:
            start_http_server(port, host, registry)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
        else:
            return f"http://{f'[{host}]' if ':' in host else host}:{port}/metrics"
    raise ConfigError(
        f"ports {first_port} to {first_port + PORTS - 1} of {host} are in use:"
        " set OPUSCLIP_MONITOR_PORT to another one"
    )


class Numbers(Collector):
    """Gives what is counted whenever it is asked for."""

    def __init__(self, watching: Watching) -> None:
        self._watching = watching

    def collect(self) -> Iterator[Metric]:
        """Everything, read at one moment."""
        tally, seen = self._watching.counts.tally(), self._watching.seen
        yield _about(self._watching.served)
        yield from _traffic(tally)
        yield from _answers(tally, seen)
        yield from _inputs(seen)
        yield from _own(tally)


def _about(served: ServedVersion) -> Metric:
    labels = {"model": served.model, "version": served.version, "model_id": served.model_id}
    text = "What is served: always 1."
    return _labelled(GaugeMetricFamily, "info", text, labels, [(tuple(labels.values()), 1)])


def _traffic(tally: Tally) -> Iterator[Metric]:
    yield _counted("requests", "Requests answered, by HTTP status.", "code", tally.requests)
    yield _counted("errors", "Requests that got no answer, by kind.", "kind", tally.errors)
    yield _timed("request_seconds", "From the request to its answer.", tally.request_buckets,
                 tally.request_total_s)  # fmt: skip
    yield _timed("predict_seconds", "In the model alone.", tally.predict_buckets,
                 tally.predict_total_s)  # fmt: skip
    yield _gauge("requests_in_flight", "Requests that are not answered yet.", tally.in_flight)
    yield _gauge("requests_waiting", "Those for which the model has not begun.", tally.waiting)
    yield _plain("rows", "Rows that the model answered.", tally.rows)
    yield _plain("frames", "Frames that it answered.", tally.frames)


def _answers(tally: Tally, seen: Seen) -> Iterator[Metric]:
    yield _plain("clips_checked", "Clips that were looked at.", tally.clips_checked)
    yield _counted("clips_flagged", "Clips that looked wrong, by check.", "check", tally.flagged)
    for name, value in seen.looks.items():
        yield _gauge(f"clip_{name}", "Mean over the clips last looked at.", value)


def _inputs(seen: Seen) -> Iterator[Metric]:
    yield _labelled(GaugeMetricFamily, "reference_rows", "Rows that inputs are compared with.",
                    ["origin"], [((seen.origin or "none",), seen.reference_rows)])  # fmt: skip
    yield _gauge("window_rows", "Latest rows that are compared.", seen.window_rows)
    for name, text in _DRIFT.items():
        found = ((column, getattr(drift, name)) for column, drift in seen.drift.items())
        told = [((column,), value) for column, value in found if value is not None]
        yield _labelled(GaugeMetricFamily, f"input_{name}", text, ["column"], told)


def _own(tally: Tally) -> Iterator[Metric]:
    yield _counted("skipped", "Not looked at for want of time, by what.", "what", tally.skipped)
    yield _counted("monitor_seconds", "Time spent on watching.", "part", tally.spent_s)
    yield _counted("monitor_faults", "Faults of the watching.", "part", tally.faults)


def _counted(name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
    return _labelled(
        CounterMetricFamily, name, text, [label], [((k,), v) for k, v in values.items()]
    )


def _labelled(
    kind: type[CounterMetricFamily] | type[GaugeMetricFamily],
    name: str,
    text: str,
    labels: Iterable[str],
    values: Iterable[tuple[Sequence[str], float]],
) -> Metric:
    family = kind(f"{_P}_{name}", text, labels=list(labels))
    for label_values, value in values:
        family.add_metric(list(label_values), value)
    return family


def _plain(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(f"{_P}_{name}", text, value=value)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"{_P}_{name}", text, value=value)


def _timed(name: str, text: str, buckets: Sequence[int], total_s: float) -> Metric:
    ends = [*map(str, BUCKETS_S), "+Inf"]
    pairs = list(zip(ends, accumulate(buckets), strict=True))
    return HistogramMetricFamily(f"{_P}_{name}", text, buckets=pairs, sum_value=total_s)
