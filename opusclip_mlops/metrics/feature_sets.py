"""Sets of features, and what every metric over them has: pictures in, a score out."""

import hashlib
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, Protocol

import torch
import torchmetrics
from torch import Tensor
from torchmetrics.utilities import dim_zero_cat

from opusclip_mlops.errors import VideoError
from opusclip_mlops.metrics.networks import ValueRange, colour_range, pictures_in, to_bytes
from opusclip_mlops.passports import Interval, Passport, Score, Setting

VERSION = "1"

_AXES = {"frames": 4, "clips": 5}


class Extractor(Protocol):
    """A network that makes features of pictures or clips.

    Called with uint8 (N,H,W,3), or (N,T,H,W,3) where it is of clips, it gives floats (N, D). Its
    name stands in the metric's name where that is not the published one, and says how pictures
    are brought to its size. One that is a torch module moves with the metric.
    """

    @property
    def name(self) -> str:
        """Letters, digits, "-", "_" and "."."""

    @property
    def weights_sha256(self) -> str:
        """Digest of its weights, 64 hexadecimal digits."""

    def __call__(self, pictures: Tensor, /) -> Tensor:
        """Features (N, D)."""


class FeatureMetric(torchmetrics.Metric):
    """What the metrics share: pictures go in, features are kept, a score comes out."""

    is_differentiable = False
    full_state_update = False
    unit = "frames"

    def __init__(
        self,
        extractor: Extractor,
        *,
        value_range: ValueRange | None,
        resamples: int | None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.extractor = extractor
        self.value_range = value_range
        self.resamples = resamples
        # Flat, and their width beside them: a rank that has seen nothing yet has no width.
        self.add_state("width", torch.tensor(0), dist_reduce_fx="max")

    @property
    @abstractmethod
    def metric(self) -> str:
        """The metric's name, for records and passports."""

    def _bytes(self, pictures: Any) -> Tensor:
        axes = _AXES[self.unit]
        given = pictures_in(pictures, value_range=self.value_range, axes=axes, of=self.unit)
        return to_bytes(given, self.value_range).movedim(-3, -1)

    def _extracted(self, pictures: Tensor) -> Tensor:
        features = self.extractor(pictures)
        shape = tuple(features.shape)
        if features.ndim != 2 or len(features) != len(pictures):
            raise VideoError(
                f"{self.extractor.name} gave features of {shape} for {len(pictures)} {self.unit}: "
                f"({len(pictures)}, D) is needed"
            )
        good = features.isfinite().all(1)
        if not good.all():
            number = int((~good).nonzero()[0])
            raise VideoError(
                f"{self.extractor.name} gave NaN or Inf for number {number} of the {self.unit}"
            )
        self.width = torch.tensor(shape[1], device=self.device)
        return features.detach().to(self.device, torch.float32).flatten()

    def _rows(self, state: list[Tensor]) -> Tensor:
        width = int(self.width)
        return dim_zero_cat(state).reshape(-1, width) if len(state) else torch.empty(0, width)

    def score(
        self, *, sampling: str = "every frame", resize: str = "none", reference: str = ""
    ) -> Score:
        """The value with its passport; across ranks, every rank must call it.

        Args:
            sampling: Which frames the caller took.
            resize: How the caller brought them to a size, before the network does.
            reference: Digest of what they are measured against, where the caller knows one.
        """
        with self.sync_context(dist_sync_fn=self.dist_sync_fn):
            value = float(self._value())
            given = {"sampling": sampling, "resize": resize, "reference": reference}
            return Score(value, self._passport(value, given))

    @abstractmethod
    def _value(self) -> Tensor:
        """The value over what is kept."""

    @abstractmethod
    def _interval(self, value: float) -> Interval | None:
        """How sure it is."""

    @abstractmethod
    def _settings(self) -> Mapping[str, Setting]:
        """What it depends on besides."""

    def _notes(self) -> tuple[str, ...]:
        """What keeps the value from being read as it is."""
        return ()

    @abstractmethod
    def _count(self) -> int:
        """Of how many items."""

    def _passport(self, value: float, given: dict[str, str]) -> Passport:
        return Passport(
            metric=self.metric,
            version=VERSION,
            count=self._count(),
            unit=self.unit,
            extractor=self.extractor.name,
            weights_sha256=self.extractor.weights_sha256,
            colour_range=colour_range(self.value_range),
            settings=self._settings(),
            interval=self._interval(value),
            notes=self._notes(),
            **given,
        )

    def compute(self) -> Tensor:
        """The value; `score` has it with its passport.

        Raises:
            VideoError: Too few items.
        """
        return self._value()


class SetDistance(FeatureMetric):
    """A distance between the features of two sets."""

    higher_is_better = False
    real_features: list[Tensor]
    fake_features: list[Tensor]
    real_digest: Tensor

    def __init__(self, extractor: Extractor, *, keep_reference: bool, **options: Any) -> None:
        super().__init__(extractor, **options)
        self.keep_reference = keep_reference
        self.add_state("real_features", default=[], dist_reduce_fx="cat")
        self.add_state("fake_features", default=[], dist_reduce_fx="cat")
        self.add_state("real_digest", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, pictures: Any, real: bool) -> None:
        """Take in pictures or clips.

        Args:
            pictures: Arrays or tensors, with the channels last or before height and width.
            real: Whether they are the reference, and not what a model made.

        Raises:
            VideoError: Another shape, type or range; features that are NaN or of another shape.
        """
        given = self._bytes(pictures)
        features = self._extracted(given)
        (self.real_features if real else self.fake_features).append(features)
        if real:
            self.real_digest = self.real_digest + _digest(given)

    def reset(self) -> None:
        """Forget what was taken in; the reference stays where `keep_reference` says so."""
        kept = [*self.real_features], self.real_digest, self.width
        super().reset()  # empties the lists where they are
        if self.keep_reference:
            self.real_features, self.real_digest, self.width = kept

    def _sets(self) -> tuple[Tensor, Tensor]:
        real, fake = self._rows(self.real_features), self._rows(self.fake_features)
        if min(len(real), len(fake)) < 2:
            raise VideoError(
                f"{self.metric} over {len(fake)} {self.unit} and a reference of {len(real)}: "
                "give at least 2 of each, the reference by update(..., real=True)"
            )
        return real, fake

    def _count(self) -> int:
        return len(self._rows(self.fake_features))

    def _settings(self) -> Mapping[str, Setting]:
        return {"references": len(self._rows(self.real_features))}

    def _passport(self, value: float, given: dict[str, str]) -> Passport:
        digest = f"{int(self.real_digest) % (1 << 64):016x}"
        return super()._passport(value, {**given, "reference": given["reference"] or digest})


def _digest(pictures: Tensor) -> int:
    """A number for a set of pictures, whatever their order and batches: the sum of their own."""
    total = 0
    for picture in pictures.cpu():
        shape = str(tuple(picture.shape)).encode()
        content = picture.contiguous().numpy().tobytes()
        digest = hashlib.blake2b(content, digest_size=8, person=shape[:16]).digest()
        total += int.from_bytes(digest, "big", signed=True)
    return (total + (1 << 63)) % (1 << 64) - (1 << 63)
