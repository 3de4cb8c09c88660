"""Loading: verified first, then put in place; what is wrong is one line, and changes nothing."""

import json
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel

from opusclip_mlops import checkpoints
from opusclip_mlops.checkpoints import CheckpointMetadata, checkpoint_name
from opusclip_mlops.errors import CheckpointError
from opusclip_mlops.folder import RunFolder
from opusclip_mlops.loading import LoadedCheckpoint, load_checkpoint
from opusclip_mlops.metadata import BestValue
from opusclip_mlops.staged_training import Training
from tests.journeys import make_run
from tests.rank_processes import run_ranks

Parts = tuple[nn.Module, torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]


def parts() -> Parts:
    """A model with its optimizer and scheduler, not trained."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    return model, optimizer, torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)


def trained(given: Parts, steps: int) -> Parts:
    """The same after some steps on random numbers."""
    model, optimizer, scheduler = given
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(5, 3) + random.random() + np.random.rand()).sum().backward()
        optimizer.step()
        scheduler.step()
    return given


def save(folder: Path, given: Parts, step: int, **fields: Any) -> Path:
    """A sealed checkpoint in a folder of them."""
    about = CheckpointMetadata(name=checkpoint_name(1, step), step=step, epoch=1, **fields)
    path = checkpoints.write_checkpoint(folder / about.name, *given, metadata=about)
    checkpoints.seal(path, run_id="r1")
    return path


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A checkpoint of step 20 in a folder of its own."""
    return save(tmp_path / "kept", trained(parts(), 3), 20)


def weights(model: nn.Module) -> list[torch.Tensor]:
    """Copies of all tensors of a model."""
    return [value.clone() for value in model.state_dict().values()]


def generators() -> tuple[float, float, float]:
    """What the three generators give next; they go on from there."""
    return random.random(), float(np.random.rand()), float(torch.rand(1))


def test_everything_given_is_put_where_it_was(tmp_path: Path) -> None:
    """Weights, optimizer, scheduler and generators go on as if training had not stopped."""
    original = trained(parts(), 3)
    path = save(tmp_path, original, 20)
    expected = weights(trained(original, 4)[0])
    model, optimizer, scheduler = parts()
    generators()
    loaded = load_checkpoint(path, model=model, optimizer=optimizer, scheduler=scheduler)
    assert (loaded.folder, loaded.metadata.step, loaded.metadata.run_id) == (path, 20, "r1")
    assert loaded.state is not None
    assert loaded.state["step"] == 20
    trained((model, optimizer, scheduler), 4)
    assert all(map(torch.equal, weights(model), expected))


def test_generators_are_left_alone_unless_training_goes_on(saved: Path) -> None:
    """A model alone, or `restore_rng=False`, changes no generator; asked for, they are put back."""
    model, optimizer, _ = parts()
    torch.manual_seed(5)
    state = torch.get_rng_state()
    assert load_checkpoint(saved, model=model).state is None
    load_checkpoint(saved, model=model, optimizer=optimizer, restore_rng=False)
    assert torch.equal(torch.get_rng_state(), state)
    load_checkpoint(saved, restore_rng=True)
    assert not torch.equal(torch.get_rng_state(), state)


def test_one_of_a_folder_of_checkpoints_is_chosen(tmp_path: Path) -> None:
    """The best is what was marked last, the last what was written last, or a step or a name."""
    given = parts()
    best = [{}, {"loss": BestValue(checkpoint_name(1, 20), 0.1)}]
    first = save(tmp_path, given, 10, created_ms=1, best=best[0])
    second = save(tmp_path, given, 20, created_ms=2, best=best[1])
    third = save(tmp_path, given, 5, created_ms=3, best=best[1])
    assert load_checkpoint(tmp_path).folder == second
    assert load_checkpoint(tmp_path, which="last").folder == third
    assert load_checkpoint(tmp_path, which=10).folder == first
    assert load_checkpoint(str(tmp_path), which=checkpoint_name(1, 5)).folder == third
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 7; it has: .*000010"):
        load_checkpoint(tmp_path, which=7)


def test_a_run_is_not_removed_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its shipper may have delivered all of it in this moment."""
    run, given = make_run(tmp_path), parts()
    save(run.checkpoints, given, 1)
    verify, seen = checkpoints.verify, list[bool]()

    def verified(*args: Any, **options: Any) -> Any:
        seen.append(run.remove_empty())
        return verify(*args, **options)

    monkeypatch.setattr(checkpoints, "verify", verified)
    monkeypatch.setattr(RunFolder, "size_bytes", lambda _self: {})
    load_checkpoint(run.checkpoints, which="last", model=given[0])
    assert seen == [False]
    assert run.remove_empty()


def test_what_a_crash_left_unsealed_is_passed_over(tmp_path: Path) -> None:
    """The last and the best are those of the whole ones; asked for by step or name it is said."""
    given = parts()
    best = [{"loss": BestValue(checkpoint_name(1, step), 0.1)} for step in (10, 20)]
    first = save(tmp_path, given, 10, created_ms=1, best=best[0])
    torn = save(tmp_path, given, 20, created_ms=2, best=best[1])
    set_fields(torn, files={})
    for which in ("last", "best", 10, first.name):
        assert load_checkpoint(tmp_path, which=which).folder == first
    for which in (20, torn.name):
        with pytest.raises(CheckpointError, match="000020 is not sealed"):
            load_checkpoint(tmp_path, which=which)
    set_fields(first, files={})
    with pytest.raises(CheckpointError, match="000020 is not sealed"):
        load_checkpoint(tmp_path, which="last")


@pytest.mark.parametrize("rubbish", ['{"schema_version": 9}', "{", "[]"])
def test_one_that_cannot_be_read_hinders_no_other(tmp_path: Path, rubbish: str) -> None:
    """It is said where it is the one that was asked for, or the only one there."""
    odd = tmp_path / checkpoint_name(1, 30)
    odd.mkdir()
    (odd / "metadata.json").write_text(rubbish)
    for which in ("best", "last", 30, odd.name, 31):
        with pytest.raises(CheckpointError, match=r"000030.metadata\.json: "):
            load_checkpoint(tmp_path, which=which)
    path = save(tmp_path, parts(), 10)
    for which in ("last", 10, path.name):
        assert load_checkpoint(tmp_path, which=which).folder == path
    for which in (30, odd.name):
        with pytest.raises(CheckpointError, match=r"000030.metadata\.json: "):
            load_checkpoint(tmp_path, which=which)
    with pytest.raises(CheckpointError, match="no checkpoint of step 31; it has: epoch"):
        load_checkpoint(tmp_path, which=31)


def test_a_folder_without_the_one_meant_says_what_it_has(tmp_path: Path, saved: Path) -> None:
    """No folder, an empty one, none marked best, another step: each is said."""
    (tmp_path / "empty").mkdir()
    for source, which, message in (
        (tmp_path / "absent", "best", "no checkpoint at '.*absent': give an MLflow run id"),
        (tmp_path / "empty", "best", "empty holds no checkpoint"),
        (saved.parent, "best", "marked best; it has: epoch_0001-step_000020"),
        (saved, 21, "is of step 20, not 21"),
    ):
        with pytest.raises(CheckpointError, match=message):
            load_checkpoint(source, which=which)


@pytest.mark.parametrize("which", [-1, True, None, 1.5, "", [3]])
def test_a_choice_that_is_none_is_refused(saved: Path, which: Any) -> None:
    """Which one is a word, a name or a step of 0 or more."""
    with pytest.raises(CheckpointError, match="which is"):
        load_checkpoint(saved, which=which)


def flip(path: Path) -> None:
    """Change one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def set_fields(folder: Path, **fields: Any) -> None:
    """Change metadata.json by hand."""
    path = folder / "metadata.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "weights": (lambda f: flip(f / "weights.safetensors"), r"weights\.safetensors was changed"),
    "state": (lambda f: flip(f / "state.pt"), r"state\.pt was changed"),
    "missing": (lambda f: (f / "state.pt").unlink(), r"state\.pt is missing"),
    "schema": (lambda f: set_fields(f, schema_version=9), "schema_version is 9, known is 1"),
    "metrics": (lambda f: set_fields(f, metrics={"x": 1.0}), r"metadata\.json was changed"),
    "rubbish": (lambda f: (f / "metadata.json").write_bytes(b"\0\xff"), r"metadata\.json: cannot"),
    "outside": (
        lambda f: set_fields(f, files=dict.fromkeys(NAMES, HASH)),
        "outside the checkpoint",
    ),
}
NAMES = ("../x", "weights.safetensors", "state.pt")
HASH = {"sha256": "0" * 64, "size_bytes": 1}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_damaged_changes_nothing(saved: Path, damage: str) -> None:
    """The error says what is wrong where, in one line; model and generators are as before."""
    act, message = DAMAGES[damage]
    act(saved)
    model, optimizer, scheduler = parts()
    before, state = weights(model), torch.get_rng_state()
    with pytest.raises(CheckpointError, match=message) as refused:
        load_checkpoint(saved, model=model, optimizer=optimizer, scheduler=scheduler)
    assert str(saved) in str(refused.value)
    assert "\n" not in str(refused.value)
    assert all(map(torch.equal, weights(model), before))
    assert torch.equal(torch.get_rng_state(), state)


def test_no_flipped_bit_of_the_metadata_goes_by(saved: Path) -> None:
    """Each bit of metadata.json: an error, or the same metadata as before."""
    path = saved / "metadata.json"
    content, expected = path.read_bytes(), load_checkpoint(saved).metadata
    for at in range(len(content)):
        path.write_bytes(content[:at] + bytes([content[at] ^ 1 << at % 8]) + content[at + 1 :])
        try:
            found = checkpoints.verify(saved, only=())
        except CheckpointError:
            continue
        assert found == expected, content[at - 20 : at + 20]


def test_parts_of_another_model_change_nothing(saved: Path) -> None:
    """Names and shapes are listed; an optimizer or scheduler that does not fit is named."""
    model, optimizer, scheduler = parts()
    before = weights(model)
    other = nn.Sequential(nn.Linear(3, 5))
    message = r"2\.weight is not in the model.*0\.weight is \(4, 3\), the model's is \(5, 3\)"
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(saved, model=other)
    with pytest.raises(CheckpointError, match="optimizer does not fit"):
        load_checkpoint(saved, model=model, optimizer=torch.optim.Adam(other.parameters()))
    assert all(map(torch.equal, weights(model), before))
    load_checkpoint(saved, model=model, optimizer=optimizer, scheduler=scheduler)


KINDS: dict[str, tuple[Any, dict[str, Any]]] = {
    "SGD": (torch.optim.SGD, {"momentum": 0.9}),
    "Adam": (torch.optim.Adam, {}),
    "RMSprop": (torch.optim.RMSprop, {}),
    "Adagrad": (torch.optim.Adagrad, {}),
    "Adadelta": (torch.optim.Adadelta, {}),
    "Adamax": (torch.optim.Adamax, {}),
}


def one_of(kind: str, shape: tuple[int, ...] = (2, 3)) -> torch.optim.Optimizer:
    """An optimizer of one parameter that has done a step."""
    parameter = nn.Parameter(torch.ones(shape))
    parameter.grad = torch.ones(shape)
    optimizer: torch.optim.Optimizer = KINDS[kind][0]([parameter], **KINDS[kind][1])
    optimizer.step()
    return optimizer


@pytest.mark.parametrize("kind", KINDS)
def test_the_state_of_another_optimizer_is_refused(tmp_path: Path, kind: str) -> None:
    """Of another kind or other shapes: said which, and nothing is changed; its own is taken."""
    model = nn.Linear(1, 1)
    about = CheckpointMetadata(name="c", step=0, epoch=0)
    path = checkpoints.write_checkpoint(tmp_path / "c", model, one_of(kind), metadata=about)
    checkpoints.seal(path)
    random_state = torch.get_rng_state()
    for other in KINDS:
        target, shape = (one_of(other), "") if other != kind else (one_of(kind, (5,)), r"\(5,\)")
        before = repr(target.state_dict())
        with pytest.raises(CheckpointError, match=f"optimizer does not fit: .*{shape}"):
            load_checkpoint(path, model=model, optimizer=target)
        assert repr(target.state_dict()) == before
    assert torch.equal(torch.get_rng_state(), random_state)
    load_checkpoint(path, optimizer=one_of(kind))


def test_what_other_releases_of_torch_and_schedulers_leave_is_no_difference(
    tmp_path: Path,
) -> None:
    """Options that came later may lack, what a scheduler has added may be there or not."""
    optimizer = one_of("Adam")
    torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=5)
    for later in ("fused", "decoupled_weight_decay"):
        optimizer.param_groups[0].pop(later, None)
    about = CheckpointMetadata(name="c", step=0, epoch=0)
    path = checkpoints.write_checkpoint(tmp_path / "c", nn.Linear(1, 1), optimizer, metadata=about)
    checkpoints.seal(path)
    target = one_of("Adam")
    load_checkpoint(path, optimizer=target)
    target.step()
    scheduler = torch.optim.lr_scheduler.ConstantLR(one_of("Adam"))
    with pytest.raises(CheckpointError, match="saved without scheduler"):
        load_checkpoint(path, optimizer=target, scheduler=scheduler)


class Both:
    """What steps as one optimizer, and is none of torch's."""

    def __init__(self, *optimizers: torch.optim.Optimizer) -> None:
        self.optimizers = optimizers

    def state_dict(self) -> dict[str, Any]:
        """The states of all."""
        return {"each": [one.state_dict() for one in self.optimizers]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Give each its own."""
        for one, stored in zip(self.optimizers, state["each"], strict=True):
            one.load_state_dict(stored)


def test_what_only_has_the_state_of_an_optimizer_is_saved_and_put_back(tmp_path: Path) -> None:
    """A wrapper of several optimizers need not be one of torch's."""
    about = CheckpointMetadata(name="c", step=0, epoch=0)
    both: Any = Both(one_of("SGD"), one_of("Adam"))
    path = checkpoints.write_checkpoint(tmp_path / "c", nn.Linear(1, 1), both, metadata=about)
    checkpoints.seal(path)
    fresh: Any = Both(
        *(KINDS[kind][0]([nn.Parameter(torch.ones(2, 3))]) for kind in ("SGD", "Adam"))
    )
    load_checkpoint(path, optimizer=fresh)
    assert repr(fresh.optimizers[1].state_dict()["state"]) == repr(
        both.optimizers[1].state_dict()["state"]
    )


def save_wrapped(_rank: int, folder: Path) -> None:
    """A process that is alone saves what FullyShardedDataParallel is around, and loads it."""
    model = FullyShardedDataParallel(nn.Linear(3, 2), device_id=torch.device("cpu"))
    about = CheckpointMetadata(name="c", step=0, epoch=0)
    path = checkpoints.write_checkpoint(folder / "c", model, metadata=about)
    checkpoints.seal(path)
    expected = weights(model)
    with torch.no_grad():
        model(torch.ones(1, 3)).sum()
        for parameter in model.parameters():
            parameter.zero_()
    load_checkpoint(path, model=model)
    assert all(map(torch.equal, weights(model), expected))
    with pytest.raises(CheckpointError, match="FullyShardedDataParallel cannot be saved by its"):
        Training(model, None, None, 0, 0).staged(rank=0, world_size=2, is_owner=True)


def test_a_process_that_is_alone_saves_whatever_wraps_a_model(tmp_path: Path) -> None:
    """Only what many save together has to have names of its own."""
    run_ranks(1, save_wrapped, tmp_path)


def test_state_that_was_not_saved_is_said(tmp_path: Path) -> None:
    """A checkpoint of the weights alone has no optimizer to give back."""
    about = CheckpointMetadata(name="c", step=0, epoch=0)
    model, optimizer, _ = parts()
    path = checkpoints.write_checkpoint(tmp_path / "c", model, metadata=about)
    checkpoints.seal(path)
    with pytest.raises(CheckpointError, match="saved without optimizer"):
        load_checkpoint(path, model=model, optimizer=optimizer)


def test_the_best_so_far_is_read_as_it_was_written(tmp_path: Path) -> None:
    """Values that JSON lacks come back too."""
    best = {"psnr": BestValue("a", float("inf"), "max"), "loss": BestValue("b", 0.1)}
    about = CheckpointMetadata(name="c", step=0, epoch=0, best=best)
    path = checkpoints.write_checkpoint(tmp_path / "c", nn.Linear(1, 1), metadata=about)
    assert checkpoints.read_metadata(path) == replace(about, best=best)


def test_a_folder_on_this_disk_needs_no_mlflow(saved: Path) -> None:
    """Loading it imports none of MLflow."""
    code = (
        "import sys; from opusclip_mlops.loading import load_checkpoint;"
        "load_checkpoint(sys.argv[1], restore_rng=True); sys.exit('mlflow' in sys.modules)"
    )
    root = Path(checkpoints.__file__).parents[1]
    subprocess.run([sys.executable, "-c", code, str(saved)], cwd=root, check=True)


def test_what_was_loaded_is_printed_in_short() -> None:
    """What it is, and not the numbers of its training state."""
    metadata = CheckpointMetadata(name="epoch_0001-step_000040", step=40, epoch=1, created_ms=5)
    shown = repr(LoadedCheckpoint(folder=None, metadata=metadata, state={"step": 98765}))
    assert "epoch_0001-step_000040" in shown
    assert "98765" not in shown
