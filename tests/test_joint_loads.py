"""Loading by many ranks: all have the same checkpoint, and a machine fetches it once."""

import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from torch import nn
from torch.distributed.fsdp import fully_shard

from opusclip_mlops import checkpoints, fetching
from opusclip_mlops.checkpoints import CheckpointMetadata, checkpoint_name
from opusclip_mlops.errors import CheckpointError
from opusclip_mlops.layout import LAST_TAG
from opusclip_mlops.loading import LoadedCheckpoint, load_checkpoint
from tests.journeys import store
from tests.rank_processes import run_ranks


def save(folder: Path, step: int, value: float) -> Path:
    """A checkpoint of one process, its weights all of one value."""
    model = nn.Linear(3, 5)
    for parameter in model.parameters():
        nn.init.constant_(parameter, value)
    about = CheckpointMetadata(
        name=checkpoint_name(0, step), step=step, epoch=0, created_ms=step + 1
    )
    place = checkpoints.write_checkpoint(folder / about.name, model, metadata=about)
    checkpoints.seal(place)
    return place


def load(source: str | Path, **options: Any) -> tuple[LoadedCheckpoint, float]:
    """Load the last one into a model that ranks share; the value of its weights."""
    model = nn.Linear(3, 5)
    fully_shard(model)
    loaded = load_checkpoint(source, which="last", model=model, **options)
    weights: Any = model.weight
    [value] = set(weights.full_tensor().flatten().tolist())
    return loaded, value


def load_of_own_disk(rank: int, folder: Path) -> None:
    """Each rank has a folder of its own, and the second knows of a newer checkpoint."""
    loaded, value = load(folder / str(rank))
    assert (loaded.metadata.step, value) == (1, 1.0)
    assert loaded.folder == folder / str(rank) / checkpoint_name(0, 1)


def fail_of_own_disk(rank: int, folder: Path) -> None:
    """What the second has by that name is another one."""
    with pytest.raises(CheckpointError, match="rank 1 has found another checkpoint epoch_0000-"):
        load(folder / str(rank))


def test_all_load_what_the_first_has_chosen(tmp_path: Path) -> None:
    """Whatever is the last on another's disk; and where that is not the same nobody loads any."""
    save(tmp_path / "0", 1, 1.0)
    shutil.copytree(tmp_path / "0", tmp_path / "1")
    save(tmp_path / "1", 2, 2.0)
    run_ranks(2, load_of_own_disk, tmp_path)
    shutil.rmtree(tmp_path / "1")
    save(tmp_path / "1", 1, 3.0)
    run_ranks(2, fail_of_own_disk, tmp_path)


def fetch_and_load(rank: int, folder: Path, uri: str, run_id: str) -> None:
    """The run's files are as if on another machine; who fetches them notes it."""
    fetch = fetching.fetch_from_run

    def fetched(run: str, which: Any, into: Path | None, **uris: Any) -> Path | None:
        if into is None:
            return None
        with (folder / "fetched").open("a") as notes:
            notes.write(f"{rank} {into.parent}\n")
        return fetch(run, which, into, **uris)

    tempfile.tempdir = str(folder / "temporary")
    fetching.fetch_from_run = fetched  # type: ignore[assignment]
    loaded, value = load(run_id, tracking_uri=uri)
    assert (loaded.folder, value) == (None, 4.0)
    loaded, value = load(run_id, tracking_uri=uri, into=folder / "kept")
    assert (loaded.folder, value) == (folder / "kept" / checkpoint_name(0, 7), 4.0)
    with pytest.raises(CheckpointError, match="cannot find run 'ffff"):
        load("f" * 32, tracking_uri=uri)


def test_a_machine_fetches_once(tmp_path: Path) -> None:
    """The first rank does for all of its machine, and removes it; a fault is told to all."""
    place = save(tmp_path / "saved", 7, 4.0)
    uri = store(tmp_path)
    client = MlflowClient(uri)
    run_id = client.create_run("0").info.run_id
    client.log_artifacts(run_id, str(place), f"checkpoints/{place.name}")
    client.set_tag(run_id, LAST_TAG, place.name)
    (tmp_path / "temporary").mkdir()
    run_ranks(2, fetch_and_load, tmp_path, uri, run_id)
    notes = (tmp_path / "fetched").read_text().splitlines()
    assert notes == [f"0 {tmp_path / 'temporary'}", f"0 {tmp_path / 'kept'}"]
    assert [*(tmp_path / "temporary").glob(".opusclip-*")] == []
    assert [path.name for path in (tmp_path / "kept").iterdir()] == [place.name]
