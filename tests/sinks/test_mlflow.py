import contextlib
import json
import math
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import av
import pytest
import torch
from mlflow import MlflowClient
from mlflow.entities import ViewType
from PIL import Image

from opusclip_mlops import checkpoints
from opusclip_mlops.contents import fetch, read_contents
from opusclip_mlops.delivery import deliver
from opusclip_mlops.folder import CONTROL, RunFolder
from opusclip_mlops.layout import LAST_TAG
from opusclip_mlops.records import (
    Batch,
    Checkpoint,
    Dataset,
    Insight,
    Metrics,
    Params,
    Record,
    Tags,
    Text,
)
from opusclip_mlops.samples import SourceClip
from opusclip_mlops.sinks import Written, open_sink
from opusclip_mlops.sources import Sources
from tests.faults.proxy import FaultProxy
from tests.insight_records import every_kind, histogram
from tests.journeys import append, end, make_run, store, wait_until
from tests.reading import Point, points_of_mlflow
from tests.servers import mlflow_server
from tests.sinks.sink_contract import T0_MS, SinkContract, expected, metrics, staged_clip


def client() -> MlflowClient:
    return MlflowClient(store(Path.cwd()))


def run_of(folder: RunFolder):
    identity = folder.identity()
    assert identity is not None
    return client().get_run(identity.run_id)


class TestMlflow(SinkContract):
    name = "mlflow"

    def points(self, folder: RunFolder) -> list[Point]:
        return points_of_mlflow(client(), run_of(folder).info.run_id)


def test_infinities_are_kept_as_mlflow_keeps_them(tmp_path: Path) -> None:
    """MLflow's SQL store holds ±Inf as the largest floats."""
    folder = make_run(tmp_path)
    append(folder, [Metrics(T0_MS, 0, {"up": math.inf, "down": -math.inf})])
    end(folder)
    deliver(folder, "mlflow")
    found = run_of(folder).data.metrics
    assert found["up"] > 1.79e308
    assert found["down"] < -1.79e308


def test_the_run_has_its_true_times_status_and_reason(tmp_path: Path) -> None:
    """Start and end are those of the training process, not of the delivery."""
    folder = make_run(tmp_path, notes="a note")
    end(folder, "FAILED", "ValueError: no")
    deliver(folder, "mlflow")
    run = run_of(folder)
    assert (run.info.start_time, run.info.end_time) == (1_700_000_000_000, 1_700_000_100_000)
    assert run.info.status == "FAILED"
    assert run.data.tags["opusclip.end_reason"] == "ValueError: no"
    assert run.data.tags["mlflow.note.content"] == "a note"
    assert run.info.run_name == "a-run"


def test_params_tags_text_and_datasets_arrive(tmp_path: Path) -> None:
    """Each stands where MLflow's own client would have put it."""
    folder = make_run(tmp_path)
    append(folder, [
        Params({f"p{i}": str(i) for i in range(150)}), Tags({"a": "b"}),
        Text(T0_MS, 7, "notes/first", "one < two"),
        Dataset("clips", "d1", "local", '{"uri": "/x"}', "training", '{"frames": 9}'),
    ])  # fmt: skip
    end(folder)
    deliver(folder, "mlflow")
    run = run_of(folder)
    assert run.data.params == {f"p{i}": str(i) for i in range(150)}
    assert run.data.tags["a"] == "b"
    assert run.data.tags["team"] == "true"
    [entry] = run.inputs.dataset_inputs
    assert (entry.dataset.name, entry.dataset.digest) == ("clips", "d1")
    assert json.loads(entry.dataset.profile) == {"frames": 9}
    [text] = client().list_artifacts(run.info.run_id, "text/notes/first")
    assert Path(client().download_artifacts(run.info.run_id, text.path)).read_text() == "one < two"


def test_a_clip_is_kept_as_mp4_and_plays_in_the_image_grid(tmp_path: Path) -> None:
    """An mp4 under media/, and a moving WebP and a still by the names of MLflow's log_image."""
    folder = make_run(tmp_path)
    append(folder, [staged_clip(folder, step=12)])
    end(folder)
    deliver(folder, "mlflow")
    run = run_of(folder)
    root = Path(run.info.artifact_uri)
    [mp4] = (root / "media/video/samples/kite").glob("*.mp4")
    with av.open(str(mp4)) as film:
        assert sum(1 for _ in film.decode(video=0)) == 8
    [webp] = (root / "images").glob(f"samples~kite+step+12+timestamp+{T0_MS}+*+compressed.webp")
    assert getattr(Image.open(webp), "n_frames", 1) == 8
    assert webp.with_name(webp.name.replace("+compressed.webp", ".png")).exists()
    assert run.data.tags["mlflow.loggedImages"] == "True"


def test_a_run_made_by_a_shipper_that_died_is_found_again(tmp_path: Path) -> None:
    """Losing the identity file does not make a second run."""
    folder = make_run(tmp_path)
    append(folder, metrics(3))
    end(folder)
    deliver(folder, "mlflow")
    (folder.path / "identity.json").unlink()
    append(folder, metrics(3, first=3))
    deliver(folder, "mlflow")
    experiment = client().get_experiment_by_name("films")
    assert experiment is not None
    assert len(client().search_runs([experiment.experiment_id])) == 1
    assert len(points_of_mlflow(client(), run_of(folder).info.run_id)) == 12


def test_a_given_run_is_gone_on_with(tmp_path: Path) -> None:
    """Its params stay, equal ones are no conflict, a changed one is refused by itself."""
    experiment_id = client().create_experiment("films")
    given = client().create_run(experiment_id).info.run_id
    client().log_param(given, "lr", "1e-3")
    client().log_metric(given, "train/loss", 0.5, step=41)
    client().set_terminated(given)
    folder = make_run(tmp_path, run_id=given, name=given)
    append(folder, [Params({"lr": "0.001", "depth": "4"}), Params({"depth": "5"}), *metrics(1)])
    end(folder)
    deliver(folder, "mlflow")
    identity = folder.identity()
    assert identity is not None
    assert identity.last_step == 41
    assert run_of(folder).data.params == {"lr": "1e-3", "depth": "4"}
    assert folder.progress("mlflow").rejected == 1
    assert "cannot change" in folder.rejected.read_text()
    assert run_of(folder).info.status == "FINISHED"


def test_an_adopted_run_is_left_to_its_owner(tmp_path: Path) -> None:
    """A run whose end is not ours stays RUNNING."""
    experiment_id = client().create_experiment("films")
    given = client().create_run(experiment_id).info.run_id
    folder = make_run(tmp_path, run_id=given, name=given)
    from opusclip_mlops.records import RunEnded

    append(folder, [RunEnded("s1", "FINISHED", T0_MS, owned=False)], journal="s1" + CONTROL)
    deliver(folder, "mlflow")
    assert client().get_run(given).info.status == "RUNNING"


def test_a_run_that_is_not_there_refuses_everything_with_the_reason(tmp_path: Path) -> None:
    """A wrong run id is told, and does not hold up the shipper for ever."""
    client().create_experiment("films")
    folder = make_run(tmp_path, run_id="f" * 32, name="f" * 32)
    append(folder, metrics(2))
    end(folder)
    deliver(folder, "mlflow")
    assert folder.progress("mlflow").rejected == 2
    assert "f" * 32 in folder.rejected.read_text()


@pytest.mark.parametrize("key", ["k" * 251, "a//b"])
def test_one_bad_metric_does_not_take_others_with_it(tmp_path: Path, key: str) -> None:
    """A record MLflow answers 400 for is refused alone, out of a request of many."""
    folder = make_run(tmp_path)
    append(folder, [*metrics(5), Metrics(T0_MS, 5, {key: 1.0}), *metrics(5, first=5)])
    end(folder)
    deliver(folder, "mlflow")
    assert len(points_of_mlflow(client(), run_of(folder).info.run_id)) == 20
    assert folder.progress("mlflow").rejected == 1


def test_texts_of_one_moment_do_not_overwrite_each_other(tmp_path: Path) -> None:
    """Five texts under one key, step and millisecond are five files."""
    folder = make_run(tmp_path)
    append(folder, [Text(T0_MS, 1, "captions", f"caption {i}") for i in range(5)])
    end(folder)
    deliver(folder, "mlflow")
    assert len(client().list_artifacts(run_of(folder).info.run_id, "text/captions")) == 5


def test_a_run_that_is_not_there_does_not_hold_up_the_mirrors(tmp_path: Path) -> None:
    """What the record refuses, the mirrors keep."""
    client().create_experiment("films")
    folder = make_run(tmp_path, ["mlflow", "tensorboard"], run_id="f" * 32, name="f" * 32)
    append(folder, metrics(2))
    end(folder)
    deliver(folder, "mlflow")
    deliver(folder, "tensorboard")
    assert folder.progress("tensorboard").done
    assert folder.progress("tensorboard").rejected == 0


# An artifact store that takes nothing for a while


@pytest.mark.parametrize("for_good", [False, True])
def test_who_delivers_a_run_that_is_deleted_meanwhile_ends(tmp_path: Path, for_good: bool) -> None:
    """It may be restored, or is gone; what came behind is kept here, and makes no second run."""
    folder = make_run(tmp_path)
    append(folder, metrics(1))
    with delivering(folder):
        wait_until(lambda: folder.progress("mlflow").position)
        run_id = run_of(folder).info.run_id
        client().delete_run(run_id)
        if for_good:
            client()._tracking_client.store._hard_delete_run(run_id)
        append(folder, metrics(1, first=1))
        end(folder, "FAILED", "why")
        wait_until(lambda: folder.progress("mlflow").done)
    assert folder.progress("mlflow").rejected == 1
    found = client().search_runs(["1"], run_view_type=ViewType.ALL)
    assert [one.info.run_id for one in found] == [] if for_good else [run_id]
    assert folder.identity().run_id == run_id


def test_what_was_put_off_of_a_run_that_is_deleted_is_refused(tmp_path: Path) -> None:
    """Who delivers it from now on waits for no store."""
    folder = make_run(tmp_path)
    sink = open_sink("mlflow", folder)
    sink.open({})
    run = run_of(folder)
    place = in_the_way(Path(run.info.artifact_uri.removeprefix("file://")))
    text = Text(T0_MS, 1, "note", "kept")
    kept = sink.write(Batch(records=(text,)))
    assert kept.unfinished
    client().delete_run(run.info.run_id)
    place.unlink()
    again = open_sink("mlflow", folder)
    again.open(kept.state)
    said: list[Written] = []

    def is_finished() -> bool:
        said.append(again.write(Batch(records=())))
        return not said[-1].unfinished

    wait_until(is_finished)
    [refused] = [one for written in said for one in written.refused]
    assert "was deleted" in refused.reason


def in_the_way(place: Path) -> Path:
    """A file in the place of a folder: no artifact can be stored below it."""
    place.parent.mkdir(parents=True, exist_ok=True)
    place.touch()
    return place


def obstructed(tmp_path: Path) -> Path:
    """What stands in the way of every artifact of the run that is to be made."""
    place = in_the_way(tmp_path / "store")
    client().create_experiment("films", artifact_location=str(place))
    return place


@contextlib.contextmanager
def delivering(folder: RunFolder) -> Iterator[None]:
    """Deliver meanwhile; the block ends when that is done."""
    thread = threading.Thread(target=deliver, args=(folder, "mlflow"))
    thread.start()
    yield
    thread.join()


def saved(folder: RunFolder, step: int) -> Checkpoint:
    """A checkpoint in the run's folder."""
    name = f"epoch_0001-step_{step:06d}"
    about = checkpoints.CheckpointMetadata(name=name, epoch=1, step=step)
    checkpoints.write_checkpoint(folder.checkpoints / name, torch.nn.Linear(2, 1), metadata=about)
    return Checkpoint(T0_MS, step, 1, name, {"val_loss": 0.5}, False)


def artifacts(folder: RunFolder) -> Path:
    return Path(run_of(folder).info.artifact_uri.removeprefix("file://"))


def put_off(folder: RunFolder) -> int:
    """How many files wait for the artifact store."""
    return len(folder.progress("mlflow").state.get("put_off", ()))


def test_a_dataset_is_an_input_before_its_list_of_films_is_taken(tmp_path: Path) -> None:
    """The list waits for the artifact store, and is then where the dataset's profile says."""
    obstacle = obstructed(tmp_path)
    folder = make_run(tmp_path)
    films = Sources.of("films", "d1", "training", [SourceClip(uri="/films/kite.mp4")])
    listed = films.keep_in(folder.media)
    append(folder, [Dataset("films", "d1", "local", "{}", "training", sources=listed)])
    end(folder)
    with delivering(folder):
        wait_until(lambda: put_off(folder) == 1)
        [used] = run_of(folder).inputs.dataset_inputs
        assert used.dataset.digest == "d1"
        obstacle.unlink()
    assert (artifacts(folder) / films.path).read_text() == films.text
    assert len(run_of(folder).inputs.dataset_inputs) == 1
    assert folder.is_delivered()


def test_files_that_are_not_taken_hold_up_no_number(tmp_path: Path) -> None:
    """Metrics, params and tags arrive meanwhile; the run ends when the files have arrived too."""
    obstacle = obstructed(tmp_path)
    folder = make_run(tmp_path)
    text = Text(T0_MS, 1, "notes", "words")
    append(folder, [text, staged_clip(folder), saved(folder, 2), *metrics(5), Tags({"a": "b"})])
    end(folder)
    with delivering(folder):
        wait_until(lambda: put_off(folder) == 3)
        assert folder.progress("mlflow").position == folder.size_bytes()
        run_id = run_of(folder).info.run_id
        assert points_of_mlflow(client(), run_id) == expected(metrics(5), narrow=False)
        assert run_of(folder).data.tags["a"] == "b"
        assert run_of(folder).info.status == "RUNNING"
        assert not folder.is_delivered()
        obstacle.unlink()
    assert run_of(folder).info.status == "FINISHED"
    assert len(list(artifacts(folder).glob("text/notes/*.txt"))) == 1
    assert len(list(artifacts(folder).glob("media/video/samples/kite/*.mp4"))) == 1
    assert len(list(artifacts(folder).glob("checkpoints/*/weights.safetensors"))) == 1
    assert folder.progress("mlflow").rejected == 0
    assert folder.is_delivered()


DELIVER = """
import sys
from pathlib import Path
from opusclip_mlops import delivery, folder
delivery.deliver(folder.RunFolder(Path(sys.argv[1])), "mlflow")
"""


def test_files_that_wait_outlive_the_shipper(tmp_path: Path) -> None:
    """Killed while the store takes nothing, it sends them when it is started again."""
    obstacle = obstructed(tmp_path)
    folder = make_run(tmp_path)
    append(folder, [Text(T0_MS, step, "notes", f"words {step}") for step in range(3)])
    end(folder)
    process = subprocess.Popen([sys.executable, "-c", DELIVER, str(folder.path)])
    wait_until(lambda: put_off(folder) == 3)
    process.kill()
    process.wait()
    obstacle.unlink()
    deliver(folder, "mlflow")
    found = sorted(path.read_text() for path in artifacts(folder).glob("text/notes/*"))
    assert found == [f"words {step}" for step in range(3)]
    assert run_of(folder).info.status == "FINISHED"


def large_insights(count: int) -> list[Record]:
    """Histograms of two hundred layers each, which are megabytes of JSON."""
    content = {f"layer.{n}": histogram(*range(512)) for n in range(200)}
    return [
        Insight(T0_MS, step, "weights", "histograms", {"histograms": content})
        for step in range(count)
    ]


def test_large_insights_that_wait_outlive_the_shipper(tmp_path: Path) -> None:
    """Killed while the store takes nothing; what waits is no burden to the state meanwhile."""
    obstacle = obstructed(tmp_path)
    folder = make_run(tmp_path)
    logged = [*large_insights(3), *every_kind(folder), *metrics(2)]
    append(folder, logged)
    end(folder)
    process = subprocess.Popen([sys.executable, "-c", DELIVER, str(folder.path)])
    wait_until(lambda: put_off(folder) == 10)
    process.kill()
    process.wait()
    assert folder.progress("mlflow").position == folder.size_bytes()
    assert max(path.stat().st_size for path in (folder.path / "sinks").iterdir()) < 64 * 1024
    obstacle.unlink()
    deliver(folder, "mlflow")
    assert folder.progress("mlflow").rejected == 0
    contents = read_contents(client(), run_of(folder))
    assert contents.left_out == ()
    parts = [part for part in contents.parts if isinstance(part.record, Insight)]
    found = [fetch(client(), contents.identity.run_id, part, tmp_path) for part in parts]
    back = {(one.kind, one.step): one.content for one in found if isinstance(one, Insight)}
    assert back == {(one.kind, one.step): one.content for one in logged if isinstance(one, Insight)}


def test_checkpoints_arrive_in_the_order_they_were_saved_in(tmp_path: Path) -> None:
    """One that the store does not take holds back those behind it: the last is the last."""
    store_ = tmp_path / "store"
    client().create_experiment("films", artifact_location=str(store_))
    folder = make_run(tmp_path)
    first, second = saved(folder, 1), saved(folder, 2)
    with delivering(folder):
        wait_until(lambda: folder.progress("mlflow").records > 0)
        obstacle = in_the_way(artifacts(folder) / "checkpoints" / first.name)
        append(folder, [first, second, *metrics(2)])
        wait_until(lambda: put_off(folder) == 2)
        assert not (artifacts(folder) / "checkpoints" / second.name).exists()
        assert LAST_TAG not in run_of(folder).data.tags
        assert not folder.has_arrived(second.name)
        end(folder)
        obstacle.unlink()
    for one in (first, second):
        assert checkpoints.verify(artifacts(folder) / "checkpoints" / one.name).step == one.step
    assert run_of(folder).data.tags[LAST_TAG] == second.name


def test_a_server_that_stores_no_artifacts_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same through a real server whose artifact part answers 500, and nothing else does."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with mlflow_server(tmp_path) as address, FaultProxy(address) as proxy:
        proxy.fail("500", 1000, method="PUT", part="mlflow-artifacts")
        remote = MlflowClient(proxy.address)
        folder = make_run(tmp_path, tracking_uri=proxy.address)
        append(folder, [Text(T0_MS, 1, "notes", "words"), saved(folder, 2), *metrics(5)])
        end(folder)
        with delivering(folder):
            wait_until(lambda: put_off(folder) == 2 and proxy.met["500"])
            identity = folder.identity()
            assert identity is not None
            points = points_of_mlflow(remote, identity.run_id)
            assert points == expected(metrics(5), narrow=False)
            assert remote.get_run(identity.run_id).info.status == "RUNNING"
            proxy.fail("500", 0)
        assert remote.get_run(identity.run_id).info.status == "FINISHED"
        assert len(remote.list_artifacts(identity.run_id, "text/notes")) == 1
        stored = remote.download_artifacts(identity.run_id, f"checkpoints/{saved_name(folder)}")
        assert checkpoints.verify(Path(stored)).step == 2


def saved_name(folder: RunFolder) -> str:
    """The only checkpoint of the run's folder."""
    [path] = folder.checkpoints.iterdir()
    return path.name
