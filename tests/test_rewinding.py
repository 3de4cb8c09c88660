"""W&B once a run that went back has ended: the line as it is now, and nothing lost."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from mlflow import MlflowClient

from opusclip_mlops import mirror_processes, wandb_log
from opusclip_mlops.delivery import deliver
from opusclip_mlops.folder import RunFolder
from opusclip_mlops.mirror_state import live_targets
from opusclip_mlops.mirror_work import Work
from opusclip_mlops.records import Record, Tags
from tests.journeys import LOCAL_ID, append, end, make_run, store
from tests.reading import points_of_wandb
from tests.sinks.sink_contract import T0_MS, staged_clip
from tests.sinks.test_going_back import FROM_5, SECOND_MS, began, calls, ended
from tests.test_mirror_names import begun
from tests.test_mirror_online import held
from tests.wandb_server import WandbServer, wandb_server

DELIVER = (
    "import sys; from pathlib import Path; from opusclip_mlops.delivery import deliver\n"
    "from opusclip_mlops.folder import RunFolder\n"
    "sys.exit(0 if deliver(RunFolder(Path(sys.argv[1])), 'wandb') else 75)\n"
)
KILLED_THERE = (
    "import os, signal\n"
    "from opusclip_mlops import mirror_processes\n"
    "def die(*_): os.kill(os.getpid(), signal.SIGKILL)\n"
    "def after(works, show, do=mirror_processes.do):\n"
    "    found = do(works, show)\n"
    "    return die() if works[0].does == 'rename' else found\n"
    "mirror_processes.do = after\n"
)
COUNTED = (
    "from opusclip_mlops import mirror_processes\n"
    "from opusclip_mlops.errors import DeliveryError\n"
    "def counted(works, show):\n"
    "    print('a look is begun', flush=True)\n"
    "    raise DeliveryError('MLflow is away')\n"
    "mirror_processes.do = counted\n"
)
GOES_ON = (
    "from mlflow import MlflowClient\n"
    "from opusclip_mlops import mirror_processes\n"
    "def after(works, show, do=mirror_processes.do):\n"
    "    MlflowClient(works[0].tracking_uri).update_run(works[0].run_ids[0], status='RUNNING')\n"
    "    return do(works, show)\n"
    "mirror_processes.do = after\n"
)
OTHERS = (
    "import json, sys, wandb\n"
    "run = wandb.init(id=sys.argv[1], project='clips', mode='offline', dir=sys.argv[2],"
    " settings=wandb.Settings(silent=True, console='off'))\n"
    "run.log(json.loads(sys.argv[3]))\n"
    "run.finish()\n"
)
BOTH = sorted([*range(11), 6, 7, 8])
LINE = [*range(9)]
LEFT = [*range(6, 11)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """A run that W&B has, on its way into MLflow and W&B, that then went back."""
    monkeypatch.setenv("OPUSCLIP_STATE_DIR", str(tmp_path / "state"))
    MlflowClient(store(tmp_path)).create_experiment("films", str(tmp_path / "artifacts"))
    return make_run(tmp_path, ["mlflow", "wandb"], wandb_mode="offline")


def delivering(folder: RunFolder, *, before: str = "") -> tuple[int, str]:
    """The exit code, and what it told, of a process that brings W&B all there is.

    MLflow is brought it in this one.
    """
    deliver(folder, "mlflow")
    argv = [sys.executable, "-c", before + DELIVER, str(folder.path)]
    done = subprocess.run(argv, check=False, timeout=240, stdout=subprocess.PIPE, text=True)
    return done.returncode, done.stdout


def delivered(folder: RunFolder, *, before: str = "") -> int:
    return delivering(folder, before=before)[0]


def first_part(folder: RunFolder, *others: Record) -> None:
    append(folder, [*calls(0, 10), *others])
    end(folder)
    assert delivered(folder) == 0


def second_part(folder: RunFolder) -> None:
    began(folder, FROM_5)
    append(folder, calls(6, 8, from_ms=SECOND_MS), journal="s2")
    ended(folder)


def steps_of(tmp_path: Path) -> dict[str, list[int]]:
    """The steps of each key that W&B's logs on disk hold."""
    found: dict[str, list[int]] = {}
    for point in points_of_wandb(tmp_path, LOCAL_ID):
        found.setdefault(point.key, []).append(point.step)
    return found


def test_offline_the_log_shows_the_line_in_the_end(folder: RunFolder, tmp_path: Path) -> None:
    """Killed when the new log was made, or in its midst, the next delivery does it again."""
    first_part(folder, staged_clip(folder, step=7))
    second_part(folder)
    assert delivered(folder, before=KILLED_THERE) == -signal.SIGKILL
    assert not folder.progress("wandb").done
    [log] = wandb_log.logs_of(tmp_path, LOCAL_ID)
    os.truncate(log, log.stat().st_size // 2)
    assert delivered(folder) == 0
    assert folder.progress("wandb").done
    found = steps_of(tmp_path)
    assert (found["loss"], found["generation-0/loss"]) == (LINE, LEFT)
    assert len(found["system/cpu"]) == 14
    rows = [row for one in wandb_log.logs_of(tmp_path, LOCAL_ID) for row in wandb_log.rows(one)]
    assert [row["global_step"] for row in rows if "generation-0/samples/kite" in row] == [7]


def test_a_run_that_never_went_back_keeps_its_log(folder: RunFolder, tmp_path: Path) -> None:
    """No process compares it, whatever it was resumed for: its last checkpoint, or another task."""
    first_part(folder)
    [log] = wandb_log.logs_of(tmp_path, LOCAL_ID)
    began(folder, begun(SECOND_MS, 10, T0_MS + 10))
    append(folder, calls(11, 12, from_ms=SECOND_MS), journal="s2")
    ended(folder)
    code, told = delivering(folder, before=COUNTED)
    assert (code, told) == (0, "")
    assert folder.progress("wandb").done
    assert log in wandb_log.logs_of(tmp_path, LOCAL_ID)
    assert steps_of(tmp_path)["loss"] == [*range(13)]


def test_what_mlflow_has_refused_is_not_taken_from_wandb(folder: RunFolder, tmp_path: Path) -> None:
    """Such a run is left as it stands, and its log says so."""
    clip = staged_clip(folder, step=7)
    first_part(folder)
    (folder.media / clip.file).write_bytes(b"no frames here")
    append(folder, [clip])
    second_part(folder)
    code, told = delivering(folder)
    assert (code, folder.progress("mlflow").rejected) == (0, 1)
    assert "MLflow does not have all of the run" in told
    assert folder.progress("wandb").error == told.strip().splitlines()[-1]
    assert sorted(steps_of(tmp_path)["loss"]) == BOTH


@pytest.mark.parametrize(
    "row", [{"my_eval": 0.5, "global_step": 3}, {"my_word": "sharp"}], ids=["number", "word"]
)
def test_what_another_client_has_put_there_is_not_taken_away(
    folder: RunFolder, tmp_path: Path, row: dict[str, object]
) -> None:
    """MLflow does not know it: the log is left, and the way to have it made anew is told."""
    first_part(folder)
    argv = [sys.executable, "-c", OTHERS, LOCAL_ID, str(tmp_path), json.dumps(row)]
    subprocess.run(argv, check=True, timeout=120)
    second_part(folder)
    code, told = delivering(folder)
    assert code == 0
    assert "it holds what MLflow does not" in told
    identity = folder.identity()
    assert identity is not None
    assert f"`opusclip mirror {identity.run_id}`" in folder.progress("wandb").error
    rows = [one for log in wandb_log.logs_of(tmp_path, LOCAL_ID) for one in wandb_log.rows(log)]
    assert [one for one in rows if row.items() <= one.items()]
    assert sorted(steps_of(tmp_path)["loss"]) == BOTH


def test_what_is_logged_after_the_log_was_made_anew_is_not_lost(
    folder: RunFolder, tmp_path: Path
) -> None:
    """It has more rows then than this folder has given it; the tags of before it keeps."""
    tags = Tags({"draft": "true"})
    first_part(folder, tags)
    client = MlflowClient(folder.manifest().tracking_uri)
    identity = folder.identity()
    assert identity is not None
    for step in range(40):
        client.log_metric(identity.run_id, "eval", 1.0, timestamp=T0_MS + 3000 + step, step=step)
    second_part(folder)
    assert delivered(folder) == 0
    [log] = wandb_log.logs_of(tmp_path, LOCAL_ID)
    told = [one.run for one in wandb_log.LogReader(log).new_records() if one.HasField("run")]
    assert "draft" in told[-1].tags
    began(folder, {}, session="s3")
    append(folder, calls(9, 12, from_ms=T0_MS + 5000), journal="s3")
    ended(folder, session="s3")
    delivering(folder, before=COUNTED)
    assert steps_of(tmp_path)["loss"] == [*range(13)]


def test_only_the_look_is_tried_again_and_not_for_ever(folder: RunFolder, tmp_path: Path) -> None:
    """The client is begun once for the second part; delivery is done though MLflow is away."""
    first_part(folder)
    second_part(folder)
    code, told = delivering(folder, before=COUNTED)
    assert code == 0
    assert told.count("a look is begun") == 3
    assert len(wandb_log.logs_of(tmp_path, LOCAL_ID)) == 2
    progress = folder.progress("wandb")
    assert progress.done
    assert "MLflow is away" in progress.error
    assert "opusclip mirror" in progress.error


def test_a_run_that_goes_on_elsewhere_is_left_to_who_trains_it(
    folder: RunFolder, tmp_path: Path
) -> None:
    """MLflow says so in time: nothing is made anew, and nobody waits."""
    first_part(folder)
    second_part(folder)
    code, told = delivering(folder, before=GOES_ON)
    assert (code, folder.progress("wandb").done) == (0, True)
    assert "the run goes on" in told
    assert sorted(steps_of(tmp_path)["loss"]) == BOTH


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    """A W&B server, and its key in the environment."""
    with wandb_server(tmp_path / "wandb_server") as found:
        for name, value in found.env.items():
            monkeypatch.setenv(name, value)
        yield found


def held_steps(server: WandbServer) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for point in held(server, LOCAL_ID):
        found.setdefault(point.key, []).append(point.step)
    return found


@pytest.mark.parametrize("first", [0, 6])
def test_online_the_run_shows_the_line_in_the_end(
    folder: RunFolder, tmp_path: Path, server: WandbServer, first: int
) -> None:
    """Where the server's first row, which it never gives up, is superseded, nothing is taken."""
    uri = folder.manifest().tracking_uri
    online = make_run(tmp_path / "online", ["mlflow", "wandb"], tracking_uri=uri)
    append(online, calls(first, 10))
    end(online)
    assert delivered(online) == 0
    second_part(online)
    assert delivered(online) == 0
    steps = held_steps(server)
    if first:
        assert sorted(steps["loss"]) == [6, 6, 7, 7, 8, 8, 9, 10]
    else:
        assert (steps["loss"], steps["generation-0/loss"]) == (LINE, LEFT)
    assert server.run(LOCAL_ID)["state"] == "finished"


def test_a_server_that_rewinds_no_run_keeps_both_points(
    folder: RunFolder, tmp_path: Path, server: WandbServer
) -> None:
    """Delivery is done all the same, and `opusclip mirror` says in one line why it can't."""
    uri = folder.manifest().tracking_uri
    online = make_run(tmp_path / "online", ["mlflow", "wandb"], tracking_uri=uri)
    append(online, calls(0, 10))
    end(online)
    assert delivered(online) == 0
    second_part(online)
    server.fault("403", part="RewindRun")
    code, told = delivering(online)
    assert (code, online.progress("wandb").done) == (0, True)
    assert "403" in told
    identity = online.identity()
    assert identity is not None
    manifest = msgspec.structs.replace(online.manifest(), wandb_mode="online")
    [target] = live_targets(manifest)
    work = Work(target=target, run_ids=[identity.run_id], tracking_uri=manifest.tracking_uri)
    [report] = mirror_processes.do([work], lambda _: None)
    assert (report.outcome, report.is_final) == ("failed", True)
    assert "failed to rewind run" in report.error
    assert sorted(held_steps(server)["loss"]) == BOTH
    assert server.run(LOCAL_ID)["state"] == "finished"
