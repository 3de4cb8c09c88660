"""Facts about `opusclip_mlops.scoring`, on real clips and on files that keep every pixel."""

import math
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch

from opusclip_mlops.errors import VideoError
from opusclip_mlops.frame_sources import Taken
from opusclip_mlops.metrics.distribution import FID
from opusclip_mlops.metrics.frame import PSNR, SSIM
from opusclip_mlops.metrics.lpips import LPIPS
from opusclip_mlops.passports import Score
from opusclip_mlops.scoring import PAIRS, TEMPORAL, calculate_video_metrics, evaluate_videos
from opusclip_mlops.temporal import TemporalScores
from opusclip_mlops.video import read_clip
from tests.clips import CARPHONE, clip_path, moving, write_file

DISTORTED = clip_path("carphone_distorted.mp4")
SIXTEEN = Taken(max_frames=16)

Pair = tuple[np.ndarray, np.ndarray]


@pytest.fixture(scope="module")
def pair() -> Pair:
    """Sixteen distorted frames and their pristine originals."""
    return tuple(read_clip(path, max_frames=16).frames for path in (DISTORTED, CARPHONE))


@pytest.fixture(scope="module")
def found(pair: Pair) -> dict[str, Score]:
    """The usual metrics of that pair."""
    return calculate_video_metrics(*pair)


def noise(count: int, seed: int = 0, side: int = 40) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), np.uint8)


def test_a_pair_is_measured_by_psnr_and_ssim(pair: Pair, found: dict[str, Score]) -> None:
    """The values of the metrics' own classes, over the clip at once, as numbers with passports."""
    psnr, ssim = PSNR(), SSIM()
    psnr.update(*pair)
    ssim.update(*pair)
    expected = {"psnr": float(psnr.compute()), "ssim": float(ssim.compute())}
    assert found == pytest.approx(expected, abs=1e-9)
    error = np.mean((pair[0].astype(float) - pair[1]) ** 2)
    assert found["psnr"] == pytest.approx(10 * math.log10(255**2 / error), abs=1e-5)
    assert {one.passport.count for one in found.values()} == {16}
    assert len({one.passport.reference for one in found.values()}) == 1


def test_files_and_tensors_give_the_same_numbers(pair: Pair, tmp_path: Path) -> None:
    """Files, and float tensors in -1..1 and 0..1, channels first, are what they stand for."""
    pair = pair[0][:2], pair[1][:2]
    found = calculate_video_metrics(*pair)
    for black, white in ((-1.0, 1.0), (0.0, 1.0)):
        width = white - black
        ours, theirs = (torch.from_numpy(x).permute(0, 3, 1, 2) / 255 * width + black for x in pair)
        assert calculate_video_metrics(ours, theirs, value_range=(black, white)) == found
    files = [
        write_file(tmp_path / f"{name}.mkv", frames, codec="ffv1", pix_fmt="bgr0")
        for name, frames in zip(("ours", "theirs"), pair, strict=True)
    ]
    for one, other in (files, map(str, files), (files[0], pair[1])):
        by_file = calculate_video_metrics(one, other)
        assert by_file == found
        assert all(by_file[name].passport == found[name].passport for name in found)


def test_one_frame_and_black_frames_have_an_answer() -> None:
    """Identical pictures: PSNR is inf and SSIM 1; a bright one beside black: 0 dB."""
    black = np.zeros((1, 20, 20, 3), np.uint8)
    same = calculate_video_metrics(black, black.copy())
    assert (same["psnr"], same["ssim"]) == (math.inf, 1.0)
    assert same["psnr"].passport.interval is None
    assert calculate_video_metrics(black + np.uint8(255), black)["psnr"] == 0.0


def test_unlike_pairs_are_refused(pair: Pair) -> None:
    """Missing frames, another size, pictures below the window, a range that is not said."""
    for given, told in (
        ((pair[0][:15], pair[1]), "the video has 15 frames and its target has more"),
        ((pair[0][:, :, :170], pair[1]), "the video is 170x144 and its target 176x144"),
        ((pair[0][:, :10, :40], pair[1][:, :10, :40]), "40x10 are too small for ssim"),
        ((pair[0] / 127.5 - 1, pair[1]), r"runs from -1 to .*, outside value_range \(0, 1\)"),
    ):
        with pytest.raises(VideoError, match=told):
            calculate_video_metrics(*given)


def test_a_video_is_measured_beside_its_reference_and_in_time(pair: Pair) -> None:
    """All that the metrics say of the frames, each with what was taken and at which rate."""
    [one] = evaluate_videos([DISTORTED], [CARPHONE], taken=Taken(max_frames=5)).videos
    assert (one.video, one.reference) == (str(DISTORTED), str(CARPHONE))
    assert (one.frames, one.width, one.height) == (5, 176, 144)
    assert one.fps == pytest.approx(29.97, abs=0.01)
    in_time = TemporalScores()
    in_time.add(pair[0][:5])
    expected = {**calculate_video_metrics(pair[0][:5], pair[1][:5]), **in_time.scores()}
    assert dict(one.scores) == pytest.approx(expected, rel=1e-9)
    assert {s.passport.sampling for s in one.scores.values()} == {"every frame, the first 5"}
    settings = one.scores["flicker"].passport.settings
    assert (settings["size"], settings["fps"]) == ("176x144", "29.97")


def test_only_what_is_asked_for_is_measured() -> None:
    """In the order of the list, whatever the order asked in; without a reference, only in time."""
    asked = evaluate_videos([CARPHONE], metrics=["cuts", "flicker"], taken=SIXTEEN)
    assert [*asked.videos[0].scores] == ["flicker", "cuts"]
    everything = evaluate_videos([CARPHONE], taken=Taken(max_frames=3))
    assert {*everything.videos[0].scores} <= {*TEMPORAL}


def test_each_video_belongs_to_its_own_reference() -> None:
    """One by one in their order, and one reference for all."""
    videos = [noise(3, seed) for seed in range(3)]
    own = evaluate_videos(videos, [one.copy() for one in videos], metrics=["psnr"])
    assert [one.scores["psnr"] for one in own.videos] == [math.inf] * 3
    assert [one.reference for one in own.videos] == [f"reference {n}" for n in (1, 2, 3)]
    shared = evaluate_videos(videos, videos[1:2], metrics=["psnr"])
    assert [math.isinf(one.scores["psnr"]) for one in shared.videos] == [False, True, False]
    with pytest.raises(VideoError, match="there are 3 videos and 2 references: pass one"):
        evaluate_videos(videos, videos[:2], metrics=["psnr"])


def test_files_of_two_folders_belong_together_by_name(tmp_path: Path) -> None:
    """Whatever their order and endings; one without its like is an error, not a wrong pair."""
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    for folder, names in ((ours, ("b.mkv", "c.mkv")), (theirs, ("a.avi", "b.avi", "c.avi"))):
        folder.mkdir()
        for name in names:
            frames = noise(3, ord(name[0]))
            write_file(folder / name, frames, codec="ffv1", pix_fmt="bgr0")
    found = evaluate_videos([ours], [theirs], metrics=["psnr"])
    assert [one.scores["psnr"] for one in found.videos] == [math.inf] * 2
    (theirs / "c.mkv").write_bytes((theirs / "c.avi").read_bytes())
    with pytest.raises(VideoError, match=r"c.mkv is not the only reference of its name"):
        evaluate_videos([ours], [theirs], metrics=["psnr"])
    (theirs / "c.avi").unlink()
    (theirs / "c.mkv").unlink()
    with pytest.raises(VideoError, match=r"c.mkv has no reference of its name"):
        evaluate_videos([ours], [theirs], metrics=["psnr"])


def test_what_cannot_be_measured_is_left_out_with_its_reason() -> None:
    """The rest is measured; where nothing can be, it is an error."""
    video = noise(2, side=60)
    [one] = evaluate_videos([video], [noise(2, 1, 60)], metrics=["psnr", "ms_ssim"]).videos
    assert [*one.scores] == ["psnr"]
    assert "60x60 are too small for ms_ssim: pass at least 176" in one.left_out["ms_ssim"]
    with pytest.raises(VideoError, match="video 1: pictures of 60x60 are too small for ms_ssim"):
        evaluate_videos([video], [video], metrics=["ms_ssim"])


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("level", [0, 255])
def test_few_even_frames_have_no_value_that_is_none(count: int, level: int) -> None:
    """Black or white, one to three frames: a number, or left out with its reason, never NaN."""
    video = np.full((count, 40, 40, 3), level, np.uint8)
    [one] = evaluate_videos([video], [video], metrics=["psnr", "ssim", *TEMPORAL]).videos
    assert {*one.scores, *one.left_out} == {"psnr", "ssim", *TEMPORAL}
    assert not [name for name, score in one.scores.items() if math.isnan(score)]
    assert all(one.left_out.values())
    assert one.scores["black_frames"] == float(level == 0)


def test_memory_does_not_grow_with_the_length(tmp_path: Path) -> None:
    """360 frames more take less than what they are, though one value of each is kept."""
    peaks = []
    for count in (40, 400):
        frames = np.tile(moving(10, 120, 160), (count // 10, 1, 1, 1))
        path = write_file(tmp_path / f"{count}.mp4", frames, options={"preset": "ultrafast"})
        del frames
        tracemalloc.start()
        evaluate_videos([path], [path], metrics=["psnr", "frozen_frames"])
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 360 * 120 * 160 * 3


def test_lpips_is_that_of_its_class(pair: Pair) -> None:
    """By name of its network, beside the other metrics."""
    short = tuple(one[:3] for one in pair)
    metric = LPIPS("alex")
    metric.update(*short)
    found = evaluate_videos([short[0]], [short[1]], metrics=["lpips_alex"])
    score = found.videos[0].scores["lpips_alex"]
    assert score == pytest.approx(float(metric.compute()), rel=1e-5)
    assert (score.passport.metric, score.passport.count) == ("lpips_alex", 3)


def test_sets_are_measured_as_a_whole(pair: Pair) -> None:
    """FID is that of its class over all frames; KID's subsets are no larger than the sets."""
    ours, theirs = (one[:3] for one in pair)
    found = evaluate_videos([ours[:2], ours[2:]], [theirs], metrics=["fid", "kid"])
    fid = FID()
    fid.update(theirs, real=True)
    fid.update(ours, real=False)
    assert found.total["fid"] == pytest.approx(float(fid.compute()), rel=1e-4)
    assert found.total["fid"].passport.reference == fid.score().passport.reference
    assert found.total["kid"].passport.settings["subset_size"] == 3
    assert [dict(one.scores) for one in found.videos] == [{}, {}]


def test_a_set_of_one_frame_loses_nothing_else() -> None:
    """What a video has by itself is there, and why there is no FID; alone it is an error."""
    video = noise(1, side=80)
    found = evaluate_videos([video], [video], metrics=["psnr", "fid"])
    assert found.videos[0].scores["psnr"] == math.inf
    assert "give at least 2 of each" in found.left_out["fid"]
    with pytest.raises(VideoError, match="fid over 1 frames and a reference of 1: give at least"):
        evaluate_videos([video], [video], metrics=["fid"])


def test_a_file_that_is_cut_off_is_not_compared_as_if_it_were_whole(tmp_path: Path) -> None:
    """What it still holds is fewer frames than its reference has."""
    whole = write_file(tmp_path / "whole.mkv", noise(12), codec="ffv1", pix_fmt="bgr0")
    content = whole.read_bytes()
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(content[: len(content) // 2])
    with pytest.raises(VideoError, match=r"cut.mkv has \d+ frames and .*whole.mkv has more"):
        evaluate_videos([cut], [whole], metrics=["psnr"])


def test_progress_is_told() -> None:
    """The video at hand, and its frames so far."""
    told: list[tuple[str, int]] = []
    videos = [noise(20), noise(3)]
    evaluate_videos(videos, metrics=["cuts"], show=lambda *one: told.append(one))
    assert told == [("video 1", 16), ("video 1", 20), ("video 2", 3)]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"metrics": ["psnr", "vmaf"]}, "no metric is called 'vmaf': there are psnr, ssim"),
        ({"metrics": ["ssim"]}, "ssim is measured against a reference: pass one"),
        ({"metrics": ["fid"]}, "fid is measured against a reference"),
        ({"metrics": []}, "no metric was asked for"),
        ({"videos": []}, "no video was given"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, list[str]], told: str) -> None:
    """One line that says what to do."""
    with pytest.raises(VideoError, match=told):
        evaluate_videos(**{"videos": [noise(2)], **options})  # type: ignore[arg-type]


def test_pair_metrics_are_named_as_in_their_passports() -> None:
    """A name asked for is the name it is recorded by."""
    video = noise(1, side=200)
    [one] = evaluate_videos([video], [video], metrics=[*PAIRS]).videos
    assert {name: score.passport.metric for name, score in one.scores.items()} == {
        name: name for name in PAIRS
    }
