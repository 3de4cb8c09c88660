"""Which steps stand on a wall, and what becomes of those that can't; read from real runs."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from opusclip_mlops import layout, video, walls
from opusclip_mlops.checkpoints import checkpoint_name
from opusclip_mlops.errors import VideoError
from opusclip_mlops.generations import generation_tag
from opusclip_mlops.layout import BEST_TAG
from opusclip_mlops.metadata import CheckpointMetadata
from opusclip_mlops.panels import Panel
from opusclip_mlops.passports import Interval, Passport
from opusclip_mlops.wall_clips import film_at
from opusclip_mlops.wall_page import MOST_BYTES, Film, Wall
from opusclip_mlops.walls import LAST, Candidate, RunOfWall, evenly, lay_out, thinned
from tests.panelled import FPS, FRAMES, PANEL, T0_MS, numbered, panelled_run

ONE = Panel(name="one", prompts=("a",))


def nothing(*_: object) -> None:
    """Nobody looks."""


def candidates(run: Run, tmp_path: Path, panel: Panel = ONE, **options: Any) -> Any:
    """What a run has for a wall."""
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    folder = tmp_path / "clips"
    folder.mkdir(exist_ok=True)
    reading = RunOfWall.of(client, client.get_run(run.info.run_id), panel.title, folder)
    return reading.candidates(panel.title, called="first", show=nothing, **options)


def laid_out(run: Run, tmp_path: Path, panel: Panel = ONE, most_bytes: int = MOST_BYTES) -> Wall:
    found = candidates(run, tmp_path, panel)
    return lay_out(panel, found.steps, found.notes, show=nothing, most_bytes=most_bytes)


def account(run: Run, step: int, panel: Panel = ONE) -> Path:
    """The account of a step, where MLflow keeps it."""
    [path] = Path(run.info.artifact_uri, "panels", panel.title).glob(f"step_{step:08d}-*.json")
    return path


def test_all_steps_stand_in_their_order(tmp_path: Path) -> None:
    """With their scores, where they come from, and clips of as many pictures as were logged."""
    origin = {"checkpoint": "epoch_1", "weights_sha256": "f" * 64, "git_commit": "c" * 40}
    _, run = panelled_run(
        tmp_path, [10, 0], panel=PANEL, origin=origin, scores={"psnr": 31.5, "lost": float("nan")}
    )
    wall = laid_out(run, tmp_path, PANEL)
    assert [one.step for one in wall.columns] == [0, 10]
    assert (wall.panel, wall.notes) == (PANEL, [])
    column = wall.columns[1]
    assert column.about[:3] == ("checkpoint epoch_1", f"weights {'f' * 12}", f"commit {'c' * 12}")
    assert list(column.samples) == [cell.name for cell in PANEL.cells]
    sample = column.samples[PANEL.cells[3].name]
    assert sample.film
    assert (sample.film.frames, sample.film.fps) == (16, 8.0)
    assert (sample.film.width, sample.film.height) == (80, 48)
    assert [(one.name, repr(one.value), one.is_given) for one in sample.scores[:2]] == [
        ("lost", "nan", True), ("psnr", "31.5", True),
    ]  # fmt: skip
    flicker, motion = sample.scores[2:]
    assert (flicker.name, motion.name, motion.is_given) == ("flicker", "motion", False)
    assert flicker.measured[0] == "flicker v1, 14 frame triples"
    assert (sample.about["seed"], sample.about["checkpoint"]) == ("7", "epoch_1")


def test_the_checkpoint_marked_best_is_shown_as_such(tmp_path: Path) -> None:
    """Its step is marked, and is left out last."""
    folder, run = panelled_run(tmp_path, [0], panel=ONE, origin={"checkpoint": "good"})
    MlflowClient(folder.manifest().tracking_uri).set_tag(run.info.run_id, BEST_TAG, "good")
    [found] = candidates(run, tmp_path).steps
    assert (found.marks, found.is_kept) == (("best",), True)


def test_of_very_many_steps_some_are_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first, the last, and that of the best checkpoint among them."""
    monkeypatch.setattr(walls, "MOST_STEPS", 3)
    folder, run = panelled_run(tmp_path, range(7), panel=ONE)
    best = checkpoint_name(0, 4)
    MlflowClient(folder.manifest().tracking_uri).set_tag(run.info.run_id, BEST_TAG, best)
    found = candidates(run, tmp_path)
    assert [one.step.step for one in found.steps] == [0, 3, 4, 6]
    assert found.notes == ["Of 7 steps of run first, 4 were looked at."]


def test_a_score_says_how_it_was_measured(tmp_path: Path) -> None:
    """The lines of its passport; one that is none says so, and a score without one nothing."""
    interval = Interval(low=1, high=2, level=0.95, method="bootstrap", resamples=9, seed=0)
    passport = Passport(
        metric="fid", version="2", count=16, unit="frames", settings={"window": 11},
        interval=interval,
    )  # fmt: skip
    _, run = panelled_run(tmp_path, [0], panel=ONE, scores={"fid": 1.5, "plain": 1, "torn": 2})
    path = account(run, 0)
    said = json.loads(path.read_text())
    [cell] = said["cells"].values()
    cell["passports"] = {"fid": passport.to_dict(), "torn": {"metric": 7}}
    path.write_text(json.dumps(said))
    [column] = laid_out(run, tmp_path).columns
    [sample] = column.samples.values()
    measured = {one.name: one.measured for one in sample.scores}
    assert measured["fid"][:2] == ("fid v2, 16 frames", "95%: 1 to 2")
    assert "window: 11" in measured["fid"]
    assert measured["plain"] == ()
    assert measured["torn"] == ("its passport cannot be read",)


def test_what_was_logged_is_not_measured_again(tmp_path: Path) -> None:
    """A flicker of the user's own stands alone."""
    _, run = panelled_run(tmp_path, [0], panel=ONE, scores={"flicker": 7.0})
    [column] = laid_out(run, tmp_path).columns
    [sample] = column.samples.values()
    found = [(one.name, one.is_given) for one in sample.scores]
    assert found == [("flicker", True), ("motion", False)]


def test_a_clip_that_is_gone_or_torn_is_a_hole(tmp_path: Path) -> None:
    """Each place says why it is empty, and the others are shown."""
    clips = [numbered(), None, numbered(), numbered()]
    _, run = panelled_run(tmp_path, [0], panel=PANEL, clips=clips)
    first, _, third, _ = (
        Path(run.info.artifact_uri, layout.clip_folder(PANEL.key_of(cell))) for cell in PANEL.cells
    )
    next(first.glob("*.mp4")).unlink()
    next(third.glob("*.mp4")).write_bytes(b"torn")
    [column] = laid_out(run, tmp_path, PANEL).columns
    found = [sample.missing for sample in column.samples.values()]
    assert found == [
        "this clip is gone from MLflow", "no clip was logged", "this clip cannot be read as video",
        "",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "place", ["../../../etc/passwd", "media/video/other/step_00000000-abcdefgh.mp4", "/etc/passwd"]
)
def test_an_account_names_clips_of_its_own_cells_only(tmp_path: Path, place: str) -> None:
    """Whatever it calls a clip: nothing else of the run, or of this machine, gets onto the page."""
    _, run = panelled_run(tmp_path, [0], panel=ONE)
    path = account(run, 0)
    said = json.loads(path.read_text())
    [cell] = said["cells"].values()
    cell["clip"] = place
    path.write_text(json.dumps(said))
    [column] = laid_out(run, tmp_path).columns
    [sample] = column.samples.values()
    assert (sample.film, sample.missing) == (None, "no clip was logged")


def test_accounts_that_are_none_are_told(tmp_path: Path) -> None:
    """Torn ones, ones of a changed panel, ones under another name: the other steps are shown."""
    _, run = panelled_run(tmp_path, [0, 1, 2, 3, 4], panel=ONE)
    account(run, 0).write_text("{")
    said = json.loads(account(run, 1).read_text())
    account(run, 1).write_text(json.dumps({**said, "panel": {**said["panel"], "prompts": ["b"]}}))
    account(run, 2).write_text(json.dumps({**said, "step": 9}))
    account(run, 3).write_text(json.dumps({**said, "cells": [1]}))
    wall = laid_out(run, tmp_path)
    assert [one.step for one in wall.columns] == [4]
    assert [one.partition(" is left out")[0] for one in wall.notes] == [
        f"Step {step}" for step in range(4)
    ]


def test_what_training_went_back_behind_is_left_out(tmp_path: Path) -> None:
    """Of a step the newest samples that count are shown; what an earlier attempt left is told."""
    folder, run = panelled_run(tmp_path, [0, 5, 10, 15], panel=ONE)
    begun_from = CheckpointMetadata(name="c", step=5, epoch=1, created_ms=T0_MS + 5000)
    start_ms = T0_MS + 60_000
    client = MlflowClient(folder.manifest().tracking_uri)
    for tag, value in generation_tag("s2", start_ms=start_ms, begun_from=begun_from).items():
        client.set_tag(run.info.run_id, tag, value)
    for at_ms in (start_ms + 1000, start_ms + 2000):
        said = json.loads(account(run, 5).read_text()) | {"step": 10, "timestamp_ms": at_ms}
        text = json.dumps(said)
        client.log_text(run.info.run_id, text, layout.samples_path(ONE.title, 10, at_ms))
    found = candidates(run, tmp_path)
    assert [(one.step.step, one.step.timestamp_ms) for one in found.steps] == [
        (0, T0_MS), (5, T0_MS + 5000), (10, start_ms + 2000),
    ]  # fmt: skip
    assert found.notes == [
        "Training went on anew from step 5: 2 samplings are left out, of later steps and "
        "made before that.",
        "Of cells that were sampled again the newest counts: one sampling is left out.",
    ]


def test_steps_are_chosen_by_number(tmp_path: Path) -> None:
    """The last, or those that are named; one that was not sampled is told."""
    _, run = panelled_run(tmp_path, [0, 5, 10], panel=ONE)
    assert [one.step.step for one in candidates(run, tmp_path, steps=LAST).steps] == [10]
    found = candidates(run, tmp_path, steps={0, 7, 10})
    assert [one.step.step for one in found.steps] == [0, 10]
    assert found.notes == ["Run first has no samples of step 7."]


def test_a_page_too_long_is_thinned_evenly(tmp_path: Path) -> None:
    """First, last and best stay; a clip that is too long by itself is a hole that says so."""
    _, run = panelled_run(tmp_path, range(9), panel=ONE)
    found = candidates(run, tmp_path).steps
    sized = [_sized(one, 2**20) for one in found]
    for room_mib, steps in ((20, range(9)), (11, [0, 2, 4, 6, 8]), (4, [8])):
        kept = thinned(sized, most_bytes=room_mib * 2**20)
        assert [one.step.step for one in kept] == list(steps)
    wall = lay_out(ONE, found, [], show=nothing, most_bytes=4 * 2**20 + 4)
    [column] = wall.columns
    [sample] = column.samples.values()
    assert sample.missing == "left out: the page would be longer than 4 MiB"
    assert wall.notes == [
        "Of 9 sampled steps 8 are left out, evenly: the page would be longer than 4 MiB. Their "
        "clips are in MLflow, under media/video/."
    ]


def test_what_is_said_of_clips_takes_room_too(tmp_path: Path) -> None:
    """Passports may be longer than the clips are."""
    _, run = panelled_run(tmp_path, range(9), panel=ONE)
    found = [_sized(one, 1, said="x" * 2**20) for one in candidates(run, tmp_path).steps]
    kept = thinned(found, most_bytes=11 * 2**20)
    assert [one.step.step for one in kept] == [0, 2, 4, 6, 8]


def test_a_clip_that_cannot_fit_is_not_fetched(tmp_path: Path) -> None:
    """What its account says of its length is enough."""
    _, run = panelled_run(tmp_path, [0], panel=ONE)
    [found] = candidates(run, tmp_path).steps
    [column] = lay_out(ONE, [_sized(found, MOST_BYTES)], [], show=nothing).columns
    [sample] = column.samples.values()
    assert sample.missing == "left out: the page would be longer than 48 MiB"
    assert list((tmp_path / "clips").iterdir()) == []


def _sized(one: Candidate, size_bytes: int, *, said: str = "") -> Candidate:
    passports = {"a": {"sampling": said}} if said else {}
    cells = {
        name: msgspec.structs.replace(cell, size_bytes=size_bytes, passports=passports)
        for name, cell in one.step.cells.items()
    }
    return replace(one, step=replace(one.step, cells=cells))


def test_so_many_of_a_row_evenly() -> None:
    """The ends are among them, where there are two or more."""
    assert evenly(3, 9) == [0, 4, 8]
    assert evenly(9, 3) == [0, 1, 2]
    assert evenly(1, 9) == [8]
    assert evenly(0, 9) == evenly(2, 0) == []


def test_what_is_no_film_is_refused(tmp_path: Path) -> None:
    """A text file."""
    (tmp_path / "a.mp4").write_text("no")
    with pytest.raises(VideoError, match=r"a\.mp4"):
        film_at(tmp_path / "a.mp4")


def test_the_pictures_of_a_webm_are_counted(tmp_path: Path) -> None:
    """It does not say how many it has."""
    path = tmp_path / "a.webm"
    video.write_reel(video.reel_of(numbered(), fps=FPS), path, texts=video.Texts(), codec="vp9")
    assert film_at(path) == Film(path=path, frames=FRAMES, fps=FPS, width=80, height=48)
