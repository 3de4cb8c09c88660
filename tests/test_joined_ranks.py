"""Facts about ranks that log to one run: how they join it, and how it ends."""

import errno
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import msgspec
import pytest
from mlflow import MlflowClient

from opusclip_mlops import TrackingConfig
from opusclip_mlops.delivery import deliver
from opusclip_mlops.errors import ConfigError
from opusclip_mlops.flight import boot_id
from opusclip_mlops.folder import Manifest, RunFolder
from opusclip_mlops.joining import PROCESS_VARIABLE, Joining, earlier_run, place_of
from opusclip_mlops.meeting import Answering, Meeting, folder_of
from opusclip_mlops.naming import manifest_of
from opusclip_mlops.rank_share import RankShare
from opusclip_mlops.ranks import Place
from opusclip_mlops.records import RankMetrics, now_ms
from opusclip_mlops.rendezvous import FOLDER, FileBoard, keep_in_mind, note_run
from opusclip_mlops.selection import Selection
from opusclip_mlops.session import Session as Part
from opusclip_mlops.sessions import Session, final_end, sessions
from opusclip_mlops.watching import Watch
from tests.journeys import store, wait_until
from tests.servers import free_port

RANK = """
import os, pickle, subprocess, sys
from pathlib import Path
import opusclip_mlops.joining, opusclip_mlops.session

class NoShipper:
    def __init__(self, *_, **__): pass
    def release(self): pass

# What they leave in the journal is delivered by the test.
opusclip_mlops.session.ShipperGuard = NoShipper
from opusclip_mlops import ExperimentTracker, TrackingConfig

place, what = Path(sys.argv[1]), sys.argv[2]
config = TrackingConfig(
    experiment_name="films", tracking_uri=f"sqlite:///{place}/mlflow.db",
    journal_dir=str(place / "journal"), use_wandb=False, use_tensorboard=False,
    system_metrics=False, profile_operations=False, drain_timeout_s=0,
)
if "AWAITS_OWNER" in os.environ:
    sys.stdin.readline()
rank, attempt = os.environ["RANK"], os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
tracker = ExperimentTracker(config)
tracker.log_metrics({"loss": float(rank) + 10 * int(attempt)}, step=int(attempt))
if what == "child":
    own = [sys.executable, *sys.argv[:2], "leave"]
    subprocess.run(own, check=True, stdout=subprocess.DEVNULL)
    copy = pickle.loads(pickle.dumps(tracker))
    assert copy is tracker and tracker.owns_run == (rank == os.environ.get("OWNER", "0"))
print(tracker.local_id, tracker.owns_run, flush=True)
if what == "wait":
    sys.stdin.read()
    sys.exit(3)
tracker.close()
"""
ELASTIC = """
import os, sys, time
from pathlib import Path
import opusclip_mlops.session

class NoShipper:
    def __init__(self, *_, **__): pass
    def release(self): pass

opusclip_mlops.session.ShipperGuard = NoShipper
from opusclip_mlops import ExperimentTracker, TrackingConfig

place, dies = Path(sys.argv[1]), sys.argv[2] == "dies"
config = TrackingConfig(
    experiment_name="films", tracking_uri=f"sqlite:///{place}/mlflow.db",
    journal_dir=str(place / "journal"), use_wandb=False, use_tensorboard=False,
    system_metrics=False, profile_operations=False, drain_timeout_s=0,
)
step = int((place / "died").exists())
tracker = ExperimentTracker(config)
tracker.log_metrics({"loss": float(os.environ["RANK"])}, step=step, reduce="mean")
(place / f"logged-{dies}-{step}").touch()
print(os.environ["TORCHELASTIC_RESTART_COUNT"], flush=True)
while step == 0:
    time.sleep(0.05)
    if dies and (place / "logged-False-0").exists():
        (place / "died").touch()
        os._exit(3)
tracker.close()
"""
HOST = socket.gethostname()
JOB = {"TORCHELASTIC_RUN_ID": "a-job"}


class Ranks:
    """Processes that a launcher would number, each an `ExperimentTracker`."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self._script = place / "rank.py"
        self._script.write_text(RANK)
        self._left = ExitStack()

    def start(
        self,
        rank: int,
        what: str = "leave",
        *,
        size: int = 2,
        errors: int | None = None,
        **environment: str,
    ) -> subprocess.Popen[str]:
        """Start a rank."""
        numbers = {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank)}
        numbers["LOCAL_WORLD_SIZE"] = str(size)
        process = subprocess.Popen(
            [sys.executable, str(self._script), str(self.place), what],
            env={**_clean(os.environ), **numbers, "PYTHONPATH": os.getcwd(), **environment},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
        )  # fmt: skip
        self._left.callback(process.communicate)
        self._left.callback(process.kill)
        return process

    def run(self, *, attempt: int = 0, **environment: str) -> list[str]:
        """Have both ranks log and leave; what each says: its local id, and whether it owns it."""
        environment["TORCHELASTIC_RESTART_COUNT"] = str(attempt)
        both = [self.start(rank, **environment) for rank in (0, 1)]
        found = [process.communicate(timeout=300)[0].strip() for process in both]
        assert [process.returncode for process in both] == [0, 0]
        return found

    def folder(self) -> RunFolder:
        """The one run in the journal."""
        [path] = [one for one in (self.place / "journal").iterdir() if one.name[0] != "."]
        return RunFolder(path)

    def runs(self) -> list[tuple[str, dict[str, float]]]:
        """Status and points of each run in MLflow."""
        client = MlflowClient(store(self.place))
        experiment = client.get_experiment_by_name("films")
        found = client.search_runs([experiment.experiment_id]) if experiment else []
        return [(run.info.status, dict(run.data.metrics)) for run in found]

    def close(self) -> None:
        """End what still runs."""
        self._left.close()


@pytest.fixture
def ranks(tmp_path: Path) -> Iterator[Ranks]:
    store(tmp_path)
    found = Ranks(tmp_path)
    yield found
    found.close()


def _clean(environment: Mapping[str, str]) -> dict[str, str]:
    launchers = (
        "RANK",
        "WORLD_SIZE",
        "LOCAL_",
        "GROUP_",
        "MASTER_",
        "TORCHELASTIC_",
        "SLURM_",
        "OMPI_",
    )
    dropped = (*launchers, "OPUSCLIP_", "MLFLOW_RUN", "MLFLOW_EXPERIMENT")
    return {name: value for name, value in environment.items() if not name.startswith(dropped)}


def delivered(folder: RunFolder) -> None:
    """Give the run to all its sinks at once: some wait for others."""
    sinks = folder.manifest().sinks
    with ThreadPoolExecutor(len(sinks)) as threads:
        assert all(threads.map(partial(deliver, folder), sinks))


def by_rank(folder: RunFolder) -> dict[int | None, Session]:
    return {one.start.rank: one for one in sessions(folder)}


def said_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_ranks_of_torchrun_log_to_one_run(ranks: Ranks) -> None:
    """Both have journals of their own in one folder; a rank's child has a run of its own."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launcher, str(ranks.place / "rank.py"), str(ranks.place), "child"],
        env={**_clean(os.environ), "PYTHONPATH": os.getcwd(), "OWNER": "1"}
        | {"OPUSCLIP_METRIC_RANK": "1"},
        capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = dict(reversed(line.split()) for line in done.stdout.splitlines())
    assert said["True"] == said["False"]
    folder = RunFolder(ranks.place / "journal" / said["True"])
    found = by_rank(folder)
    assert {rank: one.end and one.end.status for rank, one in found.items()} == {
        0: "FINISHED",
        1: "FINISHED",
    }
    manifest = folder.manifest()
    assert (manifest.ranks, manifest.nodes, manifest.owns_run) == (2, 1, True)
    assert manifest.sinks == ["mlflow", "ranks"]
    others = [one for one in (ranks.place / "journal").glob("[!.]*") if one != folder.path]
    assert [by_rank(RunFolder(one)).keys() for one in others] == [{None}, {None}]
    delivered(folder)
    assert ranks.runs() == [("FINISHED", {"loss": 1.0})]


def test_a_restart_is_counted_by_the_owner(ranks: Ranks) -> None:
    """Two agents of torchrun count restarts differently; their ranks are one new attempt."""
    (ranks.place / "elastic.py").write_text(ELASTIC)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--rdzv-backend",
                "c10d", "--rdzv-endpoint", f"127.0.0.1:{free_port()}", "--rdzv-id", "a-job",
                "--nproc-per-node", "1", "--max-restarts", "3"]  # fmt: skip
    agents = [
        subprocess.Popen(
            [*launcher, str(ranks.place / "elastic.py"), str(ranks.place), what],
            env={**_clean(os.environ), "PYTHONPATH": os.getcwd(), "OPUSCLIP_RANKS_WAIT_S": "120"},
            stdout=subprocess.PIPE, text=True,
        )
        for what in ("lives", "dies")
    ]  # fmt: skip
    try:
        counts = [agent.communicate(timeout=240)[0].split() for agent in agents]
    finally:
        for agent in agents:
            agent.kill()
    assert counts == [["0", "0"], ["0", "1"]]
    folder = ranks.folder()
    assert sorted((one.start.attempt, one.start.rank) for one in sessions(folder)) == [
        (0, 0), (0, 1), (1, 0), (1, 1)
    ]  # fmt: skip
    watch = Watch(folder)
    wait_until(lambda: (watch.look(), all(one.end for one in sessions(folder)))[1])
    delivered(folder)
    assert ranks.runs() == [("FINISHED", {"loss": 0.5})]
    history = MlflowClient(store(ranks.place)).get_metric_history(_run_id(folder), "loss")
    assert [(one.step, one.value) for one in history] == [(0, 0.5), (1, 0.5)]


def test_without_an_address_ranks_meet_in_files(ranks: Ranks) -> None:
    """Two jobs at once are two runs, and so are two that follow each other without a name."""
    first = [ranks.start(rank, TORCHELASTIC_RUN_ID="one") for rank in (1, 0)]
    second = [ranks.start(rank, TORCHELASTIC_RUN_ID="two") for rank in (1, 0)]
    found = [one.communicate(timeout=300)[0].split() for one in (*first, *second)]
    assert found[0][0] == found[1][0] != found[2][0] == found[3][0]
    assert [owns for _, owns in found] == ["False", "True"] * 2
    unnamed = [ranks.run()[0].split()[0] for _ in range(2)]
    assert len({found[0][0], found[2][0], *unnamed}) == 4
    modes = {one.stat().st_mode & 0o777 for one in (ranks.place / "journal" / FOLDER).iterdir()}
    assert modes == {0o600}


def test_each_process_may_have_a_run_of_its_own(ranks: Ranks) -> None:
    """With `ranks="own"` nobody is waited for, and nobody is a rank."""
    [lone] = [ranks.start(1, OPUSCLIP_RANKS="own").communicate(timeout=300)[0].split()]
    assert lone[1] == "True"
    assert by_rank(ranks.folder()).keys() == {None}
    assert ranks.folder().manifest().sinks == ["mlflow"]


def test_a_killed_rank_is_why_the_run_failed_and_a_new_attempt_goes_on(ranks: Ranks) -> None:
    """The other one was only told to end; started anew they log to the same run, which goes on."""
    both = [ranks.start(rank, "wait", **JOB) for rank in (0, 1)]
    local_ids = {said_line(one).split()[0] for one in both}
    folder = ranks.folder()
    assert local_ids == {folder.path.name}
    watch = Watch(folder)
    watch.look()
    both[1].send_signal(signal.SIGKILL)
    both[0].send_signal(signal.SIGTERM)
    for one in both:
        one.wait()
    wait_until(lambda: (watch.look(), all(one.end for one in sessions(folder)))[1])
    assert deliver(folder, "ranks")
    end = final_end(folder)
    assert end is not None
    assert end.status == "FAILED"
    assert end.reason.startswith(f"rank 1 on {HOST}: process {both[1].pid} ")
    assert deliver(folder, "mlflow")
    assert [status for status, _ in ranks.runs()] == ["FAILED"]
    said = ranks.run(attempt=1, **JOB)
    assert {one.split()[0] for one in said} == local_ids
    delivered(folder)
    assert ranks.runs() == [("FINISHED", {"loss": 10.0})]
    history = MlflowClient(store(ranks.place)).get_metric_history(_run_id(folder), "loss")
    assert [(one.step, one.value) for one in history] == [(0, 0.0), (1, 10.0)]


def _run_id(folder: RunFolder) -> str:
    identity = folder.identity()
    assert identity is not None
    return identity.run_id


def test_a_run_that_was_delivered_and_removed_goes_on(
    ranks: Ranks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each new attempt finds the MLflow run again, and ends it anew."""
    [first, _] = ranks.run(**JOB)
    folder = ranks.folder()
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", **JOB}.items():
        monkeypatch.setenv(name, value)
    for attempt in (1, 2):
        delivered(folder)
        run_id = _run_id(folder)
        note_run(folder)
        assert folder.remove_unless_held()
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", str(attempt))
        found = earlier_run(TrackingConfig(journal_dir=str(folder.path.parent)))
        assert found is not None
        assert (found.folder.path, found.run_id) == (folder.path, run_id)
        assert ranks.run(attempt=attempt, **JOB)[0] == first
        assert folder.manifest().run_id == run_id
        assert {one.start.attempt for one in sessions(folder)} == {attempt}
    delivered(folder)
    assert ranks.runs() == [("FINISHED", {"loss": 20.0})]


def test_a_run_of_a_moment_is_joined_by_who_began_meanwhile(ranks: Ranks) -> None:
    """Its owner has ended by the time they ask, and has left them an answer."""
    late = ranks.start(1, AWAITS_OWNER="1", **JOB)
    early = ranks.start(0, **JOB).communicate(timeout=300)[0].split()
    assert late.communicate("on\n", timeout=300)[0].split() == [early[0], "False"]
    assert by_rank(ranks.folder()).keys() == {0, 1}


def test_a_run_that_has_ended_is_not_joined_later(ranks: Ranks) -> None:
    """One line says what became of it: what its store holds may be an attempt before's."""
    ranks.run(**JOB)
    late = ranks.start(1, errors=subprocess.PIPE, OPUSCLIP_RANKS_WAIT_S="1", **JOB)
    said = late.communicate(timeout=300)[1]
    assert "rank 0 has begun no other run within 1 s, and " in said
    assert " had ended before this rank asked for it" in said


def test_where_all_are_told_to_end_the_run_is_killed(ranks: Ranks) -> None:
    """A launcher that is told to end tells its ranks: nobody failed, and each is named."""
    both = [ranks.start(rank, "wait", **JOB) for rank in (0, 1)]
    assert all(said_line(one) for one in both)
    folder = ranks.folder()
    for one in both:
        one.send_signal(signal.SIGTERM)
        one.wait()
    watch = Watch(folder)
    wait_until(lambda: (watch.look(), all(one.end for one in sessions(folder)))[1])
    delivered(folder)
    end = final_end(folder)
    assert end is not None
    assert (end.status, end.reason.partition(": ")[2]) in {
        ("KILLED", f"process {one.pid} was ended by SIGTERM") for one in both
    }
    assert ranks.runs() == [("KILLED", {"loss": 0.0})]


@pytest.fixture
def rank_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> TrackingConfig:
    """This process is rank 1 of two, and nobody is rank 0."""
    for name in _clean(dict.fromkeys(os.environ, "")).keys() ^ os.environ.keys():
        monkeypatch.delenv(name)
    for name, value in {"RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    return TrackingConfig(journal_dir=str(tmp_path / "journal"))


def test_a_rank_that_waits_in_vain_says_for_whom(rank_one: TrackingConfig) -> None:
    """One line names the rank that begins no run, and what to do."""
    place = place_of(rank_one)
    assert place is not None
    joining = Joining(rank_one, place, wait_s=0.1)
    with pytest.raises(ConfigError, match=r"rank 0 has begun no run within 0\.1 s") as caught:
        joining._wait()
    assert "OPUSCLIP_METRIC_RANK" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("fails", ["append", "read"])
def test_a_fault_of_a_disk_that_passes_ends_no_start(
    rank_one: TrackingConfig, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    """As of an NFS server; one that lasts is told when the time is up, a full disk at once."""
    joining = told(rank_one, said_by("gpu-07"))
    does, faults = getattr(joining._board, fails), [errno.ESTALE, errno.EIO]

    def faulty(*arguments: object) -> object:
        if threading.current_thread() is threading.main_thread() and faults:
            raise OSError(faults.pop(), "a fault")
        return does(*arguments)

    monkeypatch.setattr(joining._board, fails, faulty)
    assert joining._wait().host == "gpu-07"
    faults[:] = [errno.ENOSPC]
    with pytest.raises(OSError, match="a fault"):
        joining._wait()
    joining._wait_s, faults[:] = 0.1, [errno.EIO] * 99
    with pytest.raises(OSError, match="a fault"):
        joining._wait()


def test_what_a_requeued_job_goes_on_with_is_kept_while_it_trains(
    rank_one: TrackingConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also for months, where ranks meet in files and these are all that is remembered."""
    monkeypatch.setattr("opusclip_mlops.joining._joined_here", [])
    monkeypatch.setenv(PROCESS_VARIABLE, str(os.getpid()))
    owner = Place(rank=0, local_rank=0, world_size=2, job="77")
    joining = Joining(rank_one, owner)
    manifest = joining.agreed(manifest_of(rank_one, None))
    joining.announce(RunFolder(Path(rank_one.journal_dir, manifest.local_id)), manifest)
    answers = joining._answers
    assert answers is not None
    answers.leave()
    for path in (Path(rank_one.journal_dir) / FOLDER).iterdir():
        os.utime(path, (time.time() - 31 * 24 * 3600,) * 2)
    answers.keep()
    monkeypatch.setattr("opusclip_mlops.joining._joined_here", [])
    again = Joining(rank_one, replace(owner, attempt=1))
    FileBoard(Path(rank_one.journal_dir)).write("of another job", b"")
    assert again.agreed(manifest_of(rank_one, None)).local_id == manifest.local_id
    assert again.goes_on


def told(config: TrackingConfig, meeting: Meeting) -> Joining:
    """The way of a rank whose owner says this, and trains on."""
    place = place_of(config)
    assert place is not None
    joining = Joining(config, place, wait_s=60)
    answers = Answering(joining._board, joining._name, meeting, may_ask=True, keep=lambda: None)
    _owners.callback(answers.leave)
    return joining


_owners = ExitStack()


@pytest.fixture(autouse=True)
def owners() -> Iterator[None]:
    """All that were to answer have left."""
    with _owners:
        yield


def said_by(host: str, *, attempt: int = 3, journal_dir: str = "/elsewhere") -> Meeting:
    """What an owner says."""
    return Meeting(
        local_id="abc", run_id=None, run_name="a run", experiment_name="films", experiment_id=None,
        start_time_ms=now_ms(), host=host, journal_dir=journal_dir, attempt=attempt,
    )  # fmt: skip


def test_a_rank_takes_its_attempt_from_the_owner(rank_one: TrackingConfig) -> None:
    """Whatever its own launcher says; on a machine that is not the owner's it relays."""
    joining = told(rank_one, said_by("gpu-07"))
    manifest = joining.agreed(manifest_of(rank_one, None))
    assert (joining.place.attempt, joining.goes_on) == (3, True)
    assert (manifest.sinks, manifest.nodes, manifest.owns_run) == (["mlflow", "relay"], 2, False)
    assert joining.folder_name(manifest.local_id) == f"abc+{HOST}"


def test_machines_of_one_name_are_told_apart(rank_one: TrackingConfig) -> None:
    """Images of a cloud may give all the same, and the journal the same path on each disk."""
    Path(rank_one.journal_dir).mkdir()
    joining = told(rank_one, said_by(HOST, journal_dir=rank_one.journal_dir))
    manifest = joining.agreed(manifest_of(rank_one, None))
    assert (manifest.sinks, manifest.owns_run) == (["mlflow", "relay"], False)
    assert joining.folder_name("abc") == f"abc+{HOST}-{boot_id()[:8]}"
    here = msgspec.structs.replace(
        said_by(HOST, journal_dir=rank_one.journal_dir),
        boot=boot_id(), folder=folder_of(Path(rank_one.journal_dir)),
    )  # fmt: skip
    _owners.close()
    joining = told(rank_one, here)
    assert joining.agreed(manifest_of(rank_one, None)).owns_run
    assert joining.folder_name("abc") == "abc"


def owner_after(
    config: TrackingConfig, monkeypatch: pytest.MonkeyPatch, earlier: Meeting, *, size: int = 2
) -> tuple[Joining, Manifest]:
    """The owner of an attempt after the one in which this was said, and its run."""
    for name, value in {"RANK": "0", "WORLD_SIZE": str(size), **JOB}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    place = place_of(config)
    assert place is not None
    joining = Joining(config, place)
    joining._board.write(joining._name, msgspec.json.encode(earlier))
    return joining, joining.agreed(manifest_of(config, None))


def test_a_run_is_gone_on_with_where_it_began(
    rank_one: TrackingConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another machine has nothing of what the owner had merged: it begins one, and says why."""
    earlier = said_by("gpu-07", journal_dir=rank_one.journal_dir)
    joining, manifest = owner_after(rank_one, monkeypatch, earlier)
    assert (manifest.local_id != "abc", joining.goes_on) == (True, False)
    assert joining.earlier() == earlier
    assert earlier_run(rank_one) is None
    said = capsys.readouterr().err
    assert said == (
        "opusclip: run a run, which was begun on gpu-07, is not gone on with:"
        f" {HOST}, where rank 0 makes the run now, has no journal of it\n"
    )
    keep_in_mind(RunFolder(Path(rank_one.journal_dir, "abc")))
    joining, manifest = owner_after(rank_one, monkeypatch, earlier)
    assert (manifest.local_id, joining.goes_on, joining.place.attempt) == ("abc", True, 4)
    assert capsys.readouterr().err == ""


def test_the_last_of_many_keeps_the_keys_of_many(
    rank_one: TrackingConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Started anew alone, what it logs by rank goes on under the names it had."""
    keep_in_mind(RunFolder(Path(rank_one.journal_dir, "abc")))
    earlier = msgspec.structs.replace(said_by(HOST), ranks=2)
    joining, _ = owner_after(rank_one, monkeypatch, earlier, size=1)
    assert joining.place.was_many
    assert joining._meeting(RunFolder(Path(rank_one.journal_dir, "abc")), _).ranks == 2
    part = SimpleNamespace(place=joining.place, is_owner=True, append=lambda _: None)
    share = RankShare(part, RunFolder(Path("none")), cast(Selection, None), interval_s=1)
    assert isinstance(share.record({"own": 1.0}, 1, 1, "each"), RankMetrics)
    joining, _ = owner_after(rank_one, monkeypatch, said_by(HOST), size=1)
    assert not joining.place.was_many


def test_machines_that_share_a_disk_have_a_folder_each(
    rank_one: TrackingConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So each has its own shipper, and says only of its own processes whether they live."""

    class NoShipper:
        def __init__(self, *_: object, **__: object) -> None: ...

        def release(self) -> None: ...

    monkeypatch.setattr("opusclip_mlops.session.ShipperGuard", NoShipper)
    monkeypatch.setattr("opusclip_mlops.joining._joined_here", [])
    monkeypatch.setenv(PROCESS_VARIABLE, str(os.getpid()))
    owners = RunFolder(Path(rank_one.journal_dir, "abc"))
    told(rank_one, said_by("gpu-07", journal_dir=rank_one.journal_dir))
    part = Part(rank_one, tags={})
    assert part.folder.path == owners.path.with_name(f"abc+{HOST}")
    assert (part.local_id, part.folder.manifest().owns_run) == ("abc", False)
    assert not owners.path.exists()
    part.end("FINISHED", "")
    part.release()


@pytest.mark.parametrize(("local_size", "relays"), [("", True), ("1", True), ("2", False)])
def test_an_owner_listens_where_ranks_may_be_elsewhere(
    rank_one: TrackingConfig, monkeypatch: pytest.MonkeyPatch, local_size: str, relays: bool
) -> None:
    """Where nobody says how many ranks are on its machine, they may be on any."""
    for name, value in {"RANK": "0", "LOCAL_WORLD_SIZE": local_size, **JOB}.items():
        monkeypatch.setenv(name, value)
    place = place_of(rank_one)
    assert place is not None
    manifest = Joining(rank_one, place).agreed(manifest_of(rank_one, None))
    assert ("relay" in manifest.sinks) is relays


def test_nothing_delivers_a_run_that_the_others_are_not_told_of(
    rank_one: TrackingConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its folder is removed, and no shipper was started in it."""
    monkeypatch.setenv("RANK", "0")
    started: list[object] = []
    monkeypatch.setattr("opusclip_mlops.session.ShipperGuard", lambda *_, **__: started.append(1))

    def fails(*_: object) -> None:
        raise ConfigError("no store answers")

    monkeypatch.setattr(Joining, "announce", fails)
    with pytest.raises(ConfigError, match="no store answers"):
        Part(rank_one, tags={})
    assert started == []
    assert list(Path(rank_one.journal_dir).glob("[!.]*")) == []


def test_a_child_of_a_rank_is_none(
    rank_one: TrackingConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a rank starts inherits its numbers; it is known by the pid it inherits with them."""
    assert place_of(rank_one) is not None
    monkeypatch.setenv(PROCESS_VARIABLE, str(os.getppid()))
    assert place_of(rank_one) is None


def test_one_process_is_a_rank_only_where_it_may_be_started_anew(
    rank_one: TrackingConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lone process of Slurm is alone; one of torchrun goes on in its run after a restart."""
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert place_of(rank_one) is None
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "a-job")
    assert place_of(rank_one) == Place(rank=0, local_rank=0, world_size=1, job="a-job")


def test_a_number_that_no_rank_has_is_refused(
    rank_one: TrackingConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rank 5 of 2 would log alone, as if all were well, while the others wait for it."""
    monkeypatch.setenv("RANK", "5")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="RANK is 5 and WORLD_SIZE 2"):
        place_of(rank_one)


def test_the_owner_of_too_few_ranks_is_rank_zero(rank_one: TrackingConfig) -> None:
    """Fewer may be left than there were when the owner was named."""
    config = TrackingConfig(journal_dir=rank_one.journal_dir, metric_rank=5)
    assert not Joining(config, Place(rank=1, local_rank=1, world_size=2)).is_owner
    assert Joining(config, Place(rank=0, local_rank=0, world_size=2)).is_owner
    assert Joining(config, Place(rank=5, local_rank=1, world_size=8)).is_owner


def test_a_rank_that_cannot_write_leaves_the_others_alone(ranks: Ranks) -> None:
    """On another machine, a journal_dir that is a file fails that rank, and the run goes on."""
    owner = ranks.start(0, "wait", **JOB)
    assert said_line(owner)
    folder = ranks.folder()
    (ranks.place / "a-file").write_text("")
    found = _failed_join(folder, journal_dir=ranks.place / "a-file")
    assert found.startswith("ConfigError: journal_dir ")
    assert "cannot be written" in found
    assert folder.manifest().local_id == folder.path.name
    assert owner.poll() is None


def _failed_join(folder: RunFolder, *, journal_dir: Path) -> str:
    """What a rank of a second machine says that was told of this run, and cannot write."""
    code = (
        "import sys; from pathlib import Path; from opusclip_mlops import joining, rendezvous\n"
        "from opusclip_mlops import TrackingConfig, ExperimentTracker\n"
        "import socket; socket.gethostname = lambda: 'gpu-07'\n"
        "own = rendezvous.FileBoard\n"
        "rendezvous.board_of = lambda *_, **__: own(Path(sys.argv[1]))\n"
        "try: ExperimentTracker(TrackingConfig(journal_dir=sys.argv[2]))\n"
        "except Exception as error: print(f'{type(error).__name__}: {error}')\n"
    )
    numbers = {"RANK": "1", "WORLD_SIZE": "2", "GROUP_RANK": "1", "GROUP_WORLD_SIZE": "2", **JOB}
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder.path.parent), str(journal_dir)],
        env={**_clean(os.environ), **numbers}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.stdout.strip() or done.stderr
