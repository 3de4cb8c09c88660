"""How a mirror differs from MLflow: what it lacks, and what it has too much of."""

import dataclasses
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from opusclip_mlops.contents import Contents, Part
from opusclip_mlops.errors import DeliveryError
from opusclip_mlops.holdings import Held, Holdings, Medium, medium_of
from opusclip_mlops.mirror_names import Names, names_of
from opusclip_mlops.points import Points
from opusclip_mlops.records import About
from opusclip_mlops.targets import Target
from opusclip_mlops.words import words_of

ABOUT_RUN = "mlflow"
"""The words that only `opusclip mirror` writes: a run's own tracker does not know all of them."""

_MAY_GO = ("tags", "notes", "dataset/", "registry/")
_BY_TRACKERS = ("params", "tags", "notes", "dataset/")
_BY_TRACKERS_IN_WANDB = (*_BY_TRACKERS, "files/checkpoint-")


class LastingError(DeliveryError):
    """A mirror holds what can't be taken away there."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """What makes a mirror unequal to MLflow.

    Args:
        lacking: Points that MLflow has and the mirror lacks.
        extra: Points that the mirror has too much of: unknown to MLflow, or there twice.
        lacking_media: Clips, pictures, texts, tables and insights that the mirror lacks.
        extra_media: The same, that it has too much of.
        words: Params, tags, files … that stand there differently or not at all.
        ends: The run is over, and the mirror does not say so, or says another end.
        went_back: Something of it stands there under the name that it had before the run went back.
    """

    lacking: Points
    extra: Points
    lacking_media: tuple[Part, ...] = ()
    extra_media: tuple[Medium, ...] = ()
    words: tuple[Part, ...] = ()
    ends: bool = False
    went_back: bool = False

    @property
    def is_empty(self) -> bool:
        """Whether the mirror is equal."""
        lacks = len(self.lacking) or self.lacking_media or self.words or self.ends
        return not (self.has_extra or lacks)

    @property
    def lacks_only_media(self) -> bool:
        """Whether the mirror lacks clips and the like, and nothing else is unequal."""
        others = dataclasses.replace(self, lacking_media=())
        return bool(self.lacking_media) and others.is_empty

    @property
    def has_extra(self) -> bool:
        """Whether something is to be taken away: adding does not make the mirror equal."""
        return bool(len(self.extra) or self.extra_media)


def difference(
    contents: Contents, points: Points, held: Held, holdings: Holdings, *, narrow: bool
) -> Difference:
    """Compare what MLflow has of a run with what a mirror holds; `narrow` when in 32 bits."""
    names = names_of(contents.identity.generations)
    lacking, extra = points_between(points, held.points, names, narrow=narrow)
    wanted = _wanted_media(contents, names)
    extra_media = sorted(one for one, n in held.media.items() if n > len(wanted.get(one, ())))
    return Difference(
        lacking=lacking,
        extra=extra,
        # Of several of one kind, key and moment it is not known which are there.
        lacking_media=tuple(
            part for medium, parts in wanted.items() for part in parts[held.media.get(medium, 0) :]
        ),
        extra_media=tuple(extra_media),
        words=tuple(
            part
            for part in (*contents.parts, *_gone(contents, held, holdings, narrow=narrow))
            if not _says(part, held, holdings)
        ),
        ends=contents.is_over and held.end != contents.status,
        went_back=bool(names.generations) and not _all_fit(extra, extra_media, names),
    )


def check_removable(
    contents: Contents, points: Points, held: Held, holdings: Holdings, target: Target
) -> None:
    """See that a mirror may be made anew: of what stays there in any case nothing is too much.

    Raises:
        LastingError: something of it is.
    """
    lasting = held.lasting
    if lasting and difference(contents, points, lasting, holdings, narrow=False).has_extra:
        raise LastingError(
            f"{target} holds something that can't be taken away there: mirror the run to another"
            " W&B project"
        )


def check_renamed(
    contents: Contents, points: Points, held: Held, target: Target, *, narrow: bool
) -> None:
    """See that a mirror may be made anew for the names in it: under those of now it has no more.

    Raises:
        LastingError: the run goes on, or the mirror holds what MLflow does not.
    """
    if not contents.is_over:
        raise LastingError(f"{target} is left as it is: the run goes on")
    names = names_of(contents.identity.generations)
    _, extra = points_between(points, names.points_again(held.points), names, narrow=narrow)
    media: Counter[Medium] = Counter()
    for one, count in held.media.items():
        name = names.again(one.key, step=one.step, timestamp_ms=one.timestamp_ms)
        media[dataclasses.replace(one, key=name)] += count
    wanted = _wanted_media(contents, names)
    if held.others or len(extra) or any(n > len(wanted.get(one, ())) for one, n in media.items()):
        raise LastingError(f"{target} is left as it is: it holds what MLflow does not")


def _wanted_media(contents: Contents, names: Names) -> dict[Medium, list[Part]]:
    """What is to stand at a step in a mirror, under the names it has there."""
    wanted: dict[Medium, list[Part]] = {}
    for part in contents.parts:
        if medium := medium_of(part.record):
            at = {"step": medium.step, "timestamp_ms": medium.timestamp_ms}
            named = dataclasses.replace(medium, key=names.of(medium.key, **at))
            wanted.setdefault(named, []).append(part)
    return wanted


def _all_fit(points: Points, media: Iterable[Medium], names: Names) -> bool:
    """Whether what a mirror holds stands under the names of now."""
    return names.fit(points) and all(
        one.key == names.again(one.key, step=one.step, timestamp_ms=one.timestamp_ms)
        for one in media
    )


def _gone(contents: Contents, held: Held, holdings: Holdings, *, narrow: bool) -> list[Part]:
    """For what a mirror still says though MLflow has it no more, words that say so.

    W&B's artifacts stay: only a person can delete them.
    """
    may_go = (*_MAY_GO, "files/artifacts-") if narrow else _MAY_GO
    wanted = {name for part in contents.parts for name in holdings.rendered(part.record)}
    gone = (name for name in held.words if name.startswith(may_go) and name not in wanted)
    return [Part(About(name, {"text": "no longer in MLflow"})) for name in sorted(gone)]


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


def points_between(
    ours: Points, theirs: Points, names: Names, *, narrow: bool
) -> tuple[Points, Points]:
    """Our points that they lack, and theirs that are too many; `narrow` when in 32 bits.

    Theirs stand under these names, ours under the keys that were logged.
    """
    named = names.points(ours).in_seconds()
    kept = named.narrow() if narrow else named
    return ours.lacking_in(theirs, kept_as=kept), theirs.minus(kept)


def _says(part: Part, held: Held, holdings: Holdings) -> bool:
    rendered = holdings.rendered(part.record)
    return all(held.words.get(name) == text for name, text in rendered.items())
