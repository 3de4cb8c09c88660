"""The last look at a run that went back, where a mirror's rows can't be renamed as they stand.

W&B keeps a row as it was logged. Once the run has ended and MLflow has all of it, a process of its
own compares W&B with MLflow; where nothing but names of before is wrong there, it makes the run
anew out of MLflow. Killed at any moment, it is done again. In any doubt the run is left as it is:
all was delivered before.
"""

import os
import time
from collections.abc import Mapping
from typing import Any

import msgspec

from opusclip_mlops import mirror_processes
from opusclip_mlops.errors import DeliveryError
from opusclip_mlops.folder import Manifest, RunFolder
from opusclip_mlops.generations import tags_of_generations
from opusclip_mlops.mirror_state import live_targets
from opusclip_mlops.mirror_work import RunReport, Work
from opusclip_mlops.records import RunEnded
from opusclip_mlops.sessions import final_end, sessions
from opusclip_mlops.wandb_layout import wandb_mode

CLOSED_AT = "closed_at"
"""In the state of a sink that was closed: how many rows it had been given, all of them safe."""

GOES_BACK = "goes_back"
"""In the state of a sink: some of its rows may have another name now."""

MOST_LOOKS = 3
"""How often a look is begun: its faults hold up no delivery."""

_RENAMED_LATE = frozenset({"wandb"})
_SENT = ("equal", "mirrored", "gone")
_LOOKS = "looks"
_POLL_S = 0.1
# Longer than a process lives whose parent was killed.
_WAIT_S = 30.0


def closed(sink: str, state: Mapping[str, Any], *, row: int) -> dict[str, Any]:
    """The state of a sink that was closed behind this row."""
    return {**state, CLOSED_AT: row} if sink in _RENAMED_LATE else dict(state)


def is_due(folder: RunFolder, sink: str, end: RunEnded) -> bool:
    """Whether a mirror that was closed may show as the line what training went back behind.

    Waits until MLflow has everything. Not for a run that others end or go on with.
    """
    state = folder.progress(sink).state
    is_ours = sink in _RENAMED_LATE and "mlflow" in folder.manifest().sinks and end.owned
    return (
        is_ours
        and bool(state.get(GOES_BACK, True))
        and _has_gone_back(folder)
        and _is_recorded(folder)
    )


def looked(state: Mapping[str, Any]) -> dict[str, Any] | None:
    """The state with one more look begun, None where it was begun often enough."""
    looks = int(state.get(_LOOKS, 0))
    return {**state, _LOOKS: looks + 1} if looks < MOST_LOOKS else None


def bring_to_line(folder: RunFolder, sink: str) -> str:
    """Have a mirror show the line as it now is; returns why it is left, empty where it is not.

    Raises:
        DeliveryError: MLflow or the mirror does not answer, or can't be sent anything.
    """
    identity = folder.identity()
    if folder.progress("mlflow").rejected or identity is None or not identity.run_id:
        return left_as_it_is(folder, sink, "MLflow does not have all of the run")
    # Another process is not to talk to the core of this one's client.
    os.environ.pop("WANDB_SERVICE", None)
    reports = mirror_processes.do([_work(folder.manifest(), sink, identity.run_id)], lambda _: None)
    return next((_said(folder, sink, one) for one in reports if one.outcome not in _SENT), "")


def left_as_it_is(folder: RunFolder, sink: str, why: str) -> str:
    """What is told of a mirror that is left, and how it can be made anew."""
    identity = folder.identity()
    command = f"opusclip mirror {identity.run_id if identity else ''}".strip()
    return f"{sink} may show superseded points as the line ({why}): see `{command}`"


def _said(folder: RunFolder, sink: str, report: RunReport) -> str:
    if report.is_final or report.outcome == "busy":
        return left_as_it_is(folder, sink, report.error)
    raise DeliveryError(f"{report.target} can't be compared with MLflow: {report.error}")


def _has_gone_back(folder: RunFolder) -> bool:
    identity = folder.identity()
    said = [dict(identity.generations)] if identity else []
    said += [tags_of_generations(one.start.tags) for one in sessions(folder)]
    return any(said)


def _is_recorded(folder: RunFolder) -> bool:
    """Wait until MLflow has everything; False where the run is gone on with meanwhile."""
    while not (folder.progress("mlflow").done and _has_all(folder)):
        if final_end(folder) is None:
            return False
        time.sleep(_POLL_S)
    return True


def _has_all(folder: RunFolder) -> bool:
    return folder.progress("mlflow").has_all(folder.size_bytes())


def _work(manifest: Manifest, sink: str, run_id: str) -> Work:
    mode = wandb_mode(manifest.wandb_mode)
    targets = live_targets(msgspec.structs.replace(manifest, wandb_mode=mode))
    [target] = [one for one in targets if one.kind == sink]
    return Work(
        target=target,
        does="rename",
        wait_s=_WAIT_S,
        run_ids=[run_id],
        tracking_uri=manifest.tracking_uri,
        registry_uri=manifest.registry_uri,
    )
