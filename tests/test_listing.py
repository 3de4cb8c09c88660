"""Facts about `opusclip_mlops.listing`: each folder is listed once, and nothing vanishes."""

import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from mlflow.entities import FileInfo
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

from opusclip_mlops.listing import content, download, is_listed, list_files


def make(root: Path, *paths: str) -> None:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "artifacts").mkdir()
    return tmp_path / "artifacts"


def names(left_out: list[Any]) -> list[str]:
    return sorted(one.name for one in left_out)


class Counted(LocalArtifactRepository):
    """MLflow's own, which counts what is asked of it."""

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        self.asked: Counter[str | None] = Counter()
        self.downloads = 0

    def list_artifacts(self, path: str | None = None) -> list[FileInfo]:
        self.asked[path] += 1
        return super().list_artifacts(path)

    def download_artifacts(self, artifact_path: str, dst_path: str | None = None) -> str:
        self.downloads += 1
        return str(super().download_artifacts(artifact_path, dst_path))


def test_each_folder_is_listed_once_and_nothing_downloaded(root: Path) -> None:
    """Five thousand files in twenty folders cost twenty-one listings."""
    make(root, *(f"{at % 20}/{at}.txt" for at in range(5000)))
    repository = Counted(str(root))
    sizes, left_out = list_files(repository)
    assert len(sizes) == 5000
    assert sizes["7/7.txt"] == 7
    assert left_out == []
    assert set(repository.asked.values()) == {1}
    assert len(repository.asked) == 21
    assert repository.downloads == 0


def test_what_cannot_be_listed_for_good_is_named(root: Path) -> None:
    """A link that leads out of the artifacts, an empty folder; all else is listed."""
    make(root, "kept/file.txt")
    (root / "empty").mkdir()
    (root / "etc").symlink_to("/etc")
    sizes, left_out = list_files(get_artifact_repository(str(root)))
    assert list(sizes) == ["kept/file.txt"]
    assert names(left_out) == ["empty", "etc"]


def test_folders_in_a_ring_end(root: Path) -> None:
    """A link to a folder around it is not followed for ever."""
    make(root, "a/file.txt")
    (root / "a" / "ring").symlink_to(root / "a")
    sizes, _ = list_files(get_artifact_repository(str(root)))
    assert "a/file.txt" in sizes
    assert len(sizes) < 100


class Lying(LocalArtifactRepository):
    """A server whose listing names files where they cannot be."""

    def list_artifacts(self, path: str | None = None) -> list[FileInfo]:
        names = ["../out.txt", "/etc/passwd", "a/../../b", "", "other/file.txt", "x\0y"]
        lies = [FileInfo(name, at % 2 == 0, 1) for at, name in enumerate(names)]
        return [*lies, *super().list_artifacts(path)]


def test_a_name_that_leads_elsewhere_is_left_out(root: Path) -> None:
    """Whatever a server lists, only what lies in the listed folder is believed."""
    make(root, "kept.txt")
    sizes, left_out = list_files(Lying(str(root)))
    assert list(sizes) == ["kept.txt"]
    assert len(left_out) == 6


def test_a_place_with_too_many_files_is_given_up(root: Path) -> None:
    """Where a limit is given, as for what a registered version calls its source."""
    make(root, *(f"{at}.txt" for at in range(20)))
    sizes, left_out = list_files(get_artifact_repository(str(root)), at_most=10)
    assert sizes == {}
    assert "more than 10" in left_out[0].reason


def test_a_file_is_fetched_whole_or_not_at_all(root: Path, tmp_path: Path) -> None:
    """With its permissions left behind, and nothing beside it."""
    make(root, "a/file.txt")
    os.chmod(root / "a" / "file.txt", 0o400)
    repository = get_artifact_repository(str(root))
    target = tmp_path / "target"
    target.mkdir()
    download(repository, "a/file.txt", target / "mine")
    assert [path.name for path in target.iterdir()] == ["mine"]
    assert os.access(target / "mine", os.W_OK)
    with pytest.raises(MlflowException, match="gone"):
        download(repository, "a/gone.txt", target / "other")
    assert [path.name for path in target.iterdir()] == ["mine"]
    assert content(repository, "a/file.txt") == b"a/file.txt"
    assert is_listed(repository, "a/file.txt")
    assert not is_listed(repository, "a/gone.txt")
    assert not is_listed(repository, "b/file.txt")
