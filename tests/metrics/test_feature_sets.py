"""Facts about `opusclip_mlops.metrics.feature_sets`: what an extractor is given, what is kept."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from opusclip_mlops.metrics.distribution import FID, FrechetVideoDistance
from tests.metrics.extractors import Projection, frames


class Watching(Projection):
    """Keeps what it was given."""

    def __call__(self, pictures: Tensor) -> Tensor:
        self.given = pictures
        return super().__call__(pictures)


@pytest.mark.parametrize("value_range", [None, (0.0, 1.0), (-1.0, 1.0)])
@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("array", [False, True])
def test_an_extractor_is_given_bytes(value_range: Any, first: bool, array: bool) -> None:
    """Whatever the caller has: uint8 (N,H,W,3), the same pictures."""
    extractor = Watching()
    given = frames(3)
    if value_range is not None:
        given = given / 255 * (value_range[1] - value_range[0]) + value_range[0]
    given = given.permute(0, 3, 1, 2) if first else given
    FID(extractor, value_range=value_range).update(given.numpy() if array else given, real=True)
    assert torch.equal(extractor.given, frames(3))


def test_an_extractor_of_clips_is_given_clips() -> None:
    """uint8 (N,T,H,W,3)."""
    extractor = Watching()
    clips = frames(6).reshape(2, 3, 12, 12, 3)
    FrechetVideoDistance(extractor).update(clips.movedim(-1, -3), real=False)
    assert torch.equal(extractor.given, clips)


class Layer(nn.Module):
    name = "layer"
    weights_sha256 = "ef" * 32

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 2)

    def forward(self, pictures: Tensor) -> Tensor:
        return self.inner(pictures.to(self.inner.weight.dtype).mean((1, 2)))


def test_an_extractor_that_is_a_module_belongs_to_the_metric() -> None:
    """It moves with it, and no gradient is kept of its features."""
    metric = FID(Layer())
    assert [name for name, _ in metric.named_parameters()] == [
        "extractor.inner.weight",
        "extractor.inner.bias",
    ]
    metric.double()  # torchmetrics keeps a metric's own type
    metric.update(frames(3), real=True)
    assert metric.real_features[0].dtype == torch.float32
    assert not metric.real_features[0].requires_grad


def test_features_are_kept_and_no_pictures() -> None:
    """So that memory grows by a few numbers a picture."""
    metric = FID(Projection())
    metric.update(frames(3, size=64), real=True)
    metric.update(frames(2, size=64), real=True)
    assert [tuple(part.shape) for part in metric.real_features] == [(24,), (16,)]


def test_the_references_digest_is_of_its_pictures() -> None:
    """One changed pixel, one picture twice, the same bytes in another shape: another reference."""
    changed = frames(3)
    changed[0, 0, 0, 0] ^= 1
    given = (
        frames(3),
        changed,
        torch.cat([frames(3), frames(3)[:1]]),
        frames(3).reshape(3, 6, 24, 3),
    )
    found = []
    for pictures in given:
        metric = FID(Projection(cell=2))
        metric.update(pictures, real=True)
        found.append(int(metric.real_digest))
    assert len(set(found)) == 4
