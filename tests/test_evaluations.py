"""Facts about `opusclip_mlops.evaluations`: totals of several videos, and which is best."""

import math

import pytest

from opusclip_mlops.errors import PassportError, VideoError
from opusclip_mlops.evaluations import HIGHER_IS_BETTER, Evaluated, Evaluation, total_of
from opusclip_mlops.passports import Passport, Score


def score(value: float, metric: str = "ssim", **about: object) -> Score:
    given = {"count": 10, "unit": "frames", "reference": "ab", **about}
    return Score(value, Passport(metric=metric, version="1", **given))  # type: ignore[arg-type]


def video(name: str, left_out: dict[str, str] | None = None, **scores: Score) -> Evaluated:
    return Evaluated(
        video=name, reference="", frames=10, fps=25.0, width=64, height=48,
        scores=scores, left_out=left_out or {},
    )  # fmt: skip


def evaluation(*videos: Evaluated) -> Evaluation:
    total, left_out = total_of(videos)
    return Evaluation(videos=videos, total=total, left_out=left_out)


def test_the_total_is_the_mean_over_the_videos() -> None:
    """Counted in clips, with the frames and the references of all behind it."""
    found = evaluation(
        video("a", ssim=score(0.5, count=10, reference="ab")),
        video("b", ssim=score(0.7, count=30, reference="cd")),
    ).total["ssim"]
    assert found == pytest.approx(0.6)
    assert (found.passport.count, found.passport.unit) == (2, "clips")
    assert found.passport.settings["all frames"] == 40
    others = [video("a", ssim=score(0.5)), video("b", ssim=score(0.7))]
    assert found.passport.differences(evaluation(*others).total["ssim"].passport)


def test_psnr_in_total_is_that_of_the_mean_error() -> None:
    """One video without any error does not make it infinite."""
    errors = [0.0, 10.0, 50.0]
    values = [10 * math.log10(255**2 / one) if one else math.inf for one in errors]
    videos = [video(str(one), psnr=score(one, "psnr")) for one in values]
    assert evaluation(*videos).total["psnr"] == pytest.approx(10 * math.log10(255**2 / 20))


def test_the_interval_of_a_total_is_over_the_videos() -> None:
    """It holds the value, its lower end is below the upper one, and two videos have none."""
    for metric, values in (("ssim", range(8)), ("psnr", range(20, 28))):
        videos = [video(str(one), **{metric: score(float(one), metric)}) for one in values]
        total = evaluation(*videos).total[metric]
        interval = total.passport.interval
        assert interval is not None
        assert interval.low < total < interval.high
        assert "clips" in interval.method
        assert evaluation(*videos[:2]).total[metric].passport.interval is None


def test_what_one_video_lacks_is_not_in_the_total() -> None:
    """The reason names the video."""
    found = evaluation(video("a", ssim=score(0.5)), video("b", {"ssim": "too small"}))
    assert found.total == {}
    assert found.left_out == {"ssim": "b: too small"}


def test_videos_that_were_measured_unlike_have_no_total() -> None:
    """Another size of the pictures is another metric; the reason says so."""
    small, large = (score(1.0, settings={"size": size}) for size in ("64x48", "128x96"))
    found = evaluation(video("a", ssim=small), video("b", ssim=large))
    assert found.total == {}
    assert found.left_out["ssim"].endswith("alike: setting size: 64x48 and 128x96")


def test_the_scores_are_those_in_total_or_of_the_only_video() -> None:
    """What is logged to a run."""
    one = video("a", ssim=score(0.5))
    alone = Evaluation(videos=(one,), total={"fid": score(3.0, "fid")}, left_out={})
    assert dict(alone.scores) == {"ssim": 0.5, "fid": 3.0}
    assert dict(evaluation(one, video("b", ssim=score(1.0))).scores) == {"ssim": 0.75}


@pytest.mark.parametrize("metric", [*HIGHER_IS_BETTER])
def test_the_best_video_is_first(metric: str) -> None:
    """The highest or the lowest, as the metric is."""
    videos = [video(str(one), **{metric: score(one, metric)}) for one in (2.0, 1.0, 3.0)]
    order = [one.video for one in evaluation(*videos).ranked(metric)]
    assert order == (["3.0", "2.0", "1.0"] if HIGHER_IS_BETTER[metric] else ["1.0", "2.0", "3.0"])


def test_unlike_videos_are_ranked_only_when_allowed() -> None:
    """Other frames or another reference: the message says what differs."""
    found = evaluation(video("a", ssim=score(0.5)), video("b", ssim=score(0.7, count=9)))
    with pytest.raises(PassportError, match=r"a and b .* count: 10 and 9"):
        found.ranked("ssim")
    assert [one.video for one in found.ranked("ssim", allow_unlike=True)] == ["b", "a"]


def test_what_has_no_better_is_not_ranked() -> None:
    """A count of cuts is none; nor is a metric that a video lacks."""
    found = evaluation(video("a", cuts=score(1.0, "cuts")), video("b", {"cuts": "too few"}))
    with pytest.raises(VideoError, match="videos are not ranked by 'cuts': pass one of psnr"):
        found.ranked("cuts")
    with pytest.raises(VideoError, match="a has no ssim to be ranked by: it was not measured"):
        found.ranked("ssim")
