"""Facts about `opusclip_mlops.insight_reading`: what stands in MLflow comes back as it was."""

import json
import math
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow.entities import Run
from msgspec import structs

from opusclip_mlops import layout
from opusclip_mlops.contents import Contents, Part, fetch, read_contents, unreadable
from opusclip_mlops.errors import RecordError
from opusclip_mlops.folder import RunFolder
from opusclip_mlops.insight_documents import insight_document
from opusclip_mlops.insight_reading import MOST_DOCUMENT_BYTES, MOST_FILES_BYTES
from opusclip_mlops.records import Files, Image, Insight, Record, Row, Table
from opusclip_mlops.tables import MOST_BYTES, MOST_ROWS, TABLES_TAG
from opusclip_mlops.uploads import Uploads
from tests.insight_records import embedding, every_kind
from tests.insight_records import layout as charts
from tests.journeys import make_run
from tests.mlflow_runs import T0_MS, again, client, complete, ended, new_run, of_kind
from tests.test_insight_uploads import root, shown, table
from tests.test_pictures import encoded, picture


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def sent(folder: RunFolder, *records: Record) -> Run:
    """A run that goes on, with these in MLflow."""
    run = new_run()
    uploads = Uploads(client(), run.info.run_id, folder)
    for record in records:
        uploads.send(record)
    return again(run)


def rows_of(run: Run, contents: Contents, folder: Path) -> list[Row]:
    return [one for one in complete(run, contents, folder) if isinstance(one, Row)]


def test_all_kinds_come_back_as_they_were_logged(tmp_path: Path) -> None:
    """While the run goes on, with key, step, time and content; files byte for byte."""
    folder = make_run(tmp_path)
    shown_once = every_kind(folder)
    logged = [*shown_once, shown(folder), table()]
    run = sent(folder, *logged)
    contents = read_contents(client(), run)
    fetched = tmp_path / "fetched"
    found = rows_of(run, contents, fetched)
    assert contents.left_out == ()
    assert not of_kind(contents, Files)
    assert len(found) == len(logged)
    insights = {one.kind: one for one in found if isinstance(one, Insight)}
    for one in shown_once:
        back = insights[one.kind]
        assert structs.replace(back, files={}) == structs.replace(one, files={})
        assert back.files.keys() == one.files.keys()
        for name, file in one.files.items():
            assert (fetched / back.files[name]).read_bytes() == (folder.media / file).read_bytes()
    [image] = [one for one in found if isinstance(one, Image)]
    assert (image.key, image.step, image.timestamp_ms) == ("shown/loss", 3, T0_MS)
    assert (fetched / image.file).read_bytes() == encoded(picture(400, 300))
    [back] = [one for one in found if isinstance(one, Table)]
    whole = [["a kite", 0.5, None], ["é", "nan", 2]]
    assert math.isnan(float(whole[1][1] or 0))
    assert back == structs.replace(table(), rows=whole)


def test_what_is_fetched_again_is_there(tmp_path: Path) -> None:
    """Files of an earlier call are not downloaded again."""
    folder = make_run(tmp_path)
    run = sent(folder, embedding(folder))
    contents = read_contents(client(), run)
    first = rows_of(run, contents, tmp_path / "fetched")
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "fetched").iterdir()}
    assert rows_of(run, contents, tmp_path / "fetched") == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "fetched").iterdir()} == times
    assert len(times) == 2


@pytest.mark.parametrize("key", ["a:b", "Zürich/映像", "k" * 250, "plain/key"])
def test_a_picture_comes_back_with_any_key(tmp_path: Path, key: str) -> None:
    """Once, though the image grid can't hold the key."""
    folder = make_run(tmp_path)
    run = sent(folder, shown(folder, key), shown(folder, key, 4))
    contents = read_contents(client(), run)
    found = [part.record for part in of_kind(contents, Image)]
    assert [(one.key, one.step) for one in found] == [(key, 3), (key, 4)]
    assert not of_kind(contents, Files)
    images = [one for one in rows_of(run, contents, tmp_path / "f") if isinstance(one, Image)]
    assert (tmp_path / "f" / images[0].file).read_bytes() == encoded(picture(400, 300))


def test_tables_of_theirs_are_carried_as_before(tmp_path: Path) -> None:
    """Once the run has ended, by length and start; a table of ours is never carried twice."""
    folder = make_run(tmp_path)
    run = sent(folder, table())
    client().log_table(run.info.run_id, {"a": [1, 2]}, "theirs.json")
    early = read_contents(client(), again(run))
    assert [one.record.key for one in of_kind(early, Table)] == ["eval/clips"]
    assert [one.name for one in early.left_out] == ["theirs.json"]
    contents = read_contents(client(), ended(run))
    keys = {(one.record.key, one.record.step) for one in of_kind(contents, Table)}
    assert keys == {("eval/clips", 3), ("theirs", 2)}
    assert contents.left_out == ()


def test_a_table_that_its_note_names_and_nobody_has_is_said(tmp_path: Path) -> None:
    """As one of `mlflow.log_table` is."""
    run = sent(make_run(tmp_path), table())
    [noted] = json.loads(run.data.tags[TABLES_TAG])
    (root(run) / noted["path"]).unlink()
    left = {one.name: one.reason for one in read_contents(client(), run).left_out}
    assert "the file is not there" in left[noted["path"]]


# What is broken or foreign


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:50])


def _later_format(path: Path) -> None:
    path.write_text(path.read_text().replace('"format":1', '"format":2'))


def _changed(path: Path) -> None:
    path.write_text(path.read_text().replace('"dimensions":3', '"dimensions":4'))


def _file_gone(path: Path) -> None:
    (path.with_suffix("") / "sprite.png").unlink()


def _files_gone(path: Path) -> None:
    for name in ("sprite.png", "vectors.npy"):
        (path.with_suffix("") / name).unlink()
    path.with_suffix("").rmdir()


def _file_changed(path: Path) -> None:
    (path.with_suffix("") / "vectors.npy").write_bytes(b"others")


@pytest.mark.parametrize(
    ("break_it", "reason"),
    [
        (_cut, "can't be read as JSON"),
        (_later_format, "it has format 2: 1 is read"),
        (_changed, "its digest is not that of its content"),
        (_file_gone, "its file sprite.png is not there"),
        (_files_gone, "is not there"),
        (_file_changed, "its file vectors.npy is not the one that was logged"),
        (Path.unlink, "No such"),
    ],
)
def test_a_broken_insight_is_left_out_with_a_reason(
    tmp_path: Path, break_it: Callable[[Path], None], reason: str
) -> None:
    """What was changed behind our back stops nothing else, whenever it was changed."""
    folder = make_run(tmp_path)
    run = sent(folder, embedding(folder), charts())
    before = read_contents(client(), run)
    [part] = [one for one in of_kind(before, Insight) if one.record.kind == "embedding"]
    break_it(root(run) / part.artifact_path)
    with pytest.raises(RecordError, match=reason):
        fetch(client(), run.info.run_id, part, tmp_path)
    if break_it is not _file_changed:
        [left] = unreadable(client(), run.info.run_id, [*of_kind(before, Insight)])
        assert left.name == part.artifact_path
    after = read_contents(client(), run)
    [other] = [one for one in of_kind(after, Insight) if one.record.kind == "layout"]
    assert fetch(client(), run.info.run_id, other, tmp_path) == charts()


def test_a_broken_table_is_left_out_with_a_reason(tmp_path: Path) -> None:
    """Cut, or with other cells than it had."""
    for number, change in enumerate((lambda text: text[:20], lambda text: text.replace("é", "e"))):
        folder = make_run(tmp_path / str(number))
        run = sent(folder, table())
        [part] = of_kind(read_contents(client(), run), Table)
        path = root(run) / part.artifact_path
        path.write_text(change(path.read_text()))
        with pytest.raises(RecordError, match="its digest"):
            fetch(client(), run.info.run_id, part, tmp_path)
        assert [one.name for one in unreadable(client(), run.info.run_id, [part])] == [
            part.artifact_path
        ]


def test_a_table_of_too_many_rows_is_left_out(tmp_path: Path) -> None:
    """MLflow has it; W&B would keep no more than 10,000."""
    rows = [[n] for n in range(MOST_ROWS + 1)]
    run = sent(make_run(tmp_path), Table(T0_MS, 1, "k", ["n"], rows))
    [part] = of_kind(read_contents(client(), run), Table)
    with pytest.raises(RecordError, match="a mirror takes 10000"):
        fetch(client(), run.info.run_id, part, tmp_path)


def test_what_is_too_large_is_not_even_fetched(tmp_path: Path) -> None:
    """Its size is known from the listing: 2 GB of JSON, or of an insight's files."""
    folder = make_run(tmp_path)
    run = sent(folder, embedding(folder), charts(), table())
    before = read_contents(client(), run)
    parts = {_named(part): root(run) / part.artifact_path for part in before.parts if _named(part)}
    os.truncate(parts["layout"], 2 * 2**30)
    os.truncate(parts["table"], 2 * 2**30)
    os.truncate(parts["embedding"].with_suffix("") / "vectors.npy", 2 * 2**30)
    contents = read_contents(client(), run)
    reasons = {one.name.split("/")[-3]: one.reason for one in contents.left_out}
    assert f"it has {2**31} bytes: a mirror takes {MOST_DOCUMENT_BYTES}" in reasons.values()
    assert f"it has {2**31} bytes: a mirror takes {MOST_BYTES}" in reasons.values()
    assert any(f"a mirror takes {MOST_FILES_BYTES}" in reason for reason in reasons.values())
    # They are files like any other then.
    [others] = of_kind(contents, Files)
    assert len(others.record.uris) == 5
    assert not [part for part in contents.parts if _named(part)]


def _named(part: Part) -> str:
    record = part.record
    return record.kind if isinstance(record, Insight) else "table" * isinstance(record, Table)


def test_foreign_files_under_our_folders_are_files_like_any_other(tmp_path: Path) -> None:
    """An unknown kind is said; what has no name of ours, or waits for its JSON, is just there."""
    run = sent(make_run(tmp_path), charts())
    text, digest = insight_document(charts(), {})
    foreign = [
        "insights/hologram/k/step_00000001-5-0123456789ab.json",
        "insights/graph/k/step_1.json",
        "insights/graph/k/step_00000001-5-0123456789ab/half.npy",
        "insights/notes.txt",
        "tables/mine.json",
        "media/image/dog.png",
    ]
    for path in foreign:
        client().log_text(run.info.run_id, text, path)
    contents = read_contents(client(), again(run))
    [left] = contents.left_out
    assert left.name == foreign[0]
    assert left.reason == "no mirror shows insights of kind 'hologram'"
    [others] = of_kind(contents, Files)
    assert sorted(others.record.uris) == sorted(foreign)
    # A copy of one of ours under another name is not what that name says.
    copied = layout.insight_path("layout", "other", 0, T0_MS, digest)
    client().log_text(run.info.run_id, text, copied)
    parts = of_kind(read_contents(client(), again(run)), Insight)
    [part] = [one for one in parts if one.artifact_path == copied]
    with pytest.raises(RecordError, match="than its name"):
        fetch(client(), run.info.run_id, part, tmp_path)


def test_a_name_in_an_insight_never_leaves_the_folder(tmp_path: Path) -> None:
    """A file called ../up is neither written nor fetched."""
    run = sent(make_run(tmp_path), charts())
    text, _ = insight_document(charts(), {})
    path = layout.insight_path("layout", "layout", 0, T0_MS, "0" * 12)
    evil = text.replace('"files":{}', '"files":{"../../up":"' + "0" * 64 + '"}')
    client().log_text(run.info.run_id, evil, path)
    parts = of_kind(read_contents(client(), again(run)), Insight)
    [part] = [one for one in parts if one.artifact_path == path]
    with pytest.raises(RecordError, match="no plain name"):
        fetch(client(), run.info.run_id, part, tmp_path / "deep")
    assert not list(tmp_path.rglob("up"))
