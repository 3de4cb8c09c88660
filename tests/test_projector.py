"""Embeddings lie beside the event files as TensorBoard's projector reads them."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
from google.protobuf import text_format
from PIL import Image as Picture
from tensorboard.plugins.projector.projector_config_pb2 import EmbeddingInfo, ProjectorConfig

from opusclip_mlops import projector
from opusclip_mlops.errors import RecordError
from opusclip_mlops.folder import RunFolder
from tests.insight_records import T0_MS, embedding


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    (tmp_path / "run" / "media").mkdir(parents=True)
    return RunFolder(tmp_path / "run")


@pytest.fixture
def target(tmp_path: Path) -> Path:
    (tmp_path / "events").mkdir()
    return tmp_path / "events"


def named(target: Path) -> list[EmbeddingInfo]:
    """The embeddings that the configuration names; every file it names is there."""
    config = text_format.Parse((target / projector.CONFIG).read_text("utf-8"), ProjectorConfig())
    for info in config.embeddings:
        for path in filter(None, (info.tensor_path, info.metadata_path, info.sprite.image_path)):
            assert (target / path).resolve().is_relative_to(target.resolve())
            assert (target / path).is_file()
    return list(config.embeddings)


def folders(target: Path) -> Iterator[str]:
    return (path.name for path in sorted((target / "projector").iterdir()))


def test_vectors_labels_and_pictures_are_files(folder: RunFolder, target: Path) -> None:
    """Vectors are exact in 32 bits, every label is in its own line and column."""
    projector.write(target, embedding(folder), folder.media)
    [info] = named(target)
    assert (info.tensor_name, list(info.tensor_shape)) == ("clips step 3", [5, 3])
    lines = (target / info.tensor_path).read_text().splitlines()
    found = np.array([line.split("\t") for line in lines], dtype=np.float32)
    assert np.array_equal(found, np.arange(15, dtype=np.float32).reshape(5, 3) / 7)
    assert (target / info.metadata_path).read_text("utf-8").splitlines() == [
        "kind\td1", "a cat\t1", "-\t-", "dög\t2", "=x\t3", "<b>\t4",
    ]  # fmt: skip
    assert list(info.sprite.single_image_dim) == [8, 6]
    assert Picture.open(target / info.sprite.image_path).size == (24, 12)


def test_labels_of_one_column_have_no_heading(folder: RunFolder, target: Path) -> None:
    """TensorBoard takes the first line of such a file for a label."""
    record = embedding(folder)
    content = {**record.content, "labels": [[name] for name in "abcde"], "columns": ["kind"]}
    projector.write(target, msgspec.structs.replace(record, content=content), folder.media)
    [info] = named(target)
    assert (target / info.metadata_path).read_text().splitlines() == list("abcde")


def test_vectors_alone_are_enough(folder: RunFolder, target: Path) -> None:
    """Then there is neither a file of labels nor one of pictures."""
    record = embedding(folder)
    content = {**record.content, "labels": [], "columns": [], "sprite": None}
    projector.write(target, msgspec.structs.replace(record, content=content), folder.media)
    [info] = named(target)
    assert (info.metadata_path, info.HasField("sprite")) == ("", False)


def test_a_large_embedding_is_cut(
    folder: RunFolder, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To so many numbers, and the labels with it."""
    monkeypatch.setattr(projector, "MOST_NUMBERS", 7)
    projector.write(target, embedding(folder), folder.media)
    [info] = named(target)
    assert list(info.tensor_shape) == [2, 3]
    assert len((target / info.tensor_path).read_text().splitlines()) == 2
    assert len((target / info.metadata_path).read_text().splitlines()) == 3


def test_embeddings_of_all_keys_and_steps_share_a_configuration(
    folder: RunFolder, target: Path
) -> None:
    """Each under a name of its own, also two of one key and step."""
    records = [
        embedding(folder, 20), embedding(folder, 3), embedding(folder, 3, start=1),
        embedding(folder, 3, key="../a b/ü"),
    ]  # fmt: skip
    for record in records:
        projector.write(target, record, folder.media)
    names = [info.tensor_name for info in named(target)]
    assert (names[0], names[-1]) == ("../a b/ü step 3", "clips step 20")
    assert len({*names}) == 4
    assert projector.embeddings_in(target) == {
        ("clips", 20, T0_MS + 20): 1, ("clips", 3, T0_MS + 3): 2, ("../a b/ü", 3, T0_MS + 3): 1,
    }  # fmt: skip


def test_the_same_embedding_again_is_one(folder: RunFolder, target: Path) -> None:
    """It is given again after a crash."""
    first, again = (projector.write(target, embedding(folder), folder.media) for _ in range(2))
    assert first == again
    assert list(folders(target)) == [first]
    assert len(named(target)) == 1


def test_what_a_process_was_killed_in_is_removed_and_the_rest_named(
    folder: RunFolder, target: Path
) -> None:
    """Half a folder is none; a whole one that nobody named yet is."""
    name = projector.write(target, embedding(folder), folder.media)
    half = target / "projector" / ".new-99"
    shutil.copytree(target / "projector" / name, half)
    (target / projector.CONFIG).rename(target / f".{projector.CONFIG}.99")
    assert projector.embeddings_in(target) == {("clips", 3, T0_MS + 3): 1}
    projector.heal(target)
    assert [path.name for path in target.iterdir() if path.name.startswith(".")] == []
    assert list(folders(target)) == [name]
    assert len(named(target)) == 1


def test_only_some_are_kept(folder: RunFolder, target: Path) -> None:
    """And where none is, no configuration either."""
    names = [projector.write(target, embedding(folder, n), folder.media) for n in (1, 2)]
    projector.keep_only(target, {names[1]})
    assert [info.tensor_name for info in named(target)] == ["clips step 2"]
    projector.keep_only(target, set())
    assert not (target / projector.CONFIG).exists()
    projector.keep_only(target / "nothing", set())
    projector.heal(target / "nothing")


def test_a_file_among_the_embeddings_is_left_alone(folder: RunFolder, target: Path) -> None:
    """Such as a file system or a file manager leaves there."""
    name = projector.write(target, embedding(folder), folder.media)
    stray, link = target / "projector" / ".DS_Store", target / "projector" / "link"
    stray.write_text("x")
    link.symlink_to(folder.media)
    projector.heal(target)
    projector.keep_only(target, set())
    assert (stray.read_text(), link.is_symlink()) == ("x", True)
    assert not (target / "projector" / name).exists()
    assert any(folder.media.iterdir())


def test_what_cannot_be_read_leaves_nothing(folder: RunFolder, target: Path) -> None:
    """Neither a folder nor a configuration."""
    record = embedding(folder)
    (folder.media / record.files["vectors.npy"]).write_bytes(b"no vectors")
    with pytest.raises(RecordError):
        projector.write(target, record, folder.media)
    assert list(target.iterdir()) == []


def test_a_full_disk_leaves_nothing_half(
    folder: RunFolder, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was written before it ended is not named, and is gone once it is written again."""

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "copyfile", full)
        with pytest.raises(OSError, match="No space"):
            projector.write(target, embedding(folder), folder.media)
    assert projector.embeddings_in(target) == {}
    assert not (target / projector.CONFIG).exists()
    name = projector.write(target, embedding(folder), folder.media)
    assert list(folders(target)) == [name]


def test_an_embedding_that_was_broken_later_is_written_anew(
    folder: RunFolder, target: Path
) -> None:
    """Until then it is not named, and the others are."""
    broken, whole = (projector.write(target, embedding(folder, n), folder.media) for n in (1, 2))
    for again in (True, False):
        (target / "projector" / broken / "about.json").write_bytes(b"{")
        if again:
            projector.write(target, embedding(folder, 1), folder.media)
            assert len(named(target)) == 2
    projector.heal(target)
    assert [info.tensor_name for info in named(target)] == ["clips step 2"]
    assert list(folders(target)) == [whole]
