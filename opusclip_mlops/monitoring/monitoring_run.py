"""The run in which a process that serves tells how it goes: a run like any other, by the journal.

It is in the experiment `<model> monitoring`. MLflow may be away: the journal keeps what is told,
and the shipper, a process of its own, delivers it and ends the run truly however the process ends.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Mapping
from typing import Any

from mlflow import MlflowClient

from opusclip_mlops.config import TrackingConfig
from opusclip_mlops.monitoring.served import ServedVersion
from opusclip_mlops.monitoring.settings import MonitorSettings
from opusclip_mlops.tracker import ExperimentTracker

KIND_TAG = "opusclip.kind"
KIND = "monitoring"
_PREFIX = "opusclip.serving"
_LONGEST_EXPERIMENT, _LONGEST_RUN = 256, 250
_DRAIN_S = 5.0


class MonitoringRun:
    """A process's run; its end is FINISHED when the server was asked to stop.

    Args:
        served: What is served.
        settings: How it is watched.

    Raises:
        ConfigError: The environment says something wrong, or the journal cannot be written.
    """

    def __init__(self, served: ServedVersion, settings: MonitorSettings) -> None:
        self._tracker = ExperimentTracker(_config(served))
        self._tracker.log_params(
            {"interval_s": settings.interval_s, "checks_share": settings.checks_share}
        )
        self._step = 0

    def log(self, values: Mapping[str, float]) -> None:
        """Log an interval's values; the intervals are counted from 0."""
        self._tracker.log_metrics(values, step=self._step)
        self._step += 1

    def tag(self, **values: str) -> None:
        """Tag the run as `opusclip.serving.<name>`."""
        self._tracker.set_tags({f"{_PREFIX}.{name}": value for name, value in values.items()})

    def close(self) -> None:
        """End the run; what has not arrived within 5 s is delivered later."""
        self._tracker.close("FINISHED", "the server was asked to stop")


def places_of(served: ServedVersion) -> dict[str, str]:
    """The stage and the aliases of a version now; asks the registry, which may take long.

    Raises:
        MlflowException: The registry refused, or did not answer.
    """
    if not served.version:
        return {}
    found = MlflowClient().get_model_version(served.model, served.version)
    return {"stage": found.current_stage or "None", "aliases": ", ".join(found.aliases)}


def _config(served: ServedVersion) -> TrackingConfig:
    host = socket.gethostname()
    # The sinks beside MLflow are for trainings: here they are used where the environment says so.
    quiet: dict[str, Any] = {
        name: False
        for name in ("use_tensorboard", "use_wandb")
        if not os.environ.get(f"OPUSCLIP_{name.upper()}")
    }
    if not os.environ.get("OPUSCLIP_DRAIN_TIMEOUT_S"):
        quiet["drain_timeout_s"] = _DRAIN_S
    return TrackingConfig(
        tags={**TrackingConfig().tag_values, **_tags(served)},
        experiment_name=f"{served.model[: _LONGEST_EXPERIMENT - 11]} monitoring",
        run_id=None,
        run_name=f"{served.title} on {host}"[:_LONGEST_RUN],
        **quiet,
    )


def _tags(served: ServedVersion) -> dict[str, str]:
    known = {
        "model": served.model,
        "version": served.version,
        "model_id": served.model_id,
        "trained_by": served.run_id,
        "host": socket.gethostname(),
        "pid": str(os.getpid()),
        # Processes of one server have the same one.
        "server_pid": str(os.getppid()),
        "python": sys.version.split()[0],
    }
    return {KIND_TAG: KIND} | {f"{_PREFIX}.{name}": one for name, one in known.items() if one}
