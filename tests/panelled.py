"""Samples of a panel as a tracker logs them, with clips whose pictures say which they are."""

from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from mlflow import MlflowClient
from mlflow.entities import Run

from opusclip_mlops import media
from opusclip_mlops.delivery import deliver
from opusclip_mlops.folder import RunFolder
from opusclip_mlops.panels import Panel
from opusclip_mlops.records import Record, Samples, Video
from tests.journeys import append, end, make_run

T0_MS = 1_700_000_000_500
FRAMES, FPS = 16, 8.0
BITS, SIDE = 5, 16
PANEL = Panel(name="kites", prompts=("a red kite", "a green kite"), seeds=(0, 7))
NASTY = '</script><img src=x onerror="document.title=1">{{<!-- film'


def numbered(colour: int = 0, *, frames: int = FRAMES) -> np.ndarray:
    """A clip with its frame's number as five black or white squares, and a band of a colour."""
    clip = np.zeros((frames, 3 * SIDE, BITS * SIDE, 3), np.uint8)
    clip[:, SIDE:] = (colour % 256, 90, 255 - colour % 256)
    for number in range(frames):
        for bit in range(BITS):
            clip[number, :SIDE, bit * SIDE : (bit + 1) * SIDE] = 255 * (number >> bit & 1)
    return clip


def samples(
    folder: RunFolder,
    step: int,
    *,
    panel: Panel = PANEL,
    clips: Sequence[Any] | None = None,
    scores: Mapping[str, float] | None = None,
    passports: Mapping[str, Any] | None = None,
    origin: Mapping[str, Any] | None = None,
    timestamp_ms: int | None = None,
) -> list[Record]:
    """What `log_panel` logs at a step; a clip for each cell, None for none."""
    at_ms = T0_MS + 1000 * abs(step) if timestamp_ms is None else timestamp_ms
    given = clips or [numbered(step + 40 * i) for i in range(len(panel.cells))]
    records: list[Record] = []
    cells = {}
    for cell, clip in zip(panel.cells, given, strict=True):
        key = panel.key_of(cell)
        said = {**panel.origin_of(cell).to_dict(), **(origin or {}), "panel": {"name": panel.name}}
        file = "" if clip is None else media.stage(folder, clip, value_range=(0, 1))
        if file:
            records.append(Video(at_ms, step, key, file, FPS, cell.prompt, said))
        cells[cell.name] = {
            "key": key, "file": file, "origin": said,
            "scores": dict(scores or {}), "passports": dict(passports or {}),
        }  # fmt: skip
    return [*records, Samples(at_ms, step, panel.to_dict(), cells)]


def panelled_run(
    tmp_path: Path, steps: Sequence[int] = (0, 10), *, run: str = "first", **fields: Any
) -> tuple[RunFolder, Run]:
    """A run that ended, with samples of a panel at some steps; `panel` and the like as above."""
    made = {key: fields.pop(key) for key in ("panel", "clips", "scores", "origin") if key in fields}
    name = f"{sha256(run.encode()).hexdigest()[:16]}-0123456789abcdef"
    folder = make_run(tmp_path, name=name, **{"run_name": run, **fields})
    for step in steps:
        append(folder, samples(folder, step, **made))
    end(folder)
    deliver(folder, "mlflow")
    return folder, run_of(folder)


def run_of(folder: RunFolder) -> Run:
    """The run as it stands in MLflow."""
    identity = folder.identity()
    assert identity is not None
    return client_of(folder).get_run(identity.run_id)


def client_of(folder: RunFolder) -> MlflowClient:
    """Who asks the MLflow of a run."""
    return MlflowClient(folder.manifest().tracking_uri)
