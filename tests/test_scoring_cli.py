"""The verb that measures videos, run as the command runs it."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient

from opusclip_mlops import cli, scoring_cli
from opusclip_mlops.passport_files import PassportFiles
from opusclip_mlops.scoring import METRICS
from tests.clips import moving, write_file
from tests.journeys import store
from tests.test_console import on_a_terminal

Said = Callable[..., tuple[int, str]]

for _verb in scoring_cli.VERBS:
    cli.opusclip.add_command(_verb)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reference of 12 frames, and the same 2 and 20 levels too bright, all without loss."""
    folder = tmp_path_factory.mktemp("clips")
    dark = moving(12, 48, 64) // 2
    for name, brighter in (("true", 0), ("near", 2), ("far", 20)):
        kept(folder / f"{name}.mkv", dark + np.uint8(brighter))
    return folder


def kept(path: Path, frames: np.ndarray, fps: int = 24) -> Path:
    return write_file(path, frames, codec="ffv1", pix_fmt="bgr0", fps=fps)


def evaluated(said: Said, clips: Path, *line: str) -> tuple[int, str]:
    """Run it where the clips are named without their folder."""
    words = (str(clips / one) if one.endswith(".mkv") else one for one in line)
    return said("evaluate", *words)


def test_a_video_is_measured_beside_its_reference(said: Said, clips: Path) -> None:
    """Two levels off: 20·log10(255 / 2) dB; all that is measured over time stands below."""
    code, text = evaluated(said, clips, "near.mkv", "--against", "true.mkv")
    assert code == 0
    first, *lines = text.splitlines()
    assert first.startswith(f"{clips}/near.mkv beside {clips}/true.mkv: 12 frames of 64x48, 24 a")
    assert lines[0].split()[:2] == ["psnr", "42.11"]
    assert [line.split()[0] for line in lines[:3]] == ["psnr", "ssim", "flicker"]


def test_a_file_that_is_no_video_leaves_the_others_their_scores(
    said: Said, clips: Path, tmp_path: Path
) -> None:
    """It is named with the reason, once; alone it is an error."""
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"\0\0\0\x18ftypmp42 and no more")
    line = (str(bad), "near.mkv", "--against", "true.mkv", "--metrics", "psnr,ssim")
    code, text = evaluated(said, clips, *line)
    assert code == 1
    assert "42.11" in text
    assert [one for one in text.splitlines() if "bad.mp4: " in one and "not in total" not in one]
    assert text.count("left out") == 1
    code, text = evaluated(said, clips, str(bad), "--metrics", "flicker")
    assert (code, text.count("\n")) == (2, 1)


def test_videos_are_ranked_beside_one_reference(said: Said, clips: Path) -> None:
    """The best first, in a table, with the total below."""
    line = ("far.mkv", "near.mkv", "--against", "true.mkv", "--metrics", "psnr,ssim")
    code, text = evaluated(said, clips, *line, "--rank", "psnr")
    lines = text.splitlines()
    assert code == 0
    assert [one.split()[0].rpartition("/")[2] for one in lines[:3]] == [
        "video", "near.mkv", "far.mkv",
    ]  # fmt: skip
    assert lines[3:5] == ["ranked by psnr: higher is better", "in total, 2 videos:"]


def test_unlike_videos_are_not_ranked_unless_allowed(said: Said, clips: Path) -> None:
    """Of two references: exit code 2 and what differs; with a word it is done."""
    line = ("near.mkv", "far.mkv", "--against", "true.mkv", "--against", "near.mkv")
    asked = (*line, "--metrics", "psnr", "--rank", "psnr")
    code, _ = evaluated(said, clips, *asked)
    assert code == 2
    code, text = evaluated(said, clips, *asked, "--allow-unlike")
    assert code == 0
    assert "ranked by psnr" in text


def test_json_and_the_kept_file_are_the_same(said: Said, clips: Path, tmp_path: Path) -> None:
    """With what was taken, in the passports."""
    out = tmp_path / "scores.json"
    code, text = evaluated(
        said, clips, "near.mkv", "--against", "true.mkv", "--metrics", "psnr", "--json", "--out",
        str(out), "--resize", "32x24", "--fps", "12", "--max-frames", "4",
    )  # fmt: skip
    assert code == 0
    assert json.loads(text) == json.loads(out.read_text())
    [video] = json.loads(text)["videos"]
    passport = video["scores"]["psnr"]["passport"]
    assert (video["width"], video["height"], video["frames"], video["fps"]) == (32, 24, 4, 12)
    assert passport["sampling"] == "12 frames per second, the first 4"
    assert passport["resize"] == "bicubic, antialiased, to 32x24"


def test_scores_are_logged_to_a_run(said: Said, clips: Path, tmp_path: Path) -> None:
    """At the step, under the prefix, with passports; of several videos the total."""
    client = MlflowClient(store(tmp_path))
    run_id = client.create_run("0", run_name="trained").info.run_id
    goal = ("--run", "trained", "--step", "900", "--tracking-uri", store(tmp_path))
    asked = ("near.mkv", "far.mkv", "--against", "true.mkv", "--metrics", "psnr,motion", *goal)
    assert evaluated(said, clips, *asked)[0] == 0
    assert client.get_run(run_id).data.metrics.keys() == {"eval/psnr", "eval/motion"}
    [point] = client.get_metric_history(run_id, "eval/psnr")
    assert (point.step, round(point.value, 2)) == (900, 25.08)
    files = PassportFiles(client, run_id)
    passport = files.of("eval/psnr", step=900, timestamp_ms=point.timestamp)
    assert passport is not None
    assert (passport.count, passport.unit) == (2, "clips")


def test_what_was_measured_is_shown_though_it_cannot_be_kept(
    said: Said, clips: Path, tmp_path: Path
) -> None:
    """A key that MLflow refuses, a folder that is not there: the exit code is 2."""
    client = MlflowClient(store(tmp_path))
    client.create_run("0", run_name="trained")
    goal = ("--run", "trained", "--step", "1", "--tracking-uri", store(tmp_path))
    for options in ((*goal, "--prefix", "a?"), ("--out", str(tmp_path / "absent" / "it.json"))):
        code, text = evaluated(said, clips, "near.mkv", "--metrics", "cuts", *options)
        assert code == 2
        assert text.splitlines()[1].split() == ["cuts", "0"]


def test_what_could_not_be_measured_makes_the_exit_code_1(said: Said, clips: Path) -> None:
    """The rest is there, and the reason."""
    line = ("near.mkv", "--against", "true.mkv", "--metrics", "psnr,ms_ssim")
    code, text = evaluated(said, clips, *line)
    assert code == 1
    assert "psnr" in text
    assert "ms_ssim left out: pictures of 64x48 are too small for ms_ssim" in text


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (("absent.mkv",), "absent.mkv does not exist or is not a file: check the path"),
        (("near.mkv", "--metrics", "vmaf"), "no metric is called 'vmaf': there are psnr,"),
        (("near.mkv", "--metrics", "psnr"), "psnr is measured against a reference: pass one"),
        (("near.mkv", "--rank", "psnr"), "--rank 'psnr' is not among what is measured"),
        (("near.mkv", "--resize", "0x20"), "'0x20' is no size: give one like 320x180"),
        (("near.mkv", "--run", "trained"), "--run and --step go together; see"),
        (("near.mkv", "--max-frames", "0"), "0 is not in the range x>=1"),
        ((), "Missing argument 'VIDEO...'"),
    ],
)
def test_an_error_is_one_line(said: Said, clips: Path, line: tuple[str, ...], told: str) -> None:
    """On stderr, with what to do; the exit code is 2."""
    code, text = evaluated(said, clips, *line)
    assert code == 2
    assert told in text
    assert text.startswith("error: ")
    assert text.count("\n") == 1


def test_unlike_files_are_told_what_to_do(said: Said, clips: Path, tmp_path: Path) -> None:
    """Another size, length and rate: the option that helps is named, and helps."""
    frames = moving(12, 48, 64)
    for other, option in (
        (kept(tmp_path / "small.mkv", frames[:, :24, :32]), ("--resize", "32x24")),
        (kept(tmp_path / "short.mkv", frames[:5]), ("--max-frames", "5")),
        (kept(tmp_path / "slow.mkv", frames[:6], fps=12), ("--fps", "12")),
    ):
        line = (str(clips / "near.mkv"), "--against", str(other), "--metrics", "psnr")
        code, text = said("evaluate", *line)
        assert code == 2
        assert option[0] in text
        assert option[1] in text
        assert said("evaluate", *line, *option)[0] == 0


def test_the_help_names_every_metric(said: Said) -> None:
    """So that nobody has to guess."""
    code, text = said("evaluate", "--help")
    assert code == 0
    assert [name for name in METRICS if name not in " ".join(text.split())] == []


def test_a_terminal_sees_the_video_at_hand() -> None:
    """Its name, without its folders, and how many frames it has had."""
    code = (
        "import time\n"
        "from opusclip_mlops.scoring_console import progress_shown\n"
        "with progress_shown() as show:\n"
        "    show('/a/b/clip [1].mp4', 1234)\n"
        "    time.sleep(0.5)\n"
    )
    assert "clip [1].mp4: 1,234 frames" in on_a_terminal(code, columns=80)
