"""Facts about the end of one of many ranks: who waits for delivery, and who says how far it is."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from opusclip_mlops import joining
from opusclip_mlops.folder import CONTROL, Manifest, RunFolder
from opusclip_mlops.parting import speaks_for_all
from opusclip_mlops.ranks import Place
from opusclip_mlops.records import RunEnded, RunStarted, Tags
from opusclip_mlops.run_status import status_of
from opusclip_mlops.session import Session
from opusclip_mlops.sessions import process_started_s
from tests.journeys import append
from tests.test_session import config, records, undelivered


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunFolder]:
    """A run of two ranks: this process is the owner, and the other one lives."""
    monkeypatch.setattr(joining, "_joined_here", [])
    numbers = {"RANK": "0", "WORLD_SIZE": "2", joining.PROCESS_VARIABLE: str(os.getpid())}
    for name, value in numbers.items():
        monkeypatch.setenv(name, value)
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with undelivered(tmp_path / "journal") as found:
        yield found


def other_rank(folder: RunFolder) -> None:
    """Another rank on this machine, which lives as long as who started these tests."""
    pid = os.getppid()
    at = (socket.gethostname(), pid, process_started_s(pid), 1)
    append(folder, [RunStarted("other", *at, rank=1, world_size=2)], journal="other" + CONTROL)


def test_a_rank_that_fails_leaves_at_once(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its launcher ends the others once it is gone, and kills who waits; the owner says so.

    The last one, too: nothing can begin again before it is gone.
    """
    monkeypatch.setattr(Session, "_wait", lambda *_: pytest.fail("it waited"))
    failed, last = (Session(config(folder.path.parent), tags={}) for _ in range(2))
    other_rank(folder)
    failed.end("FAILED", "ValueError: a bad clip", traceback="at line 7")
    append(folder, [RunEnded("other", "KILLED", 1)], journal="other" + CONTROL)
    last.end("KILLED", "told to end")
    said = "what was logged is not waited for; the shipper goes on, its log is "
    for session in (failed, last):
        assert not session.wait_until_ended(wait_s=60)
        assert session.missing() == [f"{said}{folder.path / 'shipper.log'}"]
    tags = [one for one in records(folder) if isinstance(one, Tags)]
    assert not any("opusclip.traceback" in one.values for one in tags)
    ends = [one for one in records(folder) if isinstance(one, RunEnded) and one.traceback]
    assert [one.traceback.endswith(":\nat line 7") for one in ends] == [True]
    for session in (failed, last):
        session.release()


def test_a_rank_that_ends_well_waits_and_the_owner_alone_speaks(folder: RunFolder) -> None:
    """All of its own is to arrive, whoever else is there."""
    session = Session(config(folder.path.parent), tags={})
    other_rank(folder)
    session.end("FINISHED", "")
    assert not session.wait_until_ended(wait_s=0)
    assert session.missing()
    session.release()


def test_runs_of_single_ranks_are_told_apart(folder: RunFolder) -> None:
    """Each has the number of its rank as a tag; one run of all has none."""
    alone = Session(config(folder.path.parent, ranks="own"), tags={"team": "films"})
    joined = Session(config(folder.path.parent), tags={"team": "films"})
    starts = [one for one in records(folder) if isinstance(one, RunStarted)]
    tags = {one.session: one.tags for one in starts}
    assert tags[alone.name] == {"team": "films", "opusclip.rank": "0"}
    assert tags[joined.name] == {"team": "films"}
    assert [one.rank for one in status_of(folder).sessions] == [None, 0]
    for session in (alone, joined):
        session.end("FINISHED", "")
        session.release()


def test_an_owner_that_is_not_there_is_told(
    folder: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    """In one line, by the rank whose metrics make the run instead."""
    session = Session(config(folder.path.parent, metric_rank=7), tags={})
    told = capsys.readouterr().err
    assert told == "opusclip: there is no rank 7 among 2: the metrics are rank 0's\n"
    session.end("FINISHED", "")
    session.release()


@pytest.mark.parametrize(
    ("rank", "owns_run", "speaks"),
    [(0, True, True), (1, True, False), (2, False, True), (3, False, False)],
)
def test_one_process_of_a_machine_speaks(rank: int, owns_run: bool, speaks: bool) -> None:
    """The owner on its machine; on others the first."""
    manifest = Manifest(local_id="r", cwd="/", sinks=[], start_time_ms=1, owns_run=owns_run)
    place = Place(rank=rank, local_rank=rank % 2, world_size=4, node=rank // 2, nodes=2)
    assert speaks_for_all(manifest, place, is_owner=rank == 0) is speaks


def test_a_process_that_is_alone_speaks() -> None:
    """As ever."""
    manifest = Manifest(local_id="r", cwd="/", sinks=[], start_time_ms=1)
    assert speaks_for_all(manifest, None, is_owner=True)
