"""The calls of a tracker that show what is inside a model: histograms, graphs, figures, tables."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from opusclip_mlops import records
from opusclip_mlops.errors import RecordError
from opusclip_mlops.records import now_ms


class InsightCalls:
    """What a training loop calls to look into its model; a part of `ExperimentTracker`."""

    _append: Callable[[records.Record], object]

    if TYPE_CHECKING:

        def _current_step(self, step: int | None) -> int: ...

    def log_text(self, text: str, key: str, step: int | None = None) -> None:
        """Log a text at a step.

        Raises:
            RecordError: a key MLflow would refuse, or one that begins with `opusclip/`: these are
                for what the tracker itself says.
        """
        records.check_key(key)
        if key.startswith("opusclip/"):
            raise RecordError(f"key {key!r} is the tracker's own: take one without opusclip/")
        self._append(records.Text(now_ms(), self._current_step(step), key, str(text)))
