"""Tells webhooks of decisions, from within the processes of the server.

Every webhook has a thread in every process, and whose turn it is stands in the database: one sends,
in the order of each history. Who is killed while sending leaves its turn to another, at once on the
same machine, else after a minute; then a message may be sent twice, under the same id. While there
is nothing to tell nothing is written, and nobody has the turn.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import random
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import click
from mlflow.server.constants import BACKEND_STORE_URI_ENV_VAR

from opusclip_mlops.announcing import Tried
from opusclip_mlops.decisions import Decision, from_text
from opusclip_mlops.errors import ConfigError, RegistryError
from opusclip_mlops.faults import attempted
from opusclip_mlops.posting import Outcome, post
from opusclip_mlops.redaction import one_line
from opusclip_mlops.server.holders import is_gone, new_holder
from opusclip_mlops.server.messages import slack_message, standard_message
from opusclip_mlops.server.outbox import DEFAULT_ROOT, Due, NotAlone, Outbox, Turn, is_over
from opusclip_mlops.server.places import stock_uri
from opusclip_mlops.server.webhook_settings import Webhook, configured_webhooks
from opusclip_mlops.webhooks import Message

_MOST_AT_A_TIME = 50
_PAUSE_S = 15.0
_END_S = 1.0
_LONGEST_ERROR = 200
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How often things are done, in seconds.

    Attributes:
        look_s: Between two looks at the histories.
        gaps_s: Between two looks behind numbers that are missing.
        turn_s: After which somebody who gives no sign of life has lost the turn.
        first_wait_s: Before the second try; it doubles with every further one.
        longest_wait_s: The longest of these waits.
    """

    look_s: float = 2.0
    gaps_s: float = 600.0
    turn_s: float = 60.0
    first_wait_s: float = 1.0
    longest_wait_s: float = 300.0


class Sender:
    """Tells one webhook of what is in one database.

    Args:
        db_uri: The database, with `opusclip+` before it or without.
        webhook: Who is told.
        artifact_root: Where artifacts of new experiments go.
        pace: How often things are done.
    """

    def __init__(
        self,
        db_uri: str,
        webhook: Webhook,
        *,
        artifact_root: str = DEFAULT_ROOT,
        pace: Pace | None = None,
    ) -> None:
        self._webhook = webhook
        self._pace = pace or Pace()
        self._outbox = Outbox(db_uri, webhook.name, artifact_root=artifact_root)
        self._name = new_holder()
        self._seen = ("", 0.0)
        self._gaps_s = 0.0
        self._turn, self._text, self._beaten_s = Turn(), "", 0.0
        self._poked, self._is_ending = threading.Event(), threading.Event()
        self._thread = threading.Thread(
            target=self._work, name=f"webhook {webhook.name}", daemon=True
        )

    def start(self) -> None:
        """Look at the histories from now on, in a thread of its own."""
        # At once: what is decided from here on is told.
        if fault := attempted(self._begin):
            _log.warning("webhook %s: %s, looking again", self._webhook.name, _called(fault))
        self._thread.start()

    def poke(self) -> None:
        """Look at once: something was decided."""
        self._poked.set()

    def end(self, *, wait_s: float = _END_S) -> None:
        """Send nothing more, and wait a moment until the turn is given back."""
        self._is_ending.set()
        self._poked.set()
        self._thread.join(wait_s)

    def look(self) -> None:
        """Tell everything that is due, where it is this process's turn.

        Raises:
            MlflowException, SQLAlchemyError: The database does not answer.
        """
        found = self._outbox.turn()
        if found is None:
            return self._outbox.begin()
        turn, text = found
        if not is_over(turn.not_before_ms, _now_ms()) or not self._due():
            return None
        if not self._may_take(turn, text):
            return None
        try:
            self._take(turn, text)
            self._tell_all()
            self._give_back()
        except NotAlone:
            # Another process took the turn: it goes on.
            return None
        return None

    def _begin(self) -> None:
        if self._outbox.turn() is None:
            self._outbox.begin()

    def _work(self) -> None:
        """Look again and again; a database that does not answer is asked again like any other."""
        said = ""
        while not self._is_ending.is_set():
            fault = attempted(self.look)
            reason = _called(fault) if fault else ""
            if fault and reason != said:
                _log.warning("webhook %s: %s, looking again", self._webhook.name, reason)
            said = reason
            self._poked.wait(self._pace.look_s)
            self._poked.clear()

    def _due(self) -> list[Due]:
        now_s = time.monotonic()
        with_gaps = not self._gaps_s or now_s - self._gaps_s > self._pace.gaps_s
        found = self._outbox.due(_now_ms(), with_gaps=with_gaps)
        if with_gaps and not found:
            self._gaps_s = now_s
        return found

    def _may_take(self, turn: Turn, text: str) -> bool:
        """Whether nobody has the turn, or who has it gave no sign of life for long."""
        if turn.holder in ("", self._name) or is_gone(turn.holder):
            return True
        now_s = time.monotonic()
        if self._seen[0] != text:
            # By this process's clock alone: those of two machines may differ.
            self._seen = (text, now_s)
        return now_s - self._seen[1] > self._pace.turn_s

    def _take(self, turn: Turn, text: str) -> None:
        self._turn = replace(turn, holder=self._name, beat=turn.beat + 1, not_before_ms=0)
        self._text = self._outbox.set_turn(text, self._turn)
        self._beaten_s = time.monotonic()

    def _beat(self) -> None:
        if time.monotonic() - self._beaten_s > self._pace.turn_s / 6:
            self._take(self._turn, self._text)

    def _give_back(self) -> None:
        self._outbox.set_turn(self._text, replace(self._turn, holder=""))

    def _tell_all(self) -> None:
        """Look again, now that nobody else sends, and tell what is due."""
        for due in self._due():
            self._tell_on(due)
            if self._turn.not_before_ms or self._is_ending.is_set():
                return

    def _tell_on(self, first: Due) -> None:
        """Tell a record and those after it, until one of them has to wait."""
        due: Due | None = first
        for _ in range(_MOST_AT_A_TIME):
            if due is None or not is_over(due.tried.next_ms, _now_ms()):
                return
            if self._is_ending.is_set():
                return
            self._beat()
            if not self._is_told(due):
                return
            due = self._outbox.following(due)
        self._poked.set()

    def _is_told(self, due: Due) -> bool:
        """Tell one record; False where it has to wait."""
        try:
            decision = _read(self._outbox.record(due))
        except RegistryError as error:
            self._give_up(due, Outcome("refused", f"the record {error}"))
            return True
        if not self._webhook.wants(decision):
            self._outbox.keep_told(due)
            return True
        outcome = post(self._webhook, self._message(due, decision))
        if outcome.result == "told":
            self._outbox.keep_told(due)
        elif outcome.result == "refused" or self._is_too_old(due):
            self._give_up(due, outcome)
        else:
            return self._put_off(due, outcome)
        return True

    def _message(self, due: Due, decision: Decision) -> Message:
        if self._webhook.format == "slack":
            return slack_message(decision, run_id=due.run_id)
        verdict = self._verdict(due, decision)
        return standard_message(decision, run_id=due.run_id, verdict=verdict)

    def _verdict(self, due: Due, decision: Decision) -> Mapping[str, Any] | None:
        if not decision.verdict_sha256:
            return decision.verdict
        text = self._outbox.long_text(due, decision.verdict_sha256)
        return json.loads(text) if text else None

    def _is_too_old(self, due: Due) -> bool:
        ends_ms = due.tried.first_ms + self._webhook.give_up_after_s * 1000
        return bool(due.tried.tries) and _now_ms() >= ends_ms

    def _give_up(self, due: Due, outcome: Outcome) -> None:
        self._outbox.keep_given_up(due, replace(_once_more(due.tried, outcome), again=False))
        _log.warning(
            "webhook %s: record %d of history %s was given up: %s",
            *(self._webhook.name, due.number, due.run_id, outcome.error),
        )

    def _put_off(self, due: Due, outcome: Outcome) -> bool:
        tried = _once_more(due.tried, outcome)
        wait_s = max(self._wait_s(tried), outcome.wait_s or 0.0)
        self._outbox.keep_tried(due, replace(tried, next_ms=tried.last_ms + round(wait_s * 1000)))
        if outcome.is_about_all or outcome.wait_s is not None:
            pause_s = min(wait_s, _PAUSE_S) if outcome.wait_s is None else outcome.wait_s
            self._turn = replace(self._turn, not_before_ms=_now_ms() + round(pause_s * 1000))
        if tried.tries == 1:
            _log.warning(
                "webhook %s: record %d of history %s was not taken, it is sent again: %s",
                *(self._webhook.name, due.number, due.run_id, outcome.error),
            )
        return False

    def _wait_s(self, tried: Tried) -> float:
        """How long until the next try; the last one is made when it is given up."""
        wait_s = self._pace.first_wait_s * 2.0 ** min(tried.tries - 1, 30)
        wait_s = min(wait_s, self._pace.longest_wait_s) * random.uniform(0.8, 1.2)
        left_s = self._webhook.give_up_after_s - (tried.last_ms - tried.first_ms) / 1000
        return min(wait_s, max(left_s, self._pace.first_wait_s))


def start(db_uri: str, *, artifact_root: str = DEFAULT_ROOT, pace: Pace | None = None) -> None:
    """Tell the webhooks that `OPUSCLIP_WEBHOOKS` names, where this process is a server's.

    Called again for the same database it does nothing.

    Args:
        db_uri: The database, with `opusclip+` before it or without.
        artifact_root: Where artifacts of new experiments go.
        pace: How often things are done.

    Raises:
        ConfigError: The settings are not understood, in the command that starts a server; what
            answers already goes on without them, and logs it.
    """
    is_starting = _is_starting_a_server()
    if not is_starting and not os.environ.get(BACKEND_STORE_URI_ENV_VAR):
        return
    place = (os.getpid(), stock_uri(db_uri))
    with _starting:
        if place in _senders:
            return
        _senders[place] = [
            Sender(db_uri, one, artifact_root=artifact_root, pace=pace)
            for one in _webhooks(is_starting=is_starting)
        ]
    for sender in _senders[place]:
        sender.start()
    atexit.register(end, db_uri)


def poke(db_uri: str) -> None:
    """Have the webhooks told at once, after something was decided."""
    for sender in _senders.get((os.getpid(), stock_uri(db_uri)), ()):
        sender.poke()


def end(db_uri: str) -> None:
    """Tell nobody any more, from this process."""
    for sender in _senders.pop((os.getpid(), stock_uri(db_uri)), ()):
        sender.end()


def _webhooks(*, is_starting: bool) -> tuple[Webhook, ...]:
    try:
        return configured_webhooks()
    except ConfigError as error:
        if is_starting:
            raise
        _log.error("this process tells no webhooks: %s", error)
        return ()


def _is_starting_a_server() -> bool:
    """Whether this process is MLflow's command that starts those which answer requests."""
    command = click.get_current_context(silent=True)
    if command is None or command.command.name not in ("server", "ui"):
        return False
    return getattr(command.command.callback, "__module__", "").startswith("mlflow.")


def _called(fault: Exception) -> str:
    """The kind of a fault; its text may hold what is secret."""
    return type(fault).__name__


def _read(text: str) -> Decision:
    decision = from_text(text)
    if decision.hash != decision.digest:
        raise RegistryError("was changed: its hash is not that of what it says")
    return decision


def _once_more(tried: Tried, outcome: Outcome) -> Tried:
    now_ms = _now_ms()
    return replace(
        tried,
        tries=tried.tries + 1,
        first_ms=tried.first_ms or now_ms,
        last_ms=now_ms,
        error=one_line(outcome.error, at_most=_LONGEST_ERROR),
    )


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


_starting = threading.Lock()
_senders: dict[tuple[int, str], list[Sender]] = {}
