"""What was measured of videos: each by itself, in total, and which is best."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from opusclip_mlops.errors import VideoError
from opusclip_mlops.intervals import over_clips
from opusclip_mlops.metrics.frame import decibels, mean_squares
from opusclip_mlops.passports import Interval, Score, check_alike, with_interval

HIGHER_IS_BETTER: Mapping[str, bool] = {
    "psnr": True,
    "ssim": True,
    "ms_ssim": True,
    "lpips_alex": False,
    "lpips_vgg": False,
    "flicker": False,
    "warping_error": False,
    "brightness_pumping": False,
    "frozen_frames": False,
    "black_frames": False,
    "loop_seam": False,
}
"""The metrics that videos can be ranked by."""


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """What was measured of one video.

    Attributes:
        video: Its path, or "video 1" and so on.
        reference: What it was measured against, "" for nothing.
        frames: How many were taken.
        fps: Frames per second as taken, None where that is not known.
        width: Of a picture as taken, in pixels.
        height: As width.
        scores: By the metric's name.
        left_out: Why a metric is not there, by its name.
    """

    video: str
    reference: str
    frames: int
    fps: float | None
    width: int
    height: int
    scores: Mapping[str, Score]
    left_out: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What was measured of some videos.

    Attributes:
        videos: Each by itself, in the order given.
        total: Of several videos the mean over them, of PSNR that of their mean squared errors,
            with an interval over the videos; and the metrics of whole sets.
        left_out: Why a metric is not in the total.
    """

    videos: tuple[Evaluated, ...]
    total: Mapping[str, Score]
    left_out: Mapping[str, str]

    @property
    def scores(self) -> Mapping[str, Score]:
        """Those in total, or those of the only video."""
        alone = self.videos[0].scores if len(self.videos) == 1 else {}
        return {**alone, **self.total}

    def ranked(self, metric: str, *, allow_unlike: bool = False) -> list[Evaluated]:
        """The videos, the best first.

        Args:
            metric: By which, one of `HIGHER_IS_BETTER`.
            allow_unlike: Also where they were not measured alike.

        Raises:
            VideoError: No such metric, or a video has no value of it.
            PassportError: They were not measured alike; the message says what differs.
        """
        if metric not in HIGHER_IS_BETTER:
            known = ", ".join(HIGHER_IS_BETTER)
            raise VideoError(f"videos are not ranked by {metric!r:.60}: pass one of {known}")
        for one in self.videos:
            if metric not in one.scores:
                why = one.left_out.get(metric, "it was not measured")
                raise VideoError(f"{one.video} has no {metric} to be ranked by: {why}")
        passports = {one.video: one.scores[metric].passport for one in self.videos}
        check_alike(passports, of=metric, allow_unlike=allow_unlike)
        best_last = HIGHER_IS_BETTER[metric]
        return sorted(self.videos, key=lambda one: one.scores[metric], reverse=best_last)


def total_of(videos: Sequence[Evaluated]) -> tuple[dict[str, Score], dict[str, str]]:
    """The metrics that all videos have, and why others are not there."""
    total: dict[str, Score] = {}
    left_out: dict[str, str] = {}
    names = dict.fromkeys(name for one in videos for name in (*one.scores, *one.left_out))
    for name in names:
        lacking = next((one for one in videos if name not in one.scores), None)
        if lacking:
            left_out[name] = f"{lacking.video}: {lacking.left_out.get(name, 'was not measured')}"
            continue
        scores = [one.scores[name] for one in videos]
        if unlike := _unlike(scores):
            left_out[name] = f"the videos were not measured alike: {unlike}"
            continue
        total[name] = _mean(scores)
    return total, left_out


def _unlike(scores: Sequence[Score]) -> str:
    """In what two were measured otherwise, beside how much and against what; "" for nothing."""
    first, *others = (replace(one.passport, count=0, reference="") for one in scores)
    return next(
        ("; ".join(first.differences(one)) for one in others if first.digest != one.digest), ""
    )


def _mean(scores: Sequence[Score]) -> Score:
    values = np.asarray(scores, float)
    first = scores[0].passport
    if first.metric == "psnr":
        squares = mean_squares(values)
        value = float(decibels(squares.mean(keepdims=True))[0])
        interval = _in_decibels(over_clips(list(squares)))
    else:
        value, interval = float(values.mean()), over_clips(list(values))
    digests = "".join(one.passport.reference for one in scores)
    counted = f"all {first.unit}"
    passport = replace(
        first,
        count=len(scores),
        unit="clips",
        reference=digests and hashlib.sha256(digests.encode()).hexdigest()[:16],
        settings={**first.settings, counted: sum(one.passport.count for one in scores)},
    )
    return with_interval(Score(value, passport), interval)


def _in_decibels(interval: Interval | None) -> Interval | None:
    if interval is None:
        return None
    high, low = decibels(np.array([interval.low, interval.high]))
    return replace(interval, low=float(low), high=float(high))
