"""Facts about `opusclip_mlops.animation`: moving posters, GIFs and contact sheets."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from opusclip_mlops.animation import write_contact_sheet, write_gif, write_webp
from opusclip_mlops.decoding import Clip, read_clip
from opusclip_mlops.errors import VideoError
from tests.clips import CARPHONE, COLOURS, flat


@pytest.fixture(scope="module")
def carphone() -> Clip:
    """A real clip: 120 frames of 176x144."""
    return read_clip(CARPHONE)


def animation(path: Path) -> tuple[list[int], tuple[int, int], int]:
    """The durations of an animated picture's frames in ms, its size, and how often it loops."""
    with Image.open(path) as image:
        durations = []
        for index in range(image.n_frames):
            image.seek(index)
            image.load()
            durations.append(image.info["duration"])
        return durations, image.size, image.info["loop"]


def test_a_webp_is_small_and_keeps_its_length(carphone: Clip, tmp_path: Path) -> None:
    """120 frames become 32 that loop, evenly spread, as long as before."""
    path = tmp_path / "clip.webp"
    write_webp(carphone.frames, path, fps=carphone.fps, max_side=88)
    durations, size, loop = animation(path)
    assert len(durations) == 32
    assert sum(durations) == 4004
    assert max(durations) - min(durations) <= 1
    assert (size, loop) == ((88, 72), 0)
    assert path.stat().st_size < 100_000


def test_a_short_webp_has_every_frame_in_order(tmp_path: Path) -> None:
    """Below the limits nothing is dropped, shrunk or reordered."""
    path = tmp_path / "clip.webp"
    write_webp(flat(COLOURS, 24, 40), path, fps=4)
    assert animation(path) == ([250] * 6, (40, 24), 0)
    with Image.open(path) as image:
        for index, colour in enumerate(COLOURS):
            image.seek(index)
            assert np.abs(np.subtract(image.convert("RGB").getpixel((20, 12)), colour)).max() < 6


@pytest.mark.parametrize(
    ("fps", "shown", "length_ms"), [(30000 / 1001, 64, 4000), (30, 64, 4000), (120, 50, 1000)]
)
def test_a_gif_keeps_its_speed(
    carphone: Clip, tmp_path: Path, fps: float, shown: int, length_ms: int
) -> None:
    """A GIF lasts as long as the clip, with no frame so short that a browser slows it down."""
    path = tmp_path / "clip.gif"
    write_gif(carphone.frames, path, fps=fps, max_side=44)
    durations, size, loop = animation(path)
    assert len(durations) == shown
    assert sum(durations) == length_ms
    assert min(durations) >= 20
    assert (size, loop) == ((44, 36), 0)


@pytest.mark.parametrize("write", [write_gif, write_webp])
def test_a_flash_is_one_frame(write: Callable[..., None], tmp_path: Path) -> None:
    """A clip shorter than any animation can show is a still of its first frame."""
    write(flat(COLOURS, 8, 8), tmp_path / "clip", fps=1000)
    with Image.open(tmp_path / "clip") as image:
        assert image.n_frames == 1
        assert np.abs(np.subtract(image.convert("RGB").getpixel((4, 4)), COLOURS[0])).max() < 6


def test_a_gif_is_read_back(tmp_path: Path) -> None:
    """What is written is a clip again: colours, count and rate."""
    path = tmp_path / "clip.gif"
    write_gif(flat(COLOURS, 8, 8), path, fps=10)
    clip = read_clip(path)
    assert clip.fps == pytest.approx(10)
    assert np.abs(clip.frames - flat(COLOURS, 8, 8).astype(int)).max() <= 1


def test_a_contact_sheet_shows_nine_frames_from_first_to_last(tmp_path: Path) -> None:
    """Frames 0, 2, 4 … 16 of 17, row by row, each where it belongs."""
    path = tmp_path / "sheet.png"
    frames = flat([[index * 15, 0, 255 - index * 15] for index in range(17)], 20, 20)
    write_contact_sheet(frames, path)
    with Image.open(path) as image:
        assert (image.format, image.size) == ("PNG", (60, 60))
        shown = np.asarray(image)[10::20, 10::20].reshape(9, 3)
    np.testing.assert_array_equal(shown, frames[::2, 0, 0])


@pytest.mark.parametrize(
    ("count", "height", "width"), [(1, 90, 160), (2, 50, 50), (9, 90, 160), (40, 20, 160)]
)
def test_a_contact_sheet_is_nearly_square(
    tmp_path: Path, count: int, height: int, width: int
) -> None:
    """Wide frames stand in fewer columns; no side is more than twice the other or too long."""
    path = tmp_path / "sheet.png"
    write_contact_sheet(np.full((count, height, width, 3), 200, np.uint8), path, max_side=100)
    with Image.open(path) as image:
        assert max(image.size) <= 100
        assert max(image.size) <= 2 * min(image.size)
        assert np.asarray(image).min() == 200  # no holes


@pytest.mark.parametrize("option", ["max_side", "max_frames"])
def test_animations_need_a_size_and_a_frame(option: str, tmp_path: Path) -> None:
    """Limits of 0 are refused by their name."""
    for write in (write_webp, write_gif):
        with pytest.raises(VideoError, match=f"{option} is 0: pass 1 or more"):
            write(flat(COLOURS, 8, 8), tmp_path / "clip", fps=5, **{option: 0})


def test_small_pictures_are_shown_a_whole_number_of_times_larger(tmp_path: Path) -> None:
    """Up to the side asked for, each pixel a square; those that are large enough stay."""
    frames = flat(COLOURS, 24, 40)
    frames[:, :12] = 255 - frames[:, :12]
    write_webp(frames, tmp_path / "clip.webp", fps=4, least_side=100)
    assert animation(tmp_path / "clip.webp")[1] == (80, 48)
    write_webp(frames, tmp_path / "clip.webp", fps=4, least_side=40)
    assert animation(tmp_path / "clip.webp")[1] == (40, 24)
    write_contact_sheet(frames[:4], tmp_path / "sheet.png", least_side=100)
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (160, 96)
        assert sheet.getpixel((79, 23)) == (0, 255, 255)
        assert sheet.getpixel((79, 24)) == (255, 0, 0)


class Counted:
    """Pictures that note which of them are asked for."""

    def __init__(self, frames: np.ndarray) -> None:
        self.frames, self.shape, self.dtype = frames, frames.shape, frames.dtype
        self.asked: list[int] = []

    def __getitem__(self, index: int) -> np.ndarray:
        """One of them."""
        self.asked.append(index)
        return np.asarray(self.frames[index])


@pytest.mark.parametrize(
    ("write", "most"), [(write_webp, 32), (write_gif, 64), (write_contact_sheet, 9)]
)
def test_only_the_pictures_that_are_shown_are_asked_for(
    write: Callable[..., None], most: int, tmp_path: Path
) -> None:
    """Each once, in order: a long clip is never in memory."""
    counted = Counted(np.zeros((500, 8, 8, 3), np.uint8))
    write(counted, tmp_path / "clip", **({} if most == 9 else {"fps": 8}))
    assert len(counted.asked) == most
    assert counted.asked == sorted(set(counted.asked))
