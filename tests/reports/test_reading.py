"""Facts about `opusclip_mlops.reports.reading`: a run read part by part."""

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from opusclip_mlops.bottleneck_report import bottlenecks
from opusclip_mlops.errors import RegistryError
from opusclip_mlops.points import Points
from opusclip_mlops.records import Image, Table, Video
from opusclip_mlops.reports import reading
from opusclip_mlops.reports.reading import RunReader
from opusclip_mlops.reports.run_read import RunRead
from opusclip_mlops.reports.unread import Asking
from opusclip_mlops.run_history import Cursor, HistoryError, open_history
from tests.journeys import store
from tests.panelled import T0_MS
from tests.reports.reported_runs import AGAIN_AFTER, AGAIN_TO, STEPS, Site, gone_on

Bare = Callable[..., str]


def read(
    uri: str, run_id: str, folder: Path, *, most_clip_bytes: int = 2**24, **options: Any
) -> RunRead:
    """A run as a report reads it."""
    client = MlflowClient(uri)
    reader = RunReader(client=client, compares=False, most_clip_bytes=most_clip_bytes, **options)
    return reader.read(client.get_run(run_id), folder)


def test_what_cannot_be_read_is_noted_and_the_rest_goes_on() -> None:
    """A refusal, a store that is away and an error of ours are named; a fault of the code is not
    taken for one.
    """
    ask = Asking("kite")

    def refused() -> int:
        raise RegistryError("password=hunter2 is wrong")

    def away() -> int:
        raise ConnectionError("nobody answers")

    assert ask.part("registry", refused, 1) == 1
    assert ask.part("files", away, 2) == 2
    assert ask.part("curves", lambda: 3, 0) == 3
    said = [(one.run, one.part, one.reason) for one in ask.unread]
    assert said == [
        ("kite", "registry", "password=*** is wrong"),
        ("kite", "files", "nobody answers"),
    ]
    assert ask.part("a\x1b[31m\nb" + "c" * 900, refused, 4) == 4
    assert ask.unread[-1].part.startswith("a[31m b")
    assert len(ask.unread[-1].part) == 200
    with pytest.raises(ZeroDivisionError):
        ask.part("broken", lambda: 1 // 0, 0)


def test_the_curve_is_what_the_run_looks_back_on(site: Site, tmp_path: Path) -> None:
    """What was logged behind the checkpoint before it went on is a branch of its own."""
    found = read(site.uri, site.rich, tmp_path)
    steps = found.curves["train/loss"].rows["step"].tolist()
    assert steps == list(range(AGAIN_TO + 1))
    [branch] = found.branches["train/loss"]
    assert branch.rows["step"].tolist() == list(range(AGAIN_AFTER + 1, STEPS))
    assert "system/cpu" not in found.branches
    assert found.experiment == "films"


def test_the_newest_of_each_key_is_fetched(site: Site, tmp_path: Path) -> None:
    """Samples of panels are on their walls, and not fetched a second time."""
    found = read(site.uri, site.rich, tmp_path)
    newest = {(type(one.record).__name__, getattr(one.record, "step", None)) for one in found.media}
    assert newest == {("Video", 9), ("Image", 3), ("Table", 2)}
    assert all(one.path is None or one.path.is_file() for one in found.media)
    [wall] = found.walls
    assert [column.step for column in wall.columns] == [10]
    assert found.crash is not None
    assert "load_checkpoint" in found.crash.text


@pytest.mark.parametrize(("most_clip_bytes", "shown"), [(200_000, 4), (100, 0)])
def test_a_panel_has_as_many_clips_as_there_is_room_for(
    site: Site, tmp_path: Path, most_clip_bytes: int, shown: int
) -> None:
    """Of many runs each has little; why a clip is not there is said."""
    found = read(site.uri, site.rich, tmp_path, most_clip_bytes=most_clip_bytes)
    [wall] = found.walls
    samples = list(wall.columns[-1].samples.values())
    assert len([one for one in samples if one.film]) == shown
    assert all(one.film or one.missing.startswith("left out") for one in samples)


def test_a_clip_that_training_went_back_behind_is_not_the_newest(
    bare: Bare, tmp_path: Path
) -> None:
    """The one before the checkpoint is."""
    client, run_id = MlflowClient(store(tmp_path)), bare("one", {})
    for step in (1, 5):
        path = f"tables/kites/step_{step:08d}-{T0_MS + step}-0123456789ab.json"
        client.log_text(run_id, "{}", path)
    gone_on(run_id, client, after_step=3, at_ms=T0_MS + 1000)
    found = read(store(tmp_path), run_id, tmp_path)
    # Its digest is not that of its content: it is named, and the later one was not asked for.
    assert [one.part for one in found.unread] == [
        f"tables/kites/step_00000001-{T0_MS + 1}-0123456789ab.json"
    ]


def test_samples_whose_account_is_broken_are_named(bare: Bare, tmp_path: Path) -> None:
    """A panel of which no step can be read is not passed over in silence."""
    client, run_id = MlflowClient(store(tmp_path)), bare("one", {})
    client.log_text(run_id, "{}", "panels/kites-0123abcd/step_00000001-1.json")
    found = read(store(tmp_path), run_id, tmp_path)
    [one] = found.unread
    assert one.part == "samples of kites-0123abcd"
    assert "Step 1 is left out" in one.reason


def test_in_short_the_main_metrics_are_left(site: Site, tmp_path: Path) -> None:
    """For a report of many runs, of which one at a time is held whole."""
    whole = read(site.uri, site.rich, tmp_path)
    short = whole.in_short()
    assert list(short.curves) == ["val/psnr", "train/loss"]
    assert (short.walls, short.media, short.branches) == ((), (), {})
    assert short.curves["train/loss"].rows["step"].tolist() == [0, AGAIN_AFTER, AGAIN_TO]
    assert short.curves["train/loss"].last == whole.curves["train/loss"].last
    assert short.curves["train/loss"].highest == whole.curves["train/loss"].highest
    assert short.curves["train/loss"].not_finite == whole.curves["train/loss"].not_finite == 1


def test_what_there_is_more_of_is_counted(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Panels, and keys of each kind, by the section that has the others."""
    monkeypatch.setattr(reading, "MOST_PANELS", 0)
    monkeypatch.setattr(reading, "_MOST_KEYS", {Video: 0, Image: 0, Table: 0})
    found = read(site.uri, site.rich, tmp_path)
    assert found.more == {
        "samples": ["1 more panels have samples, in MLflow"],
        "media": [f"1 more keys of kind {kind}, in MLflow" for kind in ("video", "image")],
        "insights": ["1 more keys of kind table, in MLflow"],
    }


def test_bottlenecks_are_those_of_the_points_that_were_read(
    bare: Bare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No metric is asked for again, and a parent of two runs is read once."""
    uri, client = store(tmp_path), MlflowClient(store(tmp_path))
    values = {"interval/seconds": [10.0], "interval/steps": [10.0], "loop/data/count": [10.0],
              "loop/data/self_ms": [8000.0]}  # fmt: skip
    timed = {f"profiling/{key}": value for key, value in values.items()}
    parent = bare("parent", timed)
    tags = {"mlflow.parentRunId": parent}
    ids = [bare(name, {**timed, "profiling/interval/steps": [20.0]}, tags=tags) for name in "ab"]
    expected = bottlenecks(ids[0], tracking_uri=uri).report
    monkeypatch.setattr(MlflowClient, "get_metric_history", None)
    reader = RunReader(client=client, compares=False, most_clip_bytes=2**24)
    asked: list[str] = []
    history = open_history(client)

    class Noted:
        def read(self, run: Run) -> tuple[Points, Cursor]:
            asked.append(run.info.run_id)
            return history.read(run)

    monkeypatch.setattr(reading, "open_history", lambda _: Noted())
    found = [reader.read(client.get_run(one), tmp_path).bottlenecks for one in ids]
    assert found == [expected, expected]
    assert expected.against == "parent"
    assert asked == [ids[0], parent, ids[1]]


def test_of_metrics_that_cannot_be_read_the_others_are_kept(
    bare: Bare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are named together, with the reason."""
    uri, client = store(tmp_path), MlflowClient(store(tmp_path))
    run_id = bare("one", {"loss": [1.0, 0.5], **{f"bad/{n}": [1.0] for n in range(7)}})
    history = open_history(client)

    class Broken:
        def read(self, run: Run) -> tuple[Points, Cursor]:
            if any(key.startswith("bad/") for key in run.data.metrics):
                raise HistoryError("a bad day")
            points, cursor = history.read(run)
            is_loss = points.rows["key"] == points.keys.index("loss")
            return Points(points.keys, points.rows[is_loss]), cursor

    monkeypatch.setattr(reading, "open_history", lambda _: Broken())
    found = read(uri, run_id, tmp_path)
    assert list(found.curves) == ["loss"]
    assert [one.line for one in found.unread] == [
        "one: curves of bad/0, bad/1, bad/2, bad/3, bad/4 and 2 more: a bad day"
    ]


def test_a_server_that_does_not_answer_is_waited_for_once() -> None:
    """What is asked after that is named as not read at once, with one short reason."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"

        def ask_it() -> int:
            try:
                return requests.get(f"{url}/api?password=x", timeout=0.2).status_code
            except requests.exceptions.RequestException as error:
                raise MlflowException(f"API request to {url} failed: {error}") from error

        first = Asking("one")
        assert first.part("curves", ask_it, 0) == 0
        second = Asking("two", before=first)
        assert second.part("files", lambda: 1 // 0, 2) == 2
    assert [one.line for one in (*first.unread, *second.unread)] == [
        f"one: curves: no answer from {url}",
        f"two: files: no answer from {url}",
    ]
