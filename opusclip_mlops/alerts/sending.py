"""What is still to be done about alerts: webhooks to tell, runs to stop; tried until it is done.

Each entry is plain JSON, kept with the sink's position, so that neither a restart nor a receiver
that is away loses one. A message bears the same id each time it is sent.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from opusclip_mlops.alerts.events import Event
from opusclip_mlops.alerts.rules import STOP, WANDB, Alerts, Webhook
from opusclip_mlops.errors import ConfigError
from opusclip_mlops.redaction import one_line
from opusclip_mlops.webhooks import (
    Message,
    Receiver,
    Secret,
    fault_of_url,
    slack_body,
    standard_body,
)

MOST_PENDING = 200
"""So many messages wait at most; the oldest one is given up for a further one."""

FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 300.0
_LONGEST_MS = 7_200_000


class Outcome(Protocol):
    """What came of sending, as `posting.Outcome` says it."""

    @property
    def result(self) -> str:
        """Told, later or refused."""

    @property
    def error(self) -> str:
        """What was wrong."""

    @property
    def wait_s(self) -> float | None:
        """How long the receiver asked to be left alone."""


Post = Callable[[Receiver, Message], Outcome]
"""Sends a message once."""

_Came = tuple[str, float | None, bool]
"""What was wrong, the wait that was asked for, and whether it is so for good."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a message says of the run; ids are empty until MLflow has answered."""

    local_id: str
    name: str
    run_id: str = ""
    experiment: str = ""


class Outgoing:
    """The actions of a run's alerts that are not done yet.

    Args:
        alerts: The rules, and who is told.
        entries: What `entries` was when this goes on after a restart.
    """

    def __init__(self, alerts: Alerts, entries: list[dict[str, Any]]) -> None:
        self.entries = entries
        self.faults = 0
        self._errors: dict[str, str] = {}
        self._webhooks = alerts.webhooks

    @property
    def fault(self) -> str:
        """What was wrong the last time with a webhook that is not told all; empty otherwise."""
        waiting = (one["to"] for one in self.entries)
        return next((self._errors[to] for to in waiting if to in self._errors), "")

    def add(self, event: Event, *, now_ms: int) -> list[Event]:
        """Put an event's actions on the list; gives what is said of those that had to go."""
        for action in event.actions:
            is_stop = action == STOP and event.state == "raised"
            if is_stop or action in self._webhooks:
                entry = {"to": action, "event": msgspec.to_builtins(event)}
                self.entries.append({**entry, "since_ms": now_ms, "tries": 0, "next_ms": 0})
        gone = self.entries[: max(0, len(self.entries) - MOST_PENDING)]
        del self.entries[: len(gone)]
        return [undelivered(_event(one), one["to"], "too many others wait") for one in gone]

    def stop_now(self, stop: Callable[[Event], None]) -> bool:
        """Do what stops the run; whether there was anything."""
        found = [one for one in self.entries if one["to"] == STOP]
        for entry in found:
            stop(_event(entry))
            self.entries.remove(entry)
        return bool(found)

    def send_one(self, run: Run, post: Post, *, now_ms: int) -> tuple[bool, list[Event]]:
        """Tell one webhook the oldest that is due; whether anything changed, and what is said."""
        entry = self._due(now_ms)
        if entry is None:
            return False, []
        error, wait_s, is_final = self._sent(entry, run, post)
        if not error:
            self.entries.remove(entry)
            self._errors.pop(entry["to"], None)
            return True, []
        self.faults += 1
        self._errors[entry["to"]] = one_line(f"webhook {entry['to']}: {error}", at_most=300)
        age_s = (now_ms - entry["since_ms"]) / 1000
        # One try is none: the machine may have slept for days before it.
        is_old = entry["tries"] and age_s >= self._webhooks[entry["to"]].give_up_after_s
        if is_final or is_old:
            self.entries.remove(entry)
            return True, [undelivered(_event(entry), entry["to"], error)]
        self._put_off(entry, wait_s or 0.0, now_ms)
        return True, []

    def _put_off(self, entry: dict[str, Any], wait_s: float, now_ms: int) -> None:
        """Try it again after a wait; all that is for the same webhook waits with it."""
        entry["tries"] += 1
        grown_s = min(FIRST_WAIT_S * 2.0 ** min(entry["tries"] - 1, 30), LONGEST_WAIT_S)
        until_ms = now_ms + round(max(grown_s, wait_s) * 1000)
        for one in self.entries:
            if one["to"] == entry["to"]:
                one["next_ms"] = until_ms

    def _due(self, now_ms: int) -> dict[str, Any] | None:
        """The first whose wait is over; one that nobody waits for so long is of a wrong clock."""
        return next(
            (
                one
                for one in self.entries
                if one["to"] in self._webhooks
                and not now_ms < one["next_ms"] <= now_ms + _LONGEST_MS
            ),
            None,
        )

    def _sent(self, entry: Mapping[str, Any], run: Run, post: Post) -> _Came:
        """What came of sending it once."""
        name, webhook = entry["to"], self._webhooks[entry["to"]]
        try:
            receiver = receiver_of(name, webhook, os.environ)
        except ConfigError as error:
            return str(error), None, False
        outcome = post(receiver, message_of(_event(entry), run, style=webhook.format))
        if outcome.result == "told":
            return "", None, True
        return outcome.error or outcome.result, outcome.wait_s, outcome.result == "refused"


def _event(entry: Mapping[str, Any]) -> Event:
    return msgspec.convert(entry["event"], Event)


def undelivered(event: Event, to: str, error: str) -> Event:
    """That an event did not get through to a webhook, and why."""
    said = one_line(f"{to} was not told that {event.alert} was {event.state}: {error}")
    return msgspec.structs.replace(event, state="undelivered", to=to, message=said, actions=())


def receiver_of(name: str, webhook: Webhook, environ: Mapping[str, str]) -> Receiver:
    """Where a message goes, with what the environment says now.

    Raises:
        ConfigError: A variable that is named is not set, or holds no address.
    """
    url = webhook.url or environ.get(webhook.url_env, "").strip()
    if not url:
        raise ConfigError(f"the variable {webhook.url_env} is not set")
    if fault := fault_of_url(url, allow_http=webhook.allow_http):
        raise ConfigError(f"what is in {webhook.url_env}: {fault}")
    return Receiver(
        name=name,
        url=url,
        secret=Secret(variable=webhook.secret_env),
        format=webhook.format,
        give_up_after_s=webhook.give_up_after_s,
        allow_private=webhook.allow_private,
    )


def message_of(event: Event, run: Run, *, style: str) -> Message:
    """What a webhook is sent of an event; its id is the same each time."""
    # With its time: a run that is gone on with counts its alerts from 1 again.
    known_as = f"msg_{run.local_id}_{event.id}_{event.timestamp_ms}"
    if style == "slack":
        run_id = f" ({run.run_id})" if run.run_id else ""
        return Message(known_as, slack_body(f"{event.line} [run {run.name}{run_id}]"))
    data = {name: value for name, value in msgspec.to_builtins(event).items() if name != "actions"}
    data |= {
        "run_id": run.run_id,
        "run_name": run.name,
        "experiment": run.experiment,
        "local_id": run.local_id,
    }
    return Message(known_as, standard_body(f"alert.{event.state}", event.timestamp_ms, data))


def has_use_for(alerts: Alerts) -> bool:
    """Whether any rule tells a webhook."""
    return any(set(rule.actions) - {STOP, WANDB} for rule in alerts.rules.values())
