"""The temporal metrics over many clips and ranks: what `TemporalScores` measures, added up."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torchmetrics
from torch import Tensor

from opusclip_mlops.errors import VideoError
from opusclip_mlops.metrics.networks import ValueRange, pictures_in, to_bytes
from opusclip_mlops.passports import Score
from opusclip_mlops.temporal import NAMES, TemporalScores, Total, passport, value_of

_FLOWING = ("motion", "warping_error")


class TemporalMetric(torchmetrics.Metric):
    """One of the metrics of `temporal.NAMES` over clips: its mean over their frames or pairs.

    Cuts are counted, a loop's seam is the mean over the clips. Formulas, units and ranges stand
    in `opusclip_mlops.temporal`.

    Args:
        metric: Its name, such as "flicker".
        value_range: What black and white are. None: clips are uint8. Otherwise floats.
        options: Of `torchmetrics.Metric`.

    Raises:
        VideoError: There is no such metric.
    """

    is_differentiable = False
    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(
        self, metric: str, *, value_range: ValueRange | None = None, **options: Any
    ) -> None:
        super().__init__(**options)
        if metric not in NAMES:
            raise VideoError(f"there is no metric {metric!r}: pass one of {', '.join(NAMES)}")
        self.metric = metric
        self.value_range = value_range
        for name in ("total", "count"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, clips: Any) -> None:
        """Take in clips.

        Args:
            clips: (N,T,H,W,3) or (N,T,3,H,W), arrays or tensors.

        Raises:
            VideoError: Another shape, type or range, or too few frames or pixels for the metric.
        """
        given = pictures_in(clips, value_range=self.value_range, axes=5, of="clips")
        pixels = to_bytes(given, self.value_range).movedim(-3, -1).cpu().numpy()
        for found in [self._total(clip) for clip in pixels]:
            self.total += found.total
            self.count += found.count

    def _total(self, clip: npt.NDArray[np.uint8]) -> Total:
        scores = TemporalScores(with_flow=self.metric in _FLOWING)
        scores.add(clip)
        found = scores.totals().get(self.metric)
        if found is None:
            raise VideoError(
                f"{self.metric} is not defined for a clip of {clip.shape} (T,H,W,C): "
                "pass more frames of a shot, and larger ones where it follows motion"
            )
        return found

    def _sum(self) -> Total:
        if not self.count:
            raise VideoError(f"{self.metric} over no clips: update it first")
        return Total(float(self.total), float(self.count))

    def compute(self) -> Tensor:
        """The metric over all clips.

        Raises:
            VideoError: There were none.
        """
        return torch.tensor(value_of(self.metric, self._sum()), dtype=torch.float64)

    def score(self) -> Score:
        """The metric with its passport; across ranks, every rank must call it."""
        with self.sync_context(dist_sync_fn=self.dist_sync_fn):
            found = self._sum()
            return Score(value_of(self.metric, found), passport(self.metric, found))
