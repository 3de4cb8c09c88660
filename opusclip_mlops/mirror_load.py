"""What is to be brought to a mirror: points, what stands at a step, words."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from opusclip_mlops.contents import Part
from opusclip_mlops.differences import Difference
from opusclip_mlops.points import Points
from opusclip_mlops.records import Row

_NO_POINTS = Points.of(())


@dataclass(frozen=True, kw_only=True)
class Load:
    """What is to be sent."""

    points: Points = field(default_factory=lambda: _NO_POINTS)
    media: tuple[Part, ...] = ()
    words: tuple[Part, ...] = ()

    def __len__(self) -> int:
        return len(self.points) + len(self.media) + len(self.words)


def lacking(found: Difference) -> Load:
    """What a mirror lacks."""
    return Load(points=found.lacking, media=found.lacking_media, words=found.words)


def load_of(points: Points, parts: Iterable[Part]) -> Load:
    """Points, and parts with a step and without one."""
    every = tuple(parts)
    media = tuple(part for part in every if isinstance(part.record, Row))
    words = tuple(part for part in every if not isinstance(part.record, Row))
    return Load(points=points, media=media, words=words)


def ordered(load: Load, by_step: bool) -> list[Part]:
    """What stands at a step, in the order of steps or of times."""

    def place(part: Part) -> tuple[int, int]:
        row = part.record
        assert isinstance(row, Row)
        return (row.step, row.timestamp_ms) if by_step else (row.timestamp_ms, row.step)

    return sorted(load.media, key=place)
