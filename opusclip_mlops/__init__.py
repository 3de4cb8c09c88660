"""MLflow-centred experiment tracking for teams that train video models.

The floor plan; imports go down only:

    cli                            one verb, one function, one library call
    projects/                      what `mlflow run` starts
    tracker                        ExperimentTracker: everything a training loop calls
    session                        a process's part in a run
    shipper, registry              delivers a run; registers its checkpoints
    delivery                       gives the journal to one sink: batches, retries, positions
    sinks/                         where a run is written: MLflow, TensorBoard, W&B
    media, metrics/                clips on their way; how good a clip is
    journal, video, checkpoints …  one format each
    config, records, folder        what travels, what a run is called, where it lies
    errors                         the exception tree
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from opusclip_mlops.config import TrackingConfig as TrackingConfig
    from opusclip_mlops.errors import OpusclipError as OpusclipError
    from opusclip_mlops.metrics.frame import calculate_video_metrics as calculate_video_metrics
    from opusclip_mlops.registry import register as register
    from opusclip_mlops.tracker import AdvancedExperimentTracker as AdvancedExperimentTracker
    from opusclip_mlops.tracker import ExperimentTracker as ExperimentTracker

__version__ = "0.1.0"

_HOMES = {
    "AdvancedExperimentTracker": "tracker",
    "ExperimentTracker": "tracker",
    "OpusclipError": "errors",
    "TrackingConfig": "config",
    "calculate_video_metrics": "metrics.frame",
    "register": "registry",
}

__all__ = ["__version__", *sorted(_HOMES)]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
