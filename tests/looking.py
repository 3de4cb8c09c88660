"""The tracker's calls that look into a model, without a run: what they append is kept here."""

from typing import Any

import torch
from torch import nn

from opusclip_mlops.insights import InsightCalls
from opusclip_mlops.records import Insight, Metrics


class Calls(InsightCalls):
    """The tracker's calls, keeping what they append."""

    def __init__(self) -> None:
        self.rows: list[Any] = []
        self._append = self.rows.append
        self._watched, self._since_ms, self.step = {}, 0, 0
        self._closed = False

    def _current_step(self, step: int | None) -> int:
        return self.step if step is None else step

    def _log_now(self, values: dict[str, float], step: int) -> None:
        self.rows.append(Metrics(0, step, values))

    def insights(self, key: str) -> list[Insight]:
        return [one for one in self.rows if isinstance(one, Insight) and one.key == key]

    def histograms(self, key: str) -> dict[str, Any]:
        """Those of the last look, by parameter."""
        return self.insights(key)[-1].content["histograms"]

    def metrics(self, key: str) -> list[tuple[int, float]]:
        every = [one for one in self.rows if isinstance(one, Metrics)]
        return [(one.step, one.values[key]) for one in every if key in one.values]


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
