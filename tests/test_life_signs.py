"""Machines of a run show one another that they live: by a file each, and by no clock."""

import time
from pathlib import Path

import pytest
from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from opusclip_mlops.layout import RANKS, is_relayed
from opusclip_mlops.life_signs import OWNER, Listening, Pauses, Showing, last_sign
from opusclip_mlops.listing import list_files


@pytest.fixture
def repository(tmp_path: Path) -> ArtifactRepository:
    """Where a run's artifacts lie, on a disk."""
    (tmp_path / "artifacts").mkdir()
    return get_artifact_repository((tmp_path / "artifacts").as_uri())


def test_a_new_sign_is_heard_once(tmp_path: Path, repository: ArtifactRepository) -> None:
    """The first that is seen may be old: only another one than before tells of life since."""
    showing = Showing(tmp_path, OWNER, interval_s=0.0)
    listening = Listening(tmp_path, OWNER)
    assert not listening.look(repository, every_s=0.0)
    showing.renew(repository)
    assert not listening.look(repository, every_s=0.0)
    began_s = listening.heard_s
    for news in (1, 2):
        showing.renew(repository)
        assert listening.look(repository, every_s=0.0)
        assert not listening.look(repository, every_s=0.0)
        assert listening.news == news
    assert listening.heard_s > began_s
    assert listening.last
    assert not listening.last.is_over
    assert showing.take_leave(repository)
    assert listening.look(repository, every_s=0.0)
    assert listening.last.is_over


def test_there_is_one_file_however_often(tmp_path: Path, repository: ArtifactRepository) -> None:
    """It is told from all other files of a run, and is given no more often than is due."""
    showing = Showing(tmp_path, OWNER, interval_s=0.0)
    for _ in range(5):
        showing.renew(repository)
    (path,) = list_files(repository)[0]
    assert path.startswith(f"{RANKS}/{OWNER}/")
    assert is_relayed(path)
    patient = Showing(tmp_path, "node-1-b-01234567", interval_s=3600.0)
    patient.renew(repository)
    first = last_sign(repository, "node-1-b-01234567", tmp_path)
    patient.renew(repository)
    assert first
    assert last_sign(repository, "node-1-b-01234567", tmp_path) == first


@pytest.mark.parametrize("content", [b"", b"\xff", b"[]", b"{" + b" " * 10_000 + b"}"])
def test_what_is_no_sign_is_none(
    tmp_path: Path, repository: ArtifactRepository, content: bytes
) -> None:
    """It may be in the midst of being written, or anybody's who can write the run's files."""
    place = tmp_path / "artifacts" / RANKS / OWNER
    place.mkdir(parents=True)
    (place / "alive.bin").write_bytes(content)
    assert last_sign(repository, OWNER, tmp_path) is None


def test_a_sign_that_cannot_be_given_is_no_fault(
    tmp_path: Path, repository: ArtifactRepository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that lets nothing be written over takes what is logged all the same."""

    def refuse(*_: object) -> None:
        raise OSError(13, "written once")

    monkeypatch.setattr(type(repository), "log_artifact", refuse)
    showing = Showing(tmp_path, OWNER, interval_s=0.0)
    showing.renew(repository)
    assert not showing.take_leave(repository)
    assert last_sign(repository, OWNER, tmp_path) is None


def test_a_last_sign_is_tried_until_it_is_given(
    tmp_path: Path, repository: ArtifactRepository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not given twice, but to who asks again, or once this machine had begun again."""

    def refuse(*_: object) -> None:
        raise ConnectionError("away")

    showing = Showing(tmp_path, OWNER, interval_s=0.0)
    showing.renew(repository)
    with monkeypatch.context() as away:
        away.setattr(type(repository), "log_artifact", refuse)
        assert not showing.take_leave(repository)
        assert not showing.take_leave(repository)
    seen = []
    for is_again in (False, False, True):
        assert showing.take_leave(repository, again=is_again)
        seen.append(last_sign(repository, OWNER, tmp_path))
    assert all(one and one.is_over for one in seen)
    assert seen[0] == seen[1] != seen[2]
    showing.renew(repository)
    assert not (sign := last_sign(repository, OWNER, tmp_path)) or not sign.is_over
    assert showing.take_leave(repository)
    assert (sign := last_sign(repository, OWNER, tmp_path))
    assert sign.is_over


def test_who_begins_again_after_its_leave_shows_it_at_once(
    tmp_path: Path, repository: ArtifactRepository
) -> None:
    """The leave would be taken for that of the next attempt, if that is a short one."""
    showing = Showing(tmp_path, OWNER, interval_s=3600.0)
    showing.renew(repository)
    assert showing.take_leave(repository)
    showing.renew(repository)
    assert (sign := last_sign(repository, OWNER, tmp_path))
    assert not sign.is_over


def test_a_sign_is_as_large_as_the_one_before(
    tmp_path: Path, repository: ArtifactRepository
) -> None:
    """It is written over that, in its place, so a full disk has room for it."""
    showing = Showing(tmp_path, OWNER, interval_s=0.0)
    showing.renew(repository)
    before = (tmp_path / "alive.bin").stat()
    showing.take_leave(repository)
    after = (tmp_path / "alive.bin").stat()
    assert (after.st_ino, after.st_size) == (before.st_ino, before.st_size)


def test_a_pause_does_not_count_but_for_a_part_of_it() -> None:
    """So that rounds that all take long come to an end; a short one counts whole."""
    assert Pauses(3600.0).lost_s() == 0.0
    pauses = Pauses(0.01)
    time.sleep(0.02)
    assert 0.019 <= pauses.lost_s() < 3600.0
    pauses._most_s = 3600.0
    assert pauses.lost_s() == 0.0
