"""Facts about two runs' clips for blind votes, and where the result is logged."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from opusclip_mlops import video
from opusclip_mlops.blind_results import BlindResult, result_of
from opusclip_mlops.blind_runs import BlindPanel, blind_panel, log_result, unlike
from opusclip_mlops.blind_votes import Ballots, cast_now, new_session, new_sheet
from opusclip_mlops.errors import PanelError
from opusclip_mlops.panels import Panel
from opusclip_mlops.wall_page import Film
from tests.panelled import PANEL, numbered, panelled_run

SECRET = "checkpoint-of-the-first-run"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[MlflowClient, dict[str, Run]]:
    """Runs that sampled one panel, one of which lacks a clip; and one of another panel."""
    folder = tmp_path_factory.mktemp("runs")
    origin = {"checkpoint": SECRET, "git_commit": "c0ffee"}
    made = {
        "first": panelled_run(folder, [0, 10], run="first", origin=origin),
        "second": panelled_run(folder, [0, 20], run="second"),
        "holed": panelled_run(folder, [5], run="holed", clips=[None, *[numbered()] * 3]),
        "other": panelled_run(
            folder, [0], run="other", panel=Panel(name="kites", prompts=("other",)),
            clips=[numbered()],
        ),
    }  # fmt: skip
    uri = f"sqlite:///{folder}/mlflow.db"
    return MlflowClient(uri), {name: run for name, (_, run) in made.items()}


def found(
    runs: tuple[MlflowClient, dict[str, Run]], folder: Path, a: str, b: str, **options: Any
) -> BlindPanel:
    """What two runs have of the panel."""
    given = {"panel": "kites", "steps": None, "folder": folder, "show": lambda *_: None, **options}
    return blind_panel(runs[0], a, b, **given)


def test_the_last_step_of_each_is_taken(runs: Any, tmp_path: Path) -> None:
    """Or those that are asked for."""
    last = found(runs, tmp_path, "first", "second")
    assert (last.a.called, last.a.step, last.b.called, last.b.step) == ("first", 10, "second", 20)
    assert last.cells == tuple(one.name for one in PANEL.cells)
    asked = found(runs, tmp_path, "second", "first", steps=(0, 10))
    assert (asked.a.step, asked.b.step) == (0, 10)
    assert asked.a.run_id == runs[1]["second"].info.run_id


def test_a_clip_for_a_voter_says_nothing_of_its_run(runs: Any, tmp_path: Path) -> None:
    """The pictures are the same, the texts are gone: prompt, checkpoint, account."""
    panel = found(runs, tmp_path, "first", "second")
    first, second = panel.clips_of(panel.cells[1])
    before = panel._candidates[0].clips.film(panel._candidates[0].step.cells[panel.cells[1]].clip)
    assert isinstance(before, Film)
    assert SECRET.encode() in before.path.read_bytes()
    for one in (first, second):
        content = one.path.read_bytes()
        for text in (SECRET, "kite", "c0ffee", "first", "second", "seed"):
            assert text.encode() not in content
    assert (video.read_clip(first.path).frames == video.read_clip(before.path).frames).all()
    assert replace(first, path=Path()) == replace(second, path=Path())


def test_texts_of_a_stream_are_gone_too(runs: Any, tmp_path: Path) -> None:
    """A file that another program made may hold them there; nothing of them is left."""
    panel = found(runs, tmp_path, "first", "second")
    cell = panel.cells[3]
    film = panel._candidates[0].clips.film(panel._candidates[0].step.cells[cell].clip)
    assert isinstance(film, Film)
    with av.open(str(film.path), "w", format="mp4") as made:
        stream = made.add_stream("libx264", rate=8)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.metadata.update(title=SECRET, handler_name=SECRET)
        made.metadata["comment"] = SECRET
        picture = av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8))
        made.mux(stream.encode(picture))
        made.mux(stream.encode())
    assert film.path.read_bytes().count(SECRET.encode()) > 1
    assert SECRET.encode() not in panel.clips_of(cell)[0].path.read_bytes()


def test_cells_that_one_of_them_lacks_are_left_out(runs: Any, tmp_path: Path) -> None:
    """And said to be."""
    panel = found(runs, tmp_path, "first", "holed")
    assert panel.cells == tuple(one.name for one in PANEL.cells[1:])
    assert panel.notes == ("1 of 4 cells have no clip by both runs.",)


@pytest.mark.parametrize(
    ("a", "b", "options", "problem"),
    [
        ("first", "other", {}, "runs first and other sampled different panels kites: prompts: "),
        ("first", "first", {}, "'first' and 'first' are one run: give two"),
        ("first", "second", {"steps": (10, 10)}, "run second has no "),
        ("first", "second", {"panel": "cars"}, "run first has no panel 'cars'"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    runs: Any, tmp_path: Path, a: str, b: str, options: dict[str, Any], problem: str
) -> None:
    """Above all samples of panels whose digests differ."""
    with pytest.raises(PanelError, match=problem):
        found(runs, tmp_path, a, b, **options)


def test_a_clip_that_is_no_video_is_told(runs: Any, tmp_path: Path) -> None:
    """With the run and the cell."""
    panel = found(runs, tmp_path, "first", "second")
    cell = panel.cells[2]
    path = panel._candidates[1].clips.film(panel._candidates[1].step.cells[cell].clip)
    assert isinstance(path, Film)
    path.path.write_bytes(b"no video")
    with pytest.raises(PanelError, match=f"run second, cell {cell}: "):
        panel.clips_of(cell)


def test_what_tells_clips_apart_is_told(tmp_path: Path) -> None:
    """Sizes, lengths and rates that differ between the runs, not between prompts."""
    film = Film(path=tmp_path, frames=16, fps=8.0, width=64, height=48)
    wide = replace(film, width=96)
    assert list(unlike([(film, film), (wide, wide)])) == []
    assert list(unlike([(film, film), (film, wide)])) == [
        "The runs' clips differ in size, by which a voter can tell them apart."
    ]
    assert len(list(unlike([(film, replace(film, frames=8, fps=4.0))]))) == 2


def result(panel: BlindPanel) -> BlindResult:
    """Every pair voted for A by ann."""
    session = new_session(
        panel=panel.panel.title, panel_digest=panel.panel.digest, cells=panel.cells,
        a=panel.a, b=panel.b, seed=0,
    )  # fmt: skip
    ballots, sheet = Ballots(session=session), new_sheet(session, "ann")
    ballots.take(sheet)
    for number, pair in enumerate(sheet.pairs):
        ballots.take(cast_now(sheet, number, pair.a_is))
    return result_of(ballots)


def test_the_result_is_logged_to_both_runs(runs: Any, tmp_path: Path) -> None:
    """A file and a tag of the session; again in its place. Who voted is not in it."""
    client, by_name = runs
    panel = found(runs, tmp_path, "first", "second")
    one = result(panel)
    log_result(client, one)
    log_result(client, one)
    for name in ("first", "second"):
        run_id = by_name[name].info.run_id
        tags = client.get_run(run_id).data.tags
        assert tags[f"opusclip.ab.{one.session}"] == one.sentence
        (file,) = client.list_artifacts(run_id, "ab")
        assert file.path == f"ab/{PANEL.title}-{one.session}.json"
        text = Path(client.download_artifacts(run_id, file.path, str(tmp_path))).read_text()
        content = json.loads(text)
        assert content["sentence"] == one.sentence
        assert content["preference"]["votes_a"] == 4
        assert content["voters"] == 1
        assert "ann" not in text


def test_frames_are_as_many(runs: Any, tmp_path: Path) -> None:
    """Stripped clips keep every frame."""
    panel = found(runs, tmp_path, "first", "second")
    first, _ = panel.clips_of(panel.cells[0])
    assert np.shape(video.read_clip(first.path).frames)[0] == first.frames == 16
