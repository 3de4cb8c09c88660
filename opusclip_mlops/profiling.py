"""The calls of a tracker that say where the time goes."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from opusclip_mlops import records
from opusclip_mlops.insights import InsightCalls
from opusclip_mlops.timing import Timing


class ProfilingCalls(InsightCalls):
    """What a training loop calls about its time; a part of `ExperimentTracker`."""

    _log_now: Callable[..., None]
    _timing_keys: dict[tuple[str, str], str]

    if TYPE_CHECKING:

        def _log_beside(self, metrics: Mapping[str, Any], step: int | None) -> None: ...

    def _begin_profiling(self) -> None:
        self._timing_keys = {}

    def log_profiling_data(self, data: Mapping[str, Any], step: int | None = None) -> None:
        """Log `profiling/…`: numbers, and mappings of names to numbers, as metrics.

        `bottlenecks` and any other list or text becomes one text.
        """
        at = self._current_step(step)
        for part, content in data.items():
            if isinstance(content, Mapping):
                self._log_beside(prefixed(f"profiling/{part}", content), at)
            elif isinstance(content, str | Sequence):
                text = content if isinstance(content, str) else "\n".join(map(str, content))
                self.log_text(text, f"profiling/{part}", at)
            else:
                self._log_beside({f"profiling/{part}": content}, at)

    def profile_operation(self, name: str, category: str = "operation") -> Timing:
        """Time a block or a function: logs `profiling/<category>/<name>/ms`, also when it raises.

        Raises:
            RecordError: a name that is no legal key.
        """
        key = self._timing_keys.get((category, name))
        if key is None:
            key = f"profiling/{category}/{name}/ms"
            records.check_key(key)
            self._timing_keys[category, name] = key
        return Timing(key, self._log_now)


def prefixed(prefix: str, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The same values, each under `<prefix>/<key>`."""
    return {f"{prefix}/{key}": value for key, value in metrics.items()}
