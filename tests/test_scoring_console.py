"""Facts about `opusclip_mlops.scoring_console`: what people and scripts see."""

import json
import math
from pathlib import Path

import pytest

from opusclip_mlops.errors import ConfigError, PassportError
from opusclip_mlops.evaluations import Evaluated, Evaluation, total_of
from opusclip_mlops.passports import Interval, Passport, Score
from opusclip_mlops.scoring_console import Ranking, print_evaluation, progress_shown, write_json

INTERVAL = Interval(low=23.0, high=24.25, level=0.95, method="bootstrap", resamples=9, seed=0)


def score(value: float, metric: str, **about: object) -> Score:
    given = {"count": 16, "unit": "frames", **about}
    return Score(value, Passport(metric=metric, version="1", **given))  # type: ignore[arg-type]


def video(name: str, **scores: Score) -> Evaluated:
    return Evaluated(
        video=name, reference="true.mp4", frames=16, fps=29.97, width=176, height=144,
        scores=scores, left_out={"ms_ssim": "too small"},
    )  # fmt: skip


def evaluation(*videos: Evaluated) -> Evaluation:
    total, left_out = total_of(videos) if len(videos) > 1 else ({}, {})
    return Evaluation(videos=videos, total=total, left_out=left_out)


ONE = evaluation(video("a.mp4", psnr=score(23.5, "psnr", interval=INTERVAL), cuts=score(2, "cuts")))
TWO = evaluation(
    video("a.mp4", psnr=score(23.5, "psnr"), ssim=score(0.51234567, "ssim")),
    video("longer.mp4", psnr=score(math.inf, "psnr"), ssim=score(1.0, "ssim")),
)


def test_one_video_is_told_a_metric_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    """With its interval, unit, which way is better, and what is left out."""
    print_evaluation(ONE)
    assert capsys.readouterr().out.splitlines() == [
        "a.mp4 beside true.mp4: 16 frames of 176x144, 29.97 a second",
        "  psnr  23.50  23 … 24.25  dB, higher is better",
        "  cuts      2",
        "  ms_ssim left out: too small",
    ]


def test_several_videos_are_a_table_and_a_total(capsys: pytest.CaptureFixture[str]) -> None:
    """Names to the left, numbers below each other to the right."""
    print_evaluation(TWO)
    assert capsys.readouterr().out.splitlines() == [
        "video                       frames   psnr    ssim  ms_ssim",
        "a.mp4 beside true.mp4           16  23.50  0.5123        -",
        "longer.mp4 beside true.mp4      16    inf       1        -",
        "  a.mp4: ms_ssim left out: too small",
        "  longer.mp4: ms_ssim left out: too small",
        "in total, 2 videos:",
        "  psnr   26.51    dB, higher is better",
        "  ssim  0.7562    higher is better",
        "  ms_ssim not in total: a.mp4: too small",
    ]


def test_what_a_passport_notes_is_told_beneath(capsys: pytest.CaptureFixture[str]) -> None:
    """Such as that a distance is of far too few frames."""
    fid = score(40.0, "fid", notes=("12 frames are far too few",))
    print_evaluation(evaluation(video("a.mp4", fid=fid, psnr=score(23.5, "psnr"))))
    assert "  fid: 12 frames are far too few\n" in capsys.readouterr().out


def test_ranked_videos_stand_the_best_first(capsys: pytest.CaptureFixture[str]) -> None:
    """In the table and in JSON."""
    print_evaluation(TWO, Ranking("ssim"))
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("longer.mp4")
    assert "ranked by ssim: higher is better" in lines
    print_evaluation(TWO, Ranking("ssim"), as_json=True)
    content = json.loads(capsys.readouterr().out)
    assert content["ranking"] == {"by": "ssim", "videos": ["longer.mp4", "a.mp4"]}


def test_what_cannot_be_ranked_is_shown_before_it_is_told(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What took an hour to measure is not lost to an error."""
    unlike = evaluation(
        video("a", ssim=score(0.5, "ssim")), video("b", ssim=score(0.7, "ssim", count=9))
    )
    with pytest.raises(PassportError, match="count: 16 and 9"):
        print_evaluation(unlike, Ranking("ssim"))
    assert "0.7000" in capsys.readouterr().out
    print_evaluation(unlike, Ranking("ssim", allow_unlike=True))
    assert capsys.readouterr().out.splitlines()[1].startswith("b ")


def test_json_holds_values_with_their_passports(capsys: pytest.CaptureFixture[str]) -> None:
    """What is not finite is a string, so that any reader of JSON takes it."""
    print_evaluation(TWO, as_json=True)
    content = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    first, second = content["videos"]
    assert (first["video"], first["frames"], first["width"]) == ("a.mp4", 16, 176)
    assert second["scores"]["psnr"]["value"] == "inf"
    assert Passport.from_dict(first["scores"]["ssim"]["passport"]).count == 16
    assert content["total"]["ssim"]["passport"]["unit"] == "clips"


def test_a_file_is_its_owners_alone(tmp_path: Path) -> None:
    """The same JSON; where it cannot be written, one line says so."""
    path = tmp_path / "scores.json"
    write_json(ONE, path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert json.loads(path.read_text())["videos"][0]["scores"]["psnr"]["value"] == 23.5
    with pytest.raises(ConfigError, match=r"scores.json cannot be written: No such file"):
        write_json(ONE, tmp_path / "absent" / "scores.json")


def test_a_pipe_gets_no_progress(capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is asked for, and nothing is written."""
    with progress_shown() as show:
        assert show is None
    assert capsys.readouterr() == ("", "")
