"""Facts about `opusclip_mlops.artifacts`: files become records, or are referred to, or told of."""

import json
from pathlib import Path

from mlflow.entities import Dataset as MlflowDataset
from mlflow.entities import DatasetInput, InputTag
from msgspec import structs

from opusclip_mlops.contents import read_contents
from opusclip_mlops.records import Dataset, Files, Image, Table, Video
from opusclip_mlops.samples import SourceClip
from opusclip_mlops.sources import Sources
from tests.journeys import LOCAL_ID, make_run
from tests.mlflow_runs import (
    T0_MS,
    again,
    client,
    clip,
    complete,
    delivered,
    ended,
    new_run,
    of_kind,
    ramp,
    saved,
)

# Checkpoints


def test_checkpoints_come_back_as_what_points_at_them_now(tmp_path: Path) -> None:
    """One file set each, the last one newest; only the best is called best."""
    folder = make_run(tmp_path)
    records = [saved(folder, 1, best=True), saved(folder, 2, best=True), saved(folder, 3)]
    run = delivered(folder, *records)
    contents = read_contents(client(), run)
    found = [part.record for part in of_kind(contents, Files)]
    assert [one.aliases for one in found] == [["step-1"], ["step-2", "best"], ["latest", "step-3"]]
    assert {(one.name, one.kind) for one in found} == {(f"checkpoint-{LOCAL_ID}", "model")}
    uri = run.info.artifact_uri
    base = uri if "://" in uri else f"file://{uri}"
    weights = "weights.safetensors"
    assert found[2].uris[weights] == f"{base}/checkpoints/{records[2].name}/{weights}"
    stored = Path(found[2].uris[weights].removeprefix("file://"))
    assert found[2].sizes_bytes[weights] == stored.stat().st_size
    assert found[1].metadata["name"] == records[1].name
    assert found[1].metadata["metrics"] == {"val/loss": "0.5", "odd": "nan"}
    assert contents.left_out == ()


def test_a_name_that_moved_on_points_at_the_newest_checkpoint_only(tmp_path: Path) -> None:
    """Two checkpoints of one step, as after a resumed epoch: the later one has the alias."""
    folder = make_run(tmp_path)
    run = delivered(folder, saved(folder, 5, epoch=2), saved(folder, 5, epoch=1))
    found = [part.record for part in of_kind(read_contents(client(), run), Files)]
    assert [one.metadata["name"] for one in found] == [
        "epoch_0002-step_000005", "epoch_0001-step_000005",
    ]  # fmt: skip
    assert [one.aliases for one in found] == [[], ["latest", "step-5"]]


def test_a_checkpoint_that_is_not_whole_is_left_out_and_its_files_are_named(tmp_path: Path) -> None:
    """A half uploaded checkpoint is no model; the reason says what is missing."""
    folder = make_run(tmp_path)
    run = delivered(folder, saved(folder, 1), saved(folder, 2), saved(folder, 3))
    root = Path(run.info.artifact_uri.removeprefix("file://"), "checkpoints")
    (root / "epoch_0001-step_000001" / "weights.safetensors").unlink()
    (root / "epoch_0001-step_000002" / "metadata.json").write_text("{")
    (root / "epoch_0001-step_000003" / "state.pt").write_bytes(b"half")
    contents = read_contents(client(), run)
    [files] = [part.record for part in of_kind(contents, Files)]
    assert files.kind == "files"
    assert len(files.uris) == 8
    reasons = {one.name: one.reason for one in contents.left_out}
    assert "weights.safetensors is missing" in reasons["checkpoints/epoch_0001-step_000001"]
    assert "state.pt has 4 bytes of" in reasons["checkpoints/epoch_0001-step_000003"]
    assert "metadata" in reasons["checkpoints/epoch_0001-step_000002/metadata.json"]


# What MLflow's own client logged


def test_pictures_of_log_image_come_back_with_key_step_and_time(tmp_path: Path) -> None:
    """The whole picture is fetched, whatever the version of MLflow that named it."""
    run = new_run()
    client().log_image(run.info.run_id, ramp()[0], key="dogs/small ones", step=3, timestamp=T0_MS)
    root = Path(run.info.artifact_uri.removeprefix("file://"), "images")
    [whole] = root.glob("*.png")
    old = root / f"cats%step%-4%timestamp%{T0_MS}%{'0' * 36}.png"
    old.write_bytes(whole.read_bytes())
    contents = read_contents(client(), again(run))
    found = complete(run, contents, tmp_path / "fetched")
    pictures = [one for one in found if isinstance(one, Image)]
    assert [(one.key, one.step, one.timestamp_ms) for one in pictures] == [
        ("cats", -4, T0_MS), ("dogs/small ones", 3, T0_MS),
    ]  # fmt: skip
    for one in pictures:
        assert (tmp_path / "fetched" / one.file).read_bytes() == whole.read_bytes()
    assert not of_kind(contents, Files)
    assert contents.left_out == ()


def test_a_table_of_log_table_comes_back_once_the_run_has_ended() -> None:
    """Until then it may grow, which is said; a row is a row, an empty cell is None."""
    run = new_run()
    rows = {"prompt": ["a", "b"], "score": [0.5, None]}
    client().log_table(run.info.run_id, data=rows, artifact_file="eval/results.json")
    early = read_contents(client(), again(run))
    assert not of_kind(early, Table)
    assert [one.name for one in early.left_out] == ["eval/results.json"]
    assert list(of_kind(early, Files)[0].record.uris) == ["eval/results.json"]
    contents = read_contents(client(), ended(run))
    [table] = [part.record for part in of_kind(contents, Table)]
    started_ms = run.info.start_time
    data = [["a", 0.5], ["b", None]]
    assert table == Table(started_ms, 2, "eval/results", ["prompt", "score"], data)
    assert not of_kind(contents, Files)
    assert contents.left_out == ()


def test_files_of_any_kind_are_referred_to_where_they_lie(tmp_path: Path) -> None:
    """Figures, logs and models in folders: their place and size, and no download."""
    run = new_run()
    client().log_text(run.info.run_id, "12345", "deep/er/notes.txt")
    client().log_dict(run.info.run_id, {}, "config.json")
    (tmp_path / "clip.mp4").write_bytes(b"no clip")
    client().log_artifact(run.info.run_id, str(tmp_path / "clip.mp4"), "media/video/a")
    [part] = of_kind(read_contents(client(), again(run)), Files)
    files = part.record
    assert (files.name, files.kind) == (f"artifacts-{run.info.run_id}", "files")
    assert list(files.uris) == ["config.json", "deep/er/notes.txt", "media/video/a/clip.mp4"]
    assert files.sizes_bytes["deep/er/notes.txt"] == 5
    assert Path(files.uris["config.json"].removeprefix("file://")).read_text() == "{}"


def test_what_no_record_can_say_is_accounted_for() -> None:
    """A broken table, a dataset's own tags, a clip without its still, a tag without its file."""
    run = new_run(opusclip__checkpoint__last="gone", mlflow__loggedImages="True")
    run_id = run.info.run_id
    client().log_text(run_id, "[1, 2]", "broken.json")
    client().log_text(run_id, "", "media/video/a/step_00000001-0123abcd.mp4")
    noted = json.dumps([{"path": name, "type": "table"} for name in ("broken.json", "gone.json")])
    client().set_tag(run_id, "mlflow.loggedArtifacts", noted)
    dataset = MlflowDataset("d", "1", "local", "{}")
    client().log_inputs(run_id, [DatasetInput(dataset, [InputTag("by", "hand")])])
    contents = read_contents(client(), ended(run))
    assert sorted(one.name for one in contents.left_out) == [
        "broken.json", "checkpoints/gone", "dataset /d", "gone.json", "images",
        "media/video/a/step_00000001-0123abcd.mp4",
    ]  # fmt: skip
    [files] = [part.record for part in of_kind(contents, Files)]
    assert "broken.json" in files.uris


def test_what_is_told_of_films_and_clips_is_no_file_of_the_user_s(tmp_path: Path) -> None:
    """A mirror shows the clip and the dataset; what stands beside them is MLflow's."""
    folder = make_run(tmp_path)
    films = Sources.of("films", "d1", "training", [SourceClip(uri="/films/kite.mp4")])
    listed = films.keep_in(folder.media)
    dataset = Dataset("films", "d1", "local", "{}", "training", sources=listed)
    told = structs.replace(clip(folder, "samples/kite", 3), origin={"step": 3, "seed": 1})
    run = delivered(folder, dataset, told)
    contents = read_contents(client(), run)
    stored = {one.path for one in client().list_artifacts(run.info.run_id)}
    assert {"datasets", "origins"} < stored
    assert not of_kind(contents, Files)
    assert len(of_kind(contents, Video)) == 1
    assert contents.left_out == ()


def test_what_machines_send_each_other_is_no_file_of_the_user_s() -> None:
    """The records in it are the run's already; a file of the user's beside it is one as ever."""
    run = new_run()
    node = "opusclip/ranks/node-1-host-0123abcd/0000"
    client().log_text(run.info.run_id, "records", f"{node}/000000-0123abcd.bin")
    client().log_text(run.info.run_id, "notes", f"{node}/notes.txt")
    contents = read_contents(client(), ended(run))
    [files] = [part.record for part in of_kind(contents, Files)]
    assert list(files.uris) == [f"{node}/notes.txt"]
    assert contents.left_out == ()
