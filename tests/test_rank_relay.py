"""What a machine sends of its ranks arrives at the run's owner: all of it, once, as it was."""

import random
import socket
import subprocess
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import pytest
from mlflow import MlflowClient
from mlflow.entities import FileInfo
from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from opusclip_mlops import journal, rank_relay
from opusclip_mlops.accounting import RANK, SHED, SKIPPED, Account, Totals, totals
from opusclip_mlops.folder import Manifest, RunFolder
from opusclip_mlops.layout import LOCAL_ID_TAG, RANKS, is_relayed
from opusclip_mlops.listing import list_files
from opusclip_mlops.rank_relay import Inbox, Outbox, Sending, Taken, begun, owners_run, said
from opusclip_mlops.records import (
    Metrics,
    Params,
    RankMetrics,
    Record,
    RunEnded,
    RunStarted,
    Tags,
    Text,
    Video,
)
from opusclip_mlops.sessions import process_started_s, sessions
from opusclip_mlops.stopping import ask_to_stop
from opusclip_mlops.watching import Watch
from tests.journeys import LOCAL_ID, store
from tests.servers import mlflow_server

NODE = "node-1-host-0123abcd"
START = RunStarted("s2", "host-b", 77, 1.0, 1_700_000_000_000, rank=1, world_size=2)
END = RunEnded("s2", "FAILED", 1_700_000_100_000, "it failed")


def merged(step: int) -> RankMetrics:
    """A log call of rank 1."""
    return RankMetrics(1_700_000_000_000 + step, step, {"loss": step / 3}, "mean", 1, 2)


def folder_at(path: Path, **fields: Any) -> RunFolder:
    """A run's folder on some machine."""
    folder = RunFolder(path / LOCAL_ID)
    manifest = Manifest(
        local_id=LOCAL_ID, cwd=str(path), sinks=["mlflow", "relay"], start_time_ms=1, **fields
    )
    folder.create(manifest)
    return folder


def place(path: Path) -> ArtifactRepository:
    """Where a run's artifacts lie, on a disk."""
    path.mkdir(exist_ok=True)
    return get_artifact_repository(path.as_uri())


def outbox(folder: RunFolder, **fields: Any) -> Outbox:
    """What a machine has to send."""
    return Outbox(folder, Sending(node=NODE, **fields))


def received(folder: RunFolder) -> list[Record]:
    """What came from other machines, as each sink reads it."""
    found: list[Record] = []
    for path in folder.segments():
        items = list(journal.read(path, ended=True))
        assert all(isinstance(one, journal.Entry) for one in items)
        found += [one.record for one in items if isinstance(one, journal.Entry)]
    return found


def sent(box: Outbox, repository: ArtifactRepository) -> None:
    """Close the file that is being filled, and send it."""
    box.close()
    box.send(repository)


def test_what_is_sent_arrives_as_it_was(tmp_path: Path) -> None:
    """Records keep their values and order; starts and ends are where sessions are read from."""
    repository = place(tmp_path / "artifacts")
    box = outbox(folder_at(tmp_path / "b", owns_run=False))
    tags, text = Tags({"a": "b"}), Text(5, 0, "opusclip/note", "{}")
    box.add([START, merged(1), tags])
    sent(box, repository)
    machine = Metrics(7, 3, {"system/host-b/cpu": 0.5})
    box.add([merged(2), text, machine])
    box.note_end(END)
    sent(box, repository)

    owner = folder_at(tmp_path / "a")
    inbox = Inbox(owner, repository, {})
    assert inbox.look(now_ms=9)
    assert received(owner) == [START, END, merged(1), tags, merged(2), text, machine]
    assert [(one.start, one.end, one.is_elsewhere) for one in sessions(owner)] == [
        (START, END, True)
    ]
    assert not inbox.look(now_ms=10)
    assert inbox.taken[NODE].number == 2
    assert inbox.taken[NODE].heard_ms == 9
    assert inbox.sessions_of(NODE) == {"s2"}
    assert box.sending.told == {"s2": said(END)}


def test_what_a_machine_left_out_is_summed_up_with_the_rest(tmp_path: Path) -> None:
    """Its own sum would stand in the run for that of all: the owner gets its account instead."""
    repository = place(tmp_path / "artifacts")
    there = folder_at(tmp_path / "b", owns_run=False)
    owner = folder_at(tmp_path / "a")
    for folder in (there, owner):
        account = Account(folder.path, "s")
        for kind in (SKIPPED, SHED, RANK):
            account.count(kind, ["loss", "lr"])
        account.count(SKIPPED, ["loss"])
        account.count_lost(3)
        account.close()
    box = outbox(there)
    box.add([START, *totals(there.path).records()])
    assert box.sending.size_bytes == len(journal.framed(START))
    box.note_end(END)
    box.note_end(END)
    sent(box, repository)
    for _ in range(2):
        # As often as it is taken.
        Inbox(owner, repository, {}).look(now_ms=1)
        assert totals(owner.path) == Totals(
            lost=6,
            skipped={"loss": 4, "lr": 2},
            shed={"loss": 2, "lr": 2},
            rank={"loss": 2, "lr": 2},
        )
    assert received(owner) == [START, END, END]


def test_only_what_the_owner_writes_for_others_is_carried(tmp_path: Path) -> None:
    """Parameters are the owner's, and what has files is sent as files by the machine itself."""
    box = outbox(folder_at(tmp_path, owns_run=False))
    assert not box.add([Params({"lr": "1"}), Video(1, 1, "clip", "file.npz", 8.0)])
    assert box.sending.size_bytes == 0


def test_files_lie_where_the_layout_says(tmp_path: Path) -> None:
    """They are told from all other files of a run, and only the owner of the user may read them."""
    repository = place(tmp_path / "artifacts")
    box = outbox(folder_at(tmp_path / "b", owns_run=False), number=256)
    box.add([merged(1)])
    parts = list((box._path).glob("*"))
    assert [path.stat().st_mode & 0o777 for path in parts] == [0o600]
    sent(box, repository)
    (path,) = list_files(repository)[0]
    assert path.startswith(f"{RANKS}/{NODE}/0001/000256-")
    assert is_relayed(path)
    box.forget_sent()
    assert list(box._path.glob("*")) == []


def test_a_sender_that_dies_anywhere_sends_each_record_once(tmp_path: Path) -> None:
    """It goes on from what was kept last: the same file has the same content and name again."""
    luck = random.Random(3)
    repository = place(tmp_path / "artifacts")
    folder = folder_at(tmp_path / "b", owns_run=False)
    kept = Sending(node=NODE)
    step = 0
    while step < 200:
        box = Outbox(folder, kept)
        box.forget_sent()
        if box.sending.is_closed:
            box.send(repository)
        box.add([merged(step), merged(step + 1)])
        if luck.random() < 0.3:
            box.close()
        if luck.random() < 0.6:
            # Else it has died before this was kept, and is given the same batch again.
            kept, step = box.sending, step + 2
    box = Outbox(folder, kept)
    sent(box, repository)

    owner = folder_at(tmp_path / "a")
    inbox = Inbox(owner, repository, {})
    while inbox.look(now_ms=1):
        pass
    assert received(owner) == [merged(step) for step in range(200)]


def test_an_owner_that_dies_anywhere_has_each_record_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was written and not kept is written again at the same place."""
    monkeypatch.setattr(rank_relay, "MOST_FILES", 2)
    monkeypatch.setattr(rank_relay, "BLOCK_FILES", 5)
    repository = place(tmp_path / "artifacts")
    box = outbox(folder_at(tmp_path / "b", owns_run=False))
    box.add([START])
    for step in range(24):
        box.add([merged(step)])
        sent(box, repository)
    box.note_end(END)
    sent(box, repository)

    luck = random.Random(5)
    owner = folder_at(tmp_path / "a")
    kept: dict[str, Any] = {}
    while kept.get(NODE, {"number": 0})["number"] < 25:
        inbox = Inbox(owner, repository, msgspec.convert(kept, dict[str, Taken]))
        inbox.look(now_ms=1)
        assert 0 < inbox.taken[NODE].number - kept.get(NODE, {"number": 0})["number"] <= 3
        if luck.random() < 0.5:
            kept = msgspec.to_builtins(inbox.taken)
    assert received(owner) == [START, END, *(merged(step) for step in range(24))]


def test_a_file_that_is_not_whole_is_waited_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A store may list what is still being written: nothing of it, or behind it, is taken."""
    repository = place(tmp_path / "artifacts")
    box = outbox(folder_at(tmp_path / "b", owns_run=False))
    for step in range(3):
        box.add([merged(step)])
        sent(box, repository)
    (first, second, _) = sorted((tmp_path / "artifacts").rglob("*.bin"))
    whole = second.read_bytes()
    second.write_bytes(whole[:-3])

    owner = folder_at(tmp_path / "a")
    inbox = Inbox(owner, repository, {})
    assert inbox.look(now_ms=1)
    assert not inbox.look(now_ms=1)
    assert received(owner) == [merged(0)]
    assert "not whole" in inbox.unreadable[NODE]
    assert capsys.readouterr().out.count("not whole") == 1
    second.write_bytes(whole)
    assert inbox.look(now_ms=1)
    assert inbox.unreadable == {}
    assert received(owner) == [merged(0), merged(1), merged(2)]
    assert first.exists()


@pytest.mark.parametrize(
    "bad",
    [Params({"lr": "1"}), RunStarted("../../s", "h", 1, 1.0, 1), RunEnded("a/b", "FINISHED", 1)],
    ids=["kind", "start", "end"],
)
def test_what_no_machine_sends_is_left(tmp_path: Path, bad: Record) -> None:
    """Who can write a run's files can neither set its parameters nor name files of this machine."""
    repository = place(tmp_path / "artifacts")
    box = outbox(folder_at(tmp_path / "b", owns_run=False))
    content = journal.framed(merged(0)) + journal.framed(bad)
    rank_relay._put(box._file(), content, at_bytes=0)
    box.sending = msgspec.structs.replace(box.sending, size_bytes=len(content))
    sent(box, repository)
    owner = folder_at(tmp_path / "a")
    inbox = Inbox(owner, repository, {})
    assert not inbox.look(now_ms=1)
    assert received(owner) == []
    assert "no machine sends" in inbox.unreadable[NODE]


def test_no_name_of_the_server_leaves_the_folder(tmp_path: Path) -> None:
    """A listing may hold anything: names that are none of ours are passed over."""

    class Hostile(ArtifactRepository):  # type: ignore[misc]
        asked: ClassVar[list[str]] = []

        def log_artifact(self, local_file: str, artifact_path: str | None = None) -> None:
            raise AssertionError

        def log_artifacts(self, local_dir: str, artifact_path: str | None = None) -> None:
            raise AssertionError

        def _download_file(self, remote_file_path: str, local_path: str) -> None:
            raise AssertionError

        def list_artifacts(self, path: str | None = None) -> list[FileInfo]:
            self.asked.append(str(path))
            names = ["..", "../../x", "node-1-../../x-0123abcd", "node-1-a/b-0123abcd", NODE]
            return [FileInfo(f"{path}/{name}", is_dir=True, file_size=None) for name in names]

    repository = Hostile(tmp_path.as_uri())
    assert not Inbox(folder_at(tmp_path / "a"), repository, {}).look(now_ms=1)
    assert repository.asked == [RANKS, f"{RANKS}/{NODE}/0000"]


def test_a_file_that_is_too_large_is_not_fetched(tmp_path: Path) -> None:
    """Who can write a run's files does not fill this machine's disk; it is told as unreadable."""
    name = "000000-00000000.bin"

    class Large(ArtifactRepository):  # type: ignore[misc]
        def log_artifact(self, local_file: str, artifact_path: str | None = None) -> None:
            raise AssertionError

        def log_artifacts(self, local_dir: str, artifact_path: str | None = None) -> None:
            raise AssertionError

        def _download_file(self, remote_file_path: str, local_path: str) -> None:
            raise AssertionError(remote_file_path)

        def list_artifacts(self, path: str | None = None) -> list[FileInfo]:
            if path == RANKS:
                return [FileInfo(f"{path}/{NODE}", is_dir=True, file_size=None)]
            return [FileInfo(f"{path}/{name}", is_dir=False, file_size=2**40)]

    inbox = Inbox(folder_at(tmp_path / "a"), Large(tmp_path.as_uri()), {})
    assert not inbox.look(now_ms=1)
    assert "it is larger than" in inbox.unreadable[NODE]


def test_a_machine_that_was_started_anew_begins_a_new_folder(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What its disk had not yet may be sent twice, but is never lost behind an old number."""
    sending = begun({}, number=3)
    assert sending.node.startswith("node-3-")
    assert rank_relay._NODE.fullmatch(sending.node)
    known = msgspec.to_builtins(msgspec.structs.replace(sending, number=9))
    assert begun(known, number=3) == msgspec.structs.replace(sending, number=9)
    monkeypatch.setattr(rank_relay, "boot_id", lambda: "another")
    anew = begun(known, number=3)
    assert anew.number == 0
    assert anew.node != sending.node


@pytest.mark.parametrize("host", ["", "a b/c", "ä" * 300, "x" * 300, "../.."])
def test_any_host_name_gives_a_folder(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel lets a machine be called anything."""
    monkeypatch.setattr(rank_relay.socket, "gethostname", lambda: host)
    assert rank_relay._NODE.fullmatch(begun({}, number=1).node)


def test_processes_of_other_machines_are_left_alone(tmp_path: Path) -> None:
    """A number that stands for a process there may be a stranger's here: it is nobody's end."""
    repository = place(tmp_path / "artifacts")
    box = outbox(folder_at(tmp_path / "b", owns_run=False))
    with subprocess.Popen(["sleep", "60"]) as stranger:
        host, began_s = socket.gethostname(), process_started_s(stranger.pid)
        dead = RunStarted("dead", host, 2**22 + 1, 1.0, 1, rank=1, world_size=3)
        alive = RunStarted("alive", host, stranger.pid, began_s, 1, rank=2, world_size=3)
        box.add([dead, alive])
        sent(box, repository)
        owner = folder_at(tmp_path / "a", system_metrics=False)
        Inbox(owner, repository, {}).look(now_ms=1)
        watch = Watch(owner)
        for _ in range(5):
            watch.look()
        assert [one.end for one in sessions(owner)] == [None, None]
        assert ask_to_stop(owner, "enough", now_ms=2**60) == 0
        assert stranger.poll() is None
        stranger.kill()


def test_a_full_disk_of_the_owner_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A record that was written in part is written whole once there is room."""
    repository = place(tmp_path / "artifacts")
    box = outbox(folder_at(tmp_path / "b", owns_run=False))
    box.add([START, merged(0)])
    sent(box, repository)
    owner = folder_at(tmp_path / "a")
    whole_write = rank_relay.os.pwrite

    def half(descriptor: int, content: bytes, at: int) -> int:
        whole_write(descriptor, content[: len(content) // 2], at)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(rank_relay.os, "pwrite", half)
    with pytest.raises(OSError, match="No space"):
        Inbox(owner, repository, {}).look(now_ms=1)
    monkeypatch.undo()
    Inbox(owner, repository, {}).look(now_ms=1)
    assert received(owner) == [START, merged(0)]


def test_it_goes_through_a_server(tmp_path: Path) -> None:
    """Files are sent, listed and fetched by MLflow's own way through its server."""
    with mlflow_server(tmp_path) as url:
        client = MlflowClient(url)
        run = client.create_run("0", tags={LOCAL_ID_TAG: LOCAL_ID})
        repository = get_artifact_repository(run.info.artifact_uri, tracking_uri=url)
        owner = folder_at(tmp_path / "a")
        assert not Inbox(owner, repository, {}).look(now_ms=1)
        box = outbox(folder_at(tmp_path / "b", owns_run=False))
        box.add([START, merged(0)])
        sent(box, repository)
        assert Inbox(owner, repository, {}).look(now_ms=1)
        assert received(owner) == [START, merged(0)]


def test_the_run_is_found_by_the_name_it_was_begun_under(tmp_path: Path) -> None:
    """In the experiment of that name, or of that id, or by the id of the run itself."""
    client = MlflowClient(store(tmp_path))
    here = Manifest(
        local_id=LOCAL_ID, cwd="/", sinks=[], start_time_ms=1, experiment_name="films",
        owns_run=False,
    )  # fmt: skip
    assert owners_run(client, here) is None
    experiment_id = client.create_experiment("films")
    client.create_run(experiment_id, tags={LOCAL_ID_TAG: "another"})
    assert owners_run(client, here) is None
    run_id = client.create_run(experiment_id, tags={LOCAL_ID_TAG: LOCAL_ID}).info.run_id
    by_id = msgspec.structs.replace(here, experiment_name=None, experiment_id=experiment_id)
    given = msgspec.structs.replace(here, run_id=run_id, local_id=run_id)
    found = [owners_run(client, one) for one in (here, by_id, given)]
    assert [one.info.run_id for one in found if one] == [run_id] * 3
