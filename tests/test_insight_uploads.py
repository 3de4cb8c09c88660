"""Facts about `opusclip_mlops.insight_uploads`: insights, pictures and tables in MLflow."""

import errno
import json
import math
import os
from pathlib import Path

import mlflow
import pytest
from mlflow.entities import Run
from PIL import Image as Picture

from opusclip_mlops import insight_uploads, layout
from opusclip_mlops.folder import RunFolder
from opusclip_mlops.insight_uploads import MOST_NOTE_CHARACTERS, set_aside, with_table
from opusclip_mlops.records import Batch, Image, Insight, Metrics, Record, Table, Text
from opusclip_mlops.sinks.mlflow import MlflowSink
from opusclip_mlops.tables import TABLES_TAG
from opusclip_mlops.uploads import Uploads
from tests.faults.disks import small_disk
from tests.insight_records import every_kind, histogram, histograms, trace
from tests.journeys import append, deliver_and_die, end, make_run, wait_until
from tests.mlflow_runs import T0_MS, again, client, delivered, new_run
from tests.test_pictures import encoded, picture


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def root(run: Run) -> Path:
    return Path(run.info.artifact_uri.removeprefix("file://"))


def files(run: Run) -> dict[str, bytes]:
    """All artifacts of a run, by their paths."""
    found = (path for path in root(run).rglob("*") if path.is_file())
    return {path.relative_to(root(run)).as_posix(): path.read_bytes() for path in found}


def shown(folder: RunFolder, key: str = "shown/loss", step: int = 3) -> Image:
    """A picture in a run's folder."""
    name = f"{step}-0123abcd.png"
    (folder.media / name).write_bytes(encoded(picture(400, 300)))
    return Image(T0_MS, step, key, name)


def table(step: int = 3, key: str = "eval/clips") -> Table:
    rows = [["a kite", 0.5, None], ["é", math.nan, 2]]
    return Table(T0_MS, step, key, ["prompt", "score", "votes"], rows)


def reasons(folder: RunFolder) -> list[str]:
    """Why records were refused, in their order."""
    if not folder.rejected.exists():
        return []
    return [json.loads(line)["reason"] for line in folder.rejected.read_text().splitlines()]


def test_each_record_has_the_same_files_each_time_it_is_sent(tmp_path: Path) -> None:
    """Sent twice, as after a crash, nothing is there twice; names say kind, key, step and time."""
    folder = make_run(tmp_path)
    run = new_run()
    uploads = Uploads(client(), run.info.run_id, folder)
    records = [*every_kind(folder), shown(folder), shown(folder, "a:b"), table()]
    for record in records:
        uploads.send(record)
    first = files(run)
    for record in records:
        uploads.send(record)
    assert files(run) == first
    named = [one for path in first if (one := layout.insight_of(path))]
    wanted = {(one.kind, one.key, one.step, one.timestamp_ms) for one in every_kind(folder)}
    assert {(one.kind, one.key, one.step, one.timestamp_ms) for one in named} == wanted
    assert len(first) == 7 + 3 + 2 + 3 + 1


def test_an_insight_is_its_content_and_its_files(tmp_path: Path) -> None:
    """The JSON has the content and the files' hashes; each file lies beside it, byte for byte."""
    folder = make_run(tmp_path)
    one = trace(folder)
    found = files(delivered(folder, one))
    [path] = [path for path in found if path.endswith(".json")]
    about = json.loads(found[path])
    assert about["content"] == one.content
    assert (about["format"], about["kind"], about["key"]) == (1, "trace", one.key)
    beside = found[f"{path.removesuffix('.json')}/trace.json.gz"]
    assert beside == (folder.media / one.files["trace.json.gz"]).read_bytes()
    assert list(about["files"]) == ["trace.json.gz"]


def test_a_picture_is_in_mlflow_s_image_grid(tmp_path: Path) -> None:
    """By the names of its `log_image`: the whole as it is, and a small one; the tag says so."""
    folder = make_run(tmp_path)
    one = shown(folder)
    run = delivered(folder, one)
    found = files(run)
    [whole] = [path for path in found if path.endswith(".png")]
    assert whole.startswith(f"images/shown~loss+step+3+timestamp+{T0_MS}+")
    assert found[whole] == (folder.media / one.file).read_bytes()
    small = root(run) / whole.replace(".png", "+compressed.webp")
    with Picture.open(small) as image:
        assert image.size == (256, 192)
    assert run.data.tags["mlflow.loggedImages"] == "True"
    assert len(found) == 2


def test_a_table_is_read_by_mlflow_itself(tmp_path: Path) -> None:
    """`load_table` finds it by its name; what others have noted stays noted."""
    folder = make_run(tmp_path)
    run = new_run()
    theirs = {"path": "theirs.json", "type": "table"}
    client().log_table(run.info.run_id, {"a": [1]}, "theirs.json")
    Uploads(client(), run.info.run_id, folder).send(table())
    noted = json.loads(again(run).data.tags[TABLES_TAG])
    assert noted[0] == theirs
    path = noted[1]["path"]
    assert layout.table_of(path) is not None
    experiment_id = run.info.experiment_id
    mlflow.set_tracking_uri(client().tracking_uri)
    try:
        found = client().load_table(experiment_id, path, run_ids=[run.info.run_id])
    finally:
        mlflow.set_tracking_uri(None)
    assert list(found.columns) == ["prompt", "score", "votes"]
    assert list(found["prompt"]) == ["a kite", "é"]
    client().log_table(run.info.run_id, {"a": [1]}, "more.json")
    assert len(json.loads(again(run).data.tags[TABLES_TAG])) == 3


def test_the_note_of_tables_never_becomes_too_long() -> None:
    """The oldest of ours give way, nothing of others; MLflow would cut a long one and break it."""
    theirs = [{"path": f"theirs/{n}.json", "type": "table"} for n in range(40)]
    note: str | None = json.dumps(theirs)
    paths = [layout.table_path("eval/é", step, T0_MS, "0" * 12) for step in range(100)]
    for path in paths:
        assert note is not None
        note = with_table(note, path)
    assert note is not None
    assert len(note) <= MOST_NOTE_CHARACTERS
    noted = json.loads(note)
    assert noted[:40] == theirs
    kept = [one["path"] for one in noted[40:]]
    assert kept == paths[-len(kept) :]
    assert kept
    assert with_table(note, paths[-1]) is None
    full = json.dumps([{"path": "x" * MOST_NOTE_CHARACTERS, "type": "table"}])
    assert with_table(full, paths[0]) is None


@pytest.mark.parametrize("broken", ["{", "3", '{"a": 1}', ""])
def test_a_note_that_is_not_mlflow_s_stays_as_it_is(broken: str) -> None:
    """Nobody's note is overwritten."""
    assert with_table(broken, "tables/k/t.json") is None


def test_what_can_never_be_sent_is_refused_and_holds_up_nothing(tmp_path: Path) -> None:
    """A file that is gone, a folder in its place, a broken picture, bytes: each with its reason."""
    folder = make_run(tmp_path)
    gone, in_a_folder = trace(folder), trace(folder, 13)
    (folder.media / gone.files["trace.json.gz"]).unlink()
    (folder.media / "odd").mkdir()
    in_a_folder = Insight(T0_MS, 13, "k", "trace", in_a_folder.content, {"trace.json.gz": "odd"})
    named = Insight(T0_MS, 14, "k", "trace", {}, {"../up": "odd"})
    (folder.media / "broken.png").write_bytes(b"no picture")
    records: list[Record] = [
        gone, in_a_folder, named,
        Image(T0_MS, 1, "k", "broken.png"), Image(T0_MS, 1, "k", "no.png"),
        Insight(T0_MS, 1, "k", "graph", {"nodes": b"x"}), Metrics(T0_MS, 1, {"loss": 0.5}),
    ]  # fmt: skip
    run = delivered(folder, *records)
    said = reasons(folder)
    for part, reason in zip(
        ("trace-a.json.gz can't be read: No such file", "odd can't be read: Is a directory",
         "has no plain name", "broken.png cannot be read", "no.png cannot be read",
         "can't be kept as JSON"),
        said, strict=True,
    ):  # fmt: skip
        assert part in reason
    assert run.data.metrics == {"loss": 0.5}
    assert files(run) == {}


def test_a_killed_shipper_sends_all_again_under_the_same_names(tmp_path: Path) -> None:
    """Killed once all was taken and nothing acknowledged: every file is there once."""
    folder = make_run(tmp_path)
    records = [*every_kind(folder), shown(folder), table()]
    append(folder, records)
    end(folder)
    deliver_and_die(folder, "mlflow")
    identity = folder.identity()
    assert identity is not None
    before = files(client().get_run(identity.run_id))
    run = delivered(folder)
    assert files(run) == before
    assert len(before) == 7 + 3 + 2 + 1
    assert len(json.loads(run.data.tags[TABLES_TAG])) == 1


def large(step: int = 1) -> Insight:
    """Two hundred layers of 512 buckets each."""
    content = {f"layer.{n}": histogram(*range(512)) for n in range(200)}
    one = histograms(step)
    return Insight(one.timestamp_ms, step, one.key, one.kind, {"histograms": content})


def test_a_large_record_that_has_to_wait_is_noted_by_a_file(tmp_path: Path) -> None:
    """The state that is written each second stays small; what is sent then is the same."""
    folder = make_run(tmp_path)
    run, whole = new_run(), new_run()
    rows = [[n, "words " * 9, math.inf] for n in range(500)]
    records = [large(), Table(T0_MS, 1, "k", ["a", "b", "c"], rows)]
    for record in records:
        kept = set_aside(folder, record)
        assert len(repr(kept)) < 300
        assert set_aside(folder, kept) is kept
        Uploads(client(), run.info.run_id, folder).send(kept)
        Uploads(client(), whole.info.run_id, folder).send(record)
    assert files(run) == files(whole)
    assert {one.stat().st_mode & 0o777 for one in folder.media.glob("*.record")} == {0o600}


def test_a_small_record_waits_as_it_is(tmp_path: Path) -> None:
    """As does a text, and all on a full disk."""
    folder = make_run(tmp_path)
    for record in (histograms(), table(), Text(T0_MS, 1, "k", "words " * 9000)):
        assert set_aside(folder, record) is record


def test_on_a_full_disk_a_large_record_waits_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is lost for want of a file."""
    folder = make_run(tmp_path)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(insight_uploads, "write_whole", full)
    record = large()
    assert set_aside(folder, record) is record


def test_a_record_whose_file_is_gone_is_refused(tmp_path: Path) -> None:
    """With the reason, and the others go on."""
    folder = make_run(tmp_path)
    kept = set_aside(folder, large())
    [file] = folder.media.glob("*.record")
    file.unlink()
    run = delivered(folder, kept, histograms())
    assert "is gone or broken" in reasons(folder)[0]
    assert len(files(run)) == 1


def test_on_a_full_disk_files_wait_and_nothing_is_refused(tmp_path: Path) -> None:
    """What needs room to be sent waits, and what comes behind it; then all of it arrives."""
    with small_disk(tmp_path / "disk", size_kib=8192) as disk:
        folder = make_run(disk.path, tracking_uri=client().tracking_uri)
        records = (shown(folder), *every_kind(folder), table())
        sink = MlflowSink(folder)
        sink.open({})
        identity = folder.identity()
        assert identity is not None
        run = client().get_run(identity.run_id)
        disk.fill()
        written = sink.write(Batch(records=records))
        assert (written.refused, written.unfinished) == ((), True)
        assert len(written.state["put_off"]) == len(records)
        disk.grow()
        wait_until(lambda: not sink.write(Batch(records=())).unfinished)
        assert len(files(run)) == 7 + 3 + 2 + 1
