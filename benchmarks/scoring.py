"""Part `scoring`: how many pairs of frames a second the frame metrics take, beside torchmetrics.

Both are given the same uint8 pictures of 320 x 180, as a decoder leaves them, and make the same
value of them; torchmetrics' own classes are given what they ask for, floats with channels first.
They take turns in one process; told is the rate, and the median of the turns' ratios is judged by
the interval that holds 95 % of bootstrap resamples. Videos are also measured from file to score,
everything that `opusclip evaluate` does by default.
"""

import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.figures import Figure, interval_of, paired_ratios

PART = "scoring"
SHAPE = (16, 180, 320, 3)
TURNS, QUICK_TURNS = 15, 3
LEAST = 0.9
FRAMES, QUICK_FRAMES = 240, 48


def measure(folder: Path, *, quick: bool) -> list[Figure]:
    """Measure each metric, and a file as a whole."""
    pair = _pair()
    turns = QUICK_TURNS if quick else TURNS
    found = [_compared(name, ways, pair, turns) for name, ways in _metrics().items()]
    return [*found, _whole(folder, QUICK_FRAMES if quick else FRAMES)]


def _pair() -> tuple[Any, Any]:
    import numpy as np

    draw = np.random.default_rng(0)
    y, x = np.mgrid[0 : SHAPE[1], 0 : SHAPE[2]]
    slopes = np.stack([x + y, x + 2 * y, 2 * x], axis=-1) // 4
    frames = np.stack([slopes + 3 * t for t in range(SHAPE[0])]) % 256
    noisy = (frames + draw.normal(0, 6, frames.shape)).clip(0, 255)
    return noisy.astype(np.uint8), frames.astype(np.uint8)


def _metrics() -> Mapping[str, tuple[Any, Any]]:
    from torchmetrics import image

    from opusclip_mlops.metrics import frame

    theirs = {"data_range": 255.0}
    return {
        "psnr": (frame.PSNR(), image.PeakSignalNoiseRatio(**theirs)),
        "ssim": (frame.SSIM(), image.StructuralSimilarityIndexMeasure(**theirs)),
        "ms_ssim": (frame.MSSSIM(), image.MultiScaleStructuralSimilarityIndexMeasure(**theirs)),
    }


def _compared(name: str, ways: tuple[Any, Any], pair: tuple[Any, Any], turns: int) -> Figure:
    import torch

    ours, theirs = ways

    def direct() -> None:
        theirs.update(*(torch.from_numpy(one).permute(0, 3, 1, 2).float() for one in pair))

    calls: tuple[Callable[[], None], ...] = (lambda: ours.update(*pair), direct)
    values = []
    for call, metric in zip(calls, ways, strict=True):  # the first one of each is not timed
        call()
        values.append(float(metric.compute()))
    if abs(values[0] - values[1]) > 1e-3:
        raise AssertionError(f"{name} is {values[0]}, and torchmetrics says {values[1]}")
    rates: tuple[list[float], list[float]] = ([], [])
    for turn in range(turns):
        for which in (0, 1) if turn % 2 else (1, 0):
            rates[which].append(_rate(calls[which], ways[which]))
    ratios = paired_ratios(*rates)
    return Figure(
        part=PART,
        what=f"{name}, 320x180",
        ours=statistics.median(rates[0]),
        unit="frames/s",
        peer="torchmetrics",
        theirs=statistics.median(rates[1]),
        at_least=LEAST,
        interval=interval_of(ratios),
    )


def _rate(call: Callable[[], None], metric: Any) -> float:
    metric.reset()
    began_s = time.perf_counter()
    call()
    metric.compute()
    return SHAPE[0] / (time.perf_counter() - began_s)


def _whole(folder: Path, count: int) -> Figure:
    """A file beside itself, by what `opusclip evaluate` measures by default."""
    import numpy as np

    from opusclip_mlops.scoring import evaluate_videos
    from opusclip_mlops.video import write_mp4

    path = folder / "clip.mp4"
    frames = _pair()[0]
    write_mp4(np.tile(frames, (count // len(frames), 1, 1, 1)), path, fps=24)
    began_s = time.perf_counter()
    evaluate_videos([path], [path])
    rate = count / (time.perf_counter() - began_s)
    return Figure(part=PART, what="a file beside another", ours=rate, unit="frames/s")
