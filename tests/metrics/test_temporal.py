"""Facts about `opusclip_mlops.metrics.temporal`: clips in, their metric over all of them out."""

import numpy as np
import pytest
import torch

from opusclip_mlops.errors import VideoError
from opusclip_mlops.metrics.temporal import TemporalMetric
from opusclip_mlops.temporal import NAMES, TemporalScores, added, value_of


@pytest.fixture(scope="module")
def clips() -> np.ndarray:
    """Three clips of eight frames: slow clouds of noise, each brighter and quicker."""
    random = np.random.default_rng(0)
    clouds = random.uniform(0, 60, (3, 6, 8, 10, 3)).repeat(4, 2).repeat(4, 3)
    return (clouds + np.arange(3)[:, None, None, None, None] * 40).astype(np.uint8)


@pytest.mark.parametrize("name", NAMES)
def test_a_metric_is_what_the_clips_add_up_to(clips: np.ndarray, name: str) -> None:
    """Over several updates and ranks too: states are sums."""
    totals = []
    for clip in clips:
        scores = TemporalScores()
        scores.add(clip)
        totals.append(scores.totals())
    expected = value_of(name, added(totals)[name])
    first, second = TemporalMetric(name), TemporalMetric(name)
    first.update(clips[:1])
    second.update(clips[1:])
    first.merge_state(second)
    assert float(first.compute()) == pytest.approx(expected)
    score = first.score()
    assert score == pytest.approx(expected)
    assert (score.passport.metric, score.passport.count) == (name, added(totals)[name].count)


def test_layouts_and_ranges_give_the_same_numbers(clips: np.ndarray) -> None:
    """Floats in -1..1 with channels first are the clips they stand for."""
    plain, floats = TemporalMetric("flicker"), TemporalMetric("flicker", value_range=(-1.0, 1.0))
    plain.update(clips)
    floats.update(torch.from_numpy(clips).movedim(-1, -3) / 127.5 - 1)
    assert plain.compute() == floats.compute() > 0


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_what_a_clip_does_not_define_is_refused(clips: np.ndarray) -> None:
    """Two frames do not flicker: the message names the clip, and nothing is counted."""
    metric = TemporalMetric("flicker")
    with pytest.raises(VideoError, match=r"flicker is not defined for a clip of \(2, 32, 40, 3\)"):
        metric.update(clips[:, :2])
    cut = clips[:2].copy()
    cut[1, :2], cut[1, 2:] = 0, 255
    with pytest.raises(VideoError, match=r"not defined for a clip of \(4, 32, 40, 3\)"):
        metric.update(cut[:, :4])
    with pytest.raises(VideoError, match="flicker over no clips: update it first"):
        metric.compute()
    with pytest.raises(VideoError, match="over no clips"):
        metric.score()
    metric.update(clips)
    metric.reset()
    with pytest.raises(VideoError, match="over no clips"):
        metric.compute()


def test_an_unknown_metric_is_refused() -> None:
    """The message names those that there are."""
    with pytest.raises(VideoError, match="no metric 'flickr': pass one of flicker, warping_error"):
        TemporalMetric("flickr")
