"""Clips in answers: found in whatever form, counted, and told black, frozen or flickering."""

import base64
from typing import Any

import numpy as np
import pandas as pd
import pytest

from opusclip_mlops.errors import VideoError
from opusclip_mlops.monitoring.clips import first_clip, frame_count, look_at, row_count
from opusclip_mlops.video import encode_mp4

NOISE = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), np.uint8)
BLACK = np.zeros_like(NOISE)
STILL = np.repeat(NOISE[:1], 12, axis=0)
SMOOTH = np.stack([np.full((32, 32, 3), 60 + 4 * at, np.uint8) for at in range(12)])
FILE = encode_mp4(SMOOTH, fps=8)
TEXT = base64.b64encode(FILE).decode()


@pytest.mark.parametrize(
    ("frames", "flags"),
    [(NOISE, {"flicker"}), (BLACK, {"black", "frozen"}), (STILL, {"frozen"}), (SMOOTH, set())],
)
def test_a_clip_is_flagged_as_what_it_is(frames: Any, flags: set[str]) -> None:
    """As an array, and as an mp4 in base64, where compression has changed it a little."""
    for clip in (frames, base64.b64encode(encode_mp4(frames, fps=8)).decode()):
        assert {name for name, is_so in look_at(clip).flags.items() if is_so} == flags


@pytest.mark.parametrize(
    "answer",
    [
        [{"frames": 12, "video": TEXT}],
        [{"frames": 12, "video": FILE}],
        {"frames": [12], "video": [TEXT]},
        pd.DataFrame({"frames": [12], "video": [TEXT]}),
        SMOOTH,
        SMOOTH[None],
        {"video": SMOOTH},
        [SMOOTH],
    ],
)
def test_a_clip_is_found_in_any_form_of_answer(answer: Any) -> None:
    """Its frames are counted, by what is said of them or by the array, and it can be looked at."""
    assert frame_count(answer) == 12
    clip = first_clip(answer)
    assert clip is not None
    assert look_at(clip).values["black_frames"] == 0


@pytest.mark.parametrize(
    "answer",
    [
        None, 3, "text", b"bytes", [], {}, [[]], [None], ["x" * 1000], np.zeros(3), np.array(None),
        pd.DataFrame(), pd.Series([1.0]), iter([1]), {"frames": "many"}, [{"frames": True}],
        np.zeros((2, 2, 2, 4), np.uint8), {"a": [1, 2], "b": [1]}, [{"frames": -3}],
    ],
)  # fmt: skip
def test_an_answer_without_a_clip_has_none(answer: Any) -> None:
    """And no frames; nothing about it is a fault."""
    assert first_clip(answer) is None
    assert frame_count(answer) == 0
    assert row_count(answer) >= 0


def test_an_array_is_copied() -> None:
    """A model may use its buffer again."""
    frames = SMOOTH.copy()
    clip = first_clip(frames)
    frames[:] = 0
    assert isinstance(clip, np.ndarray)
    assert np.array_equal(clip, SMOOTH)


@pytest.mark.parametrize("clip", [FILE[:40], TEXT[:400], TEXT[:-5] + "*****", b"\0\0\0\0ftypxxxx"])
def test_a_damaged_clip_is_one_error(clip: Any) -> None:
    """A file that is cut off, and text that is no base64."""
    with pytest.raises(VideoError):
        look_at(clip)


def test_a_generator_is_not_eaten() -> None:
    """What the model gives piece by piece is for who asked."""
    pieces = iter([SMOOTH])
    assert first_clip(pieces) is None
    assert list(pieces)
