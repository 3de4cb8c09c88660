"""Watching served versions: requests, errors, times, frames, bad clips and drifting inputs.

A version that `registry.register` made is served by `mlflow models serve`. Where OPUSCLIP_MONITOR
is 1 the process that serves it counts what it is asked and what it answers, shows that to
Prometheus and logs it to a run of its own. A fault of the watching never reaches a request: it is
counted, or said on stderr.
"""

from __future__ import annotations

import functools
import os
import sys
from pathlib import Path

from opusclip_mlops.faults import attempted
from opusclip_mlops.redaction import one_line

ASKED_FOR = "OPUSCLIP_MONITOR"
_SERVED_FROM = "__pyfunc_model_path__"  # what MLflow's scoring server is told its model by
_YES, _NO = ("1", "true", "yes", "on"), ("", "0", "false", "no", "off")


def watch(folder: Path) -> None:
    """Watch the model that was set last, if this is asked for and MLflow's server serves it.

    What is in the way is said on stderr in one line, and the model is served unwatched.

    Args:
        folder: The model's folder, as MLflow fetched it.
    """
    asked = os.environ.get(ASKED_FOR, "").strip().lower()
    if asked in _NO or _SERVED_FROM not in os.environ:
        return
    if asked not in _YES:
        _tell(f"{ASKED_FOR} must be 1 or 0, not {asked!r:.40}")
        return
    if fault := attempted(functools.partial(_begin, folder)):
        _tell(f"{type(fault).__name__}: {fault}")


def _begin(folder: Path) -> None:
    from opusclip_mlops.monitoring.hooks import hook
    from opusclip_mlops.monitoring.settings import MonitorSettings
    from opusclip_mlops.monitoring.watcher import Watcher

    hook(Watcher(folder, MonitorSettings.from_environment()))


def _tell(reason: str) -> None:
    print(f"opusclip: served without monitoring: {one_line(reason)}", file=sys.stderr, flush=True)
