"""A process's part in a run: its journal, its shipper, and the wait until all has arrived."""

import contextlib
import os
import socket
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from opusclip_mlops import journal, waiting
from opusclip_mlops.config import TrackingConfig
from opusclip_mlops.delivery import final_end, is_caught_up
from opusclip_mlops.errors import DeliveryError, OpusclipError
from opusclip_mlops.folder import CONTROL, Identity, Manifest, Position, RunFolder
from opusclip_mlops.journal import Journal
from opusclip_mlops.records import Row, RunEnded, RunStarted
from opusclip_mlops.shipper import start_shipper

POLL_S = 0.05
_RESTART_WAIT_S = 1.0


class Session:
    """Opens a run's folder, appends to it, and starts the shipper that delivers it."""

    def __init__(self, config: TrackingConfig, *, tags: dict[str, str]) -> None:
        run_id, self._owned = _known_run(config)
        self._manifest = _manifest(config, run_id)
        self._secrets = _secrets(config)
        self._resumed = run_id is not None
        journal_dir = Path(config.journal_dir).absolute()
        self.folder, self._hold = _held_folder(journal_dir, self._manifest.local_id, run_id)
        self.folder.create(self._manifest)
        self._manifest = self.folder.manifest()
        self._name = f"{socket.gethostname()}-{os.getpid()}-{time.time_ns() // 1_000_000}"
        self._journal = Journal(self.folder.path, self._name)
        self._control = Journal(self.folder.path, self._name + CONTROL)
        self.append = self._journal.append
        self._begin(run_id, tags)

    def _begin(self, run_id: str | None, tags: dict[str, str]) -> None:
        if run_id is None and self._manifest.experiment_name:
            self.folder.write_identity(_own_identity(self._manifest))
        start = RunStarted(
            session=self._name,
            host=socket.gethostname(),
            pid=os.getpid(),
            process_started_s=_process_started_s(),
            start_time_ms=int(time.time() * 1000),
            owned=self._owned,
            tags=tags,
        )
        self._control.append(start)
        self._shipper = start_shipper(self.folder, environment=self._secrets)
        self._shipper_started_s = time.monotonic()

    @property
    def local_id(self) -> str:
        """The run's name on this machine, known at once."""
        return self._manifest.local_id

    @property
    def is_resumed(self) -> bool:
        """Whether the run was there before."""
        return self._resumed

    @property
    def sinks(self) -> list[str]:
        """The sinks this run goes to."""
        return self._manifest.sinks

    def identity(self, *, wait_s: float) -> Identity:
        """What the run is in MLflow.

        Raises:
            DeliveryError: MLflow has not answered within `wait_s` seconds; the last fault is named.
        """
        found: list[Identity] = []

        def is_known() -> bool:
            identity = self.folder.identity()
            found[:] = [identity] if identity and identity.run_id else []
            return bool(found) or self.folder.progress("mlflow").rejected > 0

        self._wait(is_known, wait_s)
        if not found:
            why = self.folder.progress("mlflow").error or "no answer yet"
            raise DeliveryError(f"MLflow has not made the run within {wait_s:g} s: {why}")
        return found[0]

    def end(self, status: str, reason: str) -> None:
        """Declare the end of this process's part; nothing is appended afterwards."""
        now_ms = int(time.time() * 1000)
        self._control.append(RunEnded(self._name, status, now_ms, reason, self._owned))

    def wait_until_arrived(self, sinks: list[str], *, wait_s: float) -> bool:
        """Wait until what was logged so far has arrived; False at the deadline."""
        goal = self.folder.size_bytes()
        return self._wait(lambda: all(self._has(sink, goal) for sink in sinks), wait_s)

    def wait_until_ended(self, *, wait_s: float) -> bool:
        """Wait until every sink has everything and knows the end; False at the deadline."""
        goal = self.folder.size_bytes()
        with waiting.delivery_shown(self.folder, self.sinks) as show:

            def is_done() -> bool:
                show()
                every = [self.folder.progress(sink) for sink in self.sinks]
                if all(is_caught_up(self.folder, progress) for progress in every):
                    return True
                # While another process logs to the run, its end is not ours to wait for.
                is_shared = self.folder.path.exists() and final_end(self.folder) is None
                return is_shared and all(self._has(sink, goal) for sink in self.sinks)

            return self._wait(is_done, wait_s)

    def count_lost(self, error: OSError) -> None:
        """Count a file that the disk could not take."""
        self._journal.count_lost(error)

    def last_step_before(self) -> int:
        """The highest step that earlier processes left in this folder, -1 where there is none."""
        earlier = [p for p in self.folder.segments() if not p.name.startswith(self._name)]
        items = (item for path in earlier for item in journal.read(path))
        records = (item.record for item in items if isinstance(item, journal.Entry))
        return max((one.step for one in records if isinstance(one, Row)), default=-1)

    def missing(self) -> list[str]:
        """What has not arrived, was refused or could not be kept: one line each."""
        log = self.folder.path / "shipper.log"
        lines = [
            line if "refused" in line else f"{line}; the shipper goes on, its log is {log}"
            for line in waiting.undelivered(self.folder, self.sinks)
        ]
        for log_file in (self._journal, self._control):
            if log_file.lost:
                lines.append(f"{log_file.lost} records could not be kept: {log_file.fault}")
        return lines

    def release(self) -> None:
        """Let go of the folder, so that the shipper may remove it."""
        self._journal.close()
        self._control.close()
        os.close(self._hold)

    def _has(self, sink: str, goal: Position) -> bool:
        position = self.folder.progress(sink).position
        return all(position.get(name, 0) >= size for name, size in goal.items())

    def _wait(self, is_done: Callable[[], bool], wait_s: float) -> bool:
        deadline = time.monotonic() + wait_s
        while not is_done():
            if time.monotonic() >= deadline:
                return False
            self._keep_shipper()
            time.sleep(POLL_S)
        return True

    def _keep_shipper(self) -> None:
        """Start the shipper again when it was killed."""
        lived_s = time.monotonic() - self._shipper_started_s
        if self._shipper.poll() is not None and lived_s > _RESTART_WAIT_S:
            self._shipper_started_s = time.monotonic()
            # No process to be had now, or the folder is gone: that is no fault of the training.
            with contextlib.suppress(OSError, OpusclipError):
                self._shipper = start_shipper(self.folder, environment=self._secrets)


def _held_folder(journal_dir: Path, local_id: str, run_id: str | None) -> tuple[RunFolder, int]:
    """The run's folder, held: the one that still delivers an earlier part of it, else a new one."""
    for path in sorted(journal_dir.glob("*")) if run_id else []:
        identity = RunFolder(path).identity()
        if identity is None or identity.run_id != run_id:
            continue
        hold = RunFolder(path).hold()
        if RunFolder(path).identity() is not None:
            return RunFolder(path), hold
        os.close(hold)
    folder = RunFolder(journal_dir / local_id)
    return folder, folder.hold()


def _known_run(config: TrackingConfig) -> tuple[str | None, bool]:
    """The run to go on with, None for a new one; and whether its end is ours to declare."""
    active = _fluent_run()
    if active and config.run_id in (None, active):
        return active, False
    return config.run_id, True


def _fluent_run() -> str | None:
    """The id of the active fluent run, where this process uses MLflow itself."""
    active_run = getattr(sys.modules.get("mlflow"), "active_run", None)
    run = active_run() if active_run else None
    return str(run.info.run_id) if run else None


def _tracking_uri(config: TrackingConfig) -> str | None:
    """What MLflow would use in this process; None leaves the answer to MLflow in the shipper."""
    ask = getattr(sys.modules.get("mlflow"), "get_tracking_uri", None)
    return config.tracking_uri or (str(ask()) if ask else None)


def _manifest(config: TrackingConfig, run_id: str | None) -> Manifest:
    mirrors = {"tensorboard": config.use_tensorboard, "wandb": _mirrors_to_wandb(config)}
    tracking_uri = _tracking_uri(config)
    by_id = None if config.experiment_name else os.environ.get("MLFLOW_EXPERIMENT_ID")
    local_id = run_id or uuid.uuid4().hex
    return Manifest(
        local_id=local_id,
        cwd=os.getcwd(),
        sinks=["mlflow", *(name for name, wanted in mirrors.items() if wanted)],
        experiment_name=config.experiment_name or (None if by_id else "Default"),
        experiment_id=by_id,
        run_id=run_id,
        run_name=config.run_name or time.strftime(f"%Y%m%d-%H%M%S-{local_id[:4]}"),
        start_time_ms=int(time.time() * 1000),
        tracking_uri=_unless_secret(tracking_uri),
        registry_uri=_unless_secret(config.registry_uri),
        tensorboard_dir=config.tensorboard_dir,
        wandb_dir=config.wandb_dir,
        wandb_mode=config.wandb_mode,
        wandb_entity=config.wandb_entity,
        project_name=config.project_name,
        notes=config.notes,
    )


def _mirrors_to_wandb(config: TrackingConfig) -> bool:
    return config.use_wandb and config.wandb_mode != "disabled"


def _own_identity(manifest: Manifest) -> Identity:
    return Identity(
        mirror_id=manifest.local_id,
        experiment_name=manifest.experiment_name or "Default",
        run_name=manifest.run_name or "",
    )


def _secrets(config: TrackingConfig) -> dict[str, str]:
    """URIs for the shipper's environment: they may hold a password and are never written down."""
    uris = {
        "MLFLOW_TRACKING_URI": _tracking_uri(config),
        "MLFLOW_REGISTRY_URI": config.registry_uri,
    }
    return {name: uri for name, uri in uris.items() if uri}


def _unless_secret(uri: str | None) -> str | None:
    if uri is None:
        return None
    parts = urlsplit(uri)
    is_secret = parts.password is not None or "password" in parse_qs(parts.query)
    return None if is_secret else uri


def _process_started_s() -> float:
    import psutil

    process: Any = psutil.Process()
    return float(process.create_time())
