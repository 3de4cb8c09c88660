"""Blind votes in a file: who was compared, what each voter was shown on which side, each vote.

The file is private, as it says which side is which. It has a line of JSON for each thing that
happened, and a line is only ever added: what was voted last on a pair counts, and a pair that was
undone has no vote. A line that was torn by a crash is passed over.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import stat
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from opusclip_mlops.errors import PanelError
from opusclip_mlops.redaction import one_line
from opusclip_mlops.significance.preferences import Vote

Choice = Literal["left", "right", "tie", "undone"]
Place = Literal["left", "right"]

MOST_FILE_BYTES = 64 * 2**20
FORMAT = 1


# Of these, names in MLflow are made.
_Id = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{12}\Z")]
_RunId = Annotated[str, msgspec.Meta(pattern=r"\A[0-9A-Za-z_-]{1,64}\Z")]
_Title = Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}-[0-9a-f]{8}\Z")]


class Contender(msgspec.Struct, frozen=True, kw_only=True):
    """One of the two: a run at a step."""

    run_id: _RunId
    called: str
    step: int


class Session(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="session"):
    """What is compared, and the seed of all drawing; the first line of a file."""

    id: _Id
    panel: _Title
    panel_digest: str
    cells: tuple[str, ...]
    a: Contender
    b: Contender
    seed: int
    format: int = FORMAT


class ShownPair(msgspec.Struct, frozen=True, kw_only=True):
    """A cell of the panel as a voter sees it, and where A is."""

    cell: str
    a_is: Place


class Sheet(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="sheet"):
    """The pairs that one voter is shown, in their order."""

    id: str
    voter: str
    pairs: tuple[ShownPair, ...]


class Cast(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="vote"):
    """A vote on a pair of a sheet, by its number from 0."""

    sheet: str
    pair: int
    choice: Choice
    timestamp_ms: int


Line = Session | Sheet | Cast


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """A vote that counts.

    Attributes:
        voter: Who voted.
        cell: The name of the panel's cell.
        vote: For whom.
        choice: On which side.
    """

    voter: str
    cell: str
    vote: Vote
    choice: Choice


@dataclass(frozen=True, kw_only=True)
class Ballots:
    """All that a file holds.

    Attributes:
        session: What is compared.
        sheets: By their ids, in the order they were made in.
        cast: Every vote on a pair that there is, by sheet and pair, the last that was cast.
        damaged: How many lines cannot be read.
    """

    session: Session
    sheets: dict[str, Sheet] = field(default_factory=dict)
    cast: dict[tuple[str, int], Cast] = field(default_factory=dict)
    damaged: int = 0

    @property
    def counted(self) -> list[Counted]:
        """The votes that count, in the order they were cast in."""
        return [self._counted(one) for one in self.cast.values() if one.choice != "undone"]

    def given(self, sheet: Sheet) -> dict[int, Choice]:
        """What stands on a sheet, by the number of the pair."""
        cast = (one for one in self.cast.values() if one.sheet == sheet.id)
        return {one.pair: one.choice for one in cast if one.choice != "undone"}

    def sheet_of(self, voter: str) -> Sheet | None:
        """The sheet of a voter."""
        return next((one for one in self.sheets.values() if one.voter == voter), None)

    def _counted(self, cast: Cast) -> Counted:
        sheet = self.sheets[cast.sheet]
        pair = sheet.pairs[cast.pair]
        vote: Vote = "tie"
        if cast.choice != "tie":
            vote = "A" if cast.choice == pair.a_is else "B"
        return Counted(voter=sheet.voter, cell=pair.cell, vote=vote, choice=cast.choice)

    def take(self, line: Line) -> bool:
        """Add what a line says; whether it says anything that can be."""
        if isinstance(line, Sheet) and line.id not in self.sheets:
            self.sheets[line.id] = line
            return True
        sheet = self.sheets.get(line.sheet) if isinstance(line, Cast) else None
        if not isinstance(line, Cast) or sheet is None or not 0 <= line.pair < len(sheet.pairs):
            return False
        # Votes stand in the order in which they came to be what they are.
        self.cast.pop((line.sheet, line.pair), None)
        self.cast[line.sheet, line.pair] = line
        return True


def new_session(
    *, panel: str, panel_digest: str, cells: Sequence[str], a: Contender, b: Contender, seed: int
) -> Session:
    """A comparison that nobody has voted in."""
    return Session(
        id=secrets.token_hex(6), panel=panel, panel_digest=panel_digest, cells=tuple(cells),
        a=a, b=b, seed=seed,
    )  # fmt: skip


def new_sheet(session: Session, voter: str) -> Sheet:
    """Every pair once, in an order and on sides drawn for this voter.

    Each side is drawn by itself, so that a voter's choice of sides says nothing of A where A and
    B are alike; the order leaves no cell more often early than another.
    """

    def drawn(what: str, cell: str) -> bytes:
        text = f"{session.seed}\0{voter}\0{what}\0{cell}"
        return hashlib.sha256(text.encode()).digest()

    cells = sorted(session.cells, key=lambda cell: drawn("order", cell))
    pairs = (
        ShownPair(cell=one, a_is="left" if drawn("side", one)[0] & 1 else "right") for one in cells
    )
    return Sheet(id=secrets.token_hex(6), voter=voter, pairs=tuple(pairs))


def cast_now(sheet: Sheet, pair: int, choice: Choice) -> Cast:
    """A vote that is cast at this moment."""
    now_ms = time.time_ns() // 1_000_000
    return Cast(sheet=sheet.id, pair=pair, choice=choice, timestamp_ms=now_ms)


def read_ballots(path: Path) -> Ballots:
    """Read a file of votes.

    Raises:
        PanelError: It cannot be read, or is none.
    """
    lines = _lines(path)
    first = next(lines, None)
    if not isinstance(first, Session) or first.format != FORMAT:
        raise PanelError(f"{path} is no file of blind votes: its first line says of nothing so")
    found, damaged = Ballots(session=first), 0
    for line in lines:
        damaged += line is None or not found.take(line)
    return Ballots(session=first, sheets=found.sheets, cast=found.cast, damaged=damaged)


def _lines(path: Path) -> Iterator[Line | None]:
    """What each line says, None for one that says nothing."""
    try:
        if path.stat().st_size > MOST_FILE_BYTES:
            raise PanelError(f"{path} is no file of blind votes: it is too long")
        content = path.read_bytes()
    except OSError as error:
        raise PanelError(f"{path} cannot be read: {error.strerror}") from error
    decoder = msgspec.json.Decoder(Line)
    for line in content.splitlines():
        if line.strip():
            try:
                yield decoder.decode(line)
            except (msgspec.DecodeError, UnicodeDecodeError):
                yield None


def append(path: Path, lines: Iterable[Line]) -> None:
    """Add lines; they are on disk when this returns. The file is made private.

    Raises:
        PanelError: They cannot be written.
    """
    text = b"".join(msgspec.json.encode(one) + b"\n" for one in lines)
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            _make_private(descriptor)
            # After a torn line a new one begins.
            end = os.fstat(descriptor).st_size
            is_torn = end and os.pread(descriptor, 1, end - 1) != b"\n"
            text = b"\n" + text if is_torn else text
            if os.write(descriptor, text) < len(text):
                raise PanelError(f"{path} cannot be written: the disk is full")
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise PanelError(f"{path} cannot be written: {error.strerror}") from error


def _make_private(descriptor: int) -> None:
    """Let nobody else read a file of ours, whoever could before."""
    about = os.fstat(descriptor)
    if stat.S_ISREG(about.st_mode) and about.st_uid == os.geteuid():
        os.fchmod(descriptor, 0o600)


def take_saved(path: Path, saved: Path) -> int:
    """Add the votes that a page without a server saved; how many there were to add.

    Raises:
        PanelError: The file cannot be read, or a vote is of another comparison.
    """
    ballots = read_ballots(path)
    known = {key: one.timestamp_ms for key, one in ballots.cast.items()}
    fresh: list[Cast] = []
    for line in _lines(saved):
        if not isinstance(line, Cast):
            raise PanelError(f"{saved} is no file of votes that a page saved")
        if not ballots.take(line):
            sheet = one_line(line.sheet, at_most=40)
            raise PanelError(f"{saved} holds votes on sheet {sheet}, which {path} does not know")
        if known.get((line.sheet, line.pair), -1) < line.timestamp_ms:
            fresh.append(line)
    append(path, fresh)
    return len(fresh)
