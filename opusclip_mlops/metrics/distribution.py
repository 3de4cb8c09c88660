"""How far what a model makes is from what it should look like, set against set: FID, KID, IS, FVD.

The values are torchmetrics'; here are the features, whose network can be another, the checks, the
intervals and the passports. Values of few items are biased, FID upwards by far: compare values
over the same number of items only, which their passports see to.
"""

import contextlib
import warnings
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.inception import InceptionScore as _TorchInceptionScore
from torchmetrics.image.kid import KernelInceptionDistance

from opusclip_mlops.errors import VideoError
from opusclip_mlops.metrics.feature_sets import Extractor, FeatureMetric, SetDistance
from opusclip_mlops.metrics.inception import (
    NAME,
    InceptionClasses,
    InceptionClips,
    InceptionFeatures,
)
from opusclip_mlops.metrics.networks import ValueRange, in_parts
from opusclip_mlops.metrics.resampling import (
    frechet_distance,
    frechet_draws,
    inception_draws,
    interval_round,
    kernel_draws,
)
from opusclip_mlops.passports import Interval, Setting

I3D = "i3d-kinetics-400"
"""The name of an extractor whose Fréchet distance over clips is the published FVD."""

LEAST_KERNEL = 100
"""Frames of each set below which a passport of KID notes that they are too few."""

_MOST_FRECHET = 1024  # items or features: above, 200 draws take minutes
_MOST_KERNEL = 2048  # items: above, the kernel takes a GB
_DRAWS_FRECHET, _DRAWS_KERNEL, _DRAWS_SCORE = 200, 1000, 1000
_ALONE: dict[str, Any] = {"sync_on_compute": False}  # the features of all ranks are there already
_SEED = 20_151_205  # of the draws


class _Frechet(SetDistance):
    def __init__(
        self,
        extractor: Extractor | None = None,
        *,
        value_range: ValueRange | None = None,
        keep_reference: bool = False,
        resamples: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(
            extractor or self._usual(),
            value_range=value_range,
            keep_reference=keep_reference,
            resamples=resamples,
            **options,
        )

    @abstractmethod
    def _usual(self) -> Extractor:
        """The network where none is given."""

    def _value(self) -> Tensor:
        real, fake = self._sets()
        if min(len(real), len(fake)) <= real.shape[1]:  # torchmetrics' form is unsure there
            return torch.tensor(frechet_distance(real, fake), dtype=torch.float64)
        inner = FrechetInceptionDistance(_Given(real.shape[1]), **_ALONE)
        for rows, is_real in ((real, True), (fake, False)):
            for part in in_parts(rows.double(), _MOST_FRECHET):
                inner.update(part, real=is_real)
        return inner.compute().clamp(min=0)

    def _interval(self, value: float) -> Interval | None:
        real, fake = self._sets()
        size = min(max(len(real), len(fake)), real.shape[1])
        resamples = _chosen(self.resamples, _DRAWS_FRECHET, affordable=size <= _MOST_FRECHET)
        draws = frechet_draws(real, fake, resamples=resamples, seed=_SEED)
        return interval_round(value, draws, unit=self.unit, seed=_SEED, least=0.0)

    def _notes(self) -> tuple[str, ...]:
        real, fake = self._sets()
        fewer, features = min(len(real), len(fake)), real.shape[1]
        if fewer > features:
            return ()
        few = f"{fewer} {self.unit} are far too few for {features} features"
        return (f"{few}: the value is too large, and comparable at these numbers only",)


class FID(_Frechet):
    """Fréchet Inception distance of frames from a reference.

    Heusel et al., "GANs trained by a two time-scale update rule" (2017). 0 or more, smaller is
    closer; equal sets: 0. Falls with the number of frames: 50,000 are usual in papers, and below
    2,048 of each it says little but "more" and "less" at one number.

    Args:
        extractor: The network; None: Inception of 2015-12-05, its last pool. With any other the
            metric is named "fid_" and the extractor's name.
        value_range: What black and white are. None: frames are uint8. Otherwise floats.
        keep_reference: Whether `reset` keeps what was taken in with real=True.
        resamples: Draws for the interval, 0 for none. None: 200 where that takes seconds, up to
            1,024 frames or features, and 0 above. It is of frames that do not depend on each
            other, and too narrow for those of few clips.
        options: Of `torchmetrics.Metric`.

    Raises:
        WeightsError: The network's weights are not there.
    """

    def _usual(self) -> Extractor:
        return InceptionFeatures()

    @property
    def metric(self) -> str:
        """ "fid", or that and the extractor."""
        return _named("fid", self.extractor, NAME)


class FrechetVideoDistance(_Frechet):
    """Fréchet distance of clips from reference clips, over features of whole clips.

    With an extractor named "i3d-kinetics-400" it is FVD as published: Unterthiner et al.,
    "Towards accurate generative models of video" (2018). With any other it is another metric,
    and named so: "frechet_video_distance_" and the extractor's name. 0 or more, smaller is
    closer; equal sets: 0.

    Args:
        extractor: The network; None: `InceptionClips`.
        value_range: What black and white are. None: clips are uint8. Otherwise floats.
        keep_reference: Whether `reset` keeps what was taken in with real=True.
        resamples: Draws for the interval, as in `FID`.
        options: Of `torchmetrics.Metric`.

    Raises:
        WeightsError: The network's weights are not there.
    """

    unit = "clips"

    def _usual(self) -> Extractor:
        return InceptionClips()

    @property
    def metric(self) -> str:
        """ "fvd" with I3D, otherwise a name with the extractor's."""
        if self.extractor.name == I3D:
            return "fvd"
        return _named("frechet_video_distance", self.extractor, "")


class KID(SetDistance):
    """Kernel Inception distance of frames from a reference: the mean over random subsets.

    Bińkowski et al., "Demystifying MMD GANs" (2018). Unbiased, so that values over unequal
    numbers of frames tell the same; near 0 for equal sets, and below it as often as above.

    Args:
        extractor: The network; None: Inception of 2015-12-05, its last pool. With any other the
            metric is named "kid_" and the extractor's name.
        subsets: How many are drawn.
        subset_size: Frames in each, at least 2; at most as many as there are.
        seed: Of the subsets; None draws them from torch's own generator.
        value_range: What black and white are. None: frames are uint8. Otherwise floats.
        keep_reference: Whether `reset` keeps what was taken in with real=True.
        resamples: Draws for the interval, 0 for none. None: 1,000 up to 2,048 frames, 0 above.
        options: Of `torchmetrics.Metric`.

    Raises:
        WeightsError: The network's weights are not there.
    """

    def __init__(
        self,
        extractor: Extractor | None = None,
        *,
        subsets: int = 100,
        subset_size: int = 1000,
        seed: int | None = 0,
        value_range: ValueRange | None = None,
        keep_reference: bool = False,
        resamples: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(
            extractor or InceptionFeatures(),
            value_range=value_range,
            keep_reference=keep_reference,
            resamples=resamples,
            **options,
        )
        if subsets < 1 or subset_size < 2:
            raise VideoError(f"kid of {subsets} subsets of {subset_size}: at least 1 of 2 frames")
        self.subsets, self.subset_size, self.seed = subsets, subset_size, seed

    @property
    def metric(self) -> str:
        """ "kid", or that and the extractor."""
        return _named("kid", self.extractor, NAME)

    def mean_and_std(self) -> tuple[Tensor, Tensor]:
        """The mean over the subsets and their standard deviation, as torchmetrics gives them."""
        with self.sync_context(dist_sync_fn=self.dist_sync_fn):
            return self._subset_values()

    def _subset_values(self) -> tuple[Tensor, Tensor]:
        real, fake = self._sets()
        for rows, whose in ((fake, "generated"), (real, "reference")):
            if len(rows) < self.subset_size:
                raise VideoError(
                    f"{self.metric} draws subsets of {self.subset_size} and there are {len(rows)} "
                    f"{whose} frames: pass more, or subset_size={len(rows)} or less"
                )
        with _quiet():
            inner = KernelInceptionDistance(
                _Given(real.shape[1]),
                subsets=self.subsets,
                subset_size=self.subset_size,
                **_ALONE,
            )
        inner.update(_ordered(real, self.seed), real=True)
        inner.update(_ordered(fake, self.seed), real=False)
        with _drawn(self.seed):
            mean, std = inner.compute()
        return mean, std

    def _value(self) -> Tensor:
        return self._subset_values()[0]

    def _settings(self) -> Mapping[str, Setting]:
        subsets = {"subsets": self.subsets, "subset_size": self.subset_size}
        return {**super()._settings(), **subsets, "seed": str(self.seed)}

    def _interval(self, value: float) -> Interval | None:
        real, fake = self._sets()
        affordable = max(len(real), len(fake)) <= _MOST_KERNEL
        resamples = _chosen(self.resamples, _DRAWS_KERNEL, affordable=affordable)
        draws = kernel_draws(real, fake, resamples=resamples, seed=_SEED)
        return interval_round(value, draws, unit="frames", seed=_SEED)

    def _notes(self) -> tuple[str, ...]:
        fewer = min(map(len, self._sets()))
        if fewer >= LEAST_KERNEL:
            return ()
        return (f"{fewer} frames are too few: right on average, such a value alone says little",)


class InceptionScore(FeatureMetric):
    """Inception score of frames: how sure a classifier is of each, and how varied they are.

    Salimans et al., "Improved techniques for training GANs" (2016): exp of the mean divergence
    of a frame's classes from those of all, the mean over random splits. From 1 to the number of
    classes, larger is better. It knows no reference, and does not see a model that has learnt
    one good picture of each class by heart.

    Args:
        classifier: What gives logits (N, classes); None: Inception of 2015-12-05, which needs
            the official file of weights. With any other the metric is named "inception_score_"
            and the classifier's name.
        splits: Into how many parts the frames are divided, each of 2 frames or more.
        seed: Of the splits; None draws them from torch's own generator.
        value_range: What black and white are. None: frames are uint8. Otherwise floats.
        resamples: Draws for the interval, 0 for none. None: 1,000 up to 2,048 frames, 0 above.
        options: Of `torchmetrics.Metric`.

    Raises:
        WeightsError: The network's weights are not there.
    """

    higher_is_better = True
    features: list[Tensor]

    def __init__(
        self,
        classifier: Extractor | None = None,
        *,
        splits: int = 10,
        seed: int | None = 0,
        value_range: ValueRange | None = None,
        resamples: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(
            classifier or InceptionClasses(),
            value_range=value_range,
            resamples=resamples,
            **options,
        )
        if splits < 1:
            raise VideoError(f"an inception score of {splits} splits: at least 1")
        self.splits, self.seed = splits, seed
        self.add_state("features", default=[], dist_reduce_fx="cat")

    @property
    def metric(self) -> str:
        """ "inception_score", or that and the classifier."""
        return _named("inception_score", self.extractor, InceptionClasses.name)

    def update(self, pictures: Any) -> None:
        """Take in what a model made.

        Raises:
            VideoError: Another shape, type or range; logits that are NaN or of another shape.
        """
        self.features.append(self._extracted(self._bytes(pictures)))

    def _count(self) -> int:
        return len(self._rows(self.features))

    def _value(self) -> Tensor:
        logits = self._rows(self.features)
        if len(logits) < 2 * self.splits:
            raise VideoError(
                f"{self.metric} in {self.splits} splits of {len(logits)} frames: "
                f"pass at least {2 * self.splits} frames, or fewer splits"
            )
        with _quiet():
            inner = _TorchInceptionScore(_Given(logits.shape[1]), splits=self.splits, **_ALONE)
        inner.update(_ordered(logits.double(), self.seed))
        with _drawn(self.seed), _quiet():
            mean: Tensor = inner.compute()[0]  # the other is their deviation, NaN for one split
        return mean

    def _settings(self) -> Mapping[str, Setting]:
        return {"splits": self.splits, "seed": str(self.seed)}

    def _interval(self, value: float) -> Interval | None:
        logits = _ordered(self._rows(self.features), self.seed)
        affordable = len(logits) <= _MOST_KERNEL
        resamples = _chosen(self.resamples, _DRAWS_SCORE, affordable=affordable)
        with _drawn(self.seed):
            logits = logits[torch.randperm(len(logits))]
        draws = inception_draws(logits, splits=self.splits, resamples=resamples, seed=_SEED)
        return interval_round(value, draws, unit="frames", seed=_SEED, least=1.0)


class _Given(nn.Module):
    """Stands where torchmetrics has a network: the features are there already."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


def _named(metric: str, extractor: Extractor, published: str) -> str:
    return metric if extractor.name == published else f"{metric}_{extractor.name}"


def _chosen(resamples: int | None, usual: int, *, affordable: bool) -> int:
    if resamples is None:
        return usual if affordable else 0
    return resamples


def _ordered(rows: Tensor, seed: int | None) -> Tensor:
    """In an order of their own, so that a seed draws the same from batches of any size."""
    return rows if seed is None else rows[rows.double().sum(1).argsort(stable=True)]


@contextlib.contextmanager
def _drawn(seed: int | None) -> Iterator[None]:
    """Random numbers by a seed of one's own, without touching torch's generator."""
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        yield


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without torchmetrics' word that features are kept, and torch's that one has no deviation."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield
