"""Facts about `opusclip_mlops.uploads`: a clip in MLflow says where it comes from."""

import json
from pathlib import Path

import msgspec
import pytest

from opusclip_mlops import checkpoints
from opusclip_mlops.contents import fetch, read_contents
from opusclip_mlops.decoding import read_said
from opusclip_mlops.inspecting import inspect
from opusclip_mlops.panels import Panel
from opusclip_mlops.records import Crash, Samples, Video
from tests.journeys import make_run
from tests.mlflow_runs import T0_MS, client, clip, delivered, of_kind, saved

ORIGIN = {"prompt": "a kite, 映像", "seed": 7, "checkpoint": "epoch_0001-step_000003", "step": 3}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(("codec", "kind"), [("h264", "mp4"), ("vp9", "webm")])
def test_a_clip_comes_back_with_its_codec_and_where_it_comes_from(
    tmp_path: Path, codec: str, kind: str
) -> None:
    """The hash of its checkpoint's weights is found out on the way, and stands in the file."""
    folder = make_run(tmp_path)
    checkpoint = saved(folder, 3)
    record = msgspec.structs.replace(
        clip(folder, "samples/kite", 3, "a kite"), origin=ORIGIN, codec=codec, max_bytes=100_000
    )
    run = delivered(folder, checkpoint, record)
    [part] = of_kind(read_contents(client(), run), Video)
    assert part.artifact_path.endswith(f".{kind}")
    back = fetch(client(), run.info.run_id, part, tmp_path)
    assert isinstance(back, Video)
    weights = checkpoints.read_metadata(folder.checkpoints / checkpoint.name).weights_sha256
    assert back.origin == {**ORIGIN, "weights_sha256": weights}
    assert len(weights) == 64
    assert (back.codec, back.caption, back.fps) == (codec, "a kite", 8.0)
    assert inspect(tmp_path / back.file).codec == codec
    assert (tmp_path / back.file).stat().st_size <= 100_000


def test_a_clip_without_an_origin_says_nothing(tmp_path: Path) -> None:
    """Its file has no comment."""
    folder = make_run(tmp_path)
    run = delivered(folder, clip(folder, "samples/kite", 1))
    [part] = of_kind(read_contents(client(), run), Video)
    back = fetch(client(), run.info.run_id, part, tmp_path)
    assert isinstance(back, Video)
    assert back.origin == {}
    assert read_said(tmp_path / back.file).comment == ""


def test_the_account_of_a_panel_names_its_clips_and_holds_only_json(tmp_path: Path) -> None:
    """A score that is no finite number is a word; a cell without a clip names none."""
    folder = make_run(tmp_path)
    panel = Panel(name="kites", prompts=("a kite", "two"))
    first, second = panel.cells
    record = clip(folder, panel.key_of(first), 5)
    cells = {
        first.name: {
            "key": record.key, "file": record.file, "origin": ORIGIN, "passports": {},
            "scores": {"a": 1.5, "b": float("nan"), "c": float("-inf")}, "codec": "vp9",
        },
        second.name: {
            "key": panel.key_of(second), "file": "", "origin": {}, "passports": {}, "scores": {},
        },
    }  # fmt: skip
    record = msgspec.structs.replace(record, codec="vp9")
    samples = Samples(T0_MS, 5, panel.to_dict(), cells)
    run = delivered(folder, record, samples)
    [path] = [one.path for one in client().list_artifacts(run.info.run_id, f"panels/{panel.title}")]
    assert path.startswith(f"panels/{panel.title}/step_00000005-{T0_MS}-")
    text = Path(client().download_artifacts(run.info.run_id, path, str(tmp_path))).read_text()
    account = json.loads(text, parse_constant=lambda word: pytest.fail(word))
    told = account["cells"][first.name]
    assert told["scores"] == {"a": 1.5, "b": "nan", "c": "-inf"}
    clips = client().list_artifacts(run.info.run_id, told["clip"].rpartition("/")[0])
    assert [one.path for one in clips] == [told["clip"]]
    assert told["clip"].endswith(".webm")
    assert "clip" not in account["cells"][second.name]
    assert account["panel"] == panel.to_dict()


def test_the_report_of_a_death_lies_under_its_sessions_name(tmp_path: Path) -> None:
    """However often it is sent; nothing leaves its folder, and a file that is gone is left out."""
    folder = make_run(tmp_path)
    (folder.media / "crash-s2-report.txt").write_text("FAILED: no loss")
    files = {"report.txt": "crash-s2-report.txt", "log.txt": "gone", "../up": "../manifest.json"}
    run = delivered(folder, *[Crash("here-7/../s2", files)] * 2)
    [place] = client().list_artifacts(run.info.run_id, "crash")
    assert place.path == "crash/here-7_.._s2"
    [path] = [one.path for one in client().list_artifacts(run.info.run_id, place.path)]
    text = Path(client().download_artifacts(run.info.run_id, path, str(tmp_path))).read_text()
    assert (Path(path).name, text) == ("report.txt", "FAILED: no loss")
