"""Checkpoints in MLflow: counted when a run is gone on with, removed when they were dropped."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from mlflow import MlflowClient

from opusclip_mlops import checkpoints, pruning
from opusclip_mlops.delivery import deliver
from opusclip_mlops.errors import DeliveryError
from opusclip_mlops.folder import CONTROL, RunFolder
from opusclip_mlops.generations import generation_tag, generations_of
from opusclip_mlops.layout import BEST_TAG, LAST_TAG
from opusclip_mlops.metadata import BestValue
from opusclip_mlops.pruning import Marks, Pruning, earlier_checkpoints
from opusclip_mlops.records import Checkpoint, CheckpointDropped, Metrics, RunEnded, RunStarted
from opusclip_mlops.retention import Earlier
from opusclip_mlops.sessions import sessions
from tests.faults.proxy import FaultProxy
from tests.journeys import append, deliver_and_die, end, make_run, store
from tests.mlflow_runs import T0_MS, saved
from tests.servers import mlflow_server


def client() -> MlflowClient:
    return MlflowClient(store(Path.cwd()))


def names(client: MlflowClient, folder: RunFolder) -> list[str]:
    """The checkpoints that a run has in MLflow."""
    return [Path(one.path).name for one in client.list_artifacts(run_id(folder), "checkpoints")]


def run_id(folder: RunFolder) -> str:
    identity = folder.identity()
    assert identity is not None
    return identity.run_id


def tried(pruning_: Pruning, name: str) -> None:
    """Try as often as it is of any use."""
    for _ in range(pruning.MOST_TRIES - 1):
        with pytest.raises(DeliveryError, match="is not removed"):
            pruning_.remove(name)
    pruning_.remove(name)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server that keeps the artifacts."""
    with mlflow_server(tmp_path_factory.mktemp("server")) as address:
        yield address


@pytest.fixture(params=["disk", "server"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """MLflow with its artifacts on this disk, and behind a server."""
    address: str = request.getfixturevalue("server") if request.param == "server" else ""
    return address or store(tmp_path)


def test_what_was_dropped_is_removed_once_it_is_there(place: str, tmp_path: Path) -> None:
    """The others stay, whole; a second time, and one that was never there, do no harm."""
    folder = make_run(tmp_path, tracking_uri=place)
    every = [saved(folder, step) for step in (10, 20, 30)]
    gone = [CheckpointDropped(name) for name in (every[0].name, every[0].name, "never")]
    append(folder, [*every, *gone])
    end(folder)
    deliver(folder, "mlflow")
    found = names(MlflowClient(place), folder)
    assert found == [one.name for one in every[1:]]
    assert not list(folder.checkpoints.glob(f"{every[0].name}/*.safetensors"))
    assert folder.progress("mlflow").rejected == 0
    assert folder.is_delivered()


def test_what_was_dropped_before_its_turn_is_never_sent(tmp_path: Path) -> None:
    """After an outage a checkpoint that is gone by then is passed over, and the marks are right."""
    folder = make_run(tmp_path)
    every = [saved(folder, step, best=step == 10) for step in (10, 20, 30)]
    for one in every[:2]:
        checkpoints.drop(folder.checkpoints / one.name)
    append(folder, [*every[:2], CheckpointDropped(every[0].name), every[2]])
    append(folder, [CheckpointDropped(every[1].name)])
    end(folder)
    deliver(folder, "mlflow")
    assert names(client(), folder) == [every[2].name]
    tags = client().get_run(run_id(folder)).data.tags
    assert (tags.get(LAST_TAG), tags.get(BEST_TAG)) == (every[2].name, None)
    assert folder.is_delivered()


def test_what_was_taken_and_not_acknowledged_is_dropped_again(tmp_path: Path) -> None:
    """Killed after the removal and before it was noted: the same records again, the same end."""
    folder = make_run(tmp_path)
    every = [saved(folder, step) for step in (10, 20)]
    append(folder, [*every, CheckpointDropped(every[0].name), Metrics(T0_MS, 1, {"a": 1.0})])
    deliver_and_die(folder, "mlflow")
    end(folder)
    deliver(folder, "mlflow")
    assert names(client(), folder) == [every[1].name]
    assert folder.is_delivered()


def delivered(tmp_path: Path, *steps: int, **fields: Any) -> tuple[RunFolder, list[Checkpoint]]:
    """A run with checkpoints in MLflow, the first of them the best."""
    folder = make_run(tmp_path, **fields)
    every = [saved(folder, step, best=step == steps[0]) for step in steps]
    append(folder, every)
    end(folder)
    deliver(folder, "mlflow")
    return folder, every


def test_the_best_and_the_last_stay(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """What is marked is not removed, whoever asks, and that is said once."""
    folder, (best, middle, last) = delivered(tmp_path, 10, 20, 30)
    asked = Pruning(client(), run_id(folder))
    for one in (best, last):
        tried(asked, one.name)
    asked.remove(middle.name)
    assert names(client(), folder) == [best.name, last.name]
    assert capfd.readouterr().out.count("stays in MLflow: it is marked by") == 2


@pytest.mark.parametrize("by", ["tag", "source"])
def test_what_a_version_is_made_of_stays(tmp_path: Path, by: str) -> None:
    """Registered by us, or by hand from the run's files; a version of another one hinders not."""
    folder, (_, first, second, _) = delivered(tmp_path, 10, 20, 30, 40)
    registry, run = client(), client().get_run(run_id(folder))
    registry.create_registered_model("net")
    root = run.info.artifact_uri
    source = f"{root}/checkpoints/{first.name}" if by == "source" else f"{root}/model"
    tags = {"opusclip.checkpoint": first.name} if by == "tag" else {}
    registry.create_model_version("net", source, run_id=run.info.run_id, tags=tags)
    asked = Pruning(registry, run.info.run_id)
    asked.remove(first.name)
    asked.remove(second.name)
    assert first.name in names(client(), folder)
    assert second.name not in names(client(), folder)


@pytest.mark.parametrize(
    "source",
    [
        "{root}/checkpoints/{name}",
        "runs:/{run_id}/checkpoints/{name}/weights.safetensors",
        "mlflow-artifacts:/1/{run_id}/artifacts/checkpoints",
    ],
)
def test_what_a_version_without_a_run_names_as_its_source_stays(
    tmp_path: Path, source: str
) -> None:
    """However it is spelled; a version of another checkpoint or another run hinders not."""
    folder, (_, middle, _) = delivered(tmp_path, 10, 20, 30)
    registry, run = client(), client().get_run(run_id(folder))
    registry.create_registered_model("net")
    root, here = run.info.artifact_uri, {"run_id": run.info.run_id}
    others = {"root": root, "run_id": "f" * 32, "name": middle.name}
    for no_hindrance in (f"{root}/checkpoints/{middle.name}-2", "runs:/{run_id}/checkpoints"):
        registry.create_model_version("net", no_hindrance.format(**others))
    asked = Pruning(registry, run.info.run_id)
    meant = source.format(**here, root=root, name=middle.name)
    made = registry.create_model_version("net", meant)
    assert not made.run_id
    asked.remove(middle.name)
    assert middle.name in names(client(), folder)
    registry.delete_model_version("net", made.version)
    asked.remove(middle.name)
    assert middle.name not in names(client(), folder)


def test_what_a_logged_model_of_the_run_was_made_of_stays_once_it_is_a_version(
    tmp_path: Path,
) -> None:
    """A version that names neither run nor checkpoint, but a model that was made of one."""
    folder, (_, middle, other, _) = delivered(tmp_path, 10, 20, 30, 40)
    registry, run = client(), client().get_run(run_id(folder))
    models = [
        registry.create_logged_model(
            run.info.experiment_id,
            source_run_id=run.info.run_id,
            tags={"opusclip.checkpoint": one.name},
        )
        for one in (middle, other)
    ]
    registry.create_registered_model("net")
    registry.create_model_version("net", models[0].artifact_location)
    asked = Pruning(registry, run.info.run_id)
    asked.remove(middle.name)
    asked.remove(other.name)
    assert middle.name in names(client(), folder)
    assert other.name not in names(client(), folder)


def test_nothing_goes_while_the_registry_does_not_answer(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A registry that can't be asked may have a version of it: it stays, in one line."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    folder, (_, middle, _) = delivered(tmp_path, 10, 20, 30)
    deaf = MlflowClient(store(tmp_path), "http://me:secret@127.0.0.1:9")
    tried(Pruning(deaf, run_id(folder)), middle.name)
    assert middle.name in names(client(), folder)
    said = capfd.readouterr().out
    assert said.count(f"{middle.name} stays in MLflow") == 1
    assert "secret" not in said


def test_a_store_that_removes_nothing_ends_the_run_all_the_same(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where removing is forbidden the checkpoint stays; nothing else waits for it."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr("opusclip_mlops.faults.FIRST_RETRY_S", 0.01)
    with FaultProxy(server) as proxy:
        proxy.fail("500", 1000, method="DELETE", part="mlflow-artifacts")
        folder = make_run(tmp_path, name="e" * 32, tracking_uri=proxy.address)
        every = [saved(folder, step) for step in (10, 20)]
        append(folder, [*every, CheckpointDropped(every[0].name)])
        end(folder)
        deliver(folder, "mlflow")
        assert len(names(MlflowClient(server), folder)) == 2
        assert MlflowClient(server).get_run(run_id(folder)).info.status == "FINISHED"
        assert proxy.met["500"] == pruning.MOST_TRIES
    assert folder.is_delivered()


def test_an_outage_of_the_store_leaves_nothing_behind(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long what displaces a checkpoint waits, the other one is removed afterwards."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr("opusclip_mlops.faults.FIRST_RETRY_S", 0.01)
    monkeypatch.setattr("opusclip_mlops.faults.LAST_RETRY_S", 0.01)
    with FaultProxy(server) as proxy:
        folder = make_run(tmp_path, name="d" * 32, tracking_uri=proxy.address)
        first, second = (saved(folder, step) for step in (10, 20))
        outage = 4 * pruning.MOST_TRIES
        proxy.fail("500", outage, method="PUT", part=second.name)
        append(folder, [first, second, CheckpointDropped(first.name)])
        end(folder)
        deliver(folder, "mlflow")
        assert proxy.met["500"] == outage
    assert names(MlflowClient(server), folder) == [second.name]
    assert folder.is_delivered()


def test_what_is_refused_is_not_waited_for(tmp_path: Path) -> None:
    """Where the one that displaces it cannot come any more, the other one stays, and all ends."""
    folder = make_run(tmp_path)
    first, torn = (saved(folder, step) for step in (10, 20))
    (folder.checkpoints / torn.name / "state.pt").unlink()
    append(folder, [first, torn, CheckpointDropped(first.name)])
    end(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("opusclip_mlops.faults.FIRST_RETRY_S", 0.01)
        deliver(folder, "mlflow")
    assert names(client(), folder) == [first.name]
    assert folder.progress("mlflow").rejected == 1
    assert folder.progress("mlflow").done


def test_the_checkpoints_of_a_run_are_counted(tmp_path: Path) -> None:
    """Names, the marked one, and the best value by what that one measured."""
    folder, every = delivered(tmp_path, 10, 20)
    run = client().get_run(run_id(folder))
    assert earlier_checkpoints(client(), run) == Earlier(
        names=tuple(one.name for one in every),
        marked=every[0].name,
        best={"val/loss": BestValue(every[0].name, 0.1)},
    )
    shutil.rmtree(Path(run.info.artifact_uri.removeprefix("file://"), "checkpoints"))
    assert earlier_checkpoints(client(), run) == Earlier()


def test_metadata_that_is_rubbish_hinders_no_run(tmp_path: Path) -> None:
    """A checkpoint that can't be read knows of no best value."""
    folder, every = delivered(tmp_path, 10)
    run = client().get_run(run_id(folder))
    root = Path(run.info.artifact_uri.removeprefix("file://"), "checkpoints", every[0].name)
    for rubbish in ("[]", "{", "[" * 90_000, '{"schema_version": 1}'):
        (root / "metadata.json").write_text(rubbish)
        earlier = earlier_checkpoints(client(), run)
        assert (earlier.best, earlier.marked) == ({}, every[0].name)


def test_a_marked_best_that_cannot_be_read_keeps_its_mark(tmp_path: Path) -> None:
    """Of a later release, say: nothing that is saved later takes its mark, so nothing removes it.

    What the last one knows of it is enough to compare.
    """
    folder, (best, last) = delivered(tmp_path, 10, 20)
    run = client().get_run(run_id(folder))
    root = Path(run.info.artifact_uri.removeprefix("file://"), "checkpoints")
    written = json.loads((root / last.name / "metadata.json").read_text())
    (root / best.name / "metadata.json").write_text('{"schema_version": 2}')
    marks = Marks(client(), run.info.run_id, folder, goes_on=True)
    about = checkpoints.CheckpointMetadata(
        name="new", step=30, epoch=0, best={"val/loss": BestValue("new", 0.0)}
    )
    later = Checkpoint(T0_MS, 30, 0, "new", {}, best=True)
    assert marks.at_arrival(later, about) == {LAST_TAG: "new"}
    assert Earlier.read(folder) == marks.look()
    assert not marks.look().is_known
    written["best"] = {"val/loss": {"checkpoint": best.name, "value": 0.1, "mode": "min"}}
    (root / last.name / "metadata.json").write_text(json.dumps(written))
    marks = Marks(client(), run.info.run_id, folder, goes_on=True)
    assert marks.at_arrival(later, about) == {LAST_TAG: "new", BEST_TAG: "new"}


def test_the_last_is_never_one_that_was_overtaken(tmp_path: Path) -> None:
    """One that had to wait for another machine's share arrives behind a later one."""
    folder, (first, second) = delivered(tmp_path, 10, 20)
    marks = Marks(client(), run_id(folder), folder, goes_on=False)
    assert LAST_TAG not in marks.at_arrival(
        first, checkpoints.read_metadata(folder.checkpoints / first.name)
    )
    assert (
        marks.at_arrival(second, checkpoints.read_metadata(folder.checkpoints / second.name))[
            LAST_TAG
        ]
        == second.name
    )


def test_the_mark_stays_with_what_an_earlier_part_did_better(tmp_path: Path) -> None:
    """A part that could not know calls its first checkpoint best; the tag is not moved."""
    folder, (best, *_) = delivered(tmp_path, 10, 20)
    shutil.move(folder.path, tmp_path / "elsewhere")
    again = make_run(tmp_path, name="f" * 32, run_id=run_id(RunFolder(tmp_path / "elsewhere")))
    worse = saved(again, 5, best=True)
    about = checkpoints.read_metadata(again.checkpoints / worse.name)
    about = replace(about, best={"val/loss": BestValue(worse.name, 0.2)})
    path = again.checkpoints / worse.name / "metadata.json"
    path.write_text(json.dumps(about.to_dict()))
    append(again, [worse])
    end(again)
    deliver(again, "mlflow")
    tags = client().get_run(run_id(again)).data.tags
    assert (tags[BEST_TAG], tags[LAST_TAG]) == (best.name, worse.name)
    earlier = Earlier.read(again)
    assert earlier is not None
    assert earlier.marked == best.name


def end_of_s2() -> RunEnded:
    return RunEnded("s2", "FINISHED", T0_MS + 5000)


def gone_on(folder: RunFolder, after: Checkpoint, start_ms: int) -> RunStarted:
    """The start of a process that goes on from a checkpoint."""
    about = checkpoints.CheckpointMetadata(
        name=after.name, step=after.step, epoch=after.epoch, created_ms=after.timestamp_ms
    )
    tags = generation_tag("s2", start_ms=start_ms, begun_from=about)
    [start] = [one.start for one in sessions(folder)]
    return msgspec.structs.replace(start, session="s2", tags=tags)


def test_what_training_has_gone_back_behind_is_not_the_last(tmp_path: Path) -> None:
    """The one that it went on from is, then its own; what arrives late takes no mark.

    However often the start is sent, one generation begins.
    """
    before, (first, second) = delivered(tmp_path, 10, 20)
    shutil.move(before.path, tmp_path / "elsewhere")
    folder = make_run(tmp_path, name="f" * 32, run_id=run_id(RunFolder(tmp_path / "elsewhere")))
    late, own = saved(folder, 30), saved(folder, 11)
    append(folder, [gone_on(folder, first, T0_MS + 1000)], journal="s2" + CONTROL)
    append(folder, [late])
    deliver_and_die(folder, "mlflow")
    tags = client().get_run(run_id(folder)).data.tags
    assert tags[LAST_TAG] == first.name
    assert [one.after_step for one in generations_of(tags)] == [10]
    append(folder, [msgspec.structs.replace(own, timestamp_ms=T0_MS + 1000)])
    append(folder, [end_of_s2()], journal="s2" + CONTROL)
    end(folder)
    deliver(folder, "mlflow")
    tags = client().get_run(run_id(folder)).data.tags
    assert (tags[LAST_TAG], tags[BEST_TAG]) == (own.name, first.name)
    assert [one.after_step for one in generations_of(tags)] == [10]
    assert names(client(), folder) == [first.name, own.name, second.name, late.name]


@pytest.mark.parametrize(
    "name", ["epoch_0000-step_000010", "../..", "", "x" * 250, "\0", "ü" * 250]
)
def test_a_checkpoint_that_does_not_stand_there_is_not_marked(tmp_path: Path, name: str) -> None:
    """Training that went on from a file of elsewhere begins a generation all the same."""
    folder, (_, last) = delivered(tmp_path, 10, 20)
    about = checkpoints.CheckpointMetadata(name=name, step=5, epoch=0)
    tags = generation_tag("s2", start_ms=T0_MS, begun_from=about)
    marks = Marks(client(), run_id(folder), folder, goes_on=True)
    assert marks.at_start(tags) == {}
    assert marks.at_start({"opusclip.generation.1": "{"}) == {}
    about = checkpoints.CheckpointMetadata(name=last.name, step=20, epoch=0)
    tags = generation_tag("s2", start_ms=T0_MS, begun_from=about)
    assert marks.at_start(tags) == {LAST_TAG: last.name}


def test_a_store_that_is_away_does_not_hold_up_the_start(tmp_path: Path) -> None:
    """Whether the checkpoint stands there is then not known, and its mark is left."""
    folder, (first, _) = delivered(tmp_path, 10, 20)
    root = Path(client().get_run(run_id(folder)).info.artifact_uri.removeprefix("file://"))
    root.rename(root.with_name("away"))
    root.touch()
    again = make_run(tmp_path, name="f" * 32, run_id=run_id(folder))
    start = gone_on(again, first, T0_MS + 1000)
    append(again, [start, end_of_s2()], journal="s2" + CONTROL)
    append(again, [Metrics(T0_MS + 2000, 11, {"a": 1.0})])
    end(again)
    deliver(again, "mlflow")
    assert len(generations_of(client().get_run(run_id(folder)).data.tags)) == 1
    assert client().get_run(run_id(folder)).data.metrics["a"] == 1.0
