"""Facts about `opusclip_mlops.repackaging`: pictures are copied as they are encoded."""

from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from opusclip_mlops.clip_files import Codec
from opusclip_mlops.decoding import read_clip
from opusclip_mlops.errors import VideoError
from opusclip_mlops.inspecting import inspect
from opusclip_mlops.repackaging import repackage
from tests.clips import moving, write_file

FRAMES = moving(12, 32, 48)
NONE: frozenset[str] = frozenset()


def times_ms(path: Path) -> list[int]:
    """When each picture is shown, from the first on."""
    with av.open(str(path)) as container:
        shown = [round(1000 * frame.time) for frame in container.decode(video=0)]
    return [one - shown[0] for one in shown]


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mov", "clip.mkv"])
@pytest.mark.parametrize("options", [{}, {"bf": "0"}], ids=["b-frames", "none"])
def test_every_picture_is_there_at_its_time(
    name: str, options: dict[str, str], tmp_path: Path
) -> None:
    """Also the first ones of a Matroska file, whose times of decoding it does not state."""
    source = write_file(tmp_path / name, FRAMES, options=options)
    repackage(source, tmp_path / "made", codec="h264", metadata={}, audio=NONE)
    np.testing.assert_array_equal(read_clip(tmp_path / "made").frames, read_clip(source).frames)
    assert times_ms(tmp_path / "made") == pytest.approx(times_ms(source), abs=1)
    assert inspect(tmp_path / "made").seconds == pytest.approx(1.0, abs=2e-3)


def test_a_single_picture_is_copied(tmp_path: Path) -> None:
    """Out of Matroska, which states no time of decoding at all."""
    source = write_file(tmp_path / "clip.mkv", FRAMES[:1])
    repackage(source, tmp_path / "made", codec="h264", metadata={}, audio=NONE)
    np.testing.assert_array_equal(read_clip(tmp_path / "made").frames, read_clip(source).frames)


@pytest.mark.parametrize(
    ("name", "codec", "options", "audio", "kept"),
    [
        ("clip.mkv", "h264", {"sound": "aac"}, {"aac", "mp3"}, ("aac",)),
        ("clip.mkv", "h264", {"sound": "libmp3lame"}, {"aac", "mp3"}, ("mp3",)),
        ("clip.mkv", "h264", {"sound": "ac3"}, {"aac", "mp3"}, ()),
        ("clip.webm", "vp9", {"sound": "libopus", "codec": "libvpx-vp9"}, {"opus"}, ("opus",)),
    ],
)
def test_sound_is_copied_where_it_is_wanted(
    name: str,
    codec: Codec,
    options: dict[str, Any],
    audio: set[str],
    kept: tuple[str, ...],
    tmp_path: Path,
) -> None:
    """By its codec; any other is left out."""
    source = write_file(tmp_path / name, FRAMES, **options)
    repackage(source, tmp_path / "made", codec=codec, metadata={}, audio=frozenset(audio))
    assert inspect(tmp_path / "made").sounds == kept


def test_nothing_else_that_the_file_said_is_kept(tmp_path: Path) -> None:
    """Who made it and where is nobody's business."""
    source = write_file(tmp_path / "clip.mp4", FRAMES)
    said = {"title": "mine", "artist": "Hieronymus"}
    repackage(source, tmp_path / "one.mp4", codec="h264", metadata=said, audio=NONE)
    repackage(tmp_path / "one.mp4", tmp_path / "two.mp4", codec="h264",
              metadata={"title": "ours"}, audio=NONE)  # fmt: skip
    assert b"Hieronymus" in (tmp_path / "one.mp4").read_bytes()
    content = (tmp_path / "two.mp4").read_bytes()
    assert b"ours" in content
    assert b"Hieronymus" not in content
    assert inspect(tmp_path / "two.mp4").title == "ours"


def test_pictures_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    """VP9 is to be in a webm, and nothing else than it."""
    source = write_file(tmp_path / "clip.mp4", FRAMES)
    with pytest.raises(VideoError, match=r"clip\.mp4 cannot be copied"):
        repackage(source, tmp_path / "made", codec="vp9", metadata={}, audio=NONE)
