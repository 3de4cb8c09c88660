"""MLflow-centred experiment tracking for teams that train video models.

The floor plan; imports go down only:

    cli, console, samples_cli …    one verb, one function, one library call
    operating, projects/, reports/ status and recovery; what `mlflow run` starts; a run on one page
    sweeps/                        many trials of one program, and which of them was best
    tracker, verifying, descent …  everything a training loop calls; are mirrors equal; lineage
    replay, mirror_worker          MLflow runs replayed into mirrors, by processes of their own
    shipper, mirroring, gated …    delivers a run; one run's mirror; stages past their gate
    delivery, differences          gives the journal to one sink; how a mirror differs from MLflow
    sinks/, holdings/, lookout     where a run is written; what stands there; which runs there are
    contents, run_history/         an MLflow run read back: its points, and all else
    alerts/, comparing             rules that watch a run; how runs differ
    scoring, walls, uploads …      videos measured; samples on one page; what becomes a file
    media, metrics/, sessions …    clips on their way; how good a clip is; who logs, and how it died
    journal, video, significance/  one format, or one question, each
    config, records, decoding …    what travels, what a run is called, where it lies; videos read
    passports, values              how a value was measured; what a legal key, value and step is
    errors, redaction, slots       the exception tree
"""

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from opusclip_mlops.chronicle import history as history
    from opusclip_mlops.config import TrackingConfig as TrackingConfig
    from opusclip_mlops.descent import lineage as lineage
    from opusclip_mlops.errors import OpusclipError as OpusclipError
    from opusclip_mlops.gated import promote as promote
    from opusclip_mlops.gated import rollback as rollback
    from opusclip_mlops.loading import load_checkpoint as load_checkpoint
    from opusclip_mlops.panels import Panel as Panel
    from opusclip_mlops.passports import Passport as Passport
    from opusclip_mlops.passports import Score as Score
    from opusclip_mlops.registry import register as register
    from opusclip_mlops.replay import Places as Places
    from opusclip_mlops.replay import follow as follow
    from opusclip_mlops.replay import mirror as mirror
    from opusclip_mlops.samples import Origin as Origin
    from opusclip_mlops.samples import SourceClip as SourceClip
    from opusclip_mlops.scoring import calculate_video_metrics as calculate_video_metrics
    from opusclip_mlops.tracker import AdvancedExperimentTracker as AdvancedExperimentTracker
    from opusclip_mlops.tracker import ExperimentTracker as ExperimentTracker
    from opusclip_mlops.verifying import verify as verify

from opusclip_mlops.object_storage import feed as _feed

__version__ = "0.1.0"

# Here, because every process of ours comes by; who says what differs asks again.
_feed(os.environ)

_HOMES = {
    "AdvancedExperimentTracker": "tracker",
    "ExperimentTracker": "tracker",
    "OpusclipError": "errors",
    "Origin": "samples",
    "Panel": "panels",
    "Passport": "passports",
    "Places": "replay",
    "Score": "passports",
    "SourceClip": "samples",
    "TrackingConfig": "config",
    "calculate_video_metrics": "scoring",
    "follow": "replay",
    "history": "chronicle",
    "lineage": "descent",
    "load_checkpoint": "loading",
    "mirror": "replay",
    "promote": "gated",
    "register": "registry",
    "rollback": "gated",
    "verify": "verifying",
}

__all__ = ["__version__", *sorted(_HOMES)]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
