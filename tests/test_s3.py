"""Artifacts in a real S3: a run arrives whole and is read back, and faults of the store pass."""

import contextlib
import functools
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from mlflow.entities import Run

from opusclip_mlops import ExperimentTracker, Panel, TrackingConfig, chronicle, gated, wandb_log
from opusclip_mlops.accounts import accounts_of
from opusclip_mlops.checkpoints import CheckpointMetadata, checkpoint_name, write_checkpoint
from opusclip_mlops.delivery import deliver
from opusclip_mlops.errors import CheckpointError, OpusclipError, RegistryError
from opusclip_mlops.folder import RunFolder
from opusclip_mlops.layout import BEST_TAG, LAST_TAG
from opusclip_mlops.loading import load_checkpoint
from opusclip_mlops.material import checkpoints_of
from opusclip_mlops.pruning import Pruning, earlier_checkpoints
from opusclip_mlops.records import Checkpoint
from opusclip_mlops.registry import register
from opusclip_mlops.video import read_clip
from tests.faults.files import MAKE_CHECKPOINT, MAKE_CLIP, assert_checkpoints_whole
from tests.faults.site import Site
from tests.journeys import append, end, make_run, wait_until
from tests.mlflow_runs import T0_MS
from tests.object_store import BUCKET, SECRET, ObjectStore
from tests.reading import points_of_mlflow
from tests.test_registry import CONTENT, SCALER

PANEL = Panel(name="kites", prompts=("a red kite", "a green kite"))
POLICY = """\
stages:
  Production: {checkpoint_hash: verified, signature: present, smoke_test: {timeout_s: 200}}
"""
_LONG_S = 300.0
WRONG = "wr0ng-horse-batteries"
SECRETS = re.compile(f"{SECRET}|{WRONG}".encode())
WRONG_KEY = "S3 says SignatureDoesNotMatch: check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
LOSSES = {10: 0.5, 20: 0.1, 30: 0.4, 40: 0.3}
FIRST, BEST, _, LAST = (checkpoint_name(1, step) for step in LOSSES)


@dataclass(frozen=True)
class Place:
    """An experiment on an MLflow server whose artifacts are in S3."""

    name: str
    uri: str
    store: ObjectStore
    environment: dict[str, str]
    folder: Path
    runs: dict[str, str] = field(default_factory=dict)

    @property
    def client(self) -> MlflowClient:
        """A client of the server."""
        return MlflowClient(self.uri, self.uri)

    def experiment(self, name: str, *, bucket: str = BUCKET) -> str:
        """Make an experiment; who has the keys writes to S3 itself."""
        root = f"s3://{bucket}/{name}" if self.environment else None
        self.client.create_experiment(name, artifact_location=root)
        return name

    def keys(self, run: Run) -> list[str]:
        """What S3 holds of a run."""
        path = run.info.artifact_uri.removeprefix(f"s3://{BUCKET}/")
        return self.store.keys(path.replace("mlflow-artifacts:/", "served/") + "/")

    def config(self, **fields: Any) -> TrackingConfig:
        """A tracker's configuration."""
        given = {"tracking_uri": self.uri, "project_name": "clips", "wandb_mode": "offline"}
        return TrackingConfig(system_metrics=False, **{**given, **fields})

    def trained(self) -> Run:
        """A tracked run of all kinds of things, made once."""
        if "trained" not in self.runs:
            self.runs["trained"] = train(self)
        return self.client.get_run(self.runs["trained"])


def layer(weight: float = 0.0) -> torch.nn.Linear:
    """A layer that multiplies by a number."""
    made = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(made.weight, weight)
    return made


def clip(colour: int) -> np.ndarray:
    """A clip of 4 frames."""
    return np.full((4, 32, 32, 3), colour, np.uint8)


def train(place: Place) -> str:
    """Track a run with points, clips, a text, a panel and checkpoints; its id."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place.folder)
        name = place.experiment(f"{place.name}-films")
        is_mirrored = place.name == "direct"
        config = place.config(
            experiment_name=name, use_wandb=is_mirrored, use_tensorboard=is_mirrored
        )
        with ExperimentTracker(config) as tracker:
            tracker.keep_checkpoints(last=1, best=("val/loss", "min"))
            tracker.log_metrics({"train/loss": 0.7}, 1)
            tracker.log_text("a note", "notes/début", 3)
            tracker.log_video(clip(80), "films/kite", 3)
            tracker.log_panel(PANEL, [clip(30), clip(200)], 10, scores=[{"lpips": 0.1}] * 2)
            for step, loss in LOSSES.items():
                tracker.save_checkpoint(layer(step), epoch=1, step=step, metrics={"val/loss": loss})
                if checkpoint_name(1, step) == FIRST:
                    # What is dropped has been there.
                    tracker.flush(sink="mlflow")
    return tracker.run_id


@pytest.fixture(scope="module")
def places(
    tmp_path_factory: pytest.TempPathFactory, s3_server: str, s3: ObjectStore
) -> dict[str, Place]:
    """Clients that write to S3 themselves, and such as leave that to the server."""
    keys = {"direct": s3.environment(), "proxied": {}}
    return {
        name: Place(name, s3_server, s3, given, tmp_path_factory.mktemp(name))
        for name, given in keys.items()
    }


@pytest.fixture(params=["direct", "proxied"])
def place(
    request: pytest.FixtureRequest, places: dict[str, Place], monkeypatch: pytest.MonkeyPatch
) -> Place:
    """Each of them, with its keys."""
    return with_keys(places[request.param], monkeypatch)


@pytest.fixture
def direct(places: dict[str, Place], monkeypatch: pytest.MonkeyPatch) -> Place:
    """A client with the keys."""
    return with_keys(places["direct"], monkeypatch)


def with_keys(place: Place, monkeypatch: pytest.MonkeyPatch) -> Place:
    for name in [one for one in os.environ if one.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in place.environment.items():
        monkeypatch.setenv(name, value)
    return place


def counts(keys: list[str]) -> dict[str, int]:
    """How many files there are in each folder."""
    return dict(Counter(str(Path(key).parent) for key in keys))


def secrets_below(folder: Path) -> list[Path]:
    """The files that hold a secret."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return [path for path in files if SECRETS.search(path.read_bytes())]


def references(folder: Path, run: Run) -> set[str]:
    """Where W&B's log says that the files of the run's checkpoints are."""
    [log] = wandb_log.logs_of(folder, run.data.tags["opusclip.mirror_id"])
    artifacts = [one.artifact for one in wandb_log.read_records(log) if one.HasField("artifact")]
    return {one.ref for made in artifacts for one in made.manifest.contents}


def one_line_of(kind: type[OpusclipError], action: Callable[[], object]) -> str:
    """What an error says that is one line without a secret."""
    with pytest.raises(kind) as raised:
        action()
    text = str(raised.value)
    assert "\n" not in text
    assert not SECRETS.search(text.encode())
    return text


def test_a_run_arrives_whole(place: Place, tmp_path: Path) -> None:
    """Clips, text, panel, and of the checkpoints those that are kept; each once."""
    run = place.trained()
    keys = place.keys(run)
    cells = [f"panels/{PANEL.title}/{cell.name}" for cell in PANEL.cells]
    assert run.info.status == "FINISHED"
    assert (run.data.tags[BEST_TAG], run.data.tags[LAST_TAG]) == (BEST, LAST)
    assert counts(keys) == {
        **{f"checkpoints/{name}": 3 for name in (BEST, LAST)},
        **{f"media/video/{key}": 1 for key in ("films/kite", *cells)},
        "images": 6,
        "text/notes/début": 1,
        f"panels/{PANEL.title}": 1,
        "panels": 1,
    }
    [film] = [key for key in keys if key.startswith("media/video/films/kite/")]
    fetched = place.client.download_artifacts(run.info.run_id, film, str(tmp_path))
    assert read_clip(fetched).frames.shape == (4, 32, 32, 3)


def test_a_checkpoint_is_loaded_back(place: Place, tmp_path: Path) -> None:
    """By its mark, verified; one that was removed is not among those that are there."""
    model, run_id = layer(), place.trained().info.run_id
    load = functools.partial(load_checkpoint, run_id, tracking_uri=place.uri)
    loaded = load(model=model, into=tmp_path / "kept")
    assert (loaded.metadata.name, model.weight.item()) == (BEST, 20.0)
    assert (tmp_path / "kept" / BEST / "state.pt").exists()
    for which in (FIRST, 10):
        said = one_line_of(CheckpointError, lambda which=which: load(which=which))
        assert said.endswith(f"; it has: {BEST}, {LAST}")


def test_no_secret_is_in_what_was_sent(place: Place, tmp_path: Path) -> None:
    """Neither in S3, nor in MLflow's words about the run, nor in what lies in its folder."""
    run = place.trained()
    place.client.download_artifacts(run.info.run_id, "", str(tmp_path))
    assert not secrets_below(tmp_path)
    assert not secrets_below(place.folder)
    assert not SECRETS.search(repr(run.to_dictionary()).encode())


def checkpoint(folder: RunFolder, name: str, step: int) -> Checkpoint:
    """A checkpoint in a run's folder."""
    about = CheckpointMetadata(name=name, epoch=1, step=step)
    write_checkpoint(folder.checkpoints / name, layer(step), metadata=about)
    return Checkpoint(T0_MS, step, 1, name, {}, False)


def test_what_was_dropped_goes_unless_a_version_is_made_of_it(place: Place, tmp_path: Path) -> None:
    """Nor does one go whose name only begins like that; the registered one stays, whoever asks."""
    given = {"tracking_uri": place.uri, "experiment_name": place.experiment(f"{place.name}-short")}
    folder = make_run(tmp_path, name=f"{place.name}-short", **given)
    again, kept = f"{FIRST}-2", checkpoint_name(1, 20)
    names = {FIRST: 10, again: 10, kept: 20, LAST: 40}
    append(folder, [checkpoint(folder, name, step) for name, step in names.items()])
    end(folder)
    deliver(folder, "mlflow")
    identity = folder.identity()
    assert identity is not None
    client, model = place.client, f"{place.name}-short"
    client.create_registered_model(model)
    source = f"{identity.artifact_uri}/checkpoints/{kept}"
    client.create_model_version(model, source, run_id=identity.run_id)
    for name in (FIRST, kept):
        Pruning(client, identity.run_id).remove(name)
    run = client.get_run(identity.run_id)
    assert counts(place.keys(run)) == {f"checkpoints/{name}": 3 for name in (again, kept, LAST)}
    assert earlier_checkpoints(client, run).names == (again, kept, LAST)


def test_a_version_is_made_judged_and_promoted(place: Place, tmp_path: Path) -> None:
    """Its files are hashed, its signature is read, and it answers, all out of S3."""
    run_id, model = place.trained().info.run_id, f"{place.name}-scaler"
    (tmp_path / "scaler.py").write_text(SCALER)
    given = {"name": model, "python_model": tmp_path / "scaler.py", **CONTENT}
    given["tracking_uri"] = place.uri
    gone = one_line_of(RegistryError, lambda: register(run_id, checkpoint=FIRST, **given))
    assert gone.endswith(f"no checkpoint {FIRST}; it has: {BEST}, {LAST}")
    made = register(run_id, **given)
    assert (made.version, made.checkpoint) == (1, BEST)
    gated.set_policy(model, POLICY, tracking_uri=place.uri)
    decision = gated.promote(model, 1, to="Production", tracking_uri=place.uri)
    verdict = chronicle.verdict_of(decision, client=place.client)
    assert verdict is not None
    assert len(verdict["conditions"]) == 3
    assert verdict["passed"]
    weights = layer()
    load_checkpoint(f"models:/{model}/Production", model=weights, tracking_uri=place.uri)
    assert weights.weight.item() == 20.0


def test_a_run_is_mirrored_and_compared(
    direct: Place, said: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    """W&B refers to where the files are in S3, live and afterwards, and holds no key of it."""
    run = direct.trained()
    words = mirror_words(direct, run, tmp_path)
    code, text = said("mirror", *words)
    assert code == 0, text
    assert "MLflow lists nothing" not in text
    code, text = said("verify", *words)
    assert code == 0, text
    root = f"{run.info.artifact_uri}/checkpoints/{BEST}"
    refs = references(direct.folder, run)
    assert root.startswith(f"s3://{BUCKET}/direct-films/")
    assert {ref for ref in refs if BEST in ref} == {
        f"{root}/state.pt", f"{root}/weights.safetensors"
    }  # fmt: skip
    assert {ref for ref in references(tmp_path, run) if "/checkpoints/" in ref} <= refs
    assert not secrets_below(tmp_path)


def mirror_words(place: Place, run: Run, folder: Path) -> list[str]:
    """Arguments that mirror a run into a folder."""
    to = ["--to", f"tensorboard:{folder}/runs", "--to", "wandb:clips", "--wandb-mode", "offline"]
    return [*to, "--tracking-uri", place.uri, "--wandb-dir", str(folder), run.info.run_id]


def test_who_asks_while_the_store_is_away_is_told_in_one_line(
    place: Place,
    said: Callable[..., tuple[int, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A checkpoint, a version to be made, a verdict, a mirror: none is had, and none is half."""
    run, model = place.trained(), f"{place.name}-away"
    run_id, source = run.info.run_id, f"{run.info.artifact_uri}/checkpoints/{BEST}"
    place.client.create_registered_model(model)
    place.client.create_model_version(model, source, run_id=run_id)
    gated.set_policy(model, POLICY, tracking_uri=place.uri)
    (tmp_path / "scaler.py").write_text(SCALER)
    given = {"python_model": tmp_path / "scaler.py", "tracking_uri": place.uri}
    ask = functools.partial(gated.check, model, 1, to="Production", tracking_uri=place.uri)
    with away(place.store):
        # It gives up soon by itself; the others may ask for as long as the user lets them.
        one_line_of(CheckpointError, lambda: load_checkpoint(run_id, tracking_uri=place.uri))
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        one_line_of(RegistryError, lambda: register(run_id, name="never", **given, **CONTENT))
        one_line_of(RegistryError, ask)
        code, text = said("mirror", *mirror_words(place, run, tmp_path))
        assert code == 1, text
        assert not SECRETS.search(text.encode())
    assert not list(tmp_path.glob("runs/**/events*"))


def test_a_bucket_that_is_gone_is_told(direct: Place) -> None:
    """It is no run without samples: who asks what a film has touched must know of it."""
    name = direct.experiment("of-a-bucket-that-is-gone", bucket="nowhere")
    experiment = direct.client.get_experiment_by_name(name)
    run = direct.client.create_run(experiment.experiment_id)
    found, unread = accounts_of(run, direct.uri)
    assert (found, [one.path for one in unread]) == ([], ["panels", "origins"])
    assert "bucket does not exist" in unread[0].reason
    known, unread = checkpoints_of(run, direct.uri)
    assert (known, [one.path for one in unread]) == ({}, ["checkpoints"])


@contextlib.contextmanager
def away(store: ObjectStore) -> Iterator[None]:
    """Kill the store, and have it back after the block."""
    store.down()
    try:
        yield
    finally:
        store.up()


@pytest.fixture
def site(direct: Place, tmp_path: Path) -> Iterator[Site]:
    """A folder whose trainers have the keys of S3."""
    alone = {"OPUSCLIP_USE_WANDB": "false", "OPUSCLIP_USE_TENSORBOARD": "false"}
    keys = {**direct.environment, "OPUSCLIP_S3_ENDPOINT_URL": direct.store.address}
    # What feeds this one too.
    del keys["MLFLOW_S3_ENDPOINT_URL"]
    folder = Site(tmp_path, direct.uri, settings={**keys, **alone})
    yield folder
    folder.close()


TRAINING = (
    MAKE_CLIP
    + MAKE_CHECKPOINT
    + """\
with ExperimentTracker() as tracker:
    for part in range(PARTS):
        ledger.steps(tracker, 10, first=10 * part)
        log_clip(tracker, 'samples/kite', part)
        save(tracker, part)
        while not os.path.exists(f'part{part}'): time.sleep(0.02)
"""
)


def assert_all_arrived(site: Site, *, parts: int) -> None:
    """Everything once and whole, and no secret in any of it."""
    run = site.run()
    logged = [(key, step) for step in range(10 * parts) for key in ("train/loss", "train/rate")]
    points = points_of_mlflow(site.client, run.info.run_id)
    assert Counter((p.key, p.step) for p in points if "system/" not in p.key) == Counter(logged)
    films = site.client.list_artifacts(run.info.run_id, "media/video/samples/kite")
    assert len(films) == parts
    assert all(one.file_size for one in films)
    assert_checkpoints_whole(site)
    assert run.info.status == "FINISHED"
    assert not secrets_below(site.folder)


def await_put_off(site: Site, *, times: int = 1) -> Path:
    """Wait until files had to wait so often; the log that says it."""
    log = site.await_journal().path / "shipper.log"
    [trainer] = site.trainers

    def is_told() -> bool:
        assert trainer.process.poll() is None, trainer.stderr
        return log.exists() and log.read_text().count("put off") >= times

    wait_until(is_told, deadline_s=_LONG_S)
    return log


def test_a_wrong_key_holds_up_files_only(direct: Place, site: Site) -> None:
    """The points arrive; with the right key `opusclip recover` brings the rest, once."""
    direct.client.create_experiment(site.experiment, f"s3://{BUCKET}/{site.experiment}")
    trainer = site.start(
        TRAINING.replace("PARTS", "1"), AWS_SECRET_ACCESS_KEY=WRONG, OPUSCLIP_DRAIN_TIMEOUT_S="1"
    )
    log = await_put_off(site)
    assert "put off: S3UploadFailedError (SignatureDoesNotMatch)" in log.read_text()
    [run] = json.loads(site.opusclip("status", "--json").stdout)["runs"]
    [sink] = run["sinks"]
    assert sink["faults"] >= 1
    assert WRONG_KEY in sink["last_error"]
    (site.folder / "part0").touch()
    assert trainer.wait() == 0
    [said] = [line for line in trainer.stderr.splitlines() if "on its way to mlflow" in line]
    assert WRONG_KEY in said
    assert len(points_of_mlflow(site.client, site.run().info.run_id)) >= 20
    assert not secrets_below(site.folder)
    site.reboot()
    done = site.opusclip("recover", "--all")
    assert done.returncode == 0, done.stderr
    assert_all_arrived(site, parts=1)


def test_training_goes_on_while_the_store_is_away(direct: Place, site: Site) -> None:
    """No bucket at first, and then a server that is killed and comes back: all arrives once."""
    bucket = f"later-{site.experiment}"
    direct.client.create_experiment(site.experiment, f"s3://{bucket}/runs")
    trainer = site.start(TRAINING.replace("PARTS", "2"))
    assert "put off: S3UploadFailedError (NoSuchBucket)" in await_put_off(site).read_text()
    direct.store.client.create_bucket(Bucket=bucket)
    held = functools.partial(direct.store.keys, bucket=bucket)
    wait_until(lambda: any("metadata" in key for key in held()), deadline_s=_LONG_S)
    with away(direct.store):
        before = await_put_off(site).read_text().count("put off")
        (site.folder / "part0").touch()
        await_put_off(site, times=before + 1)
    (site.folder / "part1").touch()
    assert trainer.wait() == 0
    site.await_delivery()
    assert_all_arrived(site, parts=2)
    assert held()
