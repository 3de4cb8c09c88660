"""What no point of a run says: what was dropped, how far each sink is, how full the disk is."""

import shutil
from collections.abc import Callable
from typing import TypeVar

from opusclip_mlops import accounting
from opusclip_mlops.alerts.rules import Alerts, DiskFilling, DroppedPoints, MirrorLag
from opusclip_mlops.alerts.watcher import Facts
from opusclip_mlops.folder import Position, RunFolder

T = TypeVar("T")

_EVERY_MS = 5_000


class Surroundings:
    """Looks at what the rules of a run ask for, at most every five seconds.

    Args:
        folder: The run's.
        alerts: The rules.
    """

    def __init__(self, folder: RunFolder, alerts: Alerts) -> None:
        self._folder = folder
        kinds = {type(rule) for rule in alerts.rules.values()}
        self._asks_for_drops, self._asks_for_disk = DroppedPoints in kinds, DiskFilling in kinds
        is_asked = MirrorLag in kinds
        sinks = folder.manifest().sinks if is_asked else []
        self._sinks = [one for one in sinks if one != "alerts"]
        self._goals: dict[str, tuple[Position, int]] = {}
        self._looked_ms: int | None = None

    def facts(self, *, now_ms: int) -> Facts:
        """What is so now; nothing where it was looked at just before."""
        if self._looked_ms is not None and 0 <= now_ms - self._looked_ms < _EVERY_MS:
            return Facts()
        self._looked_ms = now_ms
        return Facts(
            dropped=_read(self._dropped) if self._asks_for_drops else None,
            lag_ms={sink: self._lag_ms(sink, now_ms) for sink in self._sinks},
            disk_percent=_read(self._disk_percent) if self._asks_for_disk else None,
        )

    def _dropped(self) -> int:
        return accounting.totals(self._folder.path).dropped

    def _disk_percent(self) -> float:
        disk = shutil.disk_usage(self._folder.path)
        return round(100 * disk.used / max(1, disk.used + disk.free), 1)

    def _lag_ms(self, sink: str, now_ms: int) -> int:
        """For how long a sink has not had what stood in the journal at the beginning of that."""
        known = self._goals.get(sink)
        if known is None or self._folder.progress(sink).has_all(known[0]):
            known = self._goals[sink] = (self._folder.size_bytes(), now_ms)
        return now_ms - known[1]


def _read(part: Callable[[], T]) -> T | None:
    try:
        return part()
    except OSError:
        # What can't be read now is no fault of the run.
        return None
