"""Facts about `opusclip_mlops.staging`: clips are kept as they are, cheaply, or refused at once."""

import itertools
import os
import subprocess
import sys
import tracemalloc
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from opusclip_mlops.errors import VideoError
from opusclip_mlops.folder import Manifest, RunFolder
from opusclip_mlops.staging import open_staged, stage
from opusclip_mlops.video import write_mp4
from tests.clips import full_disk, moving

FRAMES = moving(6, 32, 48)
FLOATS = torch.from_numpy(FRAMES).permute(0, 3, 1, 2) / 255


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """A run's folder."""
    made = RunFolder(tmp_path / "journal" / "r1")
    made.create(Manifest(local_id="r1", cwd="/", sinks=[], start_time_ms=1))
    return made


def names(folder: RunFolder) -> list[str]:
    """All that lies in the folder of media, hidden files too."""
    return sorted(path.name for path in folder.media.iterdir())


def shown(folder: RunFolder, video: Any, value_range: tuple[float, float] = (0.0, 1.0)) -> Any:
    """The pictures of a clip that was staged, as RGB bytes."""
    name = stage(folder, video, value_range=value_range)
    assert names(folder) == [name]
    pictures = open_staged(folder.media / name).pictures
    return np.stack([pictures[index] for index in range(pictures.shape[0])])


def every_second_column(frames: np.ndarray) -> torch.Tensor:
    """The frames as a view of wider ones."""
    wide = torch.from_numpy(np.repeat(frames, 2, axis=2))
    return wide[:, :, ::2]


VIDEOS: dict[str, Any] = {
    "uint8": FRAMES,
    "int64": FRAMES.astype(np.int64),
    "floats": FRAMES / 255,
    "half floats": (FRAMES / 255).astype(np.float16),
    "big endian": (FRAMES / 255).astype(">f4"),
    "list": list(FRAMES),
    "tuple": tuple(FRAMES),
    "list of lists": [list(FRAMES[:3]), list(FRAMES[:3])],
    "tensor": torch.from_numpy(FRAMES),
    "channels first": FLOATS.contiguous(),
    "view": FLOATS,
    "needs grad": FLOATS.clone().requires_grad_(),
    "double": FLOATS.double(),
    "half": FLOATS.half(),
    "strided": every_second_column(FRAMES),
    "backwards": FRAMES[::-1],
    "fortran": np.asfortranarray(FRAMES),
    "alpha": np.concatenate([FRAMES / 255, np.full((6, 32, 48, 1), 255.0)], axis=-1),
    "pictures": [Image.fromarray(picture) for picture in FRAMES],
    "iterator": iter(FRAMES),
    "generator": (torch.from_numpy(frame) for frame in FRAMES),
    "pictures one by one": (Image.fromarray(frame) for frame in FRAMES),
    "mixed floats": (f / np.asarray(255, t) for f, t in zip(FRAMES, "fdfdfd", strict=True)),
}
EXPECTED: dict[str, np.ndarray] = {
    "backwards": FRAMES[::-1],
    "list of lists": np.concatenate([FRAMES[:3], FRAMES[:3]], axis=2),
}


@pytest.mark.parametrize("kind", VIDEOS)
def test_any_clip_is_kept_without_loss(folder: RunFolder, kind: str) -> None:
    """As one file and nothing beside it, from which come the pictures it shows."""
    np.testing.assert_array_equal(shown(folder, VIDEOS[kind]), EXPECTED.get(kind, FRAMES))


def test_bfloat16_is_kept_to_its_own_precision(folder: RunFolder) -> None:
    """Which numpy has no type for."""
    assert np.abs(shown(folder, FLOATS.bfloat16()).astype(int) - FRAMES).max() <= 1


def test_a_batch_is_laid_side_by_side(folder: RunFolder) -> None:
    """In either layout."""
    batch = torch.stack([FLOATS, 1 - FLOATS])
    expected = np.concatenate([FRAMES, 255 - FRAMES], axis=2)
    np.testing.assert_array_equal(shown(folder, batch), expected)


def test_gray_is_shown_as_gray(folder: RunFolder) -> None:
    """With or without an axis of channels, one by one too."""
    gray = np.repeat(FRAMES[..., :1], 3, axis=-1)
    for video in (FRAMES[..., 0], FRAMES[..., :1], iter(FRAMES[..., 0]), FLOATS[:, :1]):
        np.testing.assert_array_equal(shown(folder, video), gray)
        (folder.media / names(folder)[0]).unlink()


def test_the_range_is_kept_with_the_clip(folder: RunFolder) -> None:
    """Floats are scaled by it, later."""
    video = FLOATS * 2 - 1
    np.testing.assert_array_equal(shown(folder, video, (-1.0, 1.0)), FRAMES)


@pytest.mark.parametrize("video", [FLOATS.numpy().copy(), FRAMES.copy(), FRAMES.copy()[:, :, ::2]])
def test_the_file_holds_the_numbers_that_were_given(folder: RunFolder, video: np.ndarray) -> None:
    """Of the type they came in, where numpy finds them: nothing was converted for it."""
    stored = np.load(folder.media / stage(folder, video, value_range=(0, 1)))
    assert stored.dtype == video.dtype
    np.testing.assert_array_equal(stored, video)


def test_what_is_staged_is_the_clip_at_that_moment(folder: RunFolder) -> None:
    """A buffer that the next batch overwrites has been copied, also frame by frame."""
    buffer = torch.from_numpy(FRAMES.copy())
    frame = np.empty_like(FRAMES[0])

    def same_buffer() -> Iterator[np.ndarray]:
        for one in FRAMES:
            frame[:] = one
            yield frame

    found = [stage(folder, video, value_range=(0, 1)) for video in (buffer, same_buffer())]
    buffer[:], frame[:] = 0, 0
    for name in found:
        np.testing.assert_array_equal(np.load(folder.media / name), FRAMES)


def test_a_clip_of_an_older_version_is_read(folder: RunFolder) -> None:
    """uint8 (T, H, W, 3) and nothing after it."""
    np.save(folder.media / "old.npy", FRAMES)
    staged = open_staged(folder.media / "old.npy")
    assert staged.pictures.shape == FRAMES.shape
    np.testing.assert_array_equal(staged.pictures[3], FRAMES[3])


def test_files_are_private_to_the_user(folder: RunFolder, tmp_path: Path) -> None:
    """Whatever the umask and the file that was given allow."""
    write_mp4(FRAMES, tmp_path / "clip.mp4", fps=8)
    (tmp_path / "clip.mp4").chmod(0o666)
    before = os.umask(0)
    try:
        for video in (FRAMES, iter(FRAMES), tmp_path / "clip.mp4"):
            name = stage(folder, video, value_range=(0, 1))
            assert (folder.media / name).stat().st_mode & 0o777 == 0o600
    finally:
        os.umask(before)


# What is no clip


@pytest.mark.parametrize(
    ("video", "said"),
    [
        ("none.mp4", "no such video file"),
        (Path(), "no such video file"),
        (3, "cannot be made from int"),
        (None, "cannot be made from NoneType"),
        (b"frames", "cannot be made from bytes"),
        ({"video": FRAMES}, "cannot be made from dict"),
        (np.zeros(3), "is not"),
        ([], "holds no frames"),
        (iter([]), "holds no frames"),
        (range(3), "cannot be made from int"),
        ([FRAMES[0], "frame.png"], "cannot be made from str"),
        (FLOATS * 255, r"pass value_range=\(0.0, 255.0\)"),
        (FLOATS * 2 - 1, r"pass value_range=\(-1.0, 1.0\)"),
        (FLOATS / FLOATS.max() + 0.02, "clip it, or pass its value_range"),
        (FLOATS / FLOATS.max() * 1.5, "clip it, or pass its value_range"),
        (FLOATS / FLOATS.max() * 1.003 - 0.003, "clip it, or pass its value_range"),
        (torch.full((2, 3, 8, 8), torch.nan), "NaN or Inf"),
        (torch.full((2, 3, 8, 8), torch.nan).half(), "NaN or Inf"),
        (torch.full((2, 3, 8, 8), torch.inf).bfloat16(), "NaN or Inf"),
        (FRAMES > 9, "bool has no brightness"),
        (FRAMES.astype("datetime64[s]"), "has no brightness"),
        (FRAMES.astype(object), "has no brightness"),
        (FRAMES[0], "put the picture in a list"),
        (iter(FRAMES[0]), "put the picture in a list"),
        (Image.fromarray(FRAMES[0]), "put the picture in a list"),
        ((frame[: 32 - at] for at, frame in enumerate(FRAMES)), "differ in shape.*at frame 1,"),
        ([FRAMES[0], FRAMES[1], FLOATS[2].permute(1, 2, 0)], "differ in type.*at frame 2, float"),
        (itertools.chain(FRAMES / 255, [FRAMES[0] * 9.0]), "outside value_range"),
    ],
)
def test_what_is_no_clip_is_refused_at_once(folder: RunFolder, video: Any, said: str) -> None:
    """In the caller's line; nothing is left, also where it shows midway."""
    with pytest.raises(VideoError, match=said) as caught:
        stage(folder, video, value_range=(0.0, 1.0))
    assert "\n" not in str(caught.value)
    assert names(folder) == []


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"hello\r\n" * 99, "holds text"),
        (b"x", "holds text"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "is a picture"),
        (b"\xff\xd8\xff\xe0\0\x10JFIF", "is a picture"),
    ],
)
def test_a_file_that_is_clearly_no_video_is_refused_at_once(
    folder: RunFolder, tmp_path: Path, content: bytes, said: str
) -> None:
    """What takes decoding to find is found later."""
    path = tmp_path / "clip.mp4"
    path.write_bytes(content)
    with pytest.raises(VideoError, match=said):
        stage(folder, path, value_range=(0, 1))
    assert names(folder) == []


def test_a_generator_that_fails_leaves_nothing(folder: RunFolder) -> None:
    """Its own error comes out."""

    def failing() -> Iterator[np.ndarray]:
        yield FRAMES[0]
        raise KeyError("no such frame")

    with pytest.raises(KeyError, match="no such frame"):
        stage(folder, failing(), value_range=(0, 1))
    assert names(folder) == []


def test_a_full_disk_leaves_nothing(folder: RunFolder, tmp_path: Path) -> None:
    """No half clip stays behind under a name that counts, from wherever it came."""
    write_mp4(FRAMES, tmp_path / "clip.mp4", fps=8)
    for video in (FRAMES, FLOATS, iter(FRAMES), tmp_path / "clip.mp4"):
        with full_disk(), pytest.raises(OSError, match="File too large"):
            stage(folder, video, value_range=(0, 1))
    assert names(folder) == []


# What looks wrong


@pytest.mark.parametrize(
    ("video", "value_range", "said"),
    [
        (FRAMES // 255 + FRAMES % 2, (0, 1), "values are 0 and 1 of 0..255; multiply by 255"),
        (FLOATS, (0, 255), r"looks black: .*; is value_range \(0, 1\)\?"),
        (FLOATS / 255, (0, 1), "looks black: .*; was it scaled twice"),
        (FLOATS / 64 - 1, (-1, 1), "looks black"),
        (FLOATS, (-1, 1), r"looks washed out: .*; is value_range \(0, 1\)\?"),
        (iter(FRAMES % 2), (0, 1), "looks black"),
    ],
)
def test_what_looks_wrong_is_kept_and_said(
    folder: RunFolder, video: Any, value_range: tuple[float, float], said: str
) -> None:
    """To the caller, and beside the clip."""
    if isinstance(video, np.ndarray):
        video = np.minimum(video, 1)
    with pytest.warns(UserWarning, match=said):
        name = stage(folder, video, value_range=value_range)
    assert open_staged(folder.media / name).remark.startswith("looks ")


@pytest.mark.parametrize(
    ("video", "value_range"),
    [
        (np.zeros((2, 8, 8, 3), np.uint8), (0, 1)),
        (np.zeros((2, 8, 8, 3)), (0, 255)),
        (np.full((2, 8, 8, 3), -1.0), (-1, 1)),
        (np.zeros((2, 8, 8, 3)), (-1, 1)),
        (FRAMES // 32, (0, 1)),
        (FLOATS / 16, (0, 1)),
        (FLOATS, (0, 1)),
        (FLOATS * 255, (0, 255)),
    ],
)
def test_what_is_dark_or_black_is_a_clip(
    folder: RunFolder, video: Any, value_range: tuple[float, float]
) -> None:
    """A black clip is legal, and nothing is said of a dark one that can be seen."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        name = stage(folder, video, value_range=value_range)
    assert open_staged(folder.media / name).remark == ""


# Size and company


def test_a_long_iterator_is_never_in_memory(folder: RunFolder) -> None:
    """10,000 frames pass one by one, and are read back one by one."""
    frame = np.zeros((64, 64, 3), np.uint8)

    def many() -> Iterator[np.ndarray]:
        for number in range(10_000):
            frame[:] = number % 256
            yield frame

    tracemalloc.start()
    name = stage(folder, many(), value_range=(0, 1))
    pictures = open_staged(folder.media / name).pictures
    levels = [int(pictures[index][0, 0, 0]) for index in (0, 5000, 9999)]
    most_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert pictures.shape == (10_000, 64, 64, 3)
    assert levels == [0, 5000 % 256, 9999 % 256]
    assert most_bytes < 4 << 20


def test_two_processes_may_stage_at_once(folder: RunFolder) -> None:
    """Equal clips, from threads and from a forked child, never share a name or a file."""

    def stage_some(_: int) -> list[str]:
        return [stage(folder, FRAMES[:1, :2, :2], value_range=(0, 1)) for _ in range(25)]

    pid = os.fork()
    if pid == 0:
        stage_some(0)
        os._exit(0)
    with ThreadPoolExecutor(4) as pool:
        found = [one for some in pool.map(stage_some, range(4)) for one in some]
    assert os.waitpid(pid, 0)[1] == 0
    assert len(names(folder)) == 125
    assert set(found) <= set(names(folder))
    for name in names(folder):
        np.testing.assert_array_equal(np.load(folder.media / name), FRAMES[:1, :2, :2])


def test_staging_loads_no_codec(folder: RunFolder) -> None:
    """What a trainer pays for is numpy."""
    code = (
        "import sys, numpy; from pathlib import Path\n"
        "from opusclip_mlops import media; from opusclip_mlops.folder import RunFolder\n"
        "frames = numpy.zeros((2, 8, 8, 3), 'uint8')\n"
        "media.stage(RunFolder(Path(sys.argv[1])), frames, value_range=(0, 1))\n"
        "print(*{'av', 'PIL', 'torch'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder.path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == []
