"""Points that were logged twice: MLflow keeps one of several that are equal in everything.

Equal points have one time, so they come close to each other: what was given lately is remembered.
"""

from opusclip_mlops.records import Metrics

_RECENT_CALLS = 20_000


class Repeats:
    """Remembers the points of the last log calls of a run."""

    def __init__(self) -> None:
        self._recent: dict[tuple[int, int], list[dict[str, float]]] = {}

    def left_of(self, record: Metrics) -> dict[str, float]:
        """The values of a log call that were not given before at this step and time."""
        at = (record.step, record.timestamp_ms)
        values = record.values
        for before in self._recent.get(at, ()):
            values = {key: one for key, one in values.items() if not _is_same(one, before.get(key))}
        if values:
            self._recent.setdefault(at, []).append(values)
            if len(self._recent) > _RECENT_CALLS:
                del self._recent[next(iter(self._recent))]
        return values


def _is_same(one: float, other: float | None) -> bool:
    return one == other or (one != one and other is not None and other != other)
