"""W&B once a run that went back has ended: the line as it is now, and nothing lost."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from opusclip_mlops import wandb_log
from opusclip_mlops.delivery import deliver
from opusclip_mlops.folder import RunFolder
from opusclip_mlops.records import Record
from tests.journeys import LOCAL_ID, append, end, make_run, store
from tests.reading import points_of_wandb
from tests.sinks.sink_contract import staged_clip
from tests.sinks.test_going_back import FROM_5, SECOND_MS, began, calls, ended
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
    "    return die() if works[0].does == 'mirror' else found\n"
    "mirror_processes.do = after\n"
)
LINE = [*range(9)]
LEFT = [*range(6, 11)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """A run that W&B has, on its way into MLflow and W&B, that then went back."""
    monkeypatch.setenv("OPUSCLIP_STATE_DIR", str(tmp_path / "state"))
    MlflowClient(store(tmp_path)).create_experiment("films", str(tmp_path / "artifacts"))
    return make_run(tmp_path, ["mlflow", "wandb"], wandb_mode="offline")


def delivered(folder: RunFolder, *, before: str = "") -> int:
    """The exit code of a process that brings W&B all there is, and MLflow in this one."""
    deliver(folder, "mlflow")
    argv = [sys.executable, "-c", before + DELIVER, str(folder.path)]
    return subprocess.run(argv, check=False, timeout=240).returncode


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
    """No process compares it, whatever it was resumed for."""
    first_part(folder)
    [log] = wandb_log.logs_of(tmp_path, LOCAL_ID)
    began(folder, {})
    append(folder, calls(11, 12), journal="s2")
    ended(folder)
    assert delivered(folder) == 0
    assert log in wandb_log.logs_of(tmp_path, LOCAL_ID)
    assert steps_of(tmp_path)["loss"] == [*range(13)]


def test_what_mlflow_has_refused_is_not_taken_from_wandb(folder: RunFolder, tmp_path: Path) -> None:
    """Such a run is left as it stands, and its log says so."""
    clip = staged_clip(folder, step=7)
    first_part(folder)
    (folder.media / clip.file).write_bytes(b"no frames here")
    append(folder, [clip])
    second_part(folder)
    assert delivered(folder) == 0
    assert folder.progress("mlflow").rejected == 1
    assert sorted(steps_of(tmp_path)["loss"]) == sorted([*range(11), 6, 7, 8])


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
