"""The last word on a run that went back, where a mirror's rows can't be renamed as they stand.

W&B keeps a row as it was logged. Once the run has ended and MLflow has all of it, W&B is compared
with MLflow by a process of its own; where it still shows as the line what training went back
behind, it is made anew out of MLflow. Killed at any moment, it is done again: only then is the
delivery to W&B done.
"""

import os
import time

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

_RENAMED_LATE = frozenset({"wandb"})
_SENT = ("equal", "mirrored", "gone")
# One that was killed in its midst lacks something, and has nothing too much.
_UNEQUAL = ("unequal", "absent")
_POLL_S = 0.1


def bring_to_line(folder: RunFolder, sink: str, end: RunEnded) -> None:
    """Have a mirror that was closed show the line as it now is, where the run went back.

    Waits for MLflow to have everything. A run that others end, or that MLflow does not have in
    full, is left as it stands.

    Raises:
        DeliveryError: MLflow or the mirror does not answer.
    """
    manifest = folder.manifest()
    is_due = sink in _RENAMED_LATE and "mlflow" in manifest.sinks and end.owned
    if not is_due or not _has_gone_back(folder) or not _is_recorded(folder):
        return
    identity = folder.identity()
    if folder.progress("mlflow").rejected or identity is None or not identity.run_id:
        print(f"{sink} shows superseded points as before: MLflow does not have all", flush=True)
        return
    work = _work(manifest, sink, identity.run_id)
    if any(one.outcome in _UNEQUAL for one in _done(work)):
        _done(msgspec.structs.replace(work, does="mirror"))


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
        does="verify",
        run_ids=[run_id],
        tracking_uri=manifest.tracking_uri,
        registry_uri=manifest.registry_uri,
    )


def _done(work: Work) -> list[RunReport]:
    """What came of it; what can't be done there at all is told, and left."""
    # Another process is not to talk to the core of this one's client.
    os.environ.pop("WANDB_SERVICE", None)
    reports = mirror_processes.do([work], lambda _: None)
    for one in reports:
        if one.is_final:
            print(one.error, flush=True)
        elif work.does == "mirror" and one.outcome not in _SENT:
            raise DeliveryError(f"{one.target} can't be made anew: {one.error}")
        elif one.outcome == "failed":
            raise DeliveryError(f"{one.target} can't be compared with MLflow: {one.error}")
    return reports
