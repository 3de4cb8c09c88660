"""Several processes save one checkpoint: here each is a thread, and they meet in one store."""

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch._C._distributed_c10d import HashStore

from opusclip_mlops import joint_saves
from opusclip_mlops.checkpoints import verify
from opusclip_mlops.errors import CheckpointError
from opusclip_mlops.folder import RunFolder
from opusclip_mlops.joint_notices import Done
from opusclip_mlops.joint_saves import JointSaves
from opusclip_mlops.keeping import CheckpointKeeper, Planned
from opusclip_mlops.noticeboard import common_word
from opusclip_mlops.ranks import Place
from opusclip_mlops.staged_training import Staged, Training
from tests.journeys import make_run, wait_until

WAIT_S = 60


class Rank:
    """A rank of two, the first of which is the owner."""

    def __init__(self, rank: int, folder: RunFolder, store: Any, model: Any = None) -> None:
        self.rank, self.model = rank, model or nn.Linear(2, 2)
        self.keeper = CheckpointKeeper(folder)
        self.folder = folder.checkpoints
        self.committed: list[str] = []
        self.shared: list[Done] = []
        self.lost: list[str] = []
        self.saves = JointSaves(
            folder,
            Place(rank=rank, local_rank=rank, world_size=2),
            is_owner=rank == 0,
            committed=self._commit,
            shared=self.shared.append,
            failed=self.lost.append,
            store=store,
        )

    def _commit(self, planned: Planned) -> Done:
        saved = self.keeper.saved(planned)
        self.keeper.remember(saved)
        self.committed.append(planned.about.name)
        return Done(saved.record, saved.dropped)

    def save(self, step: int, *, is_sure: bool = True) -> str:
        """Begin a checkpoint; its name."""
        training = Training(self.model, None, None, 0, step, (is_sure, is_sure))

        @contextmanager
        def plan() -> Iterator[Planned]:
            with self.keeper.planned(epoch=0, step=step, metrics={}, world_size=2) as planned:
                yield planned

        with self.saves.call(self.model):
            return self.saves.save(training, plan).name

    def names(self) -> list[str]:
        """All files of all checkpoints, hidden ones too."""
        found = sorted(one for one in self.folder.rglob("*") if one.is_file())
        return [one.relative_to(self.folder).as_posix() for one in found]


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """A run's folder."""
    return make_run(tmp_path)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    """Threads in which ranks wait for each other."""
    with ThreadPoolExecutor(2) as threads:
        yield threads


@pytest.fixture
def in_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every model counts as shared out: each rank writes a file of its own."""

    def staged(self: Training, *, rank: int, **_place: Any) -> Staged:
        name = f"weights-{rank:05d}-of-00002.safetensors"
        return Staged(is_sharded=True, names=self.names, writers={name: write_something})

    monkeypatch.setattr(joint_saves, "is_sharded", lambda _model: True)
    monkeypatch.setattr(Training, "staged", staged)


def write_something(path: Path) -> None:
    """What a rank has."""
    path.write_bytes(path.name.encode())


@pytest.fixture
def slow_disk(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """A disk that takes nothing until this is set."""
    is_free, write = threading.Event(), Staged.write

    def wait_and_write(self: Staged, folder: Path) -> Any:
        assert is_free.wait(WAIT_S)
        return write(self, folder)

    monkeypatch.setattr(Staged, "write", wait_and_write)
    return is_free


def test_what_the_call_returned_for_is_written_however_the_process_ends(
    folder: RunFolder, slow_disk: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end waits for a slow disk, longer than for any other rank; the other one never came."""
    monkeypatch.setattr(joint_saves, "_FAILING_S", 0.05)
    owner = Rank(0, folder, HashStore())
    name = owner.save(1)
    with ThreadPoolExecutor(1) as threads:
        closing = threads.submit(owner.saves.close, has_failed=True)
        wait_until(lambda: owner.saves._ending is not None and owner.saves._ending.is_over())
        slow_disk.set()
        assert closing.result(WAIT_S) == []
    assert owner.committed == [name]
    assert sorted(verify(owner.folder / name).files) == [
        "generators.pt",
        "state.pt",
        "weights.safetensors",
    ]


def test_of_a_model_that_all_hold_nobody_waits_for_the_owner(folder: RunFolder) -> None:
    """A rank may save alone, or what the owner does not; what belongs together is found."""
    store = HashStore()
    owner, other = Rank(0, folder, store), Rank(1, folder, store)
    assert other.save(1) == "epoch_0000-step_000001"
    assert other.save(2) == "epoch_0000-step_000002"
    assert owner.save(2) == "epoch_0000-step_000002"
    assert owner.saves.settle(wait_s=WAIT_S)
    packed = torch.load(owner.folder / "epoch_0000-step_000002" / "generators.pt")
    assert sorted(packed) == [0, 1]
    assert other.saves.close(has_failed=False) == []
    assert owner.committed == ["epoch_0000-step_000002"]


def test_calls_that_name_no_step_are_counted_whatever_comes_of_them(folder: RunFolder) -> None:
    """A rank that logs nothing knows no step: its calls belong to the owner's by their number."""
    store = HashStore()
    owner, other = Rank(0, folder, store), Rank(1, folder, store)
    with pytest.raises(ValueError, match="no number"), owner.saves.call(owner.model):
        raise ValueError("no number")
    for _ in range(2):
        other.save(0, is_sure=False)
        torch.rand(1)
    name = owner.save(7, is_sure=False)
    assert owner.saves.settle(wait_s=WAIT_S)
    packed = torch.load(owner.folder / name / "generators.pt")
    assert sorted(packed) == [0, 1]


def test_calls_that_the_owner_never_makes_are_told(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once, as the rank ends: it alone knows that it has called."""
    monkeypatch.setattr(joint_saves, "_FAILING_S", 0.05)
    other = Rank(1, folder, HashStore())
    other.save(1)
    other.save(2)
    assert other.saves.close(has_failed=True) == [
        "nothing was saved of what this rank called save_checkpoint for: the owner has not called "
        "it, or is gone"
    ]


def test_ranks_with_other_tensors_save_no_half_model(folder: RunFolder) -> None:
    """Of pipeline stages the owner's is not taken for the model; the name is told to be lost."""
    store = HashStore()
    owner, other = Rank(0, folder, store), Rank(1, folder, store, nn.Linear(2, 3))
    name = owner.save(1)
    other.save(1)
    assert owner.saves.settle(wait_s=WAIT_S)
    assert owner.saves.faults == [
        f"checkpoint {name} was not saved: rank 1 has tensors of other names or shapes: give all "
        "one model"
    ]
    assert (owner.committed, owner.lost, owner.names()) == ([], [name], [])


def test_a_second_thread_is_not_begun_while_the_disk_hangs(
    folder: RunFolder, slow_disk: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The call raises, and what was begun before still becomes a checkpoint."""
    owner = Rank(0, folder, HashStore())
    name = owner.save(1)
    with monkeypatch.context() as impatient:
        impatient.setattr(joint_saves, "PATIENCE_S", 0.1)
        with pytest.raises(CheckpointError, match="the one before is not written after"):
            owner.save(2)
    slow_disk.set()
    assert owner.saves.close(has_failed=True) == []
    assert owner.committed == [name]


def both(pool: ThreadPoolExecutor, owner: Rank, other: Rank, step: int) -> Future[str]:
    """Save on both; what the other's call comes to."""
    called = pool.submit(other.save, step)
    owner.save(step)
    return called


@pytest.mark.usefixtures("in_shares")
def test_a_call_that_fails_on_the_owner_leaves_all_in_step(
    folder: RunFolder, pool: ThreadPoolExecutor
) -> None:
    """Whatever fails, and however early, the others learn why, and the next call is theirs."""
    store = HashStore()
    owner, other = Rank(0, folder, store), Rank(1, folder, store)
    called = pool.submit(other.save, 1)
    with pytest.raises(ValueError, match="no number"), owner.saves.call(owner.model):
        raise ValueError("no number")
    with pytest.raises(CheckpointError, match="ValueError: no number"):
        called.result(WAIT_S)
    assert both(pool, owner, other, 2).result(WAIT_S) == "epoch_0000-step_000002"
    assert owner.saves.settle(wait_s=WAIT_S)
    owner.save(3)
    with pytest.raises(ValueError, match="odd"), other.saves.call(other.model):
        raise ValueError("odd")
    assert owner.saves.settle(wait_s=WAIT_S)
    assert "rank 1: ValueError: odd" in owner.saves.faults[0]
    assert both(pool, owner, other, 4).result(WAIT_S) == "epoch_0000-step_000004"
    assert owner.saves.settle(wait_s=WAIT_S)
    assert owner.committed == ["epoch_0000-step_000002", "epoch_0000-step_000004"]


@pytest.mark.usefixtures("in_shares")
def test_on_a_disk_that_machines_share_all_write_into_one_folder(
    folder: RunFolder, pool: ThreadPoolExecutor
) -> None:
    """The owner's metadata lists what lies beside it, and no other machine is to send anything."""
    store = HashStore()
    owner, other = Rank(0, folder, store), Rank(1, folder, store)
    name = both(pool, owner, other, 1).result(WAIT_S)
    assert owner.saves.settle(wait_s=WAIT_S)
    assert other.saves.settle(wait_s=WAIT_S)
    assert (owner.committed, owner.saves.faults, other.shared) == ([name], [], [])
    files = ["generators.pt", "metadata.json"]
    files += [f"weights-{rank:05d}-of-00002.safetensors" for rank in range(2)]
    assert owner.names() == [f"{name}/{one}" for one in files]


@pytest.mark.usefixtures("in_shares")
def test_shares_that_do_not_make_the_model_make_no_checkpoint(
    folder: RunFolder, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They say how much they hold: what is lacking, or there twice, could never be loaded."""
    store, staged = HashStore(), Training.staged

    def of_half(self: Training, **place: Any) -> Staged:
        return replace(staged(self, **place), values=3, all_values=5)

    monkeypatch.setattr(Training, "staged", of_half)
    owner, other = Rank(0, folder, store), Rank(1, folder, store)
    name = both(pool, owner, other, 1).result(WAIT_S)
    assert owner.saves.settle(wait_s=WAIT_S)
    assert owner.saves.faults == [
        f"checkpoint {name} was not saved: the ranks hold 6 values of a model of 5: give all "
        "`fully_shard` one mesh of all ranks"
    ]
    assert (owner.committed, owner.lost) == ([], [name])


@pytest.mark.usefixtures("in_shares")
def test_who_has_written_its_share_stays_until_the_owner_has_its_own(
    folder: RunFolder, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store may end with it: the owner would never learn that the share is there."""
    store, order, has_left = HashStore(), list[str](), threading.Event()
    owner, other = Rank(0, folder, store), Rank(1, folder, store)
    committed = owner.saves._committed

    def commit_late(plan: Planned) -> Done:
        has_left.wait(1.0)
        order.append("saved")
        return committed(plan)

    monkeypatch.setattr(owner.saves, "_committed", commit_late)
    both(pool, owner, other, 1).result(WAIT_S)
    assert other.saves.close(has_failed=False) == []
    order.append("left")
    has_left.set()
    assert owner.saves.close(has_failed=False) == []
    assert order == ["saved", "left"]


def test_generators_that_went_with_the_store_cost_no_checkpoint(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The owner holds all else of the model, and says what is missing."""
    monkeypatch.setattr(joint_saves, "_GENERATORS_WAIT_S", 0.1)
    owner = Rank(0, folder, HashStore())

    def gone(_key: str) -> bytes:
        raise CheckpointError("the process group's store does not answer: Broken pipe")

    monkeypatch.setattr(owner.saves._board, "look", gone)
    name = owner.save(1)
    assert owner.saves.close(has_failed=False) == []
    assert owner.committed == [name]


@pytest.mark.usefixtures("in_shares")
@pytest.mark.parametrize("end", ["committed", "refused", "gone", "unsaid"])
def test_what_another_machine_has_written_stays_if_there_may_be_a_checkpoint(
    end: str,
    tmp_path: Path,
    pool: ThreadPoolExecutor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is sent when the owner says so, or is gone and may have; of what it refused none stays."""
    monkeypatch.setattr(joint_saves, "_SILENT_S", 0.2)
    store, (here, there) = HashStore(), [make_run(tmp_path / name) for name in ("a", "b")]
    owner, other = Rank(0, here, store), Rank(1, there, store)

    def fail(_save: object) -> Done:
        raise CheckpointError("refused")

    if end == "unsaid":
        # The checkpoint is there by then.
        monkeypatch.setattr(owner.saves, "_committed", fail)
    elif end != "committed":
        monkeypatch.setattr(owner.saves, "_files", fail)
    if end == "gone":
        # As if it were killed behind its commit.
        monkeypatch.setattr(owner.saves._board, "post_fault", lambda *_told: None)
    name = both(pool, owner, other, 1).result(WAIT_S)
    faults = other.saves.close(has_failed=True)
    assert [one.record.name for one in other.shared] == ([] if end == "refused" else [name])
    assert len(faults) == (end == "refused")
    share = f"{name}/weights-00001-of-00002.safetensors"
    assert other.names() == ([] if end == "refused" else [share])


def test_the_word_of_all_is_none_that_dead_ones_have_left() -> None:
    """Each time all have drawn anew they have one word, and never the one before."""
    store, words = HashStore(), set()
    for _ in range(3):
        with ThreadPoolExecutor(3) as threads:
            told = [
                threads.submit(common_word, store, rank=rank, world_size=3, wait_s=WAIT_S)
                for rank in (2, 0, 1)
            ]
            (word,) = {one.result() for one in told}
        words.add(word)
    assert len(words) == 3
    with pytest.raises(CheckpointError, match="rank 0 has not met the other ranks"):
        common_word(store, rank=0, world_size=3, wait_s=0.1)
