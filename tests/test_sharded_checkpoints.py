"""Checkpoints of many ranks: shared out, whole or not there, read by any number of processes."""

import json
import math
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from mlflow import MlflowClient
from safetensors.torch import load_file
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from opusclip_mlops import (
    ExperimentTracker,
    TrackingConfig,
    checkpoints,
    joint_saves,
    shares_elsewhere,
)
from opusclip_mlops.checkpoint_uploads import CheckpointUploads
from opusclip_mlops.consolidating import consolidated
from opusclip_mlops.errors import CheckpointError
from opusclip_mlops.faults import AwaitsOthers
from opusclip_mlops.folder import RunFolder
from opusclip_mlops.joint_notices import Done
from opusclip_mlops.joint_saves import JointSaves
from opusclip_mlops.keeping import CheckpointKeeper, Planned
from opusclip_mlops.layout import BEST_TAG
from opusclip_mlops.loading import load_checkpoint
from opusclip_mlops.ranks import Place
from opusclip_mlops.staged_training import Training
from tests.journeys import make_run, store
from tests.rank_processes import run_ranks

STEPS = 3


def network() -> nn.Module:
    """Uneven shapes, a buffer, a parameter that fewer ranks than four can have a row of."""
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(3, 7), nn.BatchNorm1d(7), nn.Linear(7, 1))


def prepared(kind: str) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A model of a kind, and its optimizer with two groups."""
    model = network()
    if kind == "ddp":
        model = DistributedDataParallel(model)
    elif kind == "hybrid":
        mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
        fully_shard(model, mesh=mesh)
    elif kind == "sharded":
        fully_shard(model[0])  # type: ignore[index]
        fully_shard(model)
    bias = [one for name, one in model.named_parameters() if name.endswith("bias")]
    others = [one for name, one in model.named_parameters() if not name.endswith("bias")]
    groups = [{"params": others}, {"params": bias, "weight_decay": 0.0}]
    return model, torch.optim.AdamW(groups, lr=0.05)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = STEPS) -> None:
    """Some steps on the same numbers everywhere."""
    generator = torch.Generator().manual_seed(steps)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(4, 3, generator=generator)).square().mean().backward()
        optimizer.step()


def whole(value: Any) -> Any:
    """A tensor with the parts of all ranks."""
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def content(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """All weights, and the optimizer's state by the names of its parameters; on every rank."""
    names = {one: name.removeprefix("module.") for name, one in model.named_parameters()}
    weights = {k.removeprefix("module."): whole(v) for k, v in model.state_dict().items()}
    state = {
        f"{names[parameter]}/{key}": whole(value)
        for parameter, values in optimizer.state.items()
        for key, value in values.items()
    }
    return {name: value.detach().clone() for name, value in {**weights, **state}.items()}


def differing(found: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """Names of what is not equal, bit for bit."""
    names = sorted(found.keys() | expected.keys())
    alike = found.keys() & expected.keys()
    return [one for one in names if one not in alike or not torch.equal(found[one], expected[one])]


class Saving:
    """A rank's part in a run that several ranks save checkpoints of."""

    def __init__(
        self, rank: int, folder: Path, *, owner: int = 0, node: int = 0, store: Any = None
    ) -> None:
        self.folder = RunFolder(folder / "run")
        self.keeper = CheckpointKeeper(self.folder)
        self.committed: list[str] = []
        self.shared: list[Done] = []
        local_rank = 0 if node else rank
        size = dist.get_world_size()
        self.saves = JointSaves(
            self.folder,
            Place(rank=rank, local_rank=local_rank, world_size=size, node=node),
            is_owner=rank == owner,
            committed=self._commit,
            shared=self.shared.append,
            store=store,
        )

    def _commit(self, planned: Planned) -> Done:
        saved = self.keeper.saved(planned)
        self.keeper.remember(saved)
        self.committed.append(planned.about.name)
        return Done(saved.record, saved.dropped)

    def save(self, model: nn.Module, optimizer: Any, step: int = STEPS) -> str:
        """Begin a checkpoint; its name."""
        training = Training(model, optimizer, None, 0, step)
        size = dist.get_world_size()

        @contextmanager
        def plan() -> Iterator[Planned]:
            with self.keeper.planned(epoch=0, step=step, metrics={}, world_size=size) as planned:
                yield planned

        with self.saves.call(model):
            return self.saves.save(training, plan).name

    def settle(self) -> None:
        """Wait until it is written everywhere."""
        assert self.saves.settle(wait_s=120)
        dist.barrier()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder for the ranks, with a run's folder in it."""
    make_run(tmp_path).path.rename(tmp_path / "run")
    return tmp_path


def at(folder: Path, step: int = STEPS) -> Path:
    """Where the checkpoint of a step is."""
    return folder / "run" / "checkpoints" / f"epoch_0000-step_{step:06d}"


def save_trained(rank: int, folder: Path, kind: str) -> None:
    """Train and save; what was saved is kept beside it, then training goes on."""
    model, optimizer = prepared(kind)
    train(model, optimizer)
    expected = content(model, optimizer)
    saving = Saving(rank, folder)
    assert saving.save(model, optimizer) == at(folder).name
    # What is copied is not changed by what comes after.
    train(model, optimizer)
    saving.settle()
    assert saving.saves.faults == []
    assert saving.committed == ([at(folder).name] if rank == 0 else [])
    if rank == 0:
        torch.save(expected, folder / "expected.pt")


def load_and_compare(_rank: int, folder: Path, kind: str) -> None:
    """Load into a model that was trained otherwise: all of it is as it was saved."""
    model, optimizer = prepared(kind)
    train(model, optimizer, 1)
    load_checkpoint(at(folder), model=model, optimizer=optimizer)
    expected = torch.load(folder / "expected.pt", weights_only=True)
    assert differing(content(model, optimizer), expected) == []
    # A fresh optimizer, too, and it goes on in the same way.
    fresh, own = prepared(kind)
    load_checkpoint(at(folder), model=fresh, optimizer=own)
    assert differing(content(fresh, own), expected) == []
    train(fresh, own, 2)
    train(model, optimizer, 2)
    assert differing(content(fresh, own), content(model, optimizer)) == []


def test_a_sharded_checkpoint_loads_at_any_world_size(folder: Path) -> None:
    """Saved by 2 ranks, weights and optimizer are equal bit for bit in 1, in 2 and in 4."""
    run_ranks(2, save_trained, folder, "sharded")
    metadata = checkpoints.verify(at(folder))
    assert metadata.is_sharded
    assert metadata.world_size == 2
    assert sorted(metadata.files) == [
        "generators.pt",
        "optimizer-00000-of-00002.safetensors",
        "optimizer-00001-of-00002.safetensors",
        "state.pt",
        "weights-00000-of-00002.safetensors",
        "weights-00001-of-00002.safetensors",
    ]
    load_and_compare(0, folder, "plain")
    run_ranks(2, load_and_compare, folder, "sharded")
    run_ranks(4, load_and_compare, folder, "sharded")


def test_a_checkpoint_of_one_process_loads_into_shares(folder: Path) -> None:
    """What one process saved whole is equal bit for bit where two hold a part each."""
    model, optimizer = prepared("plain")
    train(model, optimizer)
    torch.save(content(model, optimizer), folder / "expected.pt")
    about = checkpoints.CheckpointMetadata(name=at(folder).name, step=STEPS, epoch=0)
    checkpoints.write_checkpoint(at(folder), model, optimizer, metadata=about)
    checkpoints.seal(at(folder))
    run_ranks(2, load_and_compare, folder, "sharded")


def fail_to_load(_rank: int, folder: Path, said: str) -> None:
    """Loading raises this on every rank, and changes nothing on any."""
    model, optimizer = prepared("sharded")
    train(model, optimizer, 1)
    before = content(model, optimizer)
    with pytest.raises(CheckpointError, match=said):
        load_checkpoint(at(folder), model=model, optimizer=optimizer)
    assert differing(content(model, optimizer), before) == []


def test_a_share_that_is_changed_or_missing_is_named_on_every_rank(folder: Path) -> None:
    """One bit is enough, whichever rank hashes it: nobody has loaded anything, be it one or two."""
    run_ranks(2, save_trained, folder, "sharded")
    # The second rank hashes the last file, the first rank the first.
    for name in ("weights-00001-of-00002.safetensors", "generators.pt"):
        file = at(folder) / name
        stored = file.read_bytes()
        for content_now, said in ((stored[:-1] + b"\xff", "was changed"), (None, "is missing")):
            file.unlink()
            if content_now is not None:
                file.write_bytes(content_now)
            run_ranks(2, fail_to_load, folder, f"{name} {said}")
            model, _ = prepared("plain")
            before = content(model, torch.optim.SGD(model.parameters(), lr=1.0))
            with pytest.raises(CheckpointError, match=f"{name} {said}"):
                load_checkpoint(at(folder), model=model)
            assert differing(model.state_dict(), before) == []
        file.write_bytes(stored)


def test_a_share_that_the_metadata_does_not_list_is_missed(folder: Path) -> None:
    """Shares say how many they are: metadata that lists fewer is refused, sealed or not."""
    run_ranks(2, save_trained, folder, "sharded")
    path = at(folder) / "metadata.json"
    content = json.loads(path.read_text())
    del content["files"]["weights-00000-of-00002.safetensors"]
    del content["metadata_sha256"]
    path.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="lists no weights-00000-of-00002"):
        load_checkpoint(at(folder), model=prepared("plain")[0])


def die_while_saving(rank: int, folder: Path) -> None:
    """The second rank is killed in the midst of the second checkpoint."""
    model, optimizer = prepared("sharded")
    saving = Saving(rank, folder)
    train(model, optimizer)
    saving.save(model, optimizer, 1)
    saving.settle()
    if rank == 1:
        killing = Training.staged

        def staged(self: Training, **place: Any) -> Any:
            found = killing(self, **place)
            found.writers["weights-00001-of-00002.safetensors"] = half_written
            return found

        Training.staged = staged  # type: ignore[method-assign]
    joint_saves._SILENT_S = 2.5
    saving.save(model, optimizer, 2)
    assert saving.saves.close(has_failed=True) == [
        "checkpoint epoch_0000-step_000002 was not saved: rank 1 has not written its share"
    ]
    assert saving.committed == [at(folder, 1).name]


def half_written(path: Path) -> None:
    """Write a part of a file, and be killed."""
    path.write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_rank_that_is_killed_while_saving_leaves_no_checkpoint(folder: Path) -> None:
    """The one before stays the last, and nothing of the other is seen or stays on the disk."""
    run_ranks(2, die_while_saving, folder, killed=1)
    runs = folder / "run" / "checkpoints"
    assert [path.name for path in runs.iterdir()] == [at(folder, 1).name]
    assert load_checkpoint(runs, which="last").metadata.step == 1


def save_replicated(rank: int, folder: Path) -> None:
    """Each rank has drawn other numbers when it saves."""
    model, optimizer = prepared("ddp")
    train(model, optimizer)
    torch.manual_seed(100 + rank)
    saving = Saving(rank, folder)
    assert saving.save(model, optimizer) == at(folder).name
    following = torch.rand(4)
    saving.settle()
    torch.save((following, content(model, optimizer)), folder / f"expected-{rank}.pt")


def go_on_replicated(rank: int, folder: Path, known: int) -> None:
    """A rank draws what it would have drawn; one that was not there is left as it is."""
    model, optimizer = prepared("ddp")
    torch.manual_seed(7)
    untouched = torch.rand(4)
    torch.manual_seed(7)
    load_checkpoint(at(folder), model=model, optimizer=optimizer)
    expected, weights = torch.load(folder / f"expected-{rank % known}.pt", weights_only=True)
    assert torch.equal(torch.rand(4), expected if rank < known else untouched)
    assert differing(content(model, optimizer), weights) == []


def test_of_a_replicated_model_one_rank_writes_and_all_keep_their_generators(
    folder: Path,
) -> None:
    """The files are those of one process, and the random numbers of each rank go on in three."""
    run_ranks(2, save_replicated, folder)
    metadata = checkpoints.verify(at(folder))
    assert sorted(metadata.files) == ["generators.pt", "state.pt", "weights.safetensors"]
    run_ranks(3, go_on_replicated, folder, 2)


def save_on_one(rank: int, folder: Path) -> None:
    """The other rank never saves: training is not held up, and neither is the second save."""
    joint_saves._GENERATORS_WAIT_S, joint_saves._KNOWN_ABSENT_S = 1.0, 0.1
    model, optimizer = prepared("ddp")
    if rank == 0:
        saving = Saving(rank, folder)
        for step in (1, 2):
            saving.save(model, optimizer, step)
            assert saving.saves.settle(wait_s=120)
        assert saving.committed == [at(folder, 1).name, at(folder, 2).name]
    train(model, optimizer)


def test_a_replicated_model_may_be_saved_by_one_rank_alone(folder: Path) -> None:
    """Then the generators of the others are not there, and that is told once."""
    run_ranks(2, save_on_one, folder)
    said = (folder / "said-0").read_text()
    assert said.count("generators of rank 1 are not in checkpoint") == 1
    assert load_checkpoint(folder / "run" / "checkpoints", which="last").metadata.step == 2


def save_slowly(rank: int, folder: Path) -> None:
    """The second rank's file waits for a word from the test's own rank."""
    model, optimizer = prepared("sharded")
    train(model, optimizer)
    saving = Saving(rank, folder)
    if rank == 1:
        write = Training.staged

        def staged(self: Training, **place: Any) -> Any:
            found = write(self, **place)
            name = "weights-00001-of-00002.safetensors"
            writer = found.writers[name]
            found.writers[name] = lambda path: ((folder / "word").read_text(), writer(path))
            return found

        Training.staged = staged  # type: ignore[method-assign]
    saving.save(model, optimizer)
    dist.barrier()
    assert not at(folder).exists()
    # Training goes on, with collectives of its own.
    train(model, optimizer)
    if rank == 0:
        assert not at(folder).exists()
        (folder / "word").write_text("now")
    saving.settle()
    checkpoints.verify(at(folder))


def test_saving_goes_on_beside_training(folder: Path) -> None:
    """The call returns before the files are there, and until all are there is no checkpoint."""
    os.mkfifo(folder / "word")
    run_ranks(2, save_slowly, folder)


def save_astray(rank: int, folder: Path) -> None:
    """Ranks that call for other steps, or whose models have other names, are told so."""
    model, optimizer = prepared("sharded")
    saving = Saving(rank, folder)
    if rank == 0:
        saving.save(model, optimizer, 1)
    else:
        with pytest.raises(CheckpointError, match=r"rank 1 at .*step 2, and by the owner .*step 1"):
            saving.save(model, optimizer, 2)
    saving.settle()
    other = nn.Sequential(*(nn.Linear(3, 3) for _ in range(1 + rank)))
    for layer in other:
        fully_shard(layer)
    saving.save(other, None, 3)
    saving.settle()
    assert saving.committed == []
    said = "".join(saving.saves.faults)
    assert (rank == 0) == ("rank 1: save_checkpoint was called on rank 1 at" in said)
    assert (rank == 0) == ("rank 1 has tensors of other names" in said)


def test_ranks_that_save_otherwise_are_told(folder: Path) -> None:
    """A wrong step is an error where it is wrong; unequal models become no checkpoint."""
    run_ranks(2, save_astray, folder)


def test_replicas_of_a_sharded_model_are_written_once(folder: Path) -> None:
    """With two replicas of two shares each, all is there once, and is read by one process."""
    run_ranks(4, save_trained, folder, "hybrid")
    files = checkpoints.verify(at(folder)).files
    assert len(files) == 10
    written = [
        list(load_file(at(folder) / f"weights-{rank:05d}-of-00004.safetensors"))
        for rank in range(4)
    ]
    assert all(written[:2])
    assert not any(written[2:])
    load_and_compare(0, folder, "plain")


def save_groups(_rank: int, folder: Path) -> None:
    """Each rank is a group of its own, which holds the whole model: nothing says so."""
    model = network()
    mesh = init_device_mesh("cpu", (2, 1), mesh_dim_names=("by_hand", "shard"))
    fully_shard(model, mesh=mesh["shard"])
    saving = Saving(dist.get_rank(), folder)
    with pytest.raises(CheckpointError, match="shared out over 1 processes, and the run is of 2"):
        saving.save(model, None)
    saving.settle()
    assert saving.committed == []


def test_a_model_that_groups_of_ranks_hold_by_hand_is_refused(folder: Path) -> None:
    """Its shares would be there twice: what could not be loaded is not called a checkpoint."""
    run_ranks(2, save_groups, folder)
    assert list((folder / "run" / "checkpoints").glob("*/metadata.json")) == []


def save_in_two_attempts(rank: int, folder: Path, store: str) -> None:
    """The second attempt's owner comes late: what the first has said is all that is there."""
    model, optimizer = prepared("sharded")
    saving = Saving(rank, folder, store=dist.FileStore(store, 2))
    train(model, optimizer, 1 + (folder / "again").exists())
    dist.barrier()
    if rank == 0 and (folder / "again").exists():
        time.sleep(1)
    step = 8 if (folder / "again").exists() else 4
    assert saving.save(model, optimizer, step) == at(folder, step).name
    saving.settle()
    if rank == 0:
        (folder / "again").touch()


def test_an_attempt_is_told_nothing_by_the_one_before(folder: Path, tmp_path: Path) -> None:
    """Where the launcher starts all ranks anew, its store is the same, and so may its number be."""
    store = tmp_path / "kept"
    keeper = dist.FileStore(str(store), 3)
    for _ in range(2):
        run_ranks(2, save_in_two_attempts, folder, str(store))
    assert keeper.num_keys() > 0
    assert load_checkpoint(folder / "run" / "checkpoints", which="last").metadata.step == 8


class Odd(nn.Module):
    """Tied weights in 16 bits, a parameter that is not trained, buffers of no number and of one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(9)
        self.words = nn.Embedding(9, 4)
        self.head = nn.Linear(4, 9, bias=False)
        self.head.weight = self.words.weight
        self.fixed = nn.Parameter(torch.randn(5), requires_grad=False)
        self.register_buffer("count", torch.tensor(3))
        self.register_buffer("empty", torch.zeros(0))
        self.to(torch.bfloat16)


def save_odd(rank: int, folder: Path) -> None:
    """The second rank owns the run; the optimizer has not made a step, its rate is a tensor."""
    model = Odd()
    fully_shard(model)
    rate = torch.tensor(0.1)
    optimizer = torch.optim.Adam([model.words.weight], lr=rate, foreach=False)
    saving = Saving(rank, folder, owner=1)
    saving.save(model, optimizer)
    saving.settle()
    assert saving.saves.faults == []
    assert optimizer.state == {}
    assert saving.committed == ([at(folder).name] if rank == 1 else [])


def test_odd_tensors_are_shared_out_too(folder: Path) -> None:
    """Tied, frozen, empty and 0-d ones come back, and an optimizer that has no state yet."""
    run_ranks(2, save_odd, folder)
    model, expected = Odd(), Odd()
    with torch.no_grad():
        for one in (*model.parameters(), *model.buffers()):
            one.zero_()
    optimizer = torch.optim.Adam([model.words.weight], lr=0.7, foreach=False)
    load_checkpoint(at(folder), model=model, optimizer=optimizer)
    assert differing(dict(model.state_dict()), dict(expected.state_dict())) == []
    assert model.head.weight is model.words.weight
    assert float(optimizer.param_groups[0]["lr"]) == pytest.approx(0.1)
    other = torch.optim.Adam(model.parameters(), lr=0.7)
    with pytest.raises(CheckpointError, match=r"group 0 has other parameters: .*fixed"):
        load_checkpoint(at(folder), model=model, optimizer=other)


def save_on_two_machines(rank: int, folder: Path) -> None:
    """Each rank has a run's folder of its own."""
    model, optimizer = prepared("sharded")
    train(model, optimizer)
    expected = content(model, optimizer)
    saving = Saving(rank, folder / str(rank), node=rank)
    saving.save(model, optimizer)
    saving.settle()
    assert [one.record.name for one in saving.shared] == ([at(folder).name] if rank else [])
    if rank == 0:
        torch.save(expected, folder / "expected.pt")


def test_each_machine_sends_what_it_has_and_the_metadata_goes_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until the other machine's shares are there MLflow has no checkpoint; then it is whole."""
    for rank in range(2):
        make_run(tmp_path / str(rank)).path.rename(tmp_path / str(rank) / "run")
    run_ranks(2, save_on_two_machines, tmp_path)
    artifacts = tmp_path / "artifacts"
    first, second, lonely = (
        CheckpointUploads(
            "0" * 32,
            RunFolder(tmp_path / str(rank) / "run"),
            artifact_uri=place.as_uri(),
            tracking_uri="unused",
            owns_run=rank == 0,
        )
        for rank, place in ((0, artifacts), (1, artifacts), (0, tmp_path / "lonely"))
    )
    for name, value in (("_WAIT_S", 0.0), ("_GONE_WAIT_S", 0.0), ("_LEAST_BYTES_PER_S", math.inf)):
        monkeypatch.setattr(shares_elsewhere, name, value)
    with pytest.raises(CheckpointError, match="not whole: no machine has sent optimizer-00001"):
        lonely.send(at(tmp_path / "0"))
    monkeypatch.undo()
    with pytest.raises(AwaitsOthers, match="waits for other machines' optimizer-00001-of-00002"):
        first.send(at(tmp_path / "0"))
    sent = artifacts / "checkpoints" / at(tmp_path).name
    assert not (sent / "metadata.json").exists()
    assert second.send(at(tmp_path / "1")) is None
    first.send(at(tmp_path / "0"))
    assert checkpoints.verify(sent).run_id == "0" * 32
    model, optimizer = prepared("plain")
    load_checkpoint(sent, model=model, optimizer=optimizer)
    expected = torch.load(tmp_path / "expected.pt", weights_only=True)
    assert differing(content(model, optimizer), expected) == []


def test_whole_weights_are_made_of_shares(folder: Path) -> None:
    """What is registered has one file of weights, equal bit for bit, and its own metadata."""
    run_ranks(2, save_trained, folder, "sharded")
    whole_one = consolidated(at(folder), folder / "registered")
    metadata = checkpoints.verify(whole_one, only=("weights.safetensors",))
    assert sorted(metadata.files) == ["weights.safetensors"]
    assert metadata.model == checkpoints.read_metadata(at(folder)).model
    model, _ = prepared("plain")
    checkpoints.load_weights(whole_one, model, only=("weights.safetensors",))
    found = {name: value.clone() for name, value in model.state_dict().items()}
    expected = torch.load(folder / "expected.pt", weights_only=True)
    assert differing(found, {name: expected[name] for name in found}) == []
    shared, _ = prepared("plain")
    checkpoints.load_weights(at(folder), shared)
    assert differing(dict(shared.state_dict()), found) == []


def track(rank: int, folder: Path, uri: str) -> None:
    """Two checkpoints through the tracker, as a training script saves them."""
    size = str(dist.get_world_size())
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": size}
    os.environ["LOCAL_WORLD_SIZE"] = size
    os.environ["SLURM_JOB_ID"] = f"test-{folder.parent.name}-{folder.name}"
    config = TrackingConfig(
        tracking_uri=uri,
        journal_dir=str(folder / "runs"),
        use_wandb=False,
        use_tensorboard=False,
        system_metrics=False,
        drain_timeout_s=180,
    )
    model, optimizer = prepared("sharded")
    with ExperimentTracker(config) as tracker:
        for step in (1, 2):
            train(model, optimizer)
            # Who logs nothing counts no steps, and only the owner has measured anything.
            if rank == 0:
                tracker.log_metrics({"loss": 1.0 / step}, step)
            metrics = {"val_loss": 1.0 / step} if rank == 0 else None
            name = tracker.save_checkpoint(model, optimizer, metrics=metrics)
        assert name == at(folder, 2).name
        expected = content(model, optimizer)
        assert tracker.flush()
        if rank == 0:
            torch.save((tracker.run_id, expected), folder / "expected.pt")


def test_the_ranks_of_a_tracker_save_into_one_run(tmp_path: Path) -> None:
    """One record and one metadata for all of them, each file once; MLflow's copy loads alone."""
    uri = store(tmp_path)
    run_ranks(2, track, tmp_path, uri)
    run_id, expected = torch.load(tmp_path / "expected.pt", weights_only=True)
    model, optimizer = prepared("plain")
    loaded = load_checkpoint(run_id, model=model, optimizer=optimizer, tracking_uri=uri)
    assert differing(content(model, optimizer), expected) == []
    metadata = loaded.metadata
    assert (metadata.step, metadata.world_size, metadata.run_id) == (2, 2, run_id)
    assert metadata.model["class"] == "Sequential"
    client = MlflowClient(uri)
    names = [one.path for one in client.list_artifacts(run_id, "checkpoints")]
    assert [name.rpartition("/")[2] for name in names] == [at(tmp_path, n).name for n in (1, 2)]
    files = {Path(one.path).name for one in client.list_artifacts(run_id, names[1])}
    assert files == {*metadata.files, "metadata.json"}
    assert client.get_run(run_id).data.tags[BEST_TAG] == at(tmp_path, 2).name
