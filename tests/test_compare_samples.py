"""Facts about `opusclip_mlops.compare_samples`: samples of runs side by side."""

import base64
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from mlflow import MlflowClient

from opusclip_mlops import compare_samples
from opusclip_mlops.compare_samples import samples_html
from opusclip_mlops.comparing import Beside, laid_beside
from opusclip_mlops.decoding import opened
from opusclip_mlops.delivery import deliver
from opusclip_mlops.page_media import Embedder
from opusclip_mlops.panels import Panel
from opusclip_mlops.wall_across import SideBySide
from opusclip_mlops.wall_clips import ClipFolder
from opusclip_mlops.walls import GUESSED_CLIP_BYTES, Candidates
from tests.compared import NASTY, sampled_runs
from tests.journeys import append, end, make_run
from tests.panelled import FRAMES, numbered, samples

Read = tuple[MlflowClient, Beside]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two runs are that sampled one panel."""
    folder = tmp_path_factory.mktemp("sampled")
    sampled_runs(folder, panel=Panel(name="kites", prompts=(NASTY, "b"), seeds=(0, 7)))
    return folder


@pytest.fixture
def read(folder: Path) -> Read:
    """Both runs as they were read."""
    uri = f"sqlite:///{folder}/mlflow.db"
    return MlflowClient(uri), laid_beside(["first", "second"], tracking_uri=uri)


def cells(text: str) -> list[list[str]]:
    """What stands in each place: "clip", or why there is none."""
    rows = re.findall(r"<tr><th scope=\"row\">(.*?)</tr>", text, re.DOTALL)
    return [
        ["clip" if "<video" in one else re.sub("<[^>]+>", "", one).strip() for one in places]
        for places in (re.findall(r"<td>(.*?)</td>", row, re.DOTALL) for row in rows)
    ]


def test_the_last_common_steps_are_shown_the_newest_first(read: Read) -> None:
    """The older ones behind a line to click on; a clip that one run alone has is told."""
    text = samples_html(*read, embedder=Embedder())
    assert re.findall(r"<details( open)?><summary>(.*?)</summary>", text) == [
        (" open", "step 20"), ("", "step 10")
    ]  # fmt: skip
    assert cells(text) == 2 * [["clip", "only A sampled it"], *3 * [["clip", "clip"]]]
    assert '<th scope="col">A first, step 20</th><th scope="col">B second, step 20</th>' in text
    assert "<figcaption>psnr 31.25, flicker" in text


def test_a_prompt_is_text_whatever_it_says(read: Read) -> None:
    """It is markup to nobody."""
    text = samples_html(*read, embedder=Embedder())
    assert "<img" not in text
    assert "&lt;/script&gt;&lt;img src=x" in text


def test_clips_are_whole(read: Read, tmp_path: Path) -> None:
    """Each is the file that was logged."""
    text = samples_html(*read, embedder=Embedder())
    held = re.findall(r"data:video/mp4;base64,([^\"]+)", text)
    assert len(held) == 14
    (tmp_path / "clip.mp4").write_bytes(base64.b64decode(held[0]))
    with opened(tmp_path / "clip.mp4") as container:
        assert container.streams.video[0].frames == FRAMES


def test_what_has_no_room_is_left_out_oldest_first(read: Read) -> None:
    """With its size and the command that shows it; it is told above."""
    every = Embedder()
    samples_html(*read, embedder=every)
    room = Embedder(most_bytes=every.taken_bytes * 6 // 10)
    text = samples_html(*read, embedder=room)
    newest, older = cells(text)[:4], cells(text)[4:]
    assert newest[1:] == 3 * [["clip", "clip"]]
    assert room.left_out > 0
    assert str(older).count("left out, ") == room.left_out
    assert room.note() in text
    assert text.count("shows it") == room.left_out


def _without_lengths(every: Candidates) -> Candidates:
    """As an account of a time when it held none."""
    steps = [
        replace(
            one,
            step=replace(
                one.step,
                cells={
                    k: msgspec.structs.replace(v, size_bytes=0) for k, v in one.step.cells.items()
                },
            ),
        )
        for one in every.steps
    ]
    return replace(every, steps=steps)


def test_of_a_clip_of_unknown_length_some_is_guessed(
    read: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Accounts of older runs hold no lengths: what has no room is not fetched for all that."""
    found = compare_samples.side_by_side

    def without_lengths(*args: Any, **options: Any) -> SideBySide:
        wall = found(*args, **options)
        every = {label: _without_lengths(one) for label, one in wall.candidates.items()}
        return replace(wall, candidates=every)

    monkeypatch.setattr(compare_samples, "side_by_side", without_lengths)
    fetched: list[str] = []
    film = ClipFolder.film
    monkeypatch.setattr(ClipFolder, "film", lambda *of: (fetched.append(of[1]), film(*of))[1])
    room = Embedder(most_bytes=GUESSED_CLIP_BYTES - 1)
    text = samples_html(*read, embedder=room)
    assert (fetched, room.left_out) == ([], 14)
    assert "0 bytes" not in text


def test_what_another_part_of_the_page_left_out_is_not_told_here(read: Read) -> None:
    """A page of several parts has one room for clips."""
    shared = Embedder()
    shared.left(7, caption="")
    assert "left out" not in samples_html(*read, embedder=shared)


def test_other_alphabets_make_no_wide_characters(read: Read) -> None:
    """Of prompts, names of runs and panels; they would make every byte of a clip's text four."""
    client, found = read
    name = "走る 🏃 password: geheim123"
    client.set_tag(found.runs["A"].info.run_id, "mlflow.runName", name)
    try:
        text = samples_html(client, found, embedder=Embedder())
    finally:
        client.set_tag(found.runs["A"].info.run_id, "mlflow.runName", "first")
    assert text.isascii()
    assert "A &#36208;&#12427; &#127939; password: ***, step 20" in text


def test_the_newest_step_of_each_panel_has_room_first(folder: Path) -> None:
    """A clip that one of several runs lacks was not logged."""
    for number, name in enumerate(("third", "fourth", "fifth")):
        run = make_run(folder, name=f"{number}" * 32, run_name=name)
        for panel in ("a", "b"):
            clips = [None if (name, panel) == ("fifth", "b") else numbered(frames=2)]
            for step in (0, 1):
                of = Panel(name=panel, prompts=("x",))
                append(run, samples(run, step, panel=of, clips=clips))
        end(run)
        deliver(run, "mlflow")
    uri = f"sqlite:///{folder}/mlflow.db"
    found = laid_beside(["third", "fourth", "fifth"], tracking_uri=uri)
    every = Embedder()
    samples_html(MlflowClient(uri), found, embedder=every)
    room = Embedder(most_bytes=every.taken_bytes // 2)
    text = samples_html(MlflowClient(uri), found, embedder=room)
    (new_a, old_a, new_b, old_b) = cells(text)
    assert (new_a, new_b) == (["clip"] * 3, ["clip", "clip", "no clip was logged"])
    assert all(one.startswith("left out") for one in [*old_a, *old_b[:2]])


def test_without_a_common_step_the_last_of_each_run_is_shown(read: Read) -> None:
    """And said so, with the step of each."""
    client, found = read
    [panel] = found.comparison.panels
    none = replace(panel, common=())
    comparison = replace(found.comparison, panels=(none,))
    text = samples_html(client, replace(found, comparison=comparison), embedder=Embedder())
    assert "no step in common (A 3, B 3)" in text
    assert "<summary>the last of each run</summary>" in text
    assert 'A first, step 20</th><th scope="col">B second, step 30</th>' in text


def test_what_cannot_be_read_is_told_and_not_shown(read: Read, folder: Path) -> None:
    """A clip that is gone is a hole; a panel whose accounts are gone is a sentence."""
    client, found = read
    artifacts = Path(found.runs["B"].info.artifact_uri.removeprefix("file://"))
    kept = folder / "kept"
    try:
        shutil.move(artifacts / "media", kept)
        text = samples_html(client, found, embedder=Embedder())
        assert cells(text)[3] == ["clip", "this clip is gone from MLflow"]
        # What has no room is not even asked for.
        assert "is gone" not in samples_html(client, found, embedder=Embedder(most_bytes=1))
    finally:
        shutil.move(kept, artifacts / "media")
    nobody = replace(found.comparison.panels[0], title="dogs-01234567")
    comparison = replace(found.comparison, panels=(nobody,))
    text = samples_html(client, replace(found, comparison=comparison), embedder=Embedder())
    assert "these samples are not shown: run first has no panel" in text
    assert "<video" not in text
