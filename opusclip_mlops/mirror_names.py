"""What everything with a step is called in a mirror.

A mirror shows a run's line as it now is under the keys that were logged, and beside it what
training went back behind; how such a name is made is in `line_names`.
"""

import functools
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import msgspec
import numpy as np

from opusclip_mlops.curves import counting
from opusclip_mlops.folder import RunFolder
from opusclip_mlops.generations import (
    Generation,
    Line,
    generation_of,
    generations_of,
    line_of,
    tags_of_generations,
)
from opusclip_mlops.line_names import key_of, name_of, superseded_name
from opusclip_mlops.points import Points
from opusclip_mlops.records import Metrics, Row
from opusclip_mlops.sessions import sessions

R = TypeVar("R", bound=Row)

_NAMING = 1


@dataclass(frozen=True)
class Names:
    """The names that a run's points, clips and the like have in its mirrors.

    Attributes:
        line: What the run looks back on as it is now.
    """

    line: Line

    @property
    def generations(self) -> tuple[Generation, ...]:
        """Those that the run has begun, besides its first."""
        return tuple(self.line.generations)

    @functools.cached_property
    def digest(self) -> str:
        """A short text that other generations change."""
        said = repr((_NAMING, self.generations)).encode()
        return hashlib.sha256(said).hexdigest()[:16]

    def of(self, key: str, *, step: int, timestamp_ms: int) -> str:
        """The name of what was logged with this key, step and time in Unix milliseconds."""
        if self.line.holds(key=key, step=step, timestamp_ms=timestamp_ms):
            return name_of(key)
        return superseded_name(key, generation_of(self.line.generations, timestamp_ms))

    def again(self, name: str, *, step: int, timestamp_ms: int) -> str:
        """The same of what has a name already, given while the run was another line."""
        return self.of(key_of(name), step=step, timestamp_ms=timestamp_ms)

    def record(self, row: R) -> R:
        """A record with a step, under its names."""
        at = {"step": row.step, "timestamp_ms": row.timestamp_ms}
        if not isinstance(row, Metrics):
            return msgspec.structs.replace(row, key=self.of(row.key, **at))
        if self.line.holds(key="", **at):
            values = {name_of(key): value for key, value in row.values.items()}
        else:
            values = {self.of(key, **at): value for key, value in row.values.items()}
        return msgspec.structs.replace(row, values=values)

    def points(self, points: Points) -> Points:
        """Points, in the order they stand in, under their names."""
        if not self.line.generations and all(name_of(key) == key for key in points.keys):
            return points
        rows = points.rows.copy()
        starts = np.array([one.start_ms for one in self.line.generations], dtype=np.int64)
        number = np.searchsorted(starts, rows["timestamp_ms"], side="right")
        held = counting(rows, points.keys, self.line)
        kinds = len(starts) + 2
        kind = rows["key"] * kinds + np.where(held, 0, number + 1)
        every, rows["key"] = np.unique(kind, return_inverse=True)
        found = (divmod(one, kinds) for one in every.tolist())
        names = [
            superseded_name(points.keys[key], above - 1) if above else name_of(points.keys[key])
            for key, above in found
        ]
        return Points(tuple(names), rows)

    def points_again(self, points: Points) -> Points:
        """Points that have names already, in the order they stand in, under those of now."""
        return self.points(_under_keys(points))

    def fit(self, points: Points) -> bool:
        """Whether points stand under the names of now."""
        again = self.points_again(points)
        place = {name: at for at, name in enumerate(points.keys)}
        before = np.array([place.get(name, -1) for name in again.keys], dtype=np.int64)
        return bool(np.array_equal(before[again.rows["key"]], points.rows["key"]))


def names_of(tags: Mapping[str, str]) -> Names:
    """The names by a run's tags, of which those of generations say something here."""
    generations = generations_of(tags)
    return Names(line_of(generations, len(generations)))


FIRST_LINE = names_of({})
"""Of a run that never went back."""


def names_in(folder: RunFolder) -> Names:
    """The names by all that is known on this machine: what MLflow has said, and who logs here."""
    identity = folder.identity()
    tags = dict(identity.generations) if identity else {}
    for one in sessions(folder):
        tags |= tags_of_generations(one.start.tags)
    return names_of(tags)


def _under_keys(points: Points) -> Points:
    """Points under the keys that they were logged with."""
    numbers: dict[str, int] = {}
    number_of = [numbers.setdefault(key_of(name), len(numbers)) for name in points.keys]
    rows = points.rows.copy()
    rows["key"] = np.array(number_of, dtype=np.int64)[rows["key"]] if len(rows) else rows["key"]
    return Points(tuple(numbers), rows)
