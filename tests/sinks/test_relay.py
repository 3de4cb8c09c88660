"""Two machines of one run, as two folders: what is brought from one to the other, and its end."""

import contextlib
import dataclasses
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

from opusclip_mlops import journal
from opusclip_mlops.delivery import deliver
from opusclip_mlops.folder import CONTROL, Identity, Manifest, Progress, RunFolder
from opusclip_mlops.layout import RANKS, REASON_TAG
from opusclip_mlops.life_signs import OWNER, Sign, last_sign
from opusclip_mlops.records import (
    Batch,
    Checkpoint,
    Metrics,
    Params,
    RankMetrics,
    RunEnded,
    RunStarted,
    Tags,
    Text,
)
from opusclip_mlops.sessions import RELAY, all_ended, ended_here, final_end, sessions
from opusclip_mlops.sinks import Sink, Waiting, open_sink, relay
from tests.faults.disks import small_disk
from tests.journeys import LOCAL_ID, append, store, wait_until

T0_MS = 1_700_000_000_000


@dataclasses.dataclass
class Node:
    """One machine of the run: its folder, and the rank that trains there."""

    folder: RunFolder
    rank: int
    session: str

    def begin(self, *, attempt: int = 0, session: str = "") -> None:
        """Have its rank begin."""
        self.session = session or self.session
        start = RunStarted(
            self.session, f"host-{self.rank}", 1, 1.0, T0_MS + attempt * 1000, rank=self.rank,
            attempt=attempt, world_size=2,
        )  # fmt: skip
        append(self.folder, [start], journal=self.session + CONTROL)

    def log(self, *records: Any) -> None:
        """Log records."""
        append(self.folder, records, journal=self.session)

    def end(self, status: str = "FINISHED", reason: str = "", at_ms: int = 100_000) -> None:
        """Have its rank end."""
        end = RunEnded(self.session, status, T0_MS + at_ms, reason)
        append(self.folder, [end], journal=self.session + CONTROL)


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "INTERVAL_S", 0.1)
    monkeypatch.setattr(relay, "_LOOK_S", 0.05)


@pytest.fixture
def nodes(tmp_path: Path) -> tuple[Node, Node]:
    """The owner's machine, and another."""
    return node(tmp_path, 0), node(tmp_path, 1)


def node(
    tmp_path: Path, number: int, *, nodes: int = 2, sinks: tuple[str, ...] = (), **fields: Any
) -> Node:
    """One of two machines; the first owns the run."""
    folder = RunFolder(tmp_path / f"node-{number}" / LOCAL_ID)
    manifest = Manifest(
        local_id=LOCAL_ID, cwd=str(tmp_path), sinks=["mlflow", *sinks, RELAY],
        experiment_name="films",
        run_name="a-run", start_time_ms=T0_MS, tracking_uri=store(tmp_path), system_metrics=False,
        ranks=2, nodes=nodes, node=number, owns_run=number == 0, **fields,
    )  # fmt: skip
    folder.create(manifest)
    if not manifest.run_id:
        folder.write_identity(Identity(mirror_id=LOCAL_ID, experiment_name="films"))
    return Node(folder, number, f"host-{number}-77-{number}")


class Delivering:
    """Delivers folders to their sinks meanwhile, each in a thread, and ends with them all."""

    def __init__(self, *folders: RunFolder, but: tuple[str, ...] = ()) -> None:
        every = [(folder, sink) for folder in folders for sink in folder.manifest().sinks]
        pairs = [(folder, sink) for folder, sink in every if sink not in but]
        self._threads = [threading.Thread(target=deliver, args=pair, daemon=True) for pair in pairs]
        for thread in self._threads:
            thread.start()

    def wait(self) -> None:
        """Return once all is delivered."""
        wait_until(lambda: not any(thread.is_alive() for thread in self._threads))


def test_one_run_of_two_machines(nodes: tuple[Node, Node], tmp_path: Path) -> None:
    """One run, made and ended by the owner, with the tags and metrics of both machines."""
    owner, other = nodes
    for one in nodes:
        one.begin()
    owner.log(Params({"lr": "0.1"}), Metrics(T0_MS, 1, {"loss": 0.5}))
    mine = [RankMetrics(T0_MS, step, {"loss": 0.5}, "mean", 1, 2) for step in range(50)]
    other.log(*mine, Metrics(T0_MS, 3, {"system/host-1/cpu": 7.0}), Params({"lr": "other"}))
    other.log(Tags({"from": "other"}), Text(T0_MS, 0, "opusclip/note", "from the other"))
    delivering = Delivering(owner.folder, other.folder)
    owner.end()
    wait_until(lambda: len(sessions(owner.folder)) == 2)
    assert ended_here(owner.folder)
    assert not all_ended(owner.folder)
    assert final_end(owner.folder) is None
    other.end()
    delivering.wait()

    client = MlflowClient(store(tmp_path))
    experiment = client.get_experiment_by_name("films")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert REASON_TAG not in run.data.tags
    assert run.data.tags["from"] == "other"
    assert run.data.params == {"lr": "0.1"}
    assert run.data.metrics == {"loss": 0.5, "system/host-1/cpu": 7.0}
    assert len(client.get_metric_history(run.info.run_id, "system/host-1/cpu")) == 1
    texts = client.list_artifacts(run.info.run_id, "text/opusclip/note")
    assert len(texts) == 1
    assert all(one.folder.is_delivered() for one in nodes)


def test_the_end_names_what_failed_on_another_machine(
    nodes: tuple[Node, Node], tmp_path: Path
) -> None:
    """A rank that failed there fails the run, though the owner's own ended well."""
    owner, other = nodes
    for one in nodes:
        one.begin()
    delivering = Delivering(owner.folder, other.folder)
    owner.end()
    other.end("FAILED", "process 77 was ended by SIGKILL", at_ms=90_000)
    delivering.wait()
    client = MlflowClient(store(tmp_path))
    (run,) = client.search_runs([client.get_experiment_by_name("films").experiment_id])
    assert run.info.status == "FAILED"
    assert "SIGKILL" in run.data.tags[REASON_TAG]


def test_a_machine_waits_for_the_run_and_makes_none(
    nodes: tuple[Node, Node], tmp_path: Path
) -> None:
    """Until the owner's has made it nothing is there; afterwards nothing of it is changed."""
    owner, other = nodes
    other.begin()
    with pytest.raises(Waiting):
        open_sink("mlflow", other.folder).open({})
    with pytest.raises(Waiting):
        open_sink(RELAY, other.folder).open({})
    client = MlflowClient(store(tmp_path))
    assert client.get_experiment_by_name("films") is None
    owner.begin()
    sink = open_sink("mlflow", owner.folder)
    sink.open({})
    sink.close(RunEnded(owner.session, "FAILED", T0_MS + 5, "it failed"))
    (before,) = client.search_runs([client.get_experiment_by_name("films").experiment_id])

    sink = open_sink("mlflow", other.folder)
    sink.open({})
    start = RunStarted("s", "h", 1, 1.0, T0_MS, tags={"a": "b"})
    sink.write(Batch(records=(start, Metrics(T0_MS, 1, {"x": 1.0}), Tags({"c": "d"}))))
    sink.close(RunEnded(other.session, "FINISHED", T0_MS + 9))
    (after,) = client.search_runs([before.info.experiment_id])
    assert after.to_dictionary() == before.to_dictionary()
    identity = other.folder.identity()
    assert identity
    assert identity.run_id == after.info.run_id


def test_a_machine_that_falls_silent_holds_up_no_end(
    nodes: tuple[Node, Node], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What has come is kept, what is not known is told, and it decides nothing."""
    monkeypatch.setattr(relay, "WAIT_S", 0.5)
    owner, other = nodes
    for one in nodes:
        one.begin()
    other.log(RankMetrics(T0_MS, 0, {"loss": 0.5}, "mean", 1, 2))
    delivering = Delivering(owner.folder)
    wait_until(lambda: (i := owner.folder.identity()) is not None and bool(i.run_id))
    _send_once(other)
    wait_until(lambda: len(sessions(owner.folder)) == 2)
    owner.end()
    delivering.wait()
    client = MlflowClient(store(tmp_path))
    (run,) = client.search_runs([client.get_experiment_by_name("films").experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.tags[relay.UNHEARD_TAG] == "1"
    (text,) = client.list_artifacts(run.info.run_id, f"text/{relay.KEY}")
    repository = get_artifact_repository(run.info.artifact_uri)
    said = Path(repository.download_artifacts(text.path)).read_text()
    assert said == (
        "rank 1 on host-1: nothing was heard of its machine for 0.5 s\n"
        "what comes later stays as it was sent, in the run's files under opusclip/ranks"
    )


def _waiting(nodes: tuple[Node, Node]) -> tuple[Node, Sink]:
    """The owner's machine, whose rank has ended, and the sink that waits for the other's."""
    owner, other = nodes
    for one in nodes:
        one.begin()
        open_sink("mlflow", one.folder).open({})
    sink = open_sink(RELAY, owner.folder)
    sink.open({})
    _send_once(other)
    owner.end()
    wait_until(lambda: sink.write(Batch(records=())) and len(sessions(owner.folder)) == 2)
    return owner, sink


def test_who_stood_still_calls_nobody_silent(
    nodes: tuple[Node, Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that hung, or a job that was stopped, for longer than a machine may be silent."""
    owner, sink = _waiting(nodes)
    monotonic, pause_s = time.monotonic, 2 * relay.WAIT_S
    with monkeypatch.context() as later:
        later.setattr(time, "monotonic", lambda: monotonic() + pause_s)
        assert sink.write(Batch(records=())).unfinished
        assert not all_ended(owner.folder)
        later.setattr(relay, "WAIT_S", 0.0)
        wait_until(lambda: sink.write(Batch(records=())) and all_ended(owner.folder))


def test_a_store_that_is_slow_each_time_keeps_nobody_waiting_for_ever(
    nodes: tuple[Node, Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A round that takes long is no pause of its own: a part of each counts as silence."""
    owner, sink = _waiting(nodes)
    monotonic, rounds = time.monotonic, 0
    with monkeypatch.context() as slow:
        slow.setattr(time, "monotonic", lambda: monotonic() + rounds * relay.WAIT_S)
        while not all_ended(owner.folder):
            rounds += 1
            sink.write(Batch(records=()))
            assert rounds < 100
    # One pause alone says nothing.
    assert rounds > 2


def test_a_machine_that_logs_nothing_is_waited_for(
    nodes: tuple[Node, Node], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As long as a rank lives there its machine shows it, in one file; how it ends is the run's."""
    monkeypatch.setattr(relay, "WAIT_S", 6.0)
    owner, other = nodes
    for one in nodes:
        one.begin()
    delivering = Delivering(owner.folder, other.folder)
    wait_until(lambda: len(sessions(owner.folder)) == 2)
    owner.end()
    signs: set[bytes] = set()

    def is_long_enough() -> bool:
        for path in tmp_path.rglob("opusclip/ranks/node-*/alive.bin"):
            signs.add(path.read_bytes())
        return len(signs) > 5 or all_ended(owner.folder)

    wait_until(is_long_enough)
    assert not all_ended(owner.folder)
    other.end("FAILED", "it failed after all")
    delivering.wait()
    client = MlflowClient(store(tmp_path))
    (run,) = client.search_runs([client.get_experiment_by_name("films").experiment_id])
    assert run.info.status == "FAILED"
    assert "it failed after all" in run.data.tags[REASON_TAG]
    assert relay.UNHEARD_TAG not in run.data.tags
    assert len(list(tmp_path.rglob("opusclip/ranks/node-*/*.bin"))) == 1


def test_what_comes_after_an_end_that_was_too_early_corrects_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the owner's machine still delivers, late points are merged and the true end is told."""
    monkeypatch.setattr(relay, "WAIT_S", 0.5)
    link = _plugged_in(monkeypatch)
    owner, other = node(tmp_path, 0, sinks=("ranks", "away")), node(tmp_path, 1)
    for one in (owner, other):
        one.begin()
        one.log(RankMetrics(T0_MS, 0, {"loss": float(one.rank)}, "mean", one.rank, 2))
    delivering = Delivering(owner.folder, other.folder, but=("away",))
    wait_until(lambda: len(sessions(owner.folder)) == 2)
    client = MlflowClient(store(tmp_path))
    (run,) = client.search_runs([client.get_experiment_by_name("films").experiment_id])
    run_id = run.info.run_id
    wait_until(lambda: "loss" in client.get_run(run_id).data.metrics)
    link.clear()
    other.log(RankMetrics(T0_MS, 7, {"late": 0.25}, "mean", 1, 2))
    other.end("FAILED", "it failed behind the link")
    owner.end()
    wait_until(lambda: client.get_run(run_id).info.status == "FINISHED")
    assert client.get_run(run_id).data.tags[relay.UNHEARD_TAG] == "1"
    link.set()
    wait_until(lambda: any("behind" in one.end.reason for one in sessions(owner.folder) if one.end))
    # As the supervisor does, whose sinks end once they have all.
    again = Delivering(owner.folder, but=("away", RELAY))
    wait_until(lambda: client.get_run(run_id).info.status == "FAILED")
    again.wait()
    owner.folder.write_progress("away", _all_of(owner.folder))
    delivering.wait()
    run = client.get_run(run_id)
    assert "it failed behind the link" in run.data.tags[REASON_TAG]
    assert run.data.tags[relay.UNHEARD_TAG].startswith("none")
    assert run.data.metrics == {"loss": 0.5, "late": 0.25}
    assert len(client.get_metric_history(run_id, "loss")) == 1
    assert len(client.get_metric_history(run_id, "late")) == 1


def _plugged_in(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """The other machine's way to MLflow; while it is not set nothing goes there."""
    link = threading.Event()
    link.set()
    send, renew = relay.Outbox.send, relay.Showing.renew

    def sent(outbox: relay.Outbox, repository: Any) -> None:
        if not link.is_set():
            raise ConnectionError("unplugged")
        send(outbox, repository)

    def renewed(showing: relay.Showing, repository: Any) -> None:
        if link.is_set():
            renew(showing, repository)

    monkeypatch.setattr(relay.Outbox, "send", sent)
    monkeypatch.setattr(relay.Showing, "renew", renewed)
    return link


def _all_of(folder: RunFolder) -> Progress:
    return Progress(number=1, position=folder.size_bytes(), done=True)


def test_a_machine_that_falls_silent_is_the_reason_where_others_failed(
    nodes: tuple[Node, Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine that died takes the others with it: it was silent before they failed."""
    monkeypatch.setattr(relay, "WAIT_S", 0.2)
    owner, other = nodes
    for one in nodes:
        one.begin()
    delivering = Delivering(owner.folder)
    wait_until(lambda: (i := owner.folder.identity()) is not None and bool(i.run_id))
    _send_once(other)
    wait_until(lambda: len(sessions(owner.folder)) == 2)
    owner.end("FAILED", "RuntimeError: connection closed by peer")
    delivering.wait()
    (silent,) = [one for one in sessions(owner.folder) if one.is_elsewhere]
    assert silent.end
    assert (silent.end.status, silent.end.owned) == ("FAILED", True)
    assert "nothing was heard of its machine" in silent.end.reason


def test_a_machine_that_never_says_a_word_holds_up_no_end(
    nodes: tuple[Node, Node], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who trains with a tracker on rank 0 alone has its run, and is told what spares the wait."""
    monkeypatch.setattr(relay, "WAIT_S", 0.4)
    owner, _ = nodes
    owner.begin()
    delivering = Delivering(owner.folder)
    owner.end()
    delivering.wait()
    client = MlflowClient(store(tmp_path))
    (run,) = client.search_runs([client.get_experiment_by_name("films").experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.tags[relay.UNHEARD_TAG] == "1"


def test_where_there_may_be_no_other_machine_silence_is_waited_for_a_shorter_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody knows how many machines there are where the numbers of ranks were set by hand."""
    monkeypatch.setattr(relay, "WAIT_S", 3600)
    monkeypatch.setattr(relay, "_UNSURE_WAIT_S", 0.2)
    owner = node(tmp_path, 0, nodes=1)
    owner.begin()
    delivering = Delivering(owner.folder)
    owner.end()
    delivering.wait()
    assert final_end(owner.folder)


def test_another_machine_is_heard_where_nobody_said_that_there_is_one(tmp_path: Path) -> None:
    """Its rank's failure is the run's, as it is where the number of machines is known."""
    owner, other = node(tmp_path, 0, nodes=1), node(tmp_path, 1)
    for one in (owner, other):
        one.begin()
    delivering = Delivering(owner.folder, other.folder)
    owner.end()
    other.end("FAILED", "process 77 was ended by SIGKILL", at_ms=90_000)
    delivering.wait()
    end = final_end(owner.folder)
    assert end
    assert end.status == "FAILED"
    assert "rank 1 on host-1: process 77" in end.reason


def test_ranks_of_one_machine_are_not_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where all ranks have begun here no file of another machine is asked for, at any attempt."""
    asked: list[str] = []
    monkeypatch.setattr(relay.Inbox, "look", lambda *_, **__: bool(asked.append("asked")))
    one = node(tmp_path, 0, nodes=1)
    one.folder.write_identity(
        Identity(mirror_id=LOCAL_ID, experiment_name="films", run_id="r", artifact_uri="/tmp")
    )
    sink = open_sink(RELAY, one.folder)
    sink.open({})
    both = [one, Node(one.folder, 1, "host-0-78-1")]
    for rank in both:
        rank.begin()
    sink.write(Batch(records=()))
    assert asked == []
    one.begin(attempt=1, session="host-0-79-1")
    wait_until(lambda: bool(sink.write(Batch(records=())) and asked))


def test_an_owner_that_is_started_anew_takes_its_leave(
    nodes: tuple[Node, Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sink that was opened anew has given no sign itself, but others have seen those before."""
    monkeypatch.setattr(relay, "WAIT_S", 0.2)
    owner, _ = nodes
    owner.begin()
    open_sink("mlflow", owner.folder).open({})
    sink = open_sink(RELAY, owner.folder)
    state = sink.open({})
    sink.write(Batch(records=()))
    owner.end()
    with monkeypatch.context() as away:
        away.setattr(*deaf_to(OWNER, ConnectionError("away")))
        wait_until(lambda: bool(sink.write(Batch(records=()))) and all_ended(owner.folder))
    assert not sign_of(owner, OWNER).is_over
    again = open_sink(RELAY, owner.folder)
    again.open(state)
    again.write(Batch(records=()))
    assert sign_of(owner, OWNER).is_over


def test_an_owner_whose_leave_is_not_taken_tries_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It holds up no end: that is told meanwhile, and the leave while another sink delivers."""
    monkeypatch.setattr(relay, "SIGN_S", 0.2)
    owner, other = node(tmp_path, 0, sinks=("away",)), node(tmp_path, 1)
    for one in (owner, other):
        one.begin()
    delivering = Delivering(owner.folder, other.folder, but=("away",))
    wait_until(lambda: len(sessions(owner.folder)) == 2)
    with monkeypatch.context() as deaf:
        deaf.setattr(*deaf_to(OWNER, ConnectionError("away")))
        for one in (owner, other):
            one.end()
        client = MlflowClient(store(tmp_path))
        (run,) = client.search_runs([client.get_experiment_by_name("films").experiment_id])
        wait_until(lambda: client.get_run(run.info.run_id).info.status == "FINISHED")
        assert not owner.folder.progress(RELAY).done
    wait_until(lambda: sign_of(owner, OWNER).is_over)
    owner.folder.write_progress("away", _all_of(owner.folder))
    delivering.wait()


def test_an_owner_whose_leave_is_never_taken_leaves_all_the_same(
    nodes: tuple[Node, Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once the run's end is in MLflow it tells others as much."""
    monkeypatch.setattr(relay, "WAIT_S", 0.2)
    monkeypatch.setattr(*deaf_to(OWNER, ConnectionError("away")))
    owner, _ = nodes
    owner.begin()
    owner.end()
    Delivering(owner.folder).wait()
    assert owner.folder.is_delivered()


def test_a_machine_that_is_alone_gives_no_signs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where all ranks have begun here nothing is asked of the artifact store, to the end."""
    one = node(tmp_path, 0, nodes=1)
    open_sink("mlflow", one.folder).open({})
    both = [one, Node(one.folder, 1, "host-0-78-1")]
    for rank in both:
        rank.begin()
    for name in ("log_artifact", "list_artifacts"):
        monkeypatch.setattr(LocalArtifactRepository, name, None)
    sink = open_sink(RELAY, one.folder)
    sink.open({})
    assert sink.write(Batch(records=())).unfinished
    for rank in both:
        rank.end()
    wait_until(lambda: not sink.write(Batch(records=())).unfinished, deadline_s=60)


@pytest.mark.parametrize(("number", "has_ended"), [(0, False), (1, False), (1, True)])
def test_a_full_disk_stops_no_signs_of_life(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, has_ended: bool
) -> None:
    """What cannot be taken, or sent, waits; the machine is not taken for dead meanwhile.

    Neither is one whose rank has ended, as of the full disk: why has still to be told.
    """
    monkeypatch.setattr(relay, "SIGN_S", 0.0)
    with small_disk(tmp_path / f"node-{number}") as disk:
        nodes = node(tmp_path, 0), node(tmp_path, 1)
        for one in nodes:
            one.begin()
        open_sink("mlflow", nodes[0].folder).open({})
        open_sink("mlflow", nodes[1].folder).open({})
        sinks = [open_sink(RELAY, one.folder) for one in nodes]
        states = [sink.open({}) for sink in sinks]
        for _ in range(2):
            states = [sink.write(Batch(records=tuple(_records(nodes[1])))).state for sink in sinks]
        name = states[1]["node"] if number else OWNER
        before = sign_of(nodes[1 - number], name)
        if has_ended:
            nodes[number].end("FAILED", "No space left on device")
        disk.fill()
        again = open_sink(RELAY, nodes[number].folder)
        with contextlib.suppress(OSError):
            again.open(states[number])
            again.write(Batch(records=tuple(_records(nodes[1]))))
            pytest.fail("the disk has room")
        after = sign_of(nodes[1 - number], name)
    assert after != before
    assert not after.is_over


def sign_of(one: Node, machine: str) -> Sign:
    """The last sign of a machine, as another one finds it."""
    sign = last_sign(relay._repository(one.folder), machine, one.folder.path)
    assert sign
    return sign


def deaf_to(machine: str, fault: Exception) -> tuple[type, str, Any]:
    """An artifact store that takes everything but the signs of a machine."""
    log = LocalArtifactRepository.log_artifact

    def logged(store: Any, local_file: str, artifact_path: str | None = None) -> None:
        if artifact_path == f"{RANKS}/{machine}":
            raise fault
        log(store, local_file, artifact_path)

    return LocalArtifactRepository, "log_artifact", logged


@pytest.mark.parametrize(("number", "refusing"), [(0, "mlflow"), (1, RELAY)])
def test_a_run_that_is_not_in_mlflow_has_an_end(tmp_path: Path, number: int, refusing: str) -> None:
    """Where nothing can be sent nobody is waited for, and what was logged is kept on the disk."""
    one = node(tmp_path, number, run_id="0" * 32)
    one.begin()
    one.log(Metrics(T0_MS, 1, {"loss": 0.5}))
    delivering = Delivering(one.folder)
    one.end()
    delivering.wait()
    assert final_end(one.folder)
    assert one.folder.progress(refusing).rejected == 1


def test_a_restart_is_waited_for_anew(nodes: tuple[Node, Node]) -> None:
    """Once the ranks of a first attempt have ended everywhere, those of a second count."""
    owner, other = nodes
    for one in nodes:
        one.begin()
        one.end("FAILED", "it failed", at_ms=500)
    Delivering(owner.folder, other.folder).wait()
    assert all_ended(owner.folder)
    owner.begin(attempt=1, session="host-0-78-1")
    assert not all_ended(owner.folder)
    owner.end()
    other.begin(attempt=1, session="host-1-78-1")
    other.end()
    Delivering(owner.folder, other.folder).wait()
    assert [one.start.attempt for one in sessions(owner.folder)] == [0, 1, 0, 1]
    end = final_end(owner.folder)
    assert end
    assert end.status == "FINISHED"


def test_an_end_is_told_behind_all_that_was_logged_before_it(nodes: tuple[Node, Node]) -> None:
    """Who reads it on the other side knows that nothing of that rank is still on its way."""
    _, other = nodes
    other.folder.write_identity(
        Identity(mirror_id=LOCAL_ID, experiment_name="films", run_id="r", artifact_uri="/tmp")
    )
    other.begin()
    other.log(Metrics(T0_MS, 0, {"x": 1.0}))
    other.end()
    sink = open_sink(RELAY, other.folder)
    sink.open({})
    first = sink.write(Batch(records=()))
    assert first.state["told"] == {}
    assert first.unfinished


def test_what_waits_to_be_sent_is_sent_before_the_end(nodes: tuple[Node, Node]) -> None:
    """A record without files is no reason for a machine to send a file."""
    _, other = nodes
    other.folder.write_identity(
        Identity(mirror_id=LOCAL_ID, experiment_name="films", run_id="r", artifact_uri="/tmp")
    )
    sink = open_sink(RELAY, other.folder)
    sink.open({})
    written = sink.write(Batch(records=(Checkpoint(T0_MS, 1, 0, "c"),)))
    assert written.state["size_bytes"] == 0


def _send_once(other: Node) -> None:
    """Send what a machine has logged, and fall silent."""
    open_sink("mlflow", other.folder).open({})
    sink = open_sink(RELAY, other.folder)
    sink.open({})
    sink.write(Batch(records=tuple(_records(other))))
    sink.write(Batch(records=()))


def _records(other: Node) -> list[Any]:
    items = [one for path in other.folder.segments() for one in journal.read(path)]
    return [one.record for one in items if isinstance(one, journal.Entry)]
