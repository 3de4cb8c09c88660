"""Facts about `opusclip_mlops.metrics.resampling`: distances, and how far draws move them."""

import math

import pytest
import torch
from torch import Tensor
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import poly_mmd

from opusclip_mlops.metrics.resampling import (
    frechet_distance,
    frechet_draws,
    inception_draws,
    interval_round,
    kernel_draws,
)


def normal(count: int, width: int, *, seed: int, shift: float = 0.0, scale: float = 1.0) -> Tensor:
    """Features of a normal distribution."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, width, generator=generator, dtype=torch.float64) * scale + shift


class Identity(torch.nn.Module):
    num_features: int

    def forward(self, features: Tensor) -> Tensor:
        return features


def torchmetrics_distance(real: Tensor, fake: Tensor) -> float:
    """What torchmetrics makes of two sets of features."""
    identity = Identity()
    identity.num_features = real.shape[1]
    metric = FrechetInceptionDistance(identity)
    metric.update(real, real=True)
    metric.update(fake, real=False)
    return float(metric.compute())


@pytest.mark.parametrize(("counts", "width"), [((200, 90), 5), ((20, 30), 64), ((10, 300), 64)])
def test_the_distance_is_torchmetrics(counts: tuple[int, int], width: int) -> None:
    """With more items than features and with fewer."""
    real = normal(counts[0], width, seed=1)
    fake = normal(counts[1], width, seed=2, shift=0.3, scale=1.5)
    assert frechet_distance(real, fake) == pytest.approx(
        torchmetrics_distance(real, fake), rel=1e-6
    )


def test_the_distance_of_known_distributions() -> None:
    """Sets of mean 0 and 3 and standard deviation 1 and 2, in one dimension: 9 + 1."""
    real = torch.tensor([[-1.0], [1.0]]) / math.sqrt(2)
    fake = 2 * real + 3
    assert frechet_distance(real, fake) == pytest.approx(10)
    assert frechet_distance(real, real) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("count", [2, 20, 300])
def test_equal_sets_are_at_zero(count: int) -> None:
    """Exactly enough also where there are fewer items than features."""
    real = normal(count, 64, seed=1)
    assert frechet_distance(real, real.flip(0)) == pytest.approx(0, abs=1e-9)


def coverage(shift: float, count: int, trials: int = 50) -> float:
    """Of how many intervals the true distance, as a mean over many sets, is in."""
    sets = [
        (normal(count, 6, seed=2 * trial), normal(count, 6, seed=2 * trial + 1, shift=shift))
        for trial in range(300)
    ]
    values = [frechet_distance(*pair) for pair in sets]
    true, hits = sum(values) / len(values), 0
    for seed, (pair, value) in enumerate(zip(sets[:trials], values, strict=False)):
        draws = frechet_draws(*pair, resamples=60, seed=seed)
        found = interval_round(value, draws, unit="items", seed=seed)
        assert found is not None
        hits += found.low <= true <= found.high
    return hits / trials


def test_intervals_of_frechet_distances_hold_the_true_one() -> None:
    """About 95 of 100 do, of sets that differ and of sets that do not."""
    assert coverage(0.7, 40) >= 0.88
    assert coverage(0.0, 40) >= 0.88


def test_draws_of_the_kernel_lie_round_its_distance() -> None:
    """Unbiased: their mean is that of all pairs, by torchmetrics' formula."""
    real, fake = normal(40, 6, seed=1), normal(40, 6, seed=2, shift=0.5)
    draws = kernel_draws(real, fake, resamples=4000, seed=0)
    expected = float(poly_mmd(real, fake))
    assert float(draws.mean()) == pytest.approx(expected, abs=4 * float(draws.std()) / 60)


def test_draws_of_an_inception_score_lie_round_it() -> None:
    """Every picture of a class of its own: as many classes as were drawn."""
    draws = inception_draws(torch.eye(50) * 1000, splits=1, resamples=200, seed=0)
    assert float(draws.mean()) == pytest.approx(50 * (1 - (1 - 1 / 50) ** 50), rel=0.25)
    uniform = inception_draws(torch.zeros(50, 10), splits=5, resamples=20, seed=0)
    torch.testing.assert_close(uniform, torch.ones(20, dtype=torch.float64))


def test_draws_are_the_same_each_time() -> None:
    """By their seed, and without torch's own generator."""
    real, fake = normal(20, 4, seed=1), normal(30, 4, seed=2)
    state = torch.get_rng_state()
    for draw in (frechet_draws, kernel_draws):
        first, again = (draw(real, fake, resamples=5, seed=3) for _ in range(2))
        assert torch.equal(first, again)
        assert not torch.equal(first, draw(real, fake, resamples=5, seed=4))
    assert torch.equal(torch.get_rng_state(), state)


def test_an_interval_has_the_draws_spread() -> None:
    """It lies round the value, and not below what a distance can be."""
    draws = torch.linspace(10, 20, 1001)
    found = interval_round(3.0, draws, unit="frames", seed=9)
    assert found is not None
    assert (found.low, found.high) == (pytest.approx(3 - 4.75), pytest.approx(3 + 4.75))
    assert (found.level, found.resamples, found.seed) == (0.95, 1001, 9)
    assert found.method == "bootstrap over frames, laid round the value"
    bounded = interval_round(3.0, draws, unit="frames", seed=9, least=0.0)
    assert bounded is not None
    assert bounded.low == 0
    assert interval_round(3.0, torch.empty(0), unit="frames", seed=9) is None
