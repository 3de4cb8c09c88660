"""The calls that log samples: what arrives in MLflow of them, and what is refused at once."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mlflow import MlflowClient

from opusclip_mlops import ExperimentTracker, Origin, Panel, SourceClip, TrackingConfig
from opusclip_mlops.errors import PanelError, RecordError, VideoError
from opusclip_mlops.layout import samples_of
from opusclip_mlops.loading import LoadedCheckpoint
from opusclip_mlops.metadata import WEIGHTS, CheckpointMetadata, StoredFile
from opusclip_mlops.passport_files import PassportFiles
from opusclip_mlops.passports import Passport, Score
from opusclip_mlops.records import now_ms
from opusclip_mlops.video import read_clip, read_said
from tests.journeys import store

CLIP = np.full((4, 16, 16, 3), 200, np.uint8)
PANEL = Panel(name="kites", prompts=("a kite", "a dog"), seeds=(0, 1), sampler={"steps": 20})
FIRST, SECOND, THIRD, FOURTH = PANEL.cells
PIECE = SourceClip(uri="/films/kite.mp4", sha256="a" * 64, end_s=2, use="conditioned on")
MEASURED = Passport(metric="psnr", version="1", count=4, unit="frames")
OTHERS = CheckpointMetadata(
    name="theirs", step=9, epoch=1, files={WEIGHTS: StoredFile("b" * 64, 3)}
)


@pytest.fixture(scope="module")
def tracker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ExperimentTracker]:
    """A tracker of MLflow alone."""
    folder = tmp_path_factory.mktemp("samples")
    config = TrackingConfig(
        tracking_uri=store(folder),
        journal_dir=str(folder / "journal"),
        use_wandb=False,
        use_tensorboard=False,
        system_metrics=False,
        drain_timeout_s=200,
    )
    with ExperimentTracker(config) as tracker:
        yield tracker


@dataclass(frozen=True)
class Logged:
    """A run once all that was logged has arrived."""

    client: MlflowClient
    run_id: str
    checkpoint: str

    def paths(self, folder: str) -> list[str]:
        return sorted(one.path for one in self.client.list_artifacts(self.run_id, folder))

    def fetched(self, path: str) -> Path:
        return Path(self.client.download_artifacts(self.run_id, path))

    def account(self, step: int) -> dict[str, Any]:
        """The account of the panel's samples at a step."""
        [path] = [one for one in self.paths(f"panels/{PANEL.title}") if f"step_{step:08d}" in one]
        return dict(json.loads(self.fetched(path).read_text()))

    def clip(self, key: str) -> str:
        """Where the clip of a key lies."""
        [path] = self.paths(f"media/video/{key}")
        return path

    def origin(self, key: str) -> dict[str, Any]:
        """Where the clip of a key comes from, as it is told beside it."""
        found = [json.loads(self.fetched(path).read_text()) for path in self.paths("origins")]
        [about] = [one for one in found if one["key"] == key]
        assert self.paths(f"media/video/{key}") == [about["clip"]]
        return dict(about["origin"])


@pytest.fixture(scope="module")
def logged(tracker: ExperimentTracker) -> Logged:
    """Panels and clips of every kind."""
    scores = {FIRST: {"psnr": Score(30.0, MEASURED)}, SECOND: {"psnr": 20.0, "odd": 1.0}}
    tracker.log_panel(PANEL, [CLIP] * 4, step=1, scores=scores)
    tracker.log_metrics({"a": 1.0}, step=2)
    name = tracker.save_checkpoint(torch.nn.Linear(1, 1), step=2)
    tracker.log_panel(PANEL, {FIRST: CLIP, ("a dog", 1): CLIP})
    alike = [{"psnr": Score(value, MEASURED), "odd": 1.0} for value in (10.0, 20.0, 30.0, 40.0)]
    tracker.log_panel(PANEL, (CLIP for _ in PANEL.cells), step=3, checkpoint=name, scores=alike)
    unlike = [*alike[:3], {"psnr": Score(40.0, replace(MEASURED, count=9)), "odd": 2.0}]
    tracker.log_panel(PANEL, [CLIP] * 4, step=4, checkpoint=OTHERS, scores=unlike)
    loaded = LoadedCheckpoint(folder=None, metadata=OTHERS)
    tracker.log_panel(PANEL, [CLIP] * 4, step=5, checkpoint=loaded)
    tracker.log_video(CLIP, "samples/plain", step=1)
    tracker.log_video(CLIP, "samples/saved")
    tracker.log_video(CLIP, "samples/cut", step=7, origin=Origin(seed=0, sources=(PIECE,)))
    theirs = Origin(checkpoint="theirs", weights_sha256="b" * 64)
    tracker.log_video(CLIP, "samples/theirs", step=2, origin=theirs)
    assert tracker.flush(sink="mlflow")
    return Logged(MlflowClient(tracker.config.tracking_uri), tracker.run_id, name)


def test_an_account_has_all_cells_with_prompt_seed_and_settings(logged: Logged) -> None:
    """Each names its clip, which is there and plays."""
    account = logged.account(1)
    assert account["run_id"] == logged.run_id
    assert (account["title"], Panel.from_dict(account["panel"])) == (PANEL.title, PANEL)
    assert list(account["cells"]) == [one.name for one in PANEL.cells]
    for cell in PANEL.cells:
        origin = account["cells"][cell.name]["origin"]
        assert (origin["prompt"], origin["seed"]) == (cell.prompt, cell.seed)
        assert (origin["sampler"], origin["step"]) == ({"steps": 20}, 1)
        assert "checkpoint" not in origin
    clip = logged.fetched(account["cells"][FIRST.name]["clip"])
    assert len(read_clip(clip).frames) == 4


def test_scores_are_kept_with_their_passports(logged: Logged) -> None:
    """A cell without a score has none."""
    cells = logged.account(1)["cells"]
    assert cells[FIRST.name]["scores"] == {"psnr": 30.0}
    assert Passport.from_dict(cells[FIRST.name]["passports"]["psnr"]) == MEASURED
    assert cells[SECOND.name]["passports"] == {}
    assert cells[THIRD.name]["scores"] == {}


def test_means_are_metrics_where_all_cells_were_measured_alike(logged: Logged) -> None:
    """Of part of a panel, or of what was measured otherwise, there is no mean."""
    found = {}
    for name in ("psnr", "odd"):
        history = logged.client.get_metric_history(logged.run_id, f"panels/{PANEL.title}/{name}")
        found[name] = [(point.step, point.value) for point in history]
    assert found == {"psnr": [(3, 25.0)], "odd": [(3, 1.0), (4, 1.25)]}
    [point] = logged.client.get_metric_history(logged.run_id, f"panels/{PANEL.title}/psnr")
    files = PassportFiles(logged.client, logged.run_id)
    passport = files.of(point.key, step=point.step, timestamp_ms=point.timestamp)
    assert passport == replace(MEASURED, count=4, unit="cells of a panel")


def test_cells_may_be_without_a_clip(logged: Logged) -> None:
    """Given by cell, or by prompt and seed; the others are there, and say so."""
    cells = logged.account(2)["cells"]
    assert [name for name, one in cells.items() if one.get("clip")] == [FIRST.name, FOURTH.name]
    assert len(cells) == 4


def test_the_model_is_named_with_its_weights(logged: Logged) -> None:
    """The checkpoint of that very step, one that was named, or one that was loaded."""
    sealed = logged.fetched(f"checkpoints/{logged.checkpoint}/metadata.json")
    own = CheckpointMetadata.from_dict(json.loads(sealed.read_text()))
    made = {step: logged.account(step)["cells"][FIRST.name]["origin"] for step in (2, 3, 4, 5)}
    told = {step: (one["checkpoint"], one["weights_sha256"]) for step, one in made.items()}
    ours, theirs = (own.name, own.weights_sha256), (OTHERS.name, OTHERS.weights_sha256)
    assert told == {2: ours, 3: ours, 4: theirs, 5: theirs}


def test_a_clip_by_itself_is_told_of_beside_it(logged: Logged) -> None:
    """Its films and its model; what is said is not overruled by what was saved at the step."""
    cut = logged.origin("samples/cut")
    assert (cut["sources"], cut["seed"], cut["step"]) == ([PIECE.to_dict()], 0, 7)
    assert logged.origin("samples/theirs")["weights_sha256"] == "b" * 64
    saved = logged.origin("samples/saved")
    assert saved["checkpoint"] == logged.checkpoint
    assert len(saved["weights_sha256"]) == 64


def test_only_clips_that_say_something_have_a_file_beside_them(logged: Logged) -> None:
    """Not those of panels, nor one of which step and commit are all that is known."""
    assert len(logged.paths("origins")) == 3


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"videos": [CLIP] * 3}, PanelError),
        ({"videos": 3}, PanelError),
        ({"videos": {"nobody": CLIP}}, PanelError),
        ({"videos": [CLIP, CLIP, CLIP, "nowhere.mp4"]}, VideoError),
        ({"videos": [CLIP, CLIP, CLIP, CLIP.astype(float)]}, VideoError),
        ({"scores": [{"psnr": 1.0}]}, PanelError),
        ({"scores": {FIRST: {"psnr": "high"}}}, TypeError),
        ({"scores": {FIRST: {"a//b": 1.0}}}, RecordError),
        ({"scores": {FIRST: {"k" * 240: 1.0}}}, RecordError),
        ({"scores": {FIRST: 3}}, TypeError),
        ({"fps": 0}, RecordError),
        ({"step": 1.5}, TypeError),
    ],
)
def test_a_panel_that_does_not_fit_is_refused_whole(
    tracker: ExperimentTracker, given: dict[str, Any], error: type[Exception]
) -> None:
    """Nothing of it is logged, and no clip is left lying."""
    media = tracker._session.folder.media
    before = sorted(media.iterdir())
    with pytest.raises(error) as caught:
        tracker.log_panel(PANEL, **{"videos": [CLIP] * 4, **given})
    assert "\n" not in str(caught.value)
    assert sorted(media.iterdir()) == before


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"key": "a//b"}, RecordError),
        ({"origin": Origin(sampler={"a": object()})}, RecordError),
        ({"origin": Origin(prompt="x" * 70_000)}, RecordError),
        ({"origin": Origin(prompt="\udc80")}, RecordError),
        ({"origin": Origin(seed=2**64)}, RecordError),
        ({"fps": 1e9}, RecordError),
        ({"max_bytes": 0}, RecordError),
        ({"max_bytes": 1e6}, RecordError),
        ({"video": "nowhere.mp4"}, VideoError),
    ],
)
def test_a_clip_that_does_not_fit_is_refused(
    tracker: ExperimentTracker, given: dict[str, Any], error: type[Exception]
) -> None:
    """Before anything is kept of it."""
    media = tracker._session.folder.media
    before = sorted(media.iterdir())
    with pytest.raises(error):
        tracker.log_video(**{"video": CLIP, "key": "samples/a", **given})
    assert sorted(media.iterdir()) == before


def test_a_panel_whose_clips_fail_leaves_none(tracker: ExperimentTracker) -> None:
    """Whatever it is that the caller's own code raises."""
    media = tracker._session.folder.media
    before = sorted(media.iterdir())

    def failing() -> Iterator[np.ndarray]:
        yield CLIP[0]
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        tracker.log_panel(PANEL, [CLIP, CLIP, CLIP, failing()])
    assert sorted(media.iterdir()) == before


def test_what_a_file_cannot_hold_is_left_out_of_a_caption(
    tracker: ExperimentTracker, logged: Logged
) -> None:
    """The clip arrives; its account has the prompt as it was. Nor do NumPy's numbers matter."""
    nasty = Panel(name="nasty", prompts=("a\0kite",))
    tracker.log_panel(nasty, [CLIP], step=1)
    sampler = {"guidance": np.float64(6.5)}
    said = {"origin": Origin(sampler=sampler), "caption": "a\udc80\0", "max_bytes": np.int64(9999)}
    tracker.log_video(CLIP, "nasty/clip", step=1, **said)
    assert tracker.flush(sink="mlflow")
    assert logged.paths("media/video/nasty/clip") == [logged.clip("nasty/clip")]
    [cell] = nasty.cells
    [path] = logged.paths(f"media/video/{nasty.key_of(cell)}")
    told = read_said(logged.fetched(path))
    assert told.caption == "akite (seed 0)"
    assert json.loads(told.comment)["prompt"] == "a\0kite"


def test_a_clock_that_is_behind_makes_no_sample_of_earlier(
    tracker: ExperimentTracker, logged: Logged, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a wall would take it for one that training has gone back behind."""
    ahead_ms = now_ms() + 60_000
    monkeypatch.setattr(tracker, "_since_ms", ahead_ms)
    late = Panel(name="late", prompts=("a kite",))
    tracker.log_panel(late, [CLIP], step=1)
    assert tracker.flush(sink="mlflow")
    [path] = logged.paths(f"panels/{late.title}")
    named = samples_of(path)
    assert named is not None
    assert named.timestamp_ms == ahead_ms


def test_a_folder_that_is_gone_is_no_fault(
    tracker: ExperimentTracker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training may have removed the one it stands in."""
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    vars(tracker).pop("_commit", None)
    tracker.log_video(CLIP, "samples/adrift", step=1)


def test_the_films_of_a_dataset_arrive_whole(tracker: ExperimentTracker, logged: Logged) -> None:
    """In a file and a tag; in the profile they are short. None, and no films, change nothing."""
    many = [replace(PIECE, uri=f"/films/{index}.mp4") for index in range(300)]
    about = {"name": "films", "source": "/films", "profile": {"frames": 9}}
    tracker.log_dataset(digest="many", **about, sources=iter(many))
    tracker.log_dataset(digest="none", **about, sources=[])
    with pytest.raises(RecordError, match="give SourceClip alone"):
        tracker.log_dataset(digest="bad", **about, sources=["/films/kite.mp4"])
    assert tracker.flush(sink="mlflow")
    run = logged.client.get_run(logged.run_id)
    profiles = {one.dataset.digest: one.dataset.profile for one in run.inputs.dataset_inputs}
    assert profiles.keys() == {"many", "none"}
    assert json.loads(profiles["none"]) == {"frames": 9}
    said = json.loads(profiles["many"])["sources"]
    assert (said["clip_count"], len(profiles["many"]) < 500) == (300, True)
    assert logged.paths("datasets") == [said["file"]]
    assert len(json.loads(logged.fetched(said["file"]).read_text())["films"]) == 300
    assert [key for key in run.data.tags if key.startswith("opusclip.sources.")]
