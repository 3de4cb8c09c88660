"""The clips in a model's answer: how many frames there are, and whether the first one looks right.

An answer is rows: a list of objects, a data frame, or an object of columns. A clip in it is an mp4
or another video file as bytes or base64, or an array of frames, uint8 (T, H, W, 3); an answer may
be such an array too, or one of clips, uint8 (N, T, H, W, 3).

    black     at least half of its frames are black
    frozen    at least half of its pairs of frames are equal
    flicker   its flicker is 10 levels or more
"""

from __future__ import annotations

import base64
import binascii
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from opusclip_mlops.errors import VideoError
from opusclip_mlops.temporal import TemporalScores, value_of
from opusclip_mlops.video import open_frames

Frames: TypeAlias = npt.NDArray[np.uint8]
Found: TypeAlias = bytes | str | Frames

CHECKS = {"black": "black_frames", "frozen": "frozen_frames", "flicker": "flicker"}
"""What a clip can be flagged as, and the metric of `opusclip_mlops.temporal` that says so."""

LEAST = {"black": 0.5, "frozen": 0.5, "flicker": 10.0}
"""From which value of the metric on a clip is flagged."""

MOST_FRAMES = 256
"""So many frames of a clip are looked at."""

_MOST_ROWS = 64
_MOST_BYTES = 64 * 2**20
_LEAST_CHARACTERS = 64
_MARKS = {4: b"ftyp", 0: b"\x1aE\xdf\xa3", 8: b"AVI "}


@dataclass(frozen=True, slots=True)
class Looks:
    """What a clip's frames measure, by metric, and what it is flagged as or not."""

    values: Mapping[str, float]
    flags: Mapping[str, bool]


def row_count(content: Any) -> int:
    """How many rows a request or an answer has; what is no table is one."""
    if isinstance(content, dict):
        content = next(iter(content.values()), ())
    is_table = isinstance(content, list | tuple) or hasattr(content, "columns")
    is_table = is_table or (isinstance(content, np.ndarray) and content.ndim > 0)
    return len(content) if is_table else 1


def frame_count(answer: Any) -> int:
    """How many frames an answer says that it has in `frames`, or has as arrays; 0 if unknown."""
    return sum(_frames_of(row) for row in _rows(answer))


def first_clip(answer: Any) -> Found | None:
    """The first clip of an answer, of its first rows; an array is a copy."""
    found = (one for row in islice(_rows(answer), _MOST_ROWS) for one in _values(row))
    clip = next((one for one in found if _is_clip(one)), None)
    if isinstance(clip, np.ndarray):
        one = clip[0] if clip.ndim == 5 else clip
        return one[:MOST_FRAMES].copy() if one.size else None
    return clip


def look_at(clip: Found) -> Looks:
    """Measure a clip.

    Raises:
        VideoError: It cannot be decoded.
    """
    scores = TemporalScores(with_flow=False)
    for frames in [clip] if isinstance(clip, np.ndarray) else _decoded(_file_of(clip)):
        scores.add(frames)
    totals = scores.totals()
    values = {name: value_of(name, totals[name]) for name in CHECKS.values() if name in totals}
    flags = {flag: values.get(name, 0.0) >= LEAST[flag] for flag, name in CHECKS.items()}
    return Looks(values, flags)


def _rows(answer: Any) -> Iterator[Any]:
    if hasattr(answer, "to_dict") and hasattr(answer, "columns"):
        answer = answer.to_dict("list")
    elif hasattr(answer, "to_list"):
        answer = answer.to_list()
    if isinstance(answer, dict) and any(isinstance(one, list) for one in answer.values()):
        length = max(len(one) for one in answer.values() if isinstance(one, list))
        lists = {name: one for name, one in answer.items() if isinstance(one, list)}
        for at in range(length):
            yield {name: one[at] for name, one in lists.items() if at < len(one)}
    elif isinstance(answer, list | tuple):
        yield from answer
    else:
        yield answer


def _values(row: Any) -> Iterator[Any]:
    if isinstance(row, dict):
        yield from row.values()
    else:
        yield row


def _frames_of(row: Any) -> int:
    said = row.get("frames") if isinstance(row, dict) else None
    if isinstance(said, int | np.integer) and not isinstance(said, bool):
        return max(0, int(said))
    arrays = [one for one in _values(row) if isinstance(one, np.ndarray) and _is_clip(one)]
    return sum(int(np.prod(one.shape[:-3])) for one in arrays)


def _is_clip(value: Any) -> bool:
    if isinstance(value, np.ndarray):
        return value.dtype == np.uint8 and value.ndim in (4, 5) and value.shape[-1] == 3
    if isinstance(value, str):
        return len(value) >= _LEAST_CHARACTERS and _is_file(_decoded_start(value))
    return isinstance(value, bytes) and _is_file(value[:16])


def _decoded_start(text: str) -> bytes:
    try:
        return base64.b64decode(text[:16], validate=True)
    except (binascii.Error, ValueError):
        return b""


def _is_file(start: bytes) -> bool:
    return any(start[at:].startswith(mark) for at, mark in _MARKS.items())


def _file_of(clip: bytes | str) -> bytes:
    if len(clip) > _MOST_BYTES:
        raise VideoError(f"a clip of {len(clip)} bytes is not looked at")
    try:
        return base64.b64decode(clip, validate=True) if isinstance(clip, str) else clip
    except (binascii.Error, ValueError):
        raise VideoError("a clip that is no base64 cannot be decoded") from None


def _decoded(content: bytes) -> Iterator[Frames]:
    with tempfile.NamedTemporaryFile(prefix="opusclip-", suffix=".mp4") as file:
        file.write(content)
        file.flush()
        with open_frames(file.name) as frames:
            yield from islice(frames, MOST_FRAMES)
