"""Facts about `opusclip_mlops.contents`: what was logged comes back out of MLflow as it was."""

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from mlflow import MlflowClient
from mlflow.entities import Dataset as MlflowDataset
from mlflow.entities import DatasetInput, InputTag
from mlflow.exceptions import MlflowException

from opusclip_mlops import media
from opusclip_mlops.contents import Part, fetch, read_contents
from opusclip_mlops.delivery import deliver
from opusclip_mlops.errors import RecordError, VideoError
from opusclip_mlops.records import (
    About,
    Dataset,
    Files,
    Image,
    Insight,
    Metrics,
    Params,
    Record,
    Row,
    Table,
    Tags,
    Text,
    Video,
)
from tests.faults.proxy import FaultProxy
from tests.insight_records import embedding
from tests.journeys import LOCAL_ID, append, end, make_run, store
from tests.mlflow_runs import (
    T0_MS,
    again,
    client,
    clip,
    complete,
    delivered,
    new_run,
    of_kind,
    ramp,
    saved,
)
from tests.servers import mlflow_server

KEYS = [
    "samples/kite", "a:b", "a_b", "with space/and.dot", "Zürich/映像", "x-1_2/:/y: z", "é" * 250,
    "k" * 250, "p/" * 100 + "q",
]  # fmt: skip


# What we logged ourselves


def test_what_a_tracker_logged_comes_back_as_it_was(tmp_path: Path) -> None:
    """Params, tags, notes, datasets, texts and clips are read back equal to the live records."""
    folder = make_run(tmp_path, notes="for the board")
    logged: list[Record] = [
        Params({"lr": "1e-3", "depth": "4"}),
        Tags({"a": "b"}),
        Dataset("clips", "d1", "local", '{"uri": "/x"}', "training", '{"frames": 9}'),
        Text(T0_MS, 7, "notes/first", "one < two\r\n\n Zürich 映像"),
        Text(T0_MS, -3, "notes/first", ""),
        clip(folder, "samples/kite", 12, "a kite: at dawn, 映像; x=1\nline two"),
        clip(folder, "samples/kite", 13, fps=12.5),
    ]
    run = delivered(folder, *logged)
    contents = read_contents(client(), run)
    found = complete(run, contents, tmp_path / "fetched")
    assert [one for one in found if isinstance(one, Params)] == [
        Params({"depth": "4", "lr": "1e-3"})
    ]
    note = {"mlflow.note.content": "for the board"}
    assert [one for one in found if isinstance(one, Tags)] == [
        Tags({"a": "b", **note, "team": "true"})
    ]
    assert [one for one in found if isinstance(one, Dataset)] == [logged[2]]
    texts = [one for one in found if isinstance(one, Text)]
    assert sorted(texts, key=lambda one: one.step) == [logged[4], logged[3]]
    for live, back in zip(
        logged[5:], (one for one in found if isinstance(one, Video)), strict=True
    ):
        assert isinstance(live, Video)
        assert (back.key, back.step, back.timestamp_ms) == (live.key, live.step, live.timestamp_ms)
        assert (back.fps, back.caption) == (live.fps, live.caption)
    assert contents.left_out == ()
    assert {type(one) for one in found} == {Params, Tags, About, Dataset, Text, Video}


def test_a_clip_comes_back_byte_for_byte(tmp_path: Path) -> None:
    """What a mirror is given afterwards is the file it was given live."""
    folder = make_run(tmp_path)
    live = clip(folder, "samples/kite", 12, "a kite")
    run = delivered(folder, live)
    target = make_run(tmp_path / "work", name="f" * 32)
    [part] = of_kind(read_contents(client(), run), Video)
    back = fetch(client(), run.info.run_id, part, target.media)
    assert isinstance(back, Video)
    as_live = media.rendition(folder, live, "mp4").read_bytes()
    assert media.rendition(target, back, "mp4").read_bytes() == as_live
    assert media.rendition(target, back, "gif").read_bytes()[:3] == b"GIF"


@pytest.mark.parametrize("key", KEYS)
def test_any_legal_key_comes_back_exactly(tmp_path: Path, key: str) -> None:
    """Colons, spaces, other alphabets and 250 characters: of clips and texts alike."""
    folder = make_run(tmp_path)
    run = delivered(folder, clip(folder, key, 1), Text(T0_MS, 2, key, "words"))
    assert folder.progress("mlflow").rejected == 0
    records = [part.record for part in read_contents(client(), run).parts]
    rows = [record for record in records if isinstance(record, Row)]
    assert [(type(row), row.key) for row in rows] == [(Text, key), (Video, key)]


def test_texts_of_one_moment_all_come_back(tmp_path: Path) -> None:
    """Five texts under one key, step and millisecond are five."""
    folder = make_run(tmp_path)
    run = delivered(folder, *(Text(T0_MS, 1, "captions", f"caption {i}") for i in range(5)))
    found = complete(run, read_contents(client(), run), tmp_path / "fetched")
    texts = {one.text for one in found if isinstance(one, Text)}
    assert texts == {f"caption {i}" for i in range(5)}


def test_the_identity_is_the_one_the_live_mirrors_have(tmp_path: Path) -> None:
    """Name, ids, start and last step are as the sink wrote them down."""
    folder = make_run(tmp_path)
    run = delivered(
        folder, Metrics(T0_MS, 41, {"loss": 0.5}), Metrics(T0_MS, 99, {"system/x": 1.0})
    )
    contents = read_contents(client(), run)
    live = folder.identity()
    assert live is not None
    assert live.last_step == -1  # known before the first point
    assert contents.identity.last_step == 41
    assert contents.identity.mirror_id == live.mirror_id == LOCAL_ID
    assert contents.identity.artifact_uri == live.artifact_uri
    assert (contents.identity.experiment_name, contents.identity.run_name) == ("films", "a-run")
    assert contents.identity.start_time_ms == 1_700_000_000_000
    assert (contents.status, contents.end_time_ms) == ("FINISHED", 1_700_000_100_000)
    assert contents.is_over


def test_of_datasets_with_one_name_the_same_is_kept_each_time() -> None:
    """A mirror shows one for a name and context, whatever order MLflow gives them in."""
    given = [MlflowDataset("d", digest, "local", "{}") for digest in ("2", "3", "1")]
    for order in (given, given[::-1]):
        run = new_run()
        for dataset in order:
            tag = InputTag("mlflow.data.context", "training")
            client().log_inputs(run.info.run_id, [DatasetInput(dataset, [tag])])
        contents = read_contents(client(), again(run), with_artifacts=False)
        assert [part.record.digest for part in of_kind(contents, Dataset)] == ["3"]
        assert {one.name for one in contents.left_out} == {"dataset training/d"}
        assert len(contents.left_out) == 2


def test_words_come_first_and_rows_in_time(tmp_path: Path) -> None:
    """A mirror knows what a run is before its first row; rows rise by time, then step."""
    folder = make_run(tmp_path)
    rows = [Text(T0_MS + at, step, "k", f"{at} {step}") for at, step in ((9, 0), (1, 5), (1, 2))]
    run = delivered(folder, *rows, Params({"a": "1"}))
    records = [part.record for part in read_contents(client(), run).parts]
    is_row = [isinstance(record, Row) for record in records]
    assert is_row == sorted(is_row)
    moments = [(one.timestamp_ms, one.step) for one in records if isinstance(one, Text)]
    assert moments == [(T0_MS + 1, 2), (T0_MS + 1, 5), (T0_MS + 9, 0)]


def test_about_says_what_a_person_wants_to_know(tmp_path: Path) -> None:
    """Status, times, user, commit, end; nothing that only MLflow or we need."""
    folder = make_run(tmp_path)
    tags = {"mlflow.user": "ann", "mlflow.source.git.commit": "abc", "opusclip.traceback": "line 1"}
    append(folder, [Tags(tags)])
    end(folder, "FAILED", "ValueError: no")
    deliver(folder, "mlflow")
    run = client().get_run(folder.identity().run_id)  # type: ignore[union-attr]
    [part] = of_kind(read_contents(client(), run, with_artifacts=False), About)
    about = part.record
    assert about.name == "mlflow"
    assert about.values["status"] == "FAILED"
    assert about.values["started"] == "2023-11-14T22:13:20.000+00:00"
    assert about.values["user"] == "ann"
    assert about.values["mlflow.source.git.commit"] == "abc"
    assert about.values["opusclip.end_reason"] == "ValueError: no"
    assert about.values["opusclip.traceback"] == "line 1"
    assert not {"opusclip.local_id", "mlflow.runName", "mlflow.loggedImages"} & about.values.keys()


# Through a server


def test_a_server_gives_what_a_database_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Proxied artifacts: the same records, the same bytes; what is gone is told from a bad day."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    (tmp_path / "server").mkdir()
    with mlflow_server(tmp_path / "server") as address, FaultProxy(address) as proxy:
        remote = MlflowClient(proxy.address)
        folder = make_run(tmp_path, tracking_uri=address)
        live = clip(folder, "é:x/a b", 12, "a kite: 映像")
        words = Text(T0_MS, 7, "notes/é:", "one < two")
        shown, ours = embedding(folder), Table(T0_MS, 4, "eval/é:", ["a"], [["é"]])
        append(folder, [Params({"lr": "1"}), live, words, shown, ours, saved(folder, 3, best=True)])
        end(folder)
        deliver(folder, "mlflow")
        run = remote.get_run(folder.identity().run_id)  # type: ignore[union-attr]
        remote.log_image(run.info.run_id, ramp()[0], key="dogs", step=3, timestamp=T0_MS)
        remote.log_table(run.info.run_id, data={"a": [1]}, artifact_file="eval/t.json")
        remote.log_text(run.info.run_id, "12345", "deep/er/notes.txt")
        contents = read_contents(remote, remote.get_run(run.info.run_id))
        assert contents.left_out == ()
        target = make_run(tmp_path / "work", name="f" * 32).media
        fetched = [fetch(remote, run.info.run_id, part, target) for part in contents.parts]
        kinds = [type(one) for one in fetched if isinstance(one, Row)]
        wanted = [Image, Insight, Table, Table, Text, Video]
        assert sorted(kinds, key=str) == sorted(wanted, key=str)
        assert ours in fetched
        [seen] = [one for one in fetched if isinstance(one, Insight)]
        assert msgspec.structs.replace(seen, files=shown.files) == shown
        for name, file in shown.files.items():
            assert (target / seen.files[name]).read_bytes() == (folder.media / file).read_bytes()
        [back] = [one for one in fetched if isinstance(one, Video)]
        assert (target / back.file).read_bytes() == media.rendition(
            folder, live, "mp4"
        ).read_bytes()
        assert (back.key, back.caption, back.fps) == (live.key, live.caption, live.fps)
        assert words in fetched
        sets = {one.name: one for one in fetched if isinstance(one, Files)}
        assert sets.keys() == {f"checkpoint-{LOCAL_ID}", f"artifacts-{LOCAL_ID}"}
        assert list(sets[f"artifacts-{LOCAL_ID}"].uris) == ["deep/er/notes.txt"]
        uri = sets[f"artifacts-{LOCAL_ID}"].uris["deep/er/notes.txt"]
        assert uri == f"{run.info.artifact_uri}/deep/er/notes.txt"

        [part] = of_kind(contents, Text)
        (target / "fresh").mkdir()
        proxy.fail("500", 1)
        with pytest.raises(MlflowException):
            fetch(remote, run.info.run_id, part, target / "fresh")
        [stored] = (tmp_path / "server").rglob(Path(part.artifact_path).name)
        stored.unlink()
        with pytest.raises(RecordError, match="step_00000007"):
            fetch(remote, run.info.run_id, part, target / "fresh")

        [part] = of_kind(contents, Insight)
        proxy.fail("500", 1, method="GET", part="sprite.png")
        with pytest.raises((MlflowException, OSError)):
            fetch(remote, run.info.run_id, part, target / "fresh")
        [stored] = (tmp_path / "server").rglob("sprite.png")
        stored.unlink()
        with pytest.raises(RecordError, match=r"sprite\.png is not there"):
            fetch(remote, run.info.run_id, part, target / "fresh")


def test_a_bad_day_of_the_artifact_store_makes_nothing_vanish(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A listing that fails for a passing reason raises; it is never taken for an empty folder."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with mlflow_server(tmp_path) as address, FaultProxy(address) as proxy:
        remote = MlflowClient(proxy.address)
        run = remote.create_run(remote.create_experiment("films"))
        remote.log_text(run.info.run_id, "12345", "deep/er/notes.txt")
        run = remote.get_run(run.info.run_id)
        whole = read_contents(remote, run)
        for folder in ("mlflow-artifacts", "%2Fdeep", "%2Fdeep%2Fer"):
            met = proxy.met["500"]
            proxy.fail("500", 1, method="GET", part=folder)
            with pytest.raises((MlflowException, OSError)):
                read_contents(remote, run)
            assert proxy.met["500"] == met + 1
        assert read_contents(remote, run) == whole


def test_a_tag_does_not_lead_a_mirror_elsewhere() -> None:
    """A mirror id that is no plain name is not believed: mirrors make folders of it."""
    for bad in ("../../up", "a/b", "", "x" * 65, "a\nb"):
        run = new_run(opusclip__mirror_id=bad)
        contents = read_contents(client(), again(run), with_artifacts=False)
        assert contents.identity.mirror_id == run.info.run_id


TRACED = """
import sys, mlflow
mlflow.set_tracking_uri(sys.argv[1])
with mlflow.start_run(run_id=sys.argv[2]), mlflow.start_span("sampling"):
    pass
"""


def test_traces_are_counted_and_named(tmp_path: Path) -> None:
    """They stay in MLflow, and that is said."""
    run = new_run()
    command = [sys.executable, "-c", TRACED, store(tmp_path), run.info.run_id]
    env = {**os.environ, "MLFLOW_ENABLE_ASYNC_TRACE_LOGGING": "false"}
    subprocess.run(command, check=True, env=env)
    [left] = read_contents(client(), again(run)).left_out
    assert (left.name, left.reason[:8]) == ("traces", "1 traces")


# Families


def test_a_run_and_its_nested_runs_share_a_family() -> None:
    """Named after the root, by every generation; a run that stands alone has none."""
    root, alone = new_run(), new_run()
    child = new_run(mlflow__parentRunId=root.info.run_id)
    grandchild = new_run(mlflow__parentRunId=child.info.run_id)
    families = {
        read_contents(client(), one, with_artifacts=False).identity.family
        for one in (root, child, grandchild)
    }
    assert families == {f"theirs-{root.info.run_id[:8]}"}
    assert read_contents(client(), alone, with_artifacts=False).identity.family == ""


def test_parents_in_a_ring_or_gone_are_a_family_too() -> None:
    """Runs that name each other, and runs whose parent is unknown, end the search alike."""
    first = new_run()
    second = new_run(mlflow__parentRunId=first.info.run_id)
    client().set_tag(first.info.run_id, "mlflow.parentRunId", second.info.run_id)
    both = {
        read_contents(client(), again(one), with_artifacts=False).identity.family
        for one in (first, second)
    }
    assert both == {f"theirs-{min(first.info.run_id, second.info.run_id)[:8]}"}
    orphan = new_run(mlflow__parentRunId="f" * 32)
    family = read_contents(client(), orphan, with_artifacts=False).identity.family
    assert family == "run-ffffffff"


# Fetching


def test_what_is_gone_or_broken_is_told_from_a_bad_day(tmp_path: Path) -> None:
    """A vanished file is a RecordError with its name, a broken clip a VideoError."""
    folder = make_run(tmp_path)
    run = delivered(folder, clip(folder, "k", 1), Text(T0_MS, 2, "k", "words"))
    parts = {type(one.record): one for one in read_contents(client(), run).parts}
    root = Path(run.info.artifact_uri.removeprefix("file://"))
    (root / parts[Text].artifact_path).unlink()
    with pytest.raises(RecordError, match="step_00000002"):
        fetch(client(), run.info.run_id, parts[Text], tmp_path)
    (root / parts[Video].artifact_path).write_bytes(b"no clip")
    with pytest.raises(VideoError):
        fetch(client(), run.info.run_id, parts[Video], tmp_path)


def test_a_name_from_a_server_never_leaves_the_folder(tmp_path: Path) -> None:
    """Whatever an artifact is called, nothing is written beside the folder."""
    folder = make_run(tmp_path)
    run = delivered(folder, Text(T0_MS, 2, "k", "words"))
    inside = tmp_path / "inside"
    inside.mkdir()
    before = sorted(tmp_path.rglob("*"))
    for record in (Text(T0_MS, 2, "k", ""), Image(T0_MS, 2, "k", ""), Video(T0_MS, 2, "k", "", 0)):
        with pytest.raises(RecordError):
            fetch(client(), run.info.run_id, Part(record, "../../../escaped.png"), inside)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_second_fetch_downloads_nothing(tmp_path: Path) -> None:
    """A clip that was fetched before an interruption is used again; texts leave nothing behind."""
    folder = make_run(tmp_path)
    run = delivered(folder, clip(folder, "k", 1, "a kite"), Text(T0_MS, 2, "k", "words"))
    parts = {type(one.record): one for one in read_contents(client(), run).parts}
    target = tmp_path / "target"
    target.mkdir()
    fetch(client(), run.info.run_id, parts[Text], target)
    assert list(target.iterdir()) == []
    first = fetch(client(), run.info.run_id, parts[Video], target)
    root = Path(run.info.artifact_uri.removeprefix("file://"))
    (root / parts[Video].artifact_path).unlink()
    assert fetch(client(), run.info.run_id, parts[Video], target) == first
