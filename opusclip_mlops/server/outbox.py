"""What one webhook is still to be told, read from MLflow's own tables, and how far it is.

A record is written once and stays, so the histories are what a message is sent from. Everything
that is written here is written only where nobody has changed it since it was read: of two processes
that send, the slower one sees that it is not alone, and stops.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sql
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

from opusclip_mlops import ledger
from opusclip_mlops.announcing import (
    Cursor,
    Tried,
    failed_number,
    failed_tag,
    from_tag,
    progress_tag,
    to_tag,
)
from opusclip_mlops.chain import key_of, read_chain
from opusclip_mlops.server import outbox_rows as rows
from opusclip_mlops.server.outbox_rows import NotAlone as NotAlone
from opusclip_mlops.server.places import stock_uri
from opusclip_mlops.server.transaction import BoundModels, StoreClient

DEFAULT_ROOT = "./mlruns"
"""Where MLflow keeps artifacts unless it is told otherwise."""

_BUSY_MS = 20_000
_LONGEST_MS = 7_200_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """Whose turn it is to send, as a tag of the root run keeps it.

    Attributes:
        holder: Who sends at the moment, empty for nobody.
        beat: It grows while the holder lives.
        not_before_ms: The receiver is left alone until then, in Unix milliseconds.
    """

    holder: str = ""
    beat: int = 0
    not_before_ms: int = 0


@dataclass(frozen=True, slots=True)
class Due:
    """A record that is to be told: the next one of a history, or one that failed before.

    Attributes:
        run_id: The run that holds the history.
        number: The record's.
        tried: What it has met so far.
        tag: Where that is kept.
        text: The tag's text as it was read, None where there is no such tag.
        has_failed: Whether it was given up before, and put back.
    """

    run_id: str
    number: int
    tried: Tried
    tag: str
    text: str | None
    has_failed: bool = False


class Outbox:
    """What a webhook is still to be told.

    Args:
        db_uri: The database, with `opusclip+` before it or without.
        webhook: The webhook's name.
        artifact_root: Where artifacts of new experiments go.
    """

    def __init__(self, db_uri: str, webhook: str, *, artifact_root: str = DEFAULT_ROOT) -> None:
        self._uri, self._artifact_root = stock_uri(db_uri), artifact_root
        self._webhook = webhook
        self._tag = progress_tag(webhook)
        self._engine = SqlAlchemyStore._get_or_create_engine(self._uri)

    def turn(self) -> tuple[Turn, str] | None:
        """Whose turn it is, and the tag's text; None where the webhook is not known yet."""
        with self._connected() as connection:
            text = rows.tag_of(connection, rows.root_of(connection), self._tag)
        return None if text is None else (from_tag(text, Turn), text)

    def begin(self) -> None:
        """Make the webhook known: it is told of what is decided from now on, not of the past.

        Any number of processes may do so at once.
        """
        # Without it the first decision of all would be taken for one of the past.
        ledger.the_experiment(self._client())
        try:
            with self._connected() as connection:
                self._begin(connection, rows.root_of(connection))
        except NotAlone:
            return

    def _client(self) -> StoreClient:
        """A client that opens no store of MLflow's own: that waits while one is being opened."""
        runs: Any = SqlAlchemyStore(self._uri, self._artifact_root)
        return StoreClient(runs, BoundModels(runs, runs.ManagedSessionMaker))

    def _begin(self, connection: sql.Connection, root_id: str) -> None:
        known = {run_id for run_id, _, _ in rows.tags_of(connection, root_id, self._tag)}
        last: dict[str, int] = {}
        for run_id, number in rows.numbers_of(connection, root_id):
            last[run_id] = max(number, last.get(run_id, 0))
        rows.insert(connection, root_id, self._tag, to_tag(Turn()))
        for run_id, number in last.items():
            if run_id not in known:
                rows.insert(connection, run_id, self._tag, to_tag(Cursor(told=number)))

    def set_turn(self, before: str, turn: Turn) -> str:
        """Change whose turn it is, from what was read; gives the tag's text.

        Raises:
            NotAlone: Somebody else changed it.
        """
        text = to_tag(turn)
        with self._connected() as connection:
            rows.replace(connection, rows.root_of(connection), self._tag, before, text)
        return text

    def due(self, now_ms: int, *, with_gaps: bool = False) -> list[Due]:
        """What may be told now: one record of each history, and what failed and was put back.

        Args:
            now_ms: Unix time in milliseconds.
            with_gaps: See behind numbers that are missing too, which takes longer.
        """
        with self._connected() as connection:
            root_id = rows.root_of(connection)
            tags = rows.tags_of(connection, root_id, self._tag)
            texts = {run_id: text for run_id, tag, text in tags if tag == self._tag}
            runs = rows.histories(connection, root_id)
            told = {run_id: from_tag(texts.get(run_id), Cursor).told for run_id in runs}
            numbers = (
                _lowest_above(told, rows.numbers_of(connection, root_id))
                if with_gaps
                else rows.there(
                    connection, root_id, {run_id: one + 1 for run_id, one in told.items()}
                )
            )
        found = [*self._put_back(tags)]
        found += [self._next(run_id, numbers[run_id], texts.get(run_id)) for run_id in numbers]
        return [one for one in found if is_over(one.tried.next_ms, now_ms)]

    def following(self, due: Due) -> Due | None:
        """The record after one that was just told, None where there is none yet."""
        if due.has_failed:
            return None
        with self._connected() as connection:
            text = rows.tag_of(connection, due.run_id, self._tag)
            number = from_tag(text, Cursor).told + 1
            record = rows.param_of(connection, due.run_id, key_of(number))
        return None if record is None else self._next(due.run_id, number, text)

    def record(self, due: Due) -> str:
        """The record as it stands in the history, empty where it was taken away."""
        with self._connected() as connection:
            return rows.param_of(connection, due.run_id, key_of(due.number)) or ""

    def long_text(self, due: Due, digest: str) -> str | None:
        """A long text that the record names by its sha256, None where it is not whole."""
        with self._connected() as connection:
            parts = rows.parts_of(connection, due.run_id, digest)
        return read_chain(parts, model="", run_id=due.run_id).texts.get(digest)

    def keep_told(self, due: Due) -> None:
        """Keep that it was told, or is none that this webhook is told of.

        Raises:
            NotAlone: Somebody else kept something of it.
        """
        with self._connected() as connection:
            if due.has_failed:
                rows.drop(connection, due.run_id, due.tag, due.text or "")
            else:
                self._advance(connection, due)

    def keep_given_up(self, due: Due, tried: Tried) -> None:
        """Put it on the list of what failed; the next one has its turn.

        Raises:
            NotAlone: Somebody else kept something of it.
        """
        key, text = failed_tag(self._webhook, due.number), to_tag(tried)
        with self._connected() as connection:
            if due.has_failed:
                rows.replace(connection, due.run_id, key, due.text, text)
                return
            self._advance(connection, due)
            # It stands there already where somebody took the progress away.
            rows.clear(connection, due.run_id, key)
            rows.insert(connection, due.run_id, key, text)

    def keep_tried(self, due: Due, tried: Tried) -> None:
        """Keep what it has met; it is tried again.

        Raises:
            NotAlone: Somebody else kept something of it.
        """
        kept = tried if due.has_failed else Cursor(told=due.number - 1, tried=tried)
        with self._connected() as connection:
            rows.replace(connection, due.run_id, due.tag, due.text, to_tag(kept))

    def _advance(self, connection: sql.Connection, due: Due) -> None:
        text = to_tag(Cursor(told=due.number))
        rows.replace(connection, due.run_id, due.tag, due.text, text)

    def _next(self, run_id: str, number: int, text: str | None) -> Due:
        return Due(run_id, number, from_tag(text, Cursor).tried, self._tag, text)

    def _put_back(self, tags: list[tuple[str, str, str]]) -> Iterator[Due]:
        """What failed before and is wanted again."""
        for run_id, tag, text in tags:
            number, tried = failed_number(self._webhook, tag), from_tag(text, Tried)
            if number and tried.again:
                yield Due(run_id, number, tried, tag, text, has_failed=True)

    @contextmanager
    def _connected(self) -> Iterator[sql.Connection]:
        """A connection whose transaction ends with the block."""
        with self._engine.begin() as connection:
            if self._engine.dialect.name == "sqlite":
                connection.exec_driver_sql(f"PRAGMA busy_timeout = {_BUSY_MS}")
            yield connection


def is_over(until_ms: int, now_ms: int) -> bool:
    """Whether a wait is over; one that nobody waits for so long was begun by a wrong clock."""
    return not now_ms < until_ms <= now_ms + _LONGEST_MS


def _lowest_above(told: Mapping[str, int], numbers: Iterator[tuple[str, int]]) -> dict[str, int]:
    """The lowest record of each history above what was told."""
    found: dict[str, int] = {}
    for run_id, number in numbers:
        if number > told.get(run_id, number):
            found[run_id] = min(number, found.get(run_id, number))
    return found
