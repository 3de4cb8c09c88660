import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from opusclip_mlops import checkpoints, wandb_log
from opusclip_mlops.delivery import deliver
from opusclip_mlops.folder import RunFolder
from opusclip_mlops.records import (
    Batch,
    Checkpoint,
    Dataset,
    Insight,
    Metrics,
    Params,
    RunEnded,
    Tags,
)
from opusclip_mlops.sinks import open_sink
from opusclip_mlops.wandb_layout import wandb_mode
from tests import insight_records
from tests.journeys import LOCAL_ID, append, end, make_run, wait_until
from tests.reading import Point, points_of_wandb, rows_of_wandb
from tests.sinks.sink_contract import T0_MS, SinkContract, metrics, staged_clip


def wandb_dir(folder: RunFolder) -> Path:
    return folder.path.parent.parent


def config_of(log: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for record in wandb_log.read_records(log):
        wandb_log.changed_config(record, found)
    return found


class TestWandb(SinkContract):
    name = "wandb"

    def points(self, folder: RunFolder) -> list[Point]:
        return points_of_wandb(wandb_dir(folder), LOCAL_ID)


def test_rows_are_numbered_in_the_order_of_the_journal(tmp_path: Path) -> None:
    """W&B's own step is the row's ordinal, the run's step a column of its own."""
    folder = make_run(tmp_path, ["wandb"])
    append(folder, [Metrics(T0_MS, 5, {"a": 1.0}), Metrics(T0_MS + 1, 3, {"a": 2.0})])
    end(folder)
    deliver(folder, "wandb")
    rows = rows_of_wandb(wandb_dir(folder), LOCAL_ID)
    assert [(row["_step"], row["global_step"], row["a"]) for row in rows] == [(0, 5, 1), (1, 3, 2)]


def test_a_metric_with_a_reserved_name_gets_a_column_of_its_own(tmp_path: Path) -> None:
    """A user's `global_step` or `_timestamp` does not overwrite the row's."""
    folder = make_run(tmp_path, ["wandb"])
    append(folder, [Metrics(T0_MS, 5, {"global_step": 1.5, "_timestamp": 2.5})])
    end(folder)
    deliver(folder, "wandb")
    [row] = rows_of_wandb(wandb_dir(folder), LOCAL_ID)
    assert (row["metrics/global_step"], row["metrics/_timestamp"]) == (1.5, 2.5)
    assert (row["global_step"], row["_timestamp"]) == (5, T0_MS / 1000)


def test_clips_are_videos_and_params_config(tmp_path: Path) -> None:
    """The mp4 goes to W&B as a video, params, tags and datasets into the config."""
    folder = make_run(tmp_path, ["wandb"])
    append(folder, [
        Params({"depth": "4"}), Tags({"a": "b"}), staged_clip(folder),
        Dataset("clips", "d1", "local", '{"uri": "x"}', "training"),
    ])  # fmt: skip
    end(folder)
    deliver(folder, "wandb")
    [log] = wandb_log.logs_of(wandb_dir(folder), LOCAL_ID)
    [row] = wandb_log.rows(log)
    clip = row["samples/kite"]
    assert clip["_type"] == "video-file"
    assert (log.parent / "files" / clip["path"]).read_bytes()[4:8] == b"ftyp"
    config = config_of(log)
    assert config["depth"] == "4"
    assert config["opusclip"]["tags"] == {"team": "true", "a": "b"}
    assert config["opusclip"]["dataset/training/clips"]["digest"] == "d1"


@pytest.mark.parametrize(("status", "code"), [("FINISHED", 0), ("FAILED", 1), ("KILLED", 1)])
def test_the_exit_code_tells_how_the_run_ended(tmp_path: Path, status: str, code: int) -> None:
    """Anything but FINISHED is an exit code of 1."""
    folder = make_run(tmp_path, ["wandb"])
    append(folder, metrics(1))
    end(folder, status, "why")
    deliver(folder, "wandb")
    [log] = wandb_log.logs_of(wandb_dir(folder), LOCAL_ID)
    [exit_record] = [r.exit for r in wandb_log.read_records(log) if r.HasField("exit")]
    assert exit_record.exit_code == code


def test_a_second_session_goes_on_behind_the_rows_of_the_first(tmp_path: Path) -> None:
    """Rows of a run that is gone on with are numbered on, whatever the new journal counts."""
    for part in range(2):
        folder = make_run(tmp_path / f"part{part}", ["wandb"], wandb_dir=str(tmp_path))
        append(folder, metrics(3, first=3 * part))
        end(folder)
        deliver(folder, "wandb")
    rows = rows_of_wandb(tmp_path, LOCAL_ID)
    assert [row["_step"] for row in rows] == list(range(6))


def test_words_become_wandb_tags(tmp_path: Path) -> None:
    """A tag that is only a word is a tag in W&B too."""
    folder = make_run(tmp_path, ["wandb"])
    end(folder)
    deliver(folder, "wandb")
    [log] = wandb_log.logs_of(wandb_dir(folder), LOCAL_ID)
    tags = [set(r.run.tags) for r in wandb_log.read_records(log) if r.HasField("run")]
    assert {"team"} in tags


def test_the_mode_is_online_only_where_a_key_is_configured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key in the environment or in .netrc turns W&B online, an explicit mode goes before it."""
    assert wandb_mode(None) == "offline"
    assert wandb_mode("online") == "online"
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    assert wandb_mode(None) == "online"
    assert wandb_mode("offline") == "offline"
    monkeypatch.delenv("WANDB_API_KEY")
    netrc = tmp_path / "home" / ".netrc"
    netrc.write_text("machine api.wandb.ai login user password " + "k" * 40 + "\n")
    netrc.chmod(0o600)
    assert wandb_mode(None) == "online"


def test_a_checkpoint_waits_for_mlflow_and_holds_nothing_else_up(tmp_path: Path) -> None:
    """The artifact is logged once its files stand in MLflow; rows go on meanwhile, in one log."""
    folder = make_run(tmp_path, ["mlflow", "wandb"])
    name = "epoch_0001-step_000002"
    about = checkpoints.CheckpointMetadata(name=name, epoch=1, step=2)
    checkpoints.write_checkpoint(folder.checkpoints / name, torch.nn.Linear(2, 1), metadata=about)
    append(folder, [*metrics(2), Checkpoint(T0_MS, 2, 1, name, {"val_loss": 0.5}, True)])
    end(folder)
    mirror = threading.Thread(target=deliver, args=(folder, "wandb"))
    mirror.start()
    wait_until(lambda: folder.progress("wandb").records >= 5)
    deliver(folder, "mlflow")
    mirror.join()
    assert folder.progress("wandb").faults == 0
    [log] = wandb_log.logs_of(tmp_path, LOCAL_ID)
    assert len(wandb_log.rows(log)) == 2
    [artifact] = [r.artifact for r in wandb_log.read_records(log) if r.HasField("artifact")]
    refs = [Path(entry.ref.removeprefix("file://")) for entry in artifact.manifest.contents]
    assert {path.name for path in refs} == {"weights.safetensors", "state.pt"}
    assert all(path.is_file() for path in refs)
    assert "best" in artifact.aliases
    identity = folder.identity()
    assert identity is not None
    assert checkpoints.verify(refs[0].parent).run_id == identity.run_id


ACKNOWLEDGE_AND_DIE = """
import os, sys
from pathlib import Path
from opusclip_mlops import delivery, folder
acknowledge = delivery._Delivery._acknowledge
def acknowledge_and_die(self, *words):
    acknowledge(self, *words)
    os._exit(9)
delivery._Delivery._acknowledge = acknowledge_and_die
delivery.deliver(folder.RunFolder(Path(sys.argv[1])), "wandb")
"""


def test_words_outlive_a_kill(tmp_path: Path) -> None:
    """Params and tags of before the kill are told again: they may not have reached the disk."""
    folder = make_run(tmp_path, ["wandb"])
    append(folder, [Params({"depth": "4"}), Tags({"a": "b"})])
    argv = [sys.executable, "-c", ACKNOWLEDGE_AND_DIE, str(folder.path)]
    assert subprocess.run(argv, check=False, timeout=90).returncode == 9
    assert folder.progress("wandb").records == 3
    append(folder, metrics(2))
    end(folder)
    deliver(folder, "wandb")
    config = config_of(wandb_log.logs_of(wandb_dir(folder), LOCAL_ID)[-1])
    assert config["depth"] == "4"
    assert config["opusclip"]["tags"] == {"team": "true", "a": "b"}
    assert len(rows_of_wandb(wandb_dir(folder), LOCAL_ID)) == 2


def test_a_row_is_safe_once_it_stands_on_disk(tmp_path: Path) -> None:
    """The sink claims no row that its log does not hold, and asks to be asked until it does."""
    folder = make_run(tmp_path, ["wandb"])
    sink = open_sink("wandb", folder)
    sink.open({})
    written = sink.write(Batch(records=tuple(metrics(50)), first_row=0))
    # On a busy machine the log may be on disk before the call has returned.
    on_disk = len(rows_of_wandb(wandb_dir(folder), LOCAL_ID))
    assert written.unfinished or on_disk == 50
    while written.unfinished:
        assert written.safe_rows is not None
        assert written.safe_rows < 50
        assert written.safe_rows <= len(rows_of_wandb(wandb_dir(folder), LOCAL_ID))
        time.sleep(0.05)
        written = sink.write(Batch(records=(), first_row=50))
    assert written.safe_rows == 50
    assert len(rows_of_wandb(wandb_dir(folder), LOCAL_ID)) == 50
    sink.close(RunEnded("s1", "FINISHED", T0_MS))


def test_insights_are_wandbs_own_types(tmp_path: Path) -> None:
    """With their steps and times; every file that a row refers to is there, pictures included."""
    folder = make_run(tmp_path, ["wandb"])
    append(folder, [Metrics(T0_MS, 9, {"val/loss": 0.25}), *insight_records.every_kind(folder)])
    end(folder)
    deliver(folder, "wandb")
    assert folder.progress("wandb").rejected == 0
    [log] = wandb_log.logs_of(wandb_dir(folder), LOCAL_ID)
    rows = {row.get("opusclip_insight", ""): row for row in wandb_log.rows(log)}
    found = {key: value for row in rows.values() for key, value in row.items()}
    assert found["weights/encoder.conv"]["_type"] == "histogram"
    assert found["weights/encoder.conv"]["values"] == [3, 4, 5, 1]
    files = {
        "model": "graph",
        "clips": "table",
        "val/cat_table": "table",
        "profiling/trace": "html",
    }
    for column, kind in files.items():
        assert found[column]["_type"] == f"{kind}-file"
        path = log.parent / "files" / found[column]["path"]
        assert path.stat().st_size == found[column]["size"]
    assert {row["global_step"] for row in rows.values()} == {0, 3, 4, 5, 9, 12}
    assert len(pictures_in(log, "clips")) == 5
    config = config_of(log)
    assert config["opusclip"]["hparams"] == {"lr": 0.1, "optimizer": "adamw", "use_ema": True}
    assert config["opusclip"]["hparams_goals"] == {"val/loss": "minimize"}
    assert "wandb/area-under-curve/v0" in str(config["_wandb"])
    assert summary_of(log)["val/loss"] == 0.25


def pictures_in(log: Path, key: str) -> list[str]:
    """The pictures that the table of a key is uploaded with; each is on disk until then."""
    records = (r.artifact for r in wandb_log.read_records(log) if r.HasField("artifact"))
    [contents] = [one.manifest.contents for one in records if one.name.endswith(f"-{key}")]
    assert all(Path(entry.local_path).stat().st_size == entry.size for entry in contents)
    return [entry.path for entry in contents if entry.path.endswith(".png")]


def summary_of(log: Path) -> dict[str, Any]:
    """The last summary that a log says."""
    updates = (r.summary.update for r in wandb_log.read_records(log) if r.HasField("summary"))
    items = (item for update in updates for item in update)
    return {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}


def test_an_insight_that_is_something_else_refuses_only_itself(tmp_path: Path) -> None:
    """Those around it are there, and the rows are numbered on."""
    folder = make_run(tmp_path, ["wandb"])
    good = insight_records.every_kind(folder)
    broken = [Insight(T0_MS, 1, one.key, one.kind, {}, one.files) for one in good[:4]]
    append(folder, [*broken, *good[:1], *metrics(1)])
    end(folder)
    deliver(folder, "wandb")
    assert folder.progress("wandb").rejected == 4
    rows = rows_of_wandb(wandb_dir(folder), LOCAL_ID)
    assert [row["_step"] for row in rows] == [4, 5]


def test_hyperparameters_are_told_again_where_their_row_is_there_already(tmp_path: Path) -> None:
    """The row may have reached the disk before a kill, and the config not."""
    folder = make_run(tmp_path, ["wandb"])
    for record in (Metrics(T0_MS, 1, {"loss": 0.5}), insight_records.hparams()):
        sink = open_sink("wandb", folder)
        sink.open({"base": 0})
        sink.write(Batch(records=(record,)))
        sink.close(None)
    assert len(rows_of_wandb(tmp_path, LOCAL_ID)) == 1
    config = config_of(wandb_log.logs_of(tmp_path, LOCAL_ID)[-1])
    assert config["opusclip"]["hparams"]["lr"] == 0.1
