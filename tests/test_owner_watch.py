"""A run whose owner's machine is gone has an end, told by a machine that is still there."""

import contextlib
import errno
import os
import time
from pathlib import Path
from typing import Any

import pytest
from boto3.exceptions import S3UploadFailedError
from botocore.exceptions import ClientError
from mlflow import MlflowClient
from mlflow.entities import LifecycleStage, Run
from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

from opusclip_mlops import owner_watch
from opusclip_mlops.folder import CONTROL, Progress
from opusclip_mlops.layout import REASON_TAG
from opusclip_mlops.life_signs import OWNER, Showing
from opusclip_mlops.owner_watch import SILENCE, TOLD, OwnerWatch
from opusclip_mlops.records import Batch, Metrics, RunEnded, RunStarted
from opusclip_mlops.sessions import RELAY
from opusclip_mlops.sinks import Sink, SinkState, open_sink, relay
from opusclip_mlops.waiting import has_ended, undelivered
from tests.journeys import append, store, wait_until
from tests.sinks.test_relay import T0_MS, Delivering, Node, node


@pytest.fixture
def nodes(tmp_path: Path) -> tuple[Node, Node]:
    """The owner's machine, which has made the run, and another."""
    both = node(tmp_path, 0), node(tmp_path, 1)
    for one in both:
        one.begin()
        open_sink("mlflow", one.folder).open({})
    return both


def run_of(one: Node, tmp_path: Path) -> Run:
    """The run as MLflow has it."""
    identity = one.folder.identity()
    assert identity
    return MlflowClient(store(tmp_path)).get_run(identity.run_id)


def show(one: Node, tmp_path: Path) -> tuple[Showing, ArtifactRepository]:
    """Have the owner's machine show that it lives; by what it goes on with, and where."""
    repository = get_artifact_repository(run_of(one, tmp_path).info.artifact_uri)
    showing = Showing(one.folder.path, OWNER, interval_s=0.0)
    showing.renew(repository)
    return showing, repository


def test_a_run_whose_owner_is_gone_ends(
    nodes: tuple[Node, Node],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It is FAILED, says whose machine is silent, and where the points lie."""
    monkeypatch.setattr(owner_watch, "WAIT_S", 1.0)
    owner, other = nodes
    show(owner, tmp_path)
    other.log(Metrics(T0_MS, 3, {"system/host-1/cpu": 7.0}))
    other.end()
    Delivering(other.folder).wait()
    run = run_of(other, tmp_path)
    assert run.info.status == "FAILED"
    assert run.info.end_time == T0_MS + 100_000
    assert "which owns the run, for 1 s" in run.data.tags[REASON_TAG]
    assert other.folder.is_delivered()
    (line,) = [one for one in capsys.readouterr().out.splitlines() if "is FAILED now" in one]
    assert run.info.run_id in line
    assert "opusclip/ranks" in line


def test_a_run_that_has_an_end_keeps_it(
    nodes: tuple[Node, Node], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the owner's machine ended the run and left, nothing is said against it."""
    monkeypatch.setattr(owner_watch, "WAIT_S", 1.0)
    owner, other = nodes
    sink = open_sink("mlflow", owner.folder)
    sink.open({})
    sink.close(RunEnded(owner.session, "FINISHED", T0_MS + 5))
    other.end("FAILED", "it failed")
    Delivering(other.folder).wait()
    run = run_of(other, tmp_path)
    assert run.info.status == "FINISHED"
    assert REASON_TAG not in run.data.tags


def test_an_owner_that_shows_life_is_left_the_end(
    nodes: tuple[Node, Node], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One sign may have been given before all was told: the second says that it lived after it."""
    monkeypatch.setattr(owner_watch, "_FIRST_LOOK_S", 0.0)
    owner, other = nodes
    showing, repository = show(owner, tmp_path)
    mine = Showing(other.folder.path, "node-1-b-01234567", interval_s=3600.0)
    watch = OwnerWatch(other.folder, repository, mine, silent_after_s=3600)
    assert watch.look(has_told=False)
    assert watch.look(has_told=True)
    before = watch._listening.news
    showing.renew(repository)
    # On a slow machine a look is not due at once, and would see the second sign alone.
    wait_until(lambda: watch.look(has_told=True) and watch._listening.news > before)
    showing.renew(repository)
    wait_until(lambda: not watch.look(has_told=True))
    assert run_of(owner, tmp_path).info.status == "RUNNING"
    # Ranks that are started anew have an end to tell again.
    assert watch.look(has_told=False)
    assert watch.look(has_told=True)
    assert showing.take_leave(repository)
    wait_until(lambda: not watch.look(has_told=True))


def test_nobody_waits_for_the_owner_but_is_told_that_it_is_silent(
    nodes: tuple[Node, Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`close` returns once all is told, and says where it lies if the owner shows no life."""
    monkeypatch.setattr(relay, "WAIT_S", 0.0)
    _, other = nodes
    other.log(Metrics(T0_MS, 3, {"system/host-1/cpu": 7.0}))
    other.end()
    delivering = Delivering(other.folder)
    wait_until(lambda: has_ended(other.folder, ["mlflow", RELAY]))
    progress = other.folder.progress(RELAY)
    assert not progress.done
    assert progress.state[TOLD]
    (line,) = undelivered(other.folder, ["mlflow", RELAY])
    assert line == progress.state[SILENCE]
    assert "nothing is heard of the machine that owns the run" in line
    monkeypatch.setattr(owner_watch, "WAIT_S", 0.0)
    delivering.wait()


def told_all(one: Node, state: SinkState) -> tuple[Sink, SinkState]:
    """Have a machine tell all that it has, and wait for the owner's."""
    progress = Progress(number=1, position=one.folder.size_bytes())
    one.folder.write_progress(RELAY, progress)
    sink = open_sink(RELAY, one.folder)
    sink.open(state)
    states: list[SinkState] = []

    def has_told() -> bool:
        written = sink.write(Batch(records=()))
        states.append(written.state)
        assert written.unfinished
        return bool(written.state[TOLD])

    wait_until(has_told, deadline_s=60)
    return sink, states[-1]


def stays(sink: Sink) -> bool:
    """Whether a machine that has told all goes on waiting."""
    return sink.write(Batch(records=())).unfinished


def test_a_leave_that_was_taken_meanwhile_counts_for_who_watches_anew(
    nodes: tuple[Node, Node], tmp_path: Path
) -> None:
    """A process that was started again sees it first of all, and nothing comes after it."""
    owner, other = nodes
    showing, repository = show(owner, tmp_path)
    other.end()
    _, state = told_all(other, {})
    assert showing.take_leave(repository)
    again = open_sink(RELAY, other.folder)
    again.open(state)
    wait_until(lambda: not stays(again), deadline_s=60)
    assert run_of(owner, tmp_path).info.status == "RUNNING"


def test_a_leave_that_was_taken_before_is_no_answer(
    nodes: tuple[Node, Node], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is that of an earlier attempt: who has left after it may be gone for good."""
    monkeypatch.setattr(owner_watch, "_FIRST_LOOK_S", 0.0)
    owner, other = nodes
    showing, repository = show(owner, tmp_path)
    assert showing.take_leave(repository)
    other.end()
    sink, state = told_all(other, {})
    for watching in (sink, open_sink(RELAY, other.folder)):
        watching.open(state)
        assert all(stays(watching) for _ in range(5))
    monkeypatch.setattr(owner_watch, "WAIT_S", 0.0)
    wait_until(lambda: not stays(sink), deadline_s=60)
    assert run_of(owner, tmp_path).info.status == "FAILED"


def test_a_leave_from_before_all_was_told_is_no_answer_for_who_watches_anew(
    nodes: tuple[Node, Node], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The owner gave up on this machine, whose link was down: nobody had its last part."""
    monkeypatch.setattr(owner_watch, "_FIRST_LOOK_S", 0.0)
    owner, other = nodes
    showing, repository = show(owner, tmp_path)
    first = open_sink(RELAY, other.folder)
    state = first.open({})
    other.log(Metrics(T0_MS, 3, {"system/host-1/cpu": 7.0}))
    other.end()
    other.folder.write_progress(RELAY, Progress(number=1, position=other.folder.size_bytes()))
    # All is closed in a file, and not sent; then the owner leaves.
    with monkeypatch.context() as down:
        down.setattr(relay.Outbox, "send", refusing(errno.EIO))
        with contextlib.suppress(OSError):
            while True:
                state = first.write(Batch(records=())).state
    assert showing.take_leave(repository)
    # Twice: what the first one keeps before it has sent anything says nothing, either.
    for _ in range(2):
        again = open_sink(RELAY, other.folder)
        state = again.open(state)
    assert all(stays(again) for _ in range(20))
    monkeypatch.setattr(owner_watch, "WAIT_S", 0.0)
    wait_until(lambda: not stays(again), deadline_s=60)


def test_who_stood_still_has_heard_nobody_meanwhile(
    nodes: tuple[Node, Node], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that hangs, or a job that was stopped for long, is nobody's silence."""
    monkeypatch.setattr(owner_watch, "WAIT_S", 100.0)
    owner, other = nodes
    show(owner, tmp_path)
    other.end()
    sink, _ = told_all(other, {})
    assert stays(sink)
    with monkeypatch.context() as later:
        later.setattr(time, "monotonic", lambda at_s=time.monotonic: at_s() + 110.0)
        assert stays(sink)
        assert run_of(owner, tmp_path).info.status == "RUNNING"
        monkeypatch.setattr(owner_watch, "WAIT_S", 0.0)
        wait_until(lambda: not stays(sink), deadline_s=60)
    assert run_of(owner, tmp_path).info.status == "FAILED"


def test_silence_tells_nothing_where_the_store_takes_no_signs(
    nodes: tuple[Node, Node], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk lets nobody show life, and is read all the same: then all is counted anew."""
    owner, other = nodes
    show(owner, tmp_path)
    other.end()
    sink, state = told_all(other, {})
    monkeypatch.setattr(owner_watch, "WAIT_S", 0.0)
    with monkeypatch.context() as full:
        full.setattr(LocalArtifactRepository, "log_artifact", refusing(errno.ENOSPC))
        with pytest.raises(OSError, match="No space left"):
            wait_until(lambda: not stays(sink), deadline_s=60)
    assert run_of(owner, tmp_path).info.status == "RUNNING"
    sink.open(state)
    wait_until(lambda: not stays(sink), deadline_s=60)
    assert run_of(owner, tmp_path).info.status == "FAILED"


def refusing(code: int) -> object:
    """What an artifact store does that takes no file."""

    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    return refuse


def refused_by_s3(*_: object) -> None:
    """What an upload raises that S3 lets nobody do."""
    answer: Any = {"Error": {"Code": "AccessDenied", "Message": "no"}}
    try:
        raise ClientError(answer, "PutObject")
    except ClientError as error:
        # As boto3's transfer does.
        raise S3UploadFailedError(f"Failed to upload: {error}")  # noqa: B904


@pytest.mark.parametrize(
    "refuse",
    [refusing(errno.EACCES), refusing(errno.EROFS), refused_by_s3],
    ids=["access", "read-only", "s3"],
)
def test_nobody_stays_for_ever_where_signs_are_refused(
    nodes: tuple[Node, Node],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    refuse: object,
) -> None:
    """A store where this machine may not write tells nothing of the owner's: its run stays."""
    owner, other = nodes
    other.end()
    sink, _ = told_all(other, {})
    monkeypatch.setattr(owner_watch, "WAIT_S", 0.0)
    monkeypatch.setattr(LocalArtifactRepository, "log_artifact", refuse)
    wait_until(lambda: not stays(sink), deadline_s=60)
    assert run_of(owner, tmp_path).info.status == "RUNNING"
    assert "is left as it is" in capsys.readouterr().out


@pytest.mark.parametrize("is_restorable", [True, False])
def test_a_run_that_was_deleted_is_not_waited_for(
    nodes: tuple[Node, Node],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    is_restorable: bool,
) -> None:
    """It has no end to be told: the machine says so and leaves it as it is."""
    _, other = nodes
    other.end()
    sink, _ = told_all(other, {})
    client, run_id = MlflowClient(store(tmp_path)), run_of(other, tmp_path).info.run_id
    client.delete_run(run_id)
    if not is_restorable:
        client._tracking_client.store._hard_delete_run(run_id)
    monkeypatch.setattr(owner_watch, "WAIT_S", 0.0)
    wait_until(lambda: not stays(sink), deadline_s=60)
    if is_restorable:
        run = run_of(other, tmp_path)
        assert (run.info.lifecycle_stage, run.info.status) == (LifecycleStage.DELETED, "RUNNING")
    assert "is not in MLflow any more" in capsys.readouterr().out


def test_a_run_that_was_adopted_is_left_to_who_made_it(
    nodes: tuple[Node, Node],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """And nobody says that it is FAILED."""
    _, other = nodes
    start = RunStarted(
        "host-1-78-1", "host-1", 1, 1.0, T0_MS + 1000, rank=1, attempt=1, world_size=2, owned=False
    )
    adopted = sorted(other.folder.path.glob(f"{other.session}{CONTROL}*"))
    for path in adopted:
        path.unlink()
    append(other.folder, [start], journal=start.session + CONTROL)
    other.session = start.session
    other.end()
    sink, _ = told_all(other, {})
    monkeypatch.setattr(owner_watch, "WAIT_S", 0.0)
    wait_until(lambda: not stays(sink), deadline_s=60)
    assert run_of(other, tmp_path).info.status == "RUNNING"
    assert "is left to the program that made it" in capsys.readouterr().out
