"""Checkpoints: whole or not there, sealed once, verified before anything is loaded."""

import contextlib
import json
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from opusclip_mlops import checkpoints, tensors
from opusclip_mlops.checkpoints import CheckpointMetadata, StoredFile
from opusclip_mlops.errors import CheckpointError

ABOUT = CheckpointMetadata(name="epoch_0001-step_000020", step=20, epoch=1)


class Network(nn.Module):
    """Tied weights, a transposed parameter, a view of a longer tensor, an empty buffer, dropout."""

    def __init__(self, words: int = 11) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, 64)
        self.head = nn.Linear(64, words, bias=False)
        self.head.weight = self.embedding.weight
        self.mixing = nn.Parameter(torch.randn(8, 64).t())
        self.dropout = nn.Dropout(0.5)
        self.register_buffer("positions", torch.arange(100)[:5])
        self.register_buffer("empty", torch.zeros(0))

    def forward(self, word: torch.Tensor) -> torch.Tensor:
        hidden = self.dropout(self.embedding(word) @ self.mixing)
        return self.head(hidden @ self.mixing.t())


def trained(steps: int, parts: tuple[Any, ...] | None = None) -> tuple[Any, ...]:
    """A model, its optimizer and scheduler after some steps on random words."""
    model, optimizer, scheduler = parts or fresh()
    for _ in range(steps):
        word = torch.tensor([random.randrange(11), int(np.random.randint(11))])
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(word), word).backward()
        optimizer.step()
        scheduler.step()
    return model, optimizer, scheduler


def fresh() -> tuple[Any, ...]:
    """A model that was never trained, with its optimizer and scheduler."""
    model = Network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    return model, optimizer, torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=50)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sealed checkpoint of a trained model."""
    parts = trained(3)
    path = checkpoints.write_checkpoint(tmp_path / "runs" / ABOUT.name, *parts, metadata=ABOUT)
    checkpoints.seal(path)
    return path


def edit(folder: Path, **changes: Any) -> None:
    """Change fields of a checkpoint's metadata.json."""
    path = folder / "metadata.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def list_file(folder: Path, name: str) -> None:
    """Add a file to those that metadata.json lists."""
    files = json.loads((folder / "metadata.json").read_text())["files"]
    edit(folder, files={**files, name: {"sha256": "0" * 64, "size_bytes": 1}})


def test_names_sort_in_the_order_of_training() -> None:
    """Epoch and step are padded, so that a listing is in the order of training."""
    assert checkpoints.checkpoint_name(3, 120) == "epoch_0003-step_000120"
    names = [checkpoints.checkpoint_name(*at) for at in ((0, 9), (0, 10), (2, 99), (10, 100))]
    assert names == sorted(names)
    with pytest.raises(CheckpointError, match="-1"):
        checkpoints.checkpoint_name(0, -1)


def test_a_checkpoint_is_a_private_folder_of_three_files(tmp_path: Path) -> None:
    """Writing hashes nothing, closes the folder to others and leaves nothing beside it."""
    path = checkpoints.write_checkpoint(tmp_path / "runs" / ABOUT.name, Network(), metadata=ABOUT)
    assert {file.name for file in path.iterdir()} == {
        *("weights.safetensors", "state.pt", "metadata.json")
    }
    assert path.stat().st_mode & 0o777 == 0o700
    assert checkpoints.read_metadata(path) == ABOUT
    assert not checkpoints.read_metadata(path).sealed
    assert list((tmp_path / "runs").iterdir()) == [path]


def test_weights_come_back_bit_for_bit(folder: Path) -> None:
    """Tied, transposed and sliced tensors are equal after loading, and tied ones are still tied."""
    model, other = Network(), Network()
    assert checkpoints.load_weights(folder, model).step == 20
    checkpoints.load_weights(folder, other)
    first, second = model.state_dict(), other.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["mixing"], Network().state_dict()["mixing"])
    assert model.head.weight is model.embedding.weight


def test_tied_weights_are_written_once(folder: Path) -> None:
    """A tensor with two names takes its room once, a slice only its own."""
    numbers = 11 * 64 + 64 * 8
    size_bytes = (folder / "weights.safetensors").stat().st_size
    assert numbers * 4 < size_bytes < numbers * 4 + 600


@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel])
def test_wrappers_do_not_change_names(
    tmp_path: Path, wrap: Callable[[nn.Module], nn.Module]
) -> None:
    """What was saved from a compiled or parallel model fits the plain one, and back."""
    model, plain, wrapped = Network(), Network(), wrap(Network())
    path = checkpoints.write_checkpoint(tmp_path / "runs" / "c", wrap(model), metadata=ABOUT)
    checkpoints.seal(path)
    checkpoints.load_weights(path, plain)
    checkpoints.load_weights(path, wrapped)
    assert torch.equal(plain.mixing, model.mixing)
    assert all(map(torch.equal, wrapped.state_dict().values(), model.state_dict().values()))


def test_training_goes_on_as_if_it_had_never_stopped(tmp_path: Path) -> None:
    """Weights, optimizer, scheduler and every random generator continue where they were."""
    parts = trained(4)
    path = checkpoints.write_checkpoint(tmp_path / "runs" / "c", *parts, metadata=ABOUT)
    checkpoints.seal(path)
    expected, _, expected_schedule = trained(4, parts)
    model, optimizer, scheduler = fresh()
    checkpoints.load_weights(path, model)
    state = checkpoints.load_state(path)
    optimizer.load_state_dict(state["optimizer"])
    scheduler.load_state_dict(state["scheduler"])
    checkpoints.restore_rng(state["rng"])
    trained(4, (model, optimizer, scheduler))
    assert torch.equal(model.mixing, expected.mixing)
    assert scheduler.get_last_lr() == expected_schedule.get_last_lr()
    assert (state["step"], state["epoch"]) == (20, 1)


def test_numpy_values_in_the_training_state_become_plain(tmp_path: Path) -> None:
    """A scheduler that was given NumPy numbers is saved, and read without executing code."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
    scheduler.best = np.float64(0.25)
    path = checkpoints.write_checkpoint(
        tmp_path / "runs" / "c", nn.Linear(1, 1), optimizer, scheduler, metadata=ABOUT
    )
    checkpoints.seal(path)
    best = checkpoints.load_state(path)["scheduler"]["best"]
    assert (type(best), best) == (float, 0.25)


def test_state_that_needs_code_to_load_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    """The error names the value; no folder, whole or partial, stays behind."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    optimizer.param_groups[0]["schedule"] = {"shape": Path}
    with pytest.raises(CheckpointError, match=r"optimizer\.param_groups\[\]\.schedule\.shape"):
        checkpoints.write_checkpoint(tmp_path / "runs" / "c", Network(), optimizer, metadata=ABOUT)
    assert list((tmp_path / "runs").iterdir()) == []


def test_weights_that_are_no_tensors_are_refused(tmp_path: Path) -> None:
    """Extra state of a module is named, not pickled."""

    class Extra(nn.Module):
        def get_extra_state(self) -> Any:
            return {"vocabulary": 3}

    with pytest.raises(CheckpointError, match="_extra_state"):
        checkpoints.write_checkpoint(tmp_path / "runs" / "c", Extra(), metadata=ABOUT)


def test_a_checkpoint_is_never_overwritten(folder: Path) -> None:
    """A second one of the same name is refused and the first stays whole."""
    with pytest.raises(CheckpointError, match="exists already"):
        checkpoints.write_checkpoint(folder, Network(), metadata=ABOUT)
    checkpoints.verify(folder)


def test_a_process_killed_while_writing_leaves_nothing_visible(tmp_path: Path) -> None:
    """SIGKILL after the weights were written: no checkpoint, only a hidden folder."""
    code = """
import os, signal, sys, torch
from pathlib import Path
from opusclip_mlops.checkpoints import CheckpointMetadata, write_checkpoint
class Killing(torch.optim.SGD):
    def state_dict(self):
        os.kill(os.getpid(), signal.SIGKILL)
model = torch.nn.Linear(2, 2)
metadata = CheckpointMetadata(name="c", step=0, epoch=0)
write_checkpoint(Path(sys.argv[1], "c"), model, Killing(model.parameters()), metadata=metadata)
"""
    root = Path(checkpoints.__file__).parents[1]
    env = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "runs")], env=env, check=False
    )
    assert done.returncode == -signal.SIGKILL
    left = [path.name for path in (tmp_path / "runs").iterdir()]
    assert len(left) == 1
    assert left[0].startswith(".c-")
    checkpoints.write_checkpoint(tmp_path / "runs" / "d", nn.Linear(1, 1), metadata=ABOUT)
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["d"]


class Looking(torch.optim.SGD):
    """An optimizer that does something while it is saved."""

    def __init__(self, act: Callable[[], object]) -> None:
        super().__init__([nn.Parameter(torch.zeros(1))], lr=0.1)
        self.act = act

    def state_dict(self) -> dict[str, Any]:
        self.act()
        return super().state_dict()


def test_what_another_still_writes_is_left_alone(tmp_path: Path) -> None:
    """Only what dead processes of this machine left goes, and nothing but that."""
    runs = tmp_path / "runs"
    for name in (".c.claimed", ".x-abcdefgh", ".c-abcdefgh.01234567.unfinished"):
        (runs / name).mkdir(parents=True)

    def save_another() -> None:
        checkpoints.write_checkpoint(runs / "b", nn.Linear(1, 1), metadata=ABOUT)

    before = {*runs.iterdir()}
    optimizer = Looking(save_another)
    checkpoints.write_checkpoint(runs / "a", nn.Linear(1, 1), optimizer, metadata=ABOUT)
    assert {*runs.iterdir()} == before | {runs / "a", runs / "b"}
    for name in ("a", "b"):
        assert checkpoints.seal(runs / name).sealed


def test_a_disk_without_locks_takes_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then nothing that was left behind is removed, as it may be a living one's."""

    def refuse(*_: object) -> None:
        raise OSError(37, "No locks available")

    def leave() -> None:
        [unfinished] = runs.glob("*.unfinished")
        shutil.copytree(unfinished, unfinished.with_name(unfinished.name.replace(".a-", ".z-")))

    monkeypatch.setattr("fcntl.flock", refuse)
    runs = tmp_path / "runs"
    checkpoints.write_checkpoint(runs / "a", nn.Linear(1, 1), Looking(leave), metadata=ABOUT)
    checkpoints.write_checkpoint(runs / "b", nn.Linear(1, 1), metadata=ABOUT)
    assert len(list(runs.glob(".z-*.unfinished"))) == 1
    assert sorted(path.name for path in runs.glob("[!.]*")) == ["a", "b"]


def zeroed(path: Path) -> None:
    """The length that it had, and nothing of its content behind the first half."""
    size_bytes = path.stat().st_size
    os.truncate(path, size_bytes // 2)
    os.truncate(path, size_bytes)


@pytest.mark.parametrize(
    ("name", "tear"),
    [
        ("weights.safetensors", lambda path: os.truncate(path, 99)),
        ("weights.safetensors", zeroed),
        ("state.pt", lambda path: os.truncate(path, 99)),
        ("state.pt", lambda path: os.truncate(path, 0)),
        ("metadata.json", lambda path: os.truncate(path, 99)),
        ("metadata.json", lambda path: os.truncate(path, 0)),
    ],
)
def test_what_a_power_cut_has_torn_is_not_sealed(
    tmp_path: Path, name: str, tear: Callable[[Path], object]
) -> None:
    """Nothing waits for the disk when it is written, so less may stand there afterwards."""
    path = checkpoints.write_checkpoint(tmp_path / "c", Network(), metadata=ABOUT)
    tear(path / name)
    with pytest.raises(CheckpointError, match=rf"torn: {name} is not as|{name}: cannot read"):
        checkpoints.seal(path)
    with pytest.raises(CheckpointError):
        checkpoints.verify(path)


def test_what_an_earlier_release_wrote_is_sealed(tmp_path: Path) -> None:
    """It noted nothing of its files; a sealed one says it by its hashes alone."""
    path = checkpoints.write_checkpoint(tmp_path / "c", Network(), metadata=ABOUT)
    about = json.loads((path / "metadata.json").read_text())
    assert about.pop("written").keys() == {"weights.safetensors", "state.pt"}
    for rubbish in ({}, {"written": None}, {"written": []}):
        (path / "metadata.json").write_text(json.dumps({**about, **rubbish}))
        assert checkpoints.seal(path) == checkpoints.verify(path)
        assert "written" not in json.loads((path / "metadata.json").read_text())


def test_saving_waits_for_no_disk_and_sealing_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every file and both folders are flushed before anything is said to be whole."""
    flushed: list[str] = []

    def note(descriptor: int) -> None:
        flushed.append(Path(f"/proc/self/fd/{descriptor}").resolve().name)

    monkeypatch.setattr("os.fsync", note)
    path = checkpoints.write_checkpoint(tmp_path / "c", Network(), metadata=ABOUT)
    assert flushed == []
    checkpoints.seal(path)
    assert flushed[:4] == ["state.pt", "weights.safetensors", "c", tmp_path.name]


def test_sealing_lists_every_file_and_again_changes_nothing(folder: Path) -> None:
    """All files but metadata.json have hash and size; a second seal does not write."""
    before = (folder / "metadata.json").stat()
    sealed = checkpoints.seal(folder)
    assert sealed.files.keys() == {"weights.safetensors", "state.pt"}
    assert sealed == checkpoints.verify(folder)
    after = (folder / "metadata.json").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_processes_may_seal_at_once(tmp_path: Path) -> None:
    """Four processes that seal one checkpoint agree, and it is whole afterwards."""
    path = checkpoints.write_checkpoint(tmp_path / "runs" / "c", Network(), metadata=ABOUT)
    with ProcessPoolExecutor(4, mp_context=get_context("spawn")) as pool:
        sealed = list(pool.map(checkpoints.seal, [path] * 8))
    assert set(map(str, sealed)) == {str(checkpoints.verify(path))}
    assert list((tmp_path / "runs").iterdir()) == [path]


def test_one_may_be_dropped_while_it_is_sealed(tmp_path: Path) -> None:
    """Whoever is first, sealing gives the metadata, and only that is left."""
    for number in range(40):
        path = checkpoints.write_checkpoint(tmp_path / str(number), Network(), metadata=ABOUT)
        with ThreadPoolExecutor(3) as pool:
            sealing = pool.submit(checkpoints.seal, path, run_id="r")
            dropping = [pool.submit(checkpoints.drop, path) for _ in range(2)]
            assert sealing.result().name == ABOUT.name
            assert [one.result() for one in dropping] == [None, None]
        assert [one.name for one in path.iterdir()] == ["metadata.json"]
        assert checkpoints.is_dropped(path)


def test_sealing_does_not_import_torch(folder: Path) -> None:
    """A process that only ships checkpoints pays for neither torch nor safetensors."""
    code = (
        "import sys; from pathlib import Path; from opusclip_mlops import checkpoints;"
        "checkpoints.seal(Path(sys.argv[1])); checkpoints.verify(Path(sys.argv[1]));"
        "sys.exit(bool({'torch', 'safetensors', 'numpy'} & sys.modules.keys()))"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(checkpoints.__file__).parents[1])}
    subprocess.run([sys.executable, "-c", code, str(folder)], env=env, check=True)


def flip(folder: Path) -> None:
    """Change one byte of the weights."""
    content = bytearray((folder / "weights.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "weights.safetensors").write_bytes(content)


def link(folder: Path) -> None:
    """Put a link to a file elsewhere in the place of the weights."""
    weights = folder / "weights.safetensors"
    weights.rename(folder.parent / "elsewhere")
    weights.symlink_to(folder.parent / "elsewhere")


def nested(depth: int) -> dict[str, Any]:
    """A mapping in a mapping in a mapping."""
    return {"a": nested(depth - 1)} if depth else {}


def replace_by_folder(path: Path) -> None:
    """Put a folder in the place of a file."""
    path.unlink()
    path.mkdir()


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a byte": (flip, r"weights\.safetensors was changed"),
    "shorter": (lambda f: os.truncate(f / "state.pt", 9), r"state\.pt has 9 bytes"),
    "gone": (lambda f: (f / "state.pt").unlink(), r"state\.pt is missing"),
    "a link": (link, "outside the checkpoint: 'weights"),
    "parent": (lambda f: list_file(f, "../secret"), r"outside the checkpoint: '\.\./secret"),
    "absolute": (lambda f: list_file(f, "/etc/passwd"), "outside the checkpoint: '/etc/passwd"),
    "not sealed": (lambda f: edit(f, files={}), "is not sealed"),
    "one unlisted": (
        lambda f: edit(f, files={"state.pt": {"sha256": "", "size_bytes": 0}}),
        r"lists no weights\.safetensors",
    ),
    "schema": (lambda f: edit(f, schema_version=2), "schema_version is 2"),
    "config": (lambda f: edit(f, config={"lr": 9}), "config does not match config_sha256"),
    "a type": (lambda f: edit(f, step="20"), r"step"),
    "a metric": (lambda f: edit(f, metrics={"loss": "low"}), "low"),
    "a list": (lambda f: (f / "metadata.json").write_text("[]"), "no JSON object"),
    "nested": (lambda f: (f / "metadata.json").write_text("[" * 90_000), "recursion"),
    "nested less": (lambda f: edit(f, config=nested(300)), "config does not match config_sha256"),
    "not text": (lambda f: (f / "metadata.json").write_bytes(b"\xff{}"), "cannot read"),
    "half a character": (lambda f: edit(f, config={"\ud800": 1}), "surrogates"),
    "a folder": (
        lambda f: replace_by_folder(f / "metadata.json"),
        r"metadata\.json: it is no file",
    ),
    "a number": (lambda f: edit(f, metrics={"loss": 0.25}), r"metadata\.json was changed"),
    "a later key": (lambda f: edit(f, colour="red"), r"metadata\.json was changed"),
    "the best": (lambda f: edit(f, best={"loss": 3}), "best|Expected"),
    "a name": (lambda f: list_file(f, "a\0b"), "outside the checkpoint"),
    "a long name": (lambda f: list_file(f, "n" * 5000), "outside the checkpoint"),
    "no name": (lambda f: list_file(f, ""), "is missing"),
    "no JSON": (lambda f: (f / "metadata.json").write_text("{"), "cannot read"),
    "no metadata": (lambda f: (f / "metadata.json").unlink(), "cannot read"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_not_loaded(folder: Path, damage: str) -> None:
    """Verifying and loading refuse it in one line that says what is wrong where."""
    act, message = DAMAGES[damage]
    act(folder)
    with pytest.raises(CheckpointError, match=message) as refused:
        checkpoints.verify(folder)
    assert str(folder) in str(refused.value)
    assert "\n" not in str(refused.value)
    with pytest.raises(CheckpointError, match=message):
        checkpoints.load_weights(folder, Network())


def test_a_copy_of_the_weights_alone_can_be_verified(folder: Path) -> None:
    """With `only`, files that were not copied are not missed, and those that were are checked."""
    (folder / "state.pt").unlink()
    only = ("weights.safetensors",)
    checkpoints.load_weights(folder, Network(), only=only)
    flip(folder)
    with pytest.raises(CheckpointError, match="was changed"):
        checkpoints.load_weights(folder, Network(), only=only)


def test_a_state_that_would_execute_code_is_not_loaded(tmp_path: Path) -> None:
    """Even in a checkpoint that is whole, a pickle that calls a function is refused."""
    path = checkpoints.write_checkpoint(tmp_path / "runs" / "c", Network(), metadata=ABOUT)

    class Harmful:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "executed",)

    (path / "state.pt").write_bytes(pickle.dumps(Harmful(), protocol=2))
    edit(path, written={})
    checkpoints.seal(path)
    with pytest.raises(CheckpointError, match=r"state\.pt"):
        checkpoints.load_state(path)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("name", ["weights.safetensors", "state.pt"])
@pytest.mark.parametrize("rubbish", [b"", b"\0" * 64, b"PK\x03\x04rest", b"\x80\x02}q\0.", b"{}"])
def test_rubbish_that_was_sealed_is_one_error(folder: Path, name: str, rubbish: bytes) -> None:
    """Files that hold what they were sealed with, but no weights and no state, are refused."""
    (folder / name).write_bytes(rubbish)
    edit(folder, files={})
    checkpoints.seal(folder)
    load = {
        "state.pt": checkpoints.load_state,
        "weights.safetensors": lambda folder: checkpoints.load_weights(folder, Network()),
    }[name]
    with pytest.raises(CheckpointError, match=rf"cannot read .*{name}") as refused:
        load(folder)
    assert "\n" not in str(refused.value)


def test_aliases_that_lead_nowhere_are_one_error(folder: Path) -> None:
    """Weights whose tied names are rubbish are refused."""
    path = folder / "weights.safetensors"
    for aliases in ("[]", "{", '{"a": "b"}', '{"a": []}'):
        save_file({"x": torch.zeros(1)}, path, metadata={"aliases": aliases})
        with pytest.raises(CheckpointError, match="cannot read"):
            tensors.read_weights(path)


@pytest.mark.parametrize("part", ["python", "numpy", "torch", "cuda"])
def test_generators_that_are_none_are_one_error(part: str, folder: Path) -> None:
    """A training state whose random generators are rubbish is refused."""
    rng = checkpoints.load_state(folder)["rng"]
    for rubbish in (3, [], ["a", "b", "c"], torch.zeros(3)):
        if part == "cuda" and not torch.cuda.is_available() and isinstance(rubbish, list):
            continue
        with contextlib.suppress(CheckpointError):
            checkpoints.restore_rng({**rng, part: rubbish})
    with pytest.raises(CheckpointError, match="cannot be put back"):
        checkpoints.restore_rng({key: value for key, value in rng.items() if key != part})


def test_weights_of_another_model_are_refused_with_the_differences(folder: Path) -> None:
    """Missing and unknown names and both shapes stand in one error; the model is unchanged."""
    model = Network(words=7)
    model.bias = nn.Parameter(torch.zeros(1))
    del model.mixing
    before = model.head.weight.clone()
    with pytest.raises(CheckpointError) as refused:
        checkpoints.load_weights(folder, model)
    for part in (
        *("bias is missing", "mixing is not in the model"),
        "embedding.weight is (11, 64), the model's is (7, 64)",
    ):
        assert part in str(refused.value)
    assert torch.equal(model.head.weight, before)


def test_numbers_that_json_lacks_survive(tmp_path: Path) -> None:
    """NaN and infinities are strings in metadata.json, and floats again when read."""
    metrics = {"a": float("nan"), "b": float("inf"), "c": float("-inf"), "d": 0.1}
    path = checkpoints.write_checkpoint(
        tmp_path / "runs" / "c", nn.Linear(1, 1), metadata=replace(ABOUT, metrics=metrics)
    )
    content = json.loads((path / "metadata.json").read_text(), parse_constant=pytest.fail)
    assert content["metrics"] == {"a": "nan", "b": "inf", "c": "-inf", "d": 0.1}
    read = checkpoints.read_metadata(path).metrics
    assert str(read) == str(metrics)


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text() | st.floats(width=32),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(
    config=st.dictionaries(st.text(), values, max_size=4),
    metrics=st.dictionaries(st.text(), st.floats(), max_size=4),
)
def test_metadata_is_read_as_it_was_written(
    config: dict[str, Any], metrics: dict[str, float]
) -> None:
    """Through JSON and back, the dictionaries and the hash of the config are the same."""
    files = {"state.pt": StoredFile(sha256="ab", size_bytes=3)}
    written = replace(ABOUT, config=config, metrics=metrics, files=files).to_dict()
    read = CheckpointMetadata.from_dict(json.loads(json.dumps(written, allow_nan=False)))
    assert read.to_dict() == written
    assert str(read.metrics) == str(metrics)


def test_equal_configurations_have_equal_hashes() -> None:
    """Order and tuples do not matter to config_sha256; a value does."""
    first = replace(ABOUT, config={"lr": 0.1, "sizes": (1, 2)})
    second = replace(ABOUT, config={"sizes": [1, 2], "lr": 0.1})
    assert first.config_sha256 == second.config_sha256
    assert first.config_sha256 != replace(ABOUT, config={"lr": 0.2}).config_sha256


def test_a_config_that_json_cannot_hold_is_refused_by_name(tmp_path: Path) -> None:
    """The error names the value that is no JSON value, before anything is written."""
    about = replace(ABOUT, config={"optimizer": {"betas": [0.9, Path("x")]}})
    with pytest.raises(CheckpointError, match=r"config\.optimizer\.betas\[1\]"):
        checkpoints.write_checkpoint(tmp_path / "runs" / "c", nn.Linear(1, 1), metadata=about)
    assert not (tmp_path / "runs").exists()


def test_fields_of_a_later_release_are_passed_over() -> None:
    """A key that is not known does not keep a checkpoint from being read."""
    assert CheckpointMetadata.from_dict({**ABOUT.to_dict(), "colour": "red"}) == ABOUT
