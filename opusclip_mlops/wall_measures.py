"""What a wall says of a clip by itself: how much moves in it, and how much it flickers.

Made for a glance at many clips: motion is followed in small pictures, and at the beginning only.
`opusclip evaluate` measures whole clips.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from opusclip_mlops.decoding import open_frames
from opusclip_mlops.errors import VideoError
from opusclip_mlops.passports import Score
from opusclip_mlops.temporal import TemporalScores

NAMES = ("flicker", "motion")

MOTION_FRAMES, MOTION_PX = 17, 96

Frames = npt.NDArray[np.uint8]


def measured_at(path: Path) -> dict[str, Score]:
    """Flicker of a clip's file, and motion; what is not defined is not there.

    Flicker is in levels of 0..255, motion the mean path from frame to frame in percent of the
    picture's diagonal.

    Raises:
        VideoError: It cannot be read as video.
    """
    with open_frames(path) as frames:
        return measured(frames)


def measured(frames: Iterable[Frames]) -> dict[str, Score]:
    """The same of frames as they come, uint8 (H, W, 3)."""
    every, first = TemporalScores(with_flow=False), TemporalScores()
    for number, one in enumerate(frames):
        every.add(one)
        if number < MOTION_FRAMES:
            first.add(_small(one))
    found = {name: one for name, one in every.scores().items() if name == "flicker"}
    motion = first.scores().get("motion")
    if motion is not None:
        found["motion"] = _of_beginning(motion)
    return found


def described(path: Path) -> dict[str, Any]:
    """The same as JSON values, by metric; nothing where the file cannot be read."""
    try:
        found = measured_at(path)
    except VideoError:
        return {}
    return {
        name: {"value": float(one), "passport": one.passport.to_dict()}
        for name, one in found.items()
    }


def _small(picture: Frames) -> Frames:
    factor = -(-max(picture.shape[:2]) // MOTION_PX)
    height, width = (side // factor for side in picture.shape[:2])
    if not height or not width:
        return picture
    squares = picture[: height * factor, : width * factor]
    shape = (height, factor, width, factor, 3)
    return np.asarray(squares.reshape(shape).mean(axis=(1, 3)).round(), np.uint8)


def _of_beginning(motion: Score) -> Score:
    """Motion with a passport that says which frames it is of."""
    passport = replace(
        motion.passport,
        sampling=f"the first {MOTION_FRAMES} frames",
        resize=f"by a whole factor to at most {MOTION_PX} px",
    )
    return Score(float(motion), passport)
