"""Facts about `opusclip_mlops.frame_sources`, on files that keep every pixel."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from opusclip_mlops.errors import VideoError
from opusclip_mlops.frame_sources import Digest, Taken, batches, listed, opened, pairs
from tests.clips import CARPHONE, moving, write_file

FRAMES = moving(30, 48, 64)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("clips")


@pytest.fixture(scope="module")
def clip(folder: Path) -> Path:
    """Thirty frames at 30 a second, without loss."""
    return kept(folder / "clip.mkv", FRAMES)


def kept(path: Path, frames: np.ndarray, **options: object) -> Path:
    write_file(path, frames, codec="ffv1", pix_fmt="bgr0", **{"fps": 30, **options})  # type: ignore[arg-type]
    return path


def taken_of(video: object, **options: object) -> np.ndarray:
    """The frames that are taken."""
    taken = Taken(**options)  # type: ignore[arg-type]
    with opened(video, taken=taken, value_range=(0.0, 1.0), name="it") as source:
        return np.stack(list(source.frames))


def paired(first: object, second: object, **options: object) -> str:
    """Take all pairs; returns the digest of the second."""
    taken, digest = Taken(**options), Digest()  # type: ignore[arg-type]
    sources = [
        opened(one, taken=taken, value_range=(0.0, 1.0), name=name)
        for one, name in ((first, "ours.mp4"), (second, "theirs.mp4"))
    ]
    with sources[0] as source, sources[1] as other:
        for pictures, targets in pairs(source, other, digest):
            assert targets is not None
            assert pictures.shape == targets.shape
    return digest.text


def test_every_frame_is_taken_as_it_is(clip: Path) -> None:
    """A file and its frames are the same."""
    assert np.array_equal(taken_of(clip), FRAMES)
    assert np.array_equal(taken_of(FRAMES), FRAMES)
    assert np.array_equal(taken_of(clip, max_frames=7), FRAMES[:7])


@pytest.mark.parametrize(("fps", "numbers"), [(10, range(0, 30, 3)), (20, None), (30, range(30))])
def test_frames_are_taken_by_the_time_they_are_shown_at(
    clip: Path, fps: float, numbers: range | None
) -> None:
    """At moment k/fps the frame that is on the screen; of 20 out of 30 two of three."""
    wanted = [n * 3 // 2 for n in range(20)] if numbers is None else [*numbers]
    assert np.array_equal(taken_of(clip, fps=fps), FRAMES[wanted])


def test_a_frame_that_stands_longer_is_taken_more_often(folder: Path) -> None:
    """Where the rate varies, a moment's frame counts, not its number."""
    times_ms = [0, 100, 200, 300, 700, 800]
    path = folder / "varying.mkv"
    write_file(path, FRAMES[:6], codec="ffv1", pix_fmt="bgr0", times_ms=times_ms)
    with opened(path, taken=Taken(), value_range=(0, 1), name="it") as source:
        rate = source.fps
    assert rate is not None
    assert rate >= 5
    found = taken_of(path, fps=5)
    assert np.array_equal(found, FRAMES[[0, 2, 3, 3, 5]])


def test_more_than_there_are_are_not_made_up(clip: Path) -> None:
    """A rate above the file's is refused, and so is any rate of what has none."""
    with pytest.raises(VideoError, match="it has 30 frames per second: pass fps of 30 or less"):
        taken_of(clip, fps=60)
    with pytest.raises(VideoError, match="it has no frame rate of its own"):
        taken_of(FRAMES, fps=10)


@pytest.mark.parametrize("size", [(32, 24), (40, 40), (128, 96)])
def test_frames_are_resized_as_pillow_does(size: tuple[int, int]) -> None:
    """Bicubic with antialiasing: within one level of Pillow's."""
    found = taken_of(FRAMES[:2], width=size[0], height=size[1])
    theirs = [Image.fromarray(one).resize(size, Image.Resampling.BICUBIC) for one in FRAMES[:2]]
    differences = found.astype(int) - np.stack([np.asarray(one) for one in theirs])
    assert found.shape == (2, size[1], size[0], 3)
    assert np.abs(differences).max() <= 1


def test_what_was_taken_is_said() -> None:
    """As passports hold it."""
    assert (Taken().sampling, Taken().resize) == ("every frame", "none")
    taken = Taken(width=320, height=180, fps=8, max_frames=16)
    assert taken.sampling == "8 frames per second, the first 16"
    assert taken.resize == "bicubic, antialiased, to 320x180"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"width": 320}, "resize is 320x0: pass WIDTHxHEIGHT"),
        ({"fps": 0}, "fps is 0: pass frames per second"),
        ({"fps": float("nan")}, "fps is nan: pass frames per second"),
        ({"max_frames": 0}, "max_frames is 0: pass 1 or more"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, float], told: str) -> None:
    """Each is named, with what to pass."""
    with pytest.raises(VideoError, match=told):
        Taken(**options)  # type: ignore[arg-type]


def test_batches_hold_all_frames_in_order(clip: Path) -> None:
    """A few at a time, the last ones too."""
    with opened(clip, taken=Taken(), value_range=(0, 1), name="it") as source:
        found = list(batches(source))
    assert [len(one) for one in found] == [16, 14]
    assert np.array_equal(np.concatenate(found), FRAMES)


def test_unlike_videos_are_told_apart(folder: Path, clip: Path) -> None:
    """Another length either way, size or rate: both are named, and what to do."""
    for pair, told in (
        ((FRAMES[:20], FRAMES), "ours.mp4 has 20 frames and theirs.mp4 has more: .* first 20 "),
        ((FRAMES, FRAMES[:16]), "theirs.mp4 has 16 frames and ours.mp4 has more"),
        ((FRAMES, FRAMES[:, :, :60]), "ours.mp4 is 64x48 and theirs.mp4 60x48: resize both"),
        ((clip, kept(folder / "slow.mkv", FRAMES, fps=24)), "30 frames .* theirs.mp4 24: take as"),
    ):
        with pytest.raises(VideoError, match=told):
            paired(*pair)


def test_what_is_told_to_do_helps(folder: Path, clip: Path) -> None:
    """With a size, a number and a rate, unlike videos are compared."""
    assert paired(FRAMES[:20], FRAMES, max_frames=20)
    assert paired(FRAMES, FRAMES[:, :, :60], width=60, height=48)
    assert paired(clip, kept(folder / "slower.mkv", FRAMES[:24], fps=24), fps=24)


def test_rates_that_differ_in_name_only_are_alike(folder: Path) -> None:
    """29.97 frames per second beside 30 are the same frames."""
    assert paired(CARPHONE, kept(folder / "other.mkv", moving(120, 144, 176)))


def test_a_reference_is_known_by_its_digest(clip: Path) -> None:
    """The same for a file and its frames, another for one pixel or another order."""
    changed = FRAMES.copy()
    changed[7, 5, 5, 1] ^= 1
    same, other, turned = (paired(FRAMES, one) for one in (clip, changed, FRAMES[::-1].copy()))
    assert same == paired(clip, FRAMES)
    assert len({same, other, turned}) == 3


def test_a_folder_stands_for_its_videos(tmp_path: Path, clip: Path) -> None:
    """Sorted by name, without what is no video; an empty one is an error."""
    for name in ("b.mkv", "a.mkv"):
        (tmp_path / name).write_bytes(clip.read_bytes())
    (tmp_path / "notes.txt").write_text("none")
    assert listed([tmp_path, clip]) == [tmp_path / "a.mkv", tmp_path / "b.mkv", clip]
    (tmp_path / "empty").mkdir()
    with pytest.raises(VideoError, match="empty holds no video files"):
        listed([tmp_path / "empty"])


def test_what_is_no_video_is_told(tmp_path: Path) -> None:
    """A corrupt file, one that is not there, and floats of an unknown range."""
    (tmp_path / "broken.mp4").write_bytes(b"\0" * 5000)
    with pytest.raises(VideoError, match=r"broken.mp4 cannot be read as video"):
        taken_of(tmp_path / "broken.mp4")
    with pytest.raises(VideoError, match="does not exist"):
        taken_of(str(tmp_path / "absent.mp4"))
    with pytest.raises(VideoError, match=r"outside value_range \(0, 1\): pass value_range"):
        taken_of(FRAMES.astype(np.float32) / 127.5 - 1)
