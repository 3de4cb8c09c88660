"""How a process joins the run of those it trains with: one of them owns it, the others are told."""

import os
import re
import socket
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from opusclip_mlops import rendezvous
from opusclip_mlops.config import TrackingConfig
from opusclip_mlops.errors import ConfigError
from opusclip_mlops.folder import Manifest, RunFolder
from opusclip_mlops.ranks import Place, place_in
from opusclip_mlops.rendezvous import Board, FileBoard, Meeting
from opusclip_mlops.sessions import RANKS, RELAY, sessions

PROCESS_VARIABLE = "OPUSCLIP_RANK_PROCESS"
"""The pid of the rank that a process is a child of: a child is no rank, whatever it inherits."""

RANK_TAG = "opusclip.rank"
"""The tag that says which rank a run is of, where each has its own."""

_POLL_FIRST_S, _POLL_LAST_S, _TELL_AFTER_S = 0.02, 0.5, 10.0
_OLD_AFTER_S = 20.0
_SKEW_MS = 1000
_HOST_CHARACTERS = 60
_joined_here: list[str] = []


def place_of(config: TrackingConfig) -> Place | None:
    """Where this process stands among those of its run; None for one whose run is its own."""
    place = place_in(os.environ)
    own = str(os.getpid())
    if place is None or config.ranks == "own" or os.environ.get(PROCESS_VARIABLE, own) != own:
        return None
    # One that torchrun may start anew goes on in its run, too.
    return place if place.world_size > 1 or "TORCHELASTIC_RUN_ID" in os.environ else None


def is_owner(config: TrackingConfig, place: Place | None) -> bool:
    """Whether a process's points make the run: one that is alone, or the rank that is named."""
    return place is None or place.rank == _owner_of(config, place)


def rank_tags(config: TrackingConfig) -> dict[str, str]:
    """What tells runs apart that the ranks of a job have each for itself; else nothing."""
    place = place_in(os.environ) if config.ranks == "own" else None
    return {RANK_TAG: str(place.rank)} if place and place.world_size > 1 else {}


def _owner_of(config: TrackingConfig, place: Place) -> int:
    # Fewer may be left than there were when it was named.
    return config.metric_rank if config.metric_rank < place.world_size else 0


def is_started_anew(config: TrackingConfig) -> bool:
    """Whether this process's ranks had begun a run before, in the same job.

    Raises:
        ConfigError: the other ranks cannot be met.
    """
    place = place_of(config)
    if place is None or place.attempt:
        return place is not None
    return Joining(config, place).earlier() is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class EarlierRun:
    """The run that a job's ranks had before their launcher started them anew.

    Attributes:
        folder: Where it lies in the journal; gone once all was delivered.
        run_id: The MLflow run, None where that is not known here.
    """

    folder: RunFolder
    run_id: str | None


def earlier_run(config: TrackingConfig) -> EarlierRun | None:
    """The run that this process's next tracker will go on with; for the rank that owns it.

    None where none had begun, for any other rank, and for a process that is alone.

    Raises:
        ConfigError: the other ranks cannot be met.
    """
    place = place_of(config)
    if place is None or not is_owner(config, place):
        return None
    found = Joining(config, place).earlier()
    if found is None:
        return None
    folder = RunFolder(Path(found.journal_dir) / found.local_id)
    identity = folder.identity()
    known = identity.run_id if identity else ""
    return EarlierRun(folder=folder, run_id=known or found.run_id or rendezvous.noted_run(folder))


class Joining:
    """The way of one process into the run of its job.

    Args:
        config: What the run is called and where it goes.
        place: Where the process stands.
        wait_s: How long to wait for the others.

    Raises:
        ConfigError: the others cannot be met.
    """

    def __init__(
        self, config: TrackingConfig, place: Place, *, wait_s: float | None = None
    ) -> None:
        self.place = place
        """Where the process stands; once it has `agreed`, with the `attempt` that all count."""
        self.goes_on = False
        """Whether the run had begun before the launcher started its ranks anew."""
        self._launched = place.attempt
        self._wait_s = rendezvous.WAIT_S if wait_s is None else wait_s
        self._journal_dir = Path(config.journal_dir).absolute()
        self._owner, self._asked_owner = _owner_of(config, place), config.metric_rank
        self._name = f"opusclip/{place.job}/{len(_joined_here)}"
        self._board: Board = rendezvous.board_of(
            place, os.environ, self._journal_dir, wait_s=self._wait_s
        )
        self._told: Meeting | None = None

    @property
    def is_owner(self) -> bool:
        """Whether this process's points make the run, and the run begins with it."""
        return self.place.rank == self._owner

    def agreed(self, manifest: Manifest) -> Manifest:
        """What the run is called, by its owner; waits for that.

        Raises:
            ConfigError: the owner has said nothing in time.
        """
        place = self.place
        manifest = self._as_owner(manifest) if self.is_owner else self._as_told(manifest)
        # One rank may become many when torchrun starts it anew.
        merges = [RANKS] if manifest.owns_run else []
        # Those that go on alone may be joined again.
        is_relayed = not manifest.owns_run or self.goes_on or not self._are_all_here()
        sinks = [*manifest.sinks, *merges, *([RELAY] if is_relayed else [])]
        # What a second machine uses is logged under its name.
        nodes = place.nodes if manifest.owns_run else max(place.nodes, 2)
        return msgspec.structs.replace(
            manifest, sinks=sinks, ranks=place.world_size, node=place.node, nodes=nodes
        )

    def _are_all_here(self) -> bool:
        """Whether no rank can be on another machine."""
        meet_by_parent = isinstance(self._board, FileBoard) and not rendezvous.has_name(self.place)
        return self.place.nodes == 1 and (self.place.is_one_machine or meet_by_parent)

    @property
    def journal_dir(self) -> Path:
        """Where the run's folder lies: on the owner's machine, where the owner has it."""
        told = self._told
        if told and (told.host, told.node) == (socket.gethostname(), self.place.node):
            return Path(told.journal_dir)
        return self._journal_dir

    def folder_name(self, local_id: str) -> str:
        """What the run's folder is called: each machine has its own, though they share a disk."""
        if self._told is None or self._is_here(self._told):
            return local_id
        host = re.sub(r"[^A-Za-z0-9.\-]", "-", socket.gethostname())
        return f"{local_id}+{host[:_HOST_CHARACTERS]}"

    def found(self, folder: RunFolder, manifest: Manifest) -> Manifest:
        """What the held folder is to remember: it may be gone with what it delivered, and new."""
        if self.is_owner:
            # A job before this one may have left its ranks here.
            starts = (one.start for one in sessions(folder))
            last = max((one.attempt for one in starts if one.rank is not None), default=-1)
            self.place = replace(self.place, attempt=max(self.place.attempt, last + 1))
        if manifest.run_id is None and not (folder.path / "manifest.json").exists():
            run_id = rendezvous.noted_run(folder)
            return msgspec.structs.replace(manifest, run_id=run_id)
        return manifest

    def announce(self, folder: RunFolder, manifest: Manifest) -> None:
        """Say which run it is, as its owner; from now on a child of this process is no rank.

        Raises:
            ConfigError: the others cannot be told.
            OSError: the journal's folder cannot be written.
        """
        if self.is_owner:
            if self._asked_owner != self._owner:
                few = f"there is no rank {self._asked_owner} among {self.place.world_size}"
                print(f"opusclip: {few}: the metrics are rank 0's", file=sys.stderr, flush=True)
            rendezvous.keep_in_mind(folder)
            said = msgspec.json.encode(self._meeting(folder, manifest))
            for board in (self._board, *self._memory()):
                board.write(self._name, said)
        os.environ[PROCESS_VARIABLE] = str(os.getpid())
        _joined_here.append(folder.path.name)

    def _meeting(self, folder: RunFolder, manifest: Manifest) -> Meeting:
        return Meeting(
            local_id=folder.path.name,
            run_id=manifest.run_id,
            run_name=manifest.run_name,
            experiment_name=manifest.experiment_name,
            experiment_id=manifest.experiment_id,
            start_time_ms=manifest.start_time_ms,
            host=socket.gethostname(),
            node=self.place.node,
            journal_dir=str(folder.path.parent),
            attempt=self.place.attempt,
            launched=self._launched,
            said_ms=int(time.time() * 1000),
        )

    def _memory(self) -> list[Board]:
        """What outlasts a store that goes with its processes; a job without a name has none."""
        is_file = isinstance(self._board, FileBoard)
        named = rendezvous.has_name(self.place)
        return [FileBoard(self._journal_dir)] if named and not is_file else []

    def _as_owner(self, manifest: Manifest) -> Manifest:
        earlier = self.earlier()
        self.place = replace(self.place, attempt=0)
        if earlier is None or earlier.run_id not in (None, manifest.run_id):
            return manifest
        self.goes_on = True
        self.place = replace(self.place, attempt=earlier.attempt + 1)
        return msgspec.structs.replace(
            manifest,
            local_id=earlier.local_id,
            run_name=earlier.run_name,
            start_time_ms=earlier.start_time_ms,
        )

    def earlier(self) -> Meeting | None:
        """What was said before the launcher started all anew; None for nothing."""
        if found := rendezvous.said(self._board, self._name):
            is_files = isinstance(self._board, FileBoard)
            # A store ends with its job; a file may be of another job of that name.
            return None if is_files and found.launched >= self._launched else found
        if not self._launched:
            return None
        known = (rendezvous.said(board, self._name) for board in self._memory())
        return next(filter(None, known), None)

    def _as_told(self, manifest: Manifest) -> Manifest:
        told = self._told = self._wait()
        self.place = replace(self.place, attempt=told.attempt)
        self.goes_on = told.attempt > 0
        is_here = self._is_here(told)
        if not is_here:
            # The mirrors, and what watches the run, belong to the owner's machine.
            manifest = msgspec.structs.replace(manifest, sinks=["mlflow"], alerts={})
        return msgspec.structs.replace(
            manifest,
            local_id=told.local_id,
            run_id=told.run_id,
            run_name=told.run_name,
            experiment_name=told.experiment_name,
            experiment_id=told.experiment_id,
            start_time_ms=told.start_time_ms,
            owns_run=is_here,
        )

    def _is_here(self, told: Meeting) -> bool:
        """Whether the owner's folder is this machine's, too."""
        return (told.host, told.journal_dir) == (socket.gethostname(), str(self.journal_dir))

    def _wait(self) -> Meeting:
        """What the owner says, once it has begun with this process and not with one before."""
        began_s, pause_s, is_told = time.monotonic(), _POLL_FIRST_S, False
        while True:
            waited_s = time.monotonic() - began_s
            found = rendezvous.said(self._board, self._name)
            if found and self._is_ours(found, waited_s=waited_s):
                return found
            if waited_s >= self._wait_s:
                raise self._unmet()
            if waited_s >= _TELL_AFTER_S and not is_told:
                is_told = True
                self._tell()
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _POLL_LAST_S)

    def _is_ours(self, found: Meeting, *, waited_s: float) -> bool:
        """Whether this is what the owner said to this process, and not to one that is gone.

        That has claimed it, unless it died before: then it was said before this process began. So
        it was to a rank that began late: that takes it once no other has come for a while.
        """
        skew_ms = 0 if found.host == socket.gethostname() else _SKEW_MS
        is_old = found.said_ms < rendezvous.began_ms() - skew_ms
        if is_old and waited_s < min(_OLD_AFTER_S, self._wait_s):
            return False
        return self._board.claim(f"{self._name}/{found.local_id}/{found.attempt}/{self.place.rank}")

    def _tell(self) -> None:
        waits = f"rank {self.place.rank} waits until rank {self._owner} begins the run"
        print(f"opusclip: {waits}", file=sys.stderr, flush=True)

    def _unmet(self) -> ConfigError:
        return ConfigError(
            f"rank {self._owner} has begun no run within {self._wait_s:g} s: make its"
            " ExperimentTracker too, name the rank that does by OPUSCLIP_METRIC_RANK, or set"
            " OPUSCLIP_RANKS to own for a run of each process"
        )
