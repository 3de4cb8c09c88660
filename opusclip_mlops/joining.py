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
from opusclip_mlops.flight import boot_id
from opusclip_mlops.folder import Manifest, RunFolder
from opusclip_mlops.meeting import Answering, Asking, Meeting, folder_of, may_pass, said, seen_here
from opusclip_mlops.ranks import Place, place_in, rank_in, world_size_in
from opusclip_mlops.rendezvous import Board, FileBoard
from opusclip_mlops.sessions import RANKS, RELAY, sessions

PROCESS_VARIABLE = "OPUSCLIP_RANK_PROCESS"
"""The pid of the rank that a process is a child of: a child is no rank, whatever it inherits."""

RANK_TAG = "opusclip.rank"
"""The tag that says which rank a run is of, where each has its own."""

_POLL_FIRST_S, _POLL_LAST_S, _TELL_AFTER_S = 0.02, 0.5, 10.0
_HOST_CHARACTERS = 60
_joined_here: list[str] = []


def place_of(config: TrackingConfig) -> Place | None:
    """Where this process stands among those of its run; None for one whose run is its own.

    Raises:
        ConfigError: RANK and WORLD_SIZE contradict each other.
    """
    own = str(os.getpid())
    if config.ranks == "own" or os.environ.get(PROCESS_VARIABLE, own) != own:
        return None
    place = place_in(os.environ)
    if place is None:
        _check_numbers(rank_in(os.environ) or 0, world_size_in(os.environ))
        return None
    # One that torchrun may start anew goes on in its run, too.
    return place if place.world_size > 1 or "TORCHELASTIC_RUN_ID" in os.environ else None


def _check_numbers(rank: int, world_size: int) -> None:
    """A batch script of Slurm is rank 0; a rank without a number of ranks is alone."""
    if world_size > 1 and rank >= world_size:
        raise ConfigError(
            f"RANK is {rank} and WORLD_SIZE {world_size}: ranks are numbered from 0 to"
            f" {world_size - 1}; unset both for a process that is alone"
        )


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
    joining = Joining(config, place)
    found = joining.earlier()
    folder = joining.begun_here(found) if found else None
    if found is None or folder is None:
        return None
    return EarlierRun(folder=folder, run_id=_known_run(folder, found))


def _known_run(folder: RunFolder, earlier: Meeting) -> str | None:
    """The MLflow run that ranks had before they were started anew, where that is known here."""
    identity = folder.identity()
    known = identity.run_id if identity else ""
    return known or rendezvous.noted_run(folder) or earlier.run_id


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
        self._launched, self._ranks_before = place.attempt, 1
        self._wait_s = rendezvous.WAIT_S if wait_s is None else wait_s
        self._journal_dir = Path(config.journal_dir).absolute()
        self._owner, self._asked_owner = _owner_of(config, place), config.metric_rank
        self._name = f"opusclip/{place.job}/{len(_joined_here)}"
        self._board: Board = rendezvous.board_of(
            place, os.environ, self._journal_dir, wait_s=self._wait_s
        )
        self._memory = rendezvous.memory_of(place, os.environ, self._journal_dir, self._board)
        self._told: Meeting | None = None
        self._seen: Path | None = None
        self._answers: Answering | None = None

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
        return self._seen or self._journal_dir

    def folder_name(self, local_id: str) -> str:
        """What the run's folder is called: each machine has its own, though they share a disk."""
        if self._told is None or self._seen:
            return local_id
        host = re.sub(r"[^A-Za-z0-9.\-]", "-", socket.gethostname())[:_HOST_CHARACTERS]
        # Of machines that have one name only the kernels differ.
        mark = f"-{boot_id()[:8]}" if self._told.host == socket.gethostname() else ""
        return f"{local_id}+{host}{mark}"

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
            self._say(folder, self._meeting(folder, manifest))
        os.environ[PROCESS_VARIABLE] = str(os.getpid())
        _joined_here.append(folder.path.name)

    def leave(self) -> None:
        """Tell no further rank of the run."""
        if self._answers:
            self._answers.leave()

    def _say(self, folder: RunFolder, meeting: Meeting) -> None:
        """Say it for those of a later attempt, and from now on to each that asks."""
        self._board.write(self._name, msgspec.json.encode(meeting))
        self._remember(meeting)

        def keep() -> None:
            rendezvous.keep_for_longer(folder)
            for board in (self._board, self._memory):
                if isinstance(board, FileBoard):
                    board.touch(self._name)

        self._answers = Answering(
            self._board, self._name, meeting, may_ask=self.place.world_size > 1, keep=keep
        )

    def _remember(self, meeting: Meeting) -> None:
        if self._memory:
            self._memory.write(self._name, msgspec.json.encode(meeting))

    def _meeting(self, folder: RunFolder, manifest: Manifest) -> Meeting:
        return Meeting(
            local_id=folder.path.name,
            run_id=manifest.run_id,
            run_name=manifest.run_name,
            experiment_name=manifest.experiment_name,
            experiment_id=manifest.experiment_id,
            start_time_ms=manifest.start_time_ms,
            host=socket.gethostname(),
            journal_dir=str(folder.path.parent),
            attempt=self.place.attempt,
            launched=self._launched,
            ranks=max(self.place.world_size, self._ranks_before),
            boot=boot_id(),
            folder=folder_of(folder.path.parent),
        )

    def _as_owner(self, manifest: Manifest) -> Manifest:
        earlier = self.earlier()
        self.place = replace(self.place, attempt=0)
        folder = self.begun_here(earlier) if earlier else None
        if earlier is None or folder is None:
            self._tell_of_two(earlier)
            return manifest
        known = _known_run(folder, earlier)
        if known and manifest.run_id not in (None, known):
            return manifest
        self.goes_on = True
        self._ranks_before = earlier.ranks
        was_many = self.place.world_size == 1 < earlier.ranks
        self.place = replace(self.place, attempt=earlier.attempt + 1, was_many=was_many)
        return msgspec.structs.replace(
            manifest,
            local_id=earlier.local_id,
            run_name=earlier.run_name,
            start_time_ms=earlier.start_time_ms,
        )

    def begun_here(self, earlier: Meeting) -> RunFolder | None:
        """The folder of a run that was begun in this journal; no other has what its owner had."""
        journal_dir = seen_here(earlier, self._journal_dir) or self._journal_dir
        folder = RunFolder(journal_dir / earlier.local_id)
        return folder if rendezvous.is_in_mind(folder) else None

    def _tell_of_two(self, earlier: Meeting | None) -> None:
        """Say that this run is not that of the ranks before they were started anew."""
        if earlier:
            before = f"run {earlier.run_name}, which was begun on {earlier.host}"
            now = f"{socket.gethostname()}, where rank {self.place.rank} makes the run now"
            self._tell(f"{before}, is not gone on with: {now}, has no journal of it")

    def earlier(self) -> Meeting | None:
        """What was said before the launcher started all anew; None for nothing."""
        if found := said(self._board, self._name):
            is_files = isinstance(self._board, FileBoard)
            # A store ends with its job; a file may be of another job of that name.
            return None if is_files and found.launched >= self._launched else found
        # An agent counts no restart for which another machine is the cause.
        if self._memory and (self._launched or rendezvous.is_elastic(os.environ)):
            return said(self._memory, self._name)
        return None

    def _as_told(self, manifest: Manifest) -> Manifest:
        told = self._told = self._wait()
        self._seen = seen_here(told, self._journal_dir)
        self._tell_of_other(told)
        self.place = replace(self.place, attempt=told.attempt)
        self.goes_on = told.attempt > 0
        is_here = self._seen is not None
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

    def _tell_of_other(self, told: Meeting) -> None:
        """Say that this machine's ranks had another run before; and remember this one."""
        if self._memory is None or not rendezvous.is_elastic(os.environ):
            return
        before = said(self._memory, self._name)
        if before and before.local_id != told.local_id:
            self._tell(
                f"the run of this job is {told.run_name} on {told.host} now, and not"
                f" {before.run_name}, which was begun on {before.host}: another machine has the"
                f" owner, rank {self._owner}"
            )
        if self.place.local_rank == 0:
            self._remember(told)

    def _wait(self) -> Meeting:
        """What the owner answers to this process."""
        began_s, pause_s, is_told = time.monotonic(), _POLL_FIRST_S, False
        asking = Asking(self._board, self._name)
        while True:
            waited_s = time.monotonic() - began_s
            try:
                if found := asking.look():
                    return found
                if waited_s >= self._wait_s:
                    raise self._unmet(asking)
                if waited_s >= _TELL_AFTER_S and not is_told:
                    self._tell(f"rank {self.place.rank} waits until {self._awaited(asking)}")
                    is_told = True
            except OSError as fault:
                if waited_s >= self._wait_s or not may_pass(fault):
                    raise
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _POLL_LAST_S)

    def _tell(self, what: str) -> None:
        print(f"opusclip: {what}", file=sys.stderr, flush=True)

    def _awaited(self, asking: Asking) -> str:
        """What is waited for: a run that has ended, or whose owner is gone, is not answered for."""
        before = self._before(asking)
        return f"rank {self._owner} begins {f'another run: {before}' if before else 'the run'}"

    def _before(self, asking: Asking) -> str:
        """What became of the run that the owner had begun; empty where it had begun none."""
        if left := asking.left():
            return f"{left.run_name} had ended before this rank asked for it"
        found = said(self._board, self._name)
        return f"nobody answers for {found.run_name}, its owner may be gone" if found else ""

    def _unmet(self, asking: Asking) -> ConfigError:
        waited, own = f"within {self._wait_s:g} s", "set OPUSCLIP_RANKS to own for a run of each"
        if before := self._before(asking):
            return ConfigError(
                f"rank {self._owner} has begun no other run {waited}, and {before}: start all ranks"
                f" together, or {own} process"
            )
        return ConfigError(
            f"rank {self._owner} has begun no run {waited}: make its ExperimentTracker too, name"
            f" the rank that does by OPUSCLIP_METRIC_RANK, or {own} process"
        )
