"""The films that a dataset is made of, with timecodes: as they are kept in MLflow, there and back.

All of them are a file of the run, `layout.sources_path`, and a tag of the run says which and of
what dataset. MLflow keeps one profile for all datasets of one name and digest in an experiment, and
every list of runs carries it: so the profile has a few films for people to read, and the hash of
the file that has them all.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Self

import msgspec

from opusclip_mlops.errors import RecordError
from opusclip_mlops.layout import sources_path
from opusclip_mlops.redaction import one_line
from opusclip_mlops.samples import SourceClip

TAG_PREFIX = "opusclip.sources."
"""Begins the tags of a run that name its datasets' films."""

MOST_BYTES = 256 * 2**20
"""The longest list of films, as JSON."""

MOST_INLINE_BYTES = 8 * 2**10
"""The longest list that is in the dataset's profile as well."""

_FORMAT = 1
_TAG_DIGITS = 16
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """The films of a dataset, as one JSON text.

    Attributes:
        name: The dataset's name.
        digest: Its digest.
        context: What it was used for.
        text: The films with their pieces, JSON; it names the dataset too.
        sha256: Of the text.
        film_count: How many films there are.
        clip_count: How many pieces of them.
    """

    name: str
    digest: str
    context: str
    text: str
    sha256: str
    film_count: int
    clip_count: int

    @classmethod
    def of(cls, name: str, digest: str, context: str, clips: Iterable[SourceClip]) -> Self:
        """The films that pieces are cut from, each once.

        Raises:
            RecordError: Something else than source clips, or more than 256 MiB of them.
        """
        films, count = _films(clips)
        text = _text(name, digest, context, films)
        if len(text) > MOST_BYTES:
            raise RecordError(f"sources of {name} take {len(text)} bytes: at most {MOST_BYTES}")
        sha256 = hashlib.sha256(text.encode()).hexdigest()
        counts = {"film_count": len(films), "clip_count": count}
        return cls(name=name, digest=digest, context=context, text=text, sha256=sha256, **counts)

    @property
    def path(self) -> str:
        """Where the text lies among the run's artifacts."""
        return sources_path(self.name, self.digest, self.sha256)

    def keep_in(self, folder: Path) -> str:
        """Write the text to a file there, whole or not at all; returns its name.

        Raises:
            OSError: It cannot be written, as on a full disk.
        """
        name = PurePosixPath(self.path).name
        temporary = folder / f".{os.getpid()}-{name}"
        try:
            temporary.write_text(self.text, encoding="utf-8")
            temporary.replace(folder / name)
        finally:
            temporary.unlink(missing_ok=True)
        return name

    def tags(self) -> dict[str, str]:
        """The tag by which a list of runs tells of it."""
        return Named(
            name=self.name, digest=self.digest, context=self.context, sha256=self.sha256,
            films=self.film_count, clips=self.clip_count,
        ).tags()  # fmt: skip

    def profile(self, facts: Mapping[str, Any]) -> dict[str, Any]:
        """A dataset's profile that has the films as well, where they are few."""
        films = json.loads(self.text)["films"]
        is_short = len(self.text) <= MOST_INLINE_BYTES
        said = {"film_count": self.film_count, "clip_count": self.clip_count, "file": self.path}
        listed = {"films": films} if is_short else {}
        return {**facts, "sources": {**said, "sha256": self.sha256, **listed}}


@dataclass(frozen=True, slots=True, kw_only=True)
class Named:
    """What a tag of a run says of a dataset's films."""

    name: str
    digest: str
    context: str
    sha256: str
    films: int = 0
    clips: int = 0

    @property
    def path(self) -> str:
        """Where the films' list lies among the run's artifacts."""
        return sources_path(self.name, self.digest, self.sha256)

    def tags(self) -> dict[str, str]:
        """The tag: a key of its own for each list."""
        return {f"{TAG_PREFIX}{self.sha256[:_TAG_DIGITS]}": json.dumps(msgspec.to_builtins(self))}


class ListedFilm(msgspec.Struct, frozen=True, gc=False):
    """A film in a list: its pieces are (start, end, use), as in `SourceClip`."""

    uri: str
    clips: tuple[tuple[float, float | None, str], ...]
    sha256: str = ""

    def pieces(self) -> tuple[SourceClip, ...]:
        """The pieces in order, each once.

        Raises:
            RecordError: The list was not made by us: a piece ends before it starts.
        """
        about = {"uri": self.uri, "sha256": self.sha256}
        return in_order(
            SourceClip(**about, start_s=start_s, end_s=end_s, use=use)
            for start_s, end_s, use in self.clips
        )


class _List(msgspec.Struct):
    films: tuple[ListedFilm, ...]


def named_in(tags: Mapping[str, str]) -> Iterator[Named]:
    """What a run's tags name; those that are not as `Sources.tags` writes them are passed over."""
    for key in sorted(tags):
        if key.startswith(TAG_PREFIX):
            try:
                named = msgspec.json.decode(tags[key], type=Named)
            except (msgspec.DecodeError, UnicodeError):
                continue
            # It becomes a part of a path.
            if _SHA256.fullmatch(named.sha256):
                yield named


def films_in_profile(named: Named, profile: str) -> tuple[ListedFilm, ...] | None:
    """The films that a dataset's profile lists, None where it has not those that were named."""
    try:
        films = json.loads(profile)["sources"]["films"]
        text = _text(named.name, named.digest, named.context, films)
        return films_in(text.encode(), sha256=named.sha256)
    except (RecordError, ValueError, KeyError, TypeError, RecursionError):
        return None


def films_in(text: bytes, *, sha256: str) -> tuple[ListedFilm, ...]:
    """The films in a list of them.

    Args:
        text: What `Sources.text` was.
        sha256: What its hash is to be.

    Raises:
        RecordError: It is no such list, or has another hash.
    """
    if hashlib.sha256(text).hexdigest() != sha256:
        raise RecordError("this list of films is not the one that was logged: its hash is another")
    try:
        return msgspec.json.decode(text, type=_List).films
    except (msgspec.DecodeError, UnicodeError) as error:
        raise RecordError(f"this is no list of films: {one_line(str(error))}") from error


def in_order(clips: Iterable[SourceClip]) -> tuple[SourceClip, ...]:
    """Pieces by film, use and time, each once."""
    return tuple(sorted(set(clips), key=_place))


def joined(clips: Iterable[SourceClip]) -> tuple[SourceClip, ...]:
    """Pieces with those that overlap or touch made one, for people; in order."""
    found: list[SourceClip] = []
    for clip in in_order(clips):
        last = found[-1] if found else None
        if last and _film(last) == _film(clip) and clip.start_s <= _end_s(last):
            found[-1] = last if _end_s(last) >= _end_s(clip) else _longer(last, clip)
        else:
            found.append(clip)
    return tuple(found)


def _text(name: str, digest: str, context: str, films: Any) -> str:
    about = {"format": _FORMAT, "name": name, "digest": digest, "context": context}
    return json.dumps({**about, "films": films}, separators=(",", ":"))


def _films(clips: Iterable[SourceClip]) -> tuple[list[dict[str, Any]], int]:
    films: dict[tuple[str, str], dict[str, Any]] = {}
    count = 0
    for count, clip in enumerate(clips, start=1):  # noqa: B007 - how many there were
        if not isinstance(clip, SourceClip):
            raise RecordError(f"sources hold a {type(clip).__name__}: give SourceClip alone")
        film = films.get((clip.uri, clip.sha256))
        if film is None:
            film = films[clip.uri, clip.sha256] = {"uri": clip.uri, "clips": []}
            film |= {"sha256": clip.sha256} if clip.sha256 else {}
        film["clips"].append([clip.start_s, clip.end_s, clip.use])
    return list(films.values()), count


def _end_s(clip: SourceClip) -> float:
    return math.inf if clip.end_s is None else clip.end_s


def _film(clip: SourceClip) -> tuple[str, str, str]:
    return clip.uri, clip.sha256, clip.use


def _place(clip: SourceClip) -> tuple[tuple[str, str, str], float, float]:
    return _film(clip), clip.start_s, _end_s(clip)


def _longer(first: SourceClip, second: SourceClip) -> SourceClip:
    return SourceClip(
        uri=first.uri, sha256=first.sha256, start_s=first.start_s, end_s=second.end_s,
        use=first.use,
    )  # fmt: skip
