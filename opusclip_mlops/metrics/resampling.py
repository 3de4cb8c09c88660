"""How far distances between sets of features move when other items had been drawn.

A draw takes as many items as a set has, with replacement. It holds fewer different ones, so that
its distances are larger than the set's own: their spread is what counts, and the interval is laid
round the value that was measured. Items that are alike, such as the frames of one clip, move less
than as many independent ones would: the interval is too narrow then.
"""

import torch
from torch import Tensor

from opusclip_mlops.passports import Interval

LEVEL = 0.95

_Rows = tuple[Tensor, Tensor]  # features (N,D), and how often each counts (N,)


def frechet_distance(real: Tensor, fake: Tensor) -> float:
    """Fréchet distance between the normal distributions that two sets of features have.

    |m1 - m2|² + tr(S1 + S2 - 2 (S1 S2)^½). The last trace is the sum of the singular values of
    one centred set times the other, which is exact and fast also where there are fewer items
    than features.

    Args:
        real: (N, D), N at least 2.
        fake: (M, D), M at least 2.

    Returns:
        0 or more; 0 for sets of equal mean and covariance.
    """
    ones = torch.ones(len(real)), torch.ones(len(fake))
    return _distance((real.double().cpu(), ones[0]), (fake.double().cpu(), ones[1]))


def frechet_draws(real: Tensor, fake: Tensor, *, resamples: int, seed: int) -> Tensor:
    """Fréchet distances of draws from both sets, (resamples,)."""
    generator = torch.Generator().manual_seed(seed)
    sets = real.double().cpu(), fake.double().cpu()
    counts = [_counts(len(one), resamples, generator) for one in sets]
    draws = zip(*counts, strict=True)
    return torch.tensor([_distance((sets[0], one), (sets[1], other)) for one, other in draws])


def _distance(first: _Rows, second: _Rows) -> float:
    (mean, rows), (other_mean, other_rows) = _centred(*first), _centred(*second)
    apart = (mean - other_mean).square().sum()
    spreads = rows.square().sum() + other_rows.square().sum()
    shared = torch.linalg.svdvals(_square(rows) @ _square(other_rows).T).sum()
    return max(0.0, float(apart + spreads - 2 * shared))


def _centred(features: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """The mean, and rows whose squares sum up to the covariance; an item is there once."""
    drawn = counts > 0
    features, weights = features[drawn], counts[drawn].to(features.dtype)[:, None]
    total = weights.sum()
    mean = (features * weights).sum(0) / total
    return mean, (features - mean) * (weights / (total - 1)).sqrt()


def _square(rows: Tensor) -> Tensor:
    """Rows with the same covariance, no more of them than features."""
    if len(rows) <= rows.shape[1]:
        return rows
    reduced: Tensor = torch.linalg.qr(rows, mode="r").R
    return reduced


def _counts(size: int, resamples: int, generator: torch.Generator) -> Tensor:
    """How often each of `size` items is in each draw, (resamples, size)."""
    items = torch.randint(size, (resamples, size), generator=generator)
    empty = torch.zeros(resamples, size, dtype=torch.float64)
    return empty.scatter_add_(1, items, torch.ones(resamples, size, dtype=torch.float64))


def kernel_draws(real: Tensor, fake: Tensor, *, resamples: int, seed: int) -> Tensor:
    """Squared kernel distances, over all pairs, of draws from both sets, (resamples,).

    The kernel is KID's, (x·y / D + 1)³. An item that was drawn twice is not a pair.
    """
    generator = torch.Generator().manual_seed(seed)
    first, second = real.double().cpu(), fake.double().cpu()
    counts = _counts(len(first), resamples, generator), _counts(len(second), resamples, generator)
    across = ((counts[0] @ _kernel(first, second)) * counts[1]).sum(1)
    across /= len(first) * len(second)
    return _within(first, counts[0]) + _within(second, counts[1]) - 2 * across


def _kernel(first: Tensor, second: Tensor) -> Tensor:
    return (first @ second.T / first.shape[1] + 1) ** 3


def _within(features: Tensor, counts: Tensor) -> Tensor:
    """The mean of the kernel over the pairs of different items of each draw."""
    kernel = _kernel(features, features)
    same = counts.square() @ kernel.diagonal()
    pairs = counts.sum(1).square() - counts.square().sum(1)
    return (((counts @ kernel) * counts).sum(1) - same) / pairs


def inception_draws(logits: Tensor, *, splits: int, resamples: int, seed: int) -> Tensor:
    """Inception scores of draws from one set of logits in a given order, (resamples,)."""
    counts = _counts(len(logits), resamples, torch.Generator().manual_seed(seed))
    share = logits.double().cpu().softmax(1)
    order = torch.xlogy(share, share).sum(1)
    parts = []
    for places in torch.arange(len(logits)).chunk(splits):
        drawn = counts[:, places] / counts[:, places].sum(1, keepdim=True).clamp(min=1)
        mean = drawn @ share[places]
        parts.append((drawn @ order[places] - torch.xlogy(mean, mean).sum(1)).exp())
    return torch.stack(parts).mean(0)


def interval_round(
    value: float, draws: Tensor, *, unit: str, seed: int, least: float | None = None
) -> Interval | None:
    """The interval that has the draws' spread and lies round the value.

    Args:
        value: What was measured.
        draws: What `..._draws` gave; None comes back for fewer than two.
        unit: What was drawn, such as "frames".
        seed: What it was drawn with.
        least: No distance is below it.
    """
    if len(draws) < 2:
        return None
    shares = torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2], dtype=torch.float64)
    ends = torch.quantile(draws.double(), shares)
    low, high = (value + float(end - draws.mean()) for end in ends)
    return Interval(
        low=low if least is None else max(least, low),
        high=high,
        level=LEVEL,
        method=f"bootstrap over {unit}, laid round the value",
        resamples=len(draws),
        seed=seed,
    )
