"""The relay: what ranks log on other machines, brought to the machine that owns their run.

On a machine that does not own the run it sends; on the one that does it receives, and says when no
other machine is waited for any longer. MLflow is the road: no port is opened, no secret travels.
"""

import os
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

# The loop around a sink retries; a client that retries by itself would only hide it for minutes.
os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")

import msgspec
from mlflow import get_tracking_uri
from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from opusclip_mlops import merging_gaps
from opusclip_mlops.deaths import exit_code, takes_exit_code
from opusclip_mlops.folder import CONTROL, Position, RunFolder
from opusclip_mlops.journal import Journal
from opusclip_mlops.layout import RANKS
from opusclip_mlops.life_signs import INTERVAL_S as SIGN_S
from opusclip_mlops.life_signs import OWNER, Listening, Pauses, Showing
from opusclip_mlops.owner_watch import KNOWN, SILENCE, TOLD, OwnerWatch
from opusclip_mlops.rank_relay import PART_BYTES, Inbox, Outbox, Taken, begun, said
from opusclip_mlops.records import Batch, Record, RunEnded, RunStarted, Tags, Text, now_ms
from opusclip_mlops.sessions import (
    RELAY,
    Session,
    all_ended,
    ended_here,
    exit_code_decides,
    is_alive,
    note_all_nodes,
    sessions,
)
from opusclip_mlops.sinks import Refusal, SinkState, Waiting, Written

if TYPE_CHECKING:
    from opusclip_mlops.sinks import Sink

INTERVAL_S = float(os.environ.get("OPUSCLIP_RANKS_INTERVAL_S", 5.0))
"""How often a machine sends a file, and how often the owner looks for new ones."""
WAIT_S = float(os.environ.get("OPUSCLIP_NODES_WAIT_S", 60.0))
"""How long the owner waits, once its own ranks have ended, for a machine that says nothing."""
KEY = merging_gaps.KEY
"""The text that says what is not known of other machines."""
UNHEARD_TAG = merging_gaps.UNHEARD_TAG
"""Names the ranks whose end, or whose every word, never came."""

_SILENT = "nothing was heard of its machine"
_UNSURE_WAIT_S = 20.0
_LOOK_S = 1.0
_SLOWER_AFTER = 1000


class RelaySink:
    """Sends the records of this machine's ranks, or receives those of others'."""

    def __init__(self, folder: RunFolder) -> None:
        owns_run = folder.manifest().owns_run
        self._folder = folder
        self._part: _Receiver | _Sender | _Idle = _Receiver(folder) if owns_run else _Sender(folder)

    def open(self, state: SinkState) -> SinkState:
        """Go on where `state` says."""
        if _has_no_run(self._folder):
            self._part = _Idle(self._folder)
        return self._part.open(state)

    def write(self, batch: Batch) -> Written:
        """Send what is due, or take what has come."""
        return self._part.write(batch)

    def close(self, end: RunEnded | None) -> None:
        """Do nothing: what was to be said of ends is written by then."""


class _Idle:
    """Where MLflow has no such run there is no road: nothing is sent, and nobody waited for."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder

    def open(self, state: SinkState) -> SinkState:
        self._state = state
        return state

    def write(self, batch: Batch) -> Written:
        if ended_here(self._folder):
            note_all_nodes(self._folder, sessions(self._folder))
        refused = () if self._folder.manifest().owns_run else tuple(_refused(batch))
        return Written(self._state, refused, unfinished=not all_ended(self._folder))


class _Sender:
    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._is_urgent = False
        self._cut_s = time.monotonic()
        self._ends_s = 0.0

    def open(self, state: SinkState) -> SinkState:
        self._repository = _repository(self._folder)
        self._outbox = Outbox(self._folder, begun(state, number=self._folder.manifest().node))
        node = self._outbox.sending.node
        self._showing = Showing(self._folder.path, node, interval_s=_sign_s())
        if state and self._untold():
            # Who can send nothing, as on a full disk, lives all the same.
            self._showing.renew(self._repository)
        self._showing.put_off()
        # A leave from before all was told answers nothing, also where it is first seen now.
        self._has_told = bool(state) and not self._untold() and not self._outbox.sending.size_bytes
        self._owner = OwnerWatch(
            self._folder, self._repository, self._showing, silent_after_s=1.5 * WAIT_S,
            known=state.get(KNOWN) if self._has_told else None,
        )  # fmt: skip
        return self._state()

    def write(self, batch: Batch) -> Written:
        # What is known here was kept: a file that was closed may be sent, one that was sent go.
        self._outbox.forget_sent()
        if self._outbox.sending.is_closed:
            self._outbox.send(self._repository)
            self._showing.put_off()
        records = [one for one in batch.records if not isinstance(one, RunEnded)]
        self._outbox.add(records)
        self._is_urgent |= any(isinstance(one, RunStarted) for one in records)
        if not batch.records:
            self._note_ends()
        if self._is_due():
            self._outbox.close()
            self._cut_s, self._is_urgent = time.monotonic(), False
        if untold := self._untold():
            # A machine that logs nothing is not silent.
            self._showing.renew(self._repository)
        self._has_told = not untold and not self._outbox.sending.size_bytes
        stays = self._owner.look(has_told=self._has_told)
        return Written(self._state(), unfinished=stays or not self._has_told)

    def _state(self) -> SinkState:
        state: SinkState = msgspec.to_builtins(self._outbox.sending)
        known, silence = self._owner.known, self._owner.silence
        return {**state, TOLD: self._has_told, KNOWN: known, SILENCE: silence}

    def _is_due(self) -> bool:
        sending = self._outbox.sending
        # Less often in the course of days: the files stay.
        interval_s = INTERVAL_S * (1 + sending.number // _SLOWER_AFTER)
        is_late = time.monotonic() - self._cut_s >= interval_s
        is_full = sending.size_bytes >= PART_BYTES
        return bool(sending.size_bytes) and (is_late or is_full or self._is_urgent)

    def _untold(self) -> list[Session]:
        """The sessions whose end, as it is known now, is in no file yet."""
        told = self._outbox.sending.told
        every = sessions(self._folder)
        return [s for s in every if not s.end or told.get(s.start.session) != said(s.end)]

    def _note_ends(self) -> None:
        """Tell of those that have ended, once all that they had logged before is in a file."""
        if time.monotonic() < self._ends_s:
            return
        self._ends_s = time.monotonic() + _LOOK_S / 2
        position = self._folder.progress(RELAY).position
        for session in self._untold():
            if session.end and self._is_read(session, position) and self._is_certain(session):
                self._outbox.note_end(session.end)
                self._is_urgent = True

    def _is_read(self, session: Session, position: Position) -> bool:
        is_last = ended_here(self._folder)
        return all(
            position.get(name, -1) >= size
            for name, size in self._folder.size_bytes().items()
            if is_last or name.startswith(session.start.session)
        )

    def _is_certain(self, session: Session) -> bool:
        """Whether the exit code of the process can say nothing else any more."""
        end, name = session.end, session.start.session
        if end is None or session.is_corrected or not exit_code_decides(end):
            return end is not None
        code = exit_code(self._folder.path, name)
        if code is not None:
            return (end.status == "FINISHED") == (code == 0)
        is_gone = not is_alive(self._folder, session.start)
        return is_gone and not takes_exit_code(self._folder.path, name)


class _Receiver:
    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._look_s = self._listen_s = 0.0
        self._journal: Journal | None = None
        self._showing = Showing(folder.path, OWNER, interval_s=_sign_s())
        self._heard: dict[str, Listening] = {}

    def open(self, state: SinkState) -> SinkState:
        taken = msgspec.convert(state.get("nodes", {}), dict[str, Taken])
        self._inbox = Inbox(self._folder, _repository(self._folder), taken)
        # Opened anew after each fault: while MLflow does not answer nobody is taken for silent.
        self._quiet_since_s = time.monotonic()
        self._pauses = Pauses(max(WAIT_S / 2, 5.0))
        return self._state()

    def write(self, _: Batch) -> Written:
        self._show_life()
        has_ended = ended_here(self._folder)
        has_news = self._look(_LOOK_S if has_ended else INTERVAL_S)
        if has_news and self._has_given_up():
            self._say_who_is_heard()
        self._quiet_since_s += self._pauses.lost_s()
        if not has_ended or has_news or self._hears():
            self._quiet_since_s = time.monotonic()
        elif not all_ended(self._folder):
            self._end_waiting()
        is_over = all_ended(self._folder) and self._is_over(self._has_left(has_news=has_news))
        return Written(self._state(), unfinished=not is_over)

    def _show_life(self) -> None:
        """Tell the other machines that this one lives, also where it cannot take anything."""
        if self._showing.is_due and not all_ended(self._folder) and self._may_come():
            self._showing.renew(self._inbox.repository)

    def _has_left(self, *, has_news: bool) -> bool:
        """Tell other machines that this one waits no longer, and again behind what comes late."""
        if not self._inbox.taken and not self._showing.has_shown:
            return True
        return self._showing.take_leave(self._inbox.repository, again=has_news)

    def _hears(self) -> bool:
        """Whether a machine whose ranks go on shows that it lives, though it says nothing."""
        if time.monotonic() < self._listen_s:
            return False
        self._listen_s = time.monotonic() + _sign_s() / 2
        unended = {one.start.session for one in sessions(self._folder) if one.end is None}
        nodes = [one for one in self._inbox.taken if self._inbox.sessions_of(one) & unended]
        for node in nodes:
            self._heard.setdefault(node, Listening(self._folder.path, node))
        heard = [one for one in nodes if self._heard[one].look(self._inbox.repository, every_s=0)]
        for node in heard:
            known = msgspec.structs.replace(self._inbox.taken[node], heard_ms=now_ms())
            self._inbox.taken[node] = known
        return bool(heard)

    def _has_given_up(self) -> bool:
        return any(self._folder.path.glob(f"+{RELAY}{CONTROL}-*"))

    def _is_over(self, has_left: bool) -> bool:
        """Whether nothing is left to do; what is late is waited for while other sinks go on."""
        if has_left and not self._has_given_up():
            return True
        sizes = self._folder.size_bytes()
        others = [self._folder.progress(o) for o in self._folder.manifest().sinks if o != RELAY]
        return all(one.done and one.has_all(sizes) for one in others)

    def _say_who_is_heard(self) -> None:
        """Correct what was said of a silence, once nobody is silent any more."""
        every = sessions(self._folder)
        silent = [one for one in every if one.end and one.end.reason.startswith(_SILENT)]
        if not silent and not _unheard(every):
            self._say(Tags({UNHEARD_TAG: "none: what was lacking has come late"}))

    def _state(self) -> SinkState:
        return {"nodes": msgspec.to_builtins(self._inbox.taken)}

    def _look(self, interval_s: float) -> bool:
        now_s = time.monotonic()
        self._look_s = min(self._look_s, now_s + interval_s)
        if now_s < self._look_s:
            return False
        has_news = self._may_come() and self._inbox.look(now_ms=now_ms())
        self._look_s = time.monotonic() + (0.0 if has_news else interval_s)
        return has_news

    def _may_come(self) -> bool:
        """Whether another machine may have sent anything: not where all ranks train on this one."""
        every = sessions(self._folder)
        attempts = {one.start.attempt for one in every if one.start.rank is not None}
        return bool(self._inbox.taken) or any(_absent(every, attempt) for attempt in attempts)

    def _wait_s(self) -> float:
        """How long silence is waited for: not so long where there may be no other machine."""
        is_sure = self._folder.manifest().nodes > 1 or self._inbox.taken
        return WAIT_S if is_sure else min(WAIT_S, _UNSURE_WAIT_S)

    def _end_waiting(self) -> None:
        """Say that all is there, or go on without what is lacking once it was waited for."""
        every = sessions(self._folder)
        unended = [one for one in every if one.end is None]
        unheard = _unheard(every)
        if unended or unheard:
            if time.monotonic() - self._quiet_since_s < self._wait_s():
                return
            self._give_up(unended, unheard, _is_well(every))
        note_all_nodes(self._folder, every)

    def _give_up(self, unended: list[Session], unheard: list[int], is_well: bool) -> None:
        ends = [self._end_of(one, is_well=is_well) for one in unended]
        pairs = zip(unended, ends, strict=True)
        lines = [f"{_named(one.start)}: {end.reason}" for one, end in pairs]
        if unheard:
            advice = 'where a rank alone has a tracker, make it with ranks="own"'
            lines.append(f"{_ranks(unheard)}: not a word has come; {advice}")
        lines += [f"{node}: {why}" for node, why in self._inbox.unreadable.items()]
        silent = {one.start.rank for one in unended if one.start.rank is not None}
        ranks = sorted({*unheard, *silent})
        lines.append(f"what comes later stays as it was sent, in the run's files under {RANKS}")
        text = Text(now_ms(), 0, KEY, "\n".join(lines))
        self._say(text, Tags({UNHEARD_TAG: ", ".join(map(str, ranks))}), *ends)

    def _end_of(self, session: Session, *, is_well: bool) -> RunEnded:
        """An end that decides nothing where all others ended well, and else may be the reason."""
        name = session.start.session
        node = next((one for one in self._inbox.taken if name in self._inbox.sessions_of(one)), "")
        heard_ms = max(session.start.start_time_ms, self._inbox.taken.get(node, Taken()).heard_ms)
        reason = f"{_SILENT} for {WAIT_S:g} s"
        status = "FINISHED" if is_well else "FAILED"
        owned = session.start.owned and not is_well
        return RunEnded(name, status, heard_ms, reason, owned=owned)

    def _say(self, *records: Record) -> None:
        if self._journal is None:
            self._journal = Journal(self._folder.path, f"+{RELAY}{CONTROL}")
        lost = self._journal.lost
        for record in records:
            self._journal.append(record)
        if self._journal.lost != lost:
            raise OSError(f"what other machines lack cannot be written: {self._journal.fault}")


def _sign_s() -> float:
    """How often a machine shows that it lives: well before it would be taken for silent."""
    return min(SIGN_S, WAIT_S / 3)


def _repository(folder: RunFolder) -> ArtifactRepository:
    """Where the run's artifacts lie.

    Raises:
        Waiting: MLflow has not said so yet.
    """
    identity = folder.identity()
    if identity is None or not identity.run_id:
        raise Waiting("the run is not known in MLflow yet")
    tracking_uri = folder.manifest().tracking_uri or get_tracking_uri()
    return get_artifact_repository(identity.artifact_uri, tracking_uri=tracking_uri)


def _has_no_run(folder: RunFolder) -> bool:
    """Whether the run that was to be gone on with is not there."""
    identity = folder.identity()
    return bool(folder.manifest().run_id) and identity is not None and not identity.run_id


def _refused(batch: Batch) -> Iterator[Refusal]:
    """What was to be sent, and is kept here instead."""
    for record in batch.records:
        if not isinstance(record, RunStarted | RunEnded):
            yield Refusal(record, "the run that was to be gone on with is not in MLflow")


def _unheard(every: list[Session]) -> list[int]:
    """The ranks that were to train to the end of which no start is known."""
    return _absent(every, max(one.start.attempt for one in every))


def _absent(every: list[Session], attempt: int) -> list[int]:
    """The ranks of an attempt of which no start is known."""
    known = [one.start for one in every if one.start.attempt == attempt]
    ranks = range(max((one.world_size for one in known if one.rank is not None), default=0))
    return sorted(set(ranks) - {one.rank for one in known})


def _is_well(every: list[Session]) -> bool:
    """Whether all that have ended of those that began last ended well."""
    attempt = max(one.start.attempt for one in every)
    ends = [one.end for one in every if one.start.attempt == attempt]
    return all(end.status == "FINISHED" for end in ends if end)


def _named(start: RunStarted) -> str:
    return f"rank {start.rank} on {start.host}"


def _ranks(ranks: list[int]) -> str:
    named = ", ".join(map(str, ranks))
    return f"rank {named}" if len(ranks) == 1 else f"ranks {named}"


if TYPE_CHECKING:

    def _conforms(folder: RunFolder) -> Sink:
        return RelaySink(folder)
