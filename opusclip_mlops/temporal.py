"""How a clip behaves in time: measured as its frames come, of the clip alone, without weights.

Pictures are turned into luma, Y = 0.2126·R + 0.7152·G + 0.0722·B (ITU-R BT.709) in levels of
0..255, and shrunk by whole factors, by the mean over squares, to at most 256 pixels a side. N is
the number of frames; a pair of neighbours with a cut between them counts for `cuts` only.

    flicker              mean of |Y(t-1) - 2·Y(t) + Y(t+1)| / 2, in levels, 0..255, lower is
                         steadier: pictures that alternate by d score d, steady ones and even fades
                         score 0. After the temporal flickering of VBench (Huang et al., 2024),
                         which takes first differences and so counts fades. Motion adds to it.
    warping_error        mean of ((Y(t) - Y(t+1) at where each pixel went) / 255)², 0..1, lower is
                         more consistent, over the pixels that both show: E_warp of Lai et al.,
                         "Learning blind video temporal consistency" (2018). Where less than a
                         tenth of a picture can be followed it is over all pixels.
    motion               mean length of the optical flow from frame to frame, in percent of the
                         picture's diagonal, 0 or more. A frozen clip has 0, and 0 flicker and
                         warping error too: read those beside this one.
    brightness_pumping   root of the mean square of each frame's mean level about the line that
                         fits its shot best, in levels, 0..127.5, lower is steadier; a swing of
                         amplitude a scores a/√2, an even fade 0
    frozen_frames        share of pairs whose mean |Y(t+1) - Y(t)| is at most 0.255 levels, 0..1
                         (-60 dB, the threshold of FFmpeg's freezedetect)
    black_frames         share of frames of which 98 % of the pixels have at most 25.5 levels, 0..1
                         (the thresholds of FFmpeg's blackdetect)
    cuts                 how many pairs have a mean |Y(t+1) - Y(t)| that exceeds that of each other
                         pair within 5 frames by 10 % of 255 or more; a whole number. FFmpeg's
                         scdet compares with the pair before only, and so counts flashes.
    loop_seam            how much more the last frame differs from the first than neighbours do:
                         max(0, mean |Y(N) - Y(1)| - mean over pairs of mean |Y(t+1) - Y(t)|), in
                         levels, 0..255; 0 for a clip that closes as smoothly as it runs

Frame counts: black_frames needs one, flicker and brightness_pumping three in one shot, all others
two; motion and warping_error need 16 pixels each way. What is not defined is not there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from opusclip_mlops.errors import VideoError
from opusclip_mlops.intervals import over_frames
from opusclip_mlops.optical_flow import LEAST_SIDE, SETTINGS, flow_between, moved, visible
from opusclip_mlops.passports import Interval, Passport, Score, Setting

NAMES = (
    "flicker", "warping_error", "motion", "brightness_pumping", "frozen_frames", "black_frames",
    "cuts", "loop_seam",
)  # fmt: skip
"""The metrics, in the order they are shown in."""

LONGEST_PX = 256
FROZEN_LEVELS = 0.255
BLACK_LEVELS, BLACK_SHARE = 25.5, 0.98
CUT_LEVELS, CUT_AROUND = 25.5, 5
LEAST_FOLLOWED = 0.1

_BT709 = np.array([0.2126, 0.7152, 0.0722], np.float32)
_VERSION = "1"
_LEAST_IN_SHOT = 3  # through two points a line leaves nothing over
_UNITS = {
    "flicker": "frame triples",
    "brightness_pumping": "frames",
    "black_frames": "frames",
    "loop_seam": "clips",
}
_FLOW: Mapping[str, Setting] = {**SETTINGS, "least_followed": LEAST_FOLLOWED}
_SETTINGS: Mapping[str, Mapping[str, Setting]] = {
    "warping_error": _FLOW,
    "motion": _FLOW,
    "frozen_frames": {"levels": FROZEN_LEVELS},
    "black_frames": {"levels": BLACK_LEVELS, "share": BLACK_SHARE},
}
_EVERY_METRIC: Mapping[str, Setting] = {"cut_levels": CUT_LEVELS, "cut_around": CUT_AROUND}

Luma = npt.NDArray[np.float32]
Series = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Total:
    """What a metric's values add up to, and how many they are; totals of several clips add up."""

    total: float = 0.0
    count: float = 0.0

    def __add__(self, other: Total) -> Total:
        return Total(self.total + other.total, self.count + other.count)


class TemporalScores:
    """Takes the frames of one clip as they come; some 200 bytes of each are kept.

    Args:
        with_flow: Whether motion and warping error are measured, nearly all of the work.
    """

    def __init__(self, *, with_flow: bool = True) -> None:
        self._with_flow = with_flow
        self._shape: tuple[int, ...] = ()
        self._first: Luma | None = None
        self._recent: list[Luma] = []  # the last frame, and the one before
        self._levels: list[float] = []  # of frames
        self._black: list[float] = []
        self._changes: list[float] = []  # of pairs
        self._motions: list[float] = []
        self._errors: list[float] = []
        self._bends: list[float] = []  # of triples

    def add(self, frames: npt.NDArray[np.uint8]) -> None:
        """Take the next frames.

        Args:
            frames: uint8 (T, H, W, 3), RGB, or one frame (H, W, 3); any number at a time.

        Raises:
            VideoError: Not such frames, or of another size than those before.
        """
        given = np.asarray(frames)
        pictures = given[None] if given.ndim == 3 else given
        if pictures.ndim != 4 or pictures.shape[3] != 3 or pictures.dtype != np.uint8:
            raise VideoError(
                f"frames must be uint8 (T,H,W,3), not {given.dtype} {given.shape}: use to_frames"
            )
        for picture in pictures:
            self._check_size(picture.shape)
            self._add(_luma(picture))

    def _check_size(self, shape: tuple[int, ...]) -> None:
        if 0 in shape:
            raise VideoError(f"a frame of shape {shape} is empty: pass pictures")
        if self._shape and shape != self._shape:
            (height, width), (before_h, before_w) = shape[:2], self._shape[:2]
            raise VideoError(
                f"a frame of {width}x{height} follows frames of {before_w}x{before_h}: "
                "bring them to one size first"
            )
        self._shape = shape

    def _add(self, luma: Luma) -> None:
        self._levels.append(float(luma.mean(dtype=np.float64)))
        self._black.append(float((luma <= BLACK_LEVELS).mean() >= BLACK_SHARE))
        if self._first is None:
            self._first = luma
        else:
            self._changes.append(_distance(self._recent[-1], luma))
            self._follow(self._recent[-1], luma)
        if len(self._recent) == 2:
            earlier, middle = self._recent
            self._bends.append(_distance(2 * middle, earlier + luma) / 2)
        self._recent = [*self._recent[-1:], luma]

    def _follow(self, before: Luma, luma: Luma) -> None:
        if self._with_flow and min(luma.shape) >= LEAST_SIDE:
            motion, error = _followed(before, luma)
            self._motions.append(motion)
            self._errors.append(error)

    @property
    def cuts(self) -> tuple[int, ...]:
        """The frames with which a new shot begins, counted from 0."""
        changes = np.array(self._changes)
        starts = (max(0, at - CUT_AROUND) for at in range(len(changes)))
        around = (changes[start : at + CUT_AROUND + 1] for at, start in enumerate(starts))
        found = (change - _second(near) for change, near in zip(changes, around, strict=True))
        return tuple(at + 1 for at, above in enumerate(found) if above >= CUT_LEVELS)

    def _series(self) -> dict[str, Series]:
        """The values that each metric is the sum or mean of, in the order of time."""
        cuts = self.cuts
        is_cut = np.isin(np.arange(1, len(self._changes) + 1), cuts)
        bends_across = is_cut[:-1] | is_cut[1:]
        found = {
            "flicker": np.array(self._bends)[~bends_across],
            "brightness_pumping": _off_the_lines(np.array(self._levels), cuts),
            "frozen_frames": (np.array(self._changes) <= FROZEN_LEVELS)[~is_cut],
            "black_frames": np.array(self._black),
            "cuts": is_cut,
            "loop_seam": self._seam(np.array(self._changes)[~is_cut]),
        }
        if self._motions:
            found["motion"] = np.array(self._motions)[~is_cut]
            found["warping_error"] = np.array(self._errors)[~is_cut]
        return {name: found[name].astype(float) for name in NAMES if len(found.get(name, ()))}

    def _seam(self, steps: Series) -> Series:
        if self._first is None or not len(steps):
            return np.empty(0)
        seam = _distance(self._recent[-1], self._first)
        return np.array([max(0.0, seam - float(steps.mean()))])

    def totals(self) -> dict[str, Total]:
        """Sum and count by metric, those that are defined; `value_of` makes values of them."""
        return {name: _total(values) for name, values in self._series().items()}

    def scores(self) -> dict[str, Score]:
        """The metrics that are defined for so many frames, with passports and intervals."""
        return {name: _score(name, values) for name, values in self._series().items()}


def value_of(name: str, total: Total) -> float:
    """A metric's value out of its total."""
    if name == "cuts":
        return total.total
    mean = total.total / total.count
    return float(np.sqrt(mean)) if name == "brightness_pumping" else mean


def passport(name: str, total: Total, *, interval: Interval | None = None) -> Passport:
    """How a temporal metric was measured."""
    return Passport(
        metric=name,
        version=_VERSION,
        count=round(total.count),
        unit=_UNITS.get(name, "frame pairs"),
        resize=f"by whole factors to at most {LONGEST_PX} px",
        colour_range="luma BT.709, 0..255",
        settings={**_EVERY_METRIC, **_SETTINGS.get(name, {})},
        interval=interval,
    )


def added(totals: Iterable[Mapping[str, Total]]) -> dict[str, Total]:
    """The totals of several clips."""
    found: dict[str, Total] = {}
    for one in totals:
        for name, total in one.items():
            found[name] = found.get(name, Total()) + total
    return {name: found[name] for name in NAMES if name in found}


def _total(values: Series) -> Total:
    return Total(float(values.sum()), len(values))


def _score(name: str, values: Series) -> Score:
    total = _total(values)
    about = passport(name, total, interval=_interval(name, values))
    return Score(value_of(name, total), about)


def _interval(name: str, values: Series) -> Interval | None:
    if name in ("cuts", "loop_seam"):  # of the clip as a whole
        return None
    return over_frames(values, transform=np.sqrt if name == "brightness_pumping" else None)


def _luma(picture: npt.NDArray[np.uint8]) -> Luma:
    factor = -(-max(picture.shape) // LONGEST_PX)
    if factor == 1 or min(picture.shape[:2]) < factor:
        return np.asarray(picture.astype(np.float32) @ _BT709, np.float32)
    height, width = (side // factor for side in picture.shape[:2])
    whole = picture[: height * factor, : width * factor]
    # Each row of a square is one product with the weights: a fifth of the time of plain means.
    rows = whole.astype(np.float32).reshape(height, factor, width, 3 * factor)
    sums = (rows @ np.tile(_BT709, factor)).sum(axis=1)
    return np.asarray(sums / factor**2, np.float32)


def _followed(before: Luma, after: Luma) -> tuple[float, float]:
    """Mean length of the flow in percent of the diagonal, and the warping error."""
    there = flow_between(before, after)
    squares = np.square((before - moved(after, there)) / 255)
    seen = visible(there, flow_between(after, before))
    error = squares[seen].mean() if seen.mean() >= LEAST_FOLLOWED else squares.mean()
    length = np.hypot(there[0], there[1]).mean()
    return float(100 * length / np.hypot(*before.shape)), float(error)


def _distance(one: Luma, other: Luma) -> float:
    return float(np.abs(one - other).mean(dtype=np.float64))


def _second(values: Series) -> float:
    """The largest value but one, 0 where there is none."""
    return float(np.sort(values)[-2]) if len(values) > 1 else 0.0


def _off_the_lines(levels: Series, cuts: tuple[int, ...]) -> Series:
    """For each frame the square of its distance from the line that fits its shot best."""
    shots = np.split(levels, cuts)
    squares = [_off_the_line(shot) for shot in shots if len(shot) >= _LEAST_IN_SHOT]
    return np.concatenate(squares) if squares else np.empty(0)


def _off_the_line(levels: Series) -> Series:
    at = np.arange(len(levels)) - (len(levels) - 1) / 2
    centred = levels - levels.mean()
    left: Series = np.square(centred - at * (at @ centred) / (at @ at))
    return left
