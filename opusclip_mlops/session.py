"""A process's part in a run: its journal, its shipper, and the wait until all has arrived."""

import errno
import os
import shutil
import socket
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from opusclip_mlops import journal, parting, stopping, waiting
from opusclip_mlops.accounting import Account
from opusclip_mlops.backlog import open_level, read_level, reserve
from opusclip_mlops.config import TrackingConfig
from opusclip_mlops.deaths import TRACEBACK_TAG
from opusclip_mlops.errors import ConfigError, DeliveryError, OpusclipError
from opusclip_mlops.exits import DeathNotes, as_tag
from opusclip_mlops.flight import FlightNotes, OpenOperations
from opusclip_mlops.folder import CONTROL, Identity, Position, RunFolder
from opusclip_mlops.generations import generation_tag, start_after
from opusclip_mlops.held_folders import held_folder, own_name
from opusclip_mlops.joining import Joining, is_owner, place_of, rank_tags
from opusclip_mlops.journal import Journal
from opusclip_mlops.launch import ShipperGuard
from opusclip_mlops.metadata import CheckpointMetadata
from opusclip_mlops.naming import known_run, manifest_of, own_identity, secrets_of, unwritable
from opusclip_mlops.ranks import Place, rank_in
from opusclip_mlops.records import Record, RunEnded, RunStarted, Tags, last_training_step
from opusclip_mlops.selection import Selection
from opusclip_mlops.sessions import (
    RANKS,
    ended_here,
    exit_code_decides,
    final_end,
    hold_alive,
    process_started_s,
    sessions,
    with_traceback,
)

POLL_S = 0.05
_RESERVED_BYTES = 64 * 1024


class Session:
    """Opens a run's folder, appends to it, and starts the shipper that delivers it.

    Args:
        config: What the run is called and where it goes.
        tags: What the run is tagged with from its start.
        begun_from: The checkpoint that training goes on from.
    """

    since_ms = 0
    """No point of this part has an earlier time, in Unix milliseconds."""

    _start_time_ms = 0
    _is_announced = _is_quiet = _leaves_at_once = False
    _goal: Position | None = None

    def __init__(
        self,
        config: TrackingConfig,
        *,
        tags: dict[str, str],
        begun_from: CheckpointMetadata | None = None,
    ) -> None:
        self._begun_from = begun_from
        self.place = place_of(config)
        self.is_owner = is_owner(config, self.place)
        run_id, self._owned = known_run(config)
        self._manifest = manifest_of(config, run_id)
        if config.alerts:
            from opusclip_mlops.alerts.reading import watched

            self._manifest = watched(self._manifest, config.alerts)
        self._secrets = secrets_of(config)
        self._presence, self._files = ExitStack(), ExitStack()
        joining = Joining(config, self.place) if self.place else None
        try:
            self._hold(config, run_id, joining)
            self._open(config)
            self._begin(rank_tags(config) | tags)
            if joining:
                # Before its shipper, which outlives a start that fails.
                joining.announce(self.folder, self._manifest)
                self._files.callback(joining.leave)
                self._is_announced = True
            self._start_shipper()
        except ConfigError:
            self._give_up()
            raise
        except OSError as error:
            self._give_up()
            raise ConfigError(
                f"journal_dir {config.journal_dir} cannot be written: {error.strerror or error}:"
                " make room, or set journal_dir to a folder of yours on a local disk"
            ) from None

    def _hold(self, config: TrackingConfig, run_id: str | None, joining: Joining | None) -> None:
        """Have the run's folder, so that nobody removes it; others may be in it already."""
        journal_dir = Path(config.journal_dir).absolute()
        name, goes_on, self._resumed = self._manifest.local_id, False, True
        if joining:
            self._manifest = joining.agreed(self._manifest)
            journal_dir, goes_on = joining.journal_dir, joining.goes_on
            name = joining.folder_name(self._manifest.local_id)
        self.folder = RunFolder(journal_dir / name)
        self._resumed = run_id is not None or goes_on
        self.folder, hold = held_folder(journal_dir, name, run_id if self.is_owner else None)
        self._presence.callback(os.close, hold)
        if joining:
            self._manifest = joining.found(self.folder, self._manifest)
            self.place = joining.place

    def _open(self, config: TrackingConfig) -> None:
        self.folder.create(self._manifest)
        asked, self._manifest = self._manifest, self.folder.manifest()
        if asked.alerts not in ({}, self._manifest.alerts):
            print("opusclip: the run is watched by the rules it began with", file=sys.stderr)
        if fault := unwritable(self._manifest):
            print(f"opusclip: {fault}", file=sys.stderr, flush=True)
        self._name = own_name()
        self._open_journals(config)
        self._open_control()

    def _open_control(self) -> None:
        self._presence.callback(os.close, hold_alive(self.folder, self._name))
        self._presence.callback(DeathNotes(self.folder.path, self._name).release)
        flight = FlightNotes(self.folder.path, self._name)
        self._presence.callback(flight.release)
        self.operations = flight.operations
        lost = self._account.count_lost
        self._control = Journal(self.folder.path, self._name + CONTROL, on_loss=lost)
        self._files.callback(self._control.close)
        # The run's end must find room on a disk that its metrics have filled.
        reserve(self._control.descriptor, _RESERVED_BYTES)

    def _open_journals(self, config: TrackingConfig) -> None:
        self._identity: Identity | None = None
        self._account = Account(self.folder.path, self._name)
        self._files.callback(self._account.close)
        self._left_out = parting.NOTHING_LEFT_OUT
        self._journal = Journal(self.folder.path, self._name, on_loss=self._account.count_lost)
        self._files.callback(self._journal.close)
        self._level = open_level(self.folder)
        self._files.callback(self._close_level)
        self.append = self._journal.append
        self.selection = Selection(
            priorities=config.priorities,
            intervals=config.intervals,
            level=lambda: read_level(self._level),
            account=self._account,
        )

    def _begin(self, tags: dict[str, str]) -> None:
        is_new = self._manifest.run_id is None and self.folder.identity() is None
        if is_new and self._manifest.experiment_name:
            self.folder.write_identity(own_identity(self._manifest))
        self._start_time_ms = int(time.time() * 1000)
        tags = (tags if self.is_owner else {}) | self._generation(self._start_time_ms)
        self._start = RunStarted(
            session=self._name,
            host=socket.gethostname(),
            pid=os.getpid(),
            process_started_s=process_started_s(os.getpid()),
            start_time_ms=self._start_time_ms,
            owned=self._owned,
            tags=tags,
            rank=self.place.rank if self.place else None,
            attempt=self.place.attempt if self.place else 0,
            world_size=self.place.world_size if self.place else 1,
        )
        self._control.append(self._start)
        if self._control.lost:
            raise OSError(errno.ENOSPC, self._control.fault)
        # Without its start, a power cut in the first second would leave a run that nobody ends.
        os.fdatasync(self._control.descriptor)

    def _generation(self, now_ms: int) -> dict[str, str]:
        """The tag of a further generation of the run, where one begins."""
        begun_from = self._begun_from
        if begun_from is None:
            return {}
        self.since_ms = start_after(begun_from.created_ms, now_ms=now_ms)
        rank = rank_in(os.environ)
        return generation_tag(self._name, start_ms=self.since_ms, begun_from=begun_from, rank=rank)

    def _start_shipper(self) -> None:
        try:
            self._guard = ShipperGuard(self.folder, environment=self._secrets)
        except OSError as error:
            # Where others train on this run, this process did not fail it.
            self.end("FINISHED", "", owned=False)
            self._give_up()
            why = error.strerror or error
            raise OpusclipError(f"the run's shipper cannot be started: {why}") from None
        self._files.callback(self._guard.release)

    @property
    def local_id(self) -> str:
        """The run's name on this machine, known at once."""
        return self._manifest.local_id

    @property
    def name(self) -> str:
        """What tells this process's part from all others."""
        return self._name

    @property
    def is_resumed(self) -> bool:
        """Whether the run was there before."""
        return self._resumed

    @property
    def has_earlier_parts(self) -> bool:
        """Whether the run may hold what was never in this folder."""
        return self._manifest.run_id is not None

    @property
    def sinks(self) -> list[str]:
        """The sinks this run goes to."""
        return self._manifest.sinks

    @property
    def stop_reason(self) -> str:
        """Why this process is to stop training; empty where nobody asks for it."""
        return stopping.reason_to_stop(self.folder, since_ms=self._start_time_ms)

    def identity(self, *, wait_s: float) -> Identity:
        """What the run is in MLflow.

        Raises:
            DeliveryError: MLflow has not answered within `wait_s` seconds; the last fault is named.
        """

        def is_known() -> bool:
            identity = self._identity or self.folder.identity()
            self._identity = identity if identity and identity.run_id else None
            return bool(self._identity) or self.folder.progress("mlflow").rejected > 0

        self._wait(is_known, wait_s)
        if not self._identity:
            why = self.folder.progress("mlflow").error or "no answer yet"
            raise DeliveryError(f"MLflow made no run within drain_timeout_s ({wait_s:g} s): {why}")
        return self._identity

    def known_run_id(self) -> str | None:
        """The MLflow run id where it is known already; it is not waited for."""
        try:
            return self.identity(wait_s=0).run_id
        except DeliveryError:
            return None

    def end(
        self,
        status: str,
        reason: str,
        *,
        traceback: str = "",
        at_exit: bool = False,
        owned: bool | None = None,
    ) -> None:
        """Declare the end of this process's part; nothing is appended afterwards.

        `at_exit` says that nobody closed the run: then the process's exit code has the last word.
        """
        # The clock may have been set back meanwhile.
        now_ms = max(int(time.time() * 1000), self._start_time_ms)
        if why := self.stop_reason:
            status, reason = stopping.stopped(status, reason, why)
        if left := parting.left_out_of(self.folder):
            self._left_out = left
            if RANKS not in self.sinks:  # which says it of all ranks at once
                self._say(*left.records(timestamp_ms=now_ms))
        is_owned = self._owned if owned is None else owned
        end = RunEnded(self._name, status, now_ms, reason, is_owned, at_exit)
        end = with_traceback(self._start, end, as_tag(traceback))
        if traceback and not end.traceback:
            self._say(Tags({TRACEBACK_TAG: as_tag(traceback)}))
        if status != "FINISHED" and not exit_code_decides(end):
            # Before its end: what comes behind that starts a sink anew.
            self._say(*parting.report_of(self.folder, self._start, end, traceback=traceback))
        self._say(end)
        is_spokesman = parting.speaks_for_all(self._manifest, self.place, is_owner=self.is_owner)
        self._is_quiet = not is_spokesman
        self._leaves_at_once = parting.leaves_at_once(self._start, status)

    def _say(self, *said: Record) -> None:
        for record in said:
            self._control.append(record)

    def wait_until_arrived(self, sinks: list[str], *, wait_s: float) -> bool:
        """Wait until what was logged so far has arrived; False at the deadline."""
        goal = self.folder.size_bytes()
        return self._wait(lambda: all(self._has(sink, goal) for sink in sinks), wait_s)

    def wait_until_ended(self, *, wait_s: float) -> bool:
        """Wait until every sink has everything and knows the end; False at the deadline.

        A webhook of alerts that is away is not waited for; and one of many ranks that failed, or
        was told to end, waits for nothing.
        """
        if self._leaves_at_once:
            return False
        goal = self._goal = self.folder.size_bytes()
        with waiting.delivery_shown(self.folder, [] if self._is_quiet else self.sinks) as show:

            def is_done() -> bool:
                show()
                if waiting.has_ended(self.folder, self.sinks):
                    return True
                # While another process logs to the run, its end is not ours to wait for.
                is_shared = self.folder.path.exists() and not ended_here(self.folder)
                return is_shared and all(self._has(sink, goal) for sink in self.sinks)

            return self._wait(is_done, wait_s)

    def count_lost(self, error: OSError) -> None:
        """Count a file that the disk could not take."""
        self._journal.count_lost(error)

    def last_step_before(self) -> int:
        """The highest step that earlier processes left in this folder, -1 where there is none."""
        known = max((self.folder.progress(sink).last_step for sink in self.sinks), default=-1)
        earlier = [p for p in self.folder.segments() if not p.name.startswith(self._name)]
        items = (item for path in earlier for item in journal.read(path))
        unread = (item.record for item in items if isinstance(item, journal.Entry))
        return max(known, last_training_step(unread))

    def missing(self) -> list[str]:
        """What has not arrived, was refused or could not be kept: one line each.

        Of many ranks one on each machine says it: the owner, elsewhere the first.
        """
        fault = self._journal.fault or self._control.fault
        if self._is_quiet and not fault:
            return []
        log = self.folder.path / "shipper.log"
        # What other processes log since is theirs to wait for.
        goal = None if final_end(self.folder) else self._goal or self.folder.size_bytes()
        lines = waiting.undelivered(self.folder, self.sinks, goal=goal)
        lines = parting.going_on(lines, log, leaves_at_once=self._leaves_at_once)
        return [*lines, *parting.left_out_lines(self._left_out, fault)]

    def release(self, *, is_last_word: bool = True) -> None:
        """Let go of the folder, so that the shipper may remove it.

        Where the exit code has the last word, the folder is held until the process is gone.
        """
        self._files.close()
        if is_last_word:
            self._presence.close()

    def _give_up(self) -> None:
        """Leave nothing of a start that did not come to be."""
        self._files.close()
        if not self._resumed and self.is_owner and not self._is_announced:
            shutil.rmtree(self.folder.path, ignore_errors=True)
        self._presence.close()

    def _close_level(self) -> None:
        # A call that comes late must not read from what gets this number next.
        descriptor, self._level = self._level, -1
        os.close(descriptor)

    def _has(self, sink: str, goal: Position) -> bool:
        position = self.folder.progress(sink).position
        return all(position.get(name, 0) >= size for name, size in goal.items())

    def _wait(self, is_done: Callable[[], bool], wait_s: float) -> bool:
        deadline = time.monotonic() + wait_s
        while not is_done():
            if time.monotonic() >= deadline:
                return False
            time.sleep(POLL_S)
        return True


class JoinedSession(Session):
    """A further process's way to append to a run that another one began and will end."""

    def __init__(self, config: TrackingConfig, folder: Path, *, place: Place | None = None) -> None:
        self.place, self.is_owner = place, is_owner(config, place)
        self.folder = RunFolder(folder)
        self._manifest = self.folder.manifest()
        self._presence, self._files = ExitStack(), ExitStack()
        self._presence.callback(os.close, self.folder.hold())
        self._resumed = False
        self._name = own_name()
        # Whom it works for began last: a stop before that was another one's.
        starts = (one.start.start_time_ms for one in sessions(self.folder))
        self._start_time_ms = max(starts, default=0)
        self.operations = OpenOperations(None)
        self._open_journals(config)
