"""How a mirror differs from MLflow: what it lacks, and what it has too much of."""

import dataclasses
from dataclasses import dataclass

from opusclip_mlops.contents import Contents, Part
from opusclip_mlops.holdings import Held, Holdings, Medium, medium_of
from opusclip_mlops.points import Points
from opusclip_mlops.words import words_of

ABOUT_RUN = "mlflow"
"""The words that only `opusclip mirror` writes: a run's own tracker does not know all of them."""

_BY_TRACKERS = ("params", "tags", "notes", "dataset/")
_BY_TRACKERS_IN_WANDB = (*_BY_TRACKERS, "files/checkpoint-")


@dataclass(frozen=True, kw_only=True)
class Difference:
    """What makes a mirror unequal to MLflow.

    Args:
        lacking: Points that MLflow has and the mirror lacks.
        extra: Points that the mirror has too much of: unknown to MLflow, or there twice.
        lacking_media: Clips, pictures, texts and tables that the mirror lacks.
        extra_media: The same, that it has too much of.
        words: Params, tags, files … that stand there differently or not at all.
    """

    lacking: Points
    extra: Points
    lacking_media: tuple[Part, ...] = ()
    extra_media: tuple[Medium, ...] = ()
    words: tuple[Part, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether the mirror is equal."""
        return not (self.has_extra or len(self.lacking) or self.lacking_media or self.words)

    @property
    def has_extra(self) -> bool:
        """Whether something is to be taken away: adding does not make the mirror equal."""
        return bool(len(self.extra) or self.extra_media)


def difference(
    contents: Contents, points: Points, held: Held, holdings: Holdings, *, narrow: bool
) -> Difference:
    """Compare what MLflow has of a run with what a mirror holds; `narrow` when in 32 bits."""
    lacking, extra = _points_between(points, held.points, narrow=narrow)
    wanted: dict[Medium, list[Part]] = {}
    for part in contents.parts:
        if medium := medium_of(part.record):
            wanted.setdefault(medium, []).append(part)
    return Difference(
        lacking=lacking,
        extra=extra,
        # Of several of one kind, key and moment it is not known which are there.
        lacking_media=tuple(
            part for medium, parts in wanted.items() for part in parts[held.media.get(medium, 0) :]
        ),
        extra_media=tuple(
            sorted(one for one, n in held.media.items() if n > len(wanted.get(one, ())))
        ),
        words=tuple(part for part in contents.parts if not _says(part, held, holdings)),
    )


def written_live(held: Held) -> bool:
    """Whether only the run's own tracker has written this mirror, never a replay."""
    return ABOUT_RUN not in held.words


def as_a_tracker_writes(found: Difference, *, in_wandb: bool) -> Difference:
    """Without the words that a run's own tracker can't know, or does not say there."""
    said = _BY_TRACKERS_IN_WANDB if in_wandb else _BY_TRACKERS
    kept = (
        part for part in found.words if all(name.startswith(said) for name in words_of(part.record))
    )
    return dataclasses.replace(found, words=tuple(kept))


def _points_between(ours: Points, theirs: Points, *, narrow: bool) -> tuple[Points, Points]:
    """Our points that they lack, and theirs that are too many."""
    if not narrow:
        return ours.minus(theirs), theirs.minus(ours)
    return ours.narrowly_minus(theirs), theirs.minus(ours.narrow())


def _says(part: Part, held: Held, holdings: Holdings) -> bool:
    rendered = holdings.rendered(part.record)
    return all(held.words.get(name) == text for name, text in rendered.items())
