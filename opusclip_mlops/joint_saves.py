"""Checkpoints that several processes save together.

Every process copies what it is to write and goes on; a thread of its own writes it. The one whose
checkpoints are the run's, the owner, chooses the name, waits for the others' files and then gives
the folder its metadata and its name in one step: until then there is no checkpoint. A model that
every process holds whole is written by the owner; the others add their random generators.
"""

from __future__ import annotations

import itertools
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from opusclip_mlops import checkpoints
from opusclip_mlops.errors import CheckpointError
from opusclip_mlops.faults import attempted
from opusclip_mlops.folder import RunFolder
from opusclip_mlops.keeping import Planned
from opusclip_mlops.metadata import StoredFile
from opusclip_mlops.noticeboard import PATIENCE_S, Noticeboard, pauses
from opusclip_mlops.rank_generators import GENERATORS, packed_generators, write_generators
from opusclip_mlops.ranks import Place
from opusclip_mlops.records import Checkpoint
from opusclip_mlops.redaction import one_line
from opusclip_mlops.staged_training import Staged, Training
from opusclip_mlops.unfinished import as_writer, unfinished

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

_GENERATORS_WAIT_S = 10.0
"""How long a process is waited for of which only the random generators are wanted."""

_ALONE_S = 3.0
"""How long a process that fails waits for others that have not even begun."""

_FAILING_S = 20.0
"""How long a process that fails waits at most: launchers kill it after 30 seconds."""

_numbers = itertools.count()


class Begun(msgspec.Struct):
    """A checkpoint that its owner has named, and the hidden folder it is written to."""

    name: str
    folder: str
    epoch: int
    step: int
    machine: tuple[str, int]


class Done(msgspec.Struct):
    """A checkpoint that is there, for the machines that hold parts of it, and what it displaces."""

    record: Checkpoint
    dropped: list[str]


class _Written(msgspec.Struct):
    """What another process says of the files it has written, and of the tensors there are."""

    names: str
    files: dict[str, tuple[str, int]]


@dataclass(frozen=True, eq=False)
class _Save:
    """One checkpoint on its way."""

    key: str
    name: str
    folder: Path
    staged: Staged
    generators: bytes
    plan: Planned | None = None


class JointSaves:
    """The checkpoints that this process saves together with others, one at a time.

    Args:
        folder: The run's folder.
        place: Where this process stands among those that save.
        is_owner: Whether its checkpoints are the run's.
        committed: Told of a checkpoint that is there, by the owner's thread; what to tell others.
        shared: Told of a checkpoint of which this machine has files, and the owner's has not: by
            one process of the machine.
        store: Where the processes meet; None for the store of their process group.
    """

    def __init__(
        self,
        folder: RunFolder,
        place: Place,
        *,
        is_owner: bool,
        committed: Callable[[Planned], Done],
        shared: Callable[[Done], object],
        store: Store | None = None,
    ) -> None:
        self._rank, self._world_size, self._is_owner = place.rank, place.world_size, is_owner
        self._machine, self._speaks = (socket.gethostname(), place.node), place.local_rank == 0
        self._folder, self._committed, self._shared = folder.checkpoints, committed, shared
        # A launcher's store outlives an attempt.
        purpose = f"checkpoints/{folder.path.name}/{place.attempt}/{next(_numbers)}"
        self._board = Noticeboard(store, purpose=purpose)
        self._calls = 0
        self._thread: threading.Thread | None = None
        self._awaited: set[int] = set()
        self._absent: set[int] = set()
        self._given_up = threading.Event()
        self._committing = threading.Lock()
        self.faults: list[str] = []
        """What became no checkpoint and why, one line each."""

    def save(
        self, training: Training, plan: Callable[[], AbstractContextManager[Planned]]
    ) -> Begun:
        """Copy what this process is to write, and have it written.

        Args:
            training: What is to be saved.
            plan: Names the checkpoint and holds its name; called by the owner only.

        Raises:
            CheckpointError: it cannot be stored, the owner has not come or could not, or is at
                another step.
        """
        self.settle(wait_s=PATIENCE_S)
        self._calls += 1
        key, generators = str(self._calls), packed_generators()
        self._board.post(f"{key}/came/{self._rank}", generators)
        with self._board.faults_told(f"{key}/begun" if self._is_owner else self._part(key)):
            staged = training.staged(
                rank=self._rank, world_size=self._world_size, is_owner=self._is_owner
            )
            if self._is_owner:
                return self._begin(key, staged, generators, plan)
            begun = self._told(key, training)
        is_here = begun.machine == self._machine
        folder = Path(begun.folder) if is_here else self._folder / begun.name
        save = _Save(key, begun.name, folder, staged, generators)
        self._start(self._share if is_here else self._share_from_afar, save, ExitStack())
        return begun

    def _told(self, key: str, training: Training) -> Begun:
        """What the owner has begun by its call of the same number."""
        mine = f"rank {self._rank} at epoch {training.epoch}, step {training.step}"
        told = self._board.wait(
            f"{key}/begun", awaited=f"the owner's call of save_checkpoint, called on {mine}"
        )
        begun = msgspec.json.decode(told, type=Begun)
        if training.is_elsewhere(begun.epoch, begun.step):
            raise CheckpointError(
                f"save_checkpoint was called on {mine}, and by the owner at epoch {begun.epoch}, "
                f"step {begun.step}: call it on every rank alike"
            )
        return begun

    def settle(self, *, wait_s: float, alone_s: float | None = None) -> bool:
        """Wait until what was begun is written; False at the deadline.

        With `alone_s`, processes that have not come by then are no longer waited for.
        """
        if (thread := self._thread) is None:
            return True
        if alone_s is not None:
            thread.join(min(alone_s, wait_s))
            wait_s = 0.0 if self._is_alone() else wait_s - alone_s
        thread.join(max(0.0, wait_s))
        return not thread.is_alive()

    def _is_alone(self) -> bool:
        """Whether a process that is waited for has not even come."""
        keys = [f"{self._calls}/came/{rank}" for rank in tuple(self._awaited)]
        came: list[bool] = []
        # The store may be gone with the process that kept it.
        fault = attempted(lambda: came.extend(self._board.look(one) is not None for one in keys))
        return fault is not None or not all(came)

    def close(self, *, wait_s: float, has_failed: bool) -> list[str]:
        """End: what is not written by then becomes no checkpoint; what was not saved, as lines."""
        wait_s = min(wait_s, _FAILING_S) if has_failed else wait_s
        if not self.settle(wait_s=wait_s, alone_s=_ALONE_S if has_failed else None):
            self._given_up.set()
            with self._committing:
                pass
            self.settle(wait_s=_ALONE_S)
        return self.faults

    def _part(self, key: str, rank: int | None = None) -> str:
        return f"{key}/part/{self._rank if rank is None else rank}"

    def _begin(
        self,
        key: str,
        staged: Staged,
        generators: bytes,
        plan: Callable[[], AbstractContextManager[Planned]],
    ) -> Begun:
        with ExitStack() as stack:
            planned = stack.enter_context(plan())
            folder = stack.enter_context(unfinished(planned.folder))
            about = planned.about
            begun = Begun(about.name, str(folder), about.epoch, about.step, self._machine)
            self._board.post(f"{key}/begun", msgspec.json.encode(begun))
            held = stack.pop_all()
        save = _Save(key, begun.name, folder, staged, generators, planned)
        self._start(self._finish, save, held)
        return begun

    def _start(self, action: Callable[[_Save], object], save: _Save, held: ExitStack) -> None:
        self._given_up.clear()
        self._thread = threading.Thread(
            target=self._run, args=(action, save, held), name="opusclip-checkpoint", daemon=True
        )
        self._thread.start()

    def _run(self, action: Callable[[_Save], object], save: _Save, held: ExitStack) -> None:
        with held:
            fault = attempted(lambda: action(save))
        if fault is not None:
            line = f"checkpoint {save.name} was not saved: {one_line(str(fault))}"
            self.faults.append(line)
            print(f"opusclip: {line}", file=sys.stderr, flush=True)

    def _share(self, save: _Save) -> None:
        """Write what this process has, and say so to the owner."""
        with self._board.faults_told(self._part(save.key)), as_writer(save.folder.parent):
            files = save.staged.write(save.folder)
        said = {name: (one.sha256, one.size_bytes) for name, one in files.items()}
        written = _Written(save.staged.names, said)
        self._board.post(self._part(save.key), msgspec.json.encode(written))

    def _share_from_afar(self, save: _Save) -> None:
        """Write on a machine that is not the owner's; what became no checkpoint is removed."""
        if not save.staged.writers:
            return
        save.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._share(save)
        try:
            told = self._board.wait(f"{save.key}/done", awaited=f"the rest of {save.name}")
        except CheckpointError:
            for name in save.staged.writers:
                (save.folder / name).unlink(missing_ok=True)
            raise
        if self._speaks:
            self._shared(msgspec.json.decode(told, type=Done))

    def _finish(self, save: _Save) -> None:
        """Write what the owner has, and when all others have written too make it a checkpoint."""
        with self._board.faults_told(f"{save.key}/done"):
            done = self._finished(save)
        # Whatever becomes of these, the checkpoint is there.
        with suppress(CheckpointError):
            self._board.post(f"{save.key}/done", msgspec.json.encode(done))
            self._take_down(save)

    def _finished(self, save: _Save) -> Done:
        assert save.plan is not None
        files = save.staged.write(save.folder)
        if save.staged.is_sharded:
            files |= self._parts(save)
        if self._world_size > 1:
            write_generators(save.folder / GENERATORS, self._generators(save))
            files[GENERATORS] = checkpoints.flushed(save.folder / GENERATORS)
        with self._committing:
            if self._given_up.is_set():
                raise CheckpointError("the process has ended before all was written")
            about = replace(save.plan.about, files=files)
            checkpoints.finish(save.folder, save.plan.folder, about)
            return self._committed(save.plan)

    def _parts(self, save: _Save) -> dict[str, StoredFile]:
        """Wait for the files of all others."""
        files: dict[str, StoredFile] = {}
        for rank, told in self._notices(save, "part", PATIENCE_S):
            written = msgspec.json.decode(told, type=_Written)
            if written.names != save.staged.names:
                raise CheckpointError(f"rank {rank} has tensors of other names: give all one model")
            files |= {name: StoredFile(*one) for name, one in written.files.items()}
        if self._awaited:
            raise CheckpointError(f"{_named(self._awaited)} has not written its share")
        return files

    def _generators(self, save: _Save) -> dict[int, bytes]:
        """The generators of all that have come; of a process that never comes there are none."""
        found = {
            self._rank: save.generators,
            **dict(self._notices(save, "came", _GENERATORS_WAIT_S)),
        }
        if missing := self._awaited - self._absent:
            print(
                f"opusclip: the random generators of {_named(missing)} are not in checkpoint "
                f"{save.name}: call save_checkpoint on every rank", file=sys.stderr, flush=True,
            )  # fmt: skip
        self._absent = set(self._awaited)
        self._awaited = set()
        return found

    def _notices(self, save: _Save, kind: str, wait_s: float) -> Iterator[tuple[int, bytes]]:
        """What the others say, as it comes; `_awaited` are those that have said nothing yet."""
        self._awaited = {*range(self._world_size)} - {self._rank}
        whose = "the ranks that have not called save_checkpoint for it"
        for waited_s in pauses(wait_s, told=f"checkpoint {save.name} waits for {whose}"):
            for rank in sorted(self._awaited):
                if (told := self._board.look(f"{save.key}/{kind}/{rank}")) is not None:
                    self._awaited.discard(rank)
                    yield rank, told
            is_vain = waited_s > 0 and kind == "came" and self._awaited <= self._absent
            if not self._awaited or is_vain or self._given_up.is_set():
                return

    def _take_down(self, save: _Save) -> None:
        """Remove what only the owner reads; a late process still finds the name."""
        for rank in range(self._world_size):
            self._board.take_down(f"{save.key}/came/{rank}")
            self._board.take_down(self._part(save.key, rank))


def _named(ranks: set[int]) -> str:
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, sorted(ranks)))}"
