"""Log calls as requests of a size that MLflow takes."""

from collections.abc import Iterable, Iterator

from mlflow.entities import Metric

from opusclip_mlops.records import Metrics, Record

_METRICS_PER_CALL = 1000


def merged(batch: Iterable[Record]) -> Iterator[Record | list[Metrics]]:
    """Log calls that follow each other, joined up to one request's worth of metrics."""
    calls: list[Metrics] = []
    size = 0
    for record in batch:
        is_metrics = isinstance(record, Metrics)
        if calls and (not is_metrics or size + len(record.values) > _METRICS_PER_CALL):  # type: ignore[union-attr]
            yield calls
            calls, size = [], 0
        if isinstance(record, Metrics):
            calls.append(record)
            size += len(record.values)
        else:
            yield record
    if calls:
        yield calls


def entities(record: Metrics) -> Iterator[Metric]:
    """The points of a log call as MLflow's own."""
    for key, value in record.values.items():
        yield Metric(key, value, record.timestamp_ms, record.step)


def parts(values: dict[str, str], size: int) -> Iterator[list[tuple[str, str]]]:
    """Values by name, so many at a time."""
    items = list(values.items())
    for at in range(0, len(items), size):
        yield items[at : at + size]
