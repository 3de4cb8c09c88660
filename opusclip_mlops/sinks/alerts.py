"""Alerts: the journal judged by the run's rules, what they raise logged again, and told.

What is said of an alert is appended to a journal of the run's own, so that it reaches MLflow and
every mirror by the road of all other records. What is there already is not said twice: a sink that
was killed before its position was kept meets its own words when it goes on.
"""

import copy
import time
from typing import TYPE_CHECKING

import msgspec

from opusclip_mlops import journal, stopping
from opusclip_mlops.alerts.events import KEY, Event, event_of
from opusclip_mlops.alerts.production import Production
from opusclip_mlops.alerts.rules import (
    Alerts,
    DiskFilling,
    DroppedPoints,
    MirrorLag,
    NoProgress,
)
from opusclip_mlops.alerts.sending import Outcome, Outgoing, Run
from opusclip_mlops.alerts.surroundings import Surroundings
from opusclip_mlops.alerts.watcher import Watcher
from opusclip_mlops.folder import RunFolder
from opusclip_mlops.journal import Journal
from opusclip_mlops.lean_mlflow import load_mlflow
from opusclip_mlops.records import Batch, Metrics, RunEnded, RunStarted, Text, now_ms
from opusclip_mlops.sessions import final_end
from opusclip_mlops.sinks import SinkState, Written
from opusclip_mlops.webhooks import Message, Receiver

if TYPE_CHECKING:
    from opusclip_mlops.sinks import Sink

NAME = "+alerts"
"""Begins the names of the journals that hold what was said; no session is called so."""

LOOK_EVERY_S = 1.0
_CATCH_UP_S = 30.0
_TIMED = (NoProgress, DroppedPoints, MirrorLag, DiskFilling)


class AlertsSink:
    """Watches a run, and does what its rules ask for."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._manifest = folder.manifest()
        self._alerts = msgspec.convert(self._manifest.alerts, Alerts)
        self._journal: Journal | None = None
        self._is_timed = any(isinstance(one, _TIMED) for one in self._alerts.rules.values())
        self._surroundings = Surroundings(folder, self._alerts)
        self._production = Production(self._manifest)

    def open(self, state: SinkState) -> SinkState:
        """Go on with the episodes that are open, and with what is not told yet."""
        found = copy.deepcopy(state)
        self._wall_ms, self._opened_s = now_ms(), time.monotonic()
        self._look_s = self._opened_s + _CATCH_UP_S
        self._watcher = Watcher(self._alerts, found.get("watcher"), now_ms=self._wall_ms)
        self._outgoing = Outgoing(self._alerts, found.get("outgoing", []))
        self._ahead = {
            event.id: event for event in self._said() if not self._watcher.has_met(event)
        }
        self._kept = self._state()
        return self._kept

    def write(self, batch: Batch) -> Written:
        """Do what was put off, judge the batch, and look at what time alone breaks."""
        faults = self._outgoing.faults
        has_changed = self._act()
        has_changed |= bool(batch.records) or bool(self._ahead)
        self._judge(batch)
        self._adopt()
        is_over = final_end(self._folder) is not None
        if not is_over:
            has_changed |= self._look(is_caught_up=not batch.records)
        if has_changed:
            # A copy: what is kept and what is judged next must not be one.
            self._kept = self._state()
        return Written(
            self._kept,
            unfinished=bool(self._outgoing.entries) or (self._is_timed and not is_over),
            fault=self._outgoing.fault,
            faults=self._outgoing.faults - faults,
        )

    def _judge(self, batch: Batch) -> None:
        for record in batch.records:
            if isinstance(record, Metrics):
                self._say(self._watcher.observe(record, now_ms=self._now_ms()))
            elif isinstance(record, RunStarted):
                self._watcher.begin(now_ms=self._now_ms())

    def close(self, end: RunEnded | None) -> None:
        """Let go of the journal: nothing is left to be told."""
        assert end is None or not self._outgoing.entries
        if self._journal:
            self._journal.close()

    def _state(self) -> SinkState:
        state = {"watcher": self._watcher.state, "outgoing": self._outgoing.entries}
        return copy.deepcopy(state)

    def _now_ms(self) -> int:
        """The time, whatever is done to the clock while this process runs."""
        return self._wall_ms + round((time.monotonic() - self._opened_s) * 1000)

    def _act(self) -> bool:
        """Stop the run, or tell one webhook; only of what was kept before. Whether it did."""
        has_changed = self._outgoing.stop_now(self._stop)
        has_sent, events = self._outgoing.send_one(self._run(), _post, now_ms=now_ms())
        for event in events:
            print(event.message, flush=True)
        self._say(events)
        return has_changed or has_sent

    def _stop(self, event: Event) -> None:
        reason = f"alert {event.alert}: {event.message}"
        # The event's own: a stop done late, or once more, is not about who began meanwhile.
        at_ms = min(event.timestamp_ms, now_ms())
        count = stopping.ask_to_stop(self._folder, reason, now_ms=at_ms)
        print(f"{reason}: {count} processes were told to stop", flush=True)

    def _run(self) -> Run:
        identity = self._folder.identity() if self._outgoing.entries else None
        return Run(
            local_id=self._manifest.local_id,
            name=(identity and identity.run_name) or self._manifest.run_name or "",
            run_id=identity.run_id if identity else "",
            experiment=(identity and identity.experiment_name) or "",
        )

    def _look(self, *, is_caught_up: bool) -> bool:
        """Look at what no point says, each second once all that was logged has been read."""
        now_s = time.monotonic()
        if now_s < self._look_s and not (is_caught_up and self._look_s > now_s + LOOK_EVERY_S):
            return False
        self._look_s = now_s + LOOK_EVERY_S
        has_news = self._production.look(self._watcher.wanted_of_production())
        if has_news:
            self._watcher.know_production(self._production.values)
        facts = self._surroundings.facts(now_ms=self._now_ms())
        events = self._watcher.look(facts, now_ms=self._now_ms())
        self._say(events)
        return has_news or bool(events)

    def _adopt(self) -> None:
        """Take over what was said before a crash and is not met again."""
        ahead, self._ahead = list(self._ahead.values()), {}
        for event in ahead:
            self._watcher.adopt(event)
            self._outgoing.add(event, now_ms=now_ms())

    def _say(self, events: list[Event]) -> None:
        for event in events:
            known = self._ahead.pop(event.id, None)
            if known is None:
                self._append(event)
            self._say(self._outgoing.add(known or event, now_ms=now_ms()))

    def _append(self, event: Event) -> None:
        """Append what is said of an event.

        Raises:
            OSError: the disk cannot take it.
        """
        if self._journal is None:
            self._journal = Journal(self._folder.path, NAME)
        lost = self._journal.lost
        for record in event.records():
            self._journal.append(record)
        if self._journal.lost != lost:
            raise OSError(f"alert {event.id} cannot be written down: {self._journal.fault}")

    def _said(self) -> list[Event]:
        """What was said so far, as far as its journals still hold it."""
        paths = sorted(self._folder.path.glob(f"{NAME}-*{journal.SUFFIX}"))
        items = (item for path in paths for item in journal.read(path))
        texts = (one.record for one in items if isinstance(one, journal.Entry))
        found = (event_of(one.text) for one in texts if isinstance(one, Text) and one.key == KEY)
        return [one for one in found if one]


def _post(receiver: Receiver, message: Message) -> Outcome:
    # What sends comes with MLflow, which most runs' alerts never need.
    load_mlflow()
    from opusclip_mlops.posting import post

    return post(receiver, message)


if TYPE_CHECKING:

    def _conforms(folder: RunFolder) -> Sink:
        return AlertsSink(folder)
