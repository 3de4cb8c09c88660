"""A panel: a fixed set of prompts and seeds, sampled alike again and again.

Its digest is over what is asked for, not over its name: samples of panels with different digests
answer different questions, and are never laid side by side.
"""

from __future__ import annotations

import hashlib
import json
import operator
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import msgspec

from opusclip_mlops.errors import PanelError, RecordError
from opusclip_mlops.redaction import one_line
from opusclip_mlops.samples import Origin, check_account

MOST_CELLS = 256
"""The most prompts times seeds of a panel."""

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,63}")
_MARK_DIGITS = 8
_SLUG_CHARACTERS = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One place of a panel: a prompt with a seed.

    Attributes:
        prompt: The text a sample is asked for with.
        seed: Of the random numbers.
        name: What it is called: its number, the prompt's words, the seed.
    """

    prompt: str
    seed: int
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """Prompts, seeds and sampler settings that stay the same while a model changes.

    Attributes:
        name: 1 to 64 letters, digits and `_ . -`.
        prompts: The texts, each once.
        seeds: Whole numbers, each once; every prompt is sampled with every seed.
        sampler: Settings as JSON values: steps, guidance, frames, size …

    Raises:
        PanelError: Nothing to sample, something twice, too much, or no JSON.
    """

    name: str
    prompts: tuple[str, ...]
    seeds: tuple[int, ...] = (0,)
    sampler: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            raise PanelError(f"panel name {self.name!r:.80} may hold letters, digits, _ . - only")
        object.__setattr__(self, "prompts", _checked(self.prompts, "prompts", _text))
        object.__setattr__(self, "seeds", _checked(self.seeds, "seeds", _whole))
        if len(self.prompts) * len(self.seeds) > MOST_CELLS:
            raise PanelError(f"panel {self.name} has more than {MOST_CELLS} cells: split it in two")
        try:
            check_account(self.content)
            # Its own, as JSON gives it back: nobody changes it from outside.
            sampler = _kept(json.loads(json.dumps(dict(self.sampler))))
            object.__setattr__(self, "sampler", sampler)
            msgspec.msgpack.encode(self.content)
        except (RecordError, OverflowError, TypeError, ValueError) as error:
            raise PanelError(f"panel {self.name}: {one_line(str(error))}") from None

    @property
    def content(self) -> dict[str, Any]:
        """What is sampled, as JSON values; the name is no part of it."""
        return {
            "prompts": list(self.prompts),
            "seeds": list(self.seeds),
            "sampler": dict(self.sampler),
        }

    @property
    def digest(self) -> str:
        """SHA-256 of the content in canonical JSON."""
        canonical = json.dumps(self.content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    @property
    def title(self) -> str:
        """The name with the beginning of the digest: what keys and files are called by."""
        return title_of(self.name, self.digest)

    @property
    def cells(self) -> tuple[Cell, ...]:
        """Every prompt with every seed: the first prompt's seeds first."""
        return tuple(self._cells())

    def key_of(self, cell: Cell) -> str:
        """The key under which a cell's samples are logged."""
        return f"panels/{self.title}/{cell.name}"

    def origin_of(self, cell: Cell) -> Origin:
        """What a cell's sample was asked for with."""
        return Origin(prompt=cell.prompt, seed=cell.seed, sampler=self.sampler)

    def differences(self, other: Panel) -> tuple[str, ...]:
        """In what two panels differ, each in words; empty when their digests are equal."""
        mine, theirs = self.content, other.content
        return tuple(
            f"{part}: {_shown(mine[part])} and {_shown(theirs[part])}"
            for part in mine
            if json.dumps(mine[part], sort_keys=True) != json.dumps(theirs[part], sort_keys=True)
        )

    def _cells(self) -> Iterator[Cell]:
        pairs = [(prompt, seed) for prompt in self.prompts for seed in self.seeds]
        for number, (prompt, seed) in enumerate(pairs):
            name = f"{number:03d}-{_slug(prompt)}-seed-{seed}"
            yield Cell(prompt=prompt, seed=seed, name=name)

    def to_dict(self) -> dict[str, Any]:
        """Name, content and digest as JSON values."""
        return {"name": self.name, **self.content, "digest": self.digest}

    @classmethod
    def from_dict(cls, given: Any) -> Self:
        """Read what `to_dict` gave.

        Raises:
            PanelError: It is no panel, or its digest is of another content.
        """
        try:
            panel = msgspec.convert(given, cls)
        except (msgspec.ValidationError, TypeError) as error:
            raise PanelError(f"this is no panel: {one_line(str(error))}") from error
        if given.get("digest") != panel.digest:
            raise PanelError(f"panel {panel.name} was changed: its digest is of another content")
        return panel


def title_of(name: str, digest: str) -> str:
    """The name with the beginning of the digest: what keys and files are called by."""
    return f"{name}-{digest[:_MARK_DIGITS]}"


def by_cell(panel: Panel, given: Any, *, what: str) -> dict[str, Any]:
    """Bring what was given for the cells of a panel to a mapping by cell name.

    Args:
        panel: The panel.
        given: One for each cell, in the order of `panel.cells`, or a mapping by
            cell, cell name or (prompt, seed). None for a cell that has none.
        what: What it is, for messages.

    Raises:
        PanelError: Another number than there are cells, or an unknown cell.
    """
    cells = panel.cells
    if isinstance(given, Mapping):
        names = {key: one.name for one in cells for key in (one, one.name, (one.prompt, one.seed))}
        for key in given:
            if key not in names:
                raise PanelError(f"panel {panel.name} has no cell {_shown(key)}: see panel.cells")
        found = {names[key]: value for key, value in given.items()}
        if len(found) < len(given):
            raise PanelError(f"{what} of panel {panel.name} name a cell twice: see panel.cells")
    else:
        if isinstance(given, str | bytes) or not isinstance(given, Iterable):
            kind = type(given).__name__
            raise PanelError(f"{what} of panel {panel.name} must be a list or mapping, not {kind}")
        values = list(given)
        if len(values) != len(cells):
            raise PanelError(
                f"panel {panel.name} has {len(cells)} cells, and {len(values)} {what} were given"
            )
        found = {one.name: value for one, value in zip(cells, values, strict=True)}
    return {name: value for name, value in found.items() if value is not None}


def _checked(values: Any, what: str, to_plain: Callable[[Any], Any]) -> tuple[Any, ...]:
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise PanelError(f"{what} must be a list, not {type(values).__name__}")
    found = []
    for one in values:
        try:
            found.append(to_plain(one))
        except TypeError as error:
            raise PanelError(f"{what} hold {_shown(one)}, which is {error}") from None
    if not found or len(set(found)) < len(found):
        raise PanelError(f"{what} must be at least one, and each once: {_shown(found)}")
    return tuple(found)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("no text")
    return str(_kept(value))


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError("no whole number")
    return operator.index(value)


def _kept(value: Any) -> Any:
    """JSON values as a record keeps them: half characters, which UTF-8 has not, as `\\udc80`."""
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()
    if isinstance(value, dict):
        return {_kept(key): _kept(one) for key, one in value.items()}
    return [_kept(one) for one in value] if isinstance(value, list) else value


def _slug(prompt: str) -> str:
    words = re.sub(r"[^A-Za-z0-9]+", "-", prompt).strip("-").lower()
    return words[:_SLUG_CHARACTERS].strip("-") or "prompt"


def _shown(value: Any) -> str:
    return one_line(str(value), at_most=120)
