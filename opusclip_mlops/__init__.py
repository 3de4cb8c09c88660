"""MLflow-centred experiment tracking for teams that train video models.

The floor plan; imports go down only:

    cli, console                   one verb, one function, one library call
    operating, projects/           status and recovery; what `mlflow run` starts
    tracker, run_status            everything a training loop calls; how far a run is
    shipper, session, registry     delivers a run; a process's part in it; registers checkpoints
    delivery                       gives the journal to one sink: batches, retries, positions
    sinks/, watching               where a run is written; what a supervisor looks at
    media, metrics/, sessions …    clips on their way; how good a clip is; who logs, and how it died
    journal, video, selection …    one format, or one question, each
    config, records, folder        what travels, what a run is called, where it lies
    errors, redaction, slots       the exception tree
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
