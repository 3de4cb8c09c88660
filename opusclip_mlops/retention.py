"""Which checkpoints of a run are kept, and what is known of those its earlier parts saved."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from opusclip_mlops.errors import RecordError
from opusclip_mlops.folder import RunFolder, write_whole
from opusclip_mlops.metadata import BestValue, CheckpointMetadata

WATCHED = ("val/loss", "val_loss")
"""The metrics the best checkpoint is chosen by where none is named: the lower the better."""

MODES = ("min", "max")


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """Which checkpoints are kept: the newest, the best, and those at every so many steps.

    Args:
        last: How many of the newest, 1 or more.
        best: The metric the best is chosen by, and whether its `min` or `max` is best.
        every: Keep those whose step is a multiple of this, 1 or more; None for no such rule.

    Raises:
        RecordError: a number below 1, or an unknown mode.
    """

    last: int = 1
    best: tuple[str, str] | None = None
    every: int | None = None

    def __post_init__(self) -> None:
        for name, value in (("last", self.last), ("every", self.every)):
            is_whole = isinstance(value, int) and not isinstance(value, bool)
            if not (value is None and name == "every") and not (is_whole and value >= 1):  # type: ignore[operator]
                raise RecordError(f"{name} must be a whole number of 1 or more, not {value!r:.60}")
        if self.best is not None:
            check_best(self.best)

    def left_out(self, saved: Sequence[tuple[str, int]], kept: Collection[str] = ()) -> list[str]:
        """Names of the checkpoints that are kept no longer.

        Args:
            saved: Name and step of each that is there, the oldest first.
            kept: Names to keep in any case, such as those that are the best.
        """
        older = saved[: -self.last]
        every = self.every
        return [
            name
            for name, step in older
            if name not in kept and not (every is not None and step % every == 0)
        ]


def check_best(best: object) -> None:
    """Raise when this names no metric and mode.

    Raises:
        RecordError: it is no pair of a metric and `min` or `max`.
    """
    if not isinstance(best, tuple | list) or len(best) != 2 or not isinstance(best[0], str):
        raise RecordError(f'best is a metric and "min" or "max", not {best!r:.60}')
    check_mode(best[1])


def check_mode(mode: object) -> None:
    """Raise when this is no mode.

    Raises:
        RecordError: it is neither `min` nor `max`.
    """
    if mode not in MODES:
        raise RecordError(f"mode must be 'min' or 'max', not {mode!r:.60}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Earlier:
    """The checkpoints that earlier parts of a run left in MLflow, as they stood when it went on.

    Attributes:
        names: Of all of them, sorted.
        marked: Of the one that is marked best, empty where there is none.
        best: The best values by metric, and which checkpoint has each.
        is_known: False where it cannot be read how good the marked one is: it keeps its mark.
    """

    names: tuple[str, ...] = ()
    marked: str = ""
    best: Mapping[str, BestValue] = field(default_factory=dict)
    is_known: bool = True

    def is_beaten_by(self, about: CheckpointMetadata) -> bool:
        """Whether a checkpoint that calls itself the best is better than all of these."""
        if not self.is_known and about.name != self.marked:
            return False
        own = {key: one for key, one in about.best.items() if one.checkpoint == about.name}
        rivals = {key: one for key, one in self.best.items() if one.checkpoint != about.name}
        return all(key not in rivals or rivals[key].is_beaten_by(own[key]) for key in own)

    def write(self, folder: RunFolder) -> None:
        """Keep it in the run's folder, for the process that trains."""
        write_whole(_path(folder), msgspec.json.encode(_Written(self.names, self.marked, {
            key: _Best(one.checkpoint, repr(one.value), one.mode, one.passport, one.allows_unlike)
            for key, one in self.best.items()
        }, self.is_known)))  # fmt: skip

    @classmethod
    def read(cls, folder: RunFolder) -> Earlier | None:
        """What was kept in the run's folder; None where nothing was."""
        try:
            written = msgspec.json.decode(_path(folder).read_bytes(), type=_Written)
            best = {
                key: BestValue(one.name, float(one.value), one.mode, one.passport, one.allows)
                for key, one in written.best.items()
            }
        except (OSError, msgspec.DecodeError, ValueError):
            return None
        names, marked = tuple(written.names), written.marked
        return cls(names=names, marked=marked, best=best, is_known=written.is_known)


class _Best(msgspec.Struct, array_like=True):
    name: str
    value: str
    mode: str
    passport: str = ""
    allows: bool = False


class _Written(msgspec.Struct):
    names: tuple[str, ...]
    marked: str
    best: dict[str, _Best]
    is_known: bool = True


def better_of(
    first: Mapping[str, BestValue], second: Mapping[str, BestValue]
) -> dict[str, BestValue]:
    """The better value of each metric; of equal ones the first."""
    better = dict(first)
    for key, value in second.items():
        if key not in better or better[key].is_beaten_by(value):
            better[key] = value
    return better


def _path(folder: RunFolder) -> Path:
    return folder.path / "sinks" / "earlier.json"
