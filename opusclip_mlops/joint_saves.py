"""Checkpoints that several processes save together.

Every process copies what it is to write and goes on; a thread of its own writes it. The one whose
checkpoints are the run's, the owner, chooses the name, waits for the others' files and then gives
the folder its metadata and its name in one step: until then there is no checkpoint. A model that
every process holds whole is written by the owner; the others send it their random generators, and
wait for nobody.
"""

from __future__ import annotations

import itertools
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from opusclip_mlops import checkpoints
from opusclip_mlops.attendance import OWNER, Attendance, Courier
from opusclip_mlops.errors import CheckpointError
from opusclip_mlops.faults import attempted
from opusclip_mlops.folder import RunFolder
from opusclip_mlops.joint_notices import Begun, Calls, Came, Done, Ending, Save, Written, named
from opusclip_mlops.keeping import Planned
from opusclip_mlops.metadata import StoredFile
from opusclip_mlops.noticeboard import PATIENCE_S, Noticeboard, ToldFault, pauses, unless_told
from opusclip_mlops.rank_generators import GENERATORS, packed_generators, write_generators
from opusclip_mlops.ranks import Place
from opusclip_mlops.redaction import one_line
from opusclip_mlops.sharded_state import is_sharded
from opusclip_mlops.staged_training import Staged, Training
from opusclip_mlops.unfinished import add_to_checkpoint, as_writer, unfinished

if TYPE_CHECKING:
    import torch
    from torch._C._distributed_c10d import Store

_GENERATORS_WAIT_S = 10.0
"""How long a process is waited for of which only the random generators are wanted."""

_WRITING_S = 1800.0
"""How long a process that ends waits for its own disk."""

_KNOWN_ABSENT_S = 1.0
"""How long one that did not come the last time."""

_COMING_S, _FAILING_S = 60.0, 3.0
"""How long a process that ends, well or not, waits for others that have not even begun."""

_SILENT_S = 15.0
"""How long one that has begun may show no life, when this one ends."""


class JointSaves:
    """The checkpoints that this process saves together with others, one at a time.

    Args:
        folder: The run's folder.
        place: Where this process stands among those that save.
        is_owner: Whether its checkpoints are the run's.
        committed: Told of a checkpoint that is there, by the owner's thread; what to tell others.
        shared: Told of a checkpoint of which this process has written files where the owner does
            not see them.
        failed: Told the name of what became no checkpoint.
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
        failed: Callable[[str], object] = str,
        store: Store | None = None,
    ) -> None:
        self._rank, self._world_size, self._is_owner = place.rank, place.world_size, is_owner
        self._folder, self._committed = folder.checkpoints, committed
        self._shared, self._failed = shared, failed
        # Behind a `+` it names the machine.
        run = folder.path.name.partition("+")[0]
        self._board = Noticeboard(store, purpose=f"checkpoints/{run}")
        self._attendance = Attendance(
            self._board, rank=place.rank, world_size=place.world_size, is_owner=is_owner
        )
        self._courier = Courier(self._board, self._attendance)
        self._calls = Calls()
        self._thread: threading.Thread | None = None
        self._saving: Save | None = None
        self._awaited: set[int] = set()
        self._absent: set[int] = set()
        self._ending: Ending | None = None
        self._committing = threading.Lock()
        self.faults: list[str] = []
        """What became no checkpoint and why, one line each."""

    @contextmanager
    def call(self, model: torch.nn.Module) -> Iterator[None]:
        """Surround a call of `save` and what leads to it: the others are told if that fails.

        Of a model that is shared out call n of each process belongs to call n of all others.
        """
        self._attendance.open()
        if not is_sharded(model):
            self._calls.whole += 1
            yield
            return
        self._calls.shared += 1
        with self._board.faults_told(self._where_awaited):
            yield

    def save(
        self, training: Training, plan: Callable[[], AbstractContextManager[Planned]]
    ) -> Begun:
        """Copy what this process is to write, and have it written.

        Args:
            training: What is to be saved.
            plan: Names the checkpoint and holds its name; called by the owner only.

        Raises:
            CheckpointError: it cannot be stored, the one before is still being written, or of a
                model that is shared out the owner has not come, could not, or is at another step.
        """
        if not self._is_owner and not is_sharded(training.model):
            return self._bring(training)
        if not self.settle(wait_s=PATIENCE_S):
            raise CheckpointError(f"the one before is not written after {PATIENCE_S:.0f} s")
        with ExitStack() as held:
            held.enter_context(self._attendance.shown())
            join = self._begun if self._is_owner else self._joined
            save = join(training, plan, held)
            self._start(save, held.pop_all())
        return save.begun

    def _bring(self, training: Training) -> Begun:
        """Send the owner what only this process has of a model that all hold whole."""
        training.check_names()
        came = Came(training.names, packed_generators())
        key = self._calls.key_of(training)
        self._courier.bring(f"{key}/came/{self._rank}", msgspec.msgpack.encode(came))
        plain = checkpoints.checkpoint_name(training.epoch, training.step)
        return Begun(plain, "", training.epoch, training.step)

    def _begun(
        self,
        training: Training,
        plan: Callable[[], AbstractContextManager[Planned]],
        held: ExitStack,
    ) -> Save:
        staged, generators = self._staged(training), packed_generators()
        planned = held.enter_context(plan())
        folder = held.enter_context(unfinished(planned.folder))
        about = planned.about
        begun = Begun(about.name, str(folder), about.epoch, about.step)
        if not staged.is_sharded:
            key = f"{self._attendance.look()}/{self._calls.key_of(training)}"
            return Save(key, begun, folder, staged, generators, planned)
        key = self._shared_key(wait_s=0)
        self._board.post(f"{key}/begun", msgspec.json.encode(begun))
        return Save(key, begun, folder, staged, generators, planned)

    def _joined(
        self,
        training: Training,
        plan: Callable[[], AbstractContextManager[Planned]],  # noqa: ARG002
        held: ExitStack,
    ) -> Save:
        mine = f"called on rank {self._rank} at epoch {training.epoch}, step {training.step}"
        awaited = f"the owner's call of save_checkpoint, {mine}"
        key = self._shared_key(wait_s=PATIENCE_S, awaited=awaited)
        staged, generators = self._staged(training), packed_generators()
        came = Came(staged.names, generators)
        self._board.post(f"{key}/came/{self._rank}", msgspec.msgpack.encode(came))
        told = self._board.wait(f"{key}/begun", awaited=awaited)
        begun = msgspec.json.decode(told, type=Begun)
        training.check_at(begun.epoch, begun.step, mine=mine)
        folder = Path(begun.folder)
        # On a disk that machines share it is seen from all of them.
        if not (is_seen := folder.parent == self._folder and folder.is_dir()):
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder = held.enter_context(unfinished(self._folder / begun.name))
        return Save(key, begun, folder, staged, generators, is_apart=not is_seen)

    def _staged(self, training: Training) -> Staged:
        return training.staged(
            rank=self._rank, world_size=self._world_size, is_owner=self._is_owner
        )

    def _shared_key(self, *, wait_s: float, awaited: str = "the owner's save_checkpoint") -> str:
        """What begins the keys of this call, of a model that is shared out."""
        return f"{self._attendance.word(awaited=awaited, wait_s=wait_s)}/{self._calls.shared}"

    def _where_awaited(self) -> str:
        """Where the others look for what this process has to say."""
        key = self._shared_key(wait_s=_GENERATORS_WAIT_S)
        return f"{key}/begun" if self._is_owner else f"{key}/part/{self._rank}"

    def settle(self, *, wait_s: float) -> bool:
        """Wait until what was begun is written; False at the deadline."""
        if (thread := self._thread) is None:
            return True
        thread.join(max(0.0, wait_s))
        return not thread.is_alive()

    def close(self, *, has_failed: bool) -> list[str]:
        """End: wait for what is being written, but not for processes that are gone.

        What the disk has not taken after half an hour becomes no checkpoint. Returns what was not
        saved, as lines.
        """
        self._ending = Ending(time.monotonic(), _FAILING_S if has_failed else _COMING_S)
        wait_s = _FAILING_S if has_failed else _GENERATORS_WAIT_S
        self.faults += self._courier.close(wait_s=wait_s)
        if self.settle(wait_s=_WRITING_S):
            self._wait_for_owner()
        else:
            self._give_up()
        self._attendance.close()
        return self.faults

    def _wait_for_owner(self) -> None:
        """Stay until the owner has made a checkpoint of what was written: the store may go too."""
        if self._saving is not None and self._saving.plan is None and not self._saving.is_apart:
            with suppress(CheckpointError):
                self._heard(self._saving)

    def _give_up(self) -> None:
        assert self._saving is not None
        self._saving.given_up.set()
        if self._committing.acquire(timeout=_FAILING_S):
            self._committing.release()
        if not self.settle(wait_s=_FAILING_S):
            name = self._saving.begun.name
            self.faults.append(f"checkpoint {name} was not saved: the disk has not taken it")

    def _start(self, save: Save, held: ExitStack) -> None:
        self._saving = save
        self._thread = threading.Thread(
            target=self._run, args=(save, held), name="opusclip-checkpoint", daemon=True
        )
        self._thread.start()

    def _run(self, save: Save, held: ExitStack) -> None:
        with held:
            fault = attempted(lambda: self._finish(save) if save.plan else self._share(save))
        if fault is not None:
            line = f"checkpoint {save.begun.name} was not saved: {one_line(str(fault))}"
            self.faults.append(line)
            _say(line)
            self._failed(save.begun.name)

    def _share(self, save: Save) -> None:
        """Write what this process has, and say so to the owner."""
        part = f"{save.key}/part/{self._rank}"
        with self._board.faults_told(part), as_writer(save.folder.parent):
            files = save.staged.write(save.folder)
        said = {name: (one.sha256, one.size_bytes) for name, one in files.items()}
        self._board.post(part, msgspec.json.encode(Written(said, save.staged.values)))
        if save.is_apart:
            done = self._heard(save)
            add_to_checkpoint(save.folder, self._folder / save.begun.name)
            self._shared(done)

    def _heard(self, save: Save) -> Done:
        """What the owner says of a checkpoint; of one that is gone it is not known what it did.

        Then what was written is kept: the checkpoint may be there.

        Raises:
            ToldFault: there is no checkpoint.
        """
        with unless_told():
            for _ in pauses(2 * PATIENCE_S):
                if (told := self._board.look(f"{save.key}/done")) is not None:
                    return msgspec.json.decode(told, type=Done)
                if self._ending and self._attendance.silent_s(OWNER) > _SILENT_S:
                    break
        return save.begun.done()

    def _finish(self, save: Save) -> None:
        """Write what the owner has, and when all others have written too make it a checkpoint."""
        assert save.plan is not None
        with self._told(save):
            files = self._files(save)
        with self._committing:
            with self._told(save):
                if save.given_up.is_set():
                    raise CheckpointError("the process has ended before all was written")
                about = replace(save.plan.about, files=files)
                checkpoints.finish(save.folder, save.plan.folder, about)
            self._commit(save, save.plan)

    def _told(self, save: Save) -> AbstractContextManager[None]:
        """Tell those that have written shares if there will be no checkpoint."""
        is_shared = save.staged.is_sharded
        return self._board.faults_told(f"{save.key}/done") if is_shared else nullcontext()

    def _commit(self, save: Save, plan: Planned) -> None:
        """Say that there is a checkpoint; whatever becomes of that, it is there."""
        done = save.begun.done()
        try:
            done = self._committed(plan)
        finally:
            if save.staged.is_sharded:
                with suppress(CheckpointError):
                    self._board.post(f"{save.key}/done", msgspec.json.encode(done))
                    self._take_down(save)

    def _files(self, save: Save) -> dict[str, StoredFile]:
        files, values = save.staged.write(save.folder), save.staged.values
        for written in self._parts(save) if save.staged.is_sharded else ():
            files |= {name: StoredFile(*one) for name, one in written.files.items()}
            values += written.values
        if self._world_size > 1:
            write_generators(save.folder / GENERATORS, self._generators(save))
            files[GENERATORS] = checkpoints.flushed(save.folder / GENERATORS)
        save.staged.check_whole(values)
        return files

    def _parts(self, save: Save) -> Iterator[Written]:
        """Wait for what all others have written."""
        for _, told in self._notices(save, "part", PATIENCE_S):
            yield msgspec.json.decode(told, type=Written)
        if self._awaited:
            raise CheckpointError(f"{named(self._awaited)} has not written its share")

    def _generators(self, save: Save) -> dict[int, bytes]:
        """The generators of all that have come; of a process that never comes there are none."""
        found = {self._rank: save.generators}
        for rank, told in self._notices(save, "came", _GENERATORS_WAIT_S):
            came = msgspec.msgpack.decode(told, type=Came)
            if came.names != save.staged.names:
                raise CheckpointError(
                    f"rank {rank} has tensors of other names or shapes: give all one model"
                )
            found[rank] = came.generators
        if missing := self._awaited - self._absent:
            _say(f"the random generators of {named(missing)} are not in checkpoint "
                 f"{save.begun.name}: call save_checkpoint on every rank")  # fmt: skip
        self._absent = set(self._awaited)
        return found

    def _notices(self, save: Save, kind: str, wait_s: float) -> Iterator[tuple[int, bytes]]:
        """What the others say, as it comes; `_awaited` are those that have said nothing yet."""
        self._awaited = {*range(self._world_size)} - {self._rank}
        whose = "the ranks that have not called save_checkpoint for it"
        for waited_s in pauses(wait_s, told=f"checkpoint {save.begun.name} waits for {whose}"):
            for rank in sorted(self._awaited):
                if (told := self._said(save, kind, rank)) is not None:
                    self._awaited.discard(rank)
                    yield rank, told
            if not self._awaited or self._is_vain(save, kind, waited_s):
                return

    def _said(self, save: Save, kind: str, rank: int) -> bytes | None:
        try:
            return self._board.look(f"{save.key}/{kind}/{rank}")
        except ToldFault as error:
            raise CheckpointError(f"rank {rank}: {error}") from None
        except CheckpointError:
            if kind == "came":
                return None
            raise

    def _is_vain(self, save: Save, kind: str, waited_s: float) -> bool:
        """Whether it makes no sense to wait for the others any longer."""
        ending = self._ending
        if save.given_up.is_set():
            return True
        if kind == "came":
            is_usual = waited_s > _KNOWN_ABSENT_S and self._awaited <= self._absent
            return is_usual or (ending is not None and ending.is_over())
        return ending is not None and any(self._is_gone(save, one) for one in self._awaited)

    def _is_gone(self, save: Save, rank: int) -> bool:
        """Whether a process that is waited for has not come, or shows no life, as this one ends."""
        assert self._ending is not None
        if self._board.look(f"{save.key}/came/{rank}") is None:
            return self._ending.is_over()
        return self._attendance.silent_s(str(rank)) > _SILENT_S

    def _take_down(self, save: Save) -> None:
        """Remove what only the owner reads; a late process still finds the name."""
        for rank, kind in itertools.product(range(self._world_size), ("came", "part")):
            self._board.take_down(f"{save.key}/{kind}/{rank}")


def _say(line: str) -> None:
    print(f"opusclip: {line}", file=sys.stderr, flush=True)
