"""Facts about `opusclip_mlops.clip_files`: what writers of clips refuse and leave behind."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from opusclip_mlops.animation import write_contact_sheet, write_gif, write_webp
from opusclip_mlops.clip_files import amount
from opusclip_mlops.decoding import Clip, read_clip
from opusclip_mlops.encoding import write_mp4
from opusclip_mlops.errors import VideoError
from tests.clips import CARPHONE, COLOURS, flat

WRITERS: dict[str, Callable[[np.ndarray, Path], None]] = {
    "mp4": lambda frames, path: write_mp4(frames, path, fps=25),
    "webp": lambda frames, path: write_webp(frames, path, fps=25),
    "gif": lambda frames, path: write_gif(frames, path, fps=25),
    "png": lambda frames, path: write_contact_sheet(frames, path),
}


@pytest.fixture(scope="module")
def carphone() -> Clip:
    """A real clip: 120 frames of 176x144."""
    return read_clip(CARPHONE)


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize(
    "frames",
    [
        pytest.param(np.zeros((2, 16, 16, 3)), id="floats"),
        pytest.param(np.zeros((2, 3, 16, 16), np.uint8), id="channels first"),
        pytest.param(np.zeros((16, 16, 3), np.uint8), id="one picture"),
        pytest.param(np.zeros((0, 16, 16, 3), np.uint8), id="no frames"),
        pytest.param([[1]], id="list"),
    ],
)
def test_writers_take_rgb_bytes_only(kind: str, frames: np.ndarray, tmp_path: Path) -> None:
    """Anything else is refused before a file exists, with the function that helps."""
    with pytest.raises(VideoError, match=r"pass to_frames\(video\)"):
        WRITERS[kind](frames, tmp_path / "new" / f"clip.{kind}")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("kind", WRITERS)
def test_a_file_appears_whole_and_alone(kind: str, carphone: Clip, tmp_path: Path) -> None:
    """A writer makes the folder, replaces what was there, and leaves nothing beside it."""
    path = tmp_path / "new" / "folder" / f"clip.{kind}"
    for count in (2, 4):
        WRITERS[kind](carphone.frames[:count], path)
        assert list(path.parent.iterdir()) == [path]
    twin = tmp_path / f"twin.{kind}"
    WRITERS[kind](carphone.frames[:4], twin)
    assert path.read_bytes() == twin.read_bytes()


@pytest.mark.parametrize("kind", WRITERS)
def test_a_failed_writer_leaves_no_trace(kind: str, carphone: Clip, tmp_path: Path) -> None:
    """Where a folder is in the way, the error names the path and no temporary file stays."""
    path = tmp_path / "folder" / f"clip.{kind}"
    path.mkdir(parents=True)
    with pytest.raises(VideoError, match=f"clip.{kind} cannot be written"):
        WRITERS[kind](carphone.frames[:2], path)
    assert list(path.parent.iterdir()) == [path]
    with pytest.raises(VideoError, match="cannot be written"):
        WRITERS[kind](carphone.frames[:2], CARPHONE / "clip")


@pytest.mark.parametrize("fps", [0, -1, float("nan"), float("inf"), 1001])
def test_an_impossible_fps_is_refused(fps: float, tmp_path: Path) -> None:
    """A rate must be a number from 0.01 to 1000."""
    for write in (write_mp4, write_webp, write_gif):
        with pytest.raises(VideoError, match=r"fps is .* from 0.01 to 1000"):
            write(flat(COLOURS, 8, 8), tmp_path / "clip", fps=fps)


@pytest.mark.parametrize(
    ("size_bytes", "said"),
    [(7, "7 bytes"), (2048, "2 KiB"), (100_000, "97.7 KiB"), (32 << 20, "32 MiB")],
)
def test_a_size_in_words(size_bytes: int, said: str) -> None:
    """With three digits that count."""
    assert amount(size_bytes) == said
